"""Run by test_devices.py in a process of its own for each number of devices: prints one JSON object.

A tiny model takes 20 steps on fixed images, of plain SGD or by the fast recipe, and evaluates.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from image_transformer import config as config_lib
from image_transformer import devices, sampling
from image_transformer.evaluate import make_evaluator
from image_transformer.model import make_model
from image_transformer.optimizers import make_optimizer
from image_transformer.state import init_state
from image_transformer.training_step import make_train_step


def sgd_that_keeps_the_gradient(rate: float) -> optax.GradientTransformation:
  return optax.GradientTransformation(
      lambda params: jax.tree.map(jnp.zeros_like, params),
      lambda grads, state, params=None: (jax.tree.map(lambda g: -rate * g, grads), grads))


def flat(tree) -> list[float]:
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(float).tolist()


def main() -> None:
  config = config_lib.from_dict({
      'model': {'query_block': (6,), 'memory_flange': (6,), 'num_layers': 2, 'hidden_size': 16, 'num_heads': 2,
                'ffn_size': 32, 'dropout': 0.1, 'class_conditional': True},
      'train': {'batch_size': 16, 'accumulation': int(sys.argv[1])}})
  recipe = sys.argv[2:] == ['recipe']
  if recipe:
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, coordinates='rotary', norm='pre', qk_norm=True),
        optimizer=dataclasses.replace(config.optimizer, name='muon', learning_rate=0.01, warmup_steps=1))
  spec = config_lib.ImageSpec(4, 5, 1, levels=17, num_classes=10)
  model = make_model(config.model, spec)
  rng = np.random.default_rng(0)
  images = rng.integers(0, spec.levels, (16, *spec.shape)).astype(np.uint8)
  labels = rng.integers(0, spec.num_classes, 16).astype(np.int32)

  optimizer = make_optimizer(config.optimizer, 20) if recipe else sgd_that_keeps_the_gradient(0.1)
  state = devices.replicate(init_state(model, optimizer, config))
  begin = flat(devices.unreplicate(state.params))
  step = devices.pmap(make_train_step(model, optimizer, config))
  gradients = []
  for _ in range(20):
    state, metrics = step(state, devices.split({'image': images, 'label': labels}))
    jax.block_until_ready(metrics)
    if not recipe:
      gradients.append(flat(devices.unreplicate(state.opt_state)))

  source = [{'image': image, 'label': label} for image, label in zip(images, labels)][:13]
  bits = {batch: make_evaluator(model, batch)(state.params, source).bits_per_dim for batch in (4, 5, 13, 32)}
  drawn, _ = sampling.make_sampler(model, 4)(state.params, 0, 6, {'label': labels[:6]})
  print(json.dumps({'devices': jax.device_count(), 'gradient': gradients[:1], 'begin': begin,
                    'params': flat(devices.unreplicate(state.params)), 'bits_per_dim': bits,
                    'images': drawn.astype(int).ravel().tolist()}))


if __name__ == '__main__':
  main()
