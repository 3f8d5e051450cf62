"""The training step: images/s, its share of the machine's rate of matrix products, and where the time goes.

  python benchmarks/training.py [--config=configs/cifar10_1d.py] [--batch_sizes=2] [--dtypes=float32] [--runs=3]
      [--out=FILE.json]

The work of a step is 6 FLOPs per parameter and position, and attention's products over the pairs that are visible; the
limit is the best plain product of the same type that the machine did in the same run, fastest against fastest. The
parts are measured by themselves, as shares of the median step: attention of all layers, forward and backward; the
optimizer; dropout is the step less one without it. `pipeline` is how many times faster data come than the step takes
them. `temporary_GiB` is the memory that the compiled step needs beside its inputs and outputs.
"""

import measuring  # first: it sets the process up

import functools
import time

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import optax
import pipeline

from image_transformer import attention, devices, start
from image_transformer.optimizers import make_optimizer
from image_transformer.transformer import is_fused

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_1d.py')
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['2'], 'Images of a step, over all devices.')
_DTYPES = flags.DEFINE_list('dtypes', ['float32'], 'Compute types: float32, bfloat16.')
_REMAT = flags.DEFINE_bool('remat', False, 'Compute activations again in the backward pass.')
_RUNS = flags.DEFINE_integer('runs', 3, 'Timed steps, in turn with everything else that is timed.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def attention_of(model, batch_size):
  """Attention of all layers, forward and backward."""
  config, layout = model.config, model.layout
  shape = (batch_size, layout.num_blocks, layout.block_size, config.num_heads, config.qkv_width // config.num_heads)
  q, k, v, cotangent = (jax.random.normal(jax.random.key(i), shape, jnp.dtype(config.dtype)) for i in range(4))

  @jax.jit
  def run(q, k, v, cotangent):
    _, vjp = jax.vjp(lambda *qkv: attention.local_attention(*qkv, layout=layout, fused=is_fused(config))[0], q, k, v)
    return vjp(cotangent)

  return lambda: [run(q, k, v, cotangent) for _ in range(config.num_layers)]


def optimizer_of(config, params):
  optimizer = make_optimizer(config.optimizer, config.train.steps)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, state):
    updates, state = optimizer.update(params, state, params)  # as if they were their own gradient
    return optax.apply_updates(params, updates), state

  held = jax.jit(lambda params: (jax.tree.map(jnp.copy, params), optimizer.init(params)))(params)

  def run():
    nonlocal held
    held = update(*held)
    return held[0]

  return run


def main(argv):
  del argv
  rows, functions, limits = [], {}, {}
  for dtype in _DTYPES.value:
    limits[dtype] = measuring.products(dtype)
    functions |= limits[dtype]
    for batch_size in map(int, _BATCH_SIZES.value):
      changes = {'train__batch_size': batch_size, 'model__dtype': dtype, 'model__remat': _REMAT.value}
      config, model = measuring.load(_CONFIG.value, **changes)
      batch = measuring.random_batch(model, batch_size)
      name = f'{dtype} {batch_size}'
      began = time.perf_counter()
      functions[f'{name} step'], state, compiled = measuring.training_step(config, model, batch)
      compilation = time.perf_counter() - began
      params = devices.unreplicate(state.params)
      functions[f'{name} attention'] = attention_of(model, batch_size)
      functions[f'{name} optimizer'] = optimizer_of(config, params)
      if config.model.dropout:
        plain, plain_model = measuring.load(_CONFIG.value, **changes, model__dropout=0.0)
        functions[f'{name} without dropout'], _, _ = measuring.training_step(plain, plain_model, batch)
      rows.append({'dtype': dtype, 'batch_size': batch_size, 'name': name,
                   'gigaflop': batch_size * start.training_flops(model) / 1e9,
                   'compilation': compilation, 'fused': is_fused(config.model),
                   'temporary_GiB': compiled.memory_analysis().temp_size_in_bytes / 2**30})
  seconds = measuring.in_turn(functions, _RUNS.value)
  typical, best = measuring.medians(seconds), measuring.fastest(seconds)
  images_per_second = pipeline.measure(config, max(map(int, _BATCH_SIZES.value)))
  for row in rows:
    dtype, batch_size, name = row['dtype'], row['batch_size'], row.pop('name')
    rate = measuring.product_rate({product: seconds[product] for product in limits[dtype]})
    step = typical[f'{name} step']
    row |= {'seconds': step, 'images/s': batch_size / step, 'product GFLOP/s': rate / 1e9,
            'of limit': 1e9 * row['gigaflop'] / best[f'{name} step'] / rate,
            'attention': typical[f'{name} attention'] / step, 'optimizer': typical[f'{name} optimizer'] / step}
    if (without := typical.get(f'{name} without dropout')) is not None:
      row['dropout'] = 1 - without / step
    row |= {'pipeline': images_per_second / row['images/s'], 'all_seconds': seconds[f'{name} step']}
  measuring.report('training', rows, _OUT.value)


if __name__ == '__main__':
  app.run(main)
