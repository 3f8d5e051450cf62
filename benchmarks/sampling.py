"""Seconds per image of the cached sampler, by batch size, for an untrained full-size model.

  python benchmarks/sampling.py [--config=configs/cifar10_1d.py] [--batch_sizes=1,16] [--runs=3] [--out=FILE.json]

Compilation is timed apart. Each figure is the median over the runs; the JSON file holds all of them.
"""

import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from absl import app
from absl import flags
from ml_collections import config_flags

from image_transformer import config as config_lib
from image_transformer import data, devices, metrics
from image_transformer.model import blank, init_params, make_model
from image_transformer.sampling import make_sampler

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_1d.py')
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['1', '16'], 'Images drawn at once.')
_RUNS = flags.DEFINE_integer('runs', 3, 'Timed runs of each batch size.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def measure(model, params, batch_size: int, num_runs: int) -> dict:
  """Seconds of the first call, which compiles, and of the runs after it."""
  draw = make_sampler(model, batch_size)
  _, given = blank(model, batch_size)

  def timed(seed):
    began = time.perf_counter()
    draw(params, seed, batch_size, given)
    return time.perf_counter() - began

  first = timed(0)
  runs = [timed(seed) for seed in range(1, num_runs + 1)]
  return {'batch_size': batch_size, 'seconds_per_image': statistics.median(runs) / batch_size,
          'seconds_per_batch': runs, 'seconds_first_call': first}


def main(argv):
  del argv
  config = config_lib.from_dict(_CONFIG.value.to_dict())
  model = make_model(config.model, data.image_spec(config))
  params = devices.replicate(init_params(model, config.seed))
  rows = []
  print(f'{"batch":>6} {"s/image":>9} {"images/s":>9}')
  for batch_size in map(int, _BATCH_SIZES.value):
    row = measure(model, params, batch_size, _RUNS.value)
    rows.append(row)
    print(f'{batch_size:6} {row["seconds_per_image"]:9.2f} {1 / row["seconds_per_image"]:9.3f}', flush=True)
  if _OUT.value:
    command = 'python benchmarks/sampling.py ' + ' '.join(sys.argv[1:])
    report = {'command': command, 'rows': rows, **metrics.environment()}
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
