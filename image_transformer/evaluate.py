"""Exact evaluation: every image of a split once, whatever the batch size or the number of devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from image_transformer import data, devices, stopping
from image_transformer.metrics import Evaluation
from image_transformer.model import ImageTransformer


def make_evaluator(model: ImageTransformer, batch_size: int) -> Callable[..., Evaluation]:
  """Compiles at the first call; returns evaluate(params, source, num_images).

  Args of the result:
    params: the parameters, one copy on every device (`devices.replicate`).
    source: images and what they are given, from `data.open_split`.
    num_images: the first so many; 0 for all.

  Raises `stopping.Stopped` between two batches.
  """

  def negative_log_prob(params, images, given):
    return devices.gather(-model.apply({'params': params}, images, given, method='log_prob'))

  parallel = devices.pmap(negative_log_prob)

  def evaluate(params: Any, source: Any, num_images: int = 0) -> Evaluation:
    number, batch = num_images or len(source), devices.round_up(batch_size)
    batches = data.eval_batches(source, batch_size=batch, num_images=number,
                                process_index=jax.process_index(), process_count=jax.process_count())
    nats = []
    with tqdm(total=number, desc='evaluate', unit='image', leave=False, disable=not devices.is_first()) as progress:
      for arrays in batches:
        stopping.poll()
        images, given = devices.split((arrays['image'], {name: arrays[name] for name in model.conditions}))
        nats.append(np.asarray(devices.unreplicate(parallel(params, images, given)), np.float64))
        progress.update(min(batch, number - progress.n))
    # What is padding comes last.
    return Evaluation(np.concatenate(nats)[:number], model.spec.num_dims)

  return evaluate
