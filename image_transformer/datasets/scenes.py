"""Drawings of one to three shapes with captions, generated from (split, index): nothing to download.

A caption says everything but where the shapes are: "a large red circle left of a small blue square, which is above a
small black cross". They are where they do not touch and the relations hold, at all such places with equal probability,
and differ in colour, so that an image shows its places: its entropy given its caption is known exactly (`entropy`).
In the split `unseen` every drawing has a shape in a colour in which it never occurs in `train` and `test`.
"""

import functools
import math
import re
import zlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from image_transformer.config import ImageSpec
from image_transformer.datasets.local import Local

SPEC = ImageSpec(32, 32, 3, levels=4, has_texts=True)
SPLITS = {'train': 40_000, 'test': 1_000, 'unseen': 1_000}
COLORS = {'red': (3, 0, 0), 'orange': (3, 2, 0), 'yellow': (3, 3, 0), 'green': (0, 2, 0), 'blue': (0, 1, 3),
          'purple': (2, 0, 2), 'black': (0, 0, 0)}
SHAPES = 'circle', 'square', 'triangle', 'cross'
SIZES = {'small': 5, 'large': 9}  # pixels
RELATIONS = 'left of', 'right of', 'above', 'below'
UNSEEN = ('red', 'triangle'), ('green', 'square'), ('blue', 'circle'), ('yellow', 'cross'), ('black', 'triangle')
MAX_SHAPES = 3
_SHAPE = re.compile(f'a ({"|".join(SIZES)}) ({"|".join(COLORS)}) ({"|".join(SHAPES)})')
_RELATION = re.compile('|'.join(RELATIONS))


class ImageTransformerScenes(Local, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`text`: the caption; `id`: the split and the index, such as 'test_00042'."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='Drawings of one to three shapes, and what they show.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=SPEC.shape, encoding_format='png'),
            'text': tfds.features.Text(),
        }),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split, number) for split, number in SPLITS.items()}

  def _generate_examples(self, split, number):
    for index in range(number):
      image, text = scene(split, index)
      # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
      yield index, {'id': f'{split}_{index:05d}', 'image': Image.fromarray(image), 'text': text}


def scene(split: str, index: int) -> tuple[np.ndarray, str]:
  """An image, uint8 [32, 32, 3] in 0..3, and its caption."""
  rng = np.random.RandomState(zlib.crc32(f'{split}{index}'.encode()))  # NumPy promises that its stream never changes
  number = rng.randint(1, MAX_SHAPES + 1)
  while True:
    colors = rng.choice(list(COLORS), number, replace=False).tolist()
    shapes = rng.choice(SHAPES, number).tolist()
    if any(pair in UNSEEN for pair in zip(colors, shapes)) == (split == 'unseen'):
      break
  sizes = rng.choice(list(SIZES), number).tolist()
  relations = rng.choice(RELATIONS, number - 1).tolist()
  text = caption(list(zip(sizes, colors, shapes)), relations)
  return draw(text, rng), text


def caption(objects: list[tuple[str, str, str]], relations: list[str]) -> str:
  """Describes objects (size, colour, shape), each in its relation to the next."""
  texts = [' '.join(['a', *words]) for words in objects]
  joints = [f' {relation} ' if not i else f', which is {relation} ' for i, relation in enumerate(relations)]
  return texts[0] + ''.join(joint + text for joint, text in zip(joints, texts[1:]))


def parse(text: str) -> tuple[list[tuple[str, str, str]], list[str]]:
  """The objects and relations of a `caption`."""
  return _SHAPE.findall(text), _RELATION.findall(text)


def draw(text: str, rng: np.random.RandomState) -> np.ndarray:
  """An image of a caption: uint8 [32, 32, 3], its shapes at random places."""
  objects, relations = parse(text)
  sides = [SIZES[size] for size, _, _ in objects]
  while True:
    # Many at a time, since few may be possible.
    places = [rng.randint(0, SPEC.height + 1 - side, size=(256, 2)) for side in sides]
    possible = np.flatnonzero(_possible(places, sides, relations))
    if len(possible):
      break
  image = np.full(SPEC.shape, SPEC.levels - 1, np.uint8)
  for (row, column), side, (_, color, shape) in zip((place[possible[0]] for place in places), sides, objects):
    image[row:row + side, column:column + side][_bitmap(shape, side)] = COLORS[color]
  return image


def entropy(text: str) -> float:
  """The entropy of an image given its caption, in bits: the logarithm of how many there are."""
  objects, relations = parse(text)
  return _entropy(tuple(SIZES[size] for size, _, _ in objects), tuple(relations))


@functools.cache
def _entropy(sides, relations):
  grids = [np.indices((SPEC.height + 1 - side,) * 2).reshape(2, -1).T for side in sides]
  if len(sides) == 1:
    return math.log2(len(grids[0]))
  # Of every pair of shapes, whether they can be at two places; then triples are counted by a product of matrices.
  pairs = [_apart(grids[i][:, None], grids[i + 1], sides[i], sides[i + 1]) &
           _holds(relation, grids[i][:, None], grids[i + 1], sides[i], sides[i + 1])
           for i, relation in enumerate(relations)]
  if len(sides) == 2:
    return math.log2(pairs[0].sum())
  ways = pairs[0].astype(np.float64) @ pairs[1]
  return math.log2(ways[_apart(grids[0][:, None], grids[2], sides[0], sides[2])].sum())


def _possible(places, sides, relations):
  """bool: whether shapes can be at places [..., 2] each."""
  possible = np.ones(len(places[0]), bool)
  for i, relation in enumerate(relations):
    possible &= _holds(relation, places[i], places[i + 1], sides[i], sides[i + 1])
  for j in range(len(places)):
    for i in range(j):
      possible &= _apart(places[i], places[j], sides[i], sides[j])
  return possible


def _holds(relation, first, second, first_side, second_side):
  """Whether a relation holds of shapes at places [..., 2] (row, column of the top left corner)."""
  if relation in ('right of', 'below'):
    first, second, first_side, second_side = second, first, second_side, first_side
  axis = 1 if relation in ('left of', 'right of') else 0
  return first[..., axis] + first_side < second[..., axis]


def _apart(first, second, first_side, second_side):
  """Whether there is at least a pixel between two shapes."""
  return functools.reduce(np.logical_or, [_holds(relation, first, second, first_side, second_side)
                                          for relation in RELATIONS])


@functools.cache
def _bitmap(shape, side):
  """bool [side, side]."""
  row, column = np.indices((side, side))
  middle = side // 2
  if shape == 'circle':
    return (row - middle)**2 + (column - middle)**2 <= (side / 2)**2
  if shape == 'triangle':
    return abs(column - middle) <= row // 2
  if shape == 'cross':
    return (abs(row - middle) <= side // 8) | (abs(column - middle) <= side // 8)
  return np.ones((side, side), bool)
