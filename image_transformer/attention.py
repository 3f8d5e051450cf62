"""Block-local self-attention, for all positions at once and for one at a time (paper section 3.3), and full attention.

Shape suffixes: B batch, N blocks, Q slots of a query block, M memory slots, R remembered
blocks, H heads, K width of a head, G batch times heads, T any queries.
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
  k_BNMHK, v_BNMHK = memory_blocks(k_BNQHK, layout), memory_blocks(v_BNQHK, layout)
  visible_NQM = layout.causal[None] & layout.occupied[:, None]
  return attend(q_BNQHK, k_BNMHK, v_BNMHK, dropout, visible_NQM[:, None])


def attention_weights(q_BNQHK: jax.Array, k_BNQHK: jax.Array, layout: BlockLayout, block: int,
                      slot: int) -> jax.Array:
  """The weights with which `local_attention` mixes the memory of one slot: [B, H, M], float32, of sum 1."""
  k_BMHK = memory_blocks(k_BNQHK, layout)[:, block]
  logits_BHM = jnp.einsum('BHK,BMHK->BHM', q_BNQHK[:, block, slot], k_BMHK, preferred_element_type=jnp.float32)
  return jax.nn.softmax(jnp.where(layout.causal[slot] & layout.occupied[block], logits_BHM, _HIDDEN))


def full_attention(q: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array, dropout: Callable) -> tuple[jax.Array, None]:
  """Attends from every query [B, ..., H, K], already scaled, to all of a memory, without a mask.

  Returns:
    [B, ..., H, K], and None: nothing is kept of it.
  """
  q_BTHK = q.reshape(q.shape[0], -1, *q.shape[-2:])
  return attend(q_BTHK, k_BMHK, v_BMHK, dropout, True).reshape(q.shape), None


def attend(q, k, v, dropout, visible):
  """Queries [..., T, H, K], keys and values [..., M, H, K]; `visible` broadcasts to [..., H, T, M]."""
  logits = jnp.einsum('...THK,...MHK->...HTM', q, k, preferred_element_type=jnp.float32)
  logits = jnp.where(visible, logits, _HIDDEN)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  # Dividing after the product with the values saves a pass over the weights.
  total = jnp.swapaxes(weights.sum(axis=-1), -2, -1)
  mixed = jnp.einsum('...HTM,...MHK->...THK', dropout(weights).astype(v.dtype), v, preferred_element_type=jnp.float32)
  return (mixed / total[..., None]).astype(v.dtype)


def memory_blocks(x_BNQHK, layout):
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
  """Keys and values [B H, K, M] that one layer keeps while the slots of a block are generated.

  First those of the halo, from earlier blocks, then the block's own, written slot by slot; the
  mask hides what is not yet. The slot comes last, so that reading a cache runs along memory;
  images and heads are one axis, since with two of them XLA copies a cache at every step.
  """

  keys: jax.Array
  values: jax.Array


class Remembered(NamedTuple):
  """Keys and values of one layer [B, H, K, R, Q]: the last `layout.reach` blocks, oldest first, and the current one."""

  keys: jax.Array
  values: jax.Array


def cached_attention(q_BHK: jax.Array, k_BHK: jax.Array, v_BHK: jax.Array, dropout: Callable, *, cache: Cache,
                     layout: BlockLayout, block: jax.Array, slot: jax.Array) -> tuple[jax.Array, Cache]:
  """`local_attention` for one slot of one block, from a cache of the others.

  Returns:
    [B, H, K] and the cache with this slot's key and value.
  """
  del dropout  # Nothing is dropped while sampling.

  def write(old_GKM, new_BHK):
    new_GK = new_BHK.reshape(old_GKM.shape[:2])
    return jax.lax.dynamic_update_index_in_dim(old_GKM, new_GK, layout.halo_size + slot, axis=2)

  cache = Cache(write(cache.keys, k_BHK), write(cache.values, v_BHK))
  q_GK = q_BHK.reshape(cache.keys.shape[:2])
  logits_GM = jnp.einsum('GK,GKM->GM', q_GK, cache.keys, preferred_element_type=jnp.float32)
  visible_M = jnp.asarray(layout.causal)[slot] & jnp.asarray(layout.occupied)[block]
  weights_GM = jax.nn.softmax(jnp.where(visible_M, logits_GM, _HIDDEN)).astype(v_BHK.dtype)
  return jnp.einsum('GM,GKM->GK', weights_GM, cache.values).reshape(v_BHK.shape), cache


def begin_memory(layout: BlockLayout, shape_BHK: tuple[int, int, int], dtype: jnp.dtype) -> Remembered:
  """A memory before the first slot."""
  empty = jnp.zeros((*shape_BHK, layout.reach + 1, layout.block_size), dtype)
  return Remembered(empty, empty)


def remember(k_BNQHK: jax.Array, v_BNQHK: jax.Array, layout: BlockLayout, block: int) -> Remembered:
  """The memory with which a block begins or goes on, from the keys and values of all slots."""

  def recent(x_BNQHK):
    x_BNQHK = jnp.pad(x_BNQHK, [(0, 0), (layout.reach, 0)] + [(0, 0)] * 3)  # nothing is before the first block
    return jnp.transpose(x_BNQHK[:, block:block + layout.reach + 1], (0, 3, 4, 1, 2))

  return Remembered(recent(k_BNQHK), recent(v_BNQHK))


def begin_block(remembered: Remembered, layout: BlockLayout) -> Cache:
  """The cache of the current block: its memory gathered once."""

  def gather(x_BHKRQ):
    cells = x_BHKRQ.reshape(*x_BHKRQ.shape[:4], *layout.block, layout.depth)
    parts = [cells[:, :, :, layout.reach - piece.distance, piece.rows, piece.columns]
             .reshape(*x_BHKRQ.shape[:3], -1) for piece in layout.pieces]
    x_BHKM = jnp.concatenate(parts + [x_BHKRQ[..., -1, :]], axis=-1)
    return x_BHKM.reshape(-1, *x_BHKM.shape[2:])

  return Cache(*map(gather, remembered))


def end_block(remembered: Remembered, cache: Cache) -> Remembered:
  """Remembers a finished block and forgets the oldest."""

  def push(x_BHKRQ, x_GKM):
    own = x_GKM[..., -x_BHKRQ.shape[-1]:].reshape(*x_BHKRQ.shape[:3], 1, -1)
    # What the next block finds in its own slots is stale, but hidden until it is overwritten.
    return jnp.concatenate([x_BHKRQ[..., :-1, :], own, own], axis=3)[..., 1:, :]

  return Remembered(push(remembered.keys, cache.keys), push(remembered.values, cache.values))
