"""Completion: what is given stays, the rest is drawn from the model given it, and what is hidden is not looked at."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CASES, case, given_for, make_case, random_images
from image_transformer import attention, devices
from image_transformer.errors import InputError
from image_transformer.model import make_model
from image_transformer.sampling import make_sampler, positions_in_rows, sample

NUM_IMAGES = 3
KEYS = jax.random.split(jax.random.key(0), NUM_IMAGES)

# Of every layout, likelihood and condition; from the second position of all, from inside a block, from the start of a
# block (after padding, too), and the last position alone.
COMPLETIONS = [
    ('1d_categorical', 1), ('1d_superres', 21), ('1d_zigzag_classes', 7), ('1d_hilbert', 32),
    ('2d_ragged_classes', 40), ('2d_ragged_classes', 42),
    ('2d_grey_dmol_ragged', 55), ('2d_superres_dmol_classes_pre_norm', 5),
    ('3d_categorical', 18), ('3d_dmol_ragged_classes', 40), ('1d_text', 7),
]


def kept(model, num_kept):
  """bool [H, W, C, or 1 where pixels are drawn whole]: what is generated first."""
  order = model.layout.order.ravel()[model.layout.generated]
  mask = np.zeros(len(order), bool)
  mask[order[:num_kept]] = True
  return mask.reshape(*model.spec.shape[:-1], -1)


@functools.cache
def completing(name, num_kept):
  """complete(images): completions, their log-probability as returned, and the model's own over what was drawn."""
  model, variables = make_case(name)
  given = given_for(model, NUM_IMAGES)

  @jax.jit
  def complete(variables, images):
    completions, log_prob = sample(model, variables, KEYS, given, 1.0, images, num_kept)
    parameters = model.apply(variables, completions, given)
    values = completions.reshape(*parameters.shape[:-1], -1).astype(jnp.int32)
    positions = model.likelihood.log_prob(parameters, values).reshape(NUM_IMAGES, *kept(model, num_kept).shape)
    return completions, log_prob, jnp.where(kept(model, num_kept), 0, positions).reshape(NUM_IMAGES, -1).sum(axis=1)

  return functools.partial(complete, variables)


@pytest.mark.parametrize('name, num_kept', COMPLETIONS)
def test_what_is_hidden_does_not_matter(name, num_kept):
  """Not even if it is no intensity at all."""
  model, _ = make_case(name)
  images = random_images(model.spec, NUM_IMAGES)
  noise = np.random.default_rng(5).integers(256, size=images.shape, dtype=np.uint8)
  for expected, got in zip(completing(name, num_kept)(images),
                           completing(name, num_kept)(np.where(kept(model, num_kept), images, noise))):
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('name, num_kept', [COMPLETIONS[1], COMPLETIONS[2], COMPLETIONS[4]])
def test_a_drawn_image_is_completed_to_itself(name, num_kept):
  """With its key: chance belongs to the position, not to how many were drawn before."""
  model, variables = make_case(name)
  given = given_for(model, NUM_IMAGES)
  drawn, _ = jax.jit(lambda variables: sample(model, variables, KEYS, given))(variables)
  completions, _, _ = completing(name, num_kept)(np.where(kept(model, num_kept), drawn, 0))
  np.testing.assert_array_equal(completions, drawn)


@pytest.mark.parametrize('name, num_kept', COMPLETIONS)
def test_given_positions_stay_and_the_rest_has_the_models_probability(name, num_kept):
  model, _ = make_case(name)
  images, mask = random_images(model.spec, NUM_IMAGES), kept(model, num_kept)
  completions, log_prob, expected = completing(name, num_kept)(images)
  np.testing.assert_array_equal(np.where(mask, completions, 0), np.where(mask, images, 0))
  assert (completions != images).any()
  np.testing.assert_allclose(log_prob, expected, rtol=1e-4)


