"""Prepares the part of CIFAR-10 that the results here are of, by ids, in TFDS's format.

  python results/cifar10_subset.py --data_dir=$DATA_DIR

The official archive is downloaded to `$DATA_DIR`, or taken from there. Choose a folder in which CIFAR-10 is not
prepared yet.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from image_transformer.datasets.cifar10 import Cifar10
from image_transformer.errors import InputError

TRAIN = *range(4_000), *range(10_000, 11_017), *range(20_000, 21_017), *range(30_000, 31_017), *range(40_000, 41_017)
IDS = {f'train_{index:05d}' for index in TRAIN} | {f'test_{index:05d}' for index in range(1_017)}


class Subset(Cifar10, skip_registration=True):
  """CIFAR-10 without the other images, in the order of the whole: TFDS stores by a hash of an image's number."""

  name = 'cifar10'

  def _generate_examples(self, *args):
    return ((key, example) for key, example in super()._generate_examples(*args) if example['id'] in IDS)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data_dir', required=True, help='where the images go')
  builder = Subset(data_dir=parser.parse_args().data_dir, file_format='array_record')
  if builder.data_path.exists():
    raise InputError(f'{builder.data_path} exists: choose another --data_dir.')
  builder.download_and_prepare()
  print({name: split.num_examples for name, split in builder.info.splits.items()})


if __name__ == '__main__':
  try:
    main()
  except InputError as error:
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(2)
