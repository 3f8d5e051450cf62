"""Neither what is generated later nor a position itself ever moves its parameters: exactly zero, at every pair.

And with N layers they do depend on exactly the positions that N steps through the paper's mask reach.
Exactly zero can be asked for because hidden weights are exactly zero. Images go through one by
one, as a matrix product may round two rows of a batch differently.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CASES, given_for, make_case, paper_visible, random_images
from image_transformer import attention


@pytest.fixture(scope='module', params=CASES)
def network(request):
  """A model, its variables, and its compiled forward pass."""
  model, variables = make_case(request.param)
  return model, variables, jax.jit(model.apply)


def mask(model):
  """The paper's visibility [positions, positions], raster order."""
  spec, config = model.spec, model.config
  return paper_visible(spec.height, spec.width, model.layout.image[-1], config.query_block, config.memory_flange,
                       config.scan, max(spec.frames, 1))


def generated_at(model):
  """When each position [raster order] is generated: 0, 1, 2, ..."""
  order = model.layout.order
  when = np.empty(model.layout.num_positions, int)
  when[order[order >= 0]] = np.arange(len(when))
  return when


def reach(model):
  """bool [position out, position fed in]: N steps through the mask, N layers."""
  visible = mask(model).astype(float)
  return np.linalg.matrix_power(visible, model.config.num_layers) > 0


def moved_by_each_intensity(model, variables, apply, **kwargs):
  """bool [position out, position in]: do its parameters move when an intensity there changes?"""
  image = random_images(model.spec, 1).astype(int)
  change = np.eye(image.size, dtype=int).reshape(-1, *image.shape) * (model.spec.levels // 2)

  def parameters(image):
    outputs = apply(variables, image % model.spec.levels, given_for(model, 1), **kwargs)
    return np.asarray(outputs).reshape(-1, model.likelihood.num_parameters)

  unchanged = parameters(image)
  moved = np.stack([(parameters(image + one) != unchanged).any(axis=-1) for one in change], axis=1)
  # Several intensities of a pixel are one position under DMOL.
  return moved.reshape(len(moved), -1, model.likelihood.values_per_position).any(axis=-1)


def test_values_move_only_with_earlier_positions(network):
  model, variables, apply = network
  moved = moved_by_each_intensity(model, variables, apply)
  when = generated_at(model)
  assert not moved[when[:, None] <= when].any()
  # Position p is fed into the slot of the position generated next, so p moves what that slot reaches.
  in_turn = np.argsort(when)
  np.testing.assert_array_equal(moved[:, in_turn[:-1]], reach(model)[:, in_turn[1:]])


def test_gradients_reach_exactly_the_slots_that_the_mask_reaches(network):
  """The Jacobian of every position's parameters, under random cotangents, by every slot's input embedding."""
  model, variables, _ = network
  slots = model.layout.slots
  cotangents = np.random.default_rng(1).standard_normal(model.likelihood.num_parameters)

  @jax.jit
  def influence(variables, image):
    encoded = model.apply(variables, given_for(model, 1), method='encode')
    embedded = model.apply(variables, image, encoded, method='embed_images')
    parameters, vjp = jax.vjp(lambda x: model.apply(variables, x, encoded, method='decode'), embedded)

    def of_one(slot):
      chosen = jnp.arange(model.layout.order.size) == slot
      gradient, = vjp((chosen[:, None] * cotangents).reshape(parameters.shape).astype(parameters.dtype))
      return jnp.abs(gradient).sum(axis=-1).ravel()

    return jax.lax.map(of_one, slots)

  gradients = np.asarray(influence(variables, random_images(model.spec, 1)))
  assert np.isfinite(gradients).all()
  np.testing.assert_array_equal(gradients[:, slots] > 0, reach(model))
  assert not np.delete(gradients, slots, axis=1).any(), 'padding has influence'
  assert not reach(model)[generated_at(model)[:, None] < generated_at(model)].any()
  assert not np.all(reach(model) == (generated_at(model)[:, None] >= generated_at(model))), 'too small a case'


@pytest.mark.parametrize('name', ['1d_categorical', '2d_dmol_classes_pre_norm'])
def test_values_under_dropout_move_only_with_earlier_positions(name):
  model, variables = make_case(name, dropout=0.3, attention_dropout=0.3)
  train = jax.jit(functools.partial(model.apply, train=True))
  moved = moved_by_each_intensity(model, variables, train, rngs={'dropout': jax.random.key(0)})
  when = generated_at(model)
  assert not moved[when[:, None] <= when].any()
  # Dropout only takes influences away.
  in_turn = np.argsort(when)
  assert not (moved[:, in_turn[:-1]] & ~reach(model)[:, in_turn[1:]]).any()
  assert moved[in_turn[1:], in_turn[:-1]].any()


def cached_parameters(model, variables, images, given):
  """The parameters of every position [B, positions, P], from one slot after another with caches.

  A slot is given the one intensity before it and the caches of what was before that, so later
  intensities cannot matter: they are not there.
  """
  layout = model.layout
  step = jax.jit(functools.partial(model.apply, method='step'))
  encoded = jax.jit(functools.partial(model.apply, method='encode'))(variables, given)
  values = images.astype(np.int32).reshape(len(images), layout.num_positions, -1)
  windows = model.empty_windows(len(images))
  begin = jax.jit(lambda windows: [attention.begin_block(window, layout) for window in windows])
  end = jax.jit(lambda *args: [attention.end_block(*pair) for pair in zip(*args)])
  parameters = np.zeros((len(images), layout.num_positions, model.likelihood.num_parameters), np.float32)
  for block in range(layout.num_blocks):
    caches = begin(windows)
    for slot in range(layout.block_size):
      fed = values[:, layout.previous[block, slot]]  # padding and the start get any
      outputs, caches = step(variables, fed, block, slot, encoded, caches)
      if layout.order[block, slot] >= 0:
        parameters[:, layout.order[block, slot]] = outputs
    windows = end(windows, caches)
  return parameters


def test_cached_parameters_equal_parallel_ones(network):
  model, variables, apply = network
  images, given = random_images(model.spec, 1), given_for(model, 1)
  parallel = apply(variables, images, given)
  cached = cached_parameters(model, variables, images, given)
  np.testing.assert_allclose(cached, parallel.reshape(cached.shape), atol=1e-4)