@pytest.mark.parametrize('name', ['1d_categorical', '2d_ragged_classes', '2d_superres_dmol_classes_pre_norm'])
def test_prefilled_caches_equal_those_of_single_steps(name):
  """At every block: the halo where it holds anything, and the block's own slots."""
  model, variables = make_case(name)
  layout = model.layout
  images, given = random_images(model.spec, 2), given_for(model, 2)
  values = images.reshape(2, layout.num_positions, -1).astype(np.int32)

  @jax.jit
  def prefilled(variables):
    encoded = model.apply(variables, given, method='encode')
    return [[attention.begin_block(window, layout)
             for window in model.apply(variables, images, encoded, block, method='prefill')]
            for block in range(layout.num_blocks)]

  @jax.jit
  def step_by_step(variables):
    encoded = model.apply(variables, given, method='encode')
    previous = jnp.asarray(values)[:, layout.previous]

    def step(slot, caches, block):
      return model.apply(variables, previous[:, block, slot], block, slot, encoded, caches, method='step')[1]

    def run_block(windows, block):
      caches = jax.lax.fori_loop(0, layout.block_size, functools.partial(step, block=block),
                                 [attention.begin_block(window, layout) for window in windows])
      return [attention.end_block(*pair) for pair in zip(windows, caches)], caches

    return jax.lax.scan(run_block, model.empty_windows(len(images)), jnp.arange(layout.num_blocks))[1]

  slow = step_by_step(variables)
  for block, caches in enumerate(prefilled(variables)):
    matters = np.append(layout.memory[block, :layout.halo_size] >= 0, layout.order[block] >= 0)
    for layer, cache in enumerate(caches):
      for array, other in zip(cache, slow[layer]):
        difference = np.where(matters, array - other[block], 0)
        assert np.abs(difference).max(initial=0) <= 1e-5 * np.abs(other).max(), (block, layer)


def test_completions_of_one_image_differ_and_do_not_depend_on_the_batch():
  model, variables = make_case('2d_ragged_classes', num_layers=1)
  num_kept = positions_in_rows(model, 2)
  images = np.repeat(random_images(model.spec, 2), 3, axis=0)
  params, given = devices.replicate(variables['params']), given_for(model, 6)
  draw = lambda batch_size: make_sampler(model, batch_size, num_kept)(params, 0, 6, given, images=images)
  completions, log_probs = draw(6)
  np.testing.assert_array_equal(completions[:, :2], images[:, :2])
  assert len(np.unique(completions.reshape(6, -1), axis=0)) == 6
  again, again_log_probs = draw(4)
  np.testing.assert_array_equal(again, completions)
  np.testing.assert_allclose(again_log_probs, log_probs, rtol=1e-5)


@pytest.mark.parametrize('name', CASES)
def test_rows_are_a_number_of_positions_exactly_where_they_come_first(name):
  model, _ = make_case(name)
  height, what = model.spec.shape[0], 'frames' if model.spec.frames else 'rows'
  for rows in range(1, height):
    num_kept = rows * model.layout.num_positions // height
    if kept(model, num_kept)[:rows].all():
      assert positions_in_rows(model, rows) == num_kept
    else:
      with pytest.raises(InputError, match=f'first {rows} {what} cannot be kept'):
        positions_in_rows(model, rows)
    row_by_row = len(model.config.query_block) == 1 and model.config.scan == 'raster'
    assert not row_by_row or kept(model, num_kept)[:rows].all()


@pytest.mark.parametrize('query_block, rows, says', [
    ((3, 2), 1, 'can: 3.'), ((3, 2), 4, 'can: 3 or 6.'), ((3, 2), 7, 'can: 6.'), ((8, 2), 4, 'no number of rows'),
    ((3, 2), 0, 'in 1..7'), ((3, 2), True, 'in 1..7'), ((3, 2), 1.0, 'in 1..7'),
    ((3, 2), 8, 'in 1..7'), ((64,), -1, 'in 1..7')])
def test_rows_that_do_not_come_first_are_refused_with_the_nearest_that_do(query_block, rows, says):
  model = make_model(*case((8, 6, 3, 7), query_block=query_block, memory_flange=(1,) * len(query_block)))
  with pytest.raises(InputError, match='rows') as raised:
    positions_in_rows(model, rows)
  assert says in str(raised.value) and '\n' not in str(raised.value)


def test_only_the_upper_half_comes_first_on_hilberts_curve():
  model, _ = make_case('1d_hilbert')
  assert positions_in_rows(model, 4) == 32
  with pytest.raises(InputError, match="scan = 'hilbert'.* can: 4."):
    positions_in_rows(model, 5)


def test_blocks_as_wide_as_the_image_take_any_number_of_rows():
  model = make_model(*case((8, 6, 3, 7), query_block=(4, 6), memory_flange=(1, 1)))
  assert [positions_in_rows(model, rows) for rows in range(1, 8)] == [18 * rows for rows in range(1, 8)]
