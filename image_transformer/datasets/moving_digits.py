"""Clips of a moving digit, generated from (split, index): nothing to download.

One of the handwritten digits (`digits.py`; those of its own split) moves over a black square of 16 x 16, two pixels a
frame along one of eight directions. Where its next step would lead outside, it takes a new direction, any of those that
lead inside with equal probability. So what follows two frames is certain except at the walls, and its entropy is known
exactly (`surprise`).
"""

import itertools
import math
import zlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from image_transformer.config import ImageSpec
from image_transformer.datasets import digits
from image_transformer.datasets.local import Local

SPEC = ImageSpec(16, 16, 1, levels=17, frames=8)
SPLITS = {'train': 20_000, 'test': 500}
STEP = 2  # pixels
DIRECTIONS = np.array([way for way in itertools.product((-STEP, 0, STEP), repeat=2) if any(way)])


class ImageTransformerMovingDigits(Local, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`image`: the frames one below another; `id`: the split and the index, such as 'test_00042'."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='Clips of a moving handwritten digit.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=SPEC.stacked_shape, encoding_format='png'),
        }),
    )

  def _split_generators(self, dl_manager):
    images = digits.images()
    return {split: self._generate_examples(split, images[split]) for split in SPLITS}

  def _generate_examples(self, split, images):
    for index in range(SPLITS[split]):
      # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
      frames = Image.fromarray(clip(split, index, images).reshape(SPEC.stacked_shape[:2]))
      yield index, {'id': f'{split}_{index:05d}', 'image': frames}


def clip(split: str, index: int, images: np.ndarray) -> np.ndarray:
  """A clip of one of `images` [N, 8, 8]: uint8 [8, 16, 16, 1] in 0..16."""
  rng = np.random.RandomState(zlib.crc32(f'{split}{index}'.encode()))  # NumPy promises that its stream never changes
  digit = _ink(images[rng.randint(len(images))])
  room = np.array([SPEC.height, SPEC.width]) - digit.shape
  place, step = rng.randint(0, room + 1), np.array([-SPEC.height, 0])  # leads outside: the first is drawn, too
  frames = np.zeros(SPEC.shape, np.uint8)
  for frame in frames:
    row, column = place
    frame[row:row + digit.shape[0], column:column + digit.shape[1], 0] = digit
    if not _inside(place + step, room):
      ways = DIRECTIONS[_inside(place + DIRECTIONS, room)]
      step = ways[rng.randint(len(ways))]
    place = place + step
  return frames


def surprise(frames: np.ndarray) -> np.ndarray:
  """The bits of each frame of a clip [T, 16, 16, 1] given all frames before, exactly: [T - 2], from the third on."""
  boxes = [np.argwhere(frame[..., 0]) for frame in frames]
  places = np.array([box.min(axis=0) for box in boxes])
  room = np.array(frames.shape[1:3]) - _ink(frames[0, ..., 0]).shape
  steps = np.diff(places, axis=0)
  return np.array([0.0 if _inside(place + step, room) else math.log2(_inside(place + DIRECTIONS, room).sum())
                   for place, step in zip(places[1:], steps[:-1])])


def _ink(image):
  """The part of an image within which something is drawn."""
  rows, columns = np.nonzero(image)
  return image[rows.min():rows.max() + 1, columns.min():columns.max() + 1]


def _inside(places, room):
  return ((places >= 0) & (places <= room)).all(axis=-1)
