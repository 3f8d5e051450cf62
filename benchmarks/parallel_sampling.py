"""An experiment: how many network calls does exact parallel sampling need, and what would it gain?

  python benchmarks/parallel_sampling.py --workdir=RUN [--large=configs/cifar10_1d.py] [--windows=2,4,8,16,32]
      [--num_images=4] [--out=FILE.json]

With the random numbers of every position fixed, a sample is the fixed point of "draw every position given those before
it". So one call may draw a window of positions at once from guesses of those before them: the first is right, and each
next one as long as all guesses before it were. The first wrong guess ends what is kept, and what was drawn behind it is
the next call's guess; for a position that no call has drawn yet, the guess is the same channel's value one pixel
before. The images are those of the sequential sampler; `differing` counts the bytes that are not, by rounding.

Calls are counted on a trained run, with a whole pass standing for each call. What a cached call of such a window costs
is timed beside the sampler's step, in the run's own model and, with `--large`, in the untrained model of a
configuration. `gain` is the time of sequential steps over that of the calls, drawing and bookkeeping left out.
"""

import measuring  # first: it sets the process up

import functools

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from image_transformer import attention, library
from image_transformer.model import blank, init_params
from image_transformer.sampling import sample

_WORKDIR = flags.DEFINE_string('workdir', None, 'A trained run.', required=True)
_LARGE = config_flags.DEFINE_config_file('large', None, 'A configuration whose steps are timed as well.')
_WINDOWS = flags.DEFINE_list('windows', ['2', '4', '8', '16', '32'], 'Positions drawn by one call.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 4, 'Images, each drawn by itself.')
_RUNS = flags.DEFINE_integer('runs', 5, 'Timed steps, in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def make_count(model, window):
  """Returns count(params, key, given) -> the image [H, W, C] and how many calls drew it."""
  layout, likelihood = model.layout, model.likelihood
  slots = jnp.asarray(layout.generated)  # of the positions, first generated first
  order = jnp.asarray(layout.order.ravel())[slots]
  num_positions = layout.num_positions
  before = model.spec.channels if likelihood.values_per_position == 1 else 1  # positions to the pixel before

  def draw_all(params, key, given, values_PV):
    images = jnp.zeros((num_positions, values_PV.shape[-1]), jnp.int32).at[order].set(values_PV)
    images = images.reshape(1, *model.spec.shape)
    parameters = model.apply({'params': params}, images, given)
    parameters = parameters.reshape(num_positions, -1)[order]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, order)
    return jax.vmap(likelihood.sample, (0, 0, None))(keys, parameters, 1.0).reshape(values_PV.shape)

  def call(carry, params, key, given):
    values, known, reached, calls = carry
    drawn = draw_all(params, key, given, values)
    place = jnp.arange(num_positions)
    inside = (place >= known) & (place < known + window)
    wrong = inside & (drawn != values).any(axis=-1)
    # Up to the first position whose guess was wrong, all are right, and it is put right.
    kept = jnp.minimum(jnp.where(wrong.any(), jnp.argmax(wrong) + 1, known + window), num_positions)
    values = jnp.where(inside[:, None], drawn, values)
    newly = jnp.maximum(reached, jnp.minimum(known + window, num_positions))
    # Guesses of what no call has drawn.
    guess = values[jnp.maximum(place - before, 0)]
    values = jnp.where((place >= newly)[:, None], guess, values)
    return values, kept, newly, calls + 1

  @jax.jit
  def count(params, key, given):
    values = jnp.full((num_positions, likelihood.values_per_position), model.spec.levels // 2, jnp.int32)
    begin = values, jnp.int32(0), jnp.int32(0), jnp.int32(0)
    values, _, _, calls = jax.lax.while_loop(lambda carry: carry[1] < num_positions,
                                             lambda carry: call(carry, params, key, given), begin)
    images = jnp.zeros_like(values).at[order].set(values)
    return images.reshape(model.spec.shape), calls

  return count


def steps_of(model, params, window):
  """64 cached calls in the middle of an image, each of a window of positions; None: the sampler's own step."""
  layout, config = model.layout, model.config
  _, given = blank(model)
  shape = 1, config.num_heads, config.qkv_width // config.num_heads
  caches = [attention.begin_block(attention.empty_window(layout, shape, jnp.dtype(config.dtype)), layout)
            for _ in range(config.num_layers)]
  encoded = model.apply({'params': params}, given, method='encode')
  block = layout.num_blocks // 2
  previous = jnp.zeros((1, model.likelihood.values_per_position), jnp.int32)

  def attend(q_BWHK, k_BWHK, v_BWHK, dropout, cache, slot):
    """Attention of a window to a cache and itself; the mask of its first slot stands for all."""
    del dropout
    one_image = lambda x_BWHK: jnp.transpose(x_BWHK[0], (1, 2, 0))
    cache = attention.Cache(*(jax.lax.dynamic_update_slice_in_dim(old, one_image(new), layout.halo_size + slot, axis=2)
                              for old, new in zip(cache, (k_BWHK, v_BWHK))))
    visible_M = layout.visible(block, slot, jnp)
    logits = jnp.einsum('WHK,HKM->HWM', q_BWHK[0], cache.keys)
    weights = jax.nn.softmax(jnp.where(visible_M, logits, -1e30))
    return jnp.einsum('HWM,HKM->WHK', weights, cache.values)[None], cache

  def call(module, slot, caches):
    slots = jnp.arange(window)
    previous_index, index = (jnp.asarray(of)[block, slots] for of in (layout.previous, layout.order))
    embedded = module.embed(jnp.broadcast_to(previous, (1, window, previous.shape[-1])), previous_index, index, encoded)
    attends = [functools.partial(attend, cache=cache, slot=slot) for cache in caches]
    return module._run(embedded, previous_index, index, attends, encoded)  # the experiment is not worth a public name

  @functools.partial(jax.jit, donate_argnums=1)
  def steps(params, caches):
    def step(i, carry):
      caches, _ = carry
      slot = i % (layout.block_size - (window or 0) + 1)
      if window is None:
        parameters, caches = model.apply({'params': params}, previous, block, slot, encoded, caches, method='step')
      else:
        parameters, caches = model.apply({'params': params}, slot, caches, method=call)
      return caches, parameters.sum()
    return jax.lax.fori_loop(0, 64, step, (caches, 0.0))

  def run():
    nonlocal caches
    caches, total = steps(params, caches)
    return total

  return run


def main(argv):
  del argv
  run = library.load(_WORKDIR.value)
  model, params = run.model, run.variables['params']
  num_images, windows = _NUM_IMAGES.value, [int(window) for window in _WINDOWS.value]
  _, given = blank(model, num_images)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(num_images))
  sequential, _ = jax.jit(sample, static_argnums=0)(model, run.variables, keys, given)
  models = {'own': (model, params)}
  if _LARGE.value:
    config, large = measuring.load(_LARGE.value)
    models['large'] = large, init_params(large, config.seed)
  seconds = measuring.in_turn({(name, window): steps_of(*of, window) for name, of in models.items()
                               for window in (None, *windows)}, _RUNS.value)
  typical, rows = measuring.medians(seconds), []
  for window in windows:
    count = make_count(model, window)
    images, calls = zip(*(count(params, keys[i], jax.tree.map(lambda x: x[i:i + 1], given)) for i in range(num_images)))
    calls = [int(number) for number in calls]
    saved = model.layout.num_positions / float(np.mean(calls))
    row = {'window': window, 'calls_per_image': float(np.mean(calls)), 'times fewer': saved,
           'differing': int((np.stack(images) != np.asarray(sequential)).sum())}
    for name in models:
      cost = typical[name, window] / typical[name, None]
      row |= {f'cost, {name}': cost, f'gain, {name}': saved / cost, f'seconds, {name}': seconds[name, window]}
    rows.append(row | {'calls': calls})
  measuring.report('parallel_sampling', rows, _OUT.value, num_images=num_images,
                   seconds_of_64_steps={name: typical[name, None] for name in models})


if __name__ == '__main__':
  app.run(main)
