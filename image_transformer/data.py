"""Batches of images: TFDS's array_record files, read at random with Grain.

A training batch is a function of (seed, step), so that resuming needs no state
but the step. Batches are planned as indices, identically on every process, and
each process then reads only its share: process k of P takes the k-th of P equal
parts of every batch, and the parts in order are the batch of a single process.
"""

from collections.abc import Iterator, Sequence
import difflib
import os
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from image_transformer.config import ImageSpec, check
from image_transformer.datasets import SOURCES, Source
from image_transformer.errors import InputError

Batch = dict[str, np.ndarray]

# One thread keeps a few batches ahead of the step; more would only contend for
# the interpreter, since records are small and decoded in Python.
_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


def resolve_data_dir(data_dir: str) -> str:
  """Returns where datasets are kept: `data_dir`, or what TFDS would take if it is ''."""
  # TFDS itself reads the variable only once, when it is imported.
  return os.path.expanduser(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets')


def image_spec(dataset: str) -> ImageSpec:
  """Returns what the images of `dataset` are; raises InputError for an unknown name."""
  return _source(dataset).spec


def open_split(dataset: str, split: str, data_dir: str) -> Sequence[dict[str, Any]]:
  """Opens a split, preparing the dataset first where `data_dir` does not hold it.

  Args:
    dataset: a name in `datasets.SOURCES`.
    split: a TFDS split expression, such as 'train[:90%]'.
    data_dir: see `resolve_data_dir`.

  Returns:
    A random-access source of {'image': uint8 [H, W, C], 'label': int32 []}, the
    label only where the dataset has classes, in the order of storage.

  Raises:
    InputError: for an unknown dataset or split, an empty split, or a dataset that
      can be neither read nor prepared.
  """
  source = _source(dataset)
  data_dir = resolve_data_dir(data_dir)
  try:
    builder = _prepare(source, data_dir)
    _check_split(dataset, builder, split)
    keys = ('image', 'label') if source.spec.num_classes else ('image',)
    examples = builder.as_data_source(split)
    images = grain.MapDataset.source(examples).map(lambda example: _element(example, keys))
    shape = images[0]['image'].shape
  except InputError:
    raise
  except Exception as error:  # TFDS, protobuf and array_record each have their own
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(f'{dataset} cannot be read or prepared in {data_dir}/{source.builder.name} ({reason}); '
                     'mend or delete that directory, or set data_dir to another.') from error
  if shape != source.spec.shape:
    raise InputError(f'{dataset} in {builder.data_path} has images of shape {shape}, '
                     f'but must have {source.spec.shape}.')
  return images


def train_batches(source: Sequence, *, batch_size: int, seed: int, start_step: int, flip: bool = False,
                  process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
  """Yields this process's part of the batches from step `start_step` on, without end.

  Every image comes once in each len(source) draws, in an order that is new each time.

  Args:
    source: as `open_split` returns it; it may be smaller than a batch.
    batch_size: images per step over all processes.
    seed: in 0..2^32-1; a batch depends on (seed, step) alone.
    start_step: the first step; nothing before it is read.
    flip: mirrors each image left to right with probability 1/2.
    process_index: which part, 0..process_count - 1.
    process_count: in how many parts the batch is read.

  Returns:
    An iterator of {'image': uint8 [b, H, W, C], 'label': int32 [b]} as in
    `source`, b = batch_size / process_count.

  Raises:
    InputError: if process_count does not divide batch_size.
  """
  part = _part(batch_size, process_index, process_count)

  def plan(indices, rng):  # the generator is a function of (seed, step)
    return indices, rng.random(batch_size) < (0.5 if flip else 0)

  def load(planned):
    indices, flipped = (array[part] for array in planned)
    batch = _load(source, indices)
    batch['image'][flipped] = batch['image'][flipped, :, ::-1]
    return batch

  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
  batches = order.batch(batch_size).random_map(plan).map(load)
  return iter(batches[start_step:].to_iter_dataset(_READ_AHEAD))


def eval_batches(source: Sequence, *, batch_size: int, num_images: int = 0, process_index: int = 0,
                 process_count: int = 1) -> Iterator[Batch]:
  """Yields this process's part of the images: each exactly once, in order, in padded batches.

  Every process yields equally many batches, if need be of padding alone.

  Args:
    source: as `open_split` returns it.
    batch_size: images at a time over all processes.
    num_images: how many, from the start of `source`; 0: all.
    process_index: which part, 0..process_count - 1.
    process_count: in how many parts each batch is read.

  Returns:
    An iterator of {'image': uint8 [b, H, W, C], 'label': int32 [b], 'mask': bool
    [b]}, b = batch_size / process_count. Where the mask is false, the image is
    padding (a copy of the last one) and must not count.

  Raises:
    InputError: if `source` holds fewer images, or process_count does not divide batch_size.
  """
  check(num_images <= len(source), 'eval.num_images', num_images, f'at most {len(source)}, what the split holds')
  num_images = num_images or len(source)
  part = _part(batch_size, process_index, process_count)

  def load(step):
    positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
    return _load(source, np.minimum(positions, num_images - 1)) | {'mask': positions < num_images}

  num_batches = -(-num_images // batch_size)
  return iter(grain.MapDataset.range(num_batches).map(load).to_iter_dataset(_READ_AHEAD))


def _source(dataset: str) -> Source:
  if dataset not in SOURCES:
    near = difflib.get_close_matches(dataset, SOURCES, n=1)
    hint = f'did you mean {near[0]}?' if near else f'known: {", ".join(SOURCES)}.'
    raise InputError(f'Unknown dataset {dataset!r}; {hint}')
  return SOURCES[dataset]


def _prepare(source: Source, data_dir: str) -> tfds.core.DatasetBuilder:
  builder = source.builder(data_dir=data_dir)
  try:
    builder.download_and_prepare(file_format='array_record')
  except OSError:
    if not builder.data_path.exists():
      raise
    # Another process prepared it meanwhile, and TFDS would not overwrite that.
    builder = source.builder(data_dir=data_dir)
  return builder


def _check_split(dataset: str, builder: tfds.core.DatasetBuilder, split: str) -> None:
  splits = builder.info.splits
  if not splits:
    raise ValueError('it is incomplete')
  try:
    num_images = splits[split].num_examples
  except Exception:  # TFDS raises several kinds, assertions among them
    num_images = 0
  if not num_images:
    raise InputError(f'Split {split!r} of {dataset} names no images; known: {", ".join(splits)} '
                     "and parts of them, such as 'train[:90%]'.")


def _element(example: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  element = {key: example[key] for key in keys}
  return element | {'label': np.int32(element['label'])} if 'label' in element else element


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  check(batch_size % process_count == 0, 'batch_size', batch_size,
        f'a multiple of the number of processes, {process_count}')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _load(source: Sequence, indices: np.ndarray) -> Batch:
  elements = [source[int(index)] for index in indices]
  return {key: np.stack([element[key] for element in elements]) for key in elements[0]}
