"""What images are conditioned on: class labels (paper section 5.2), and themselves in small (section 3.2).

A condition is an object that says everything about one kind: its name and shape, how a
network encodes it, how it comes with an example of a dataset, what to draw when nobody says,
and how it is typed. To add a kind, write a class like those here and put it into `CONDITIONS`.

Shape suffixes: B batch, C positions of a context, D features.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.attention import full_attention
from image_transformer.config import ImageSpec, ModelConfig, check
from image_transformer.embeddings import Coordinates, Table
from image_transformer.images import area_resize, bicubic
from image_transformer.likelihoods import make_likelihood
from image_transformer.transformer import Stack


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


class _LabelEncoder(nn.Module):
  config: ModelConfig
  num_classes: int

  def setup(self):
    self.classes = Table(self.num_classes, self.config.hidden_size)

  def __call__(self, labels_B: jax.Array, batch_index_B: jax.Array | None) -> Encoding:
    return Encoding(vector_BD=self.classes(labels_B))


class Label(Condition):
  """The class of an image."""

  name = 'label'
  flag = 'labels', 'Classes, repeated to the number of images. Default: rows of each, or those of the inputs.'

  def __post_init__(self):
    check(self.spec.num_classes > 0, 'model.class_conditional', True, 'False for a dataset without labels')

  @classmethod
  def is_used(cls, config):
    return config.class_conditional

  @property
  def shape(self):
    return ()

  @property
  def num_values(self):
    return self.spec.num_classes

  def encoder(self):
    return _LabelEncoder(self.config, self.spec.num_classes)

  def of_example(self, example):
    return np.int32(example['label'])

  def default(self, num_images):
    """Rows of one class each, so that all classes are there; fewer images than classes: classes spread evenly."""
    classes = self.num_values
    if num_images < classes:
      return np.arange(num_images) * classes // num_images, square(num_images)
    columns = num_images // classes
    return np.arange(num_images) // columns % classes, columns

  def parse(self, words):
    good = words and all(re.fullmatch(r'\d{1,9}', word) and int(word) < self.num_values for word in words)
    check(good, 'labels', ','.join(words), f'classes in 0..{self.num_values - 1}, separated by commas')
    return np.array(words, np.int32)


class _SmallImageEncoder(nn.Module):
  config: ModelConfig
  spec: ImageSpec

  def setup(self):
    c, s = self.config, self.spec
    likelihood = make_likelihood(c, s)
    self.depth = s.channels // likelihood.values_per_position
    self.encoder_embedding = likelihood.embedding(c.hidden_size, c.embedding_gain)
    self.encoder_coordinates = Coordinates(
        s.height // c.upscale, s.width // c.upscale * self.depth, c.hidden_size, c.coordinates,
        spacing=c.upscale if c.align_encoder else 1, depth=self.depth)
    self.encoder = Stack(c, c.num_encoder_layers)

  def __call__(self, images_BHWC: jax.Array, batch_index_B: jax.Array | None) -> Encoding:
    c = self.config
    values_BCV = images_BHWC.reshape(len(images_BHWC), -1, self.spec.channels // self.depth)
    index_C = jnp.arange(values_BCV.shape[1])
    embedded_BCD = self.encoder_embedding(values_BCV, index_C % self.spec.channels)
    embedded_BCD += self.encoder_coordinates(*jnp.divmod(index_C, self.spec.width // c.upscale * self.depth))
    layers = c.num_encoder_layers
    encoded_BCD, _ = self.encoder(embedded_BCD, [full_attention] * layers, batch_index_B, [None] * layers)
    return Encoding(context_BCD=encoded_BCD)


class SmallImage(Condition):
  """The image downsampled by `model.upscale`, for super-resolution: an encoder reads it, every layer attends to it."""

  name = 'low_res'
  has_context = True

  def __post_init__(self):
    height, width, _ = self.spec.shape
    check(height % self.config.upscale == width % self.config.upscale == 0, 'model.upscale', self.config.upscale,
          f'a divisor of the height and width of {height} x {width} images')

  @classmethod
  def is_used(cls, config):
    return config.upscale > 1

  @property
  def shape(self):
    return self.spec.height // self.config.upscale, self.spec.width // self.config.upscale, self.spec.channels

  @property
  def num_values(self):
    return self.spec.levels

  def encoder(self):
    return _SmallImageEncoder(self.config, self.spec)

  def of_example(self, example):
    return area_resize(example['image'], *self.shape[:2])

  def shown(self, values):
    """The small images, and what bicubic interpolation makes of them."""
    return [values, bicubic(values, *self.spec.shape[:2], self.spec.levels)]


# All kinds, in the order in which models take them.
CONDITIONS: tuple[type[Condition], ...] = Label, SmallImage


def make_conditions(config: ModelConfig, spec: ImageSpec) -> dict[str, Condition]:
  """The conditions of a model, by name.

  Raises:
    InputError: if one does not fit the images.
  """
  return {kind.name: kind(config, spec) for kind in CONDITIONS if kind.is_used(config)}


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
