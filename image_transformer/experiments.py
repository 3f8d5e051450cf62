"""The configurations that come with the package, by name: the files in `configs/`."""

from collections.abc import Mapping
import importlib
import pathlib
from typing import Any

from image_transformer.config import Config, fields, from_dict, unknown_field
from image_transformer.errors import InputError

_FOLDER = pathlib.Path(__file__).with_name('configs')


def names() -> list[str]:
  """The names of all configurations, such as 'digits'."""
  return sorted(path.stem for path in _FOLDER.glob('*.py') if 'def get_config(' in path.read_text())


def find(name: str) -> pathlib.Path:
  """The file of a configuration.

  Raises:
    InputError: if there is none of that name; the message lists all names.
  """
  if name not in names():
    raise InputError(f'There is no configuration {name!r}; give a file, or one of: {", ".join(names())}.')
  return _FOLDER / f'{name}.py'


def load_config(name: str, changes: Mapping[str, Any] = {}) -> Config:
  """Loads a configuration by name, with some fields changed.

  Args:
    name: such as 'digits', or 'cifar10_1d_dmol:smoke' for its variant.
    changes: values by field, such as {'train.steps': 100}.

  Raises:
    InputError: for an unknown name, variant or field, or a bad value.
  """
  name, _, variant = name.partition(':')
  module = importlib.import_module(f'image_transformer.configs.{find(name.removesuffix(".py")).stem}')
  tree = module.get_config(*[variant] if variant else []).to_dict()
  for field, value in changes.items():
    if field not in fields():
      raise unknown_field(field)
    *sections, last = field.split('.')
    branch = tree
    for section in sections:
      branch = branch[section]
    branch[last] = value
  return from_dict(tree)
