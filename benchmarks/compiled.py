"""What XLA makes of the training step at full size, for a GPU or a TPU, which this machine need not have.

  python3 -m venv runs/compilers && runs/compilers/bin/pip install --editable . 'jax[cuda13]' libtpu
  runs/compilers/bin/python benchmarks/compiled.py [--target=v5e:2x2] [--models=cifar10_1d_dmol:64] [--out=FILE.json]

Nothing is computed. The compiler is that of the target, so its temporary memory is what a run there allocates. Each
model (a name in configs/ and a batch size for each device) is compiled in bfloat16 for `h200` or for the chips of a
TPU, such as `v5e:2x2`: on a GPU with einsum, with fused attention, and with fused attention and `model.remat`; on a TPU
with and without `model.remat`. Kernels are not chosen by trying them, as they are on a GPU, so the seconds to compile
are not those there. `moved_GB` is what all kernels of a step read and write, each by itself: divided by the rate of a
memory, it is the least time of a step of these kernels.
"""

import os

os.environ |= {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'}  # other devices are not looked for

import measuring  # before JAX: it sets the process up

from collections.abc import Iterator
import contextlib
import math
import pathlib
import re
import time

from absl import app
from absl import flags
import jax
from jax.experimental import topologies

from image_transformer import data
from image_transformer.experiments import load_config
from image_transformer.model import make_model
from image_transformer.start import compiled_step

_MODELS = flags.DEFINE_list('models', ['cifar10_1d_dmol:64', 'cifar10_2d_dmol:64', 'cifar10_1d:32'],
                            'Configurations and batch sizes of one device.')
_TARGET = flags.DEFINE_string('target', 'h200', 'h200, or the name of a TPU topology.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

EINSUM, FUSED = ({'model.attention': attention, 'model.dtype': 'bfloat16'} for attention in ('einsum', 'fused'))
REMAT = {'model.remat': True}
VARIANTS = {'gpu': {'einsum': EINSUM, 'fused': FUSED, 'fused, remat': FUSED | REMAT},
            'tpu': {'einsum': EINSUM, 'einsum, remat': EINSUM | REMAT}}


def is_gpu(target: str) -> bool:
  return target == 'h200'


def target_devices(target: str) -> list[jax.Device]:
  """The devices to compile for."""
  if is_gpu(target):
    described = pathlib.Path(__file__).with_name('h200.txtpb').read_text()
    return topologies.get_topology_desc(platform='cuda', topology='1x1x1', target_config=described).devices
  return topologies.get_topology_desc(target, platform='tpu').devices


@contextlib.contextmanager
def traced_for(target: str) -> Iterator[None]:
  """Attention chooses its kernel as it does on the target."""
  here = jax.default_backend
  jax.default_backend = lambda: 'gpu' if is_gpu(target) else 'tpu'
  try:
    yield
  finally:
    jax.default_backend = here


SIZES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'u16': 2, 's8': 1, 'u8': 1, 'pred': 1}
NOT_MOVED = 'bitcast', 'constant', 'get-tuple-element', 'parameter', 'tuple', 'while'


def bytes_moved(hlo: str) -> int:
  """What the instructions of a compiled step read and write; those in loops count once."""
  loops = re.findall(r' while\(.*body=%([\w.-]+)', hlo)
  total = 0
  for computation in re.split(r'\n(?=%|ENTRY)', hlo):
    if not (computation.startswith('ENTRY') or computation[1:].split(' ', 1)[0] in loops):
      continue
    sizes = {}
    for name, result, operation, operands in re.findall(
        r'^  (?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)', computation, re.MULTILINE):
      sizes[name] = sum(SIZES.get(kind, 0) * math.prod(int(size) for size in shape.split(',') if size)
                        for kind, shape in re.findall(r'(\w+)\[([\d,]*)\]', result))
      if operation not in NOT_MOVED:
        total += sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r'%([\w.-]+)', operands))
  return total


def main(argv):
  del argv
  targets = target_devices(_TARGET.value)
  variants = VARIANTS['gpu' if is_gpu(_TARGET.value) else 'tpu']
  rows = []
  for name, batch_size in (one.split(':') for one in _MODELS.value):
    for variant, changes in variants.items():
      config = load_config(name, {**changes, 'train.batch_size': int(batch_size) * len(targets)})
      model = make_model(config.model, data.image_spec(config))
      began = time.perf_counter()
      with traced_for(_TARGET.value):
        compiled = compiled_step(config, model, targets)
      seconds = time.perf_counter() - began
      memory = compiled.memory_analysis()
      rows.append({'model': name, 'batch_size': int(batch_size), 'variant': variant,
                   'temporary_GiB': memory.temp_size_in_bytes / 2**30,
                   'arguments_GiB': memory.argument_size_in_bytes / 2**30,
                   'moved_GB': bytes_moved(compiled.as_text()) / 1e9, 'seconds_to_compile': seconds})
      print(rows[-1], flush=True)
  measuring.report('compiled', rows, _OUT.value, compiled_for=f'{len(targets)} x {targets[0].device_kind}')


if __name__ == '__main__':
  app.run(main)
