"""The block layout says what the paper says, and attention by blocks is dense attention under that mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import blockwise, layout_visible, paper_visible, scan_order
from image_transformer.errors import InputError
from image_transformer.layout import SCANS, BlockLayout, block_layout

# (height, width, positions per cell), query block, memory flange.
LAYOUTS_1D = [
    ((1, 12, 1), (4,), (4,)),  # the original: l_m = l_q
    ((3, 5, 3), (7,), (7,)),  # ragged
    ((3, 4, 3), (4,), (0,)),  # no memory but the block
    ((3, 4, 3), (4,), (2,)),  # l_m < l_q
    ((3, 4, 3), (4,), (8,)),  # l_m > l_q
    ((3, 5, 3), (4,), (9,)),  # not a multiple, ragged
    ((3, 4, 1), (12,), (5,)),  # a single block
    ((3, 4, 1), (1,), (3,)),  # a sliding window
    ((2, 3, 3), (5,), (1000,)),  # all there is
]
LAYOUTS_2D = [
    ((4, 6, 3), (2, 2), (1, 1)),
    ((4, 6, 1), (2, 3), (2, 3)),
    ((5, 7, 3), (2, 3), (1, 2)),  # ragged in both directions
    ((5, 7, 1), (2, 3), (3, 5)),  # flange larger than the block, and ragged
    ((8, 9, 1), (2, 2), (5, 3)),
    ((4, 6, 3), (2, 2), (0, 0)),
    ((4, 6, 1), (2, 2), (0, 3)),  # nothing above, but the left
    ((4, 6, 1), (2, 2), (2, 0)),  # above, and nothing aside
    ((5, 4, 3), (2, 4), (2, 2)),  # a single column of blocks
    ((3, 7, 1), (3, 2), (1, 1)),  # a single row of blocks
    ((3, 4, 3), (3, 4), (2, 2)),  # a single block
    ((4, 5, 1), (1, 1), (2, 2)),
]


LAYOUTS_SCANNED = [
    ((3, 5, 3), (7,), (7,), 'column'),
    ((5, 3, 3), (4,), (9,), 'zigzag'),
    ((3, 7, 1), (5,), (3,), 'zigzag'),
    ((4, 4, 3), (6,), (8,), 'hilbert'),
    ((8, 8, 1), (8,), (16,), 'hilbert'),
]


LAYOUTS_3D = [
    ((3, 4, 4, 1), (1, 2, 2), (1, 1, 1)),
    ((4, 3, 5, 2), (2, 2, 2), (1, 2, 1)),  # ragged
    ((3, 3, 4, 1), (1, 3, 4), (2, 0, 0)),  # whole frames
    ((2, 4, 4, 1), (1, 2, 2), (0, 1, 1)),  # each frame by itself
    ((5, 2, 3, 1), (2, 1, 3), (3, 1, 0)),  # more frames before than a block has
]


def make_layout(shape, query_block, memory_flange, scan='raster'):
  """A cell of DMOL is one position; here depth stands in for that choice."""
  return block_layout(shape, 1, query_block, memory_flange, scan)


@pytest.mark.parametrize('arguments', LAYOUTS_1D + LAYOUTS_2D + LAYOUTS_SCANNED + LAYOUTS_3D, ids=str)
def test_visibility_is_the_papers(arguments):
  (*frames, height, width, depth), *rest = arguments
  visible = layout_visible(make_layout(*arguments))
  np.testing.assert_array_equal(visible, paper_visible(height, width, depth, *rest,
                                                       **({'frames': frames[0]} if frames else {})))


@pytest.mark.parametrize('scan', SCANS)
def test_frames_of_a_video_are_scanned_one_after_another(scan):
  frame = block_layout((4, 4, 1), 1, (16,), (0,), scan).order[0]
  whole = block_layout((3, 4, 4, 1), 1, (48,), (0,), scan).order[0]
  np.testing.assert_array_equal(whole, np.concatenate([frame, frame + 16, frame + 32]))


@pytest.mark.parametrize('shape, block', [((4, 4, 1), (1, 2, 2)), ((2, 4, 4, 1), (2, 2))])
def test_blocks_have_as_many_axes_as_the_images(shape, block):
  with pytest.raises(InputError, match='must be one number or'):
    block_layout(shape, 1, block, block)


@pytest.mark.parametrize('arguments', [*LAYOUTS_1D[:5], *LAYOUTS_2D[:6], *LAYOUTS_3D[:2]], ids=str)
def test_visibility_of_one_slot_or_block_is_part_of_the_whole(arguments):
  layout = make_layout(*arguments)
  whole = layout.visible()
  assert whole.shape == (layout.num_blocks, layout.block_size, layout.memory.shape[1])
  for block in range(layout.num_blocks):
    np.testing.assert_array_equal(layout.visible(block), whole[block])
    for slot in range(layout.block_size):
      np.testing.assert_array_equal(layout.visible(block, slot), whole[block, slot])


@pytest.mark.parametrize('scan', SCANS)
@pytest.mark.parametrize('side', [1, 2, 4, 8])
def test_scans_are_what_their_names_say(scan, side):
  order = block_layout((side, side, 1), 1, (side * side,), (0,), scan).order[0]
  assert [divmod(index, side) for index in order.tolist()] == scan_order(scan, side, side)


def test_hilberts_curve_never_leaps_and_fills_the_upper_half_first():
  pixels = np.array([divmod(index, 16) for index in block_layout((16, 16, 3), 3, (256,), (0,), 'hilbert').order[0]])
  assert (np.abs(np.diff(pixels, axis=0)).sum(axis=1) == 1).all()
  assert (pixels[:128, 0] < 8).all()


@pytest.mark.parametrize('shape', [(4, 8, 3), (6, 6, 1), (12, 12, 1)])
def test_hilberts_curve_needs_a_square_of_a_power_of_two(shape):
  with pytest.raises(InputError, match='model.scan'):
    block_layout(shape, 1, (4,), (4,), 'hilbert')


def test_blocks_in_three_dimensions():
  """All that is generated earlier within the flange, on both sides where an earlier axis differs."""
  size, block, flange = (3, 4, 5, 1), (1, 2, 2, 1), (1, 1, 2, 0)
  layout = BlockLayout(size, block, flange)
  cells = list(np.ndindex(size))
  generated = lambda cell: ([c // b for c, b in zip(cell, block)], cell)

  def sees(query, key):
    corner = [q // b * b for q, b in zip(query, block)]
    near = all(c - f <= k < c + b + f for c, k, b, f in zip(corner, key, block, flange))
    return near and generated(key) <= generated(query)

  np.testing.assert_array_equal(layout_visible(layout), [[sees(query, key) for key in cells] for query in cells])


@pytest.mark.parametrize('arguments', LAYOUTS_1D + LAYOUTS_2D + LAYOUTS_SCANNED, ids=str)
def test_every_position_has_one_slot_and_follows_the_one_generated_before(arguments):
  layout = make_layout(*arguments)
  generated = [index for index in layout.order.ravel() if index >= 0]
  assert sorted(generated) == list(range(layout.num_positions))
  np.testing.assert_array_equal(layout.order.ravel()[layout.slots], np.arange(layout.num_positions))
  # Across blocks and over padding: the first of a block follows the last of the block before.
  previous = dict(zip(layout.order.ravel(), layout.previous.ravel()))
  assert [previous[index] for index in generated] == [-1] + generated[:-1]


def test_generation_order_is_raster_over_blocks_then_inside_a_block():
  order = make_layout((3, 5, 1), (2, 2), (1, 1)).order
  np.testing.assert_array_equal(order, [[0, 1, 5, 6], [2, 3, 7, 8], [4, -1, 9, -1],
                                        [10, 11, -1, -1], [12, 13, -1, -1], [14, -1, -1, -1]])


def test_channels_of_a_pixel_stay_together_in_2d_and_make_one_position_under_dmol():
  assert make_layout((2, 4, 3), (2, 2), (1, 1)).order[0].tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
  assert block_layout((2, 4, 3), 3, (2, 2), (1, 1)).order[0].tolist() == [0, 1, 4, 5]
  assert block_layout((2, 4, 3), 3, (5,), (5,)).order.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, -1, -1]]


@pytest.mark.parametrize('query_block', [(49,), (5, 4), (4, 5)])
def test_block_larger_than_the_image_is_refused(query_block):
  with pytest.raises(InputError, match='model.query_block'):
    block_layout((4, 4, 3), 1, query_block, (2,) * len(query_block))


def dense_attention(q, k, v, visible):
  """Attention over all positions [B, positions, heads, width], with everything but `visible` masked."""
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, precision='highest')
  weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v, precision='highest')


def random_qkv(num_positions, scale=1.0, dtype=jnp.float32):
  random = np.random.default_rng(0)
  return [jnp.asarray(scale * random.standard_normal((2, num_positions, 2, 4)), dtype) for _ in range(3)]


@pytest.mark.parametrize('arguments', [LAYOUTS_1D[i] for i in (1, 4, 5)] + [LAYOUTS_2D[i] for i in (2, 3, 8, 10)] +
                         LAYOUTS_SCANNED[1:4:2], ids=str)
def test_blocks_equal_dense_in_values_and_gradients(arguments):
  (height, width, depth), *rest = arguments
  visible = paper_visible(height, width, depth, *rest)
  q, k, v = random_qkv(len(visible))
  cotangent = jnp.cos(jnp.arange(v.size, dtype=jnp.float32)).reshape(v.shape)

  def value_and_gradients(function):
    output, vjp = jax.vjp(function, q, k, v)
    return output, *vjp(cotangent)

  by_blocks = jax.jit(lambda: value_and_gradients(blockwise(make_layout(*arguments))))()
  dense = jax.jit(lambda: value_and_gradients(lambda *qkv: dense_attention(*qkv, visible)))()
  for ours, expected in zip(by_blocks, dense):
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_nothing_that_is_hidden_has_weight_however_unlikely_the_rest_is():
  arguments = ((1, 8, 1), (4,), (4,))
  q, k, v = (jnp.full((1, 8, 1, 8), value) for value in (100.0, -100.0, 0.0))  # all logits are -80,000
  v += jnp.eye(8)[:, None]  # which weight each position has
  visible = paper_visible(*arguments[0], *arguments[1:])
  output = blockwise(make_layout(*arguments))(q, k, v)
  np.testing.assert_allclose(output, dense_attention(q, k, v, visible), atol=1e-6)


def test_softmax_is_float32_on_bfloat16_inputs():
  """Only two roundings to bfloat16 are allowed, of the weights and of the result: 2^-8 each.

  Logits of about 30 would be off by 0.1 in bfloat16, and the weights by a tenth.
  """
  arguments = ((12, 16, 1), (4, 4), (4, 8))
  visible = paper_visible(*arguments[0], *arguments[1:])
  q, k, v = random_qkv(len(visible), scale=4.0, dtype=jnp.bfloat16)
  exact = [np.asarray(x, np.float32) for x in (q, k, v)]
  # Not compiled as a whole: XLA may leave out roundings to bfloat16, and then nothing would be tested.
  output = blockwise(make_layout(*arguments))(q, k, v)
  assert output.dtype == jnp.bfloat16
  bound = dense_attention(*exact[:2], np.abs(exact[2]), visible)
  error = np.abs(np.asarray(output, np.float32) - dense_attention(*exact, visible))
  assert np.all(error <= 2 * 2**-8 * bound + 1e-5)


def test_softmax_sum_is_float32_on_bfloat16_inputs():
  """515 equal weights: in bfloat16 they sum to 516, and every mean would be 2e-3 too small.

  One mean is rounded to 2^-8 anyhow; their average over 1024 features is not.
  """
  layout = block_layout((1, 515, 1), 1, (515,), (0,))
  v = jnp.asarray(1 + np.random.default_rng(0).random((1, 515, 1, 1024)), jnp.bfloat16)
  q = jnp.zeros((1, 515, 1, 2), jnp.bfloat16)
  means = np.asarray(blockwise(layout)(q, q, v), np.float32)[0, -1, 0]
  ratio = means / np.asarray(v, np.float32).mean(axis=(0, 1, 2))
  np.testing.assert_allclose(ratio.mean(), 1, atol=5e-4)
