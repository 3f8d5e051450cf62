"""Metrics: bits/dim, and logs in metrics.jsonl and TensorBoard."""

from collections.abc import Callable
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import register_writer_factory

from image_transformer import devices
from image_transformer.workdir import parse_json, survive, write_whole

_FLUSH_SECONDS = 10


def bits_per_dim(nats: Any, num_dims: int) -> Any:
  """Bits per intensity from nats per image."""
  return nats / (num_dims * math.log(2))


def standard_error(values: np.ndarray, unit: float = 1) -> float | None:
  """The standard error of the mean of values [N], in multiples of a unit; None for a single value."""
  return float(values.std(ddof=1) / unit / math.sqrt(len(values))) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Bits/dim over a set of images, from their nats in float64."""

  nats: np.ndarray  # float64 [images], the negative log-probability of each
  num_dims: int

  @property
  def num_images(self) -> int:
    return len(self.nats)

  @property
  def bits_per_dim(self) -> float:
    return float(bits_per_dim(self.nats.mean(), self.num_dims))

  @property
  def standard_error(self) -> float | None:
    """The standard error of the mean over images, in bits/dim; None for a single image."""
    return standard_error(self.nats, self.num_dims * math.log(2))

  def __str__(self):
    error = '' if self.standard_error is None else f' +- {self.standard_error:.4f}'
    return f'{self.bits_per_dim:.4f}{error} bits/dim on {self.num_images} images'

  def as_dict(self) -> dict[str, float | None]:
    return {'bits_per_dim': self.bits_per_dim, 'standard_error': self.standard_error, 'num_images': self.num_images}


class _WholeFile:
  """An events file in a bucket, which cannot be appended to: every flush rewrites the whole file."""

  def __init__(self, path: str):
    self._path, self._content = epath.Path(path), bytearray()

  def write(self, content: bytes) -> None:
    self._content += content

  def flush(self) -> None:
    write_whole(self._path, bytes(self._content))

  def close(self) -> None:
    self.flush()


class _Bucket:
  """Tells tensorboardX to go through epath, as everything else does."""

  open = _WholeFile


for scheme in ('gs', 's3'):
  register_writer_factory(scheme, _Bucket)


def write_picture(workdir: epath.Path, step: int, name: str, picture: np.ndarray) -> None:
  """Adds a uint8 [height, width, 3] picture to TensorBoard's events of a run that is not training now."""
  if not devices.is_first():
    return
  board = EventsWriter(os.fspath(workdir / 'events'))
  board.write_event(event_pb2.Event(wall_time=time.time(), step=step,
                                    summary=summary.image(name, picture, dataformats='HWC')))
  board.close()


class MetricsLog:
  """Writes `metrics.jsonl` and TensorBoard's events in a workdir; a full disk is only reported.

  `metrics.jsonl` is rewritten as a whole, since object stores cannot append and a crash must not leave half a line.
  Opening it keeps the earlier lines for which `keep(line)` is true, and removes the others, which a resumed run will
  write again.
  """

  def __init__(self, workdir: epath.Path, keep: Callable[[dict[str, Any]], bool] = lambda line: True):
    self._path = workdir / 'metrics.jsonl'
    self._lines = [line for line in read_metrics(workdir) if keep(line)]
    self._board = None
    if devices.is_first():
      with survive('Writing TensorBoard events'):
        self._board = EventsWriter(os.fspath(workdir / 'events'))
    next_step = max((line['step'] for line in self._lines), default=-1) + 1
    self._show(next_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    self.flush()

  def has_evaluation(self, step: int) -> bool:
    """Whether there is a line of an evaluation at this step."""
    return any(line['step'] == step and 'num_images' in line for line in self._lines)

  def write(self, step: int, split: str, **values: float | None) -> None:
    """Adds one line, with `step` and `split` first; it reaches the file within seconds."""
    self._lines.append({'step': step, 'split': split, **values})
    for name, value in values.items():
      if value is not None:
        self._show(step, summary=summary.scalar(f'{split}/{name}', value))
    if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
      self.flush()

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a uint8 [height, width, 3] picture to TensorBoard."""
    self._show(step, summary=summary.image(name, picture, dataformats='HWC'))

  def write_text(self, name: str, text: str) -> None:
    self._show(0, summary=summary.text(name, text))

  def flush(self) -> None:
    """Writes everything to disk, including what could not be written before."""
    self._flushed_at = time.monotonic()
    with survive(f'Writing {self._path}'):
      write_whole(self._path, ''.join(json.dumps(line) + '\n' for line in self._lines))
    if self._board:
      with survive('Writing TensorBoard events'):
        self._board.flush()

  def close(self) -> None:
    self.flush()
    if self._board:
      with survive('Writing TensorBoard events'):
        self._board.close()

  def _show(self, step, **content):
    if self._board:
      with contextlib.suppress(OSError):  # `flush` reports it
        self._board.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
  """The lines of `metrics.jsonl` that are not damaged."""

  def check(line):
    if not isinstance(line['step'], int) or not isinstance(line.get('seconds', 0), (int, float)):
      raise TypeError('not a line of a log')
    return line

  path = workdir / 'metrics.jsonl'
  lines = []
  for text in path.read_bytes().splitlines() if path.exists() else []:
    with contextlib.suppress(ValueError):
      lines.append(parse_json(text, check))
  return lines


def training_seconds(workdir: epath.Path) -> float:
  """Wall-clock seconds of training so far, over all restarts."""
  return max((line['seconds'] for line in read_metrics(workdir) if 'seconds' in line), default=0.0)


def environment() -> dict[str, Any]:
  """Devices, commit and versions: what a measured number depends on besides its configuration."""
  return {
      'device_kind': jax.devices()[0].device_kind,
      'num_devices': jax.device_count(),
      'num_cpus': num_cpus(),
      'commit': _commit(),
      'versions': {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy')},
  }


def num_cpus() -> int | None:
  """Counts the CPUs that this process may use (`taskset` on Linux), or all of the machine if that is not known."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _commit() -> str | None:
  """The commit of the code that runs, with '+' where files differ from it; None outside a checkout."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  if not os.path.exists(os.path.join(root, '.git')):  # git would look for a repository in the folders above
    return None
  try:
    command = ['git', 'describe', '--always', '--abbrev=12', '--dirty=+', '--exclude=*']
    return subprocess.run(command, cwd=root, check=True, capture_output=True,
                          text=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
