"""Images conditioned on their class (paper section 5.2)."""

import re

from flax import linen as nn
import jax
import numpy as np

from image_transformer.conditions import Condition, Encoding, square
from image_transformer.config import ModelConfig, check
from image_transformer.embeddings import Table


class _LabelEncoder(nn.Module):
  config: ModelConfig
  num_classes: int

  def setup(self):
    self.classes = Table(self.num_classes, self.config.hidden_size)

  def __call__(self, labels_B: jax.Array, batch_index_B: jax.Array | None) -> Encoding:
    return Encoding(vector_BD=self.classes(labels_B))


class Label(Condition):
  """The class of an image."""

  name = source = 'label'
  flag = 'labels', 'Classes, repeated to fill the images. Default: rows of each class, or those of the inputs.'

  def __post_init__(self):
    check(self.spec.num_classes > 0, 'model.class_conditional', True, 'False for a dataset without labels')

  @classmethod
  def is_used(cls, config):
    return config.class_conditional

  @property
  def shape(self):
    return ()

  @property
  def num_values(self):
    return self.spec.num_classes

  def encoder(self):
    return _LabelEncoder(self.config, self.spec.num_classes)

  def of_example(self, example):
    return np.int32(example['label'])

  def default(self, num_images):
    """Rows of one class each, if that comes out even; with fewer images than classes, they are spread evenly."""
    classes = self.num_values
    if num_images < classes:
      return np.arange(num_images) * classes // num_images, square(num_images)
    columns = num_images // classes
    labels = np.arange(num_images) // columns % classes
    return labels, square(num_images) if num_images % classes else columns

  def captions(self, values):
    return [str(value) for value in values]

  @staticmethod
  def split(typed):
    return [word.strip() for words in typed for word in words.split(',')]

  def parse(self, words):
    good = words and all(re.fullmatch(r'\d{1,9}', word) and int(word) < self.num_values for word in words)
    check(good, 'labels', ','.join(words), f'classes in 0..{self.num_values - 1}, separated by commas')
    return np.array(words, np.int32)
