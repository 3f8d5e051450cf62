"""Exact evaluation: every image of a split once, whatever the batch size or the number of devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from image_transformer import data, devices
from image_transformer.metrics import Evaluation
from image_transformer.model import ImageTransformer


def make_evaluator(model: ImageTransformer, batch_size: int) -> Callable[..., Evaluation]:
  """Compiles at the first call; returns evaluate(params, source, num_images).

  Args of the result:
    params: the parameters, one copy on every device (`devices.replicate`).
    source: images and what they are given, from `data.open_split`.
    num_images: the first so many; 0 for all.
  """

  def negative_log_prob(params, images, given):
    return -model.apply({'params': params}, images, given, method='log_prob')

  parallel = devices.pmap(negative_log_prob)

  def evaluate(params: Any, source: Any, num_images: int = 0) -> Evaluation:
    batches = data.eval_batches(source, batch_size=devices.round_up(batch_size), num_images=num_images)
    nats = []
    with tqdm(total=num_images or len(source), desc='evaluate', unit='image', leave=False) as progress:
      for batch in batches:
        mask = batch['mask'].astype(bool)
        images, given = devices.split((batch['image'], {name: batch[name] for name in model.conditions}))
        nats.append(devices.merge(parallel(params, images, given)).astype(np.float64)[mask])
        progress.update(int(mask.sum()))
    return Evaluation(np.concatenate(nats), model.spec.num_dims)

  return evaluate
