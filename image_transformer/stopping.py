"""Stopping: SIGTERM, SIGINT and SIGHUP are recorded; the program stops at the next point where nothing is lost."""

import contextlib
import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # "try again later" in sysexits.h: the same command resumes. Launch scripts restart on this alone.

SIGNALS = [number for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, 'SIGHUP', None))
           if number and signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP

_asked = False
_polls = 0


class Stopped(Exception):
  """The process was asked to stop. The message says what is saved."""


def listen() -> None:
  """Makes `poll` stop the program after one of `SIGNALS`; a second signal ends the process at once.

  Call it before `jax.distributed.initialize`, whose preemption service takes over every SIGTERM.
  """
  # Python's own handlers would wait for the end of a compilation.
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  for number in SIGNALS:
    signal.signal(number, lambda *_: None)
  threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def tell_others() -> None:
  """Passes on an earlier signal to the other processes; call it once this process has joined them."""
  if _asked:
    os.kill(os.getpid(), signal.SIGTERM)


def stop_listening() -> None:
  """Ignores signals from now on; call it at the end, since a signal during exit would change the exit code."""
  if not jax.distributed.is_initialized():  # shutdown may have to wait for other processes
    for number in SIGNALS:
      signal.signal(number, signal.SIG_IGN)


def poll() -> None:
  """Raises Stopped if this process, or another of the same run, was asked to stop.

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
    with contextlib.suppress(OSError):  # one write, so that no other output comes between
      os.write(2, b'\nStopping after the current step, which will be saved. A second signal stops at once.\n')
    if jax.distributed.is_initialized():
      os.kill(os.getpid(), signal.SIGTERM)
