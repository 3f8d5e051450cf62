"""The Image Transformer: images in, likelihood parameters out (paper section 3).

Inside the decoder tensors are in the order of generation (`layout.py`). Each slot is fed
the intensity generated just before it and the coordinates of the one it predicts.

Shape suffixes: B batch, N blocks, Q slots of a query block, X any axes of positions (N and Q,
or none), V values of a position, D features, C positions of a context, P likelihood parameters.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
import math
import operator
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer import attention
from image_transformer.conditions import Condition
from image_transformer.config import ImageSpec, ModelConfig, check
from image_transformer.door import check_given, check_images
from image_transformer.embeddings import Coordinates, axes_of, official_init, rotation
from image_transformer.labels import Label
from image_transformer.layout import BlockLayout, block_layout
from image_transformer.likelihoods import Likelihood, make_likelihood
from image_transformer.small_images import SmallImage
from image_transformer.text import Text
from image_transformer.transformer import Context, Rotations, Stack, is_fused

# What images are conditioned on: integers [B, ...] for each name in `ImageTransformer.conditions`.
Given = Mapping[str, jax.Array]


# All kinds of conditions, in the order in which models take them.
CONDITIONS: tuple[type[Condition], ...] = Label, SmallImage, Text


class Encoded(NamedTuple):
  """What depends on the conditions alone, and so is computed once per image."""

  vector_BD: jax.Array | None  # added at every position
  contexts: list[Context | None]  # what each decoder layer attends to besides its input


class ImageTransformer(nn.Module):
  """A decoder over the intensities (categorical) or pixels (DMOL) of an image or a video.

  Images are integers [B, H, W, C] in 0..levels-1; wherever they may come, so may videos [B, T, H, W, C]. Their
  conditions are given as a dictionary, with an entry for each name in `conditions`. All methods raise InputError for
  images and conditions that do not fit.
  """

  config: ModelConfig
  spec: ImageSpec

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    # GPUs and TPUs round float32 operands of matrix products to fewer bits by default.
    exact = self.config.dtype == 'float32'
    with jax.default_matmul_precision('highest') if exact else contextlib.nullcontext():
      return super().apply(*args, **kwargs)

  @property
  def likelihood(self) -> Likelihood:
    return make_likelihood(self.config, self.spec)

  @property
  def conditions(self) -> dict[str, Condition]:
    """What images are conditioned on, by name."""
    return make_conditions(self.config, self.spec)

  def given_of(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions among the arrays of a batch."""
    return {name: batch[name] for name in self.conditions}

  @property
  def layout(self) -> BlockLayout:
    c = self.config
    return _layout(self.spec, self.likelihood.values_per_position, c.query_block, c.memory_flange, c.scan)

  @property
  def _columns(self) -> int:
    """Positions in a row of the image."""
    return math.prod(self.layout.image[-2:])

  def setup(self):
    c, s = self.config, self.spec
    self.embedding = self.likelihood.embedding(c)
    self.coordinates = Coordinates(s.height, self._columns, c.hidden_size, c.coordinates, frames=s.frames)
    self.decoder = Stack(c, c.num_layers, cross=any(one.has_context for one in self.conditions.values()))
    self.encoders = {name: condition.encoder() for name, condition in self.conditions.items()}
    for encoder in self.encoders.values():  # puts their parameters beside the decoder's
      nn.share_scope(self, encoder)
    # Outside the compute type: likelihoods need float32 parameters.
    self.output = nn.Dense(self.likelihood.num_parameters, use_bias=self.likelihood.output_bias,
                           kernel_init=official_init, precision='highest')

  def values(self, images: jax.Array) -> jax.Array:
    """Images [B, H, W, C] -> int32 values [B, positions, V] in raster order."""
    images = jnp.asarray(check_images(images, self.spec))
    return images.astype(jnp.int32).reshape(images.shape[0], -1, self.likelihood.values_per_position)

  def encode(self, given: Given, batch_index_B: jax.Array | None = None, num_images: int | None = None) -> Encoded:
    """Encodes the conditions (paper sections 3.2 and 5.2).

    Args:
      given: the conditions.
      batch_index_B: the indices of these images in the whole batch, for dropout; None: no dropout.
      num_images: the number of images, which the conditions must match; None: it follows from them.
    """
    given = check_given(given, self.conditions, num_images)
    encodings = [encoder(jnp.asarray(given[name]), batch_index_B) for name, encoder in self.encoders.items()]
    vectors = [one.vector_BD for one in encodings if one.vector_BD is not None]
    vector_BD = functools.reduce(operator.add, vectors) if vectors else None
    parts = [one for one in encodings if one.context_BCD is not None]
    if not parts:
      return Encoded(vector_BD, [None] * self.config.num_layers)
    visible_BC = None
    if any(one.visible_BC is not None for one in parts):
      visible_BC = jnp.concatenate([jnp.ones(one.context_BCD.shape[:2], bool) if one.visible_BC is None else
                                    one.visible_BC for one in parts], axis=1)
    context_BCD = jnp.concatenate([one.context_BCD for one in parts], axis=1)
    if not self._is_located:
      return Encoded(vector_BD, self.decoder.contexts(context_BCD, visible_BC, None))
    origin = [0] * len(self._axes(0))
    places = [jnp.concatenate([jnp.broadcast_to(jnp.asarray(coordinate, jnp.float32), one.context_BCD.shape[1])
                               for one, coordinate in zip(parts, axis)])
              for axis in zip(*(origin if one.coordinates is None else one.coordinates for one in parts))]
    return Encoded(vector_BD, self.decoder.contexts(context_BCD, visible_BC, rotation(self.config, places)))

  @property
  def _is_located(self) -> bool:
    """Whether the context has coordinates."""
    return any(one.is_located for one in self.conditions.values())

  def embed(self, fed_BXV: jax.Array, fed_index_X: jax.Array, index_X: jax.Array, encoded: Encoded) -> jax.Array:
    """The input of the first layer, without dropout.

    Args:
      fed_BXV: values generated just before each slot.
      fed_index_X: their raster indices; -1 for the start, whose embedding is zero.
      index_X: the raster index of each slot itself.
      encoded: the conditions.

    Returns:
      [B, X, D].
    """
    embedded_BXD = self.embedding(fed_BXV, fed_index_X % self.spec.channels)
    embedded_BXD = jnp.where(fed_index_X[..., None] < 0, 0, embedded_BXD)
    row_X, column_X = jnp.divmod(jnp.maximum(index_X, 0), self._columns)
    if self.spec.frames:
      frame_X, row_X = jnp.divmod(row_X, self.spec.height)
      embedded_BXD += self.coordinates(row_X, column_X, frame_X)
    else:
      embedded_BXD += self.coordinates(row_X, column_X)
    if encoded.vector_BD is not None:
      embedded_BXD += jnp.expand_dims(encoded.vector_BD, tuple(range(1, embedded_BXD.ndim - 1)))
    return embedded_BXD

  def embed_images(self, images: jax.Array, encoded: Encoded) -> jax.Array:
    """Shifts by one in generation order and embeds: [B, N, Q, D]."""
    previous, order = self.layout.previous, self.layout.order
    return self.embed(self.values(images)[:, previous], jnp.asarray(previous), jnp.asarray(order), encoded)

  def decode(self, embedded_BNQD: jax.Array, encoded: Encoded, batch_index_B: jax.Array | None = None) -> jax.Array:
    """Embedded slots -> likelihood parameters [B, N, Q, P], float32."""
    attention_fn = functools.partial(attention.local_attention, layout=self.layout, fused=is_fused(self.config))
    attention_fns = [attention_fn] * self.config.num_layers
    return self._run(embedded_BNQD, self.layout.previous, self.layout.order, attention_fns, encoded, batch_index_B)[0]

  def _axes(self, index_X):
    """Coordinates of positions by their raster indices, in pixels; of padding and the start, those of the first."""
    *frame, row, column, channel = jnp.unravel_index(jnp.maximum(index_X, 0), self.layout.image)
    return [*frame, *axes_of(row, column, channel, self.layout.image[-1])]

  def _run(self, embedded_BXD, fed_index_X, index_X, attention_fns, encoded, batch_index_B=None):
    to_predict, fed = (rotation(self.config, self._axes(each)) for each in (index_X, fed_index_X))
    rotations = Rotations(to_predict, fed, to_predict if self._is_located else None)
    x_BXD, kept = self.decoder(embedded_BXD, attention_fns, batch_index_B, rotations, encoded.contexts)
    return self.output(x_BXD.astype(jnp.float32)), kept

  def _decode_images(self, images, given, train, first_index):
    """Likelihood parameters [B, N, Q, P]; `first_index`: where in the whole batch the images begin, for dropout."""
    num_images = len(check_images(images, self.spec))
    batch_index_B = first_index + jnp.arange(num_images) if train else None
    encoded = self.encode(given, batch_index_B, num_images)
    return self.decode(self.embed_images(images, encoded), encoded, batch_index_B)

  def _in_raster_order(self, x_BNQ):
    """[B, N, Q, ...] -> [B, positions, ...]."""
    return x_BNQ.reshape(x_BNQ.shape[0], -1, *x_BNQ.shape[3:])[:, self.layout.slots]

  def __call__(self, images: jax.Array, given: Given = {}, train: bool = False) -> jax.Array:
    """Likelihood parameters in raster order: [B, H, W, C, levels] (categorical) or [B, H, W, P] (DMOL)."""
    parameters = self._in_raster_order(self._decode_images(images, given, train, 0))
    return parameters.reshape(len(parameters), *self.likelihood.positions(self.spec.shape), -1)

  def log_prob(self, images: jax.Array, given: Given = {}, train: bool = False,
               first_index: jax.Array | int = 0) -> jax.Array:
    """Log-probability of each image under its conditions, nats [B], float32.

    Args:
      images: integers [B, H, W, C].
      given: the conditions.
      train: whether to apply dropout, with the random key 'dropout'.
      first_index: where in the whole batch these images begin, which decides their dropout.
    """
    order = self.layout.order
    return jnp.where(order >= 0, self._log_probs(images, given, train, first_index), 0).sum(axis=(1, 2))

  def pixel_log_probs(self, images: jax.Array, given: Given = {}) -> jax.Array:
    """The terms of `log_prob`, by position: nats [B, H, W, positions of a pixel], float32."""
    log_probs = self._in_raster_order(self._log_probs(images, given, False, 0))
    return log_probs.reshape(len(log_probs), *self.layout.image)

  def _log_probs(self, images, given, train, first_index):
    """Nats [B, N, Q]; arbitrary in padding slots."""
    parameters = self._decode_images(images, given, train, first_index)
    return self.likelihood.log_prob(parameters, self.values(images)[:, self.layout.order])

  def attention_weights(self, images: jax.Array, given: Given = {}, index: int = 0) -> jax.Array:
    """The attention weights of the query at a raster index: [layers, B, heads, positions], each row sums to 1."""
    layout = self.layout
    block, slot = divmod(int(layout.slots[index]), layout.block_size)
    encoded = self.encode(given, num_images=len(check_images(images, self.spec)))
    kept = self._keep(images, encoded, lambda q, k, v: attention.attention_weights(q, k, layout, block, slot))
    occupied = layout.memory[block] >= 0
    weights = jnp.stack(kept)[..., occupied]
    everywhere = jnp.zeros((*weights.shape[:-1], layout.num_positions))
    return everywhere.at[..., layout.memory[block, occupied]].set(weights)

  def prefill(self, images: jax.Array, encoded: Encoded, block: int) -> list[attention.Window]:
    """The window of each layer from which a block is started or resumed, in one parallel pass.

    Args:
      images: [B, H, W, C]; positions not generated yet may hold any intensities.
      encoded: the conditions.
      block: the block of the next slot.
    """
    return self._keep(images, encoded, lambda q, k, v: attention.window_at(k, v, self.layout, block))

  def _keep(self, images, encoded, keep: Callable[..., Any]) -> list[Any]:
    """Runs all positions at once; returns what `keep` returns for the queries, keys and values of each layer."""

    def attention_fn(q, k, v, drops):
      mixed, _ = attention.local_attention(q, k, v, drops, layout=self.layout)
      return mixed, keep(q, k, v)

    attention_fns = [attention_fn] * self.config.num_layers
    return self._run(self.embed_images(images, encoded), self.layout.previous, self.layout.order, attention_fns,
                     encoded)[1]

  def empty_windows(self, num_images: int) -> list[attention.Window]:
    """The window of each layer before the first slot."""
    c = self.config
    shape_BHK = num_images, c.num_heads, c.head_width
    return [attention.empty_window(self.layout, shape_BHK, jnp.dtype(c.dtype))] * c.num_layers

  def step(self, fed_BV: jax.Array, block: jax.Array, slot: jax.Array, encoded: Encoded,
           caches: list[attention.Cache]) -> tuple[jax.Array, list[attention.Cache]]:
    """Computes one slot of every image, from caches of the earlier ones.

    Args:
      fed_BV: values generated just before.
      block, slot: scalars, the slot to compute.
      encoded: the conditions.
      caches: one for each layer.

    Returns:
      Likelihood parameters [B, P], float32, and the caches with this slot in them.
    """
    fed_index = jnp.asarray(self.layout.previous)[block, slot]
    index = jnp.asarray(self.layout.order)[block, slot]
    embedded_BD = self.embed(fed_BV, fed_index, index, encoded)
    attention_fns = [functools.partial(attention.cached_attention, layout=self.layout, cache=cache, block=block,
                                       slot=slot) for cache in caches]
    return self._run(embedded_BD, fed_index, index, attention_fns, encoded)


