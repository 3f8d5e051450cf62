"""Stopping: SIGTERM and SIGINT are noted, and answered where the program can end with nothing lost."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # "try again later" in sysexits.h: the same command resumes. Launch scripts restart on this alone.

_asked = False
_polls = 0


class Stopped(Exception):
  """The process was asked to stop. The message says what is saved."""


def listen() -> None:
  """From now on, SIGTERM and SIGINT are answered by `poll`; the second signal ends the process at once.

  To be called before `jax.distributed.initialize`, whose preemption service takes SIGTERM over, each and every one.
  """
  # Python's own handlers would wait for the end of a compilation.
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def tell_others() -> None:
  """To be called once this process is one of several: passes on what came before."""
  if _asked:
    os.kill(os.getpid(), signal.SIGTERM)


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
    raise Stopped('Stopped. The same command starts over.')


def _watch(reader):
  global _asked
  while True:
    number, = os.read(reader, 1)
    if _asked:
      os._exit(128 + number)
    _asked = True
    # In one piece, whatever else is being printed.
    os.write(2, b'\nStopping after the current step, which will be saved. A second signal stops at once.\n')
    if jax.distributed.is_initialized():
      os.kill(os.getpid(), signal.SIGTERM)
