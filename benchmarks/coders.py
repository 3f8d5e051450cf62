"""Bits/dim of lossless image coders on a split, each image by itself and all in one sheet.

  python benchmarks/coders.py --config=configs/cifar10_small.py --config.data_dir=$DATA_DIR --out=results/coders.json

JPEG XL needs `pip install pillow-jxl-plugin`; it is left out where that is not installed. Every byte of a file counts.
"""

import measuring  # first: it sets the process up

import importlib.metadata
import io
from typing import Any

from absl import app
from absl import flags
from ml_collections import config_flags
import numpy as np
from PIL import Image

from image_transformer import data

CODERS: dict[str, dict[str, Any]] = {
    'PNG': {'format': 'PNG', 'optimize': True},
    'WebP': {'format': 'WEBP', 'lossless': True, 'method': 6, 'quality': 100, 'exact': True},
}
try:
  import pillow_jxl  # noqa: F401 (teaches Pillow the format)
  # The highest is best for a large picture, the one before for small ones.
  CODERS |= {f'JPEG XL, effort {effort}': {'format': 'JXL', 'lossless': True, 'effort': effort} for effort in (9, 10)}
except ImportError:
  pass


def bits(picture: np.ndarray, settings: dict[str, Any]) -> int:
  """Of the whole file, from which the picture comes back exactly."""
  file = io.BytesIO()
  Image.fromarray(picture).save(file, **settings)
  with Image.open(file) as again:
    assert (np.asarray(again.convert('RGB')) == picture).all(), settings
  return 8 * len(file.getvalue())


def sheet(images: np.ndarray) -> np.ndarray:
  """All images in one, in the most columns up to a square that leave no gap."""
  number, height, width, channels = images.shape
  columns = max(n for n in range(1, int(number**0.5) + 1) if number % n == 0)
  rows = images.reshape(-1, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
  return rows.reshape(-1, columns * width, channels)


def main(argv):
  del argv
  config, _ = measuring.load(_CONFIG.value)
  source = data.open_split(config, config.eval.split)
  images = np.stack([source[index]['image'] for index in range(len(source))])
  rows = []
  for name, settings in CODERS.items():
    each = np.array([bits(image, settings) for image in images]) / images[0].size
    rows.append({'coder': name, 'bits/dim': each.mean(), 'standard error': each.std(ddof=1) / len(each)**0.5,
                 'bits/dim in one sheet': bits(sheet(images), settings) / images.size})
  measuring.report('coders', rows, _OUT.value, num_images=len(images), settings=CODERS, libraries={
      name: importlib.metadata.version(name) for name in ('pillow', *['pillow-jxl-plugin'] * (len(CODERS) > 2))})


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_small.py')
  _OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
  app.run(main)
