"""Measures of enlarged images (paper section 5.3).

Many large images are plausible for one small image. Bits/dim say how probable the original is;
samples are measured by how well they match the small image (consistency) and the one original
(PSNR, SSIM).
"""

from collections.abc import Mapping

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.images import area_resize


def measure(low_res: np.ndarray, samples: np.ndarray, originals: np.ndarray | None,
            levels: int) -> Mapping[str, np.ndarray]:
  """Measures enlarged images: for each image, the mean over its samples.

  Args:
    low_res: integers [N, h, w, C] in 0..levels-1.
    samples: integers [N, samples, H, W, C].
    originals: integers [N, H, W, C], or None.
    levels: the number of intensity levels.

  Returns:
    Arrays [N], of intensities in [0, 1]: `consistency`, the mean squared error of the samples,
    downsampled again, against their input; `mismatch`, the same against the next image's input,
    which is what an unrelated image would score (with two images or more); with originals
    `psnr` (dB, at most 100) and `ssim`.
  """
  small = area_resize(samples, *low_res.shape[1:3])

  def errors(inputs):
    # One image at a time: as floats, a whole test set would not fit into RAM.
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
  """The means over images, a line for each way of enlarging them."""
  names = list(next(iter(measures.values())))
  head = ''.ljust(16) + ''.join(name.rjust(13) for name in names)
  rows = [way.ljust(16) + ''.join(f'{values[name].mean():13.4f}' for name in names)
          for way, values in measures.items()]
  return '\n'.join([head, *rows])
