"""Inputs of the first layer: embeddings of intensities and classes, and positional encodings (paper section 3.1).

Shape suffixes: B batch, X any axes of positions, V values of a position, D features, H heads, K width of a head,
P pairs of numbers of a head.
"""

from collections.abc import Callable, Sequence
import functools
import operator
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.config import ModelConfig

# The official initialisation, of kernels and embedding tables alike.
official_init = nn.initializers.variance_scaling(0.2, 'fan_avg', 'uniform')


def _scaled(gain: float, shape: Callable = lambda shape: shape) -> Callable:
  """The official initialisation times `gain`; `shape` maps a weight's shape to its shape in the original."""
  return lambda key, own, dtype=jnp.float32: gain * official_init(key, shape(own), dtype).reshape(own)


class Table(nn.Module):
  """An embedding table whose rows are scaled by sqrt(features), as everywhere in the original."""

  rows: int
  features: int
  init: Callable = official_init

  @nn.compact
  def __call__(self, index_X: jax.Array) -> jax.Array:
    """Rows [X, D] (float32) for integer indices."""
    table = self.param('embedding', self.init, (self.rows, self.features), jnp.float32)
    return jnp.take(table, index_X, axis=0) * np.sqrt(self.features)


class IntensityEmbedding(nn.Module):
  """Embeds single intensities; each channel has its own table of levels."""

  levels: int
  channels: int
  features: int
  gain: float = 1.0  # on the initial weights

  @nn.compact
  def __call__(self, values_XV: jax.Array, channel_X: jax.Array) -> jax.Array:
    """Single values (V = 1) of the given channels -> [X, D]."""
    table = Table(self.channels * self.levels, self.features, _scaled(self.gain), name='table')
    return table(values_XV[..., 0] + self.levels * channel_X)


class PixelEmbedding(nn.Module):
  """Embeds whole pixels by a 1 x channels convolution and a ReLU."""

  levels: int
  features: int
  gain: float = 1.0  # on the initial weights
  bias: float = 0.0  # standard deviation of the initial biases

  @nn.compact
  def __call__(self, values_XV: jax.Array, channel_X: jax.Array) -> jax.Array:
    """Pixels -> [X, D]; a pixel has no channel, so that argument is ignored."""
    del channel_X
    scaled = values_XV.astype(jnp.float32) / ((self.levels - 1) / 2) - 1
    # The 1 x C convolution is a dense layer here, but in the original its kernel is [1, C, 1, features].
    init = _scaled(self.gain, lambda shape: (1, shape[0], 1, shape[1]))
    dense = nn.Dense(self.features, kernel_init=init, precision='highest', name='conv',
                     bias_init=nn.initializers.normal(self.bias) if self.bias else nn.initializers.zeros)
    return nn.relu(dense(scaled))


def sine_table(length: int, features: int, spacing: int = 1, depth: int = 1, axes: int = 2) -> np.ndarray:
  """float32 [length, 2 * (features // (2 * axes))]: positional encoding of one coordinate, sines, then cosines.

  Its share of a signal of several coordinates (`axes`) of width `features`; wavelengths run from 2 pi to
  1e4 * 2 pi. (tensor2tensor's `timing`.) With a spacing, a pixel of `depth` positions
  has the coordinates of the centre of `spacing` pixels.
  """
  num = features // (2 * axes)
  inverse = np.exp(-np.arange(num) * np.log(1e4) / max(num - 1, 1))
  pixel, channel = np.divmod(np.arange(length), depth)
  coordinates = (pixel * spacing + (spacing - 1) / 2) * depth + channel
  angles = coordinates[:, None] * inverse
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class Coordinates(nn.Module):
  """Positional encoding of the position to predict, by row and column, and by frame in a video; each RGB intensity has
  its own column."""

  rows: int
  columns: int
  features: int
  kind: str  # as `model.coordinates`
  spacing: int = 1  # of pixels, 'sine' only
  depth: int = 1  # columns in a pixel
  frames: int = 0  # 0: still images

  @nn.compact
  def __call__(self, row_X: jax.Array, column_X: jax.Array, *frame_X: jax.Array) -> jax.Array:
    """Integer coordinates -> [X, D] (float32); for rotary ones, which layers apply, the same vector everywhere."""
    if self.kind == 'rotary':
      # With pre-norm, an input that is proportional to a pixel's intensities, or zero as at the first position, would
      # lose them in the first layer norm: this vector gives them something to be compared with.
      return self.param('origin', nn.initializers.normal(1.0), (self.features,), jnp.float32)
    axes = [('row', self.rows, row_X, self.spacing, 1), ('column', self.columns, column_X, self.spacing, self.depth),
            *(('frame', self.frames, index_X, 1, 1) for index_X in frame_X)]
    if self.kind == 'sine':
      signal = jnp.concatenate([jnp.asarray(sine_table(length, self.features, spacing, depth, len(axes)))[index_X]
                                for _, length, index_X, spacing, depth in axes], axis=-1)
      return jnp.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, self.features - signal.shape[-1])])
    init = nn.initializers.normal(self.features**-0.5)
    tables = [Table(length, self.features, init, name=name)(index_X) for name, length, index_X, _, _ in axes]
    return functools.reduce(operator.add, tables)


def axes_of(row: jax.Array, column: jax.Array, channel: jax.Array, depth: int) -> list[jax.Array]:
  """The coordinates of positions; the channel is one only where a pixel has several positions (`depth`)."""
  return [row, column, channel] if depth > 1 else [row, column]


class Rotation(NamedTuple):
  """By what angles pairs of numbers of a query or key are rotated at each position: [X, P] each, float32."""

  cos_XP: jax.Array
  sin_XP: jax.Array


def rotation(config: ModelConfig, coordinates: Sequence[jax.Array]) -> Rotation | None:
  """Rotary positional encoding (Su et al., 2021) along several axes: each rotates its share of the pairs.

  Args:
    config: of the network.
    coordinates: of positions along each axis, [X] each, in pixels.

  Returns:
    None, if the network has other coordinates.
  """
  if config.coordinates != 'rotary':
    return None
  num_pairs, num_axes = config.head_width // 2, len(coordinates)
  angles = []
  for axis, coordinate_X in enumerate(coordinates):
    num = num_pairs // num_axes + (axis < num_pairs % num_axes)
    # From a quarter turn a pixel, which tells neighbours apart, to one fiftieth of that, which orders a whole image.
    frequency_P = (np.pi / 2 * 50.0**(-np.arange(num) / num)).astype(np.float32)
    angles.append(jnp.asarray(coordinate_X, jnp.float32)[..., None] * frequency_P)
  angle_XP = jnp.concatenate(angles, axis=-1)
  return Rotation(jnp.cos(angle_XP), jnp.sin(angle_XP))


def rotate(x_BXHK: jax.Array, by: Rotation | None) -> jax.Array:
  """Queries or keys, rotated in float32; None: unchanged. The product of a rotated query and a rotated key depends
  on their distance along each axis."""
  if by is None:
    return x_BXHK
  first, second = jnp.split(x_BXHK.astype(jnp.float32), 2, axis=-1)
  cos, sin = by.cos_XP[..., None, :], by.sin_XP[..., None, :]
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x_BXHK.dtype)
