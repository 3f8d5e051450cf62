"""The training step and what is logged of it, against NumPy written out; whole images against their probabilities."""

import itertools
import math

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import apply, parameter_shapes, random_variables
from image_transformer import config as config_lib
from image_transformer import data, devices, metrics
from image_transformer.config import ImageSpec, ModelConfig
from image_transformer.model import make_model
from image_transformer.optimizers import make_optimizer
from image_transformer.sampling import sample
from image_transformer.state import init_state
from image_transformer.training import Trainer
from image_transformer.training_step import make_train_step
from image_transformer.transformer import layer_norm


def make_config(**sections):
  base = {'dataset': 'digits',
          'model': {'query_block': (16,), 'memory_flange': (16,), 'num_layers': 1, 'hidden_size': 8, 'num_heads': 2,
                    'ffn_size': 8, 'dropout': 0.0},
          'train': {'steps': 9, 'batch_size': 4, 'accumulation': 2, 'ema_decay': 0.9, 'log_every': 2},
          'optimizer': {'learning_rate': 0.05, 'warmup_steps': 3, 'b1': 0.8, 'b2': 0.7, 'epsilon': 0.01,
                        'clip_norm': 0.1}}
  return config_lib.from_dict({name: {**value, **sections.get(name, {})} if isinstance(value, dict) else value
                               for name, value in base.items()} | {k: v for k, v in sections.items() if k not in base})


def test_three_steps_of_adam_are_those_of_numpy():
  """Clipping, the schedule, both moments and their bias, the averaged parameters, and the logged numbers."""
  config = make_config()
  model = make_model(config.model, data.image_spec(config))
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  initial = init_state(model, optimizer, config)
  state, step = devices.replicate(initial), devices.pmap(make_train_step(model, optimizer, config))
  gradient = jax.jit(jax.value_and_grad(lambda params, images: -model.apply(
      {'params': params}, images, {}, method='log_prob').mean() / 64))
  wide = lambda tree: [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
  tree = jax.tree.structure(initial.params)
  params = wide(initial.params)
  first, second, average = [0 * x for x in params], [0 * x for x in params], params
  losses = []
  for t in range(1, 4):
    images = np.random.default_rng(t).integers(17, size=(4, 8, 8, 1)).astype(np.uint8)
    loss, grads = gradient(jax.tree.unflatten(tree, [jnp.float32(x) for x in params]), images)
    losses.append(float(loss))
    grads = wide(grads)
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    assert norm > 0.1, 'it must be clipped'
    grads = [g * 0.1 / norm for g in grads]
    first = [0.8 * m + 0.2 * g for m, g in zip(first, grads)]
    second = [0.7 * v + 0.3 * g**2 for v, g in zip(second, grads)]
    rate = 0.05 * min(t / 3, math.sqrt(3 / t))
    params = [p - rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.7**t)) + 0.01)
              for p, m, v in zip(params, first, second)]
    decay = min(0.9, t / (9 + t))
    average = [decay * a + (1 - decay) * p for a, p in zip(average, params)]
    state, logged = step(state, devices.split({'image': images}))
    logged = {name: float(value) for name, value in devices.unreplicate(logged).items()}
    assert logged['loss'] == pytest.approx(losses[-1], rel=1e-5)
    assert logged['grad_norm'] == pytest.approx(norm, rel=1e-4)  # before clipping
    window = losses[-1:] if t % 2 else losses[-2:]  # a line is logged at every second step
    assert logged['window_loss'] == pytest.approx(np.mean(window), rel=1e-5)
    for ours, theirs in ((state.params, params), (state.ema_params, average)):
      for one, other in zip(wide(devices.unreplicate(ours)), theirs):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_log_is_in_bits(tmp_path, capsys):
  """Of a model that knows nothing, so that every intensity costs log2(17)."""
  config = make_config(train={'steps': 2, 'eval_every': 1, 'sample_every': 0}, data_dir=str(tmp_path / 'data'),
                       optimizer={'learning_rate': 1e-30}, eval={'num_images': 8, 'num_images_during_training': 8})
  trainer = Trainer(config, epath.Path(tmp_path / 'run'))
  trainer._first_params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), parameter_shapes(trainer.model))
  trainer.run()
  lines = metrics.read_metrics(epath.Path(tmp_path / 'run'))
  assert len(lines) == 3 and all(line['bits_per_dim'] == pytest.approx(math.log2(17), rel=1e-6) for line in lines)
  assert '4.0875' in capsys.readouterr().err, 'evaluations are printed too'


def test_the_standard_error_is_that_of_the_mean():
  evaluation = metrics.Evaluation(np.array([1.0, 2.0, 4.0, 5.0]) * 3 * math.log(2), 3)
  assert evaluation.bits_per_dim == pytest.approx(3.0)
  assert evaluation.standard_error == pytest.approx(math.sqrt((4 + 1 + 1 + 4) / 3) / 2)  # n - 1 in the variance


def test_layer_norm_is_that_of_numpy():
  x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) * 2e-3  # the epsilon, 1e-6, matters

  class Norm(nn.Module):

    @nn.compact
    def __call__(self, x):
      return layer_norm(ModelConfig(), 'norm')(x)

  ours, _ = Norm().init_with_output(jax.random.key(0), x)
  wanted = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(ours, wanted, rtol=1e-4)


@pytest.mark.parametrize('likelihood, spec', [
    ('categorical', ImageSpec(1, 2, 3, levels=2)), ('categorical', ImageSpec(2, 2, 1, levels=3)),
    ('dmol', ImageSpec(1, 2, 3, levels=2)), ('dmol', ImageSpec(1, 1, 3, levels=4))], ids=str)
def test_whole_images_are_drawn_as_often_as_their_probability_says(likelihood, spec):
  """All images there are, by a chi-squared test: nothing is drawn with the noise of something else."""
  number = 40_000
  positions = spec.height * spec.width * (spec.channels if likelihood == 'categorical' else 1)
  config = ModelConfig(query_block=(max(positions // 2, 1),), memory_flange=(positions,), likelihood=likelihood,
                       num_mixtures=2, num_layers=1, hidden_size=8, num_heads=2, ffn_size=8, dropout=0.0)
  model = make_model(config, spec)
  variables = random_variables(model, scale=0.5, seed=3)
  images = np.array(list(itertools.product(range(spec.levels), repeat=spec.num_dims)), np.uint8)
  probabilities = np.exp(np.asarray(apply(model, variables, images.reshape(-1, *spec.shape), {}, method='log_prob'),
                                    np.float64))
  assert probabilities.sum() == pytest.approx(1, abs=5e-3)  # DMOL approximates narrow bins
  drawn, _ = jax.jit(lambda keys: sample(model, variables, keys))(jax.random.split(jax.random.key(0), number))
  which = (np.asarray(drawn).reshape(number, -1) @ spec.levels**np.arange(spec.num_dims)[::-1]).astype(int)
  counts, expected = np.bincount(which, minlength=len(images)), number * probabilities / probabilities.sum()
  often = expected >= 5
  statistic = ((counts - expected)[often]**2 / expected[often]).sum()
  freedom = often.sum() - 1
  assert freedom > 5 and statistic < freedom + 5 * math.sqrt(2 * freedom), (statistic, freedom)
