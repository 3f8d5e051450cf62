"""Block-local self-attention, for all positions at once and for one at a time (paper section 3.3).

Shape suffixes: B batch, N blocks, Q slots of a query block, M memory slots of a
block, R remembered blocks, H heads, K width of a head, 1 a single slot.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from image_transformer.layout import BlockLayout

# Finite, so that no arithmetic on it can give a NaN.
_HIDDEN = -1e30


def local_attention(q_BNQHK: jax.Array, k_BNQHK: jax.Array, v_BNQHK: jax.Array, layout: BlockLayout,
                    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights) -> jax.Array:
  """Attends from every query block to its memory block (paper eq. 1).

  Args:
    q_BNQHK: queries, already scaled.
    k_BNQHK, v_BNQHK: keys and values in the same slots.
    layout: which slots the memory of a block consists of.
    dropout: applied to the attention weights.

  Returns:
    [B, N, Q, H, K], in the type of `v_BNQHK`. The softmax is computed in float32.
    Padding slots hold finite garbage.
  """
  k_BNMHK, v_BNMHK = _memory_blocks(k_BNQHK, layout), _memory_blocks(v_BNQHK, layout)
  logits_BNHQM = jnp.einsum('BNQHK,BNMHK->BNHQM', q_BNQHK, k_BNMHK, preferred_element_type=jnp.float32)
  visible_NQM = layout.causal[None] & layout.occupied[:, None]
  logits_BNHQM = jnp.where(visible_NQM[:, None], logits_BNHQM, _HIDDEN)
  weights_BNHQM = jnp.exp(logits_BNHQM - jax.lax.stop_gradient(logits_BNHQM.max(axis=-1, keepdims=True)))
  # Dividing after the product with the values saves a pass over the weights.
  total_BNQH = jnp.moveaxis(weights_BNHQM.sum(axis=-1), 2, 3)
  mixed_BNQHK = jnp.einsum('BNHQM,BNMHK->BNQHK', dropout(weights_BNHQM).astype(v_BNQHK.dtype), v_BNMHK,
                           preferred_element_type=jnp.float32)
  return (mixed_BNQHK / total_BNQH[..., None]).astype(v_BNQHK.dtype)


def _memory_blocks(x_BNQHK, layout):
  """Lays beside each block the pieces of earlier blocks that it sees: [B, N, M, H, K].

  Only shifts, slices and a concatenation: a gather would scatter in the backward pass.
  """
  shape = x_BNQHK.shape
  cells = x_BNQHK.reshape(*shape[:2], *layout.block, layout.depth, *shape[3:])
  parts = []
  for piece in layout.pieces:
    part = cells[:, :-piece.distance, piece.rows, piece.columns]
    part = jnp.pad(part, [(0, 0), (piece.distance, 0)] + [(0, 0)] * (part.ndim - 2))
    parts.append(part.reshape(*shape[:2], -1, *shape[3:]))
  return jnp.concatenate(parts + [x_BNQHK], axis=2)


class Cache(NamedTuple):
  """Keys and values that one layer keeps while the slots of a block are generated.

  The position comes last, so that reading a cache runs along memory.
  """

  halo_keys: jax.Array  # [B, H, K, M - Q], of earlier blocks; fixed within a block
  halo_values: jax.Array
  own_keys: jax.Array  # [B, H, K, Q], of the block itself, filled slot by slot
  own_values: jax.Array


class Remembered(NamedTuple):
  """Keys and values of the last `layout.reach` blocks of one layer, oldest first: [B, H, K, R, Q]."""

  keys: jax.Array
  values: jax.Array


def cached_attention(q_BHK: jax.Array, k_BHK: jax.Array, v_BHK: jax.Array, dropout: Callable, *, cache: Cache,
                     layout: BlockLayout, block: jax.Array, slot: jax.Array) -> tuple[jax.Array, Cache]:
  """`local_attention` for one slot of one block, from a cache of the others.

  Returns:
    [B, H, K] and the cache with this slot's key and value.
  """
  del dropout  # Nothing is dropped while sampling.
  own_keys = jax.lax.dynamic_update_index_in_dim(cache.own_keys, k_BHK, slot, axis=3)
  own_values = jax.lax.dynamic_update_index_in_dim(cache.own_values, v_BHK, slot, axis=3)
  logits_BHM = jnp.concatenate(
      [jnp.einsum('BHK,BHKM->BHM', q_BHK, keys, preferred_element_type=jnp.float32)
       for keys in (cache.halo_keys, own_keys)], axis=-1)
  visible_M = jnp.asarray(layout.causal)[slot] & jnp.asarray(layout.occupied)[block]
  weights_BHM = jax.nn.softmax(jnp.where(visible_M, logits_BHM, _HIDDEN)).astype(v_BHK.dtype)
  halo_weights, own_weights = jnp.split(weights_BHM, [layout.halo_size], axis=-1)
  mixed_BHK = (jnp.einsum('BHM,BHKM->BHK', halo_weights, cache.halo_values) +
               jnp.einsum('BHM,BHKM->BHK', own_weights, own_values))
  return mixed_BHK, cache._replace(own_keys=own_keys, own_values=own_values)


def begin_memory(layout: BlockLayout, shape_BHK: tuple[int, int, int], dtype: jnp.dtype) -> Remembered:
  """A memory before the first block."""
  empty = jnp.zeros((*shape_BHK, layout.reach, layout.block_size), dtype)
  return Remembered(empty, empty)


def begin_block(remembered: Remembered, layout: BlockLayout) -> Cache:
  """The cache with which a block begins: its halo gathered once, nothing of its own."""

  own = jnp.zeros((*remembered.keys.shape[:3], layout.block_size), remembered.keys.dtype)

  def halo(x_BHKRQ):
    cells = x_BHKRQ.reshape(*x_BHKRQ.shape[:4], *layout.block, layout.depth)
    parts = [cells[:, :, :, layout.reach - piece.distance, piece.rows, piece.columns]
             .reshape(*x_BHKRQ.shape[:3], -1) for piece in layout.pieces]
    return jnp.concatenate([own[..., :0], *parts], axis=-1)

  return Cache(halo(remembered.keys), halo(remembered.values), own, own)


def end_block(remembered: Remembered, cache: Cache) -> Remembered:
  """Remembers a finished block and forgets the oldest."""

  def push(x_BHKRQ, own_BHKQ):
    return jnp.concatenate([x_BHKRQ, own_BHKQ[..., None, :]], axis=3)[..., 1:, :]

  return Remembered(push(remembered.keys, cache.own_keys), push(remembered.values, cache.own_values))
