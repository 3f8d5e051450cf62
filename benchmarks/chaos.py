"""Kills training at random moments, starts it again, and compares what it ends with to an undisturbed run, bit for bit.

  python benchmarks/chaos.py [--kills=30] [--terms=10] [--seed=0] [--out=FILE.json]

First come SIGKILLs, then SIGTERMs, which must not lose a step; both fall while the program starts, compiles, steps,
saves, evaluates and draws. Whenever a run comes to its end, it is compared, and the next begins. Exit code 1 if
anything differs.
"""

import collections
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from absl import app
from absl import flags
import numpy as np
from tqdm import tqdm

from image_transformer import metrics

# Dropout, flips, averaged parameters, and something to do every few steps.
_FIELDS = {'model.num_layers': 1, 'model.hidden_size': 16, 'model.num_heads': 2, 'model.ffn_size': 16,
           'model.dropout': 0.1, 'train.batch_size': 8, 'train.steps': 400, 'train.flip': True, 'train.ema_decay': 0.9,
           'train.log_every': 7, 'train.checkpoint_every': 20, 'train.eval_every': 50, 'train.sample_every': 90,
           'eval.num_images': 60, 'eval.num_images_during_training': 40, 'eval.batch_size': 10,
           'sample.num_images': 10, 'sample.batch_size': 5}
_MOMENTS = {'train': 'step', 'evaluate': 'evaluation', 'sample': 'drawing'}  # by the name of the progress bar


class Chaos:
  """Runs of one configuration in a folder, disturbed or not."""

  def __init__(self, folder: pathlib.Path, seed: int = 0, **fields):
    self._folder = folder
    self._random = np.random.default_rng(seed)
    fields = {**_FIELDS, **fields}
    self._steps = fields['train.steps']
    self._command = [sys.executable, 'main.py', '--config=configs/digits.py', f'--config.data_dir={folder / "data"}',
                     *(f'--config.{name}={value}' for name, value in fields.items())]
    self._number = 0
    self.moments = collections.Counter()
    began = time.monotonic()
    undisturbed = self._start(folder / 'undisturbed')
    self._until(undisturbed, self._has_stepped)
    self._seconds_to_step = time.monotonic() - began
    assert undisturbed.wait() == 0, self._printed()
    self._seconds = time.monotonic() - began
    self._want = outcome(folder / 'undisturbed')

  def disturb(self, number: int, how: signal.Signals) -> list[str]:
    """Stops runs so many times, until the last has come to its end; returns what went wrong."""
    wrong, done = [], 0
    progress = tqdm(total=number, desc=how.name, unit='stop')
    while done < number:
      self._number += 1
      workdir = self._folder / f'a [b]* {self._number}'  # a path that is not taken for a pattern
      code, stopped_after = None, 0
      while code != 0:
        process = self._start(workdir)
        if done < number:
          self._wait(process)
          if process.poll() is None:
            moment = self._moment(workdir)
            self.moments[moment] += 1
            process.send_signal(how)
            done += 1
            progress.update()
        code = process.wait()
        printed = self._printed()
        if how == signal.SIGTERM and (started := re.search(r'^training  steps ([\d,]+) to', printed, re.MULTILINE)):
          if int(started[1].replace(',', '')) != stopped_after:
            wrong.append(f'{workdir}: began at {started[1]}, stopped after {stopped_after}')
        stopped_after = int((re.findall(r'Stopped after step (\d+)', printed) or [stopped_after])[-1])
        # Python itself takes a moment to start, in which nobody listens.
        if code not in (0, 75) and not (code == -how and (how == signal.SIGKILL or moment == 'start')):
          wrong.append(f'{workdir}: exit code {code}: {printed[-300:]}')
          break
      got = outcome(workdir) if code == 0 else {}
      wrong += [f'{workdir}: {name} differs' for name in got if got[name] != self._want[name]]
    progress.close()
    return wrong

  def _start(self, workdir):
    with open(self._folder / 'printed', 'w') as file:
      # Compilation is one of the moments.
      env = {**os.environ, 'PROGRESS_SECONDS': '0', 'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
      return subprocess.Popen([*self._command, f'--workdir={workdir}'], cwd=ROOT, env=env, stdout=file, stderr=file)

  def _printed(self):
    return (self._folder / 'printed').read_text()

  def _has_stepped(self):
    counts = [int(count) for count in re.findall(r'train: step (\d+) of', self._printed())]
    return len(set(counts)) > 1

  def _until(self, process, condition):
    while process.poll() is None and not condition():
      time.sleep(0.01)

  def _wait(self, process):
    """Until a random moment: of the start and compilation, or of all that comes after."""
    if self._random.random() < 0.3:
      time.sleep(self._random.uniform(0, self._seconds_to_step))
      return
    self._until(process, self._has_stepped)
    # Short enough that a run is stopped several times.
    time.sleep(self._random.uniform(0, 0.4 * (self._seconds - self._seconds_to_step)))

  def _moment(self, workdir):
    printed = self._printed()
    lines = re.findall('(train|evaluate|sample): ', printed)
    if list(workdir.glob('checkpoints/*tmp*')):
      return 'save'
    return _MOMENTS[lines[-1]] if self._has_stepped() else 'compilation' if 'compiling' in printed else 'start'


def outcome(workdir: pathlib.Path) -> dict:
  """What a run ended with, but for times and rates."""
  timed = ('images_per_second', 'seconds', 'training_seconds')
  lines = [{name: value for name, value in line.items() if name not in timed} for line in metrics.read_metrics(workdir)]
  results = json.loads((workdir / 'results.json').read_text())
  checkpoints = sorted(workdir.glob('checkpoints/*'))
  return {
      'metrics.jsonl': lines,
      'results.json': {name: value for name, value in results.items() if name not in timed},
      # SHA-256 of every array of the state. (That it is theirs, whoever loads them verifies.)
      'checkpoints': {path.name: (path / 'digest' / 'metadata').read_text() for path in checkpoints},
      'samples': {path.name: path.read_bytes() for path in workdir.glob('samples/*.png')},
  }


def main(_) -> int:
  args = flags.FLAGS
  with tempfile.TemporaryDirectory() as folder:
    chaos = Chaos(pathlib.Path(folder), args.seed)
    report = {'command': ' '.join(['python', 'benchmarks/chaos.py', *sys.argv[1:]]), 'seed': args.seed}
    wrong = []
    for how, number in ((signal.SIGKILL, args.kills), (signal.SIGTERM, args.terms)):
      chaos.moments.clear()
      found = chaos.disturb(number, how)
      wrong += found
      report[how.name] = {'number': number, 'moments': dict(chaos.moments), 'wrong': found}
      print(f'{how.name}: {number} at {dict(chaos.moments)}; {"; ".join(found) or "no difference"}')
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps({**report, **metrics.environment()}, indent=2) + '\n')
  return 1 if wrong else 0


if __name__ == '__main__':
  # Here, since a test imports this file beside main.py, which has flags of these names.
  flags.DEFINE_integer('kills', 30, 'How many SIGKILLs.')
  flags.DEFINE_integer('terms', 10, 'How many SIGTERMs.')
  flags.DEFINE_integer('seed', 0, 'Of the moments.')
  flags.DEFINE_string('out', None, 'JSON file to write.')
  app.run(main)
