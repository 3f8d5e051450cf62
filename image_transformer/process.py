"""Process setup: the environment, which must be set before JAX is imported, and filters for libraries' warnings."""

import hashlib
import os
import pathlib
import platform
import sys
import warnings

from absl import logging

# Makes the C library's allocator use huge pages and keep freed memory: page faults slow down CPU runs.
_ALLOCATOR = ':'.join(f'glibc.malloc.{setting}'
                      for setting in ('hugetlb=1', 'mmap_max=0', 'trim_threshold=100000000000'))


def set_up() -> None:
  """Sets environment variables that the user has not set; call it before any large import.

  On Linux, restarts the program with other allocator settings. Compiled programs are cached between runs.
  """
  # Frequent updates of progress bars would fill a log file.
  os.environ.setdefault('TQDM_MININTERVAL', '0.2' if sys.stderr.isatty() else '20')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_cache_dir()))
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = _ALLOCATOR
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def hush_libraries() -> None:
  """Hides the warnings that Orbax, TFDS and tqdm give about their own settings, and no others."""
  theirs = lambda record: any(f'{os.sep}{name}{os.sep}' in record.pathname for name in ('orbax', 'tensorflow_datasets'))
  logging.get_absl_logger().addFilter(lambda record: record.levelname != 'WARNING' or not theirs(record))
  warnings.filterwarnings('ignore', 'IProgress not found')


def _cache_dir() -> pathlib.Path:
  """A cache for each kind of processor: programs compiled for one must not run on another that shares the folder."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    processor = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):
    processor = platform.processor()
  name = f'xla-{platform.machine()}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}'
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'image_transformer' / name
