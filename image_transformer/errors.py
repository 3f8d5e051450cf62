"""Errors that end a run, each with a one-line message for the user."""

from collections.abc import Sequence
import re
from typing import Any

from absl import flags


def shown(value: Any) -> str:
  """The text of a value for a message, shortened if it is long."""
  try:
    text = repr(value)
  except ValueError:  # Python does not print integers of more than 4300 digits
    return 'an integer of thousands of digits'
  return text if len(text) <= 200 else f'{text[:100]}...{text[-50:]}'


def one_line(text: str) -> str:
  """Text with line breaks and other characters that cannot be printed as Python escapes them."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def some(items: Sequence) -> str:
  """The first few items for a message."""
  return ', '.join(map(str, items[:10])) + (', ...' if len(items) > 10 else '')


class InputError(ValueError):
  """A parameter, field, image, dataset or checkpoint that cannot be used.

  The message is one line: what is wrong, and what to do about it. The command
  prints it and exits with code 2.
  """

  def __init__(self, message: str):
    super().__init__(one_line(message))  # paths and other errors' texts may hold line breaks


class MissingDataError(InputError):
  """A dataset that is not available; a damaged one is a plain InputError."""


class NotAnImageError(InputError):
  """A file that is not an image, or whose format is not supported."""


class RunError(RuntimeError):
  """A run that cannot continue although its input is good. The command prints its one line and exits with code 1."""


def last_line(error: Exception) -> str:
  """What an error says, without the traceback that ml_collections puts before it."""
  cause = error.__cause__ or error
  if isinstance(cause, flags.Error) and 'Traceback' not in str(cause):
    return str(cause)  # with the line breaks that the user typed, if any
  text = str(cause).replace('\\n', '\n').strip() or type(cause).__name__
  return re.sub(r"^[\w.]*Error: |(?<=\?)['\"]$", '', text.splitlines()[-1].strip())
