"""Batches of images.

A training batch is a function of (seed, step), so that resuming needs no state
but the step. Batches are planned as indices, identically on every process, and
each process then reads only its share: process k of P takes the k-th of P equal
parts of every batch, and the parts in order are the batch of a single process.
"""

from collections.abc import Iterator, Sequence
import hashlib
from typing import Any

import grain
import numpy as np

from image_transformer.config import check

Batch = dict[str, np.ndarray]

# One thread keeps a few batches ahead of the step; more would only contend for
# the interpreter, since records are small and decoded in Python.
_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)

_KEPT_BYTES = 2**30


def digest(source: Sequence) -> str:
  """Identifies the images of a source and their texts: hashes up to 256 of them, evenly spaced."""
  found = hashlib.sha256()
  for index in np.unique(np.linspace(0, len(source) - 1, 256).astype(int)):
    example = source[index]
    for name in ('image', 'text'):
      found.update(example[name].tobytes() if name in example else b'')
  return found.hexdigest()[:16]


def train_batches(source: Sequence, *, batch_size: int, seed: int, start_step: int, flip: bool = False,
                  process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
  """Yields this process's part of the batches from step `start_step` on, without end.

  Every epoch holds every image once, in a new order.

  Args:
    source: as `open_split` returns it; it may be smaller than a batch.
    batch_size: images per step over all processes.
    seed: in 0..2^32-1; a batch depends on (seed, step) alone.
    start_step: the first step; nothing before it is read.
    flip: mirrors each image left to right with probability 1/2.
    process_index: which part, 0..process_count - 1.
    process_count: in how many parts the batch is read.

  Returns:
    An iterator of batches of `source`, {'image': uint8 [b, H, W, C], 'label': int32 [b], ...},
    b = batch_size / process_count.

  Raises:
    InputError: if process_count does not divide batch_size.
  """
  part = _part(batch_size, process_index, process_count)

  def plan(indices, rng):  # the generator is a function of (seed, step)
    return indices, rng.random(batch_size) < (0.5 if flip else 0)

  def load(planned):
    indices, flipped = (array[part] for array in planned)
    batch = _load(source, indices)
    for values in batch.values():
      if values.ndim >= 4:  # images, small ones too: downsampling commutes with mirroring
        values[flipped] = values[flipped][..., ::-1, :]
    return batch

  # As good as endless: of an endless sequence, Grain cannot make batches of one image.
  order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(2**60 // len(source))
  batches = order.batch(batch_size).random_map(plan).map(load)
  return iter(batches[start_step:].to_iter_dataset(_READ_AHEAD))


def eval_batches(source: Sequence, *, batch_size: int, num_images: int = 0, process_index: int = 0,
                 process_count: int = 1) -> Iterator[Batch]:
  """Yields this process's part of the images: each exactly once, in order, in padded batches.

  Every process yields the same number of batches, some of them only padding if need be.

  Args:
    source: as `open_split` returns it.
    batch_size: images at a time over all processes.
    num_images: how many, from the start of `source`; 0: all.
    process_index: which part, 0..process_count - 1.
    process_count: in how many parts each batch is read.

  Returns:
    An iterator of what `train_batches` yields. The last batch is padded with copies
    of the last image, which the caller must discard.

  Raises:
    InputError: if `source` holds fewer images, or process_count does not divide batch_size.
  """
  check(num_images <= len(source), 'eval.num_images', num_images, f'at most {len(source)}, the size of the split')
  num_images = num_images or len(source)
  part = _part(batch_size, process_index, process_count)

  def load(step):
    positions = np.arange(step * batch_size, (step + 1) * batch_size)[part]
    return _load(source, np.minimum(positions, num_images - 1))

  num_batches = -(-num_images // batch_size)
  return iter(grain.MapDataset.range(num_batches).map(load).to_iter_dataset(_READ_AHEAD))


def first_examples(source: Sequence, num_images: int) -> Batch:
  """The first examples of a source, in one batch."""
  return next(eval_batches(source, batch_size=num_images, num_images=num_images))


def keep_in_memory(source: Sequence) -> Sequence:
  """The same source, whose examples are decoded only once if all of them take at most 1 GiB."""
  size = sum(value.nbytes for value in source[0].values()) * len(source)
  return _Kept(source) if size <= _KEPT_BYTES else source


class _Kept(Sequence):
  """Examples that are decoded when first needed and then stay in memory."""

  def __init__(self, source: Sequence):
    self._source = source
    self._arrays = {key: np.empty((len(source), *value.shape), value.dtype) for key, value in source[0].items()}
    self._is_here = np.zeros(len(source), bool)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: Any) -> Any:
    return {key: values[0] for key, values in self.take(np.array([range(len(self))[index]])).items()}

  def take(self, indices: np.ndarray) -> Batch:
    for index in indices[~self._is_here[indices]].tolist():
      for key, value in self._source[index].items():
        self._arrays[key][index] = value
      self._is_here[index] = True
    return {key: array[indices] for key, array in self._arrays.items()}


def _part(batch_size: int, process_index: int, process_count: int) -> slice:
  check(batch_size % process_count == 0, 'batch_size', batch_size,
        f'a multiple of the number of processes, {process_count}')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _load(source: Sequence, indices: np.ndarray) -> Batch:
  if isinstance(source, _Kept):
    return source.take(indices)
  elements = [source[int(index)] for index in indices]
  return {key: np.stack([element[key] for element in elements]) for key in elements[0]}
