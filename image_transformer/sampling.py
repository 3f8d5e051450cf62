"""Sampling with cached keys and values: a loop over blocks around a loop over their slots.

A whole batch of images is one compiled call. Randomness belongs to the image: image
number i of a seed is the same picture (up to rounding) in every batch size and on every device.

Shape suffixes: those of `attention.py`, S slots of all blocks, L positions in raster order, v values of a position.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from image_transformer import attention, devices, stopping
from image_transformer.config import check
from image_transformer.errors import InputError
from image_transformer.model import Given, ImageTransformer


def sample(model: ImageTransformer, variables: Any, keys: jax.Array, given: Given = {},
           temperature: jax.Array | float = 1.0, images: jax.Array | None = None,
           num_kept: int = 0) -> tuple[jax.Array, jax.Array]:
  """Draws one image for each key, intensity by intensity; jit or pmap it.

  Args:
    model: the model.
    variables: its variables, {'params': ...}.
    keys: random keys [B].
    given: what the images are conditioned on, see `model.conditions`.
    temperature: see the `sample` of the likelihoods; 1 samples from the model.
    images: integers [B, H, W, C] to complete; what is not kept of them does not matter.
    num_kept: how many positions, first in generation order, are kept as they are in `images`.

  Returns:
    uint8 images [B, H, W, C] and the log-probability [B] in nats, float32, of what was drawn,
    given what was kept. It is the model's own, that is at temperature 1, whatever the temperature
    of the draw.
  """
  layout, likelihood, config = model.layout, model.likelihood, model.config
  num_images = keys.shape[0]
  order = jnp.asarray(layout.order)
  start = layout.generated[num_kept]
  start_block, start_slot = divmod(int(start), layout.block_size)
  network: Callable[..., Any] = functools.partial(model.apply, variables)
  encoded = network(given, method='encode')

  def generate_slot(slot, carry, block):
    caches, previous, log_prob, values_SBv = carry
    parameters, caches = network(previous, block, slot, encoded, caches, method='step')
    index = order[block, slot]
    slot_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    drawn = jax.vmap(likelihood.sample, (0, 0, None))(slot_keys, parameters, temperature)
    log_prob += jnp.where(index < 0, 0, likelihood.log_prob(parameters, drawn))
    values_SBv = jax.lax.dynamic_update_index_in_dim(values_SBv, drawn, block * layout.block_size + slot, axis=0)
    # Padding generates nothing.
    return caches, jnp.where(index < 0, previous, drawn), log_prob, values_SBv

  def generate_block(block, carry):
    memories, *rest = carry
    caches = [attention.begin_block(memory, layout) for memory in memories]
    first_slot = jnp.where(block == start_block, start_slot, 0) if start_slot else 0
    caches, *rest = jax.lax.fori_loop(first_slot, layout.block_size,
                                      lambda slot, carry: generate_slot(slot, carry, block), (caches, *rest))
    return [attention.end_block(memory, cache) for memory, cache in zip(memories, caches)], *rest

  if num_kept:
    assert images is not None, 'num_kept is of images that are given'
    hidden = layout.order.ravel()[layout.generated[num_kept:]]
    # A number that is no intensity would be embedded as NaN, and no mask hides that.
    images = network(images, method='values').at[:, hidden].set(0).reshape(images.shape)
    memories = network(images, encoded, start_block, method='remember')
  else:
    images = jnp.zeros((num_images, *model.spec.shape), jnp.uint8)
    shape_BHK = num_images, config.num_heads, config.qkv_width // config.num_heads
    memories = [attention.begin_memory(layout, shape_BHK, jnp.dtype(config.dtype))] * config.num_layers
  values_BLv = network(images, method='values')
  values_SBv = jnp.moveaxis(values_BLv[:, layout.order.ravel()], 0, 1)
  previous = values_BLv[:, layout.previous.ravel()[start]]
  carry = memories, previous, jnp.zeros(num_images), values_SBv
  _, _, log_prob, values_SBv = jax.lax.fori_loop(start_block, layout.num_blocks, generate_block, carry)
  images = jnp.moveaxis(values_SBv[layout.slots], 0, 1).reshape(num_images, *model.spec.shape)
  return images.astype(jnp.uint8), log_prob


def make_sampler(model: ImageTransformer, batch_size: int, num_kept: int = 0) -> Callable[..., Any]:
  """Compiles at the first call; returns draw(params, seed, num_images, given, temperature, images).

  Args of the result:
    params: the parameters, one copy on every device (`devices.replicate`).
    seed: image i is a function of (seed, i).
    num_images: how many.
    given: what they are conditioned on, arrays [num_images, ...].
    temperature: see `sample`.
    images: [num_images, H, W, C] to complete, where `num_kept` positions are kept.

  It returns uint8 [num_images, H, W, C] and float32 log-probabilities [num_images] in nats, on every
  process, and raises `stopping.Stopped` between two batches.
  """

  def draw_batch(params, seed, indices, given, temperature, images):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return devices.gather(sample(model, {'params': params}, keys, given, temperature, images, num_kept))

  parallel = devices.pmap(draw_batch, in_axes=(0, None, 0, 0, None, 0))

  def draw(params, seed, num_images, given, temperature=1.0, images=None):
    batch = devices.round_up(min(batch_size, num_images))
    drawn = []
    with tqdm(total=num_images, desc='sample', unit='image', leave=False, disable=not devices.is_first()) as progress:
      for first in range(0, num_images, batch):
        stopping.poll()
        indices = np.arange(first, first + batch)
        # The last batch is filled up with images that are thrown away.
        whole = indices, *jax.tree.map(lambda x: np.asarray(x)[indices % num_images], (given, images))
        part, part_given, part_images = devices.split(devices.own_part(whole))
        outputs = parallel(params, np.uint32(seed), part, part_given, temperature, part_images)
        drawn.append(jax.device_get(devices.unreplicate(outputs)))
        progress.update(min(batch, num_images - first))
    images, log_probs = (np.concatenate(parts)[:num_images] for parts in zip(*drawn))
    return images, log_probs

  return draw


def class_rows(model: ImageTransformer, num_images: int) -> tuple[dict[str, np.ndarray], int]:
  """Labels, and the columns of a grid: every row is of one class, and all classes are there.

  With fewer images than classes it is a square of classes spread evenly; without classes, a square and no labels.
  """
  square, classes = math.ceil(num_images**0.5), model.spec.num_classes
  if not model.config.class_conditional:
    return {}, square
  if num_images < classes:
    return {'label': np.arange(num_images) * classes // num_images}, square
  columns = num_images // classes
  return {'label': np.arange(num_images) // columns % classes}, columns


def positions_in_rows(model: ImageTransformer, num_rows: int) -> int:
  """How many positions the first rows of an image hold, where exactly those are generated first.

  Raises:
    InputError: if they are not, naming the nearest numbers of rows that are.
  """
  height, layout = model.spec.height, model.layout
  check(0 < num_rows < height, '--keep', num_rows, f'a number of rows in 1..{height - 1}')
  row_size = layout.num_positions // height
  order = layout.order.ravel()[layout.generated]
  possible = [rows for rows in range(1, height) if order[:rows * row_size].max() < rows * row_size]
  if num_rows not in possible:
    below, above = ([rows for rows in possible if test(rows)] for test in (num_rows.__gt__, num_rows.__lt__))
    nearest = ' or '.join(str(rows) for rows in below[-1:] + above[:1]) or 'no number of rows at all'
    raise InputError(f'--keep={num_rows}: these rows are not what is generated first, since blocks are '
                     f'{layout.block[0]} x {layout.block[1]}. The nearest that are: {nearest}.')
  return num_rows * row_size
