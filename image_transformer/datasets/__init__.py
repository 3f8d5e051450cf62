"""The registry of datasets: the format of their images, and the builders that prepare them.

To add one, write a TFDS builder that needs no TensorFlow (see `digits.py`) and
give it an entry in `DATASETS`; its name is then a value of the field `dataset`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

import tensorflow_datasets as tfds

from image_transformer.config import Config, ImageSpec
from image_transformer.datasets import celeba, cifar10, digits, folder, generated, imagenet, moving_digits, scenes


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One dataset. The builder finds what is already prepared, or prepares it.

  Its examples hold `image`, `label` where `spec.num_classes` is not 0, and `text` where `spec.has_texts`.
  """

  spec: ImageSpec
  builder: type[tfds.core.DatasetBuilder]
  sizes: Mapping[str, int | None]  # the splits, and how many images they officially have; None: not fixed
  config: str | tfds.core.BuilderConfig | None = None  # the builder's
  stored: tuple[int, int, int] | None = None  # shape of the stored images, where they are larger than `spec`
  note: Callable[[tfds.core.DatasetBuilder], str] = lambda builder: ''  # which data it is, if that is in doubt
  check: Callable[[tfds.core.DatasetBuilder], None] = lambda builder: None  # raises InputError: it can't be prepared


def stand_in(name: str, dataset: Dataset) -> Dataset:
  """Returns generated images in the shape and splits of `dataset`."""
  stacked = dataclasses.replace(dataset.spec, height=dataset.spec.stacked_shape[0], frames=0)
  return Dataset(dataset.spec, generated.ImageTransformerGenerated, dict.fromkeys(dataset.sizes),
                 generated.settings(name, stacked, dataset.sizes),
                 note=lambda builder: f'generated images in place of {name}, not a result')


def _imagenet_old(size: int, config: Config) -> Dataset:
  return Dataset(ImageSpec(size, size, 3), imagenet.DownsampledImagenet, imagenet.OLD_SIZES, f'{size}x{size}',
                 note=lambda builder: 'the original downsampled ImageNet (van den Oord et al., 2016), with 49,999 '
                                     f'validation images, as in the paper; {imagenet.NO_COMPARISON}')


def _imagenet_new(size: int, config: Config) -> Dataset:
  return Dataset(ImageSpec(size, size, 3, num_classes=1_000), imagenet.ImagenetResized, imagenet.NEW_SIZES,
                 f'{size}x{size}',
                 note=lambda builder: 'the new, anti-aliased downsampled ImageNet (Chrabaszcz et al., 2017), with '
                                     f"50,000 validation images, not the paper's; {imagenet.NO_COMPARISON}")


# Functions, since a dataset may depend on the configuration.
DATASETS: dict[str, Callable[[Config], Dataset]] = {
    'celeba': lambda config: Dataset(ImageSpec(32, 32, 3), celeba.ImageTransformerCeleba, celeba.SIZES,
                                     stored=(celeba.CROP, celeba.CROP, 3)),
    'cifar10': lambda config: Dataset(ImageSpec(32, 32, 3, num_classes=10), cifar10.Cifar10, cifar10.SIZES),
    'digits': lambda config: Dataset(ImageSpec(8, 8, 1, levels=17, num_classes=10), digits.ImageTransformerDigits,
                                     digits.SIZES),
    'folder': lambda config: Dataset(folder.spec(config.folder), folder.ImageTransformerFolder,
                                     dict.fromkeys(folder.SPLITS), folder.settings(config.folder), note=folder.note,
                                     check=folder.check),
    'imagenet32_new': functools.partial(_imagenet_new, 32),
    'imagenet32_old': functools.partial(_imagenet_old, 32),
    'imagenet64_new': functools.partial(_imagenet_new, 64),
    'imagenet64_old': functools.partial(_imagenet_old, 64),
    'moving_digits': lambda config: Dataset(moving_digits.SPEC, moving_digits.ImageTransformerMovingDigits,
                                            moving_digits.SPLITS),
    'scenes': lambda config: Dataset(scenes.SPEC, scenes.ImageTransformerScenes, scenes.SPLITS),
}
