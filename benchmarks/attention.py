"""Local attention forward and backward, by einsum and fused, against dense attention with the same mask.

  python benchmarks/attention.py [--batch_size=1] [--dtype=float32] [--runs=5] [--out=FILE.json]

One layer's attention of the paper's CIFAR-10 model (4 heads, width 512) to a 32x32x3 image. `temporary` is the memory
that the compiled program needs beside its inputs and outputs; `times dense` and `memory` compare with the dense
attention. `error` and `gradient error` are the largest difference from the einsum in float32, as shares of the largest
entry. `of limit` is the share of the machine's own rate of matrix products, over the pairs that are visible,
fastest against fastest.
"""

import measuring  # first: it sets the process up

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer import attention, start
from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.model import make_model

_BATCH_SIZE = flags.DEFINE_integer('batch_size', 1, 'Images.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Of queries, keys and values.')
_RUNS = flags.DEFINE_integer('runs', 5, 'Timed runs, in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

SPEC = ImageSpec(32, 32, 3)
# Query block and flange: 1D in positions, 2D in pixels. A 2D memory of 480 positions stands beside 1D's of as many.
LAYOUTS = [((64,), (64,)), ((128,), (128,)), ((256,), (256,)), ((192,), (288,)), ((8, 8), (4, 4))]


def ours(layout, fused=False):
  return lambda q, k, v: attention.local_attention(q, k, v, layout=layout, fused=fused)[0]


def dense(layout):
  """Every query against every key, under the same mask; in generation order, as ours."""
  visible = np.zeros((layout.order.size,) * 2, bool)
  where = np.append(layout.slots, layout.order.size)  # slots of raster indices; of -1 none
  for block, memory in enumerate(layout.memory):
    rows = block * layout.block_size + np.arange(layout.block_size)
    seen = layout.visible(block)
    row, column = np.nonzero(seen)
    visible[rows[row], where[memory[column]]] = True
  everything = lambda x: x.reshape(x.shape[0], -1, *x.shape[-2:])
  return lambda q, k, v: attention.masked_attention(*map(everything, (q, k, v)), None, visible).reshape(q.shape)


def distance(some, other) -> float:
  """The largest difference, as a share of the largest entry."""
  pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(*map(jax.tree.leaves, (some, other)))]
  return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def main(argv):
  del argv
  dtype = jnp.dtype(_DTYPE.value)
  functions, rows = measuring.products(_DTYPE.value), {}
  for query_block, flange in LAYOUTS:
    model = make_model(ModelConfig(query_block=query_block, memory_flange=flange), SPEC)
    layout, config = model.layout, model.config
    kinds = {'einsum': ours(layout)}
    if jax.default_backend() == 'cpu' or dtype.itemsize == 2:  # cuDNN has no float32
      kinds['fused'] = ours(layout, fused=True)
    if query_block in ((256,), (8, 8)):
      kinds['dense'] = dense(layout)
    shape = (_BATCH_SIZE.value, layout.num_blocks, layout.block_size, config.num_heads, -1)
    inputs = [jax.random.normal(jax.random.key(i), (_BATCH_SIZE.value, layout.num_positions, config.hidden_size), dtype)
              .reshape(shape) for i in range(4)]
    for kind, attend in kinds.items():
      def forward_and_backward(q, k, v, cotangent, attend=attend):
        mixed, vjp = jax.vjp(attend, q, k, v)
        return mixed, vjp(cotangent)

      if kind == 'einsum':
        with jax.default_matmul_precision('highest'):
          exact = jax.jit(forward_and_backward)(*(x.astype(jnp.float32) for x in inputs))
      compiled = jax.jit(forward_and_backward).lower(*inputs).compile()
      mixed, gradients = compiled(*inputs)
      name = f'{query_block}+{flange} {kind}'
      functions[name] = lambda compiled=compiled, inputs=inputs: compiled(*inputs)
      pairs = start.visible_pairs(model) * _BATCH_SIZE.value
      rows[name] = {'query_block': query_block, 'flange': flange, 'kind': kind, 'visible_pairs': pairs,
                    'error': distance(mixed, exact[0]), 'gradient error': distance(gradients, exact[1]),
                    'temporary_MiB': compiled.memory_analysis().temp_size_in_bytes / 2**20,
                    'flops': 3 * start.attention_flops(config, pairs)}
  seconds = measuring.in_turn(functions, _RUNS.value)
  typical, best, rate = measuring.medians(seconds), measuring.fastest(seconds), measuring.product_rate(seconds)
  for name, row in rows.items():
    row |= {'milliseconds': 1000 * typical[name], 'of limit': row['flops'] / best[name] / rate,
            'seconds': seconds[name]}
    if (reference := f'{row["query_block"]}+{row["flange"]} dense') in rows:
      row |= {'times dense': typical[reference] / typical[name],
              'memory of dense': row['temporary_MiB'] / rows[reference]['temporary_MiB']}
  one, two = (typical[f'{a}+{b} einsum'] for a, b in LAYOUTS[-2:])
  print(f'The best product: {rate / 1e9:.0f} GFLOP/s. 2D over 1D at 480 positions of memory: {two / one:.2f}')
  measuring.report('attention', list(rows.values()), _OUT.value, product_flops_per_second=rate,
                   batch_size=_BATCH_SIZE.value, dtype=_DTYPE.value, two_over_one_dimension=two / one)


if __name__ == '__main__':
  app.run(main)
