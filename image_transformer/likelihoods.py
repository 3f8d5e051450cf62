"""Likelihoods of intensities: what the network's outputs mean (paper section 3.4).

Classes with a common interface. A likelihood defines how many values a position has, how they are
embedded, and how many parameters they need; `values` are integer intensities in 0..levels-1,
the last axis running over the channels predicted at one position: one for `Categorical`, all
channels of a pixel for `DiscretizedLogisticMixture`. Everything is float32 and in nats.
"""

from collections.abc import Callable, Sequence
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.embeddings import IntensityEmbedding, PixelEmbedding

# Differences, products and sums over an image of numbers up to this are still finite.
_LARGEST = 1e20


def _bounded(parameters):
  """The outputs of a network in float32, clipped so that they stay finite even far outside their usual range."""
  return jnp.clip(parameters.astype(jnp.float32), -_LARGEST, _LARGEST)


@dataclasses.dataclass(frozen=True)
class Categorical:
  """A softmax over the levels of one intensity; positions are single intensities."""

  levels: int
  channels: int

  values_per_position = 1
  output_bias = True

  @property
  def num_parameters(self) -> int:
    return self.levels

  def embedding(self, config: ModelConfig) -> nn.Module:
    """The module that embeds the values of a position; see `IntensityEmbedding`."""
    return IntensityEmbedding(self.levels, self.channels, config.hidden_size, config.embedding_gain)

  def positions(self, image_shape: Sequence[int]) -> tuple[int, ...]:
    """The positions of an image [H, W, C] as an array: [H, W, C]."""
    return tuple(image_shape)

  def log_prob(self, parameters: jax.Array, values: jax.Array) -> jax.Array:
    """Nats [...] of values [..., 1] under parameters [..., levels]."""
    log_probs = jax.nn.log_softmax(_bounded(parameters))
    return jnp.take_along_axis(log_probs, values.astype(jnp.int32), axis=-1)[..., 0]

  def sample(self, key: jax.Array, parameters: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Draws int32 values [..., 1] from the logits divided by the temperature."""
    # Equivalent to adding the noise to logits / temperature, which a low temperature would make infinite.
    noisy = _bounded(parameters) + temperature * jax.random.gumbel(key, parameters.shape)
    return jnp.argmax(noisy, axis=-1, keepdims=True).astype(jnp.int32)

  def channel_probabilities(self, parameters: jax.Array, values: jax.Array) -> jax.Array:
    """Probabilities [..., 1, levels] of every level; `values` is ignored."""
    return self.drawn_probabilities(parameters, values, 0)[..., None, :]

  def drawn_probabilities(self, parameters: jax.Array, values: jax.Array, channel: int) -> jax.Array:
    """Probabilities [..., levels] with which `sample` draws every level."""
    del values, channel
    return jax.nn.softmax(_bounded(parameters))


@dataclasses.dataclass(frozen=True)
class DiscretizedLogisticMixture:
  """A mixture of discretized logistics over the channels of a pixel (PixelCNN++, Salimans et al. 2017).

  Parameters, last axis: K mixture logits, K x channels means, K x channels log-scales
  and, for RGB, K x 3 coefficients by which the true earlier channels shift the means of
  the later ones. Intensities are scaled to [-1, 1]; a level is a bin around its value,
  and the first and the last bin include the tails. Bins of probability below 1e-5 are approximated
  by the density at their centre, so probabilities sum to 1 within about 1e-3.
  """

  levels: int
  channels: int
  num_mixtures: int

  output_bias = False

  @property
  def values_per_position(self) -> int:
    return self.channels

  @property
  def num_parameters(self) -> int:
    return self.num_mixtures * (1 + 2 * self.channels + self._num_coefficients)

  def embedding(self, config: ModelConfig) -> nn.Module:
    """The module that embeds the values of a position; see `PixelEmbedding`."""
    return PixelEmbedding(self.levels, config.hidden_size, config.embedding_gain, config.embedding_bias)

  def positions(self, image_shape: Sequence[int]) -> tuple[int, ...]:
    """The positions of an image [H, W, C] as an array: [H, W]."""
    return tuple(image_shape[:-1])

  @property
  def _num_coefficients(self) -> int:
    return self.channels * (self.channels - 1) // 2

  def _split(self, parameters):
    """logits [..., K]; means, log-scales [..., K, C]; coefficients [..., K, C * (C - 1) / 2]."""
    k, c = self.num_mixtures, self.channels
    logits, *groups = jnp.split(_bounded(parameters), np.cumsum([k, k * c, k * c]), axis=-1)
    means, log_scales, coefficients = (
        group.reshape(*group.shape[:-1], k, size)
        for group, size in zip(groups, (c, c, self._num_coefficients)))
    return logits, means, jnp.maximum(log_scales, -7.0), jnp.tanh(coefficients)

  def _scale(self, values):
    return values.astype(jnp.float32) / ((self.levels - 1) / 2) - 1

  def _conditional_mean(self, channel, means, coefficients, earlier):
    """The mean of one channel given `earlier`, the scaled channels before it [..., channel]."""
    first = channel * (channel - 1) // 2
    shift = coefficients[..., first:first + channel] * earlier[..., :channel]
    return means[..., channel] + shift.sum(axis=-1)

  def _bin_log_prob(self, values, mean, log_scale):
    """Log-probability of integer levels under one logistic; everything broadcasts."""
    inverse_scale = jnp.exp(-log_scale)
    centred, half = (self._scale(values) - mean) * inverse_scale, inverse_scale / (self.levels - 1)
    # By symmetry, subtracts the sigmoids on the side where they are small, which keeps precision.
    outside = -jnp.abs(centred)
    mass = jax.nn.sigmoid(outside + half) - jax.nn.sigmoid(outside - half)
    density = centred - log_scale - 2 * jax.nn.softplus(centred) - np.log((self.levels - 1) / 2)
    # The inner maximum keeps the branch that is not taken from making the gradient NaN.
    inside = jnp.where(mass > 1e-5, jnp.log(jnp.maximum(mass, 1e-12)), density)
    return jnp.where(values == 0, jax.nn.log_sigmoid(centred + half),
                     jnp.where(values == self.levels - 1, jax.nn.log_sigmoid(half - centred), inside))

  def _component_log_probs(self, parameters, values):
    """log pi [..., K] and log p(channel | earlier, component) [..., K, C]."""
    logits, means, log_scales, coefficients = self._split(parameters)
    values = values[..., None, :]
    scaled = self._scale(values)
    conditional = jnp.stack([self._conditional_mean(channel, means, coefficients, scaled)
                             for channel in range(self.channels)], axis=-1)
    return jax.nn.log_softmax(logits), self._bin_log_prob(values, conditional, log_scales)

  def log_prob(self, parameters: jax.Array, values: jax.Array) -> jax.Array:
    """Nats [...] of pixels [..., C] under parameters [..., num_parameters]."""
    log_weights, log_probs = self._component_log_probs(parameters, values)
    return jax.nn.logsumexp(log_weights + log_probs.sum(axis=-1), axis=-1)

  def sample(self, key: jax.Array, parameters: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
    """Draws int32 pixels [..., C].

    The temperature divides the mixture logits and multiplies the scales of the
    logistics; in the limit of 0, this draws the most likely component's mean.
    """
    key_mixture, key_logistic = jax.random.split(key)
    gumbel = jax.random.gumbel(key_mixture, (*parameters.shape[:-1], self.num_mixtures))
    logistic = jax.random.logistic(key_logistic, (*parameters.shape[:-1], self.channels))
    return self.emit(parameters, gumbel * temperature, logistic * temperature)

  def emit(self, parameters: jax.Array, gumbel: jax.Array, logistic: jax.Array) -> jax.Array:
    """Turns Gumbel noise [..., K] and logistic noise [..., C] into int32 pixels [..., C].

    Each channel is rounded to a level before the next is conditioned on it.
    """
    logits, means, log_scales, coefficients = self._split(parameters)
    chosen = jnp.argmax(logits + gumbel, axis=-1)[..., None, None]
    means, log_scales, coefficients = (jnp.take_along_axis(x, chosen, axis=-2)[..., 0, :]
                                       for x in (means, log_scales, coefficients))
    values, scaled = [], jnp.zeros_like(means)
    for channel in range(self.channels):
      mean = self._conditional_mean(channel, means, coefficients, scaled)
      real = mean + jnp.exp(log_scales[..., channel]) * logistic[..., channel]
      level = jnp.clip(jnp.round((real + 1) * ((self.levels - 1) / 2)), 0, self.levels - 1)
      values.append(level.astype(jnp.int32))
      scaled = scaled.at[..., channel].set(self._scale(level))
    return jnp.stack(values, axis=-1)

  def channel_probabilities(self, parameters: jax.Array, values: jax.Array) -> jax.Array:
    """p(level | earlier channels of `values`) for every channel and level: [..., C, levels]."""
    log_weights, log_probs = self._component_log_probs(parameters, values)
    _, means, log_scales, coefficients = self._split(parameters)
    scaled, levels = self._scale(values[..., None, :]), jnp.arange(self.levels)
    probabilities = []
    for channel in range(self.channels):
      mean = self._conditional_mean(channel, means, coefficients, scaled)
      log_bins = self._bin_log_prob(levels, mean[..., None], log_scales[..., channel, None])
      # The posterior of the components, given the earlier channels.
      posterior = jax.nn.log_softmax(log_weights + log_probs[..., :channel].sum(axis=-1))
      probabilities.append(jnp.exp(jax.nn.logsumexp(posterior[..., None] + log_bins, axis=-2)))
    return jnp.stack(probabilities, axis=-2)

  def drawn_probabilities(self, parameters: jax.Array, values: jax.Array, channel: int) -> jax.Array:
    """Probabilities [..., levels] with which `sample` draws each level of a channel, given the earlier channels.

    The masses of all bins, without the approximation of those that hold little, so that they sum to 1.
    """
    log_weights, log_probs = self._component_log_probs(parameters, values)
    _, means, log_scales, coefficients = self._split(parameters)
    posterior = jax.nn.softmax(log_weights + log_probs[..., :channel].sum(axis=-1))
    mean = self._conditional_mean(channel, means, coefficients, self._scale(values[..., None, :]))
    edges = self._scale(jnp.arange(self.levels - 1) + 0.5)
    below = jax.nn.sigmoid((edges - mean[..., None]) * jnp.exp(-log_scales[..., channel, None]))
    below = jnp.einsum('...K,...KL->...L', posterior, below, precision='highest')
    return jnp.maximum(jnp.diff(below, prepend=0, append=1), 0)


Likelihood = Categorical | DiscretizedLogisticMixture

# By name, `model.likelihood`.
LIKELIHOODS: dict[str, Callable[[ModelConfig, ImageSpec], Likelihood]] = {
    'categorical': lambda config, spec: Categorical(spec.levels, spec.channels),
    'dmol': lambda config, spec: DiscretizedLogisticMixture(spec.levels, spec.channels, config.num_mixtures),
}


def make_likelihood(config: ModelConfig, spec: ImageSpec) -> Likelihood:
  """The likelihood that `config` names, for images of `spec`."""
  return LIKELIHOODS[config.likelihood](config, spec)
