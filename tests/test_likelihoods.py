"""Each likelihood is one distribution: probabilities sum to 1, multiply to `log_prob`, and are what is sampled."""

import functools
import itertools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import given_for, make_case, random_images
from image_transformer.likelihoods import Categorical, DiscretizedLogisticMixture

CATEGORICAL = [Categorical(levels, 3) for levels in (2, 17, 256)]
DMOL = [DiscretizedLogisticMixture(levels, channels, num_mixtures=3)
        for levels, channels in itertools.product((2, 17, 256), (1, 3))]
LIKELIHOODS = CATEGORICAL + DMOL


def random_parameters(likelihood, count, scale=1.0):
  random = np.random.default_rng(0)
  return (scale * random.standard_normal((count, likelihood.num_parameters))).astype(np.float32)


def random_values(likelihood, count):
  random = np.random.default_rng(1)
  return random.integers(likelihood.levels, size=(count, likelihood.values_per_position)).astype(np.int32)


def is_dmol(likelihood):
  return isinstance(likelihood, DiscretizedLogisticMixture)


@pytest.mark.parametrize('likelihood', LIKELIHOODS, ids=str)
def test_probabilities_sum_to_one_and_multiply_to_log_prob(likelihood):
  values = random_values(likelihood, 50)

  @jax.jit
  def both(parameters):
    return likelihood.channel_probabilities(parameters, values), likelihood.log_prob(parameters, values)

  # At 3, logistics are between 1000 times wider than a bin and far narrower than one.
  for scale in (1.0, 3.0):
    probabilities, log_prob = both(random_parameters(likelihood, 50, scale))
    assert probabilities.shape == (50, likelihood.values_per_position, likelihood.levels)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-3 if is_dmol(likelihood) else 1e-5)
    assert log_prob.shape == (50,) and log_prob.dtype == jnp.float32
    chosen = np.take_along_axis(np.asarray(probabilities), values[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.exp(log_prob), chosen.prod(axis=-1), rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize('channels', [1, 3])
def test_dmol_is_the_formula_for_any_number_of_levels(channels):
  """PixelCNN++ in float64, pixel by pixel: products of differences of logistic functions."""
  likelihood = DiscretizedLogisticMixture(17, channels, num_mixtures=3)
  values = random_values(likelihood, 20)

  def probability(parameters, values):
    sizes = 3, 3 * channels, 3 * channels
    logits, means, log_scales, coefficients = np.split(parameters.astype(float), np.cumsum(sizes))
    x = values / 8 - 1
    total = 0
    for k in range(3):
      product = np.exp(logits[k]) / np.exp(logits).sum()
      for c, value in enumerate(values):
        mean, scale = means[channels * k + c], np.exp(log_scales[channels * k + c])
        if c > 0:  # green's one coefficient comes first, then blue's two
          own = np.tanh(coefficients[3 * k:3 * k + 3])[{1: [0], 2: [1, 2]}[c]]
          mean += own @ x[:c]
        below = 0 if value == 0 else 1 / (1 + np.exp(-(x[c] - 1 / 16 - mean) / scale))
        up_to = 1 if value == 16 else 1 / (1 + np.exp(-(x[c] + 1 / 16 - mean) / scale))
        product *= up_to - below
      total += product
    return total

  log_prob = jax.jit(likelihood.log_prob)
  # Far out, where bins have less than 1e-5, the density stands for them.
  for offset, rtol in ((0, 1e-4), (30, 2e-3)):
    parameters = random_parameters(likelihood, 20)
    parameters[:, 3:3 + 3 * channels] += offset
    expected = [np.log(probability(*pair)) for pair in zip(parameters, values)]
    np.testing.assert_allclose(log_prob(parameters, values), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize('likelihood', [Categorical(17, 3), *DMOL[:2]], ids=str)
def test_samples_have_the_probabilities(likelihood):
  """Frequencies of levels in 40000 draws, each channel given the sampled ones before it."""
  count = 40_000
  parameters = np.broadcast_to(random_parameters(likelihood, 1), (count, likelihood.num_parameters))
  values = np.asarray(jax.jit(likelihood.sample)(jax.random.key(0), parameters))
  assert values.shape == (count, likelihood.values_per_position) and values.dtype == np.int32
  probabilities = np.asarray(jax.jit(likelihood.channel_probabilities)(parameters, values))
  surprise = np.eye(likelihood.levels)[values] - probabilities  # mean 0, whatever came before
  # Uncorrelated with 1, and with the channel before.
  weights = np.stack([np.ones(values.shape), np.roll(values, 1, axis=-1) / (likelihood.levels - 1)])
  weights[1, :, 0] = 0
  for weight in weights:
    weighted = weight[..., None] * surprise
    deviation = np.sqrt((weight[..., None]**2 * probabilities * (1 - probabilities)).mean(axis=0) / count)
    assert np.all(np.abs(weighted.mean(axis=0)) <= 5 * deviation + 1e-5)


@pytest.mark.parametrize('likelihood', LIKELIHOODS, ids=str)
def test_drawn_probabilities_sum_to_one(likelihood):
  """And are those of the evaluation, which approximates bins of less than 1e-5."""
  for scale in (1.0, 1e4):
    parameters = random_parameters(likelihood, 50, scale)
    values = jax.jit(likelihood.sample)(jax.random.key(0), parameters)
    drawn = np.stack([jax.jit(functools.partial(likelihood.drawn_probabilities, channel=channel))(parameters, values)
                      for channel in range(values.shape[-1])], axis=-2)
    np.testing.assert_allclose(drawn.sum(axis=-1), 1, atol=3e-6)
    assert drawn.min() >= 0
    if scale == 1:
      np.testing.assert_allclose(drawn, likelihood.channel_probabilities(parameters, values), atol=3e-5)


@pytest.mark.parametrize('likelihood', LIKELIHOODS, ids=str)
def test_samples_are_levels(likelihood):
  for scale in (1.0, 1e4):
    values = jax.jit(likelihood.sample)(jax.random.key(0), random_parameters(likelihood, 200, scale))
    assert values.dtype == jnp.int32
    assert values.min() >= 0 and values.max() < likelihood.levels


@pytest.mark.parametrize('likelihood', [Categorical(17, 3), DMOL[1]], ids=str)
def test_lower_temperature_draws_likelier_values(likelihood):
  parameters = np.repeat(random_parameters(likelihood, 20), 500, axis=0)
  sample = jax.jit(likelihood.sample)
  top = sample(jax.random.key(0), parameters, 1e-6)
  shares = [(sample(jax.random.key(1), parameters, temperature) == top).mean() for temperature in (1.0, 0.5, 0.1)]
  assert shares[0] < shares[1] - 0.05 < shares[2] - 0.1
  np.testing.assert_array_equal(top, sample(jax.random.key(1), parameters, 1e-6))


def test_categorical_at_low_temperature_is_the_likeliest_level():
  parameters = random_parameters(Categorical(17, 3), 50)
  values = Categorical(17, 3).sample(jax.random.key(0), parameters, 1e-5)
  np.testing.assert_array_equal(values[..., 0], parameters.argmax(axis=-1))


def test_dmol_at_low_temperature_is_the_rounded_mean_of_the_likeliest_component():
  """One pixel by hand: green and blue are moved by the rounded channels before them."""
  likelihood = DiscretizedLogisticMixture(levels=17, channels=3, num_mixtures=2)
  logits = [0, 1]
  means = [0, 0, 0, 0.3, -0.2, 5]  # R G B of both components; blue leaves the range
  coefficients = np.arctanh([0, 0, 0, 0.5, 0, 0])
  parameters = np.concatenate([logits, means, np.zeros(6), coefficients]).astype(np.float32)
  red = round((0.3 + 1) * 8)  # 10, which is 0.25 and not 0.3
  green = round((-0.2 + 0.5 * (red / 8 - 1) + 1) * 8)
  values = likelihood.sample(jax.random.key(0), parameters[None], 1e-6)
  np.testing.assert_array_equal(values, [[red, green, 16]])


def test_dmol_conditions_on_what_it_emitted():
  """A sharp distribution shows whether the next channel saw the real number or the emitted level."""
  likelihood = DiscretizedLogisticMixture(levels=5, channels=3, num_mixtures=1)  # levels -1, -0.5, 0, 0.5, 1
  means, coefficients = [0.26, 0, 0.74], np.arctanh([0.999, 0, -0.999])
  parameters = np.concatenate([[0], means, np.full(3, -7), coefficients]).astype(np.float32)
  # Red 0.26 becomes 0.5, green 0 + 0.5 (a real red would give 0.26, the same level), blue 0.74 - 0.5.
  values = likelihood.emit(parameters, np.zeros(1, np.float32), np.zeros(3, np.float32))
  np.testing.assert_array_equal(values, [3, 3, 2])


COUNT = 100
EXTREME = st.sampled_from([0.0, 1.0, 7.5, 88.0, 1e4, 1e10, 1e19, 1e30, float(np.finfo(np.float32).max)])


@functools.cache
def functions_of(likelihood):
  """Compiled once for all examples: log-probabilities with their gradients, samples, probabilities."""

  def functions(key, parameters, values):
    pairs = jax.vmap(jax.value_and_grad(likelihood.log_prob))(parameters, values)
    return *pairs, likelihood.sample(key, parameters), likelihood.channel_probabilities(parameters, values)

  return jax.jit(functions)


@pytest.mark.parametrize('likelihood', LIKELIHOODS, ids=str)
@hypothesis.settings(max_examples=15, derandomize=True, deadline=None, database=None)
@hypothesis.given(sizes=st.lists(EXTREME, min_size=1, max_size=4), seed=st.integers(0, 10**6), through=st.sampled_from(
    [np.float32, jnp.bfloat16]))
def test_extreme_parameters_give_finite_numbers(likelihood, sizes, seed, through):
  """Of every magnitude at once, with either sign; first and last level, and the next to them, are among the values."""
  random = np.random.default_rng(seed)
  signs = random.choice([-1.0, 0.0, 1.0, random.uniform(-1, 1)], size=(COUNT, likelihood.num_parameters))
  with np.errstate(over='ignore'):  # bfloat16 rounds the largest float32 to infinity
    parameters = (random.choice(sizes, size=signs.shape) * signs).astype(through).astype(np.float32)
  ends = [0, 1, likelihood.levels - 2, likelihood.levels - 1, random.integers(likelihood.levels)]
  values = random.choice(ends, size=(COUNT, likelihood.values_per_position)).astype(np.int32)
  log_prob, gradient, drawn, probabilities = functions_of(likelihood)(jax.random.key(seed), parameters, values)
  assert np.isfinite(log_prob).all() and log_prob.max() < 1e-3 and np.isfinite(gradient).all()
  assert drawn.min() >= 0 and drawn.max() < likelihood.levels
  assert np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() < 1 + 1e-3


@pytest.mark.parametrize('likelihood', LIKELIHOODS, ids=str)
def test_what_is_no_number_is_still_drawn_as_a_level_but_has_no_probability(likelihood):
  parameters = np.full((COUNT, likelihood.num_parameters), np.nan, np.float32)
  parameters[COUNT // 2:, ::2] = np.inf
  log_prob, _, drawn, _ = functions_of(likelihood)(jax.random.key(0), parameters, random_values(likelihood, COUNT))
  assert np.isnan(log_prob).all()  # so that training stops
  assert drawn.min() >= 0 and drawn.max() < likelihood.levels


@pytest.mark.parametrize('likelihood', [Categorical(17, 3), DMOL[1]], ids=str)
def test_the_lowest_and_the_highest_temperature(likelihood):
  parameters, sample = random_parameters(likelihood, 500, 3.0), jax.jit(likelihood.sample)
  coldest = sample(jax.random.key(0), parameters, np.finfo(np.float32).tiny)
  np.testing.assert_array_equal(coldest, sample(jax.random.key(1), parameters, 1e-6))
  hot = sample(jax.random.key(0), parameters, 1e30)
  assert hot.min() == 0 and hot.max() == likelihood.levels - 1


@pytest.mark.parametrize('name', ['1d_categorical', '2d_dmol_classes_pre_norm'])
def test_a_model_in_bfloat16_with_large_activations_is_finite(name):
  model, variables = make_case(name, scale=30.0, dtype='bfloat16')
  images, given = random_images(model.spec, 2), given_for(model, 2)

  def log_prob(variables):
    return model.apply(variables, images, given, method='log_prob').sum()

  value, gradient = jax.jit(jax.value_and_grad(log_prob))(variables)
  assert value.dtype == jnp.float32 and np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('likelihood', [Categorical(17, 3), DMOL[0]], ids=str)
def test_computes_in_float32(likelihood):
  parameters, values = jnp.asarray(random_parameters(likelihood, 50), jnp.bfloat16), random_values(likelihood, 50)
  functions = likelihood.log_prob, likelihood.channel_probabilities
  both = jax.jit(lambda parameters: [function(parameters, values) for function in functions])
  for result, expected in zip(both(parameters), both(parameters.astype(jnp.float32))):
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
