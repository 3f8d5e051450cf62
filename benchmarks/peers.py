"""The cached sampler against others of its depth, widths and length: Hugging Face's ImageGPT, a plain Flax decoder.

  python3 -m venv runs/peers && runs/peers/bin/pip install torch==2.13.0 transformers==5.24.0
  python benchmarks/peers.py --python=runs/peers/bin/python [--batch_sizes=1,16] [--positions=3072,1536] [--runs=1]
      [--out=FILE.json]

All in turn, with random weights, seconds for one 32x32x3 image. ImageGPT is PyTorch and runs in an environment of its
own; of a large batch only the first positions are drawn, and a n + b n^2 is fitted to the times at which they came,
since each looks at all before it. The Flax decoder keeps linen's cache of all positions, which makes all steps cost
the same: some are timed. Both look at every earlier pixel, ours at its memory block.
"""

import measuring  # first: it sets the process up

import json
import subprocess
import time

from absl import app
from absl import flags
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.configs import cifar10_1d
from image_transformer import devices
from image_transformer.model import blank, init_params
from image_transformer.sampling import make_sampler

_PYTHON = flags.DEFINE_string('python', None, 'Python with torch and transformers.', required=True)
_BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['1', '16'], 'Images drawn at once.')
_POSITIONS = flags.DEFINE_list('positions', ['3072', '1536'], "ImageGPT's, for each of these.")
_RUNS = flags.DEFINE_integer('runs', 1, 'Runs, all in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

POSITIONS = 32 * 32 * 3
FLAX_STEPS = 64


class PlainDecoder(nn.Module):
  """Of each image the last intensity [B, 1] to logits [B, 1, 256]; post-norm as ours, dense attention to all before."""

  @nn.compact
  def __call__(self, x):
    # Adding a table of places costs next to nothing, and changes nothing of what is measured.
    x = nn.Embed(256, 512)(x)
    for _ in range(12):
      attention = nn.MultiHeadDotProductAttention(num_heads=4, use_bias=False, decode=True)
      x = nn.LayerNorm()(x + attention(x))
      x = nn.LayerNorm()(x + nn.Dense(512)(nn.relu(nn.Dense(2048)(x))))
    return nn.Dense(256)(x)


def plain_sampler(batch_size):
  """Draws FLAX_STEPS positions of a batch of images."""
  decoder = PlainDecoder()
  variables = decoder.init(jax.random.key(0), jnp.zeros((batch_size, POSITIONS), jnp.int32))
  params, cache = variables['params'], variables['cache']

  def draw_next(carry, key):
    cache, last = carry
    logits, changed = decoder.apply({'params': params, 'cache': cache}, last, mutable='cache')
    drawn = jax.random.categorical(key, logits)
    return (changed['cache'], drawn), drawn

  @jax.jit
  def draw(params, cache):
    keys = jax.random.split(jax.random.key(1), FLAX_STEPS)
    return jax.lax.scan(draw_next, (cache, jnp.zeros((batch_size, 1), jnp.int32)), keys)[1]

  return lambda: draw(params, cache)


def our_sampler(batch_size):
  config, model = measuring.load(cifar10_1d.get_config())
  params = devices.replicate(init_params(model, config.seed))
  draw, (_, given) = make_sampler(model, batch_size), blank(model, batch_size)
  return lambda: draw(params, 0, batch_size, given)


def image_gpt(batch_size, positions):
  """What `peers/imagegpt.py` prints, and the seconds that a whole batch takes."""
  command = [_PYTHON.value, 'benchmarks/peers/imagegpt.py', f'--batch_size={batch_size}', f'--positions={positions}']
  printed = json.loads(subprocess.run(command, cwd=measuring.ROOT, check=True, stdout=subprocess.PIPE).stdout)
  seconds = np.array(printed.pop('seconds'))
  drawn = np.arange(1, positions + 1)
  terms = np.stack([drawn, drawn**2], axis=1)
  fit = np.linalg.lstsq(terms, seconds, rcond=None)[0]
  whole = seconds[-1] if positions == POSITIONS else fit @ [POSITIONS, POSITIONS**2]
  return printed | {'seconds_of_what_was_drawn': seconds[-1]}, float(whole)


def main(argv):
  del argv
  rows = []
  for batch_size, positions in zip(map(int, _BATCH_SIZES.value), map(int, _POSITIONS.value), strict=True):
    ours, plain = our_sampler(batch_size), plain_sampler(batch_size)
    jax.block_until_ready((ours(), plain()))
    seconds = {'ours': [], 'Flax decoder': [], 'ImageGPT': []}
    for _ in range(_RUNS.value):
      for name, run, times in (('ours', ours, 1), ('Flax decoder', plain, POSITIONS / FLAX_STEPS)):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds[name].append((time.perf_counter() - began) * times)
      details, whole = image_gpt(batch_size, positions)
      seconds['ImageGPT'].append(whole)
    typical = measuring.medians(seconds)
    drawn = {'ours': POSITIONS, 'Flax decoder': FLAX_STEPS, 'ImageGPT': positions}
    for name, median in typical.items():
      rows.append({'sampler': name, 'batch_size': batch_size, 'positions_drawn': drawn[name],
                   'seconds_per_image': median / batch_size, 'times ours': median / typical['ours'],
                   'seconds_per_batch': seconds[name], **(details if name == 'ImageGPT' else {})})
  measuring.report('peers', rows, _OUT.value)


if __name__ == '__main__':
  app.run(main)
