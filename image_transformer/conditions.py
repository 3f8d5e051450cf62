"""What images are conditioned on (paper sections 3.2 and 5.2): what all kinds of conditions have in common.

A condition is an object that says everything about one kind: its name and shape, how a
network encodes it, how it comes with an example of a dataset, what to draw when nobody says,
and how it is typed. To add a kind, write a class as in `labels.py`; `model.py` lists them all.

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
  """What a network makes of a condition, once for an image: a vector, a context, or both."""

  vector_BD: jax.Array | None = None  # added at every position
  context_BCD: jax.Array | None = None  # which every layer attends to
  visible_BC: jax.Array | None = None  # bool, of the context; None: all of it


@dataclasses.dataclass(frozen=True)
class Condition:
  """One kind of condition, for the images of one model. Its values are integers in 0..num_values-1."""

  config: ModelConfig
  spec: ImageSpec

  name: ClassVar[str]  # its key in batches and in what the network is given
  has_context: ClassVar[bool] = False  # whether the encoding has a context
  flag: ClassVar[tuple[str, str] | None] = None  # how the command calls it and explains it, where it can be typed

  def __post_init__(self):
    """Raises InputError where the configuration does not fit the images."""

  @classmethod
  def is_used(cls, config: ModelConfig) -> bool:
    """Whether a model has this condition."""
    raise NotImplementedError

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one image's value."""
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
    """Values to draw images of when nobody says which, and in how many columns to show them; None: there are none."""
    return None

  def shown(self, values: np.ndarray) -> list[np.ndarray]:
    """Columns of images [N, H, W, C] that stand before samples in a picture."""
    return []

  def parse(self, words: Sequence[str]) -> np.ndarray:
    """Values [words, *shape] from what was typed.

    Raises:
      InputError: if it means nothing.
    """
    raise NotImplementedError


def default_given(conditions: Mapping[str, Condition], num_images: int) -> tuple[dict[str, np.ndarray], int]:
  """What images are drawn of when nobody says, where there is such a thing, and in how many columns they are shown."""
  given, columns = {}, square(num_images)
  for name, condition in conditions.items():
    default = condition.default(num_images)
    if default is not None:
      given[name], columns = default
  return given, columns


def square(num_images: int) -> int:
  """Columns of a grid that is as high as wide."""
  return int(np.ceil(num_images**0.5))
