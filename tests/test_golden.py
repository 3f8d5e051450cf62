"""Arrays from the official implementation (tensor2tensor 1.15.7, float32), stored in tests/golden.

a: 1D attention, b: 2D attention, c: mixture of logistics, d: whole models, e: coordinates.
"""

import dataclasses
import functools
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import blockwise, layout_visible, parameter_shapes
from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.embeddings import Coordinates
from image_transformer.layout import block_layout
from image_transformer.likelihoods import DiscretizedLogisticMixture
from image_transformer.model import ImageTransformer

GOLDEN = pathlib.Path(__file__).parent / 'golden'


def load(name):
  with np.load(GOLDEN / f'{name}.npz') as arrays:
    return dict(arrays)


def names(prefix):
  return sorted(path.stem for path in GOLDEN.glob(f'{prefix}_*.npz'))


def attention_layout(golden):
  if 'block_length' in golden:
    block = (int(golden['block_length']),)
    return block_layout((1, golden['q'].shape[2], 1), 1, block, block)
  height, width = golden['q'].shape[2:4]
  return block_layout((height, width, 1), 1, golden['query_shape'].tolist(), golden['memory_flange'].tolist())


def value_and_vjp(function, arguments, cotangent):
  """function(*arguments) and the gradients of its inner product with `cotangent`, in one compilation."""

  @jax.jit
  def both(arguments, cotangent):
    value, vjp = jax.vjp(function, *arguments)
    return value, vjp(cotangent)

  return both(arguments, cotangent)


@pytest.mark.parametrize('name', names('a') + names('b'))
def test_attention(name):
  golden = load(name)
  layout = attention_layout(golden)
  np.testing.assert_array_equal(layout_visible(layout), golden['visible'])

  def positions_first(x):
    """[B, heads, positions or rows and columns, width] -> [B, positions, heads, width]."""
    return np.moveaxis(x.reshape(*x.shape[:2], -1, x.shape[-1]), 1, 2)

  q, k, v, cotangent = (positions_first(golden[key]) for key in ('q', 'k', 'v', 'cotangent'))
  output, gradients = value_and_vjp(blockwise(layout), (q, k, v), cotangent)
  np.testing.assert_allclose(output, positions_first(golden['output']), atol=1e-5)
  for key, gradient in zip('qkv', gradients):
    np.testing.assert_allclose(gradient, positions_first(golden[f'grad_{key}']), atol=1e-4, err_msg=key)


@pytest.mark.parametrize('name', names('b'))
def test_attention_weights_of_equal_logits(name):
  golden = load(name)
  layout = attention_layout(golden)
  q = jnp.zeros((1, layout.num_positions, 1, 4))
  one_hot = jnp.eye(layout.num_positions)[None, :, None]  # a value that says where it comes from
  weights = jax.jit(blockwise(layout))(q, q, one_hot)[0, :, 0]
  np.testing.assert_allclose(weights, golden['uniform_weights'], atol=1e-6)


DMOL_NAMES = ['c_dmol_rand_mix10', 'c_dmol_wide_mix10']
DMOL = DiscretizedLogisticMixture(levels=256, channels=3, num_mixtures=10)


@pytest.mark.parametrize('name', DMOL_NAMES)
def test_dmol_log_prob_and_gradient(name):
  golden = load(name)
  labels = golden['labels'].astype(np.int32)
  _, _, log_scales, coefficients = DMOL._split(golden['pred'])
  np.testing.assert_allclose(log_scales, golden['log_scales'], atol=1e-6)
  np.testing.assert_allclose(coefficients, golden['coeffs'], atol=1e-6)
  cotangent = np.full(labels.shape[:-1], 1 / labels.size, np.float32)
  nll, (gradient,) = value_and_vjp(lambda pred: -DMOL.log_prob(pred, labels), (golden['pred'],), cotangent)
  np.testing.assert_allclose(nll, golden['nll'], rtol=1e-3)
  np.testing.assert_allclose(nll.mean() / (3 * np.log(2)), golden['bits_per_dim'], rtol=1e-4)
  expected = golden['grad_pred_of_mean_loss']
  np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())


