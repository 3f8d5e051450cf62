"""The Transformer layer (paper eq. 1-2): self-attention, attention to a context, a position-wise feed-forward network.

A layer does not know how self-attention is laid out: its attention function takes queries,
keys and values and returns their mixture, over all blocks in training and over a cache in
sampling. Everything else works on the last axis alone, so the same layer serves both.

Shape suffixes: those of `attention.py`, D width of the residual stream.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer.attention import AttentionFn, full_attention
from image_transformer.config import ModelConfig, check
from image_transformer.dropout import Dropout
from image_transformer.embeddings import Rotation, official_init, rotate


def is_fused(config: ModelConfig) -> bool:
  """Whether layers use fused attention for all positions at once.

  Raises:
    InputError: if it should, but cannot on this machine.
  """
  gpu, half = jax.default_backend() == 'gpu', config.dtype == 'bfloat16'
  possible = not config.attention_dropout and config.head_width % 8 == 0 and config.head_width <= 128
  check(config.attention != 'fused' or (possible and (half or not gpu)), 'model.attention', 'fused',
        'einsum or auto with dropout of attention weights, heads whose width is not a multiple of 8 up to 128, and '
        'in float32 on a GPU')
  return config.attention == 'fused' or (config.attention == 'auto' and gpu and half and possible)


class Rotations(NamedTuple):
  """Queries are rotated by the positions to predict, keys by the positions whose values were fed."""

  queries: Rotation | None
  keys: Rotation | None
  to_context: Rotation | None = None  # of queries, where the context has coordinates too


class Context(NamedTuple):
  """What a layer attends to besides its input: keys and values of the encoded conditions."""

  k_BCHK: jax.Array
  v_BCHK: jax.Array
  visible_BC: jax.Array | None  # bool; None: all of it


class Kernel(nn.Module):
  """The matrix of a linear map, [inputs, features]."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> jax.Array:
    return self.param('kernel', official_init, (inputs, self.features), jnp.float32)


class Attention(nn.Module):
  """Multi-head attention (paper eq. 1) to the input itself or to a context."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.query, self.key, self.value = (Kernel(c.qkv_width) for _ in range(3))
    self.query_norm, self.key_norm = (head_norm(c, f'{of}_norm') for of in ('query', 'key'))
    self.output = nn.Dense(c.hidden_size, use_bias=False, kernel_init=official_init, dtype=jnp.dtype(c.dtype))
    self.dropout = Dropout(c.attention_dropout)

  def _heads(self, x_BXD, *kernels):
    """Heads [B, X, H, K] of several projections of x."""
    x_BXD = x_BXD.astype(self.config.dtype)
    matrices = [kernel(x_BXD.shape[-1]).astype(x_BXD.dtype) for kernel in kernels]
    if is_fused(self.config) and x_BXD.ndim > 2:
      projected = [x_BXD @ matrix for matrix in matrices]  # a fused kernel would need copies of the parts of a product
    else:
      projected = jnp.split(x_BXD @ jnp.concatenate(matrices, axis=1), len(matrices), axis=-1)  # faster than several
    return [one.reshape(*x_BXD.shape[:-1], self.config.num_heads, -1) for one in projected]

  def keys_values(self, x_BXD: jax.Array, rotation: Rotation | None) -> tuple[jax.Array, jax.Array]:
    """Keys and values of x: [B, X, H, K] each."""
    k_BXHK, v_BXHK = self._heads(x_BXD, self.key, self.value)
    return rotate(self.key_norm(k_BXHK), rotation), v_BXHK

  def __call__(self, x_BXD: jax.Array, attention_fn: AttentionFn, batch_index_B: jax.Array | None,
               rotations: Rotations, context: Context | None = None) -> tuple[jax.Array, Any]:
    """x -> [B, X, D], and what the attention function keeps; without a context, attends to the input itself."""
    if context is None:
      q_BXHK, k, v = self._heads(x_BXD, self.query, self.key, self.value)
      k = rotate(self.key_norm(k), rotations.keys)
    else:
      (q_BXHK,), (k, v, _) = self._heads(x_BXD, self.query), context
    q_BXHK = self.query_norm(q_BXHK) * q_BXHK.shape[-1]**-0.5
    mixed_BXHK, kept = attention_fn(rotate(q_BXHK, rotations.queries), k, v, self.dropout.drops(batch_index_B))
    return self.output(mixed_BXHK.reshape(*x_BXD.shape[:-1], -1)), kept


class FeedForward(nn.Module):
  """Two dense layers with a ReLU in between, for each position (paper section 3.2)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BXD: jax.Array) -> jax.Array:
    c = self.config
    hidden = nn.Dense(c.ffn_size, kernel_init=official_init, dtype=jnp.dtype(c.dtype), name='hidden')(x_BXD)
    return nn.Dense(c.hidden_size, kernel_init=official_init, dtype=jnp.dtype(c.dtype), name='output')(nn.relu(hidden))


