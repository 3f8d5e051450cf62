"""The files of a run's workdir: its configuration, number of training images and parameters."""

from collections.abc import Iterator
import contextlib
import dataclasses
import itertools
import json
import re
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from image_transformer import config as config_lib
from image_transformer import devices, weights
from image_transformer.checkpoints import Checkpoints, saved_steps
from image_transformer.config import Config, check, flatten
from image_transformer.errors import InputError, shown
from image_transformer.model import ImageTransformer, init_params
from image_transformer.optimizers import make_optimizer
from image_transformer.paths import as_path
from image_transformer.state import init_state
from image_transformer.workdir import check_writable, lock, read_json, write_whole

# The fields that a run may change; all others define it.
_FREE = ('data_dir', 'stand_in', 'eval', 'sample', 'model.remat', 'model.attention', 'train.steps',
         'train.accumulation', 'train.log_every', 'train.checkpoint_every', 'train.keep_checkpoints',
         'train.eval_every', 'train.sample_every')


def read_config(workdir: epath.PathLike, what: str = 'the workdir') -> Config:
  """The configuration of a run; `what` names the folder in the message if there is none.

  Raises:
    InputError: if there is no readable config.json.
  """
  path = as_path(workdir) / 'config.json'
  try:
    return read_json(path, 'restore it, or choose another workdir.', config_lib.from_dict)
  except (FileNotFoundError, NotADirectoryError) as error:
    shipped = ', '.join(f'weights/{name}' for name in weights.shipped())
    raise InputError(f'There is no {path}: {what} must be the folder of a run, or a model that comes with the '
                     f'program ({shipped}).') from error


class TrainedOn(NamedTuple):
  """The images of a run, as `data.json` in its workdir describes them; None: unknown."""

  num_train_images: int | None = None
  digest: str | None = None  # as `batching.digest` returns it; absent in older runs


def read_trained_on(workdir: epath.Path) -> TrainedOn:
  """Reads `data.json`, if there is one.

  Raises:
    InputError: if it is damaged.
  """

  def checked(content):
    found = TrainedOn(content['num_train_images'], content.get('digest'))
    if type(found.num_train_images) is not int or not isinstance(found.digest, str | None):
      raise TypeError(f'it holds {shown(content)}')
    return found

  with contextlib.suppress(FileNotFoundError):
    return read_json(workdir / 'data.json', 'restore {"num_train_images": N} in it, or choose another workdir.',
                     checked)
  return TrainedOn()


def write_trained_on(workdir: epath.Path, images: TrainedOn) -> None:
  """Writes `data.json`."""
  write_whole(workdir / 'data.json', json.dumps(images._asdict()) + '\n')


@contextlib.contextmanager
def own(workdir: epath.Path, config: Config) -> Iterator[None]:
  """Claims a workdir for this run: locks it and writes config.json.

  Raises:
    InputError: if the workdir holds another run, or another process trains there; nothing is changed then.
  """
  error = None
  with contextlib.ExitStack() as stack:
    if devices.is_first():
      try:
        check_free(workdir, config)
        stack.enter_context(lock(workdir))
        write_config(workdir, config)
      except (InputError, OSError) as first_error:
        error = first_error
    if devices.any_process(error is not None):
      raise error or InputError(f'The first process cannot use {workdir}; its own message says why.')
    yield


def write_config(workdir: epath.Path, config: Config) -> None:
  """Writes config.json in a new workdir, in that of the same run, or in that of a run that saved nothing.

  Raises:
    InputError: if the workdir holds another run; nothing is changed then.
  """
  check_free(workdir, config)
  write_whole(workdir / 'config.json', json.dumps(dataclasses.asdict(config), indent=2) + '\n')


def check_workdir(workdir: epath.Path) -> None:
  """Checks that a run can be written to a folder, which need not exist.

  Raises:
    InputError: if it holds something else, or cannot be written.
  """
  if (workdir / weights.FILE).exists() or weights.is_to_place(workdir):
    raise InputError(f'{workdir} holds exported weights, which cannot be trained there; choose another workdir, with '
                     f'init_from={workdir} to begin with them.')
  # Files left by a process that was killed while it started a run, pictures drawn before it, logs of a scheduler.
  begun = re.compile(r'lock|config\.json\.\d+\.part|pictures|\..*|.*\.(log|out|err)')
  if not (workdir / 'config.json').exists() and workdir.is_dir() and any(
      not begun.fullmatch(path.name) for path in workdir.iterdir()):
    raise InputError(f'{workdir} is not empty and holds no run; choose another workdir.')
  check_writable(workdir, 'workdir')


