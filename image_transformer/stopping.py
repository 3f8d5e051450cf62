"""Being stopped: SIGTERM and SIGINT are noted, and answered where a program can leave off with nothing lost."""

import os
import signal

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # "try again later" in sysexits.h: the same command goes on. Launch scripts restart on this alone.

_asked = False
_polls = 0


class Stopped(Exception):
  """The process was asked to stop, and does. The message says what is kept."""


def listen() -> None:
  """From now on, SIGTERM and SIGINT are answered by `poll`; the second signal ends the process at once.

  To be called before `jax.distributed.initialize`, whose preemption service listens for SIGTERM from then on.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, _note)


def stop_listening() -> None:
  """To be called when all is done: a signal while Python ends would otherwise change the exit code."""
  if not jax.distributed.is_initialized():  # which may have to wait for others
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, signal.SIG_IGN)


def poll() -> None:
  """Raises Stopped if this process, or another that works with it, was asked to stop.

  All processes must poll equally often: the preemption service makes them stop at the same poll.
  """
  global _polls
  _polls += 1
  if multihost_utils.reached_preemption_sync_point(_polls) if jax.process_count() > 1 else _asked:
    raise Stopped('Stopped. The same command begins again.')


def _note(number, _):
  global _asked
  if _asked:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
  _asked = True
  # Not `print`, which the signal may have interrupted.
  os.write(2, b'\nStopping as soon as the work in hand is done and saved. A second signal stops at once.\n')
  if number == signal.SIGINT and jax.distributed.is_initialized():
    os.kill(os.getpid(), signal.SIGTERM)
