"""Exact scores: every image counts once, whatever the batch size or the number of devices."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import numpy as np

from image_transformer import batching, devices, stopping
from image_transformer.metrics import Evaluation
from image_transformer.model import ImageTransformer
from image_transformer.progress import Progress


@functools.lru_cache(maxsize=8)
def make_scorer(model: ImageTransformer, batch_size: int, method: str = 'log_prob') -> Callable[..., np.ndarray]:
  """Returns score(params, source, num_images), which compiles at its first call.

  Args:
    model: the model.
    batch_size: images at a time over all devices.
    method: a method of the model that takes images and their conditions, and returns nats [B, ...].

  Args of `score`:
    params: the parameters, one copy on every device (`devices.replicate`).
    source: images and their conditions, as `data.open_split` returns them.
    num_images: how many images to score, from the first; 0: all.

  It returns nats, float64 [images, ...], on every process, and raises `stopping.Stopped` between two batches.
  """
  parallel = devices.pmap(
      lambda params, images, given: devices.gather(model.apply({'params': params}, images, given, method=method)))

  def score(params: Any, source: Sequence, num_images: int = 0) -> np.ndarray:
    number, batch = num_images or len(source), devices.round_up(batch_size)
    batches = batching.eval_batches(source, batch_size=batch, num_images=number,
                                    process_index=jax.process_index(), process_count=jax.process_count())
    nats = []
    with Progress('evaluate', 'image', number) as progress:
      for arrays in batches:
        stopping.poll()
        images, given = devices.split((arrays['image'], model.given_of(arrays)))
        nats.append(np.asarray(devices.unreplicate(parallel(params, images, given)), np.float64))
        progress.update(min(batch * len(nats), number))
    # The padding comes last.
    return np.concatenate(nats)[:number]

  return score


def make_evaluator(model: ImageTransformer, batch_size: int) -> Callable[..., Evaluation]:
  """As `make_scorer`, but the result returns bits/dim over all images."""
  score = make_scorer(model, batch_size)
  return lambda *args: Evaluation(-score(*args), model.spec.num_dims)
