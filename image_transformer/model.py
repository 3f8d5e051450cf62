"""The Image Transformer: images in, likelihood parameters out (paper section 3).

Inside the decoder a tensor is [B batch, N blocks, Q slots, D features], in the order
of generation (`layout.py`). Each slot is fed the intensity generated just before it and
the coordinates of the one it predicts.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer import attention
from image_transformer.config import ImageSpec, ModelConfig, check
from image_transformer.embeddings import Coordinates, IntensityEmbedding, PixelEmbedding, Table, official_init
from image_transformer.errors import InputError
from image_transformer.layout import BlockLayout, block_layout
from image_transformer.likelihoods import Likelihood, make_likelihood
from image_transformer.transformer import KeysValues, Stack

# What an image is conditioned on: 'label' integers [B], 'low_res' integers [B, H / upscale, W / upscale, C].
Given = Mapping[str, jax.Array]


class Encoded(NamedTuple):
  """What follows from the conditions alone, and so is computed once for an image."""

  vector: jax.Array | None  # [B, D], added at every position
  keys_values: list[KeysValues | None]  # what each decoder layer attends to of the encoder


class ImageTransformer(nn.Module):
  """A decoder over the intensities (categorical) or pixels (DMOL) of an image.

  Images are integers [B, H, W, C] in 0..levels-1. A model may be conditioned on labels
  (`config.class_conditional`) and on the image made smaller (`config.upscale`, paper section
  3.2); it then needs what `conditions` names, as the entries of `given`.
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
  def conditions(self) -> tuple[str, ...]:
    """The names of what images are conditioned on."""
    return ('label',) * self.config.class_conditional + ('low_res',) * (self.config.upscale > 1)

  def setup(self):
    c = self.config
    self.embedding, self.coordinates = self._input(1)
    self.decoder = Stack(c, c.num_layers, cross=c.upscale > 1)
    if c.class_conditional:
      self.classes = Table(self.spec.num_classes, c.hidden_size)
    if c.upscale > 1:
      self.encoder_embedding, self.encoder_coordinates = self._input(c.upscale)
      self.encoder = Stack(c, c.num_encoder_layers)
    # Outside the compute type: likelihoods need float32 parameters.
    self.output = nn.Dense(self.likelihood.num_parameters, use_bias=self.likelihood.output_bias,
                           kernel_init=official_init)

  def _input(self, shrink):
    """Embedding and coordinates of images that are smaller by a factor."""
    c, s = self.config, self.spec
    if c.likelihood == 'categorical':
      embedding = IntensityEmbedding(s.levels, s.channels, c.hidden_size, c.embedding_gain)
    else:
      embedding = PixelEmbedding(s.levels, c.hidden_size, c.embedding_gain)
    coordinates = Coordinates(s.height // shrink, self._columns // shrink, c.hidden_size, c.coordinates,
                              spacing=shrink if c.align_encoder else 1, depth=self._columns // s.width)
    return embedding, coordinates

  @property
  def _columns(self) -> int:
    """Positions in a row of the image."""
    return self.spec.width * self.spec.channels // self.likelihood.values_per_position

  def values(self, images: jax.Array) -> jax.Array:
    """Images [B, H, W, C] -> int32 values [B, positions, values per position] in raster order."""
    if not jnp.issubdtype(images.dtype, jnp.integer):
      raise InputError(f'Images are {images.dtype}, but must be integers in 0..{self.spec.levels - 1}.')
    return images.astype(jnp.int32).reshape(images.shape[0], -1, self.likelihood.values_per_position)

  def encode(self, given: Given, places: jax.Array | None = None) -> Encoded:
    """Runs the encoder (paper section 3.2) and looks the classes up (section 5.2).

    Raises:
      InputError: if a condition of the model is missing.
    """
    c = self.config
    missing = [name for name in self.conditions if not isinstance(given, Mapping) or name not in given]
    if missing:
      raise InputError(f'This model is conditioned on {" and ".join(missing)}: `given` must be a dictionary with '
                       'an entry of that name.')
    vector = self.classes(given['label']) if c.class_conditional else None
    if c.upscale == 1:
      return Encoded(vector, [None] * c.num_layers)
    values = self.values(given['low_res'])
    index = jnp.arange(values.shape[1])
    embedded = self.encoder_embedding(values, index % self.spec.channels)
    embedded += self.encoder_coordinates(*jnp.divmod(index, self._columns // c.upscale))
    layers = c.num_encoder_layers
    encoded, _ = self.encoder(embedded, [attention.full_attention] * layers, places, [None] * layers)
    return Encoded(vector, self.decoder.keys_values(encoded))

  def embed(self, previous: jax.Array, previous_index: jax.Array, index: jax.Array, encoded: Encoded) -> jax.Array:
    """The input of the first layer, without dropout.

    Args:
      previous: values generated just before each slot, [B, ..., values per position].
      previous_index: their raster indices [...]; -1 for the start, whose embedding is zero.
      index: the raster index of each slot itself [...].
      encoded: the conditions.

    Returns:
      [B, ..., D].
    """
    embedded = self.embedding(previous, previous_index % self.spec.channels)
    embedded = jnp.where(previous_index[..., None] < 0, 0, embedded)
    embedded += self.coordinates(*jnp.divmod(jnp.maximum(index, 0), self._columns))
    if encoded.vector is not None:
      embedded += jnp.expand_dims(encoded.vector, tuple(range(1, embedded.ndim - 1)))
    return embedded

  def embed_images(self, images: jax.Array, encoded: Encoded) -> jax.Array:
    """Shifts by one in generation order and embeds: [B, N, Q, D]."""
    previous, order = self.layout.previous, self.layout.order
    return self.embed(self.values(images)[:, previous], jnp.asarray(previous), jnp.asarray(order), encoded)

  def decode(self, embedded: jax.Array, encoded: Encoded, places: jax.Array | None = None) -> jax.Array:
    """Embedded slots [B, N, Q, D] -> likelihood parameters [B, N, Q, P], float32."""

    def attend(q, k, v, dropout):
      return attention.local_attention(q, k, v, self.layout, dropout), None

    return self._run(embedded, [attend] * self.config.num_layers, encoded, places)[0]

  def _run(self, embedded, attends, encoded, places=None):
    x, kept = self.decoder(embedded, attends, places, encoded.keys_values)
    return self.output(x.astype(jnp.float32)), kept

  def _decode_images(self, images, given, train, first_place):
    """Likelihood parameters [B, N, Q, P]; with dropout, of images at these places of the whole batch."""
    places = first_place + jnp.arange(len(images)) if train else None
    encoded = self.encode(given, places)
    return self.decode(self.embed_images(images, encoded), encoded, places)

  def __call__(self, images: jax.Array, given: Given = {}, train: bool = False) -> jax.Array:
    """Likelihood parameters in raster order: [B, H, W, C, levels] (categorical) or [B, H, W, P] (DMOL)."""
    parameters = self._decode_images(images, given, train, 0)
    parameters = parameters.reshape(images.shape[0], -1, parameters.shape[-1])[:, self.layout.slots]
    positions = images.shape if self.config.likelihood == 'categorical' else images.shape[:3]
    return parameters.reshape(*positions, -1)

  def log_prob(self, images: jax.Array, given: Given = {}, train: bool = False,
               first_place: jax.Array | int = 0) -> jax.Array:
    """Log-probability of each image under its conditions, nats [B], float32.

    Args:
      images: integers [B, H, W, C].
      given: the conditions.
      train: with dropout, from the random key 'dropout'.
      first_place: where in the whole batch these images begin, which decides their dropout.
    """
    order = self.layout.order
    return jnp.where(order >= 0, self._log_probs(images, given, train, first_place), 0).sum(axis=(1, 2))

  def pixel_log_probs(self, images: jax.Array, given: Given = {}) -> jax.Array:
    """Of which `log_prob` is the sum: nats [B, H, W, positions of a pixel], float32."""
    log_probs = self._log_probs(images, given, False, 0).reshape(len(images), -1)[:, self.layout.slots]
    return log_probs.reshape(*images.shape[:3], -1)

  def _log_probs(self, images, given, train, first_place):
    """[B, N, Q]; of padding, anything."""
    parameters = self._decode_images(images, given, train, first_place)
    return self.likelihood.log_prob(parameters, self.values(images)[:, self.layout.order])

  def attention_weights(self, images: jax.Array, given: Given = {}, index: int = 0) -> jax.Array:
    """How much the query at a raster index used of every position: [layers, B, heads, positions], each of sum 1."""
    layout = self.layout
    block, slot = divmod(int(layout.slots[index]), layout.block_size)

    def attend(q, k, v, dropout):
      return (attention.local_attention(q, k, v, layout, dropout),
              attention.attention_weights(q, k, layout, block, slot))

    encoded = self.encode(given)
    _, kept = self._run(self.embed_images(images, encoded), [attend] * self.config.num_layers, encoded)
    weights = jnp.stack(kept)[..., layout.occupied[block]]
    everywhere = jnp.zeros((*weights.shape[:-1], layout.num_positions))
    return everywhere.at[..., layout.memory[block, layout.occupied[block]]].set(weights)

  def remember(self, images: jax.Array, encoded: Encoded, block: int) -> list[attention.Remembered]:
    """What each layer remembers when a block begins or goes on, in one parallel pass.

    Args:
      images: [B, H, W, C]; what is not generated yet may be anything.
      encoded: the conditions.
      block: the block in which the next slot is.
    """

    def attend(q, k, v, dropout):
      mixed = attention.local_attention(q, k, v, self.layout, dropout)
      return mixed, attention.remember(k, v, self.layout, block)

    return self._run(self.embed_images(images, encoded), [attend] * self.config.num_layers, encoded)[1]

  def step(self, previous: jax.Array, block: jax.Array, slot: jax.Array, encoded: Encoded,
           caches: list[attention.Cache]) -> tuple[jax.Array, list[attention.Cache]]:
    """One slot of every image, from caches of what came before it.

    Args:
      previous: values [B, values per position] generated just before.
      block, slot: scalars, where we are.
      encoded: the conditions.
      caches: one for each layer.

    Returns:
      Likelihood parameters [B, P], float32, and the caches with this slot in them.
    """
    previous_index = jnp.asarray(self.layout.previous)[block, slot]
    index = jnp.asarray(self.layout.order)[block, slot]
    embedded = self.embed(previous, previous_index, index, encoded)
    attends = [functools.partial(attention.cached_attention, cache=cache, layout=self.layout, block=block, slot=slot)
               for cache in caches]
    return self._run(embedded, attends, encoded)


def make_model(config: ModelConfig, spec: ImageSpec) -> ImageTransformer:
  """A model for images of `spec`.

  Raises:
    InputError: if the configuration does not fit the images.
  """
  model = ImageTransformer(config, spec)
  check(not config.class_conditional or spec.num_classes > 0, 'model.class_conditional', True,
        'False for a dataset without labels')
  check(spec.height % config.upscale == spec.width % config.upscale == 0, 'model.upscale', config.upscale,
        f'a divisor of the height and width of {spec.height} x {spec.width} images')
  _ = model.layout  # checks the likelihood and the block against the image
  return model


def blank(model: ImageTransformer, num_images: int = 1) -> tuple[jax.Array, Given]:
  """Images, and what they are given, of the right shapes: all zero."""
  height, width, channels = model.spec.shape
  upscale = model.config.upscale
  shapes = {'label': (), 'low_res': (height // upscale, width // upscale, channels)}
  given = {name: jnp.zeros((num_images, *shapes[name]), jnp.int32) for name in model.conditions}
  return jnp.zeros((num_images, *model.spec.shape), jnp.uint8), given


def init_params(model: ImageTransformer, seed: int) -> dict[str, Any]:
  """Initial parameters, a function of the seed."""
  params = jax.jit(model.init)(jax.random.key(seed), *blank(model))['params']
  if model.config.align_encoder:
    for i in range(model.config.num_layers):
      cross = params['decoder'][f'layer_{i}']['cross_attention']
      # Equal projections make equal coordinates attend to each other. (2: the official weights are small.)
      kernel = 2 * cross['query']['kernel']
      cross['query']['kernel'], cross['key']['kernel'] = kernel, jnp.copy(kernel)
  return params


def num_parameters(model: ImageTransformer) -> int:
  """How many numbers a model learns."""
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functools.partial(init_params, model, 0))))


@functools.lru_cache
def _layout(spec, values_per_position, query_block, memory_flange):
  """Cached: a layout computes its arrays once."""
  return block_layout(spec.shape, values_per_position, query_block, memory_flange)
