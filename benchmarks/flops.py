"""How far training gets per FLOP: three sizes of a model, each trained with three budgets, on one of the data sets.

  python benchmarks/flops.py --dataset=digits --out=runs/flops
  python benchmarks/flops.py --dataset=cifar10 --data_dir=$DATA_DIR --out=runs/flops

CIFAR-10 is trained on by the recipe of `configs/cifar10_fast.py:smoke`, digits by `configs/digits.py`. Every run is one
`main.py` with the schedule of its own number of steps, scored on all test images; runs that are in the folder are not
run again. Writes DATASET.json and, of all data sets in the folder, flops.png: bits/dim against FLOPs of training, by
`start.training_flops`, with the frontier, the least bits/dim of any size up to a budget.
"""

import measuring  # first: it sets the process up

import json
import pathlib
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from image_transformer import data, experiments
from image_transformer.model import make_model
from image_transformer.start import training_flops

_DATASET = flags.DEFINE_enum('dataset', 'digits', ['digits', 'cifar10'], 'What to train on.')
_DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where the data sets are.')
_OUT = flags.DEFINE_string('out', 'runs/flops', 'Folder of results.')
_SHARE = flags.DEFINE_float('share', 1.0, 'Of each budget, for a trial.', lower_bound=0)

CONFIGS = {'digits': 'digits', 'cifar10': 'cifar10_fast:smoke'}
BUDGETS = {'digits': (4e11, 1.6e12, 6.4e12), 'cifar10': (2.5e11, 1e12, 4e12)}  # FLOPs
SIZES = {'2 layers, 32 wide': (2, 32), '3 layers, 64 wide': (3, 64), '4 layers, 128 wide': (4, 128)}


def train(size: str, budget: float) -> dict[str, float]:
  """Trains one size with one budget, and returns its line of results."""
  layers, width = SIZES[size]
  fields = {'model.num_layers': layers, 'model.hidden_size': width, 'model.ffn_size': 4 * width, 'model.num_heads': 4}
  config = experiments.load_config(CONFIGS[_DATASET.value], fields)
  step = training_flops(make_model(config.model, data.image_spec(config))) * config.train.batch_size
  steps = max(round(budget / step), 1)
  fields |= {'train.steps': steps, 'optimizer.warmup_steps': min(100, max(steps // 10, 1)), 'train.eval_every': 0,
             'train.sample_every': 0, 'sample.num_images': 1, 'sample.batch_size': 1, 'stand_in': False,
             'data_dir': _DATA_DIR.value}
  with tempfile.TemporaryDirectory() as workdir:
    subprocess.run([sys.executable, 'main.py', f'--config={CONFIGS[_DATASET.value]}', f'--workdir={workdir}/run',
                    *(f'--config.{name}={value}' for name, value in fields.items())], cwd=measuring.ROOT, check=True,
                   capture_output=True)
    result = json.loads(pathlib.Path(workdir, 'run', 'results.json').read_text())
  return {'FLOPs': steps * step, 'steps': steps, 'parameters': result['num_parameters'],
          'bits/dim': result['bits_per_dim'], 'standard error': result['standard_error'],
          'training seconds': result['training_seconds']}


def draw(out: pathlib.Path) -> Figure:
  """A panel for each data set in the folder: bits/dim against FLOPs by size, and the frontier."""
  found = {dataset: json.loads(path.read_text())['rows'] for dataset in CONFIGS
           if (path := out / f'{dataset}.json').exists()}
  figure = Figure(figsize=(5 * len(found), 4), dpi=110)
  FigureCanvasAgg(figure)
  for axes, (dataset, rows) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
    for size in SIZES:
      points = [(row['FLOPs'], row['bits/dim']) for row in rows if row['size'] == size]
      axes.plot(*zip(*points), 'o-', linewidth=1, label=size)
    budgets = sorted({row['budget'] for row in rows})
    best = [min(row['bits/dim'] for row in rows if row['budget'] <= budget) for budget in budgets]
    axes.plot(budgets, best, color='black', linestyle='--', linewidth=1, label='frontier', drawstyle='steps-post')
    axes.set(xscale='log', xlabel='FLOPs of training', ylabel='bits/dim of test images', title=dataset)
    axes.set_xticks(budgets, [f'{budget:.2g}' for budget in budgets])
    axes.xaxis.set_minor_formatter('')
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
  figure.tight_layout()
  return figure


def main(argv):
  del argv
  out = pathlib.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  path = out / f'{_DATASET.value}.json'
  rows = json.loads(path.read_text())['rows'] if path.exists() else []
  for budget in BUDGETS[_DATASET.value]:
    for size in SIZES:
      if any((row['size'], row['budget']) == (size, budget * _SHARE.value) for row in rows):
        continue
      rows.append({'size': size, 'budget': budget * _SHARE.value, **train(size, budget * _SHARE.value)})
      measuring.write('flops', rows, str(path))
      measuring.table(rows[-1:])
  measuring.table(rows)
  draw(out).savefig(out / 'flops.png')


if __name__ == '__main__':
  app.run(main)
