"""Conditions of images (paper sections 3.2 and 5.2): the interface that all kinds of conditions share.

A condition object defines one kind: its name and shape, how a network encodes it, how it is
read from an example of a dataset, its default for sampling, and how it is typed on the command
line. To add a kind, write a class as in `labels.py` and list it in `model.py`.

Shape suffixes: B batch, C positions of a context, D features.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from image_transformer.config import ImageSpec, ModelConfig


class Encoding(NamedTuple):
  """The encoding of a condition, computed once per image: a vector, a context, or both."""

  vector_BD: jax.Array | None = None  # added at every position
  context_BCD: jax.Array | None = None  # which every layer attends to
  visible_BC: jax.Array | None = None  # bool, what is visible of the context; None: all of it
  # For rotary coordinates: the row and the column of each element of the context, in pixels of the image, [C] each.
  # None: it has no places. Queries are then not rotated, or, if another context has places, this one is at the origin.
  coordinates: Sequence[jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Condition:
  """One kind of condition, for the images of one model. Its values are integers in 0..num_values-1."""

  config: ModelConfig
  spec: ImageSpec

  name: ClassVar[str]  # its key in batches and in `given`
  has_context: ClassVar[bool] = False  # whether the encoding has a context
  is_located: ClassVar[bool] = False  # whether the context has coordinates in the image
  source: ClassVar[str] = ''  # the key of an example from which `of_example` takes it
  flag: ClassVar[tuple[str, str] | None] = None  # its flag's name and help, if it can be typed

  def __post_init__(self):
    """Raises InputError if the configuration does not fit the images."""

  @classmethod
  def is_used(cls, config: ModelConfig) -> bool:
    """Whether a model has this condition."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of one image's value."""
    raise NotImplementedError

  @property
  def num_values(self) -> int:
    raise NotImplementedError

  def encoder(self) -> nn.Module:
    """A module: (values [B, *shape], indices in the whole batch [B] for dropout, or None) -> Encoding."""
    raise NotImplementedError

  def of_example(self, example: Mapping[str, Any]) -> np.ndarray:
    """The value that comes with an example of a dataset; its `image` may be larger than the model's images."""
    raise NotImplementedError

  def default(self, num_images: int) -> tuple[np.ndarray, int] | None:
    """Values to sample with if none are given, and in how many columns to show the images; None: no default."""
    return None

  def shown(self, values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of images [N, H, W, C], by heading, to show before the samples in a picture."""
    return {}

  def captions(self, values: np.ndarray) -> list[str]:
    """Short texts to write above samples; none if there is nothing to say."""
    return []

  def of_user(self, given: Any, num_images: int) -> Any:
    """Values [num_images, *shape] from what a user gives in Python: one for each image, or a single one for all."""
    is_one = not self.shape and not isinstance(given, list | tuple) and np.ndim(given) == 0
    return np.full(num_images, given) if is_one else given

  @staticmethod
  def split(typed: Sequence[str]) -> list[str]:
    """The words in what the user typed, once or several times."""
    return list(typed)

  def parse(self, words: Sequence[str]) -> np.ndarray:
    """Parses words typed by the user into values [words, *shape].

    Raises:
      InputError: if they are not valid.
    """
    raise NotImplementedError


def default_given(conditions: Mapping[str, Condition], num_images: int) -> tuple[dict[str, np.ndarray], int]:
  """The default conditions for sampling, where there are any, and in how many columns to show the images."""
  given, columns = {}, square(num_images)
  for name, condition in conditions.items():
    default = condition.default(num_images)
    if default is not None:
      given[name], columns = default
  return given, columns


def square(num_images: int) -> int:
  """The number of columns of a square grid."""
  return int(np.ceil(num_images**0.5))
