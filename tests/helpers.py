"""What several tests need: the paper's visibility written cell by cell, small models of every kind, random weights."""

import functools
import itertools

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer import attention, data, runs
from image_transformer.checkpoints import Checkpoints
from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.model import blank, make_model
from image_transformer.optimizers import make_optimizer
from image_transformer.state import init_state


def scan_order(scan, height, width):
  """[(row, column)] of all pixels in the order of a scan, written pixel by pixel."""
  pixels = list(itertools.product(range(height), range(width)))
  if scan == 'column':
    return sorted(pixels, key=lambda pixel: pixel[::-1])
  if scan == 'zigzag':  # to and fro along the diagonals, the first step to the right
    return sorted(pixels, key=lambda pixel: (sum(pixel), pixel[0] if sum(pixel) % 2 else -pixel[0]))
  if scan == 'hilbert':

    def pixel_at(distance):  # the usual iteration over quadrants of growing size
      row = column = 0
      for size in (2**i for i in range(height.bit_length() - 1)):
        lower, right = distance // 2 % 2, (distance ^ distance // 2) % 2
        if not right:
          row, column = (size - 1 - column, size - 1 - row) if lower else (column, row)
        row, column, distance = row + size * lower, column + size * right, distance // 4
      return row, column

    return [pixel_at(distance) for distance in range(height * width)]
  return pixels


