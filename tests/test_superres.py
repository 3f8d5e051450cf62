"""Super-resolution: the small image reaches everything, is read once, and pictures are measured as defined."""

import functools
import json

from etils import epath
from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from helpers import case, given_for, make_case, random_images
from image_transformer import pictures, reports, small_images, superres, transformer
from image_transformer.config import Config, ImageSpec, ModelConfig, from_dict
from image_transformer.embeddings import sine_table
from image_transformer.errors import InputError
from image_transformer.images import area_resize, bicubic
from image_transformer.library import Run
from image_transformer.metrics import Evaluation
from image_transformer.model import init_params, make_model, num_parameters
from image_transformer.sampling import sample

NAMES = ['1d_superres', '2d_superres_dmol_classes_pre_norm']


@pytest.mark.parametrize('name', NAMES)
def test_every_condition_moves_every_position(name):
  """Each intensity of the small image, and the class, in value."""
  model, variables = make_case(name)
  image, given = random_images(model.spec, 1), given_for(model, 1)
  apply = jax.jit(model.apply)
  unchanged = apply(variables, image, given)
  for condition, values in given.items():
    limit = model.conditions[condition].num_values
    for index in np.ndindex(values.shape):
      changed = values.copy()
      changed[index] = (changed[index] + limit // 2) % limit
      moved = apply(variables, image, {**given, condition: changed}) != unchanged
      assert moved.any(axis=-1).all(), (condition, index)


@pytest.mark.parametrize('part', ['encoder_embedding', 'encoder'])
@pytest.mark.parametrize('name', NAMES)
def test_gradients_reach_every_position_of_the_small_image(name, part):
  """From every position's parameters, under random cotangents, to what goes into and what comes out of the encoder."""
  model, variables = make_case(name)
  image, given = random_images(model.spec, 1), given_for(model, 1)
  cotangents = np.random.default_rng(1).standard_normal(model.likelihood.num_parameters).astype(np.float32)

  def parameters(nudge):
    """Of every position, with something added to what a part of the model returns."""

    def nudged(method, args, kwargs, context):
      outputs = method(*args, **kwargs)
      return jax.tree.map(lambda x: x + nudge, outputs) if context.module.name == part else outputs

    with nn.intercept_methods(nudged):
      return model.apply(variables, image, given).reshape(-1, model.likelihood.num_parameters)

  @jax.jit
  def influence(nudge):
    _, vjp = jax.vjp(parameters, nudge)
    chosen = jnp.eye(model.layout.num_positions)[..., None] * cotangents
    return jax.lax.map(lambda chosen: jnp.abs(vjp(chosen)[0]).sum(axis=-1)[0], chosen)

  num_small = given['low_res'].size // model.likelihood.values_per_position
  gradients = influence(jnp.zeros((1, num_small, model.config.hidden_size)))
  assert gradients.shape == (model.layout.num_positions, num_small)
  assert (gradients > 0).all() and np.isfinite(gradients).all()


@pytest.mark.parametrize('given, says', [
    ({}, "'label' is missing"), ({'label': np.zeros(1, int)}, "'low_res' is missing"),
    (np.zeros(1, int), 'must be a dictionary')])
def test_a_missing_condition_is_named(given, says):
  model, variables = make_case(NAMES[1])
  with pytest.raises(InputError, match=f'{says}; this model is conditioned on label and low_res'):
    model.apply(variables, random_images(model.spec, 1), given)


@pytest.mark.parametrize('name', NAMES)
def test_the_small_image_is_read_once_and_not_at_every_position(name):
  """The sampler's loop is handed neither the encoder's weights, nor those that show its output to the decoder."""
  model, variables = make_case(name)
  given = given_for(model, 1)
  arguments = variables['params'], given, jax.random.split(jax.random.key(0), 1)
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(arguments)]
  jaxpr = jax.make_jaxpr(lambda params, given, keys: sample(model, {'params': params}, keys, given))(*arguments).jaxpr
  loop, = (equation for equation in jaxpr.eqns if equation.primitive.name in ('scan', 'while'))
  beyond = {before: after for equation in jaxpr.eqns if equation.primitive.name == 'optimization_barrier'
            for before, after in zip(equation.invars, equation.outvars)}
  used = {name for name, variable in zip(names, jaxpr.invars, strict=True)
          if beyond.get(variable, variable) in loop.invars}
  once = {name for name in names if 'encoder' in name or 'low_res' in name or 'label' in name or 'classes' in name or
          "['cross_attention']['key" in name or "['cross_attention']['value']" in name}
  assert len(once) > 10
  # Everything else is: the decoder, its cross-attention's queries among it.
  assert used == set(names) - once


