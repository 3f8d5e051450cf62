"""Choices compared on real images, in small, by one of these experiments:

  paper    the paper's: block sizes (table 4), 1D and 2D, likelihoods, averaged parameters
  recipe   what the recipe of `configs/cifar10_fast.py` is made of, one change at a time
  blocks   block sizes again, by the recipe

  python benchmarks/comparison.py train --experiment=paper --data_dir=$DATA_DIR    # what is not there yet; hours
  python benchmarks/comparison.py report --experiment=paper                        # table.md and curves.png

Every run is one `main.py`, on one core, several side by side. All have the same steps, batches and seeds, and of the
paper's all have the same layers and widths; only what the name of a run says differs. A position is a pixel, but for
the categorical runs, where it is one of a pixel's three intensities and blocks are three times as long, to be the same
pixels. The recipe is chosen on the last tenth of the training split.
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
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent


class Experiment(NamedTuple):
  same: dict[str, Any]  # fields of all runs
  runs: dict[str, tuple[str, dict[str, Any]]]  # by name: the configuration, and what differs from its small form
  raw: tuple[str, ...] = ()  # runs whose parameters without averaging are evaluated too
  one_seed: tuple[str, ...] = ()  # runs that take long


_SHORT_RECIPE = {'train.steps': 2000, 'train.ema_decay': 0.99, 'train.eval_every': 250, 'sample.num_images': 10,
                 'sample.batch_size': 10}


def _blocks(query, flange=None):
  return {'model.query_block': query, 'model.memory_flange': flange or query}


def _fast(**fields):
  return 'cifar10_fast', {name.replace('__', '.'): value for name, value in fields.items()}


EXPERIMENTS = {
    'paper': Experiment(
        same={'train.steps': 1500, 'train.batch_size': 4, 'train.ema_decay': 0.99, 'train.eval_every': 250,
              'sample.num_images': 10, 'sample.batch_size': 10, 'model.embedding_gain': 20.0},
        runs={
            'block 8': ('cifar10_1d_dmol', _blocks((8,))),
            'block 16': ('cifar10_1d_dmol', _blocks((16,))),
            'block 64': ('cifar10_1d_dmol', _blocks((64,))),
            'block 256': ('cifar10_1d_dmol', _blocks((256,))),
            # 64 pixels of memory above and to the left: as many as in 'block 64'.
            '2D, 8x8': ('cifar10_2d_dmol', _blocks((8, 8), (4, 2))),
            'categorical, block 64': ('cifar10_1d', _blocks((192,))),
        },
        raw=('block 64',), one_seed=('categorical, block 64',)),
    'recipe': Experiment(
        same=_SHORT_RECIPE | {'train.split': 'train[:90%]', 'eval.split': 'train[90%:]'},
        runs={
            'the recipe': _fast(),
            'sine coordinates, gain 20': _fast(model__coordinates='sine', model__embedding_gain=20.0),
            'Adam, learning rate 0.004': _fast(optimizer__name='adam', optimizer__learning_rate=4e-3),
            'post-norm': _fast(model__norm='post'),
            'queries and keys not normalised': _fast(model__qk_norm=False),
            'biases of the embedding begin at 0': _fast(model__embedding_bias=0.0),
            'batch 4, half the steps': _fast(train__batch_size=4, train__steps=1000),
            'batch 1, twice the steps': _fast(train__batch_size=1, train__steps=4000),
            'learning rate 0.005': _fast(optimizer__learning_rate=5e-3),
            'learning rate 0.02': _fast(optimizer__learning_rate=2e-2),
            'memory 64': _fast(model__memory_flange=(64,)),
            'block 16': _fast(model__query_block=(16,)),
            '5 mixtures': _fast(model__num_mixtures=5),
        }),
    'blocks': Experiment(
        same=_SHORT_RECIPE,
        runs={f'block {size}': ('cifar10_fast', _blocks((size,))) for size in (8, 16, 64, 256)}),
}


def folder(out: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  return out / f'{name.replace(",", "").replace(" ", "_")}_seed_{seed}'


def train(experiment: Experiment, out: pathlib.Path, data_dir: str, num_seeds: int, num_jobs: int) -> None:
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
      _train_and_evaluate(experiment, folder(out, name, seed), name, seed, data_dir)
    finally:
      cores.put(core)

  jobs = [*((name, 0) for name in experiment.one_seed),
          *((name, seed) for seed in range(num_seeds) for name in experiment.runs if name not in experiment.one_seed)]
  with concurrent.futures.ThreadPoolExecutor(num_jobs) as pool:
    for done in [pool.submit(on_one_core, *job) for job in jobs]:
      done.result()


def _train_and_evaluate(experiment, here, name, seed, data_dir):
  if not (here / 'results.json').exists():
    _run(experiment, here, name, seed, data_dir)
  if name in experiment.raw and not (here / 'results_raw.json').exists():
    _run(experiment, here, name, seed, data_dir, '--mode=eval', '--config.eval.ema=False')
  print(name, seed, _bits(here), flush=True)


def _run(experiment, here, name, seed, data_dir, *more):
  config, fields = experiment.runs[name]
  fields = {**experiment.same, **fields, 'seed': seed, 'data_dir': data_dir}
  command = [sys.executable, str(ROOT / 'main.py'), f'--config={ROOT}/configs/{config}.py:smoke', f'--workdir={here}',
             *(f'--config.{field}={value}' for field, value in fields.items()), *more]
  here.parent.mkdir(parents=True, exist_ok=True)
  with open(here.with_suffix('.log'), 'a') as log:
    subprocess.run(command, stdout=log, stderr=log, check=True)


def _bits(here, file='results.json'):
  return json.loads((here / file).read_text())['bits_per_dim']


def rows(experiment: Experiment, out: pathlib.Path) -> dict[str, list[float]]:
  """Bits/dim on all test images by seed, of every kind of run that is there."""
  found = {}
  for name in experiment.runs:
    for title, file in (name, 'results.json'), (f'{name}, not averaged', 'results_raw.json'):
      here = [folder(out, name, seed) for seed in range(len(list(out.glob('*'))))]
      if values := [_bits(one, file) for one in here if (one / file).exists()]:
        found[title] = values
  return found


def table(experiment: Experiment, out: pathlib.Path) -> str:
  """Markdown: the mean over seeds and its standard error, then each seed."""
  lines = ['| run | bits/dim | by seed |', '|---|---|---|']
  for name, values in rows(experiment, out).items():
    error = f' +- {statistics.stdev(values) / len(values)**0.5:.3f}' if len(values) > 1 else ''
    lines.append(f'| {name} | {statistics.mean(values):.3f}{error} | '
                 f'{", ".join(f"{value:.3f}" for value in values)} |')
  return '\n'.join(lines) + '\n'


def curves(experiment: Experiment, out: pathlib.Path) -> Figure:
  """Bits/dim by step, as training measures them on its few images, mean of the seeds."""
  figure = Figure(figsize=(6, 4))
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  for name in experiment.runs:
    by_step: dict[int, list[float]] = {}
    for log in out.glob(f'{folder(out, name, 0).name[:-1]}*/metrics.jsonl'):
      for line in map(json.loads, log.read_text().splitlines()):
        if line['split'] != 'train' and line['num_images'] == 64:
          by_step.setdefault(line['step'], []).append(line['bits_per_dim'])
    axes.plot(list(by_step), [statistics.mean(values) for values in by_step.values()], marker='.', label=name)
  axes.set(xlabel='step', ylabel='bits/dim of 64 images')
  axes.legend(frameon=False, fontsize=8)
  figure.tight_layout()
  return figure


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('what', choices=['train', 'report'])
  parser.add_argument('--experiment', choices=EXPERIMENTS, default='paper', help='what is compared')
  parser.add_argument('--out', type=pathlib.Path, help='folder of the runs; by default runs/comparison/EXPERIMENT')
  parser.add_argument('--data_dir', default='', help='where the data sets are')
  parser.add_argument('--seeds', type=int, default=3, help='runs of each, with seeds from 0')
  parser.add_argument('--jobs', type=int, default=2, help='runs at a time, each on a core of its own')
  args = parser.parse_args()
  experiment, out = EXPERIMENTS[args.experiment], args.out or pathlib.Path('runs/comparison', args.experiment)
  if args.what == 'train':
    train(experiment, out, args.data_dir, args.seeds, args.jobs)
  elif not rows(experiment, out):
    parser.error(f'--out: {out} holds no finished runs of this experiment; train them first')
  (out / 'table.md').write_text(table(experiment, out))
  curves(experiment, out).savefig(out / 'curves.png', dpi=110)
  print(table(experiment, out))


if __name__ == '__main__':
  main()
