"""Image Transformer (Parmar et al., ICML 2018) in JAX and Flax.

  import image_transformer as it

  run = it.train(it.load_config('digits'), 'runs/digits')
  run = it.load('runs/digits')
  images = run.sample(10, label=3, temperature=0.9)

Submodules are imported on first use, so that a program can set up its process before JAX is imported.
"""

import importlib
from typing import Any

from image_transformer.process import hush_libraries

__version__ = '0.2.0'

_HOMES = {'Config': 'config', 'from_dict': 'config', 'load_config': 'experiments', 'InputError': 'errors',
          'RunError': 'errors', 'Run': 'library', 'load': 'library', 'Evaluation': 'metrics', 'train': 'training'}
__all__ = ['__version__', *_HOMES]

hush_libraries()


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
  return __all__
