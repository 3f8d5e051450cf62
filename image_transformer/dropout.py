"""Dropout with one mask per image, so that masks do not depend on how a batch is split over devices and parts."""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp


class Drops(NamedTuple):
  """What determines which numbers are dropped."""

  rate: float
  keys_B: jax.Array  # one random key for each image


def drop(x: jax.Array, drops: Drops | None) -> jax.Array:
  """Sets a share of x [B, ...] to zero and scales up the rest; None: nothing is dropped."""
  if drops is None:
    return x
  # Each decision takes 16 random bits, half a word, since drawing bits is the main cost of dropout. So the rate is
  # rounded to a multiple of 2^-16, here and in the scale.
  threshold = min(round(drops.rate * 2**16), 2**16 - 1)
  size = x[0].size

  def keep(key):
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
    return bits.reshape(x.shape[1:]) >= threshold

  # The barriers save memory on accelerators: XLA draws a mask when x is there, not those of all layers at once, and
  # keeps one byte of it for each number, not the random words.
  x, keys_B = jax.lax.optimization_barrier((x, drops.keys_B))
  kept = jax.lax.optimization_barrier(jax.vmap(keep)(keys_B))
  return jnp.where(kept, x / (1 - threshold / 2**16), 0)


class Dropout(nn.Module):
  """Draws from the random key 'dropout'."""

  rate: float

  def drops(self, batch_index_B: jax.Array | None) -> Drops | None:
    """What to drop of the images at these indices of the whole batch; None: nothing is dropped."""
    if batch_index_B is None or not self.rate:
      return None
    return Drops(self.rate, jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng('dropout'), batch_index_B))

  def __call__(self, x: jax.Array, batch_index_B: jax.Array | None) -> jax.Array:
    """x [B, ...] -> x [B, ...]."""
    return drop(x, self.drops(batch_index_B))
