"""The Transformer layer (paper eq. 1-2): self-attention, attention to an encoder, a position-wise feed-forward network.

A layer does not know how self-attention is laid out: `attend` takes queries, keys and
values and returns their mixture, over all blocks in training and over a cache in
sampling. Everything else works on the last axis alone, so the same layer serves both.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer import attention
from image_transformer.config import ModelConfig
from image_transformer.embeddings import official_init

KeysValues = tuple[jax.Array, jax.Array]  # [..., heads, width] each

# (queries, keys, values, dropout) [..., heads, width] -> mixed values of the same shape, and
# whatever the caller wants to keep of this layer (the sampler: its updated cache).
Attend = Callable[[jax.Array, jax.Array, jax.Array, Callable], tuple[jax.Array, Any]]


class Dropout(nn.Module):
  """Dropout whose masks belong to images: an image's follows from the 'dropout' key and its place in the whole batch.

  So it is the same on however many devices, and in however many parts, a batch is computed.
  """

  rate: float

  def __call__(self, x: jax.Array, places: jax.Array | None) -> jax.Array:
    """x [B, ...] and the places [B]; None: nothing is dropped."""
    if places is None or not self.rate:
      return x
    # 16 random bits decide, two decisions to a word: making the bits is what dropout takes its time for. So the rate
    # is rounded to a multiple of 2^-16, here and in the scale.
    threshold = min(round(self.rate * 2**16), 2**16 - 1)
    size = x[0].size

    def keep(key):
      words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
      bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
      return bits.reshape(x.shape[1:]) >= threshold

    keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng('dropout'), places)
    return jnp.where(jax.vmap(keep)(keys), x / (1 - threshold / 2**16), 0)


class Kernel(nn.Module):
  """The matrix of a linear map, [inputs, features]."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> jax.Array:
    return self.param('kernel', official_init, (inputs, self.features), jnp.float32)


class Attention(nn.Module):
  """Multi-head attention (paper eq. 1) to the input itself or to an encoder's output."""

  config: ModelConfig

  def setup(self):
    c = self.config

    self.query, self.key, self.value = (Kernel(c.qkv_width) for _ in range(3))
    self.output = nn.Dense(c.hidden_size, use_bias=False, kernel_init=official_init, dtype=jnp.dtype(c.dtype))
    self.dropout = Dropout(c.attention_dropout)

  def _heads(self, x, *kernels):
    """Heads [..., heads, width] of several projections of x, in one product: large ones are faster."""
    kernel = jnp.concatenate([kernel(x.shape[-1]) for kernel in kernels], axis=1).astype(self.config.dtype)
    projected = jnp.split(x.astype(kernel.dtype) @ kernel, len(kernels), axis=-1)
    return [one.reshape(*x.shape[:-1], self.config.num_heads, -1) for one in projected]

  def keys_values(self, x: jax.Array) -> KeysValues:
    """Keys and values of x [..., d]."""
    return tuple(self._heads(x, self.key, self.value))

  def __call__(self, x: jax.Array, attend: Attend, places: jax.Array | None,
               from_encoder: KeysValues | None = None) -> tuple[jax.Array, Any]:
    if from_encoder is None:
      q, k, v = self._heads(x, self.query, self.key, self.value)
    else:
      (q,), (k, v) = self._heads(x, self.query), from_encoder
    dropout = functools.partial(self.dropout, places=places)
    mixed, kept = attend(q * q.shape[-1]**-0.5, k, v, dropout)
    return self.output(mixed.reshape(*x.shape[:-1], -1)), kept


class FeedForward(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = self.config
    hidden = nn.Dense(c.ffn_size, kernel_init=official_init, dtype=jnp.dtype(c.dtype), name='hidden')(x)
    return nn.Dense(c.hidden_size, kernel_init=official_init, dtype=jnp.dtype(c.dtype), name='output')(nn.relu(hidden))


def layer_norm(config: ModelConfig, name: str) -> Callable[[jax.Array], jax.Array]:
  """Layer norm in float32 whatever the compute type, which it returns."""
  norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)
  return lambda x: norm(x).astype(config.dtype)


class Layer(nn.Module):
  """x [..., d] -> x [..., d] and what `attend` kept; post-norm LN(x + f(x)) or pre-norm x + f(LN(x))."""

  config: ModelConfig
  cross: bool  # attends to an encoder as well

  def setup(self):
    c = self.config
    self.self_attention, self.self_attention_norm = Attention(c), layer_norm(c, 'self_attention_norm')
    if self.cross:
      self.cross_attention, self.cross_attention_norm = Attention(c), layer_norm(c, 'cross_attention_norm')
    self.ffn, self.ffn_norm = FeedForward(c), layer_norm(c, 'ffn_norm')
    self.dropout = Dropout(c.dropout)

  def keys_values(self, encoded: jax.Array) -> KeysValues:
    """The encoder's output [B, M, d] as this layer sees it."""
    return self.cross_attention.keys_values(encoded)

  def __call__(self, x: jax.Array, attend: Attend, places: jax.Array | None,
               from_encoder: KeysValues | None = None) -> tuple[jax.Array, Any]:
    post = self.config.norm == 'post'

    def residual(x, norm, sublayer):
      branch, kept = sublayer(x if post else norm(x))
      x = x + self.dropout(branch, places=places)
      return norm(x) if post else x, kept

    x, kept = residual(x, self.self_attention_norm, lambda x: self.self_attention(x, attend, places))
    if self.cross:
      x, _ = residual(x, self.cross_attention_norm,
                      lambda x: self.cross_attention(x, attention.full_attention, places, from_encoder))
    x, _ = residual(x, self.ffn_norm, lambda x: (self.ffn(x), None))
    return x, kept


class Stack(nn.Module):
  """Dropout on the embedded input, layers, and after pre-norm layers a last norm: the decoder, and the encoder."""

  config: ModelConfig
  num_layers: int
  cross: bool = False

  def setup(self):
    c = self.config
    self.dropout = Dropout(c.dropout)
    # Argument 2 is `attend`, counted from self.
    layer = nn.remat(Layer, static_argnums=(2,)) if c.remat else Layer
    self.layers = [layer(c, self.cross, name=f'layer_{i}') for i in range(self.num_layers)]
    if c.norm == 'pre':
      self.final_norm = layer_norm(c, 'final_norm')

  def keys_values(self, encoded: jax.Array) -> list[KeysValues]:
    """The encoder's output [B, M, d] as every layer sees it."""
    return [layer.keys_values(encoded) for layer in self.layers]

  def __call__(self, x: jax.Array, attends: Sequence[Attend], places: jax.Array | None,
               keys_values: Sequence[KeysValues | None]) -> tuple[jax.Array, list[Any]]:
    """x [B, ..., d] -> x [B, ..., d] in the compute type, and what each layer's `attend` kept.

    places: of the images in the whole batch, for dropout; None: there is none.
    keys_values: what each layer attends to of an encoder.
    """
    x = self.dropout(x, places=places).astype(self.config.dtype)
    all_kept = []
    for layer, attend, from_encoder in zip(self.layers, attends, keys_values, strict=True):
      x, kept = layer(x, attend, places, from_encoder)
      all_kept.append(kept)
    return self.final_norm(x) if self.config.norm == 'pre' else x, all_kept
