"""From the command to the end of the first training step, less that step's own time: without and with what was compiled
before.

  python benchmarks/startup.py [--config=configs/cifar10_1d.py] [--batch_size=2] [--runs=2] [--out=FILE.json]

Each run is `python main.py` in a process of its own, on generated images that are already prepared, stopped after its
second step, whose time stands for the first's.
"""

import measuring  # first: it sets the process up

import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

_CONFIG = flags.DEFINE_string('config', 'configs/cifar10_1d.py', 'Configuration.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 2, 'Images of a step.')
_RUNS = flags.DEFINE_integer('runs', 2, 'Runs of each kind.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def start(workdir: pathlib.Path, data: pathlib.Path, cache: pathlib.Path) -> float:
  """Seconds until the end of the first step, less the second step's."""
  command = [sys.executable, 'main.py', f'--config={_CONFIG.value}', f'--workdir={workdir}',
             f'--config.data_dir={data}', '--config.stand_in=True', f'--config.train.batch_size={_BATCH_SIZE.value}']
  env = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}  # as the shell has it
  env |= {'PROGRESS_SECONDS': '0', 'JAX_COMPILATION_CACHE_DIR': str(cache)}
  began, ends, printed = time.perf_counter(), [], ''
  with subprocess.Popen(command, cwd=measuring.ROOT, env=env, stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE) as process:
    while len(ends) < 2:
      piece = os.read(process.stderr.fileno(), 4096).decode(errors='replace')
      if not piece:
        raise RuntimeError(f'It ended too early: {printed[-1000:]}')
      printed += piece
      steps = {int(step) for step in re.findall(r'train: step (\d+) of', printed)} - {0}
      ends += [time.perf_counter()] * (len(steps) - len(ends))
    process.kill()
  first, second = ends
  return 2 * first - second - began


def main(argv):
  del argv
  seconds = {'cold': [], 'warm': []}
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    start(folder / 'prepares', folder / 'data', folder / 'first_cache')
    for run in range(_RUNS.value):
      for kind, values in seconds.items():
        values.append(start(folder / f'{kind}_{run}', folder / 'data', folder / f'cache_{run}'))
  rows = [{'compilation cache': kind, 'median_seconds': statistics.median(values), 'seconds': values}
          for kind, values in seconds.items()]
  measuring.report('startup', rows, _OUT.value, config=_CONFIG.value, batch_size=_BATCH_SIZE.value)


if __name__ == '__main__':
  app.run(main)
