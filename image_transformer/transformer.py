"""The Transformer layer (paper eq. 1-2): local self-attention and a position-wise feed-forward network.

A layer does not know how attention is laid out: `attend` takes queries, keys and
values and returns their mixture, over all blocks in training and over a cache in
sampling. Everything else works on the last axis alone, so the same layer serves both.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from image_transformer.config import ModelConfig
from image_transformer.embeddings import official_init

# (queries, keys, values, dropout) [..., heads, width] -> mixed values of the same shape, and
# whatever the caller wants to keep of this layer (the sampler: its updated cache).
Attend = Callable[[jax.Array, jax.Array, jax.Array, Callable], tuple[jax.Array, Any]]


class SelfAttention(nn.Module):
  config: ModelConfig

  @nn.compact
  def __call__(self, x: jax.Array, attend: Attend, train: bool) -> tuple[jax.Array, Any]:
    c = self.config

    def project(features, name):
      return nn.Dense(features, use_bias=False, kernel_init=official_init, dtype=jnp.dtype(c.dtype), name=name)

    width = c.qkv_width // c.num_heads
    q, k, v = (project(c.qkv_width, name)(x).reshape(*x.shape[:-1], c.num_heads, width)
               for name in ('query', 'key', 'value'))
    dropout = nn.Dropout(c.attention_dropout, deterministic=not train)
    mixed, kept = attend(q * width**-0.5, k, v, dropout)
    return project(c.hidden_size, 'output')(mixed.reshape(*x.shape[:-1], c.qkv_width)), kept


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

  @nn.compact
  def __call__(self, x: jax.Array, attend: Attend, train: bool) -> tuple[jax.Array, Any]:
    c = self.config
    post = c.norm == 'post'
    kept = None

    def residual(x, sublayer, name):
      norm = layer_norm(c, f'{name}_norm')
      branch = sublayer(x if post else norm(x))
      x = x + nn.Dropout(c.dropout, deterministic=not train)(branch)
      return norm(x) if post else x

    def self_attention(x):
      nonlocal kept
      mixed, kept = SelfAttention(c, name='self_attention')(x, attend, train)
      return mixed

    x = residual(x, self_attention, 'self_attention')
    return residual(x, FeedForward(c, name='ffn'), 'ffn'), kept
