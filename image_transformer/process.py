"""Process setup: the environment, which must be set before JAX is imported, and filters for libraries' warnings."""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
from typing import Any
import warnings

from absl import logging

# Makes the C library's allocator use huge pages and keep freed memory: page faults slow down CPU runs.
_ALLOCATOR = ':'.join(f'glibc.malloc.{setting}'
                      for setting in ('hugetlb=1', 'mmap_max=0', 'trim_threshold=100000000000'))


def set_up() -> None:
  """Prepares the process for the command; call it before any large import.

  Sets environment variables that the user has not set and, on Linux, restarts the program with other allocator
  settings. Compiled programs are cached between runs. Output that cannot be written is lost, and ends nothing.
  """
  _keep_output()
  warnings.simplefilter('ignore')  # those of libraries; the program prints its own
  with contextlib.suppress(RuntimeError):  # there is no home folder
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_cache_dir()))
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = _ALLOCATOR
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def hush_libraries() -> None:
  """Hides the warnings that Orbax, TFDS and tqdm give about their own settings, and no others."""
  theirs = lambda record: any(f'{os.sep}{name}{os.sep}' in record.pathname for name in ('orbax', 'tensorflow_datasets'))
  logging.get_absl_logger().addFilter(lambda record: record.levelname != 'WARNING' or not theirs(record))
  warnings.filterwarnings('ignore', 'IProgress not found')


class _Output:
  """A standard stream; once it cannot be written (a closed pipe, a full disk), it goes nowhere."""

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    self._try(self._stream.write, text)
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, action, *arguments):
    try:
      action(*arguments)
    except OSError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def _keep_output() -> None:
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:  # closed: a file opened later would take its place, and what libraries print
      os.open(os.devnull, os.O_RDWR)
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name) or open(os.devnull, 'w')
    stream.reconfigure(errors='backslashreplace')  # for names of files that the terminal cannot show
    setattr(sys, name, _Output(stream))


def _cache_dir() -> pathlib.Path:
  """A cache for each kind of processor: programs compiled for one must not run on another that shares the folder."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    processor = next(line for line in lines if line.startswith(('flags', 'Features')))
  except (OSError, StopIteration):
    processor = platform.processor()
  name = f'xla-{platform.machine()}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}'
  return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'image_transformer' / name