def make_conditions(config: ModelConfig, spec: ImageSpec) -> dict[str, Condition]:
  """The conditions of a model, by name.

  Raises:
    InputError: if one does not fit the images.
  """
  return {kind.name: kind(config, spec) for kind in CONDITIONS if kind.is_used(config)}


def make_model(config: ModelConfig, spec: ImageSpec) -> ImageTransformer:
  """A model for images of `spec`.

  Raises:
    InputError: if the configuration does not fit the images.
  """
  model = ImageTransformer(config, spec)
  # Computing them checks the configuration against the images and the machine.
  _ = model.conditions, model.layout, is_fused(config)
  least = 2 * (len(model.layout.image) - (model.layout.image[-1] == 1))  # a pair for each axis of `axes_of`
  check(config.coordinates != 'rotary' or config.head_width >= least, 'model.num_heads', config.num_heads,
        f'such that heads with rotary coordinates are at least {least} wide here, not {config.head_width}')
  return model


def blank(model: ImageTransformer, num_images: int = 1) -> tuple[jax.Array, Given]:
  """Images and conditions of the right shapes, all zero."""
  given = {name: jnp.zeros((num_images, *condition.shape), jnp.int32) for name, condition in model.conditions.items()}
  return jnp.zeros((num_images, *model.spec.shape), jnp.uint8), given


