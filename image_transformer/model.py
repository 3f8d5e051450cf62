"""The Image Transformer: images in, likelihood parameters out (paper section 3).

Inside the network a tensor is [B batch, N blocks, Q slots, D features], in the order
of generation (`layout.py`). Each slot is fed the intensity generated just before it and
the coordinates of the one it predicts.
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer import attention
from image_transformer.config import ImageSpec, ModelConfig, check
from image_transformer.embeddings import Coordinates, IntensityEmbedding, PixelEmbedding, Table, official_init
from image_transformer.errors import InputError
from image_transformer.layout import BlockLayout, block_layout
from image_transformer.likelihoods import Likelihood, make_likelihood
from image_transformer.transformer import Layer, layer_norm


class ImageTransformer(nn.Module):
  """A decoder over the intensities (categorical) or pixels (DMOL) of an image.

  Images are integers [B, H, W, C] in 0..levels-1, labels integers [B]; labels are
  needed exactly where `config.class_conditional`.
  """

  config: ModelConfig
  spec: ImageSpec

  @property
  def likelihood(self) -> Likelihood:
    return make_likelihood(self.config, self.spec)

  @property
  def layout(self) -> BlockLayout:
    return _layout(self.spec, self.likelihood.values_per_position, self.config.query_block,
                   self.config.memory_flange)

  @property
  def _columns(self) -> int:
    """Positions in a row of the image."""
    return self.spec.width * self.spec.channels // self.likelihood.values_per_position

  def setup(self):
    c, s = self.config, self.spec
    if c.likelihood == 'categorical':
      self.embedding = IntensityEmbedding(s.levels, s.channels, c.hidden_size, c.embedding_gain)
    else:
      self.embedding = PixelEmbedding(s.levels, c.hidden_size, c.embedding_gain)
    self.coordinates = Coordinates(s.height, self._columns, c.hidden_size, c.coordinates)
    if c.class_conditional:
      self.classes = Table(s.num_classes, c.hidden_size)
    self.input_dropout = nn.Dropout(c.dropout)
    # Arguments 2 and 3 are `attend` and `train`, counted from self.
    layer = nn.remat(Layer, static_argnums=(2, 3)) if c.remat else Layer
    self.layers = [layer(c, name=f'layer_{i}') for i in range(c.num_layers)]
    if c.norm == 'pre':
      self.final_norm = layer_norm(c, 'final_norm')
    # Outside the compute type: likelihoods need float32 parameters.
    self.output = nn.Dense(self.likelihood.num_parameters, use_bias=self.likelihood.output_bias,
                           kernel_init=official_init)

  def values(self, images: jax.Array) -> jax.Array:
    """Images [B, H, W, C] -> int32 values [B, positions, values per position] in raster order."""
    if not jnp.issubdtype(images.dtype, jnp.integer):
      raise InputError(f'Images are {images.dtype}, but must be integers in 0..{self.spec.levels - 1}.')
    return images.astype(jnp.int32).reshape(images.shape[0], -1, self.likelihood.values_per_position)

  def embed(self, previous: jax.Array, previous_index: jax.Array, index: jax.Array,
            labels: jax.Array | None) -> jax.Array:
    """The input of the first layer, without dropout.

    Args:
      previous: values generated just before each slot, [B, ..., values per position].
      previous_index: their raster indices [...]; -1 for the start, whose embedding is zero.
      index: the raster index of each slot itself [...].
      labels: [B], or None.

    Returns:
      [B, ..., D].
    """
    embedded = self.embedding(previous, previous_index % self.spec.channels)
    embedded = jnp.where(previous_index[..., None] < 0, 0, embedded)
    embedded += self.coordinates(*jnp.divmod(jnp.maximum(index, 0), self._columns))
    if self.config.class_conditional:
      embedded += jnp.expand_dims(self.classes(labels), tuple(range(1, embedded.ndim - 1)))
    return embedded

  def embed_images(self, images: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """Shifts by one in generation order and embeds: [B, N, Q, D]."""
    previous, order = self.layout.previous, self.layout.order
    return self.embed(self.values(images)[:, previous], jnp.asarray(previous), jnp.asarray(order), labels)

  def decode(self, embedded: jax.Array, train: bool = False) -> jax.Array:
    """Embedded slots [B, N, Q, D] -> likelihood parameters [B, N, Q, P], float32."""

    def attend(q, k, v, dropout):
      return attention.local_attention(q, k, v, self.layout, dropout), None

    return self._stack(embedded, [attend] * self.config.num_layers, train)[0]

  def _stack(self, x, attends, train):
    x = self.input_dropout(x, deterministic=not train).astype(self.config.dtype)
    kept = []
    for layer, attend in zip(self.layers, attends):
      x, from_layer = layer(x, attend, train)
      kept.append(from_layer)
    if self.config.norm == 'pre':
      x = self.final_norm(x)
    return self.output(x.astype(jnp.float32)), kept

  def __call__(self, images: jax.Array, labels: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Likelihood parameters in raster order: [B, H, W, C, levels] (categorical) or [B, H, W, P] (DMOL)."""
    parameters = self.decode(self.embed_images(images, labels), train)
    parameters = parameters.reshape(images.shape[0], -1, parameters.shape[-1])[:, self.layout.slots]
    positions = images.shape if self.config.likelihood == 'categorical' else images.shape[:3]
    return parameters.reshape(*positions, -1)

  def log_prob(self, images: jax.Array, labels: jax.Array | None = None, train: bool = False) -> jax.Array:
    """Log-probability of each image, nats [B], float32."""
    parameters = self.decode(self.embed_images(images, labels), train)
    order = self.layout.order
    log_probs = self.likelihood.log_prob(parameters, self.values(images)[:, order])
    return jnp.where(order >= 0, log_probs, 0).sum(axis=(1, 2))

  def step(self, previous: jax.Array, block: jax.Array, slot: jax.Array, labels: jax.Array | None,
           caches: Any) -> tuple[jax.Array, Any]:
    """One slot of every image, from caches of what came before it.

    Args:
      previous: values [B, values per position] generated just before.
      block, slot: scalars, where we are.
      labels: [B], or None.
      caches: one `attention.Cache` for each layer.

    Returns:
      Likelihood parameters [B, P], float32, and the caches with this slot in them.
    """
    previous_index = jnp.asarray(self.layout.previous)[block, slot]
    index = jnp.asarray(self.layout.order)[block, slot]
    embedded = self.embed(previous, previous_index, index, labels)
    attends = [functools.partial(attention.cached_attention, cache=cache, layout=self.layout, block=block, slot=slot)
               for cache in caches]
    return self._stack(embedded, attends, train=False)


def make_model(config: ModelConfig, spec: ImageSpec) -> ImageTransformer:
  """A model for images of `spec`.

  Raises:
    InputError: if the configuration does not fit the images.
  """
  model = ImageTransformer(config, spec)
  check(not config.class_conditional or spec.num_classes > 0, 'model.class_conditional', True,
        'False for a dataset without labels')
  model.layout  # checks the likelihood and the block against the image
  return model


def init_params(model: ImageTransformer, seed: int) -> dict[str, Any]:
  """Initial parameters, a function of the seed."""
  images, labels = jnp.zeros((1, *model.spec.shape), jnp.uint8), jnp.zeros(1, jnp.int32)
  return jax.jit(model.init)(jax.random.key(seed), images, labels)['params']


@functools.lru_cache
def _layout(spec, values_per_position, query_block, memory_flange):
  """Cached: a layout computes its arrays once."""
  return block_layout(spec.shape, values_per_position, query_block, memory_flange)
