"""The whole network: initial weights, size, number types, dropout, rematerialisation and classes."""

from flax import linen as nn
from flax import traverse_util
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import CASES, case, given_for, make_case, parameter_shapes, random_images
from image_transformer.attention import full_attention
from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.dropout import Dropout, Drops
from image_transformer.errors import InputError
from image_transformer.model import init_params, make_model, num_parameters
from image_transformer.transformer import Context, Layer, Rotations, Stack, layer_norm

CIFAR10 = ImageSpec(32, 32, 3)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def test_parameter_count_of_the_papers_model():
  """38.3 million, and how they add up."""
  d, ffn = 512, 2048
  layer = 4 * d * d + (d * ffn + ffn) + (ffn * d + d) + 2 * 2 * d
  assert num_parameters(make_model(ModelConfig(), CIFAR10)) == 768 * d + 12 * layer + (d * 256 + 256) == 38_328_576


def test_parameter_count_of_the_papers_dmol_model():
  """9.5 million with position tables of the size of the image; the original's 3075 rows make 11.1."""
  d, qkv, ffn = 256, 512, 512
  layer = 4 * d * qkv + (d * ffn + ffn) + (ffn * d + d) + 2 * 2 * d
  config = ModelConfig(hidden_size=d, qkv_size=qkv, ffn_size=ffn, num_heads=8, likelihood='dmol',
                       coordinates='learned')
  number = num_parameters(make_model(config, CIFAR10))
  assert number == (3 * d + d) + 2 * 32 * d + 12 * layer + d * 100
  assert round(number / 1e6, 1) == 9.5


def initialised(**config):
  config, spec = case((8, 8, 3, 256, 10), query_block=(16,), memory_flange=(16,), num_layers=1,
                      hidden_size=64, ffn_size=96, class_conditional=True, **config)
  model = make_model(config, spec)
  return flat(init_params(model, 0))


@pytest.mark.parametrize('likelihood', ['categorical', 'dmol'])
def test_official_initialisation(likelihood):
  """variance_scaling(0.2, fan_avg, uniform): within +- sqrt(3 * 0.2 / mean of fan in and out)."""
  for name, leaf in initialised(likelihood=likelihood, coordinates='learned').items():
    if name.startswith('coordinates'):  # normal, of deviation d^-0.5
      np.testing.assert_allclose(leaf.std(), 64**-0.5, rtol=0.1, err_msg=name)
    elif leaf.ndim == 1:
      np.testing.assert_array_equal(leaf, 1 if 'scale' in name else 0, err_msg=name)
    else:
      fan_in, fan_out = leaf.shape
      if 'conv' in name:
        fan_out *= 3  # three taps
      limit = np.sqrt(3 * 0.2 / ((fan_in + fan_out) / 2))
      assert 0.95 * limit < np.abs(leaf).max() <= limit, name
      np.testing.assert_allclose(leaf.var(), limit**2 / 3, rtol=0.2, err_msg=name)


@pytest.mark.parametrize('name', ['1d_categorical', '1d_text'])
def test_remat_changes_nothing(name):
  """Under dropout too: the masks of the second forward pass are those of the first."""
  changes = dict(num_layers=1, dropout=0.3, attention_dropout=0.2)
  model, variables = make_case(name, **changes)
  frugal, _ = make_case(name, remat=True, **changes)
  assert flat(parameter_shapes(model)).keys() == flat(parameter_shapes(frugal)).keys()
  images, given = random_images(model.spec, 3), given_for(model, 3)

  def value_and_gradients(model):
    loss = lambda variables: -model.apply(variables, images, given, train=True, rngs={'dropout': jax.random.key(1)},
                                          method='log_prob').mean() / model.spec.num_dims
    return jax.jit(jax.value_and_grad(loss))

  once, twice = value_and_gradients(model), value_and_gradients(frugal)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), once(variables), twice(variables))
  # And the layers really are marked for a second pass.
  marks = [str(jax.make_jaxpr(function)(variables)).count('remat') for function in (once, twice)]
  assert marks[0] == 0 < marks[1]


