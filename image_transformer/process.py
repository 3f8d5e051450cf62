"""How a process is set up: before JAX is imported, when much of this is read, and what libraries may say in it."""

import hashlib
import os
import pathlib
import platform
import sys
import warnings

from absl import logging

# The C library's allocator uses huge pages and keeps what it got: page faults slow a CPU run down.
_ALLOCATOR = ':'.join(f'glibc.malloc.{setting}'
                      for setting in ('hugetlb=1', 'mmap_max=0', 'trim_threshold=100000000000'))


def set_up() -> None:
  """To be called by a program before it imports anything large; what the user has set stays as it is.

  On Linux it starts the program once more, with another allocator. Compiled programs are kept between runs.
  """
  # In a log file, frequent progress bars would be all there is.
  os.environ.setdefault('TQDM_MININTERVAL', '0.2' if sys.stderr.isatty() else '20')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_cache_dir()))
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = _ALLOCATOR
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def hush_libraries() -> None:
  """Keeps warnings off the screen that Orbax, TFDS and tqdm give about their own settings, and no others."""
  theirs = lambda record: any(f'{os.sep}{name}{os.sep}' in record.pathname for name in ('orbax', 'tensorflow_datasets'))
  logging.get_absl_logger().addFilter(lambda record: record.levelname != 'WARNING' or not theirs(record))
  warnings.filterwarnings('ignore', 'IProgress not found')


def _cache_dir() -> pathlib.Path:
  """One for each kind of processor: what is compiled for one must not run on another that shares the folder."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    processor = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):
    processor = platform.processor()
  name = f'xla-{platform.machine()}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}'
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'image_transformer' / name
