"""The images of a data set: TFDS's array_record files, prepared if need be, checked and opened for random access."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import io
import os
import pathlib
import sys
from typing import Any

from array_record.python import array_record_module
import grain
import numpy as np
import tensorflow_datasets as tfds

from image_transformer.batching import keep_in_memory
from image_transformer.conditions import Condition
from image_transformer.config import Config, ImageSpec, check
from image_transformer.datasets import DATASETS, Dataset, stand_in
from image_transformer.errors import InputError, MissingDataError, shown
from image_transformer.images import area_resize
from image_transformer.model import make_conditions
from image_transformer.paths import is_address
from image_transformer.workdir import nearest_existing

_ENOUGH = 10**9  # assumed number of images if it is unknown: no part of a split is then empty

_STAND_IN = 'generated_'  # prefix of the name of a dataset that generated images replace


def resolve_data_dir(data_dir: str) -> str:
  """Returns the directory of datasets: `data_dir`, or TFDS's default if it is ''.

  Raises:
    InputError: for the home of a user who does not exist, and for a bucket.
  """
  # TFDS itself reads the variable only once, when it is imported.
  path = os.path.expanduser(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')
  check(not path.startswith('~'), 'data_dir', path, 'a path whose user exists')  # otherwise a folder '~...' is made
  check(not is_address(path), 'data_dir', path, 'a local folder')
  return path


def image_spec(config: Config) -> ImageSpec:
  """Returns the format of the images of `config.dataset`, without opening it.

  Raises:
    InputError: for an unknown name.
  """
  return _dataset(config).spec


def check_data(config: Config) -> tuple[int | None, int | None]:
  """Checks the data settings of `config` as far as possible without opening or preparing the dataset.

  Returns:
    How many images there are to train on and to evaluate on; None where it is not known yet.

  Raises:
    InputError: if a split names no images, or holds fewer than `eval.num_images`, or `data_dir` is unusable.
  """
  dataset = _dataset(config)
  with _errors_in_one_line(config, dataset):
    builder = _builder(dataset, config)
    train, test = (_expected(config, dataset, builder, split) for split in (config.train.split, config.eval.split))
  if test is not None:
    check(config.eval.num_images <= test, 'eval.num_images', config.eval.num_images,
          f'at most {test}, the size of {config.eval.split}')
  return train, test


def open_split(config: Config, split: str) -> Sequence[dict[str, Any]]:
  """Opens a split, preparing the dataset first if it is not in the data directory.

  Args:
    config: names the dataset and the model's conditions.
    split: a TFDS split expression, such as 'train[:90%]'.

  Returns:
    A random-access source, in storage order, of {'image': uint8 [H, W, C], 'label': int32 []} and
    the values of all conditions by name, such as 'low_res': uint8 [H / upscale, W / upscale, C];
    without classes there is no label. If larger images are stored, both image and low_res are
    downsampled from them, as in tensor2tensor. What takes little memory is decoded only once.

  Raises:
    MissingDataError: if the dataset is not available.
    InputError: for an unknown dataset or split, an empty split, or a dataset that
      can be neither read nor prepared.
  """
  spec, dataset = image_spec(config), _dataset(config)
  with _errors_in_one_line(config, dataset):
    builder = _prepare(dataset, config, split)
    _count(config, builder.info.splits, split)
    _check_files(builder.info.splits[split])
    examples = _Examples(config, dataset, builder.as_data_source(split))
    shape = examples[0]['image'].shape
  if shape not in (spec.stacked_shape, dataset.stored):
    raise InputError(f'{config.dataset} in {builder.data_path} has images of shape {shape}, '
                     f'but must have {dataset.stored or spec.stacked_shape}.')
  conditions = make_conditions(config.model, spec)
  source = grain.MapDataset.source(examples).map(lambda example: _element(example, spec, conditions))
  return keep_in_memory(source)


def full_size(config: Config, split: str) -> int | None:
  """Returns the official number of images in a split; None for part of a split, or if there is no such number."""
  return _dataset(config).sizes.get(split)


def note(config: Config) -> str:
  """Returns one line that says which data this is, if it is easily mistaken for other data; else ''."""
  dataset = _dataset(config)
  with _errors_in_one_line(config, dataset):
    text = dataset.note(_builder(dataset, config))
  return text and f'{config.dataset}: {text}'


def as_stand_in(config: Config) -> Config:
  """Returns `config` with generated images for its dataset."""
  return dataclasses.replace(config, dataset=_STAND_IN + config.dataset)


def with_stand_in(config: Config) -> Config:
  """Returns `config`, with generated images for its dataset if `config.stand_in` and it is not available.

  Prepares the dataset if possible. A damaged dataset raises InputError; it is never replaced.
  """
  if config.stand_in:
    dataset = _dataset(config)
    try:
      with _errors_in_one_line(config, dataset):
        _prepare(dataset, config)
    except MissingDataError:
      return as_stand_in(config)
  return config


def is_stand_in(config: Config) -> bool:
  """Returns whether the dataset is generated images in place of a missing one, so that its numbers are not results."""
  return config.dataset.startswith(_STAND_IN)


class _Examples:
  """Stored examples; one that cannot be read raises InputError, in any thread."""

  def __init__(self, config: Config, dataset: Dataset, examples: Sequence):
    self._config, self._dataset, self._examples = config, dataset, examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    with _errors_in_one_line(self._config, self._dataset):
      return self._examples[index]


def _dataset(config: Config) -> Dataset:
  name = config.dataset.removeprefix(_STAND_IN)
  if name not in DATASETS:
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f'did you mean {near[0]}?' if near else f'known: {", ".join(DATASETS)}.'
    raise InputError(f'Unknown dataset {shown(config.dataset)}; {hint}')
  dataset = DATASETS[name](config)
  return dataset if name == config.dataset else stand_in(name, dataset)


@contextlib.contextmanager
def _errors_in_one_line(config: Config, dataset: Dataset) -> Iterator[None]:
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # TFDS, protobuf and array_record each raise their own
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(f'{config.dataset} cannot be read or prepared in {resolve_data_dir(config.data_dir)}/'
                     f'{dataset.builder.name} ({reason}); restore that directory, or set data_dir to '
                     'another.') from error


def _builder(dataset: Dataset, config: Config) -> tfds.core.DatasetBuilder:
  """The builder of a dataset; rejects directories that hold it in a way that cannot be used, and never writes there."""
  root = pathlib.Path(resolve_data_dir(config.data_dir))
  of_version, of_dataset = (root / 'dataset_info.json').exists(), root.name == dataset.builder.name
  if of_version or of_dataset and any(root.glob('*/dataset_info.json')):
    check(False, 'data_dir', str(root), 'the folder that holds datasets, not one of a dataset; here perhaps '
          f'{root.parent.parent if of_version else root.parent}')
  builder = dataset.builder(data_dir=root, config=dataset.config)
  if not builder.data_path.exists():
    versions = pathlib.Path(builder.data_path).parent.glob('[0-9]*/dataset_info.json')
    others = sorted(path.parent.name for path in versions)
    check(not others, 'data_dir', str(root), f'one that holds version {builder.version} of {config.dataset}, not '
          f'{" and ".join(others)}, or nothing of it')
    dataset.check(builder)
  elif builder.info.splits and (kind := builder.info.file_format.value) != 'array_record':
    raise InputError(f'{config.dataset} in {builder.data_path} is stored as {kind}, which only TensorFlow reads: '
                     'prepare it with tfds build --file_format=array_record, or set data_dir to another folder, where '
                     'it will be prepared.')
  return builder


def _prepare(dataset: Dataset, config: Config, *needed: str) -> tfds.core.DatasetBuilder:
  """Prepares the dataset; rejects splits that do not exist before anything is written."""
  builder = _builder(dataset, config)
  for split in needed:
    _expected(config, dataset, builder, split)
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  if not builder.data_path.exists():
    print(f'preparing {config.dataset} in {builder.data_path}', file=sys.stderr)
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces sizes, most of which it does not know
      builder.download_and_prepare(file_format='array_record')
  except OSError:
    if not builder.data_path.exists():
      raise
    # Another process has prepared it meanwhile, and TFDS does not overwrite.
    builder = _builder(dataset, config)
  return builder


def _expected(config: Config, dataset: Dataset, builder: tfds.core.DatasetBuilder, split: str) -> int | None:
  """The number of images in a split, now or once it is prepared; None if it is not known yet."""
  if builder.info.splits:
    return _count(config, builder.info.splits, split)
  there = nearest_existing(resolve_data_dir(config.data_dir))
  check(there.is_dir() and os.access(there, os.W_OK), 'data_dir', resolve_data_dir(config.data_dir),
        f'a folder that can be written to, unlike {there}')
  infos = [tfds.core.SplitInfo(
      name=name, shard_lengths=[size or _ENOUGH], num_bytes=0, filename_template=tfds.core.ShardedFileTemplate(
          data_dir='', dataset_name=config.dataset, split=name, filetype_suffix='array_record'))
           for name, size in dataset.sizes.items()]
  if 'shard' in split:  # TFDS decides on the number of shards when it writes them
    return None
  count = _count(config, tfds.core.SplitDict(infos), split)
  return count if None not in dataset.sizes.values() else None


def _count(config: Config, splits: tfds.core.SplitDict, split: str) -> int:
  if not splits:
    raise ValueError('it is incomplete')
  try:
    count = splits[split].num_examples
  except Exception:  # TFDS raises several kinds, assertions among them
    count = 0
  if count <= 0:
    raise InputError(f'Split {shown(split)} of {config.dataset} is unknown or empty; known: {", ".join(splits)} '
                     "and parts of them, such as 'train[:90%]'.")
  return count


def _check_files(split: tfds.core.SplitInfo) -> None:
  """Checks the number of records, which another file holds: their own checksums do not reveal missing ones."""
  for part in split.file_instructions:
    reader = array_record_module.ArrayRecordReader(os.fspath(part.filename))
    count = reader.num_records()
    reader.close()
    if count != part.examples_in_shard:
      raise ValueError(f'{os.path.basename(part.filename)} holds {count:,} records, but dataset_info.json says '
                       f'{part.examples_in_shard:,}')


def _element(example: dict[str, Any], spec: ImageSpec, conditions: Mapping[str, Condition]) -> dict[str, Any]:
  stored = example['image']
  element = {'image': stored.reshape(spec.shape) if stored.shape == spec.stacked_shape else
                      area_resize(stored, spec.height, spec.width)}
  if spec.num_classes:
    element['label'] = np.int32(example['label'])
  return element | {name: condition.of_example(example) for name, condition in conditions.items()}
