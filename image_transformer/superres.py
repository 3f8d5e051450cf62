"""Super-resolution: its pictures, and what it is measured by (paper section 5.3).

Of one small image many large ones are plausible. Bits/dim say how probable the original is;
samples are measured by how they fit the small image (consistency) and by how far they are
from the one original that there happened to be (PSNR, SSIM).
"""

from collections.abc import Mapping
import json
import math
from typing import Any

import dm_pix
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from image_transformer import pictures
from image_transformer.images import area_resize
from image_transformer.metrics import Evaluation, bits_per_dim, environment
from image_transformer.workdir import write_whole


def bicubic(low_res: np.ndarray, height: int, width: int, levels: int) -> np.ndarray:
  """Integer images [N, h, w, C] made larger by bicubic interpolation: uint8 [N, height, width, C]."""

  def larger(channel):
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))

  channels = [larger(channel) for image in low_res for channel in np.moveaxis(image, -1, 0)]
  large = np.moveaxis(np.reshape(channels, (len(low_res), -1, height, width)), 1, -1)
  return np.clip(np.round(large), 0, levels - 1).astype(np.uint8)


def strips(low_res: np.ndarray, samples: np.ndarray, originals: np.ndarray | None, levels: int) -> np.ndarray:
  """A picture with a row per image: input | bicubic | samples | original (where there is one).

  Args:
    low_res: integers [N, h, w, C].
    samples: integers [N, samples, H, W, C].
    originals: integers [N, H, W, C], or None.
    levels: intensities are in 0..levels-1.

  Returns:
    uint8 [height, width, 3].
  """
  height, width = samples.shape[2:4]
  columns = [low_res, bicubic(low_res, height, width, levels), *np.moveaxis(samples, 1, 0)]
  return pictures.strips(columns + ([] if originals is None else [originals]), levels)


def measure(low_res: np.ndarray, samples: np.ndarray, originals: np.ndarray | None,
            levels: int) -> Mapping[str, np.ndarray]:
  """What large images of small ones are worth, per image and averaged over its samples.

  Args:
    low_res, samples, originals, levels: as for `strips`.

  Returns:
    Arrays [N], of intensities in [0, 1]: `consistency`, the mean squared error of the samples
    made small again against their input; `mismatch`, the same against the next image's input,
    which is what an unrelated picture would score (with two images or more); with originals
    `psnr` (dB, at most 100) and `ssim`.
  """
  small = area_resize(samples, *low_res.shape[1:3])

  def errors(inputs):
    # One image at a time: as floats, all of a test set would not fit into memory.
    return [np.square((ours - one.astype(float)) / (levels - 1)).mean() for ours, one in zip(small, inputs)]

  measures = {'consistency': errors(low_res)}
  if len(samples) > 1:
    measures['mismatch'] = errors(np.roll(low_res, -1, axis=0))
  if originals is not None:
    size = min(11, *originals.shape[1:3])
    # SSIM's window is odd, and images may be smaller than the usual 11 pixels.
    window = size - 1 + size % 2

    def compare(sample, original):
      sample, original = (x.astype(jnp.float32) / (levels - 1) for x in (sample, original))
      return dm_pix.psnr(sample, original), dm_pix.ssim(sample, original, filter_size=window)

    compare_all = jax.jit(jax.vmap(compare, (0, None)))
    psnr, ssim = np.transpose([compare_all(*pair) for pair in zip(samples, originals)], (1, 0, 2))
    measures |= {'psnr': np.minimum(psnr, 100).mean(axis=1), 'ssim': ssim.mean(axis=1)}
  return {name: np.asarray(values, np.float64) for name, values in measures.items()}


def table(measures: Mapping[str, Mapping[str, np.ndarray]]) -> str:
  """The means over images, a line for each way of making them large."""
  names = list(next(iter(measures.values())))
  head = ''.ljust(16) + ''.join(name.rjust(13) for name in names)
  rows = [way.ljust(16) + ''.join(f'{values[name].mean():13.4f}' for name in names)
          for way, values in measures.items()]
  return '\n'.join([head, *rows])


def write_report(path: epath.Path, measures: Mapping[str, Mapping[str, np.ndarray]],
                 evaluation: Evaluation | None, **about: Any) -> None:
  """Writes measures, averaged with standard errors over images and per image, and what they are of, as JSON."""

  def summary(values):
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {'mean': float(values.mean()), 'standard_error': error, 'per_image': values.tolist()}

  report = {
      **about,
      'num_images': len(measures['bicubic']['consistency']),
      'bits_per_dim': None if evaluation is None else summary(bits_per_dim(evaluation.nats, evaluation.num_dims)),
      **{way: {name: summary(values) for name, values in of_way.items()} for way, of_way in measures.items()},
      **environment(),
  }
  write_whole(path, json.dumps(report, indent=2) + '\n')
