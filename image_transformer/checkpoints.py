"""Checkpoints in `workdir/checkpoints`, written by Orbax: atomic, asynchronous, verified when they are read."""

from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import os
import re
import tempfile
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from image_transformer import devices
from image_transformer.errors import InputError, RunError
from image_transformer.paths import is_address
from image_transformer.stopping import Stopped
from image_transformer.workdir import warn

# What Orbax raises when the disk is full, on one process and on several.
_SAVE_ERRORS = OSError, ValueError, jax.errors.JaxRuntimeError
_ATTEMPTS = 3  # to save a checkpoint before the process ends


def saved_steps(workdir: epath.PathLike) -> list[int]:
  """The steps saved in a workdir, oldest first; the workdir need not exist."""
  folder = epath.Path(workdir) / 'checkpoints'
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


class Checkpoints:
  """Saves and restores training states; a context manager.

  Args:
    workdir: the workdir of the run.
    keep: how many checkpoints to keep; None: read only.
    every: the number of steps between regular checkpoints. An extra one, saved when a run is
      stopped, is kept only until the next, so that it does not displace a regular one.
  """

  def __init__(self, workdir: epath.PathLike, keep: int | None = None, every: int = 1):
    self._workdir = epath.Path(workdir).resolve()
    self._folder = self._workdir / 'checkpoints'
    # Orbax takes some paths for patterns or addresses, and writes only names that are UTF-8: then it sees a link.
    self._link = contextlib.ExitStack()
    self._seen = self._folder
    if not is_address(self._folder) and re.search(r'[^\w/. -]', os.fspath(self._folder)):
      link = epath.Path(self._link.enter_context(tempfile.TemporaryDirectory())) / 'run'
      os.symlink(self._workdir, link)
      self._seen = link / 'checkpoints'
    self._options = ocp.CheckpointManagerOptions(
        preservation_policy=_Preserve(keep or 1, every), read_only=keep is None, create=keep is not None,
        cleanup_tmp_directories=keep is not None)
    self._open()

  def _open(self):
    self._error = None
    self._manager = _Manager(self._seen, options=self._options)

  def __enter__(self):
    return self

  def __exit__(self, kind, *exception):
    if kind and jax.process_count() > 1 and not issubclass(kind, (Stopped, RunError)):
      return  # the other processes do not get here, so waiting for them would hang
    self.failed(wait=True)
    self._manager.close()
    self._link.close()

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: Any) -> None:
    """Starts saving a tree of arrays for a step, unless that step is already saved; `failed` gives the outcome."""
    self.failed(wait=True)
    if step in self.steps:
      return
    host_state = jax.device_get(state)
    items = ocp.args.Composite(state=ocp.args.StandardSave(host_state),
                               digest=ocp.args.JsonSave({'sha256': _digest(host_state)}))
    try:
      self._manager.save(step, args=items)
    except _SAVE_ERRORS as error:
      self._error = error

  def failed(self, wait: bool = False) -> bool:
    """Whether the last save failed, reported once; a save in progress counts as not failed, unless `wait` is set.

    After a failure older checkpoints are intact, and `save` may be called again. Every process must call this.
    """
    error, self._error = self._error, None
    if not error and (wait or not self._manager.is_saving_in_progress()):
      try:
        self._manager.wait_until_finished()
      except _SAVE_ERRORS as late_error:
        error = late_error
    if not devices.any_process(error is not None):
      return False
    warn(f'a checkpoint could not be saved in {self._folder} ({_reason(error)}); the older ones are intact.')
    # After a failed save, the manager is inconsistent and has left a partial checkpoint; a new one cleans up.
    self._open()
    return True

  def save_surely(self, step: int, state: Any) -> None:
    """Saves, and waits until the save is complete.

    Raises:
      RunError: if every attempt fails.
    """
    for attempt in range(_ATTEMPTS):
      time.sleep(2 * attempt)
      self.save(step, state)
      if not self.failed(wait=True):
        return
    kept = f'the newest one is of step {self.steps[-1]}' if self.steps else 'there is none'
    raise RunError(f'The checkpoint of step {step} could not be saved in {self._folder}; {kept}. Free disk space or '
                   'fix the permissions, then run the same command again.')

  def restore(self, like: Any) -> Iterator[Any]:
    """Yields the saved states, newest first, as host arrays with the structure of `like`.

    A checkpoint that cannot be read, or whose checksum does not match, is reported and skipped.

    Raises:
      InputError: if there are checkpoints, but all are damaged, or if one is removed while it is read.
    """
    # Broadcast zeros take up no RAM; they only tell Orbax the shapes and dtypes.
    like = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)
    steps, good = self.steps, 0
    for step in reversed(steps):
      reason, state = self._read(step, like)
      if devices.any_process(bool(reason)):
        reason = reason or _reason(None)
        if (self._folder / str(step)).exists():
          warn(f'checkpoint {self._folder / str(step)} is damaged and not used ({reason}).')
        else:  # by a run that goes on, whose newer checkpoints have taken its place
          raise InputError(f'Checkpoint {self._folder / str(step)} was removed while it was read: run the same command '
                           'again, for the newest one.')
      else:
        good += 1
        yield state
    if steps and not good:
      raise InputError(f'Every checkpoint in {self._folder} is damaged ({reason}): restore an intact one, or '
                       'start over in another workdir.')

  def _read(self, step, like):
    items = ocp.args.Composite(state=ocp.args.StandardRestore(like), digest=ocp.args.JsonRestore())
    try:
      restored = self._manager.restore(step, args=items)
      if _digest(restored['state']) != restored['digest']['sha256']:
        return 'its checksum does not match', None
      return '', restored['state']
    except (MemoryError, PermissionError):
      raise
    except Exception as error:  # a damaged file can raise anything
      return _reason(error), None

  def set_aside_after(self, step: int) -> None:
    """Moves checkpoints newer than `step`, all damaged, to `workdir/damaged_*`: the run will save those steps again."""
    damaged = [newer for newer in self.steps if newer > step]
    for newer in damaged if devices.is_first() else []:
      target = self._workdir / f'damaged_{newer}'
      if target.exists():
        target.rmtree()
      (self._folder / str(newer)).rename(target)
    if damaged:
      self._open()


class _Manager(ocp.CheckpointManager):

  def reached_preemption(self, step: int) -> bool:
    """Always false: the preemption service counts calls, and only `stopping.poll` may make them."""
    return False


@dataclasses.dataclass
class _Preserve(ocp.checkpoint_managers.PreservationPolicy):
  """Keeps the newest checkpoint, the newest `keep` regular ones and, if `keep` > 1, at least one to fall back to."""

  keep: int
  every: int

  def should_preserve(self, checkpoints, *, context):
    due = [info.step for info in checkpoints if info.step % self.every == 0][-self.keep:]
    newest = checkpoints[-2:] if len(due) < min(self.keep, 2) else checkpoints[-1:]
    return [info in newest or info.step in due for info in checkpoints]


def _digest(tree: Any) -> str:
  """SHA-256 of every array with its name, dtype and shape, to verify that what is read is what was saved."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def _reason(error: Exception | None) -> str:
  if error is None:
    return 'on another process'
  lines = str(error).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__
