"""The registry of datasets: what their images are, and who prepares them.

To add one, write a TFDS builder that needs no TensorFlow (see `digits.py`) and
give it an entry in `SOURCES`; its name is then a value of `--config.dataset`.
"""

import dataclasses

import tensorflow_datasets as tfds

from image_transformer.config import ImageSpec
from image_transformer.datasets import cifar10, digits


@dataclasses.dataclass(frozen=True)
class Source:
  """One dataset. The builder finds what is already prepared, or prepares it.

  Its examples hold `image`, and `label` where `spec.num_classes` is not 0.
  """

  spec: ImageSpec
  builder: type[tfds.core.DatasetBuilder]


SOURCES: dict[str, Source] = {
    'cifar10': Source(ImageSpec(32, 32, 3, num_classes=10), cifar10.Cifar10),
    'digits': Source(ImageSpec(8, 8, 1, levels=17, num_classes=10), digits.ImageTransformerDigits),
}