def test_dmol_sums_to_one_over_red():
  """Red runs over all levels while green and blue stand still, and their means do not depend on red."""
  golden = load('c_dmol_sweep256_red')
  likelihood = DiscretizedLogisticMixture(levels=256, channels=3, num_mixtures=1)
  labels = golden['labels'].astype(np.int32)
  nll = -jax.jit(likelihood.log_prob)(golden['pred'], labels)
  np.testing.assert_allclose(nll, golden['nll'], rtol=1e-3)
  probabilities = jax.jit(likelihood.channel_probabilities)(golden['pred'][0, 0, 0], labels[0, 0, 0])
  green_and_blue = probabilities[1, labels[0, 0, 0, 1]] * probabilities[2, labels[0, 0, 0, 2]]
  np.testing.assert_allclose(np.exp(-golden['nll']).sum() / green_and_blue, 1, atol=1e-3)
  np.testing.assert_allclose(np.exp(-nll[0, 0]) / green_and_blue, probabilities[0], atol=1e-6)


def official_sampling(golden, to_byte):
  """The official sampler in NumPy; every channel goes through `to_byte` before the next sees it."""
  gumbel = -np.log(-np.log(golden['gumbel_uniform']))
  chosen = np.argmax(golden['mix_logits'] + gumbel, axis=-1)[..., None, None]
  mean, log_scale, coefficient = (np.take_along_axis(golden[key], chosen, axis=-2)[..., 0, :]
                                  for key in ('locs', 'log_scales', 'coeffs'))
  uniform = golden['logistic_uniform']
  x = mean + np.exp(log_scale) * (np.log(uniform) - np.log1p(-uniform))
  red = to_byte(x[..., 0])
  green = to_byte(x[..., 1] + coefficient[..., 0] * red)
  blue = to_byte(x[..., 2] + coefficient[..., 1] * red + coefficient[..., 2] * green)
  return np.stack([red, green, blue], axis=-1)


@pytest.mark.parametrize('name', DMOL_NAMES)
def test_dmol_sample(name):
  """The official samples are reals, clipped at the end; ours are bytes, and each conditions the next."""
  golden = load(name)
  real = official_sampling(golden, lambda x: x)
  np.testing.assert_allclose(real.clip(-1, 1), golden['sample'], atol=1e-4)
  uniform = golden['logistic_uniform']
  bytes_ = DMOL.emit(golden['pred'], -np.log(-np.log(golden['gumbel_uniform'])), np.log(uniform) - np.log1p(-uniform))
  assert bytes_.dtype == jnp.int32
  rounded = official_sampling(golden, lambda x: np.round((x.clip(-1, 1) + 1) * 127.5) / 127.5 - 1)
  np.testing.assert_array_equal(bytes_, np.round((rounded + 1) * 127.5))
  # Red is the official red, rounded; green and blue follow it closely where nothing earlier was clipped.
  official = np.round((golden['sample'] + 1) * 127.5)
  np.testing.assert_array_equal(bytes_[..., 0], official[..., 0])
  inside = np.abs(golden['sample']) < 1
  for channel in (1, 2):
    unclipped = inside[..., :channel].all(axis=-1)
    assert np.all(np.abs(bytes_[..., channel] - official[..., channel])[unclipped] <= 2)


D1 = ModelConfig(query_block=(32,), memory_flange=(32,), num_layers=2, hidden_size=32, num_heads=4, ffn_size=64,
                 dropout=0.0)
D3 = ModelConfig(query_block=(16,), memory_flange=(16,), num_layers=2, hidden_size=32, num_heads=4, ffn_size=64,
                 dropout=0.0, qkv_size=64, likelihood='dmol', num_mixtures=5, coordinates='learned')
D6 = dataclasses.replace(D1, upscale=2, num_encoder_layers=2)
MODELS = {'d1_cat_uncond_1d': D1, 'd3_dmol_uncond_1d': D3, 'd6_img2img_1d': D6}
SPEC = ImageSpec(8, 8, 3)

# Our names of parameters -> the official ones, replaced in this order.
OFFICIAL = {
    'encoder_embedding/table/embedding': 'identity_modality/rgb_target_emb_input_bottom',
    'embedding/table/embedding': '{targets}/rgb_target_emb_input_bottom',
    'embedding/conv': 'image_modality/output_bottom/conv_input',
    'coordinates/row/embedding': 'body/dec_pos/dec_pos_0',
    'coordinates/column/embedding': 'body/dec_pos/dec_pos_1',
    'encoder/layer_': 'body/encoder_layer_',
    'decoder/layer_': 'body/decoder_layer_',
    'self_attention_norm/': 'layer_postprocess/layer_norm/layer_norm_',
    'cross_attention_norm/': 'layer_postprocess_1/layer_norm/layer_norm_',
    'ffn_norm/': '{last_norm}/layer_norm/layer_norm_',
    'ffn/hidden/': 'ffn/conv1/',
    'ffn/output/': 'ffn/conv2/',
    'self_attention/': '{self_attention}/',
    'cross_attention/': 'encdec_attention/encdec_attention/',
    'query/': 'q/',
    'key/': 'k/',
    'value/': 'v/',
    'output/': 'output_transform/',
}


