"""How well scores tell a model's test images from others: the area under the ROC curve, and the classes found.

  python benchmarks/outliers.py --workdir=runs/cifar10_fast_smoke [--num_images=1017] [--out=FILE.json]

0.5 is chance, 1 is perfect, and below 0.5 the others look more usual than the model's own images. The others are
digits blown up, uniform noise, flat colours, and the test images themselves cut into tiles that are shuffled. For a
class-conditional model, how often Bayes' rule finds the class of its test images.
"""

import measuring  # first: it sets the process up

from absl import app
from absl import flags
import numpy as np

from image_transformer import batching, data, library
from image_transformer.config import Config
from image_transformer.images import bicubic
from image_transformer.pictures import as_bytes

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.', required=True)
_NUM_IMAGES = flags.DEFINE_integer('num_images', None, 'How many test images, and of each of the others. Default: all.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

_TILE = 4  # pixels
_SCORES = 'bits_per_dim', 'minus_png', 'minus_small_memory'


def others(images: np.ndarray, data_dir: str) -> dict[str, np.ndarray]:
  """Images [N, 32, 32, 3] that are none of the model's."""
  rng, (number, height, width, channels) = np.random.default_rng(0), images.shape
  source = data.open_split(Config(dataset='digits', data_dir=data_dir), 'train')
  digits = batching.first_examples(source, min(number, len(source)))['image']
  tiles = images.reshape(number, height // _TILE, _TILE, width // _TILE, _TILE, channels).swapaxes(2, 3)
  tiles = tiles.reshape(-1, _TILE, _TILE, channels)[rng.permutation(number * height * width // _TILE**2)]
  tiles = tiles.reshape(number, height // _TILE, width // _TILE, _TILE, _TILE, channels).swapaxes(2, 3)
  large = bicubic(as_bytes(digits, 17), height, width, 256)
  return {
      'digits': np.repeat(large, channels, axis=-1),
      'noise': rng.integers(256, size=images.shape, dtype=np.uint8),
      'flat colours': np.broadcast_to(rng.integers(256, size=(number, 1, 1, channels), dtype=np.uint8), images.shape),
      'cut-up images': tiles.reshape(images.shape),
  }


def area(own: np.ndarray, other: np.ndarray) -> float:
  """The probability that one of the others has a higher score; ties count half."""
  order = np.sort(own)
  below, up_to = (np.searchsorted(order, other, side=side) for side in ('left', 'right'))
  return float((below + up_to).mean() / 2 / len(own))


def main(argv):
  del argv
  run = library.load(_WORKDIR.value)
  size = len(data.open_split(run.config, run.config.eval.split))
  images, given = run.examples(min(_NUM_IMAGES.value or size, size))
  own = run.scores(images, **{name: values for name, values in given.items() if name != 'label'})
  rows, more = [], {'num_images': len(images), 'step': run.step}
  if 'class' in own:
    more['classes_found'] = float((own['class'] == given['label']).mean())
    print(f'Bayes\' rule finds the class of {100 * more["classes_found"]:.1f} % of {len(images)} images.')
  if run.model.spec.shape == (32, 32, 3) and not given:
    for name, pixels in others(images, run.config.data_dir).items():
      scores = run.scores(pixels)
      areas = {score: area(own[score], scores[score]) for score in _SCORES}
      rows.append({'others': name, 'images': len(pixels), **areas, 'mean bits/dim': scores['bits_per_dim'].mean()})
  measuring.report('outliers', rows, _OUT.value, **more)


if __name__ == '__main__':
  app.run(main)
