"""Rotary coordinates: what attention sees is how far apart two positions are."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.embeddings import rotate, rotation
from image_transformer.errors import InputError
from image_transformer.small_images import SmallImage
from image_transformer.transformer import Context, Layer, Rotations

ROTARY = ModelConfig(hidden_size=32, num_heads=2, coordinates='rotary')


def logits(config, query_at, key_at):
  """Products of the same random query and key at given coordinates."""
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 16))
  places = [rotation(config, [jnp.array([float(x)]) for x in at]) for at in (query_at, key_at)]
  return (rotate(q, places[0]) * rotate(k, places[1])).sum(-1)


@pytest.mark.parametrize('query, key, shift', [((3, 5), (1, 9), (4, 7)), ((3, 5, 2), (3, 4, 0), (9, 9, 0))])
def test_only_the_distance_counts(query, key, shift):
  here = logits(ROTARY, query, key)
  np.testing.assert_allclose(logits(ROTARY, np.add(query, shift), np.add(key, shift)), here, atol=1e-5)
  for axis in range(len(query)):
    moved = np.array(key)
    moved[axis] += 1
    assert np.abs(logits(ROTARY, query, moved) - here).max() > 0.1


def test_only_a_context_with_coordinates_is_met_by_rotated_queries():
  """A text lies nowhere in the image: where the query is does not matter to it."""
  layer, random = Layer(ROTARY, cross=True), np.random.default_rng(0)
  x = random.standard_normal((1, 5, 32)).astype(np.float32)
  k, v = random.standard_normal((2, 1, 3, 2, 16)).astype(np.float32)
  by = rotation(ROTARY, [jnp.arange(5.0), jnp.arange(5.0)])

  def run(layer, rotations):  # self-attention returns the values, whatever the queries
    return layer(x, lambda q, k, v, drops: (v, None), None, rotations, Context(k, v, None))[0]

  variables = nn.init(run, layer)(jax.random.key(0), Rotations(None, None, by))
  plain, here, located = (nn.apply(run, layer)(variables, rotations) for rotations in (
      Rotations(None, None), Rotations(by, by), Rotations(by, by, by)))
  np.testing.assert_array_equal(here, plain)
  assert np.abs(located - plain).max() > 1e-4


def test_the_angles_are_those_documented():
  by = rotation(ROTARY, [jnp.array([0., 2.]), jnp.array([1., 0.])])
  want = np.pi / 2 * 50.0**(-np.arange(4) / 4)
  np.testing.assert_allclose(by.cos_XP, np.cos([[*0 * want, *want], [*2 * want, *0 * want]]), atol=1e-6)
  np.testing.assert_allclose(by.sin_XP, np.sin([[*0 * want, *want], [*2 * want, *0 * want]]), atol=1e-6)
  assert rotation(ModelConfig(), [jnp.zeros(1)]) is None


def test_a_small_image_lies_at_its_place_in_the_large_one():
  config = ModelConfig(hidden_size=32, num_heads=2, coordinates='rotary', upscale=2, num_encoder_layers=1,
                       likelihood='dmol')
  condition = SmallImage(config, ImageSpec(4, 6, 3))
  encoder = condition.encoder()
  encoding, _ = encoder.init_with_output(jax.random.key(0), jnp.zeros((1, *condition.shape), jnp.int32), None)
  rows, columns = encoding.coordinates
  np.testing.assert_array_equal(rows, [0.5, 0.5, 0.5, 2.5, 2.5, 2.5])
  np.testing.assert_array_equal(columns, [0.5, 2.5, 4.5] * 2)


@pytest.mark.parametrize('width', [2, 4, 7])
def test_heads_that_cannot_be_rotated_are_refused(width):
  with pytest.raises(InputError, match=f'model.num_heads is 2.*even width, 6 or more.*not {width}'):
    ModelConfig(hidden_size=2 * width, num_heads=2, coordinates='rotary')


def test_the_narrowest_heads_tell_every_axis_apart():
  by = rotation(ModelConfig(hidden_size=12, num_heads=2, coordinates='rotary'), jnp.eye(3))
  assert len(np.unique(np.round(by.sin_XP, 3), axis=0)) == 3
