"""The cached sampler draws from the model that is evaluated, and image i depends on (seed, i) alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CASES, given_for, make_case, random_images
from image_transformer import devices, pictures
from image_transformer.conditions import default_given
from image_transformer.model import in_compute_type
from image_transformer.sampling import make_sampler, sample


def check_log_prob(model, variables, rtol):
  """At other temperatures too: the draw changes, the distribution that is reported does not."""
  given = given_for(model, 4)

  @jax.jit
  def draw(variables, keys, temperature):
    images, log_prob = sample(model, variables, keys, given, temperature)
    return images, log_prob, model.apply(variables, images, given, method='log_prob')

  for temperature in (1.0, 0.6):
    images, log_prob, expected = draw(variables, jax.random.split(jax.random.key(0), 4), temperature)
    assert images.dtype == jnp.uint8 and images.shape == (4, *model.spec.shape)
    assert int(images.max()) < model.spec.levels
    assert len(np.unique(np.asarray(images).reshape(4, -1), axis=0)) == 4
    np.testing.assert_allclose(log_prob, expected, rtol=rtol)


@pytest.mark.parametrize('name', CASES)
def test_log_prob_of_samples_is_the_models(name):
  check_log_prob(*make_case(name), rtol=1e-4)


def test_log_prob_of_samples_in_bfloat16():
  """Looser: the cached and the parallel path round at different places, about 2^-8 each time."""
  check_log_prob(*make_case('2d_ragged_classes', dtype='bfloat16'), rtol=1e-2)


@pytest.fixture(scope='module')
def drawing():
  """draw(seed, num_images, labels, temperature, batch_size) from a small class-conditional model."""
  model, variables = make_case('2d_ragged_classes', num_layers=1)
  params = devices.replicate(variables['params'])
  samplers = {}

  def draw(seed=0, num_images=5, labels=None, temperature=1.0, batch_size=5):
    if batch_size not in samplers:
      samplers[batch_size] = make_sampler(model, batch_size)
    labels = np.arange(num_images) % 3 if labels is None else labels
    return samplers[batch_size](params, seed, num_images, {'label': labels}, temperature)

  return draw


@pytest.mark.parametrize('batch_size', [1, 2])
def test_images_do_not_depend_on_the_batch_size(drawing, batch_size):
  images, log_probs = drawing()
  assert images.shape == (5, 5, 7, 3) and log_probs.shape == (5,)
  again, again_log_probs = drawing(batch_size=batch_size)
  np.testing.assert_array_equal(again, images)
  np.testing.assert_allclose(again_log_probs, log_probs, rtol=1e-5)


def test_seeds_and_labels_change_the_images(drawing):
  images, _ = drawing(labels=np.zeros(5, int))
  np.testing.assert_array_equal(drawing(labels=np.zeros(5, int))[0], images)
  for others, _ in (drawing(seed=1, labels=np.zeros(5, int)), drawing(labels=np.ones(5, int))):
    assert (others != images).any(axis=(1, 2, 3)).all()


def test_at_low_temperature_the_seed_does_not_matter(drawing):
  images, _ = drawing(temperature=1e-6)
  np.testing.assert_array_equal(drawing(seed=1, temperature=1e-6)[0], images)
  np.testing.assert_array_equal(images[0], images[3])  # of the same class


def test_labels_that_nobody_gives_are_rows_of_classes():
  model, _ = make_case('2d_ragged_classes')  # three classes
  for number, labels, columns in [(1, [0], 1), (2, [0, 1], 2), (3, [0, 1, 2], 1), (6, [0, 0, 1, 1, 2, 2], 2),
                                  (7, [0, 0, 1, 1, 2, 2, 0], 3)]:
    given, found = default_given(model.conditions, number)
    assert given['label'].tolist() == labels and found == columns
  model, _ = make_case('2d_categorical')
  assert default_given(model.conditions, 10) == ({}, 4)


def test_a_grid_of_a_class_each_says_which():
  model, _ = make_case('2d_ragged_classes')
  images = np.zeros((7, *model.spec.shape), np.uint8)
  given, columns = default_given(model.conditions, 7)
  plain = pictures.grid(images, model.spec.levels, columns)
  captioned = pictures.grid_of(model, given, images, columns)
  assert captioned.shape[1] == plain.shape[1] and captioned.shape[0] - plain.shape[0] == 3 * (12 + 6)
  rows = np.array_split(captioned.max(axis=(1, 2)) > 200, 3)
  assert all(row.any() for row in rows) and plain.max() < 200, 'text above each row of images'


@pytest.mark.parametrize('name', ['1d_dmol', '1d_text'])
def test_parameters_in_the_compute_type_are_those_that_are_used(name):
  model, variables = make_case(name, dtype='bfloat16')
  params = in_compute_type(model, variables['params'])
  types = {str(path[-2].key): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(params['decoder'])}
  assert types['ffn_norm'] == jnp.float32 and types['key'] == types['hidden'] == jnp.bfloat16
  assert params['output']['kernel'].dtype == jnp.float32
  images, given = random_images(model.spec, 2), given_for(model, 2)
  log_prob = jax.jit(lambda params: model.apply({'params': params}, images, given, method='log_prob'))
  np.testing.assert_array_equal(log_prob(params), log_prob(variables['params']))
