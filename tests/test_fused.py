"""Fused attention is the attention of the einsum: forward, backward and in a model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import given_for, make_case, random_images
from image_transformer.attention import full_attention, local_attention
from image_transformer.config import ModelConfig
from image_transformer.errors import InputError
from image_transformer.layout import block_layout
from image_transformer.transformer import is_fused


def generated_layouts(num):
  random = np.random.default_rng(0)
  for _ in range(num):
    rows, columns, depth = random.integers(2, 9, 2).tolist() + [int(random.choice([1, 3]))]
    kind = random.random()
    if kind < 0.2:
      size = random.integers(2, 5, 3)
      yield block_layout((*size.tolist(), 1), 1, tuple((random.integers(size) + 1).tolist()),
                         tuple(random.integers(0, 4, 3).tolist()))
      continue
    if kind < 0.6:
      block, flange = (int(random.integers(1, rows * columns * depth)),), (int(random.integers(0, 30)),)
      scan = str(random.choice(['raster', 'column', 'zigzag']))
    else:
      block = int(random.integers(1, rows + 1)), int(random.integers(1, columns + 1))
      flange, scan = tuple(random.integers(0, 6, 2).tolist()), 'raster'
    yield block_layout((rows, columns, depth), 1, block, flange, scan)


@pytest.mark.parametrize('num', [4, pytest.param(60, marks=pytest.mark.long)])
def test_fused_attention_is_the_einsum_with_its_gradients(num):
  padded = 0
  for i, layout in enumerate(generated_layouts(num)):
    q, k, v, weight = jax.random.normal(jax.random.key(i), (4, 2, *layout.order.shape, 2, 8))
    real = (layout.order >= 0)[..., None, None]
    padded += not real.all()

    def loss(qkv, fused, layout=layout, weight=weight, real=real):
      mixed = local_attention(*qkv, layout=layout, fused=fused)[0]
      return jnp.where(real, mixed * weight, 0).sum(), (mixed, jnp.where(real, mixed, 0))

    gradients, mixed = {}, {}
    for fused in (False, True):
      gradients[fused], (everything, mixed[fused]) = jax.jit(
          jax.grad(loss, has_aux=True), static_argnums=1)((q, k, v), fused)
      assert jnp.isfinite(everything).all()  # padding too
    np.testing.assert_allclose(mixed[True], mixed[False], rtol=0, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), gradients[True], gradients[False])
  assert padded >= num // 4


def test_gradients_of_fused_attention_keep_no_memory_blocks():
  layout = block_layout((4, 9, 1), 1, (6,), (12,))
  q, k, v = jnp.ones((3, 2, *layout.order.shape, 2, 8))
  kept = jax.vjp(lambda *qkv: local_attention(*qkv, layout=layout, fused=True)[0], q, k, v)[1]
  copies = 2 * layout.order.shape[0] * 18 * 2 * 8  # images, blocks, memory of 12 and 6 slots, heads, their width
  sizes = [leaf.size for leaf in jax.tree.leaves(kept)]
  assert q.size in sizes and copies not in sizes


@pytest.mark.parametrize('queries, masked', [((5,), True), ((2, 3), False), ((), True)])
def test_fused_attention_to_a_context_is_the_einsum_with_its_gradients(queries, masked):
  q, k, v = (jax.random.normal(jax.random.key(i), (2, *shape, 3, 8)) for i, shape in enumerate((queries, (7,), (7,))))
  visible = jnp.arange(7) < jnp.array([[7], [4]]) if masked else None

  def loss(qkv, fused):
    mixed = full_attention(*qkv, visible_BC=visible, fused=fused)[0]
    assert mixed.shape == qkv[0].shape
    return (mixed**2).sum()

  (einsum, want), (fused, got) = (jax.jit(jax.value_and_grad(loss), static_argnums=1)((q, k, v), fused)
                                  for fused in (False, True))
  np.testing.assert_allclose(fused, einsum, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), got, want)
  if masked:
    assert (np.asarray(got[1])[1, 4:] == 0).all()


@pytest.mark.parametrize('masked', [True, False])
def test_kernels_get_even_numbers_of_queries_and_keys_and_whole_masks(masked, monkeypatch):
  """As cuDNN wants them; without a mask too, as JAX checks for one."""
  kernel, calls = jax.nn.dot_product_attention, []

  def record(query, key, value, *, mask, **kwargs):
    calls.append((query.shape[1], key.shape[1], mask is None or mask.shape[2:] == (query.shape[1], key.shape[1])))
    return kernel(query, key, value, mask=mask, **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  for num_queries, num_keys in itertools.product((4, 5), (6, 7)):
    q, k = jnp.ones((2, num_queries, 1, 8)), jnp.ones((2, num_keys, 1, 8))
    visible = jnp.arange(num_keys) < jnp.array([[num_keys], [3]]) if masked else None
    mixed, _ = full_attention(q, k, k, visible_BC=visible, fused=True)
    np.testing.assert_allclose(mixed, jnp.ones(q.shape), rtol=1e-6)
  assert all(queries % 2 == keys % 2 == 0 and whole for queries, keys, whole in calls) and len(calls) == 4


@pytest.mark.parametrize('name', ['1d_dmol', '2d_categorical', '1d_superres', '3d_categorical', '1d_text'])
def test_a_model_with_fused_attention_is_the_same_model(name):
  probabilities = []
  for attention in ('einsum', 'fused'):
    model, variables = make_case(name, attention=attention)
    images = random_images(model.spec, 2)
    given = given_for(model, 2)
    probabilities.append(jax.jit(lambda *args, m=model: m.apply(*args, method='log_prob'))(variables, images, given))
  np.testing.assert_allclose(*probabilities, rtol=1e-5)


def test_auto_is_fused_where_it_applies(monkeypatch):
  for backend, dtype, dropout in itertools.product(('cpu', 'gpu'), ('float32', 'bfloat16'), (0.0, 0.1)):
    monkeypatch.setattr(jax, 'default_backend', lambda backend=backend: backend)
    config = ModelConfig(dtype=dtype, attention_dropout=dropout)
    assert is_fused(config) == (backend == 'gpu' and dtype == 'bfloat16' and not dropout)
  assert not is_fused(ModelConfig(dtype='bfloat16', num_heads=1))
  with pytest.raises(InputError, match='model.attention is .fused.*float32'):
    is_fused(ModelConfig(attention='fused'))
  for changes in ({'attention_dropout': 0.1}, {'num_heads': 128}):
    with pytest.raises(InputError, match='model.attention is .fused'):
      is_fused(ModelConfig(attention='fused', dtype='bfloat16', **changes))
