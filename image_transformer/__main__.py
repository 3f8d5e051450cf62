"""Entry point of the command: handles signals and sets up the process before any large import."""

import os
import signal
import sys


def _stop_before_all(*_):
  try:
    os.write(2, b'Stopped before anything was done. The same command starts over.\n')
  finally:
    os._exit(75)


def main() -> None:
  """Runs the command and exits."""
  for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, 'SIGHUP', signal.SIGTERM)):
    if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
      signal.signal(number, _stop_before_all)
  from image_transformer import process
  process.set_up()
  from image_transformer import cli, stopping
  exit_code = cli.main(sys.argv)
  stopping.stop_listening()
  sys.exit(exit_code)


if __name__ == '__main__':
  main()
