"""What a run is about to do: a summary to read before the first step, and what a step costs."""

from collections.abc import Sequence
import os
from typing import Any

from etils import epath
import jax
import numpy as np

from image_transformer import devices
from image_transformer.config import Config, ModelConfig
from image_transformer.model import ImageTransformer, num_parameters
from image_transformer.optimizers import make_optimizer
from image_transformer.state import init_state
from image_transformer.training_step import make_train_step
from image_transformer.transformer import is_fused


def summary(config: Config, model: ImageTransformer, num_train_images: int | None, num_eval_images: int | None,
            start: int, workdir: epath.PathLike) -> str:
  """A block of lines about the model, data, devices, steps and the workdir; a number of images may be unknown."""
  c, train = config.model, config.train
  kind = f'{len(c.query_block)}D local attention, blocks of {_by(c.query_block)}, memory {_by(c.memory_flange)}'
  encoder = f' and {c.num_encoder_layers} of an encoder' if c.num_encoder_layers else ''
  images = lambda number: 'images' if number is None else f'{number:,} images'
  epochs = f', {(train.steps - start) * train.batch_size / num_train_images:.3g} epochs' if num_train_images else ''
  kinds = sorted({device.device_kind for device in jax.devices()})
  rows = {
      'model': f'{kind}; {c.num_layers} layers{encoder}, {c.hidden_size} wide; {c.likelihood}, {c.coordinates} '
               f'coordinates, {c.dtype}; {num_parameters(model):,} parameters',
      'data': f'{config.dataset} {train.split}: {images(num_train_images)} of {_by(model.spec.shape)}; evaluated on '
              f'{config.eval.split}: {images(config.eval.num_images or num_eval_images)}',
      'devices': f'{jax.device_count()} x {", ".join(kinds)}; {"fused" if is_fused(c) else "einsum"} attention',
      'training': f'steps {start:,} to {train.steps:,} of {train.batch_size} images{epochs}; {config.optimizer.name}, '
                  f'{config.optimizer.schedule} schedule',
      'workdir': os.fspath(workdir),
  }
  return '\n'.join(f'{name:9} {text}' for name, text in rows.items())


def _by(sizes):
  return ' x '.join(map(str, sizes))


def visible_pairs(model: ImageTransformer) -> int:
  """Pairs of a query and a key that it may see, of one image and head."""
  layout = model.layout
  real = layout.order >= 0
  return int((layout.visible() & real[:, :, None]).sum())


def attention_flops(config: ModelConfig, pairs: int) -> int:
  """FLOPs of one layer's attention to so many pairs, forward: two products, of 2 FLOPs for each number of a head."""
  return 4 * pairs * config.qkv_width


def training_flops(model: ImageTransformer) -> int:
  """FLOPs of a training step for one image: 6 per parameter and position, 3 times the forward pass of attention."""
  attention = model.config.num_layers * attention_flops(model.config, visible_pairs(model))
  return 6 * num_parameters(model) * model.layout.num_positions + 3 * attention


def compiled_step(config: Config, model: ImageTransformer, targets: Sequence[jax.Device] | None = None) -> Any:
  """The training step, compiled; its `memory_analysis` is of one device.

  Args:
    config, model: what is trained.
    targets: the devices to compile for, which need not be there; None: those of this process.
  """
  targets = jax.local_devices() if targets is None else targets
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  state = jax.eval_shape(lambda: init_state(model, optimizer, config))
  spec, number = model.spec, config.train.batch_size // max(jax.device_count(), len(targets))
  batch = {'image': np.empty((number, *spec.shape), np.uint8), 'label': np.empty(number, np.int32)}
  batch |= {name: np.empty((number, *condition.shape), np.uint8) for name, condition in model.conditions.items()
            if name not in batch}
  everywhere = lambda x: jax.ShapeDtypeStruct((len(targets), *x.shape), x.dtype)
  step = devices.pmap(make_train_step(model, optimizer, config), donate_argnums=0, devices=targets)
  return step.lower(jax.tree.map(everywhere, state), jax.tree.map(
      everywhere, {name: batch[name] for name in ('image', *model.conditions)})).compile()
