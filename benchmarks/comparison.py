"""The paper's choices on real images, in small: block sizes (table 4), 1D and 2D, likelihoods, averaged parameters.

  python benchmarks/comparison.py train --data_dir=$DATA_DIR --out=runs/comparison    # what is not there yet; hours
  python benchmarks/comparison.py report --out=runs/comparison                        # table.md and curves.png

Every run is one `main.py`, on one core, several side by side. All have the same layers, widths, steps, batches and
seeds; only what the name of a run says differs. A position is a pixel, but for the categorical runs, where it is one
of a pixel's three intensities and blocks are three times as long, to be the same pixels.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent

_SAME = {
    'train.steps': 1500,
    'train.batch_size': 4,
    'train.ema_decay': 0.99,
    'train.eval_every': 250,
    'sample.num_images': 10,
    'sample.batch_size': 10,
    'model.embedding_gain': 20.0,
}


def _blocks(query, flange=None):
  return {'model.query_block': query, 'model.memory_flange': flange or query}


# By name: the configuration, and what differs from its small form besides `_SAME`.
RUNS = {
    'block 8': ('cifar10_1d_dmol', _blocks((8,))),
    'block 16': ('cifar10_1d_dmol', _blocks((16,))),
    'block 64': ('cifar10_1d_dmol', _blocks((64,))),
    'block 256': ('cifar10_1d_dmol', _blocks((256,))),
    # 64 pixels of memory above and to the left: as many as in 'block 64'.
    '2D, 8x8': ('cifar10_2d_dmol', _blocks((8, 8), (4, 2))),
    'categorical, block 64': ('cifar10_1d', _blocks((192,))),
}
AVERAGED = 'block 64'  # its parameters without averaging are evaluated too
ONE_SEED = 'categorical, block 64'  # takes as long as all others of a seed


def folder(out: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  return out / f'{name.replace(",", "").replace(" ", "_")}_seed_{seed}'


def train(out: pathlib.Path, data_dir: str, num_seeds: int, num_jobs: int) -> None:
  """Trains and evaluates what is missing; a stopped run is resumed."""
  cores: queue.SimpleQueue[int | None] = queue.SimpleQueue()
  allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [None]
  for job in range(num_jobs):
    cores.put(allowed[job % len(allowed)])

  def on_one_core(name, seed):
    core = cores.get()
    try:
      if core is not None:
        os.sched_setaffinity(0, {core})  # of this thread and of the processes that it starts
      _train_and_evaluate(folder(out, name, seed), name, seed, data_dir)
    finally:
      cores.put(core)

  jobs = [(ONE_SEED, 0), *((name, seed) for seed in range(num_seeds) for name in RUNS if name != ONE_SEED)]
  with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
    for done in [pool.submit(on_one_core, *job) for job in jobs]:
      done.result()


def _train_and_evaluate(here, name, seed, data_dir):
  results, averaged, raw = (here / f'{name}.json' for name in ('results', 'averaged', 'raw'))
  if averaged.exists():  # a stop came while the parameters without averaging were evaluated
    averaged.replace(results)
  if not results.exists():
    _run(here, name, seed, data_dir)
  if name == AVERAGED and not raw.exists():
    averaged.write_text(results.read_text())
    _run(here, name, seed, data_dir, '--mode=eval', '--config.eval.ema=False')
    results.replace(raw)
    averaged.replace(results)
  print(name, seed, _bits(here), flush=True)


def _run(here, name, seed, data_dir, *more):
  config, fields = RUNS[name]
  fields = {**_SAME, **fields, 'seed': seed, 'data_dir': data_dir}
  command = [sys.executable, str(ROOT / 'main.py'), f'--config={ROOT}/configs/{config}.py:smoke', f'--workdir={here}',
             *(f'--config.{field}={value}' for field, value in fields.items()), *more]
  here.parent.mkdir(parents=True, exist_ok=True)
  with open(here.with_suffix('.log'), 'a') as log:
    subprocess.run(command, stdout=log, stderr=log, check=True)


def _bits(here, file='results.json'):
  return json.loads((here / file).read_text())['bits_per_dim']


def rows(out: pathlib.Path) -> dict[str, list[float]]:
  """Bits/dim on all test images by seed, of every kind of run that is there."""
  found = {}
  for name in RUNS:
    for title, file in (name, 'results.json'), (f'{name}, not averaged', 'raw.json'):
      here = [folder(out, name, seed) for seed in range(len(list(out.iterdir())))]
      if values := [_bits(one, file) for one in here if (one / file).exists()]:
        found[title] = values
  return found


def table(out: pathlib.Path) -> str:
  """Markdown: the mean over seeds and its standard error, then each seed."""
  lines = ['| run | bits/dim | by seed |', '|---|---|---|']
  for name, values in rows(out).items():
    error = f' +- {statistics.stdev(values) / len(values)**0.5:.3f}' if len(values) > 1 else ''
    lines.append(f'| {name} | {statistics.mean(values):.3f}{error} | '
                 f'{", ".join(f"{value:.3f}" for value in values)} |')
  return '\n'.join(lines) + '\n'


def curves(out: pathlib.Path) -> Figure:
  """Test bits/dim by step, as training measures them on its few images, mean of the seeds."""
  figure = Figure(figsize=(6, 4))
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for name in RUNS:
    by_step: dict[int, list[float]] = {}
    for log in out.glob(f'{folder(out, name, 0).name[:-1]}*/metrics.jsonl'):
      for line in map(json.loads, log.read_text().splitlines()):
        if line['split'] == 'test' and line['step'] < _SAME['train.steps']:
          by_step.setdefault(line['step'], []).append(line['bits_per_dim'])
    axes.plot(list(by_step), [statistics.mean(values) for values in by_step.values()], marker='.', label=name)
  axes.set(xlabel='step', ylabel='bits/dim of 64 test images')
  axes.legend(frameon=False, fontsize=8)
  figure.tight_layout()
  return figure


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=['train', 'report'])
  parser.add_argument('--out', type=pathlib.Path, default='runs/comparison', help='folder of the runs')
  parser.add_argument('--data_dir', default='', help='where the data sets are')
  parser.add_argument('--seeds', type=int, default=3, help='runs of each, with seeds from 0')
  parser.add_argument('--jobs', type=int, default=2, help='runs at a time, each on a core of its own')
  args = parser.parse_args()
  if args.what == 'train':
    train(args.out, args.data_dir, args.seeds, args.jobs)
  (args.out / 'table.md').write_text(table(args.out))
  curves(args.out).savefig(args.out / 'curves.png', dpi=110)
  print(table(args.out))


if __name__ == '__main__':
  main()
