"""Compiles the gradient and the sampler of the tests' cases for a GPU or a TPU that need not be there.

  runs/compilers/bin/python tests/compile_check.py h200 [CASE ...]

The environment and the names of targets are those of `benchmarks/compiled.py`. Prints a line for each case: on a GPU
all attention in training must be by fused kernels. Exit code 1 if one does not compile.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent / 'benchmarks'))

import compiled  # first: it sets the process up
import jax
import jax.numpy as jnp

from helpers import CASES, given_for, make_case, random_images
from image_transformer import devices, sampling


def texts_of(case: str, target: str) -> tuple[str, str]:
  """The compiled gradient and sampler."""
  fused = {'attention': 'fused', 'hidden_size': 32, 'num_heads': 2, 'qkv_size': 32} if compiled.is_gpu(target) else {}
  model, variables = make_case(case, dtype='bfloat16', **fused)
  images, given = random_images(model.spec, 2), given_for(model, 2)

  def loss(variables, images, given):
    dropout = {'dropout': jax.random.key(0)}
    return model.apply(variables, images, given, True, 0, rngs=dropout, method='log_prob').mean()

  def draw(variables, keys, given):
    return sampling.sample(model, variables, jax.random.wrap_key_data(keys), given)

  on_one = lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype)
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 2))
  target_devices = compiled.target_devices(target)[:1]
  functions = (jax.grad(loss), (variables, images, given)), (draw, (variables, jnp.asarray(keys), given))
  with compiled.traced_for(target):
    return tuple(devices.pmap(function, devices=target_devices).lower(*jax.tree.map(on_one, arguments)).compile()
                 .as_text() for function, arguments in functions)


def main() -> int:
  target, *names = sys.argv[1:]
  num_failed = 0
  for case in names or CASES:
    try:
      gradient, _ = texts_of(case, target)
      kernels = gradient.count('__cudnn$fmha')
      # Two layers, forward and backward.
      assert not compiled.is_gpu(target) or kernels >= 2 * 2, f'{kernels} fused kernels'
      print(f'{case}: compiled, {kernels} fused kernels', flush=True)
    except Exception as error:
      num_failed += 1
      print(f'{case}: {type(error).__name__}: {error}', flush=True)
  return int(num_failed > 0)


if __name__ == '__main__':
  sys.exit(main())
