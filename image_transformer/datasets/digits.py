"""1,797 handwritten digits of 8x8 pixels, embedded here: nothing to download.

"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998, CC BY 4.0, https://doi.org/10.24432/C50P49.
`digits.npz` holds the 1,797 images that scikit-learn ships as `load_digits`, in
its order: `images` [1797, 8, 8] uint8 with levels 0..16, `labels` [1797] uint8.
"""

import pathlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from image_transformer.datasets.local import Local

_DATA = pathlib.Path(__file__).with_name('digits.npz')
SIZES = {'train': 1_500, 'test': 297}


class ImageTransformerDigits(Local, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Fixed random splits `train` (1,500) and `test` (297).

  `id` is the image's row in `load_digits`, such as 'digits_0042'.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='Handwritten digits of 8x8 pixels with levels 0..16.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
            'label': tfds.features.ClassLabel(num_classes=10),
        }),
        supervised_keys=('image', 'label'),
        homepage='https://doi.org/10.24432/C50P49',
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(rows) for split, rows in _rows().items()}

  def _generate_examples(self, rows):
    data = np.load(_DATA)
    images, labels = data['images'], data['labels']
    for row in rows:
      # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
      image = Image.fromarray(images[row])
      yield int(row), {'id': f'digits_{row:04d}', 'image': image, 'label': int(labels[row])}


def images() -> dict[str, np.ndarray]:
  """The images of each split: uint8 [N, 8, 8] in 0..16."""
  return {split: np.load(_DATA)['images'][rows] for split, rows in _rows().items()}


def _rows():
  # RandomState, because NumPy promises that its stream never changes.
  rows = np.random.RandomState(0).permutation(sum(SIZES.values()))
  return {'train': rows[:SIZES['train']], 'test': rows[SIZES['train']:]}
