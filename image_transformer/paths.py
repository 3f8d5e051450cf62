"""Paths that a user names: local ones, and addresses in buckets."""

import os
import re

from etils import epath

from image_transformer.errors import InputError


def is_address(path: os.PathLike | str) -> bool:
  """Whether a path is in a bucket, such as gs://bucket/run."""
  return bool(re.match(r'[A-Za-z][A-Za-z0-9+.-]*://', os.fspath(path)))


def as_path(path: os.PathLike | str) -> epath.Path:
  """A path object; `~` is the home folder.

  Raises:
    InputError: for an address of an unknown kind.
  """
  text = os.fspath(path)
  if not is_address(text):
    text = re.sub('//+', '/', text)  # the same for the system, while `epath` takes any :// for an address
  try:
    return epath.Path(text).expanduser()
  except KeyError as error:
    raise InputError(f'{text} is an address of an unknown kind; known are gs:// and s3://.') from error
