"""Paths that a user names: local ones, and addresses in buckets."""

import os
import re

from etils import epath

from image_transformer.checks import check
from image_transformer.errors import InputError, last_line


def is_address(path: os.PathLike | str) -> bool:
  """Whether a path is in a bucket, such as gs://bucket/run."""
  return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', os.fspath(path)))


def as_path(path: os.PathLike | str, name: str = 'path') -> epath.Path:
  """A path object; `~` is the home folder.

  Args:
    path: a path or an address.
    name: what messages call it.

  Raises:
    InputError: if there can be no such path, or what reads it is not installed.
  """
  text = os.fspath(path)
  check('\0' not in text, name, text, 'without null characters')
  if not is_address(text):
    text = re.sub('//+', '/', text)  # the same for the system, while `epath` takes any :// for an address
  try:
    found = epath.Path(text).expanduser()
    found.exists()
  except KeyError as error:
    raise InputError(f'{name} is {text}, an address of an unknown kind; known are gs:// and s3://.') from error
  except ImportError as error:
    raise InputError(f"{name} is {text}, which needs another package ({last_line(error)}): pip install -e "
                     "'.[gcs]' in the folder of this project (s3fs for s3://).") from error
  except OSError:
    pass  # a name that is too long, say; whoever opens it reports it
  check(not str(found).startswith('~'), name, text, 'a path whose user exists')
  return found