def official_name(name, superres):
  """Super-resolution models have a scope of their own, and a third norm in the decoder's layers."""
  scope = 'img2img_transformer' if superres else 'imagetransformer'
  if name.startswith('output/'):
    return f'{scope}/body/output_conv/{name.removeprefix("output/")}'
  encoder = name.startswith('encoder')
  for ours, theirs in OFFICIAL.items():
    name = name.replace(ours, theirs)
  return f'{scope}/' + name.format(
      targets='identity_modality/targets_bottom' if superres else 'image_modality',
      last_norm='layer_postprocess_2' if superres and not encoder else 'layer_postprocess_1',
      self_attention='self_att/self_att' if encoder else 'local_1d_self_att/self_attention')


def official_parameters(model, golden, kind):
  """Our tree of parameters from the arrays 'var/...' or 'grad/...'.

  A convolution [1, 3, 1, d] is our [3, d]; position tables have 40 rows, of which 8 are used.
  """
  official = functools.partial(official_name, superres=model.config.upscale > 1)
  shapes = traverse_util.flatten_dict(parameter_shapes(model), sep='/')
  arrays = {name: golden[f'{kind}/{official(name)}'].reshape(-1, *leaf.shape[1:])[:leaf.shape[0]]
            for name, leaf in shapes.items()}
  used = {f'{kind}/{official(name)}' for name in arrays}
  assert all('class_label' in key for key in golden if key.startswith(f'{kind}/') and key not in used)
  return traverse_util.unflatten_dict(arrays, sep='/')


@pytest.fixture(scope='module', params=MODELS)
def whole(request):
  model, golden = ImageTransformer(MODELS[request.param], SPEC), load(request.param)
  # Unconditional models have inputs too, of which they use nothing.
  given = {'low_res': golden['inputs']} if model.config.upscale > 1 else {}
  return model, golden, given, official_parameters(model, golden, 'var'), jax.jit(model.apply)


def test_model_logits(whole):
  _, golden, given, params, apply = whole
  logits = apply({'params': params}, golden['targets'], given)
  np.testing.assert_allclose(logits, golden['logits'], atol=1e-4)


def test_model_loss_and_gradients(whole):
  model, golden, given, params, _ = whole

  def loss(params):
    return -model.apply({'params': params}, golden['targets'], given, method='log_prob').mean() / SPEC.num_dims

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, golden['training_loss'], rtol=1e-5)
  expected = traverse_util.flatten_dict(official_parameters(model, golden, 'grad'), sep='/')
  for name, gradient in traverse_util.flatten_dict(gradients, sep='/').items():
    # Relative to the largest entry: small ones are differences of large ones.
    np.testing.assert_allclose(gradient, expected[name], atol=1e-3 * np.abs(expected[name]).max(), err_msg=name)


def test_model_dependences(whole):
  """Changes every input intensity by itself, and sees which output positions move."""
  model, golden, given, params, apply = whole
  changes = np.eye(SPEC.num_dims, dtype=np.int32).reshape(-1, 1, *SPEC.shape) * 128

  def logits(change):
    images = (golden['targets'] + change) % 256
    return np.asarray(apply({'params': params}, images, given)).reshape(2, -1, model.likelihood.num_parameters)

  unchanged = logits(0)
  depends = np.stack([(logits(change) != unchanged).any(axis=(0, 2)) for change in changes], axis=1)
  np.testing.assert_array_equal(depends, golden['depends'])


@pytest.mark.parametrize('name, shape', [('h8_w24_d32', (8, 24, 32)), ('h5_w6_d30', (5, 6, 30))])
def test_coordinates(name, shape):
  """30 is no multiple of 4: the last two features are zero."""
  rows, columns, features = shape
  signal = Coordinates(rows, columns, features, 'sine').apply({}, *np.indices((rows, columns)))
  np.testing.assert_allclose(signal, load('e_timing_signal_nd')[name][0], atol=1e-6)
