"""A condition of another kind, with a mask, works beside the others in every path: what CONTRIBUTING promises."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CASES, apply, given_for, random_images, random_variables
from image_transformer import attention
from image_transformer import model as model_lib
from image_transformer.conditions import Condition, Encoding
from image_transformer.embeddings import Table
from image_transformer.errors import InputError
from image_transformer.model import make_model
from image_transformer.sampling import sample

LENGTH = 5


class WordsEncoder(nn.Module):
  """The first number is how many of the others count."""

  width: int

  def setup(self):
    self.word_table = Table(8 * LENGTH, self.width)

  def __call__(self, words_BC, batch_index_B):
    visible_BC = jnp.arange(LENGTH) < words_BC[:, :1]
    return Encoding(vector_BD=self.word_table(words_BC[:, 0]), visible_BC=visible_BC,
                    context_BCD=self.word_table(words_BC[:, 1:] + 8 * jnp.arange(LENGTH)))


class Words(Condition):
  name = 'words'
  has_context = True
  shape = (LENGTH + 1,)
  num_values = 8

  @classmethod
  def is_used(cls, config):
    return True

  def encoder(self):
    return WordsEncoder(self.config.hidden_size)


@pytest.fixture(params=['1d_categorical', '2d_superres_dmol_classes_pre_norm'])
def worded(request, monkeypatch):
  """A model with words, alone or beside a class and a small image; its variables, images and what they are given."""
  monkeypatch.setattr(model_lib, 'CONDITIONS', (*model_lib.CONDITIONS, Words))
  model = make_model(*CASES[request.param])
  given = given_for(model, 3)
  given['words'][:, 0] = [1, 3, LENGTH]
  return model, random_variables(model), random_images(model.spec, 3), given


def test_what_is_masked_has_no_influence_and_all_else_has(worded):
  model, variables, images, given = worded
  assert list(model.conditions)[-1] == 'words' and len(model.conditions) in (1, 3)
  log_prob = jax.jit(lambda given: model.apply(variables, images, given, method='log_prob'))
  expected = log_prob(given)
  for place in range(LENGTH):
    words = given['words'].copy()
    words[:, 1 + place] = (words[:, 1 + place] + 3) % 8
    moved = log_prob({**given, 'words': words}) != expected
    assert moved.tolist() == (place < given['words'][:, 0]).tolist(), place
  longer = [given['words'].copy(), given['words'].copy()]
  for words, length in zip(longer, (LENGTH, LENGTH + 1)):  # the same mask, another vector
    words[:, 0] = length
  assert (log_prob({**given, 'words': longer[0]}) != log_prob({**given, 'words': longer[1]})).all()
  for name, values in given.items():
    if name != 'words':
      changed = log_prob({**given, name: (values + 1) % model.conditions[name].num_values})
      assert (changed != expected).all(), name


def test_the_sampler_is_given_it_too(worded):
  model, variables, _, given = worded
  keys = jax.random.split(jax.random.key(0), 3)
  images, log_prob = jax.jit(lambda given: sample(model, variables, keys, given))(given)
  np.testing.assert_allclose(log_prob, apply(model, variables, images, given, method='log_prob'), rtol=1e-4)


def test_it_is_checked_like_the_others(worded):
  model, variables, images, given = worded
  for words, says in [(given['words'][:, 1:], r'words are|words is \[3, 5\], but must be \[3, 6\]'),
                      (given['words'] + 8, 'must be in 0..7'), (given['words'][:2], 'one for each image')]:
    with pytest.raises(InputError, match=says):
      model.apply(variables, images, {**given, 'words': words}, method='log_prob')


def test_full_attention_with_a_mask_is_attention_to_what_is_visible():
  random = np.random.default_rng(0)
  q, k, v = (jnp.asarray(random.standard_normal((2, size, 2, 4)), jnp.float32) for size in (3, 6, 6))
  visible = np.array([[True, False, True, True, False, False], [True] * 6])
  mixed, _ = attention.full_attention(q, k, v, visible_BC=visible)
  for i in range(2):
    expected, _ = attention.full_attention(q[i:i + 1], k[i:i + 1, visible[i]], v[i:i + 1, visible[i]])
    np.testing.assert_allclose(mixed[i:i + 1], expected, atol=1e-6)
  # Over any axes of queries.
  again, _ = attention.full_attention(q.reshape(2, 3, 1, 2, 4), k, v, visible_BC=visible)
  np.testing.assert_array_equal(again.reshape(mixed.shape), mixed)
