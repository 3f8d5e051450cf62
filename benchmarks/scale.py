"""Time and memory of a training step by image size, with local attention and with dense: how they grow.

  python benchmarks/scale.py [--sizes=32,64,128] [--dense_sizes=32,64] [--remat] [--runs=3] [--out=FILE.json]

Square RGB images, one at a time, in a small categorical model of 2 layers of width 64: what grows is the same in a
large one. `exponent` is by which power of the number of positions the time has grown since the size before.
"""

import measuring  # first: it sets the process up

import functools
import math

from absl import app
from absl import flags
import jax

from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.model import init_params, make_model

_SIZES = flags.DEFINE_list('sizes', ['32', '64', '128'], 'Height and width of the images, local attention.')
_DENSE_SIZES = flags.DEFINE_list('dense_sizes', ['32', '64'], 'The same, dense attention.')
_LAYERS = flags.DEFINE_integer('layers', 2, 'Layers.')
_WIDTH = flags.DEFINE_integer('width', 64, 'Hidden size.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Compute type.')
_REMAT = flags.DEFINE_bool('remat', False, 'Compute activations again in the backward pass.')
_RUNS = flags.DEFINE_integer('runs', 3, 'Timed runs, in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def gradient_of(size: int, query_block: int, flange: int):
  """The compiled gradient of the loss of one image."""
  config = ModelConfig(query_block=(query_block,), memory_flange=(flange,), num_layers=_LAYERS.value,
                       hidden_size=_WIDTH.value, ffn_size=4 * _WIDTH.value, dropout=0.0, remat=_REMAT.value,
                       dtype=_DTYPE.value)
  model = make_model(config, ImageSpec(size, size, 3))
  params = init_params(model, 0)
  images = jax.random.randint(jax.random.key(0), (1, *model.spec.shape), 0, 256)
  loss = lambda params: -model.apply({'params': params}, images, method='log_prob').mean() / model.spec.num_dims
  compiled = jax.jit(jax.grad(loss)).lower(params).compile()
  return functools.partial(compiled, params), compiled.memory_analysis().temp_size_in_bytes


def main(argv):
  del argv
  rows, functions = [], {}
  for kind, sizes in (('local', _SIZES.value), ('dense', _DENSE_SIZES.value)):
    for size in map(int, sizes):
      positions = 3 * size**2
      block = (256, 256) if kind == 'local' else (positions, 0)
      functions[f'{kind} {size}'], temporary = gradient_of(size, *block)
      rows.append({'attention': kind, 'size': size, 'positions': positions, 'temporary_MiB': temporary / 2**20})
  seconds = measuring.in_turn(functions, _RUNS.value)
  typical = measuring.medians(seconds)
  before = None
  for row in rows:
    row['seconds_per_image'] = typical[f'{row["attention"]} {row["size"]}']
    for name, measure in (('exponent', 'seconds_per_image'), ('exponent of memory', 'temporary_MiB')):
      row[name] = None
      if before and before['attention'] == row['attention']:
        row[name] = math.log(row[measure] / before[measure]) / math.log(row['positions'] / before['positions'])
    row['seconds'] = seconds[f'{row["attention"]} {row["size"]}']
    before = row
  measuring.report('scale', rows, _OUT.value)


if __name__ == '__main__':
  app.run(main)
