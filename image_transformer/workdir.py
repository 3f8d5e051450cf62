"""Files in a run's folder, local or in a bucket: atomic writes, a lock, and validated JSON."""

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import sys
from typing import Any

from etils import epath

from image_transformer import devices
from image_transformer.checks import check
from image_transformer.errors import InputError
from image_transformer.paths import as_path, is_address


def nearest_existing(path: os.PathLike | str) -> epath.Path:
  """A path, or the nearest folder around it that exists; links are followed, to nothing too."""
  whole = epath.Path(os.path.realpath(path))
  return next(folder for folder in (whole, *whole.parents) if folder.exists())


def check_writable(path: epath.Path, name: str) -> None:
  """Checks that a folder, or a file in one that may not exist yet, can be written; a message calls it by its name.

  Raises:
    InputError: if not; nothing is written.
  """
  if is_address(path):
    return
  nearest = nearest_existing(path)
  if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
    raise InputError(f'{path} cannot be written, since {nearest} is not a folder that can be written to; '
                     f'choose another {name}.')
  for part in epath.Path(os.path.realpath(path)).relative_to(nearest).parts:  # to be made
    try:
      os.lstat(nearest / part)
    except FileNotFoundError:
      pass
    except OSError as error:
      raise InputError(f'{path} cannot be made ({error}); choose another {name}.') from error


def new_path(path: os.PathLike | str, name: str) -> epath.Path:
  """The path of a file or folder to write, where nothing is yet, so that nothing is overwritten.

  Raises:
    InputError: if something is there, if only a link, or nothing can be written there; `name` is what it is called.
  """
  check(path, name, path, 'a file or a folder to write')
  found = as_path(path, name)
  check(not (found.exists() or os.path.islink(found)), name, os.fspath(path), 'one that does not exist yet')
  check_writable(found, name)
  return found


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes a file so that a crash leaves the old one or the new one, never half of it; on the first process only."""
  if not devices.is_first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')  # another process may write the same file
  with part.open('wb') as file:
    file.write(content.encode() if isinstance(content, str) else content)
    file.flush()
    # Object stores have no descriptor, and nothing to wait for.
    with contextlib.suppress(OSError, AttributeError):
      os.fsync(file.fileno())
  part.replace(path)


def parse_json(text: str | bytes, check: Callable[[Any], Any] = lambda value: value) -> Any:
  """Parses JSON and returns what `check` returns for it; `check` may raise ValueError, KeyError or TypeError.

  Raises:
    ValueError: if the text is malformed or fails the check.
  """
  try:
    return check(json.loads(text))
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(f'{type(error).__name__}: {error}') from error


def read_json(path: epath.Path, advice: str, check: Callable[[Any], Any] = lambda value: value) -> Any:
  """`parse_json` for a file.

  Raises:
    FileNotFoundError: if there is none.
    InputError: if it is malformed, with advice on what to do.
  """
  try:
    return parse_json(path.read_bytes(), check)
  except ValueError as error:
    raise InputError(f'{path} is damaged ({error}); {advice}') from error


@contextlib.contextmanager
def survive(action: str) -> Iterator[None]:
  """Reports a full disk or the like in one line, and continues: a log must not end a run."""
  try:
    yield
  except OSError as error:
    warn(f'{action} failed ({error}).')


def warn(text: str) -> None:
  """Prints a warning on a line of its own on stderr; on the first process only."""
  if devices.is_first():
    print(f'\nWarning: {text}', file=sys.stderr)


@contextlib.contextmanager
def lock(workdir: epath.Path) -> Iterator[None]:
  """Keeps other processes from training in a workdir, which is created if need be; the lock ends with the process.

  Object stores and some file systems have no locks; there nothing is locked.

  Raises:
    InputError: if another process trains there.
  """
  if is_address(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    yield
    return
  os.makedirs(os.path.realpath(workdir), exist_ok=True)  # it may be a link to a folder that does not exist yet
  import fcntl  # not on Windows
  with open(workdir / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(f'Another process trains in {workdir}: wait for it or stop it, or choose another '
                       'workdir.') from error
    except OSError as error:
      warn(f'{workdir} cannot be locked ({error}): do not train there twice at once.')
    yield
