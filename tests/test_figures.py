"""Figures show what the model computes, and of that the right cells."""

from etils import epath
import jax
import numpy as np
import pytest

from helpers import CASES, apply, from_slots, given_for, make_case, paper_visible, random_images, scan_order
from image_transformer import figures
from image_transformer.config import Config, ImageSpec, ModelConfig
from image_transformer.errors import InputError
from image_transformer.layout import block_layout
from image_transformer.library import Run
from image_transformer.model import make_model


@pytest.mark.parametrize('query_block, flange, scan', [
    ((7,), (9,), 'raster'), ((7,), (9,), 'column'), ((8,), (12,), 'zigzag'), ((2, 3), (2, 1), 'raster'),
    ((3, 2), (1, 4), 'raster')])
def test_the_memory_picture_shows_the_papers_memory(query_block, flange, scan):
  """Cell by cell, with a row and a column of blocks that are cut off."""
  height, width, channels = 5, 7, 3
  model = make_model(ModelConfig(query_block=query_block, memory_flange=flange, scan=scan),
                     ImageSpec(height, width, channels))
  visible = paper_visible(height, width, channels, query_block, flange, scan)
  positions = np.arange(height * width * channels)
  row, column, _ = np.unravel_index(positions, (height, width, channels))
  when = np.empty(height * width, int)
  when[[row * width + column for row, column in scan_order(scan, height, width)]] = np.arange(height * width)
  along = when[positions // channels] * channels + positions % channels
  block = (along // query_block[0] if len(query_block) == 1 else
           row // query_block[0] * width + column // query_block[1])
  for pixel in range(height * width):
    shown = figures.memory(model, *divmod(pixel, width)).axes[0].images[0].get_array().ravel()
    index = pixel * channels
    np.testing.assert_array_equal(~np.isin(shown, [figures.HIDDEN, figures.LATER]), visible[index])
    np.testing.assert_array_equal(shown == figures.LATER, (block == block[index]) & ~visible[index])
    np.testing.assert_array_equal(np.flatnonzero(shown == figures.QUERY), [index])
    np.testing.assert_array_equal((shown == figures.OWN_BLOCK)[visible[index]],
                                  ((block == block[index]) & (positions != index))[visible[index]])


def rotated(x_BPHK, axes):
  """Rotary coordinates as products of complex numbers."""
  first, second = np.split(np.asarray(x_BPHK), 2, axis=-1)
  angles = []
  for axis, at in enumerate(axes):
    num = len(range(axis, first.shape[-1], len(axes)))
    angles.append(at[:, None] * np.pi / 2 * 50.0**(-np.arange(num) / num))
  turned = (first + 1j * second) * np.exp(1j * np.concatenate(angles, axis=-1))[:, None]
  return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize('name', CASES)
def test_attention_weights_are_those_of_dense_attention(name):
  model, variables = make_case(name)
  images, given, layout = random_images(model.spec, 2), given_for(model, 2), model.layout
  config, spec, depth = model.config, model.spec, layout.image[-1]
  visible = paper_visible(spec.height, spec.width, depth, config.query_block, config.memory_flange, config.scan,
                          max(spec.frames, 1))
  index = layout.num_positions - layout.num_positions // 3

  @jax.jit
  def run(variables):
    encoded = model.apply(variables, given, method='encode')
    return (model.apply(variables, images, given, index, method='attention_weights'),
            from_slots(model.apply(variables, images, encoded, method='embed_images'), layout))

  weights, x = map(np.asarray, run(variables))
  assert weights.shape == (config.num_layers, 2, config.num_heads, layout.num_positions)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert (weights[..., ~visible[index]] == 0).all() and (weights[..., visible[index]] > 0).all()
  if config.norm == 'pre':
    return
  # The first layer's, from its input.
  layer = variables['params']['decoder']['layer_0']['self_attention']
  q, k = ((x @ layer[part]['kernel']).reshape(*x.shape[:2], config.num_heads, -1) for part in ('query', 'key'))
  if config.qk_norm:
    q, k = (x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer[f'{part}_norm']['scale']
            for x, part in ((q, 'query'), (k, 'key')))
  if config.coordinates == 'rotary':
    fed = np.maximum(layout.previous.ravel()[layout.slots], 0)
    q, k = (rotated(x, np.unravel_index(at, layout.image)[:None if depth > 1 else -1])
            for x, at in ((q, np.arange(layout.num_positions)), (k, fed)))
  logits = np.einsum('BHK,BPHK->BHP', q[:, index], k) / np.sqrt(q.shape[-1])
  expected = jax.nn.softmax(np.where(visible[index], logits, -np.inf))
  np.testing.assert_allclose(weights[0], expected, atol=1e-5)


@pytest.mark.parametrize('name', ['2d_ragged_classes', '2d_grey_dmol_ragged', '1d_column_dmol', '1d_superres',
                                  '3d_dmol_ragged_classes'])
def test_the_log_probs_of_pixels_are_those_of_their_parameters(name):
  model, variables = make_case(name)
  images, given = random_images(model.spec, 2), given_for(model, 2)
  pixels, whole, parameters = jax.jit(lambda *args: [
      model.apply(*args, method=method) for method in ('pixel_log_probs', 'log_prob', '__call__')])(
          variables, images, given)
  np.testing.assert_allclose(pixels.sum(axis=tuple(range(1, pixels.ndim))), whole, rtol=1e-5)
  values = model.apply(variables, images, method='values').reshape(*pixels.shape, -1)
  parameters = parameters.reshape(*pixels.shape, parameters.shape[-1])
  np.testing.assert_allclose(pixels, model.likelihood.log_prob(parameters, values), rtol=1e-4, atol=1e-4)


def test_the_attention_picture_hides_what_is_not_visible_and_marks_the_pixel():
  layout, spec = block_layout((6, 6, 3), 1, (2, 2), (1, 1)), ImageSpec(6, 6, 3)
  index = (3 * 6 + 4) * 3
  weights = np.random.default_rng(0).random((2, 3, layout.num_positions))
  image = random_images(spec, 1)[0]
  figure = figures.attention(weights, layout, spec, index, image)
  assert len(figure.axes) == 7
  visible = paper_visible(6, 6, 3, (2, 2), (1, 1))[index].reshape(6, 6, 3).any(-1)
  for axes, shown in zip(figure.axes, weights.reshape(6, 6, 6, 3).sum(-1)):
    behind, heat = axes.images
    np.testing.assert_allclose(behind.get_array(), image.mean(-1) / 255)
    np.testing.assert_array_equal(~np.ma.getmaskarray(heat.get_array()), visible)
    np.testing.assert_array_equal(heat.get_alpha() > 0, visible)
    np.testing.assert_allclose(heat.get_array()[visible] * shown.max(), shown[visible])
    assert f'at most {shown.max():.2f}' in axes.get_title()
    mark, = axes.patches
    assert mark.get_xy() == (3.5, 2.5)


@pytest.mark.parametrize('row, rows', [(0, (0, 4)), (13, (7, 17)), (19, (13, 19))])
def test_the_attention_picture_has_the_rows_of_the_memory_and_four_around(row, rows):
  layout, spec = block_layout((20, 6, 1), 1, (2, 2), (1, 1)), ImageSpec(20, 6, 1)
  figure = figures.attention(np.ones((1, 1, 120)), layout, spec, row * 6, np.zeros((20, 6, 1)))
  assert figure.axes[0].get_ylim() == (rows[1] + 0.5, rows[0] - 0.5)


def test_bits_of_a_run_add_up_to_the_log_probability_of_each_image():
  model, variables = make_case('1d_dmol')
  images = random_images(model.spec, 3)
  run = Run(Config(), model, variables, 0, epath.Path())
  figure = figures.bits(images, -run.pixel_log_probs(images), model.spec.levels)
  shown = [float(axes.get_xlabel().split()[0]) for axes in figure.axes if axes.get_xlabel()]
  nats = -np.asarray(apply(model, variables, images, method='log_prob'))
  np.testing.assert_allclose(shown, nats / np.log(2) / model.spec.num_dims, atol=0.006)


def test_bits_are_of_whole_pixels():
  nats = np.random.default_rng(0).random((2, 4, 5, 3))
  figure = figures.bits(random_images(ImageSpec(4, 5, 3), 2), nats, 256)
  heats = [axes.images[0].get_array() for axes in figure.axes[2:4]]
  np.testing.assert_allclose(heats, nats.sum(-1) / np.log(2))
  assert figure.axes[2].get_xlabel() == f'{nats[0].mean() / np.log(2):.2f} bits/dim'


def test_curves_show_each_split_of_each_run():
  lines = [{'step': 1, 'split': 'train', 'bits_per_dim': 7.0}, {'step': 2, 'split': 'train', 'bits_per_dim': 6.0},
           {'step': 2, 'split': 'test', 'bits_per_dim': 6.5}, {'step': 2, 'split': 'train', 'seconds': 1}]
  first, second = figures.curves({'digits': {'one': lines, 'two': lines[:2]}, 'cifar10': {'three': lines[:1]}}).axes
  assert [(line.get_label(), line.get_xydata().tolist()) for line in first.lines] == [
      ('one, train', [[1, 7], [2, 6]]), ('one, test', [[2, 6.5]]), ('two, train', [[1, 7], [2, 6]])]
  assert [line.get_label() for line in second.lines] == ['three, train']
  assert [axes.get_title() for axes in (first, second)] == ['digits', 'cifar10']


@pytest.mark.parametrize('position', [(-1, 0), (6, 0), (0, 5)])
def test_positions_outside_the_image_are_refused(position):
  model = make_model(ModelConfig(query_block=(6,), memory_flange=(6,)), ImageSpec(6, 5, 3))
  with pytest.raises(InputError, match=r'position .*row in 0\.\.5 and a column in 0\.\.4'):
    figures.memory(model, *position)


def test_the_middle():
  assert figures.middle(make_model(ModelConfig(query_block=(6,), memory_flange=(6,)), ImageSpec(6, 5, 3))) == (3, 2)