@pytest.mark.parametrize('name', ['2d_ragged_classes', '2d_grey_dmol_ragged'])
def test_log_prob_is_the_sum_over_the_positions_of_the_image(name):
  """Each once, and nothing of the padding."""
  model, variables = make_case(name)
  images, given = random_images(model.spec, 3), given_for(model, 3)
  log_prob = jax.jit(lambda v: model.apply(v, images, given, method='log_prob'))(variables)
  parameters = jax.jit(model.apply)(variables, images, given)
  values = images.reshape(*parameters.shape[:-1], -1)
  positions = jax.jit(model.likelihood.log_prob)(parameters, values)
  np.testing.assert_allclose(log_prob, positions.reshape(3, -1).sum(axis=1), rtol=1e-5)


def test_bfloat16_is_for_the_layers_alone():
  """Matrix products of the layers; parameters, norms and the likelihood's parameters stay float32."""
  model, variables = make_case('2d_dmol')
  coarse, _ = make_case('2d_dmol', dtype='bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(parameter_shapes(coarse))} == {jnp.dtype('float32')}
  images = random_images(model.spec, 4)

  def run(model):
    outputs = lambda module, _: isinstance(module, (nn.Dense, nn.LayerNorm))
    parameters, state = model.apply(variables, images, capture_intermediates=outputs, mutable='intermediates')
    return parameters, model.apply(variables, images, method='log_prob'), flat(state['intermediates'])

  parameters, log_prob, inside = jax.jit(run, static_argnums=0)(coarse)
  for name, (output,) in inside.items():
    low = name.startswith('decoder/layer_') and 'norm' not in name
    assert output.dtype == (jnp.bfloat16 if low else jnp.float32), name
  assert parameters.dtype == log_prob.dtype == jnp.float32
  assert np.mean(parameters == parameters.astype(jnp.bfloat16)) < 0.1, 'rounded after all'
  np.testing.assert_allclose(log_prob, jax.jit(run, static_argnums=0)(model)[1], rtol=0.02)


def products(jaxpr):
  """All matrix products of a program."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from products(inner)


@pytest.mark.parametrize('name, dtype', [('2d_dmol', 'float32'), ('1d_superres', 'float32'), ('2d_dmol', 'bfloat16')])
def test_products_of_float32_are_exact_on_every_backend(name, dtype):
  """Forward and backward; by default GPUs would round their operands to TF32, TPUs to bfloat16."""
  model, variables = make_case(name, dtype=dtype)
  images, given = random_images(model.spec, 2), given_for(model, 2)
  loss = lambda variables: model.apply(variables, images, given, method='log_prob').sum()
  found = list(products(jax.make_jaxpr(jax.grad(loss))(variables).jaxpr))
  in_float32 = [one for one in found if {operand.aval.dtype for operand in one.invars} == {jnp.dtype('float32')}]
  assert len(in_float32) == len(found) if dtype == 'float32' else 0 < len(in_float32) < len(found)
  for one in in_float32:
    assert one.params['precision'] == (jax.lax.Precision.HIGHEST,) * 2, one


def test_the_embedding_can_begin_with_other_biases_and_all_else_stays():
  """Golden arrays hold the initial values of version 0.1, among them biases of zero."""
  changed, zero = (init_params(make_case('2d_dmol', hidden_size=512, embedding_bias=bias)[0], 0) for bias in (2.0, 0.0))
  bias = changed['embedding']['conv'].pop('bias')
  assert abs(np.std(bias) - 2) < 0.3 and not zero['embedding']['conv'].pop('bias').any()
  jax.tree.map(np.testing.assert_array_equal, changed, zero)


@pytest.mark.parametrize('name, kernel', [('1d_categorical', 'table/embedding'), ('2d_dmol', 'conv/kernel')])
def test_the_gain_multiplies_what_embeds_intensities(name, kernel):
  one, five = (flat(init_params(make_case(name, embedding_gain=gain)[0], 0)) for gain in (1.0, 5.0))
  for key in one:
    np.testing.assert_allclose(five[key], (5 if key == f'embedding/{kernel}' else 1) * one[key], rtol=1e-6, err_msg=key)


def test_layer_norm_is_float32_on_bfloat16_inputs():
  """Numbers around 100 that differ by 0.5: in bfloat16 their mean alone would be off by 0.25, a quarter deviation."""
  random = np.random.default_rng(0)
  x = jnp.asarray(100 + 0.5 * random.integers(-3, 4, size=(16, 512)), jnp.bfloat16)
  scale, bias = random.standard_normal((2, 512)).astype(np.float32)

  class Norm(nn.Module):

    @nn.compact
    def __call__(self, x):
      return layer_norm(ModelConfig(dtype='bfloat16'), 'norm')(x)

  y = Norm().apply({'params': {'norm': {'scale': scale, 'bias': bias}}}, x)
  assert y.dtype == jnp.bfloat16
  exact = np.asarray(x, np.float64)
  normed = (exact - exact.mean(axis=-1, keepdims=True)) / np.sqrt(exact.var(axis=-1, keepdims=True) + 1e-6)
  # One rounding, of the result: 2^-8. Then float32's own error, with a mean of 100 deviations.
  np.testing.assert_allclose(np.asarray(y, np.float64), normed * scale + bias, rtol=2**-8, atol=2e-3)


@pytest.mark.parametrize('norm', ['post', 'pre'])
def test_layers_are_those_of_the_paper_or_normalise_first(norm):
  """Against NumPy, with attention that returns the values of the position itself."""
  config = ModelConfig(norm=norm, hidden_size=8, num_heads=2, ffn_size=12)
  stack, random = Stack(config, num_layers=2), np.random.default_rng(0)
  x = 1e-3 * random.standard_normal((2, 5, 8)).astype(np.float32)  # small, so that the norms' epsilon matters
  inputs = [lambda q, k, v, drops: (v, None)] * 2, None, Rotations(None, None), [None] * 2
  shapes = jax.eval_shape(lambda: stack.init(jax.random.key(0), x, *inputs))['params']
  params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), shapes)
  own = {name: value.astype(np.float64) for name, value in flat(params).items()}

  def layer_norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * own[f'{name}/scale'] + own[f'{name}/bias']

  def residual(x, name, sublayer):
    return layer_norm(x + sublayer(x), name) if norm == 'post' else x + sublayer(layer_norm(x, name))

  y = x.astype(np.float64)
  for layer in ('layer_0', 'layer_1'):
    values, mixed = (own[f'{layer}/self_attention/{part}/kernel'] for part in ('value', 'output'))
    w_1, b_1, w_2, b_2 = (own[f'{layer}/ffn/{part}'] for part in (
        'hidden/kernel', 'hidden/bias', 'output/kernel', 'output/bias'))
    y = residual(y, f'{layer}/self_attention_norm', lambda x: x @ values @ mixed)
    y = residual(y, f'{layer}/ffn_norm', lambda x: np.maximum(x @ w_1 + b_1, 0) @ w_2 + b_2)
  expected = layer_norm(y, 'final_norm') if norm == 'pre' else y
  np.testing.assert_allclose(stack.apply({'params': params}, x, *inputs)[0], expected, rtol=1e-4, atol=1e-4)


def test_every_branch_of_a_layer_has_dropout():
  """If nearly all is dropped, a layer that normalises first returns its input."""
  config = ModelConfig(norm='pre', hidden_size=8, num_heads=2, ffn_size=12, dropout=0.99999)
  layer, x = Layer(config, cross=True), np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
  k, v = np.ones((2, 2, 3, 2, 4), np.float32)

  def run(layer, batch_index):
    return layer(x, lambda q, k, v, drops: (v, None), batch_index, Rotations(None, None), Context(k, v, None))[0]

  variables = nn.init(run, layer)({'params': jax.random.key(0), 'dropout': jax.random.key(1)}, np.arange(2))
  out = nn.apply(run, layer)(variables, np.arange(2), rngs={'dropout': jax.random.key(1)})
  np.testing.assert_array_equal(out, x)
  assert (np.asarray(nn.apply(run, layer)(variables, None)) != x).all()


def test_the_embedded_input_has_dropout():
  stack = Stack(ModelConfig(norm='pre', hidden_size=8, num_heads=2, ffn_size=12, dropout=0.99999), num_layers=0)
  x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
  inputs = [], np.arange(2), Rotations(None, None), []
  rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  out, _ = stack.apply(stack.init(rngs, x, *inputs), x, *inputs, rngs=rngs)
  assert x.any() and not np.asarray(out).any()


@pytest.mark.parametrize('name', ['1d_text', '1d_superres'])
@pytest.mark.parametrize('field', ['dropout', 'attention_dropout'])
def test_encoders_have_dropout(name, field):
  model, variables = make_case(name, **{field: 0.5})
  encode = lambda places: model.apply(variables, given_for(model, 2), places, 2, method='encode',
                                      rngs={'dropout': jax.random.key(0)}).contexts[0].k_BCHK
  assert (np.asarray(encode(np.arange(2))) != np.asarray(encode(None))).any()


def test_attention_to_a_context_drops_weights():
  q, k, v = np.random.default_rng(0).standard_normal((3, 2, 5, 1, 4)).astype(np.float32)
  drops = Drops(0.5, jax.random.split(jax.random.key(0), 2))
  assert (full_attention(q, k, v, drops)[0] != full_attention(q, k, v)[0]).any()


@pytest.mark.parametrize('field', ['dropout', 'attention_dropout'])
def test_dropout_acts_in_training_only(field):
  model, variables = make_case('1d_dmol', num_layers=1, **{field: 0.5})
  images = random_images(model.spec, 2)
  expected = jax.jit(model.apply)(variables, images)  # without a key: nothing can be dropped
  train = jax.jit(lambda variables, key: model.apply(variables, images, train=True, rngs={'dropout': key}))
  one, other = (train(variables, jax.random.key(seed)) for seed in (0, 1))
  assert (one != expected).any() and (one != other).any()
  np.testing.assert_array_equal(train(variables, jax.random.key(0)), one)


@pytest.mark.parametrize('rate', [0.1, 0.3, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
  """Of images of an odd size; neighbours, which share a word of random bits, drop independently."""
  x = np.ones((2, 333, 333), np.float32)
  apply = lambda places: np.asarray(Dropout(rate).apply({}, x, places, rngs={'dropout': jax.random.key(0)}))
  both = apply(np.array([3, 4]))
  dropped = both == 0
  np.testing.assert_allclose(both[~dropped], 1 / (1 - rate), rtol=1e-4)
  error = 5 * np.sqrt(rate * (1 - rate) / dropped.size)
  assert abs(dropped.mean() - rate) < error
  flat = dropped.reshape(2, -1)
  for other in (flat[:, 1:], flat[::-1, :-1]):  # the next one; the other image
    assert abs((flat[:, :-1] & other).mean() - rate**2) < 2 * error
  # A mask follows its image to wherever that is computed.
  np.testing.assert_array_equal(apply(np.array([4, 3])), both[::-1])


def test_class_labels_move_every_position():
  model, variables = make_case('2d_ragged_classes', num_layers=1)
  image = np.repeat(random_images(model.spec, 1), 3, axis=0)
  parameters = jax.jit(model.apply)(variables, image, {'label': np.arange(3)})
  for label in (1, 2):
    assert (parameters[label] != parameters[0]).any(axis=-1).all()


def test_class_conditional_needs_classes():
  config, _ = CASES['2d_ragged_classes']
  with pytest.raises(InputError, match='model.class_conditional'):
    make_model(config, ImageSpec(8, 8, 3))