def check_free(workdir: epath.Path, *configs: Config) -> None:
  """Checks that a run of one of these configurations can be written to a folder, or resumed there.

  Raises:
    InputError: if the folder holds something else, or cannot be written.
  """
  check_workdir(workdir)
  if saved_steps(workdir) or (workdir / 'results.json').exists():
    old = read_config(workdir)
    if all(differences(old, config) for config in configs):
      check_same_run(workdir, old, configs[0])
  step, steps = max(saved_steps(workdir), default=0), configs[0].train.steps
  check(step <= steps, 'train.steps', steps, f'at least {step}, the step of the run in {workdir}')


def check_same_run(workdir: epath.PathLike, old: Config, new: Config) -> None:
  """Raises InputError if a configuration defines another run than the one in the workdir."""
  changed = differences(old, new)
  if list(changed) == ['train.steps']:
    raise InputError(f'train.steps is {new.train.steps}, but the run in {workdir} trains {old.train.steps} steps, at '
                     'the last of which its cosine schedule lowers the learning rate to 0: give the same number, or '
                     f'train on from its parameters in another workdir, with init_from={workdir}.')
  if changed:
    shown_all = ', '.join(f'{field} ({there} there, {here} here)' for field, (there, here) in changed.items())
    raise InputError(f'{workdir} holds another run: {shown_all}. Choose another workdir.')


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """The fields in which two runs differ, with both values; those that a run may change do not count."""
  before, after = flatten(dataclasses.asdict(old)), flatten(dataclasses.asdict(new))
  # A cosine schedule ends at the last step, so the number of steps affects the whole run.
  free = set(_FREE) - ({'train.steps'} if new.optimizer.schedule == 'cosine' else set())
  return {field: (before[field], after[field]) for field in before
          if before[field] != after[field] and not free & {field, field.split('.')[0]}}


def load_params(workdir: epath.PathLike, config: Config, model: ImageTransformer,
                num_checkpoints: int = 1) -> tuple[dict[str, Any], int]:
  """The parameters and the step of the newest checkpoint, or the mean of the newest few (as for the paper's ImageNet).

  Args:
    workdir: the run.
    config: its configuration; `eval.ema` decides which parameters.
    model: its model.
    num_checkpoints: over how many checkpoints parameters are averaged.

  Raises:
    InputError: if there are too few checkpoints.
  """
  check(0 < num_checkpoints < 2**31, 'num_checkpoints', num_checkpoints, 'in 1..2^31-1')
  if not saved_steps(workdir) and (as_path(workdir) / weights.FILE).exists():
    check(num_checkpoints == 1, 'num_checkpoints', num_checkpoints, '1 for exported weights')
    exported = read_config(workdir).eval.ema
    check(config.eval.ema == exported or not config.train.ema_decay, 'eval.ema', config.eval.ema,
          f'{exported}: no others were exported')
    return weights.read(as_path(workdir), jax.eval_shape(lambda: init_params(model, 0)))
  if not saved_steps(workdir):
    raise InputError(f'There is no checkpoint in {workdir}; train first with the same workdir.')
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  like = jax.eval_shape(lambda: init_state(model, optimizer, config))
  with Checkpoints(workdir) as checkpoints:
    number, step, params = 0, 0, None
    # One after the other, so that only two are in RAM.
    for number, state in enumerate(itertools.islice(checkpoints.restore(like), num_checkpoints), 1):
      more = state.eval_params(config.eval.ema)
      step, params = max(step, int(state.step)), jax.tree.map(np.add, params, more) if params else more
  check(number == num_checkpoints, 'num_checkpoints', num_checkpoints,
        f'at most {number}, the number of checkpoints in {workdir}; train.keep_checkpoints decides how many')
  assert params is not None, 'there is at least one'
  return jax.tree.map(lambda x: x / np.float32(num_checkpoints), params) if num_checkpoints > 1 else params, step