def layer_norm(config: ModelConfig, name: str) -> Callable[[jax.Array], jax.Array]:
  """Layer norm in float32 whatever the compute type, which it returns."""
  norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)
  return lambda x: norm(x).astype(config.dtype)


def head_norm(config: ModelConfig, name: str) -> Callable[[jax.Array], jax.Array]:
  """RMS norm of each head's query or key, in float32 (Henry et al., 2020; Dehghani et al., 2023), if configured."""
  if not config.qk_norm:
    return lambda x: x
  norm = nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)
  return lambda x: norm(x).astype(config.dtype)


class Layer(nn.Module):
  """x -> x, and what self-attention keeps; post-norm LN(x + f(x)) or pre-norm x + f(LN(x))."""

  config: ModelConfig
  cross: bool  # attends to a context as well

  def setup(self):
    c = self.config
    self.self_attention, self.self_attention_norm = Attention(c), layer_norm(c, 'self_attention_norm')
    if self.cross:
      self.cross_attention, self.cross_attention_norm = Attention(c), layer_norm(c, 'cross_attention_norm')
    self.ffn, self.ffn_norm = FeedForward(c), layer_norm(c, 'ffn_norm')
    self.dropout = Dropout(c.dropout)

  def context(self, encoded_BCD: jax.Array, visible_BC: jax.Array | None, rotation: Rotation | None) -> Context:
    """The keys and values of the encoded conditions in this layer."""
    k_BCHK, v_BCHK = self.cross_attention.keys_values(encoded_BCD, rotation)
    return Context(k_BCHK, v_BCHK, visible_BC)

  def __call__(self, x_BXD: jax.Array, attention_fn: AttentionFn, batch_index_B: jax.Array | None,
               rotations: Rotations, context: Context | None = None) -> tuple[jax.Array, Any]:
    post = self.config.norm == 'post'

    def residual(x, norm, sublayer):
      branch, kept = sublayer(x if post else norm(x))
      x = x + self.dropout(branch, batch_index_B)
      return norm(x) if post else x, kept

    x_BXD, kept = residual(x_BXD, self.self_attention_norm,
                           lambda x: self.self_attention(x, attention_fn, batch_index_B, rotations))
    if context is not None:
      to_context = functools.partial(full_attention, visible_BC=context.visible_BC, fused=is_fused(self.config))
      x_BXD, _ = residual(x_BXD, self.cross_attention_norm,
                          lambda x: self.cross_attention(x, to_context, batch_index_B,
                                                         Rotations(rotations.to_context, None), context))
    x_BXD, _ = residual(x_BXD, self.ffn_norm, lambda x: (self.ffn(x), None))
    return x_BXD, kept


class Stack(nn.Module):
  """Dropout on the embedded input, layers and, if pre-norm, a final norm; used as decoder and as encoder."""

  config: ModelConfig
  num_layers: int
  cross: bool = False  # every layer attends to a context

  def setup(self):
    c = self.config
    self.dropout = Dropout(c.dropout)
    # Argument 2 is the attention function, counted from self.
    layer = nn.remat(Layer, static_argnums=(2,)) if c.remat else Layer
    self.layers = [layer(c, self.cross, name=f'layer_{i}') for i in range(self.num_layers)]
    if c.norm == 'pre':
      self.final_norm = layer_norm(c, 'final_norm')

  def contexts(self, encoded_BCD: jax.Array, visible_BC: jax.Array | None,
               rotation: Rotation | None) -> list[Context]:
    """The keys and values of the encoded conditions in each layer."""
    return [layer.context(encoded_BCD, visible_BC, rotation) for layer in self.layers]

  def __call__(self, x_BXD: jax.Array, attention_fns: Sequence[AttentionFn], batch_index_B: jax.Array | None,
               rotations: Rotations, contexts: Sequence[Context | None]) -> tuple[jax.Array, list[Any]]:
    """x -> x in the compute type, and what each layer's attention function keeps.

    Args:
      x_BXD: embedded positions.
      attention_fns: the self-attention of each layer.
      batch_index_B: the indices of these images in the whole batch, for dropout; None: no dropout.
      rotations: of queries and keys at each position.
      contexts: what each layer attends to besides its input.
    """
    x_BXD = self.dropout(x_BXD, batch_index_B).astype(self.config.dtype)
    all_kept = []
    for layer, attention_fn, context in zip(self.layers, attention_fns, contexts, strict=True):
      x_BXD, kept = layer(x_BXD, attention_fn, batch_index_B, rotations, context)
      all_kept.append(kept)
    return self.final_norm(x_BXD) if self.config.norm == 'pre' else x_BXD, all_kept
