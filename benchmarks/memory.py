"""Memory of the compiled training step at full size, beside its inputs and outputs; nothing is computed.

  python benchmarks/memory.py [--models=cifar10_1d_dmol:64,cifar10_1d:32] [--largest=0] [--out=FILE.json]

Each model (a name in configs/ and a batch size) is compiled for this machine: with einsum, with fused attention, and
with fused attention and `model.remat`. --largest prints so many of the largest arrays that the compiled step computes.

On a GPU the type is bfloat16. Without one it is float16, since XLA computes bfloat16 as float32 on CPUs; products are
float32 there all the same, so the figures do not stand for a GPU's. XLA's own fused attention would keep a layer's
weights, which a kernel does not. So a call takes its place that needs the memory a kernel needs: in the forward pass
queries, keys, values and the mask give the mixture and the logarithms of the softmax's denominators (float32), and in
the backward pass these and the mixture's gradient give three gradients.
"""

import measuring  # first: it sets the process up

import collections
import math
import re

from absl import app
from absl import flags
import jax
import jax.numpy as jnp

from image_transformer import data
from image_transformer.experiments import load_config
from image_transformer.model import make_model
from image_transformer.start import compiled_step

_MODELS = flags.DEFINE_list('models', ['cifar10_1d_dmol:64', 'cifar10_1d:32'], 'Configurations and batch sizes.')
_LARGEST = flags.DEFINE_integer('largest', 0, 'How many arrays to print.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

VARIANTS = {'einsum': {'model.attention': 'einsum'}, 'fused': {'model.attention': 'fused'},
            'fused, remat': {'model.attention': 'fused', 'model.remat': True}}


def kernel_memory(q, k, v, *, mask, scale, implementation):
  """Stands for `jax.nn.dot_product_attention`: compiled it needs the memory of a fused kernel; it cannot be run."""
  del scale, implementation
  sums = jax.ShapeDtypeStruct((*q.shape[:1], q.shape[2], q.shape[1]), jnp.float32)
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)

  @jax.custom_vjp
  def attend(q, k, v):
    return forward(q, k, v)[0]

  def forward(q, k, v):
    mixed, denominators = jax.pure_callback(None, (like(q), sums), q, k, v, mask)
    return mixed, (q, k, v, mixed, denominators)

  def backward(residuals, gradient):
    return jax.pure_callback(None, tuple(map(like, residuals[:3])), *residuals, gradient, mask)

  attend.defvjp(forward, backward)
  return attend(q, k, v)


def largest(hlo, number):
  """The largest arrays in the compiled step: bytes, type and shape, how often, and an example of what computes it."""
  sizes = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'u16': 2, 'f16': 2, 'pred': 1, 'u8': 1}
  found, example = collections.Counter(), {}
  entry = hlo[hlo.index('\nENTRY'):]
  for kind, dims, operation in re.findall(r'= (\w+)\[([\d,]+)\]\S* ([\w-]+)\(', entry):
    if operation not in ('parameter', 'get-tuple-element', 'bitcast', 'tuple') and kind in sizes:
      key = (sizes[kind] * math.prod(map(int, dims.split(','))), f'{kind}[{dims}]')
      found[key] += 1
      example[key] = operation
  for key in sorted(found, reverse=True)[:number]:
    print(f'{key[0] / 2**20:8.0f} MiB {key[1]:32} x {found[key]:3} {example[key]}')


def main(argv):
  del argv
  if jax.default_backend() != 'gpu':
    jax.nn.dot_product_attention = kernel_memory
  rows = []
  for name, batch_size in (one.split(':') for one in _MODELS.value):
    for variant, changes in VARIANTS.items():
      config = load_config(name, {**changes, 'model.dtype': 'bfloat16', 'train.batch_size': int(batch_size)})
      if jax.default_backend() != 'gpu':
        object.__setattr__(config.model, 'dtype', 'float16')
      model = make_model(config.model, data.image_spec(config))
      compiled = compiled_step(config, model)
      rows.append({'model': name, 'batch_size': int(batch_size), 'variant': variant,
                   'temporary_GiB': compiled.memory_analysis().temp_size_in_bytes / 2**30})
      print(rows[-1])
      largest(compiled.as_text(), _LARGEST.value)
  measuring.report('memory', rows, _OUT.value)


if __name__ == '__main__':
  app.run(main)
