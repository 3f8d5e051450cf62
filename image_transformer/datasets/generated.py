"""Stand-ins for datasets that are not available: generated images with the dataset's shape and splits.

Each is a gradient whose direction depends on the label (without labels, a random one), with a few discs on it: quick
to learn, but its bits/dim say nothing about the dataset that it replaces.
"""

from collections.abc import Iterable
import dataclasses
import zlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from image_transformer.config import ImageSpec
from image_transformer.datasets.local import Local

NUM_TRAIN, NUM_EVAL = 256, 64


@dataclasses.dataclass(eq=False, kw_only=True)
class Settings(tfds.core.BuilderConfig):
  spec: ImageSpec
  splits: tuple[str, ...]


def settings(name: str, spec: ImageSpec, splits: Iterable[str]) -> Settings:
  return Settings(name=f'{name}_{spec.height}x{spec.width}', spec=spec, splits=tuple(splits))


class ImageTransformerGenerated(Local, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """256 images in `train`, 64 in each other split, always the same."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    spec = self.builder_config.spec
    features = {'image': tfds.features.Image(shape=spec.shape, encoding_format='png')}
    if spec.num_classes:
      features['label'] = tfds.features.ClassLabel(num_classes=spec.num_classes)
    if spec.has_texts:
      features['text'] = tfds.features.Text()
    return tfds.core.DatasetInfo(
        builder=self,
        description='Generated images, not data.',
        features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in self.builder_config.splits}

  def _generate_examples(self, split):
    spec = self.builder_config.spec
    for index in range(NUM_TRAIN if split == 'train' else NUM_EVAL):
      # RandomState, because NumPy promises that its stream never changes.
      rng = np.random.RandomState(zlib.crc32(f'{split}{index}'.encode()))
      label = rng.randint(spec.num_classes or 1)
      direction = label / spec.num_classes if spec.num_classes else rng.uniform()
      pixels = (draw(rng, spec, 2 * np.pi * direction) * spec.levels).astype(np.uint8)
      # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
      image = Image.fromarray(pixels if spec.channels == 3 else pixels[..., 0])
      yield index, {'image': image} | ({'label': label} if spec.num_classes else {}) | (
          {'text': 'a generated image'} if spec.has_texts else {})


def draw(rng: np.random.RandomState, spec: ImageSpec, angle: float) -> np.ndarray:
  """Returns intensities in [0, 1), [H, W, C]: a gradient that rises towards `angle` (radians), and 1 to 3 discs."""
  rows, columns = np.meshgrid(np.linspace(-1, 1, spec.height), np.linspace(-1, 1, spec.width), indexing='ij')
  slope = (np.sin(angle) * rows + np.cos(angle) * columns)[..., None] / np.sqrt(8)  # in [-1/2, 1/2]
  image = 0.5 + slope * rng.uniform(0.6, 0.99, size=spec.channels)
  for _ in range(rng.randint(1, 4)):
    row, column = rng.uniform(-1, 1, size=2)
    inside = (rows - row)**2 + (columns - column)**2 < rng.uniform(0.2, 0.5)**2
    image[inside] = rng.uniform(0, 1, size=spec.channels)
  return image
