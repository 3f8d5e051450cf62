"""What a density model says about single images: how surprising each is, and of which class.

Likelihood alone does not tell outliers, since simple images of any kind are likely. Here it is corrected by what a
general coder needs for an image (Serra et al., 2020), and by what the same network needs when it sees only a few
positions (in the manner of Ren et al., 2019).

Shape suffixes: K classes (one, if a model knows none), I images.
"""

import dataclasses

import numpy as np

from image_transformer import pictures
from image_transformer.metrics import bits_per_dim
from image_transformer.model import ImageTransformer, make_model

_FEW = 2  # positions in each direction, of a small memory


def with_small_memory(model: ImageTransformer) -> ImageTransformer:
  """The same network, but each position sees only the few before it in its block, and as many beside the block."""
  sides = model.spec.shape[:-1] if len(model.config.query_block) > 1 else (model.layout.num_positions,)
  few = tuple(min(_FEW, side) for side in sides)
  return make_model(dataclasses.replace(model.config, query_block=few, memory_flange=few), model.spec)


def measures(images: np.ndarray, levels: int, log_probs_KI: np.ndarray, small_KI: np.ndarray) -> dict[str, np.ndarray]:
  """Scores of images, by name; higher is stranger.

  Args:
    images: integers [I, H, W, C] in 0..levels-1, or videos [I, T, H, W, C].
    levels: how many intensities there are.
    log_probs_KI: of each image given each class, nats.
    small_KI: the same `with_small_memory`.

  Returns:
    `bits_per_dim` [I], if classes are equally likely; `png`, those of the image as a PNG file, and `small_memory`;
    `minus_png` and `minus_small_memory`, the corrected scores; and with classes, the most likely `class` [I] and the
    probability of each, `p_0`, `p_1`, ... [I].
  """
  num_dims = images[0].size
  total_I = np.logaddexp.reduce(log_probs_KI, axis=0) - np.log(len(log_probs_KI))
  small_I = np.logaddexp.reduce(small_KI, axis=0) - np.log(len(small_KI))
  found = {
      'bits_per_dim': bits_per_dim(-total_I, num_dims),
      'png': np.array([8 * len(pictures.png(image.reshape(-1, *image.shape[-2:]))) / num_dims
                       for image in pictures.as_bytes(images, levels)]),
      'small_memory': bits_per_dim(-small_I, num_dims),
  }
  found |= {f'minus_{name}': found['bits_per_dim'] - found[name] for name in ('png', 'small_memory')}
  if len(log_probs_KI) > 1:
    posterior_KI = np.exp(log_probs_KI - np.logaddexp.reduce(log_probs_KI, axis=0))
    found |= {'class': posterior_KI.argmax(axis=0)} | {f'p_{k}': row for k, row in enumerate(posterior_KI)}
  return found
