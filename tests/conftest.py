"""What several files of tests share: the program in processes of its own."""

import multiprocessing
import os
import pathlib
import sys
import tempfile

import pytest

# Before JAX is imported. What runs once, on little, is not worth optimising: compiling takes most of the time.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=0'
# What one test compiles, the next need not, in whatever process.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _CACHE = tempfile.TemporaryDirectory()
  os.environ |= {'JAX_COMPILATION_CACHE_DIR': _CACHE.name, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
                 'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1'}

from image_transformer import cli as program

# Flags can be parsed only once in a process; a fork server makes new ones that have imported everything.
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(['image_transformer.cli'])


def _run_program(arguments, output):
  os.chdir(pathlib.Path(__file__).parent.parent)
  with open(output, 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.argv = ['main.py', *arguments]  # where ml_collections looks for --config.FIELD
  sys.exit(program.main(sys.argv))


@pytest.fixture(scope='session')
def call(tmp_path_factory):
  """Runs main with these arguments: its exit code, and all it printed."""
  output = tmp_path_factory.mktemp('output') / 'output'

  def run(*arguments):
    process = _FORKS.Process(target=_run_program, args=(arguments, output))
    process.start()
    process.join(600)  # a machine may be busy
    text = output.read_text()
    output.unlink()
    return process.exitcode, text

  return run
