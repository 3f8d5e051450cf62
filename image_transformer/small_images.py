"""Images conditioned on a downsampled version of themselves: super-resolution (paper section 3.2).

Shape suffixes: B batch, C positions of a context, V values of a position, D features.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.attention import full_attention
from image_transformer.conditions import Condition, Encoding
from image_transformer.config import ImageSpec, ModelConfig, check
from image_transformer.embeddings import Coordinates, axes_of, rotation
from image_transformer.images import area_resize, bicubic
from image_transformer.likelihoods import make_likelihood
from image_transformer.transformer import Rotations, Stack, is_fused


class _SmallImageEncoder(nn.Module):
  config: ModelConfig
  spec: ImageSpec

  def setup(self):
    c, s = self.config, self.spec
    likelihood = make_likelihood(c, s)
    self.depth = s.channels // likelihood.values_per_position
    self.encoder_embedding = likelihood.embedding(c)
    self.encoder_coordinates = Coordinates(
        s.height // c.upscale, s.width // c.upscale * self.depth, c.hidden_size, c.coordinates,
        spacing=c.upscale if c.align_encoder else 1, depth=self.depth)
    self.encoder = Stack(c, c.num_encoder_layers)

  def _places(self):
    """Coordinates of the small image's positions, as those of the image: in its pixels."""
    upscale, (height, width) = self.config.upscale, self.spec.shape[:2]
    row, column, channel = np.indices((height // upscale, width // upscale, self.depth)).reshape(3, -1)
    return axes_of(upscale * row + (upscale - 1) / 2, upscale * column + (upscale - 1) / 2, channel, self.depth)

  def __call__(self, images_BHWC: jax.Array, batch_index_B: jax.Array | None) -> Encoding:
    c = self.config
    values_BCV = images_BHWC.reshape(len(images_BHWC), -1, self.spec.channels // self.depth)
    index_C = jnp.arange(values_BCV.shape[1])
    embedded_BCD = self.encoder_embedding(values_BCV, index_C % self.spec.channels)
    embedded_BCD += self.encoder_coordinates(*jnp.divmod(index_C, self.spec.width // c.upscale * self.depth))
    layers, places = c.num_encoder_layers, self._places()
    places_C = rotation(c, places)
    attention_fn = functools.partial(full_attention, fused=is_fused(c))
    encoded_BCD, _ = self.encoder(embedded_BCD, [attention_fn] * layers, batch_index_B,
                                  Rotations(places_C, places_C), [None] * layers)
    return Encoding(context_BCD=encoded_BCD, coordinates=places)


class SmallImage(Condition):
  """The image downsampled by `model.upscale`, for super-resolution: an encoder reads it, every layer attends to it."""

  name = 'low_res'
  source = 'image'
  has_context = is_located = True

  def __post_init__(self):
    check(not self.spec.frames, 'model.upscale', self.config.upscale, '1 for videos')
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
    """The small images, and their bicubic enlargements."""
    return {'given': values, 'bicubic': bicubic(values, *self.spec.shape[:2], self.spec.levels)}
