"""Sampling with cached keys and values: a scan over blocks around a scan over their slots.

A whole batch of images is one compiled call. Randomness belongs to the image: image
number i of a seed is the same picture (up to rounding) in every batch size and on every device.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from image_transformer import attention, devices
from image_transformer.model import ImageTransformer


def sample(model: ImageTransformer, variables: Any, keys: jax.Array, labels: jax.Array | None = None,
           temperature: jax.Array | float = 1.0) -> tuple[jax.Array, jax.Array]:
  """Draws one image for each key, intensity by intensity; jit or pmap it.

  Args:
    model: the model.
    variables: its variables, {'params': ...}.
    keys: random keys [B].
    labels: integers [B] for class-conditional models.
    temperature: see the `sample` of the likelihoods; 1 samples from the model.

  Returns:
    uint8 images [B, H, W, C] and their log-probability [B] in nats, float32. The latter is
    the model's own, that is at temperature 1, whatever the temperature of the draw.
  """
  layout, likelihood, config = model.layout, model.likelihood, model.config
  num_images = keys.shape[0]
  order = jnp.asarray(layout.order)

  def generate_slot(carry, slot, block):
    caches, previous, log_prob = carry
    parameters, caches = model.apply(variables, previous, block, slot, labels, caches, method='step')
    index = order[block, slot]
    slot_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    values = jax.vmap(likelihood.sample, (0, 0, None))(slot_keys, parameters, temperature)
    # Padding generates nothing.
    previous = jnp.where(index < 0, previous, values)
    log_prob += jnp.where(index < 0, 0, likelihood.log_prob(parameters, values))
    return (caches, previous, log_prob), values

  def generate_block(carry, block):
    memories, previous, log_prob = carry
    caches = [attention.begin_block(memory, layout) for memory in memories]
    (caches, previous, log_prob), values = jax.lax.scan(
        lambda carry, slot: generate_slot(carry, slot, block), (caches, previous, log_prob),
        jnp.arange(layout.block_size))
    memories = [attention.end_block(memory, cache) for memory, cache in zip(memories, caches)]
    return (memories, previous, log_prob), values

  shape_BHK = num_images, config.num_heads, config.qkv_width // config.num_heads
  memories = [attention.begin_memory(layout, shape_BHK, jnp.dtype(config.dtype))] * config.num_layers
  previous = jnp.zeros((num_images, likelihood.values_per_position), jnp.int32)
  carry = memories, previous, jnp.zeros(num_images)
  (_, _, log_prob), values_NQBv = jax.lax.scan(generate_block, carry, jnp.arange(layout.num_blocks))
  values = values_NQBv.reshape(-1, *previous.shape)[layout.slots]
  return jnp.moveaxis(values, 0, 1).reshape(num_images, *model.spec.shape).astype(jnp.uint8), log_prob


def make_sampler(model: ImageTransformer, batch_size: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """Compiles at the first call; returns draw(params, seed, num_images, labels, temperature).

  Args of the result:
    params: the parameters, one copy on every device (`devices.replicate`).
    seed: image i is a function of (seed, i).
    num_images: how many.
    labels: integers [num_images], or None.
    temperature: see `sample`.

  It returns uint8 [num_images, H, W, C] and float32 log-probabilities [num_images] in nats.
  """

  def draw_batch(params, seed, indices, labels, temperature):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return sample(model, {'params': params}, keys, labels, temperature)

  parallel = devices.pmap(draw_batch, in_axes=(0, None, 0, 0, None))

  def draw(params, seed, num_images, labels=None, temperature=1.0):
    batch = devices.round_up(min(batch_size, num_images))
    # The last batch is filled up with images that are thrown away.
    indices = np.arange(-(-num_images // batch) * batch)
    if labels is not None:
      labels = np.resize(np.asarray(labels, np.int32), len(indices))
    images, log_probs = [], []
    with tqdm(total=num_images, desc='sample', unit='image', leave=False) as progress:
      for part in np.split(indices, len(indices) // batch):
        part_labels = None if labels is None else devices.split(labels[part])
        outputs = parallel(params, np.uint32(seed), devices.split(part), part_labels, temperature)
        for kept, output in zip((images, log_probs), outputs):
          kept.append(devices.merge(output))
        progress.update(min(batch, num_images - part[0]))
    return np.concatenate(images)[:num_images], np.concatenate(log_probs)[:num_images]

  return draw


def class_rows(model: ImageTransformer, num_images: int) -> tuple[np.ndarray | None, int]:
  """Labels and columns of a grid with one row per class; (None, columns) of a square without classes."""
  if not model.config.class_conditional:
    return None, math.ceil(num_images**0.5)
  columns = -(-num_images // model.spec.num_classes)
  return np.arange(num_images) // columns, columns
