"""Trained parameters as one file, `params.safetensors`, beside the run's `config.json`: small, and read by others.

Such a folder is a workdir for every mode but training, and can be started from with `init_from`. Those that come with
the program are in `weights/`, a link into the package.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from etils import epath
from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from image_transformer.config import Config
from image_transformer.errors import InputError, last_line
from image_transformer.workdir import write_whole

FILE = 'params.safetensors'
_SHIPPED = pathlib.Path(__file__).with_name('shipped')


def shipped() -> list[str]:
  """The names of the models that come with the program."""
  return sorted(path.parent.name for path in _SHIPPED.glob(f'*/{FILE}'))


def find(workdir: os.PathLike | str) -> os.PathLike | str:
  """The folder of a model that comes with the program, named NAME or weights/NAME; any other, or a run, as it is."""
  folder, name = _split(workdir)
  is_shipped = folder in ('', 'weights') and name in shipped()
  return _SHIPPED / name if is_shipped and _is_free(pathlib.Path(workdir)) else workdir


def lasting_path(workdir: str) -> str:
  """The same model from wherever the program runs. weights/NAME stays: `place` may make that folder at any time."""
  folder, name = _split(workdir)
  if folder == 'weights' and name in shipped():
    return f'weights/{name}'
  return os.path.abspath(os.path.expanduser(find(workdir)))


def _split(workdir):
  return os.path.split(os.fspath(workdir).rstrip('/'))


def _is_free(folder):
  """Whether nothing is there, or only what `place` left when it was stopped."""
  return not folder.exists() or folder.is_dir() and all(
      path.name in ('README.md', FILE) or path.suffix == '.part' for path in folder.iterdir())


def is_to_place(workdir: os.PathLike | str) -> bool:
  """Whether a folder, weights/NAME, is that of a model that comes with the program, and is not there yet."""
  return _split(workdir)[0] == 'weights' and find(workdir) != workdir


def place(workdir: str) -> str:
  """Copies the model that comes with the program as weights/NAME there, if needed: drawings are written beside it."""
  if is_to_place(workdir):
    found = find(workdir)
    for name in ('README.md', FILE, 'config.json'):  # the last one says that all are there
      if name != 'README.md' or not (epath.Path(workdir) / name).exists():
        write_whole(epath.Path(workdir) / name, epath.Path(found, name).read_bytes())
    print(f'Copied the weights that come with the program to {workdir}')
  return workdir


def write(folder: epath.Path, config: Config, params: Any, step: int) -> None:
  """Writes parameters and the configuration that they need, without paths of this machine."""
  flat = traverse_util.flatten_dict(params, sep='/')
  arrays = {name: np.ascontiguousarray(value) for name, value in flat.items()}
  content = safetensors.numpy.save(arrays, {'step': str(step), 'sha256': _digest(arrays)})
  own = dataclasses.replace(config, data_dir='', init_from='', folder=dataclasses.replace(config.folder, path=''))
  write_whole(folder / FILE, content)
  write_whole(folder / 'config.json', json.dumps(dataclasses.asdict(own), indent=2) + '\n')


def _digest(arrays):
  found = hashlib.sha256()
  for name in sorted(arrays):
    found.update(name.encode() + arrays[name].tobytes())
  return found.hexdigest()


def read(folder: epath.Path, like: Any) -> tuple[dict[str, Any], int]:
  """The parameters that `write` wrote, and their step.

  Args:
    folder: where they are.
    like: parameters of the same shapes and types.

  Raises:
    InputError: if the file is damaged, or of another network.
  """
  path = folder / FILE
  try:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], 'little')
    about = json.loads(content[8:8 + size])['__metadata__']
    step, flat = int(about['step']), safetensors.numpy.load(content)
    if about['sha256'] != _digest(flat):
      raise ValueError('its SHA-256 differs')
  except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
    raise InputError(f'{path} is damaged ({last_line(error)}): replace it with an intact one.') from error
  wanted = traverse_util.flatten_dict(like, sep='/')
  for name in sorted(flat.keys() | wanted.keys()):
    there, here = (f'{x.dtype} {x.shape}' if x is not None else None for x in (flat.get(name), wanted.get(name)))
    if there != here:
      raise InputError(f'{path} is of another network: {name} is {there} there, and {here} by config.json.')
  return traverse_util.unflatten_dict(flat, sep='/'), step
