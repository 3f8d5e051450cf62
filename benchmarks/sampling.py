"""The cached sampler of an untrained full-size model: seconds per image by batch size, against two limits.

  python benchmarks/sampling.py [--config=configs/cifar10_1d.py] [--batch_sizes=1,16] [--runs=2] [--out=FILE.json]

`times rerun` compares with the sampler that has no cache and runs the whole image again for each of its positions: one
pass is timed, and multiplied by the positions. `times reading` compares with the time that it takes, at the measured
rate of reading memory, to read all parameters and the visible part of the caches once for every position. Compilation
is not counted. Figures are medians, but `times reading` compares the fastest runs of both.
"""

import measuring  # first: it sets the process up

from absl import app
from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from image_transformer import devices, start
from image_transformer.model import blank, init_params
from image_transformer.sampling import make_sampler

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_1d.py')
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['1', '16'], 'Images drawn at once, over all devices.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Compute type, in which the caches are.')
_RUNS = flags.DEFINE_integer('runs', 2, 'Timed runs, in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def bytes_read(model, params, batch_size: int) -> float:
  """To draw a batch: each position reads all parameters but tables, and of each layer's caches what it sees."""
  config = model.config
  kernels = sum(leaf.nbytes for path, leaf in jax.tree_util.tree_leaves_with_path(params)
                if 'embedding' not in jax.tree_util.keystr(path[-1:]))
  keys_and_values = 2 * config.qkv_width * np.dtype(config.dtype).itemsize
  caches = config.num_layers * start.visible_pairs(model) * keys_and_values
  return model.layout.num_positions * kernels + batch_size * caches


def main(argv):
  del argv
  config, model = measuring.load(_CONFIG.value, model__dtype=_DTYPE.value)
  params = init_params(model, config.seed)
  replicated = devices.replicate(params)
  functions = measuring.passes()
  for batch_size in map(int, _BATCH_SIZES.value):
    images, given = blank(model, batch_size)
    draw = make_sampler(model, batch_size)
    functions[f'{batch_size} drawn'] = lambda draw=draw, given=given, number=batch_size: draw(replicated, 0, number,
                                                                                               given)
    once = devices.pmap(lambda params, images, given: model.apply({'params': params}, images, given))
    parts = devices.split((images, dict(given)))
    functions[f'{batch_size} pass'] = lambda once=once, parts=parts: once(replicated, *parts)
  seconds = measuring.in_turn(functions, _RUNS.value)
  typical, best = measuring.medians(seconds), measuring.fastest(seconds)
  rates = measuring.bandwidth(seconds)
  rows = []
  for batch_size in map(int, _BATCH_SIZES.value):
    drawn = typical[f'{batch_size} drawn']
    reading = bytes_read(model, params, batch_size) / rates['read']
    rerun = model.layout.num_positions * typical[f'{batch_size} pass']
    rows.append({'batch_size': batch_size, 'seconds_per_image': drawn / batch_size, 'images/s': batch_size / drawn,
                 'times rerun': rerun / drawn, 'times reading': best[f'{batch_size} drawn'] / reading,
                 'seconds_per_batch': seconds[f'{batch_size} drawn'],
                 'seconds_per_pass': seconds[f'{batch_size} pass']})
  print(f'Memory is read at {rates["read"] / 1e9:.1f} GB/s, updated at {rates["update"] / 1e9:.1f} GB/s.')
  measuring.report('sampling', rows, _OUT.value, bytes_per_second=rates, dtype=_DTYPE.value)


if __name__ == '__main__':
  app.run(main)