def init_params(model: ImageTransformer, seed: int) -> dict[str, Any]:
  """Initial parameters, a function of the seed."""
  params = jax.jit(model.init)(jax.random.key(seed), *blank(model))['params']
  if model.config.align_encoder:
    for i in range(model.config.num_layers):
      cross = params['decoder'][f'layer_{i}']['cross_attention']
      # Equal projections make equal coordinates attend to each other. (The factor 2: official weights are small.)
      kernel = 2 * cross['query']['kernel']
      cross['query']['kernel'], cross['key']['kernel'] = kernel, jnp.copy(kernel)
  return params


def in_compute_type(model: ImageTransformer, params: dict[str, Any]) -> dict[str, Any]:
  """The parameters with those of the layers in the compute type, in which they are used, for a loop over steps.

  Norms keep float32. The barrier keeps XLA from converting them in the loop again.
  """
  dtype = jnp.dtype(model.config.dtype)
  convert = lambda path, leaf: leaf if 'norm' in jax.tree_util.keystr(path) else leaf.astype(dtype)
  layers = jax.tree_util.tree_map_with_path(convert, params['decoder'])
  return {**params, 'decoder': jax.lax.optimization_barrier(layers)}


def num_parameters(model: ImageTransformer) -> int:
  """The number of trainable parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(functools.partial(init_params, model, 0))))


@functools.lru_cache
def _layout(spec, values_per_position, query_block, memory_flange, scan):
  """Cached, so that a layout computes its arrays only once."""
  return block_layout(spec.shape, values_per_position, query_block, memory_flange, scan)