def paper_visible(height, width, depth, query_block, memory_flange, scan='raster', frames=1):
  """bool [positions, positions] in raster order: may a query (row) see a key (column)?

  Paper section 3.3, cell by cell: the key lies in the memory block of the query's block and is
  generated no later than the query. Nothing here comes from the layout's own code.
  """
  cells = list(itertools.product(range(frames), range(height), range(width), range(depth)))
  if len(query_block) == 1:
    (l_q,), (l_m,) = query_block, memory_flange
    order = scan_order(scan, height, width)
    when = [(frame * height * width + order.index((row, column))) * depth + channel
            for frame, row, column, channel in cells]
    return np.array([[i // l_q * l_q - l_m <= j <= i for j in when] for i in when])
  f_q, h_q, w_q = query_block if len(query_block) == 3 else (1, *query_block)
  f_m, h_m, w_m = memory_flange if len(query_block) == 3 else (0, *memory_flange)

  def generated(frame, row, column, channel):
    return frame // f_q, row // h_q, column // w_q, frame, row, column, channel

  def in_memory(query, key):
    front, top, left = query[0] // f_q * f_q, query[1] // h_q * h_q, query[2] // w_q * w_q
    return (front - f_m <= key[0] < front + f_q and top - h_m <= key[1] < top + h_q + h_m and
            left - w_m <= key[2] < left + w_q + w_m)

  return np.array([[in_memory(query, key) and generated(*key) <= generated(*query) for key in cells]
                   for query in cells])


def layout_visible(layout):
  """The same array as the layout has it, carried from slots to raster indices."""
  assert layout.visible().any(axis=-1).all(), 'every slot sees something, those of padding too'
  visible_from = np.zeros((layout.num_positions, layout.num_positions), bool)
  for queries, keys, visible in zip(layout.order, layout.memory, layout.visible()):
    see = visible & (queries >= 0)[:, None]
    query, key = np.nonzero(see)
    assert not visible_from[queries[query], keys[key]].any(), 'a position is in memory twice'
    visible_from[queries[query], keys[key]] = True
  return visible_from


def to_slots(x, layout, padding=100.0):
  """[B, positions, ...] in raster order -> [B, blocks, slots, ...]; what is in padding must not matter."""
  mask = (layout.order >= 0).reshape(layout.order.shape + (1,) * (x.ndim - 2))
  return jnp.where(mask, x[:, layout.order], jnp.asarray(padding, x.dtype))


def from_slots(x, layout):
  """[B, blocks, slots, ...] -> [B, positions, ...] in raster order."""
  return x.reshape(x.shape[0], -1, *x.shape[3:])[:, layout.slots]


def blockwise(layout):
  """`local_attention` as a function of q, k and v [B, positions, heads, width] in raster order."""
  return lambda *qkv: from_slots(attention.local_attention(*(to_slots(x, layout) for x in qkv), layout=layout)[0],
                                 layout)


@functools.partial(jax.jit, static_argnames=('model', 'method'))
def apply(model, *args, method='__call__'):
  """`model.apply`, compiled as a whole: one operation at a time, it takes several times as long."""
  return model.apply(*args, method=method)


def case(spec, **config):
  small = dict(num_layers=2, hidden_size=16, num_heads=2, ffn_size=24, num_mixtures=2, dropout=0.0)
  return ModelConfig(**{**small, **config}), ImageSpec(*spec)


# Every layout with every likelihood, and what else changes the path of a position through the network.
# Small enough that two layers do not reach all earlier positions.
CASES = {
    '1d_categorical': case((4, 5, 3, 7), query_block=(7,), memory_flange=(9,)),
    '1d_dmol': case((4, 6, 3, 256), query_block=(4,), memory_flange=(4,), likelihood='dmol'),
    '2d_categorical': case((6, 6, 3, 7), query_block=(2, 2), memory_flange=(1, 1)),
    '2d_dmol': case((6, 9, 3, 256), query_block=(2, 3), memory_flange=(3, 2), likelihood='dmol'),
    '2d_ragged_classes': case((5, 7, 3, 5, 3), query_block=(2, 3), memory_flange=(2, 1), qkv_size=8,
                              class_conditional=True),
    '2d_grey_dmol_ragged': case((7, 8, 1, 17), query_block=(3, 3), memory_flange=(1, 1), likelihood='dmol',
                                coordinates='rotary', qk_norm=True),
    '1d_binary_pre_norm': case((6, 6, 1, 2), query_block=(5,), memory_flange=(3,), norm='pre', coordinates='learned'),
    '2d_dmol_classes_pre_norm': case((5, 5, 3, 256, 3), query_block=(2, 2), memory_flange=(1, 2),
                                     likelihood='dmol', norm='pre', class_conditional=True),
    '1d_column_dmol': case((6, 4, 3, 256), query_block=(4,), memory_flange=(4,), likelihood='dmol', scan='column'),
    '1d_zigzag_classes': case((4, 3, 3, 5, 3), query_block=(5,), memory_flange=(7,), scan='zigzag',
                              class_conditional=True, coordinates='rotary'),
    '1d_hilbert': case((8, 8, 1, 17), query_block=(8,), memory_flange=(8,), scan='hilbert'),
    '1d_superres': case((4, 6, 3, 7), query_block=(7,), memory_flange=(9,), upscale=2, num_encoder_layers=1,
                        coordinates='rotary', qk_norm=True),
    '2d_superres_dmol_classes_pre_norm': case(
        (6, 6, 3, 256, 3), query_block=(2, 2), memory_flange=(1, 1), likelihood='dmol', norm='pre',
        class_conditional=True, upscale=3, num_encoder_layers=2),
    '3d_categorical': case((2, 3, 3, 5, 0, 4), query_block=(1, 2, 2), memory_flange=(1, 1, 1), coordinates='rotary'),
    '3d_dmol_ragged_classes': case((5, 4, 1, 17, 3, 5), query_block=(2, 2, 3), memory_flange=(2, 0, 1),
                                   likelihood='dmol', class_conditional=True),
    '1d_text': case((4, 5, 3, 7, 0, 0, True), query_block=(7,), memory_flange=(9,), coordinates='rotary',
                    text_length=6, num_encoder_layers=1),
    '2d_text_superres_classes_dmol': case(
        (6, 6, 3, 256, 3, 0, True), query_block=(2, 2), memory_flange=(1, 1), likelihood='dmol', norm='pre',
        class_conditional=True, upscale=3, num_encoder_layers=2, text_length=5, coordinates='rotary', num_heads=1),
}


def given_for(model, num_images, seed=2):
  """Some of everything that the model is conditioned on."""
  random = np.random.default_rng(seed)
  return {name: random.integers(condition.num_values, size=(num_images, *condition.shape)).astype(np.int32)
          for name, condition in model.conditions.items()}


def random_images(spec, num_images, seed=0):
  return np.random.default_rng(seed).integers(spec.levels, size=(num_images, *spec.shape)).astype(np.uint8)


def leave_run(workdir, config, steps=(1,)):
  """Leaves what training leaves to be loaded, with parameters of nobody's training; returns the state at each step."""
  model, optimizer = make_model(config.model, data.image_spec(config)), make_optimizer(config.optimizer, steps[-1])
  initial = init_state(model, optimizer, config)
  times = lambda factor: jax.tree.map(lambda x: factor * x, initial.params)
  runs.write_config(epath.Path(workdir), config)
  states = [initial.replace(step=jnp.int32(step), params=times(step),
                            ema_params=times(step + 1) if config.train.ema_decay else None) for step in steps]
  with Checkpoints(workdir, keep=len(steps)) as checkpoints:
    for step, state in zip(steps, states):
      checkpoints.save(step, state)
  return states


def parameter_shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0), *blank(model))['params']


def random_variables(model, scale=0.3, seed=0):
  """Normal numbers in every parameter, biases and norms too, so that nothing is switched off by a zero."""
  random = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(scale * random.standard_normal(leaf.shape), leaf.dtype)
  return {'params': jax.tree.map(draw, parameter_shapes(model))}


@functools.cache
def make_case(name, scale=0.3, **changes):
  """Model and random variables of one of CASES, with fields of its configuration changed."""
  config, spec = CASES[name]
  model = make_model(ModelConfig(**{**vars(config), **changes}), spec)
  return model, random_variables(model, scale)