@functools.cache
def begun(align_encoder):
  """A model and its initial parameters."""
  model = make_model(*case((12, 12, 3), query_block=(4, 4), memory_flange=(4, 4), likelihood='dmol', upscale=3,
                           num_encoder_layers=1, hidden_size=64, num_heads=4, align_encoder=align_encoder))
  return model, init_params(model, 0)


@pytest.mark.parametrize('depth', [1, 3])
@pytest.mark.parametrize('spacing', [1, 3, 4])
def test_spaced_coordinates_are_those_of_the_centres(spacing, depth):
  """Of the same channel of so many pixels: at width 8, sines and cosines of the coordinate and of 1e-4 of it."""
  centres = np.arange(4 * spacing * depth).reshape(4, spacing, depth).mean(axis=1).ravel()
  angles = centres[:, None] * [1, 1e-4]
  np.testing.assert_allclose(sine_table(4 * depth, 8, spacing, depth), np.hstack([np.sin(angles), np.cos(angles)]),
                             atol=1e-5)


def cross_attention(model, params, monkeypatch):
  """Weights [layers, heads, positions, small positions] from the decoder to the encoder, of a random image."""
  image = random_images(model.spec, 1)
  shrunk = area_resize(image, *(size // model.config.upscale for size in model.spec.shape[:2]))

  @jax.jit
  def record(params):
    recorded = []

    def recording(q, k, v, drops=None, **kwargs):
      recorded.append(jax.nn.softmax(jnp.einsum('THK,MHK->HTM', q.reshape(-1, *q.shape[-2:]), k[0])))
      return full_attention(q, k, v, drops, **kwargs)

    full_attention = transformer.full_attention
    with monkeypatch.context() as patch:
      patch.setattr(transformer, 'full_attention', recording)
      patch.setattr(small_images, 'full_attention', recording)
      model.apply({'params': params}, image, {'low_res': shrunk})
    return jnp.stack(recorded[model.config.num_encoder_layers:])

  return np.asarray(record(params))[:, :, model.layout.slots]


def test_aligned_attention_begins_near_its_own_place(monkeypatch):
  """Before any training; the official initialisation of the same model looks everywhere alike."""
  model, _ = begun(True)
  upscale, (height, width, _) = model.config.upscale, model.spec.shape
  row, column = np.indices((height, width)).reshape(2, -1) // upscale
  own = row * (width // upscale) + column
  chance = 1 / (own.max() + 1)

  def at_home(align_encoder):
    """Mean weight on one's own place, and how often no other place has more."""
    weights = cross_attention(*begun(align_encoder), monkeypatch)
    return weights[..., np.arange(len(own)), own].mean(), (weights.mean(axis=(0, 1)).argmax(axis=-1) == own).mean()

  weight, hits = at_home(True)
  assert weight > 1.7 * chance and hits > 0.5
  weight, hits = at_home(False)
  assert weight < 1.2 * chance and hits < 0.2


def test_alignment_is_equal_projections_and_nothing_else():
  aligned, official = (traverse_util.flatten_dict(begun(align)[1], sep='/') for align in (True, False))
  assert aligned.keys() == official.keys()
  different = {name for name in aligned if not np.array_equal(aligned[name], official[name])}
  cross = [f'decoder/layer_{i}/cross_attention/' for i in range(2)]
  assert different == {f'{name}{part}/kernel' for name in cross for part in ('query', 'key')}
  for name in cross:
    np.testing.assert_array_equal(aligned[f'{name}query/kernel'], aligned[f'{name}key/kernel'])


@pytest.mark.parametrize('fields, names', [
    (dict(align_encoder=True), 'model.align_encoder'),
    (dict(align_encoder=True, upscale=2, num_encoder_layers=1, coordinates='learned'), 'model.align_encoder'),
    (dict(num_encoder_layers=1), 'model.num_encoder_layers'),
    (dict(upscale=2), 'model.num_encoder_layers'),
    (dict(upscale=2, num_encoder_layers=-1), 'model.num_encoder_layers'),
    (dict(upscale=0), 'model.upscale'),
    (dict(upscale=3, num_encoder_layers=1), 'model.upscale is 3, .* 8 x 8'),
    (dict(upscale=2.0, num_encoder_layers=1), 'model.upscale'),
    (dict(upscale=2, num_encoder_layer=1), 'did you mean model.num_encoder_layers'),
])
def test_configurations_that_make_no_sense_are_refused(fields, names):
  with pytest.raises(InputError, match=names):
    config = from_dict({'model': {'query_block': (4, 4), 'memory_flange': (4, 4), **fields}})
    make_model(config.model, ImageSpec(8, 8, 3))


def test_parameter_count_of_the_encoder():
  """The paper's 4 + 8 layers: the encoder embeds and attends like the decoder, which has one more sub-layer."""
  d, ffn = 512, 2048
  attend, norm, feed = 4 * d * d, 2 * d, 2 * d * ffn + ffn + d
  model = make_model(ModelConfig(num_layers=8, num_heads=8, query_block=(128,), memory_flange=(128,), upscale=4,
                                 num_encoder_layers=4), ImageSpec(32, 32, 3))
  expected = 2 * 768 * d + 4 * (attend + feed + 2 * norm) + 8 * (2 * attend + feed + 3 * norm) + d * 256 + 256
  assert num_parameters(model) == expected


def plain_ssim(one, other, window):
  """Wang et al. (2004), of one channel in [0, 1]: Gaussian windows of deviation 1.5 that lie wholly in the image."""
  radius = window // 2

  def local_mean(x):
    return scipy.ndimage.gaussian_filter(x, 1.5, radius=radius)[radius:-radius, radius:-radius]

  mean, other_mean = local_mean(one), local_mean(other)
  variance, other_variance = local_mean(one**2) - mean**2, local_mean(other**2) - other_mean**2
  covariance = local_mean(one * other) - mean * other_mean
  c1, c2 = 0.01**2, 0.03**2
  return np.mean((2 * mean * other_mean + c1) * (2 * covariance + c2) /
                 ((mean**2 + other_mean**2 + c1) * (variance + other_variance + c2)))


@pytest.mark.parametrize('spec, window', [(ImageSpec(8, 8, 1, 17), 7), (ImageSpec(12, 16, 3), 11)])
def test_measures_equal_their_definitions(spec, window):
  """In plain NumPy, image by image, sample by sample."""
  originals = random_images(spec, 3)
  noise = np.random.default_rng(1).integers(-4, 5, size=(3, 2, *spec.shape))
  samples = np.clip(originals[:, None] + noise, 0, spec.levels - 1).astype(np.uint8)
  low_res = area_resize(originals, spec.height // 4, spec.width // 4)
  measures = superres.measure(low_res, samples, originals, spec.levels)
  unit = lambda images: np.asarray(images, np.float64) / (spec.levels - 1)
  for i in range(3):
    small = [unit(area_resize(sample, *low_res.shape[1:3])) for sample in samples[i]]
    per_sample = {
        'consistency': [np.mean((image - unit(low_res[i]))**2) for image in small],
        'mismatch': [np.mean((image - unit(low_res[(i + 1) % 3]))**2) for image in small],
        'psnr': [-10 * np.log10(np.mean((unit(sample) - unit(originals[i]))**2)) for sample in samples[i]],
        'ssim': [np.mean([plain_ssim(unit(sample)[..., c], unit(originals[i])[..., c], window)
                          for c in range(spec.channels)]) for sample in samples[i]],
    }
    assert measures.keys() == per_sample.keys()
    for name, values in per_sample.items():
      np.testing.assert_allclose(measures[name][i], np.mean(values), rtol=1e-4, err_msg=name)


def test_measures_of_the_originals_themselves_are_finite():
  originals = random_images(ImageSpec(8, 8, 1, 17), 2)
  measures = superres.measure(area_resize(originals, 4, 4), originals[:, None], originals, 17)
  assert measures['consistency'].tolist() == [0, 0] and (measures['mismatch'] > 0.01).all()
  np.testing.assert_allclose(measures['ssim'], 1, rtol=1e-5)
  assert measures['psnr'].tolist() == [100, 100]


def test_measures_without_originals_or_neighbours():
  samples = random_images(ImageSpec(8, 8, 1, 17), 3)[None]
  assert superres.measure(samples[0, :1, ::2, ::2], samples, None, 17).keys() == {'consistency'}


def test_bicubic_is_of_keys_kernel():
  """At an edge: the sums of the kernel's weights on its bright side, with a = -1/2 as PIL has it."""
  low_res = np.zeros((1, 1, 8, 1), np.uint8)
  low_res[..., 4:, :] = 100

  def weight(x):
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0

  places = (np.arange(4, 12) + 0.5) / 2 - 0.5  # of large pixels near the edge, in small ones
  expected = [sum(100 * weight(place - pixel) for pixel in range(4, 8)) for place in places]
  np.testing.assert_allclose(bicubic(low_res, 1, 16, 256)[0, 0, 4:12, 0], np.clip(expected, 0, 255), atol=0.51)


def test_bicubic_overshoots_at_edges_but_not_the_range_and_keeps_channels_apart():
  low_res = np.full((2, 4, 4, 3), [0, 4, 9], np.uint8)
  low_res[0, 1:3, 1:3, :2] = [16, 12]
  large = bicubic(low_res, 8, 12, 17)
  assert large.shape == (2, 8, 12, 3) and large.dtype == np.uint8
  assert large[0, ..., 0].min() == 0 and large[0, ..., 0].max() == 16
  assert large[0, ..., 1].min() < 4 and large[0, ..., 1].max() > 12
  np.testing.assert_array_equal(large[0, ..., 2], np.full((8, 12), 9))
  np.testing.assert_array_equal(large[1], np.broadcast_to(np.uint8([0, 4, 9]), (8, 12, 3)))


@pytest.mark.parametrize('with_originals', [True, False])
def test_strips_show_input_bicubic_samples_and_original(with_originals):
  spec = ImageSpec(8, 8, 1, 17)
  model = make_model(*case((8, 8, 1, 17), query_block=(4, 4), memory_flange=(4, 4), upscale=4, num_encoder_layers=1))
  originals, samples = random_images(spec, 2), random_images(spec, 6, seed=1).reshape(2, 3, 8, 8, 1)
  low_res = area_resize(originals, 2, 2)
  picture = pictures.samples_of(model, {'low_res': low_res}, samples, originals if with_originals else None)
  columns, scale, gap, cell, above = 5 + with_originals, 16, 2, 130, 14
  assert picture.dtype == np.uint8 and picture.shape == (above + 2 * cell + gap, columns * cell + gap, 3)
  words = [picture[:above, gap + j * cell:(j + 1) * cell] for j in range(columns)]
  assert all((word > 200).any() for word in words) and len({word.tobytes() for word in words}) == columns
  picture = picture[above:]
  # What every cell shows, read back at its large pixels.
  whole = [[picture[gap + i * cell:, gap + j * cell:][:128, :128, 0] for j in range(columns)] for i in range(2)]
  cells = [[one[::scale, ::scale] for one in row] for row in whole]
  np.testing.assert_array_equal(whole, np.kron(cells, np.ones((scale, scale))))
  large = np.round(np.array(cells) / 255 * 16)[..., None]
  np.testing.assert_array_equal(large[:, 0], low_res.repeat(4, axis=1).repeat(4, axis=2))
  np.testing.assert_array_equal(large[:, 1], bicubic(low_res, 8, 8, 17))
  np.testing.assert_array_equal(large[:, 2:5], samples)
  if with_originals:
    np.testing.assert_array_equal(large[:, 5], originals)


def test_reports_have_means_and_standard_errors(tmp_path):
  measures = {way: {'consistency': np.array(values)}
              for way, values in {'bicubic': [0.5, 1.5], 'temperature 1': [0.25, 0.25]}.items()}
  evaluation = Evaluation(np.array([64, 128]) * np.log(2), 64)
  model = make_model(*case((8, 8, 1, 17), query_block=(16,), memory_flange=(16,)))
  run = Run(Config(), model, {}, 7, epath.Path(tmp_path))
  reports.write_superres(run, 'report', measures, evaluation, for_tables=False, source='test')
  report = json.loads((tmp_path / 'samples' / 'report.json').read_text())
  assert report['step'] == 7 and report['num_images'] == 2
  summary = report['bicubic']['consistency']
  assert summary == {'mean': 1.0, 'standard_error': pytest.approx(0.5), 'per_image': [0.5, 1.5]}
  assert report['bits_per_dim']['mean'] == pytest.approx(1.5)
  lines = superres.table(measures).splitlines()
  assert [line.split() for line in lines[1:]] == [['bicubic', '1.0000'], ['temperature', '1', '0.2500']]
