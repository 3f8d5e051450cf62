"""Block-local self-attention, for all positions at once and for one at a time (paper section 3.3), and full attention.

Every attention function takes queries (already scaled), keys, values and, in training, the dropout of the
weights. It returns the mixed values, with the shape of the queries and the dtype of the values, and what the
caller should keep of the layer. Other arguments (a layout, a mask, a cache) are bound by keyword.

Shape suffixes: B batch, N blocks, Q slots of a query block, M memory slots, R recent blocks, H heads, K width of
a head, G batch times heads, C positions of a context, X any axes of positions: N and Q for all at once, none for one.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from image_transformer.dropout import Drops, drop
from image_transformer.layout import BlockLayout

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array, Drops | None], tuple[jax.Array, Any]]

# Finite, so that no arithmetic on it can give a NaN.
_HIDDEN = -1e30


def local_attention(q_BNQHK: jax.Array, k_BNQHK: jax.Array, v_BNQHK: jax.Array, drops: Drops | None = None, *,
                    layout: BlockLayout, fused: bool = False) -> tuple[jax.Array, None]:
  """Attends from every query block to its memory block (paper eq. 1).

  Args:
    q_BNQHK, k_BNQHK, v_BNQHK: queries, keys and values in the same slots.
    drops: dropout of the attention weights; None: no dropout.
    layout: defines the memory slots of each block.
    fused: whether to use JAX's fused attention, whose weights never reach memory.

  Returns:
    [B, N, Q, H, K], and None. The softmax is computed in float32. Padding slots hold arbitrary finite values.
  """
  if fused:
    # Gradients keep what the kernel computes; to copy memory blocks again is cheaper than to keep the copies.
    computed = lambda primitive, *_, **__: primitive.name not in ('concatenate', 'pad', 'reshape', 'slice', 'transpose')
    return jax.checkpoint(functools.partial(_fused_local_attention, layout=layout), policy=computed)(
        q_BNQHK, k_BNQHK, v_BNQHK), None
  k_BNMHK, v_BNMHK = memory_blocks(k_BNQHK, layout), memory_blocks(v_BNQHK, layout)
  return masked_attention(q_BNQHK, k_BNMHK, v_BNMHK, drops, layout.visible()[:, None]), None


def _fused_local_attention(q_BNQHK, k_BNQHK, v_BNQHK, layout):
  visible_NQM = layout.visible()
  # Every block of every image is one of a batch. A mask for each of them is small beside keys and values, and one
  # mask for all images would need their axis beside that of the heads: another copy of everything.
  visible_BNQM = jnp.broadcast_to(visible_NQM, (q_BNQHK.shape[0], *visible_NQM.shape))
  q, k, v, visible = (x.reshape(-1, *x.shape[2:]) for x in (
      q_BNQHK, memory_blocks(k_BNQHK, layout), memory_blocks(v_BNQHK, layout), visible_BNQM))
  return _fused_attention(q, k, v, visible[:, None]).reshape(q_BNQHK.shape)


def full_attention(q_BXHK: jax.Array, k_BCHK: jax.Array, v_BCHK: jax.Array, drops: Drops | None = None, *,
                   visible_BC: jax.Array | None = None, fused: bool = False) -> tuple[jax.Array, None]:
  """Attends from every query to a whole context, or to the visible part of it.

  Args:
    q_BXHK: queries.
    k_BCHK, v_BCHK: keys and values of the context.
    drops: dropout of the attention weights; None: no dropout.
    visible_BC: bool, at least one true in each row; None: the whole context is visible.
    fused: whether to use JAX's fused attention, unless there is a single query.

  Returns:
    [B, X, H, K], and None.
  """
  q_BTHK = q_BXHK.reshape(q_BXHK.shape[0], -1, *q_BXHK.shape[-2:])
  visible = True if visible_BC is None else visible_BC[:, None, None]
  if fused and q_BTHK.shape[1] > 1:
    mixed_BTHK = _fused_attention(q_BTHK, k_BCHK, v_BCHK, visible)
  else:
    mixed_BTHK = masked_attention(q_BTHK, k_BCHK, v_BCHK, drops, visible)
  return mixed_BTHK.reshape(q_BXHK.shape), None


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, drops: Drops | None, visible: Any) -> jax.Array:
  """Queries [..., T, H, K], keys and values [..., M, H, K]; `visible` broadcasts to [..., H, T, M]."""
  logits = jnp.einsum('...THK,...MHK->...HTM', q, k, preferred_element_type=jnp.float32)
  logits = jnp.where(visible, logits, _HIDDEN)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
  # Dividing after the product with the values saves a pass over the weights.
  total = jnp.swapaxes(weights.sum(axis=-1), -2, -1)
  mixed = jnp.einsum('...HTM,...MHK->...THK', drop(weights, drops).astype(v.dtype), v,
                     preferred_element_type=jnp.float32)
  return (mixed / total[..., None]).astype(v.dtype)


def _fused_attention(q_BTHK, k_BMHK, v_BMHK, visible):
  """`masked_attention` by cuDNN on a GPU, elsewhere by XLA."""
  num_queries, num_keys = q_BTHK.shape[1], k_BMHK.shape[1]
  mask = None
  if visible is not True or num_queries % 2 or num_keys % 2:
    # A kernel takes no shorter mask, and only even numbers of queries and keys.
    num_masks = 1 if visible is True else visible.shape[0]
    visible = jnp.broadcast_to(visible, (num_masks, 1, num_queries, num_keys))
    mask = jnp.pad(jnp.pad(visible, [(0, 0), (0, 0), (0, 0), (0, num_keys % 2)]),
                   [(0, 0), (0, 0), (0, num_queries % 2), (0, 0)], constant_values=True)
    q_BTHK, k_BMHK, v_BMHK = (jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)])
                              for x in (q_BTHK, k_BMHK, v_BMHK))
  mixed_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BMHK, v_BMHK, mask=mask, scale=1.0,
                                            implementation='cudnn' if jax.default_backend() == 'gpu' else 'xla')
  return mixed_BTHK[:, :num_queries]


def attention_weights(q_BNQHK: jax.Array, k_BNQHK: jax.Array, layout: BlockLayout, block: int,
                      slot: int) -> jax.Array:
  """The weights with which `local_attention` mixes the memory of one slot: [B, H, M], float32, of sum 1."""
  k_BMHK = memory_blocks(k_BNQHK, layout)[:, block]
  logits_BHM = jnp.einsum('BHK,BMHK->BHM', q_BNQHK[:, block, slot], k_BMHK, preferred_element_type=jnp.float32)
  return jax.nn.softmax(jnp.where(layout.visible(block, slot), logits_BHM, _HIDDEN))


def memory_blocks(x_BNQHK: jax.Array, layout: BlockLayout) -> jax.Array:
  """Concatenates the pieces of earlier blocks in the memory of each block and the block itself: [B, N, M, H, K].

  Uses only shifts, slices and a concatenation: the backward pass of a gather would be a scatter.
  """
  shape = x_BNQHK.shape
  # The extra axis makes this a different array even in 1D: the gradients of the pieces are summed before the block's
  # own is added, as in version 0.1, so that runs of that version resume bit for bit.
  cells = x_BNQHK.reshape(*shape[:2], *layout.block, 1, *shape[3:])
  parts = []
  for piece in layout.pieces:
    part = cells[(slice(None), slice(-piece.distance), *piece.cells)]
    part = jnp.pad(part, [(0, 0), (piece.distance, 0)] + [(0, 0)] * (part.ndim - 2))
    parts.append(part.reshape(*shape[:2], -1, *shape[3:]))
  return jnp.concatenate(parts + [x_BNQHK], axis=2)


class Window(NamedTuple):
  """Keys and values of one layer [B, H, K, R, Q] while images are drawn block by block.

  They cover the last `layout.reach` blocks, oldest first, and the current one.
  """

  keys: jax.Array
  values: jax.Array


class Cache(NamedTuple):
  """Keys and values [B H, K, M] of one layer while the slots of a block are generated.

  Those of the halo, from earlier blocks, come first, then the block's own, written slot by slot;
  a mask hides slots not yet written. The slot axis is last, so that a cache is read contiguously;
  images and heads share one axis, since with two axes XLA copies the cache at every step.
  """

  keys: jax.Array
  values: jax.Array


def cached_attention(q_BHK: jax.Array, k_BHK: jax.Array, v_BHK: jax.Array, drops: Drops | None = None, *,
                     layout: BlockLayout, cache: Cache, block: jax.Array, slot: jax.Array) -> tuple[jax.Array, Cache]:
  """`local_attention` for one slot of one block, from a cache of the others.

  Returns:
    [B, H, K], and the cache with this slot's key and value.
  """
  assert drops is None, 'there is no dropout while sampling'

  def write(old_GKM, new_BHK):
    new_GK = new_BHK.reshape(old_GKM.shape[:2])
    return jax.lax.dynamic_update_index_in_dim(old_GKM, new_GK, layout.halo_size + slot, axis=2)

  cache = Cache(write(cache.keys, k_BHK), write(cache.values, v_BHK))
  q_GK = q_BHK.reshape(cache.keys.shape[:2])
  logits_GM = jnp.einsum('GK,GKM->GM', q_GK, cache.keys, preferred_element_type=jnp.float32)
  visible_M = layout.visible(block, slot, jnp)
  weights_GM = jax.nn.softmax(jnp.where(visible_M, logits_GM, _HIDDEN)).astype(v_BHK.dtype)
  return jnp.einsum('GM,GKM->GK', weights_GM, cache.values).reshape(v_BHK.shape), cache


def empty_window(layout: BlockLayout, shape_BHK: tuple[int, int, int], dtype: jnp.dtype) -> Window:
  """The window before the first slot."""
  zeros = jnp.zeros((*shape_BHK, layout.reach + 1, layout.block_size), dtype)
  return Window(zeros, zeros)


def window_at(k_BNQHK: jax.Array, v_BNQHK: jax.Array, layout: BlockLayout, block: int) -> Window:
  """The window from which a block is started or resumed, from the keys and values of all slots."""

  def recent(x_BNQHK):
    x_BNQHK = jnp.pad(x_BNQHK, [(0, 0), (layout.reach, 0)] + [(0, 0)] * 3)  # nothing is before the first block
    return jnp.transpose(x_BNQHK[:, block:block + layout.reach + 1], (0, 3, 4, 1, 2))

  return Window(recent(k_BNQHK), recent(v_BNQHK))


def begin_block(window: Window, layout: BlockLayout) -> Cache:
  """The cache of the current block: its memory, gathered once."""

  def gather(x_BHKRQ):
    cells = x_BHKRQ.reshape(*x_BHKRQ.shape[:4], *layout.block)
    parts = [cells[(..., layout.reach - piece.distance, *piece.cells)].reshape(*x_BHKRQ.shape[:3], -1)
             for piece in layout.pieces]
    x_BHKM = jnp.concatenate(parts + [x_BHKRQ[..., -1, :]], axis=-1)
    return x_BHKM.reshape(-1, *x_BHKM.shape[2:])

  return Cache(*map(gather, window))


def end_block(window: Window, cache: Cache) -> Window:
  """Adds a finished block to the window and drops the oldest."""

  def push(x_BHKRQ, x_GKM):
    own = x_GKM[..., -x_BHKRQ.shape[-1]:].reshape(*x_BHKRQ.shape[:3], 1, -1)
    # The next block's own slots hold stale values, hidden until they are overwritten.
    return jnp.concatenate([x_BHKRQ[..., :-1, :], own, own], axis=3)[..., 1:, :]

  return Window(push(window.keys, cache.keys), push(window.values, cache.values))
