"""Equal time on the same machine and images: our recipe, the paper's, and PixelCNN++.

  git clone https://github.com/pclucas14/pixel-cnn-pp runs/pixel-cnn-pp
  python3 -m venv runs/torch && runs/torch/bin/pip install torch numpy
  python benchmarks/race.py --data_dir=$DATA_DIR --minutes=10 --tune      # choose the settings of PixelCNN++
  python benchmarks/race.py --data_dir=$DATA_DIR --minutes=10 --seeds=3   # the race
  python benchmarks/race.py --data_dir=$DATA_DIR --minutes=60 --seeds=1

One run at a time, on all cores (`taskset -c 0` before a command: on one); what is already in the folder of results is
not run again. The time is that of training, ours with compilation; evaluations during training are not counted. The
recipe's network is that of its configuration for the minutes. Every contestant trains with the cosine schedule to the
end of its time, and is scored on all test images with averaged parameters. `--tune` scores on the last tenth of the
training images instead, for several widths, depths, rates and batches of PixelCNN++, and the race takes the best.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from image_transformer import batching, data, metrics
from image_transformer.config import Config

OURS = {
    'ours': ('cifar10_fast.py:smoke', {'train.flip': True}),  # up to half an hour; longer: `cifar10_fast.py`
    "the paper's, in small": ('cifar10_1d_dmol.py:smoke', {'train.flip': True, 'train.ema_decay': 0.999}),
}
CONTESTANTS = {'ours': 'recipe', "the paper's, in small": 'paper', 'PixelCNN++': 'pixelcnn'}  # and names of files
LOG_EVERY = 50  # steps
# blocks, filters, batch size, learning rate
PIXELCNN = [(1, 48, 8, 1e-3), (1, 32, 4, 2e-3), (2, 32, 4, 1e-3), (1, 64, 4, 1e-3), (1, 32, 2, 1e-3), (2, 48, 2, 1e-3)]


def write_images(path: pathlib.Path, data_dir: str, train: str, test: str) -> None:
  config = dataclasses.replace(Config(), data_dir=data_dir)
  arrays = {}
  for name, split in ('train', train), ('test', test):
    source = data.open_split(config, split)
    arrays[name] = batching.first_examples(source, len(source))['image']
  np.savez(path, **arrays)


def pixelcnn(args, out: pathlib.Path, settings, seed: int, splits) -> None:
  blocks, filters, batch_size, rate = settings
  with tempfile.TemporaryDirectory() as scratch:
    images = pathlib.Path(scratch, 'images.npz')
    write_images(images, args.data_dir, *splits)
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([args.python, 'benchmarks/peers/pixelcnn.py', f'--source={args.source}', f'--images={images}',
                    f'--seconds={60 * args.minutes}', f'--blocks={blocks}', f'--filters={filters}',
                    f'--batch_size={batch_size}', f'--learning_rate={rate}', f'--seed={seed}', f'--out={out}'],
                   cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
  kept = {name: metrics.environment()[name] for name in ('commit', 'num_cpus')}
  out.write_text(json.dumps(json.loads(out.read_text()) | kept, indent=2) + '\n')


def ours(args, out: pathlib.Path, name: str, seed: int) -> None:
  """Trains for as many steps as the time allows, by the speed of a short run."""
  file, fields = OURS[name]
  if name == 'ours' and args.minutes > 30:
    file = 'cifar10_fast.py'
  fields = {'train.log_every': LOG_EVERY, 'train.eval_every': 0, 'eval.num_images_during_training': 64,
            'sample.num_images': 1, 'sample.batch_size': 1, **fields, 'seed': seed, 'stand_in': False}
  with tempfile.TemporaryDirectory() as scratch:
    _, trial = _train(args, pathlib.Path(scratch, 'trial'), file, fields | {'train.steps': 8 * LOG_EVERY})
    first, last = min(trial), max(trial)
    seconds_per_step = (trial[last] - trial[first]) / (last - first)
    compilation = trial[first] - first * seconds_per_step
    steps = int((60 * args.minutes - compilation) / seconds_per_step)
    between = max(steps // 10 // LOG_EVERY, 1) * LOG_EVERY
    workdir = pathlib.Path(scratch, 'run')
    lines, seconds = _train(args, workdir, file, fields | {'train.steps': steps, 'train.eval_every': between})
    result = json.loads((workdir / 'results.json').read_text())
  curve = [{'seconds': seconds[line['step']], 'bits_per_dim': line['bits_per_dim']}
           for line in lines if line.get('num_images') == 64]
  kept = 'bits_per_dim', 'num_images', 'step', 'num_parameters', 'commit', 'versions', 'num_cpus'
  found = {name: result[name] for name in kept} | {
      'seconds': seconds[max(seconds)], 'curve': curve, 'settings': {'config': file, **fields}}
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(found, indent=2) + '\n')


def _train(args, workdir, file, fields):
  command = [sys.executable, 'main.py', f'--config=configs/{file}', f'--workdir={workdir}',
             f'--config.data_dir={args.data_dir}', *(f'--config.{name}={value}' for name, value in fields.items())]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  # Seconds of training at each logged step: those of evaluations are not in the rates of the log.
  batch_size = json.loads((workdir / 'config.json').read_text())['train']['batch_size']
  total, at, before = 0.0, {}, 0
  for line in lines:
    if line['split'] == 'train':
      total += (line['step'] - before) * batch_size / line['images_per_second']
      before = line['step']
      at[before] = total
  return lines, at


def tune(args) -> None:
  """Trains PixelCNN++ with all settings on nine tenths of the training images, and scores on the rest."""
  for settings in PIXELCNN:
    path = args.out / 'tuning' / f'{"_".join(map(str, settings))}_{args.minutes}.json'
    if not path.exists():
      pixelcnn(args, path, settings, 0, ('train[:90%]', 'train[90%:]'))
    print(settings, json.loads(path.read_text())['bits_per_dim'], flush=True)


def best_settings(out: pathlib.Path) -> tuple:
  """Of PixelCNN++, by the runs of `tune`."""
  found = [json.loads(path.read_text()) for path in (out / 'tuning').glob('*.json')]
  best = min(found, key=lambda run: run['bits_per_dim'])['settings']
  return tuple(best[name] for name in ('blocks', 'filters', 'batch_size', 'learning_rate'))


def race(args) -> None:
  for seed in range(args.seeds):
    for name, stem in CONTESTANTS.items():
      path = args.out / f'{stem}_{args.minutes}_seed_{seed}.json'
      if path.exists():
        continue
      if name in OURS:
        ours(args, path, name, seed)
      else:
        pixelcnn(args, path, best_settings(args.out), seed, ('train', 'test'))
      print(name, seed, json.loads(path.read_text())['bits_per_dim'], flush=True)


def runs(out: pathlib.Path) -> dict[tuple[str, int], list[dict]]:
  """All finished runs by contestant and minutes."""
  found: dict[tuple[str, int], list[dict]] = {}
  for path in sorted(out.glob('*_seed_*.json')):
    stem, minutes = path.stem.split('_seed_')[0].rsplit('_', 1)
    name = next(name for name, of_file in CONTESTANTS.items() if of_file == stem)
    found.setdefault((name, int(minutes)), []).append(json.loads(path.read_text()))
  return found


def table(out: pathlib.Path) -> str:
  lines = ['| contestant | minutes | cores | parameters | steps, by seed | bits/dim, by seed |',
           '|---|---|---|---|---|---|']
  for (name, minutes), each in sorted(runs(out).items(), key=lambda item: (item[0][1], item[0][0])):
    first, bits = each[0], ', '.join(f'{run["bits_per_dim"]:.3f}' for run in each)
    steps = '; '.join(f'{run["step"]:,}' for run in each)
    lines.append(f'| {name} | {minutes} | {first["num_cpus"]} | {first["num_parameters"]:,} | {steps} | {bits} |')
  return '\n'.join(lines) + '\n'


def curves(out: pathlib.Path) -> Figure:
  """Bits/dim of 64 test images against seconds of training, and of all test images at the end."""
  figure = Figure(figsize=(7, 4))
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  names = list(CONTESTANTS)
  for (name, minutes), each in runs(out).items():
    for run in each:
      points = [(point['seconds'], point['bits_per_dim']) for point in run['curve']]
      axes.plot(*zip(*points), color=f'C{names.index(name)}', linewidth=1,
                label=name if run is each[0] and minutes == min(m for n, m in runs(out) if n == name) else None)
      axes.plot(run['seconds'], run['bits_per_dim'], 'o', color=f'C{names.index(name)}', markersize=4)
  axes.set(xlabel='seconds of training', ylabel='bits/dim of test images', xscale='log',
           title='lines: 64 test images during training; dots: all, after it')
  axes.title.set_fontsize(9)
  longest = max(60 * minutes for _, minutes in runs(out))
  ticks = [seconds for seconds in (60, 120, 300, 600, 1200, 1800, 3600) if seconds <= longest]
  axes.set_xticks(ticks, map(str, ticks))
  axes.minorticks_off()
  axes.legend(frameon=False, fontsize=8)
  figure.tight_layout()
  return figure


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data_dir', default='', help='where the data sets are')
  parser.add_argument('--python', type=pathlib.Path, default='runs/torch/bin/python', help='Python with torch')
  parser.add_argument('--source', type=pathlib.Path, default='runs/pixel-cnn-pp', help='clone of the port')
  parser.add_argument('--out', type=pathlib.Path, default='runs/race', help='folder of results')
  parser.add_argument('--minutes', type=int, required=True, help='of each run')
  parser.add_argument('--seeds', type=int, default=1, help='runs of each, with seeds from 0')
  parser.add_argument('--tune', action='store_true', help='choose the settings of PixelCNN++ instead')
  args = parser.parse_args()
  args.python, args.source, args.out = (path.absolute() for path in (args.python, args.source, args.out))
  (tune if args.tune else race)(args)
  if runs(args.out):
    (args.out / 'table.md').write_text(table(args.out))
    curves(args.out).savefig(args.out / 'curves.png', dpi=110)
    print(table(args.out))


if __name__ == '__main__':
  main()
