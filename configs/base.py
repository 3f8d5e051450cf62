"""The base of all experiments: the defaults of `image_transformer/config.py`, where every field is explained.

A file in this folder states only what differs, as dotted fields. Each has a variant
`:smoke`, the same code path, small enough to run in minutes on a laptop's CPU.
"""

import dataclasses
from typing import Any

import ml_collections

from image_transformer.config import Config
from image_transformer.errors import InputError


def experiment(variant: str, fields: dict[str, Any], **variants: dict[str, Any]) -> ml_collections.ConfigDict:
  """The defaults with `fields` set and, for a variant such as 'smoke', its own fields on top.

  Raises:
    InputError: for an unknown variant.
  """
  if variant and variant not in variants:
    raise InputError(f'Unknown variant :{variant} of a configuration; known: '
                     f'{", ".join(f":{name}" for name in variants)}.')
  config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  config.update_from_flattened_dict({**fields, **variants.get(variant, {})})
  return config


def noam_peak(learning_rate: float, hidden_size: int, warmup_steps: int = 4_000) -> float:
  """The peak learning rate of the schedule for a `learning_rate` of tensor2tensor."""
  return 10 * learning_rate * (hidden_size * warmup_steps)**-0.5


def smoke(*, query_block: tuple[int, ...], memory_flange: tuple[int, ...], num_steps: int, batch_size: int = 2,
          embedding_gain: float = 1.0, **fields: Any) -> dict[str, Any]:
  """The small form of the 32x32 models, for one device: few, narrow layers, short blocks and small batches
  learn most per CPU minute. With several devices, set `train.batch_size` to a multiple of their number.

  If its dataset is not available, it trains on generated images.
  """
  return {
      'stand_in': True,
      'model.query_block': query_block,
      'model.memory_flange': memory_flange,
      'model.embedding_gain': embedding_gain,
      'model.coordinates': 'sine',
      'model.num_layers': 3,
      'model.hidden_size': 64,
      'model.qkv_size': 0,
      'model.num_heads': 4,
      'model.ffn_size': 256,
      'model.dropout': 0.0,
      'optimizer.learning_rate': 4e-3,
      'optimizer.warmup_steps': 100,
      'optimizer.clip_norm': 1.0,
      'optimizer.schedule': 'cosine',
      'train.steps': num_steps,
      'train.batch_size': batch_size,
      'train.log_every': 100,
      'train.checkpoint_every': 1000,
      'train.eval_every': 1000,
      'train.sample_every': 0,
      'eval.num_images_during_training': 64,
      'sample.num_images': 20,
      'sample.batch_size': 20,
      **fields,
  }
