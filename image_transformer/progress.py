"""The progress of long work, with its rate and the time left: a bar in a terminal, elsewhere a line now and then.

PROGRESS_SECONDS in the environment is the time between two lines.
"""

import datetime
import math
import os
import sys
import time

from tqdm import tqdm

from image_transformer import devices

try:
  _SECONDS = float(os.environ['PROGRESS_SECONDS'])
except (KeyError, ValueError):
  _SECONDS = 30.0


class _Lines:
  """Prints plain lines, for logs."""

  def __init__(self, what: str, unit: str, total: int, done: int, keep: bool):
    self._what, self._unit, self._total, self._start, self._keep = what, unit, total, done, keep
    self._began = time.monotonic()
    self._printed = -math.inf if keep else self._began

  def show(self, done: int, text: str) -> None:
    now = time.monotonic()
    if now - self._printed < _SECONDS and not (done == self._total and self._keep):
      return
    self._printed = now
    words = [f'{self._what}: {self._unit} {done} of {self._total}']
    if done > self._start and now > self._began:
      rate = (done - self._start) / (now - self._began)
      left = datetime.timedelta(seconds=round((self._total - done) / rate))
      words += [f'{rate:.3g} {self._unit}s/s', f'{left} left']
    print(', '.join([*words, *filter(None, [text])]), file=sys.stderr, flush=True)

  def close(self) -> None:
    pass


class _Bar:
  """Redraws one line of a terminal."""

  def __init__(self, what: str, unit: str, total: int, done: int, keep: bool):
    self._bar = tqdm(total=total, initial=done, unit=unit, desc=what, leave=keep)
    self._bar.unpause()

  def show(self, done: int, text: str) -> None:
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(done - self._bar.n)

  def close(self) -> None:
    self._bar.close()


class Progress:
  """Shows how far some work is; on the first process only. A context manager.

  The rate is measured from the first update, since what comes before is compilation for the most part.

  Args:
    what: the name of the work.
    unit: what is counted, in the singular.
    total: how many there are.
    keep: whether its last state stays on the screen.
  """

  def __init__(self, what: str, unit: str, total: int, keep: bool = False):
    self._what, self._unit, self._total, self._keep = what, unit, total, keep
    self._shown: _Bar | _Lines | None = None

  def update(self, done: int, text: str = '') -> None:
    """Shows that so many of all are done, and a text about them."""
    if not devices.is_first():
      return
    if self._shown is None:
      kind = _Bar if sys.stderr.isatty() else _Lines
      self._shown = kind(self._what, self._unit, self._total, done, self._keep)
    self._shown.show(done, text)

  def say(self, text: str) -> None:
    """Prints a line beside the progress."""
    if devices.is_first():
      tqdm.write(text, file=sys.stderr)

  def close(self) -> None:
    if self._shown:
      self._shown.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()
