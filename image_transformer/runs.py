"""What a finished or interrupted run left in its workdir, and how to load it."""

import dataclasses
import json
from typing import Any, NamedTuple

from etils import epath
import jax

from image_transformer import config as config_lib
from image_transformer import data
from image_transformer.checkpoints import Checkpoints, latest_step
from image_transformer.config import Config
from image_transformer.errors import InputError
from image_transformer.metrics import write_whole
from image_transformer.model import ImageTransformer, make_model
from image_transformer.optimizers import make_optimizer
from image_transformer.train import init_state

# What a run may change on the way; everything else defines it.
_FREE = ('data_dir', 'eval', 'sample', 'model.remat', 'train.steps', 'train.log_every', 'train.checkpoint_every',
         'train.keep_checkpoints', 'train.eval_every', 'train.sample_every')


class Run(NamedTuple):
  """A trained model."""

  config: Config
  model: ImageTransformer
  variables: dict[str, Any]  # {'params': ...}, averaged where `config.eval.ema` and there are any
  step: int


def read_config(workdir: epath.PathLike) -> Config:
  """The configuration of a run.

  Raises:
    InputError: if there is no readable config.json.
  """
  path = epath.Path(workdir) / 'config.json'
  try:
    return config_lib.from_dict(json.loads(path.read_text()))
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(f'There is no {path}: --workdir must be the folder of a run.') from error
  except ValueError as error:
    raise InputError(f'{path} cannot be used: {error}') from error


def write_config(workdir: epath.Path, config: Config) -> None:
  """Writes config.json, in a new workdir, over one of the same run, or over one that never got to a checkpoint.

  Raises:
    InputError: if the workdir holds another run; nothing is changed then.
  """
  if (workdir / 'config.json').exists():
    if latest_step(workdir) is not None:
      _check_same_run(workdir, read_config(workdir), config)
  elif workdir.exists() and any(workdir.iterdir()):
    raise InputError(f'{workdir} is not empty and holds no run; choose another --workdir.')
  workdir.mkdir(parents=True, exist_ok=True)
  write_whole(workdir / 'config.json', json.dumps(dataclasses.asdict(config), indent=2) + '\n')


def _check_same_run(workdir, old, new):
  old, new = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
  # A cosine ends at the last step, so there the number of steps shapes the whole run.
  free = set(_FREE) - ({'train.steps'} if new['optimizer.schedule'] == 'cosine' else set())
  changed = [f'{field} ({old[field]} there, {new[field]} here)' for field in old
             if old[field] != new[field] and not free & {field, field.split('.')[0]}]
  if changed:
    raise InputError(f'{workdir} holds another run: {", ".join(changed)}. Choose another --workdir.')


def _flatten(tree, prefix=''):
  flat = {}
  for name, value in tree.items():
    flat.update(_flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value})
  return flat


def load(workdir: epath.PathLike, config: Config | None = None) -> Run:
  """Loads the newest checkpoint of a run.

  Args:
    workdir: the run.
    config: its configuration, where fields that do not define the run (such as
      `data_dir` or `eval`) are to differ from the saved one.

  Raises:
    InputError: if there is no run or no checkpoint, or `config` is another run's.
  """
  saved = read_config(workdir)
  if config is not None:
    _check_same_run(workdir, saved, config)
  config = config or saved
  model = make_model(config.model, data.image_spec(config.dataset))
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  with Checkpoints(workdir) as checkpoints:
    state = checkpoints.restore(jax.eval_shape(lambda: init_state(model, optimizer, config)))
  return Run(config, model, {'params': state.eval_params(config.eval.ema)}, int(state.step))
