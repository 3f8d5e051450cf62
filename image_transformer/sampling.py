"""Sampling with cached keys and values: a loop over blocks around a loop over their slots.

A whole batch of images is drawn in one compiled call. Each image has its own random key: image
i of a seed is the same (up to rounding) for every batch size and on every device.

Shape suffixes: those of `model.py`, S slots of all blocks, L positions in raster order.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from image_transformer import attention, devices, stopping
from image_transformer.config import POSITIVE, check, positive_float
from image_transformer.door import check_given, check_images
from image_transformer.errors import InputError
from image_transformer.model import Given, ImageTransformer, in_compute_type
from image_transformer.progress import Progress


def sample(model: ImageTransformer, variables: Any, keys: jax.Array, given: Given = {},
           temperature: jax.Array | float = 1.0, images: jax.Array | None = None,
           num_kept: int = 0) -> tuple[jax.Array, jax.Array]:
  """Draws one image for each key, intensity by intensity; jit or pmap it.

  Args:
    model: the model.
    variables: its variables, {'params': ...}.
    keys: random keys [B].
    given: the conditions, see `model.conditions`.
    temperature: see the `sample` of the likelihoods; 1 samples from the model.
    images: integers [B, H, W, C] to complete; positions that are not kept may hold any intensities.
    num_kept: how many positions, the first in generation order, to keep from `images`.

  Returns:
    uint8 images [B, H, W, C] and the log-probability [B] in nats, float32, of what was drawn,
    given what was kept. It is computed at temperature 1, whatever the temperature of sampling.

  Raises:
    InputError: if the conditions or the images do not fit the model.
  """
  layout, likelihood = model.layout, model.likelihood
  num_images = keys.shape[0]
  order = jnp.asarray(layout.order)
  start = layout.generated[num_kept]
  start_block, start_slot = divmod(int(start), layout.block_size)
  network: Callable[..., Any] = functools.partial(
      model.apply, {**variables, 'params': in_compute_type(model, variables['params'])})
  encoded = network(given, None, num_images, method='encode')

  def generate_slot(slot, carry, block):
    caches, fed_BV, log_prob_B, values_SBV = carry
    parameters_BP, caches = network(fed_BV, block, slot, encoded, caches, method='step')
    index = order[block, slot]
    slot_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    drawn_BV = jax.vmap(likelihood.sample, (0, 0, None))(slot_keys, parameters_BP, temperature)
    log_prob_B += jnp.where(index < 0, 0, likelihood.log_prob(parameters_BP, drawn_BV))
    values_SBV = jax.lax.dynamic_update_index_in_dim(values_SBV, drawn_BV, block * layout.block_size + slot, axis=0)
    # Padding generates nothing.
    return caches, jnp.where(index < 0, fed_BV, drawn_BV), log_prob_B, values_SBV

  def generate_block(block, carry):
    windows, *rest = carry
    caches = [attention.begin_block(window, layout) for window in windows]
    first_slot = jnp.where(block == start_block, start_slot, 0) if start_slot else 0
    caches, *rest = jax.lax.fori_loop(first_slot, layout.block_size,
                                      lambda slot, carry: generate_slot(slot, carry, block), (caches, *rest))
    return [attention.end_block(window, cache) for window, cache in zip(windows, caches)], *rest

  if num_kept:
    images = jnp.asarray(check_images(images, model.spec, num_images))
    hidden = layout.order.ravel()[layout.generated[num_kept:]]
    # An intensity out of range would be embedded as NaN, which no mask hides.
    images = network(images, method='values').at[:, hidden].set(0).reshape(images.shape)
    windows = network(images, encoded, start_block, method='prefill')
  else:
    images = jnp.zeros((num_images, *model.spec.shape), jnp.uint8)
    windows = model.empty_windows(num_images)
  values_BLV = network(images, method='values')
  values_SBV = jnp.moveaxis(values_BLV[:, layout.order.ravel()], 0, 1)
  fed_BV = values_BLV[:, layout.previous.ravel()[start]]
  carry = windows, fed_BV, jnp.zeros(num_images), values_SBV
  _, _, log_prob_B, values_SBV = jax.lax.fori_loop(start_block, layout.num_blocks, generate_block, carry)
  images = jnp.moveaxis(values_SBV[layout.slots], 0, 1).reshape(num_images, *model.spec.shape)
  return images.astype(jnp.uint8), log_prob_B


def check_number(num_images: object) -> None:
  """Raises InputError if this is not a valid number of images."""
  check(isinstance(num_images, (int, np.integer)) and num_images > 0, 'num_images', num_images, 'a positive integer')


@functools.lru_cache(maxsize=8)
def make_sampler(model: ImageTransformer, batch_size: int, num_kept: int = 0) -> Callable[..., Any]:
  """Returns draw(params, seed, num_images, given, temperature, images), which compiles at its first call.

  Args:
    model: the model.
    batch_size: images drawn at a time over all devices; rounded up to fill every device.
    num_kept: how many positions are kept of `images`, in order of generation.

  Args of `draw`:
    params: the parameters, one copy on every device (`devices.replicate`).
    seed: image i is a function of (seed, i).
    num_images: how many.
    given: the conditions, arrays [num_images, ...].
    temperature: see `sample`.
    images: [num_images, H, W, C] to complete, if `num_kept` is not 0.

  It returns uint8 [num_images, H, W, C] and float32 log-probabilities [num_images] in nats, on every
  process. It raises InputError for input that does not fit the model, and `stopping.Stopped` between two batches.
  """

  def draw_batch(params, seed, indices, given, temperature, images):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return devices.gather(sample(model, {'params': params}, keys, given, temperature, images, num_kept))

  parallel = devices.pmap(draw_batch, in_axes=(0, None, 0, 0, None, 0))

  def draw(params, seed, num_images, given, temperature=1.0, images=None):
    check(isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32, 'seed', seed, 'an integer in 0..2^32-1')
    check(positive_float(temperature), 'temperature', temperature, POSITIVE)
    given = check_given(given, model.conditions, num_images)
    images = check_images(images, model.spec, num_images) if num_kept else None
    batch = devices.round_up(min(batch_size, num_images))
    drawn = []
    with Progress('sample', 'image', num_images) as progress:
      for first in range(0, num_images, batch):
        stopping.poll()
        indices = np.arange(first, first + batch)
        # The last batch is padded with images that are discarded.
        whole = indices, *jax.tree.map(lambda x: np.asarray(x)[indices % num_images], (given, images))
        part, part_given, part_images = devices.split(devices.own_part(whole))
        outputs = parallel(params, np.uint32(seed), part, part_given, temperature, part_images)
        drawn.append(jax.device_get(devices.unreplicate(outputs)))
        progress.update(min(first + batch, num_images))
    images, log_probs = (np.concatenate(parts)[:num_images] for parts in zip(*drawn))
    return images, log_probs

  return draw


def positions_in_rows(model: ImageTransformer, rows: int) -> int:
  """The number of positions in the first rows of an image, or frames of a video, which must be generated first.

  Raises:
    InputError: if they are not; the message gives the nearest numbers of rows that are.
  """
  height, layout = model.spec.shape[0], model.layout
  what = 'frames' if model.spec.frames else 'rows'
  whole = isinstance(rows, (int, np.integer)) and not isinstance(rows, bool)
  check(whole and 0 < rows < height, 'rows', rows, f'a number of {what} in 1..{height - 1}')
  row_size = layout.num_positions // height
  order = layout.order.ravel()[layout.generated]
  possible = [one for one in range(1, height) if order[:one * row_size].max() < one * row_size]
  if rows not in possible:
    nearest = ' or '.join(str(one) for one in [one for one in possible if one < rows][-1:] +
                          [one for one in possible if one > rows][:1]) or f'no number of {what} at all'
    raise InputError(f'The first {rows} {what} cannot be kept, since they are not generated first with '
                     f'model.query_block = {model.config.query_block} and model.scan = {model.config.scan!r}. The '
                     f'nearest numbers of {what} that can: {nearest}.')
  return rows * row_size
