"""Drawings given their captions: 1D local attention, DMOL and an encoder of texts, by the recipe of cifar10_fast.py;
not in the paper, which names text as future work.

  python main.py --config=configs/scenes.py
  python main.py --mode=sample --workdir=runs/scenes --text="a large red circle left of a small blue square"
"""

from image_transformer.configs import base, cifar10_fast


def get_config(variant=''):
  return base.experiment(variant, {
      **base.smoke(query_block=(32,), memory_flange=(352,), num_steps=7_000, batch_size=4),
      **cifar10_fast.RECIPE,
      'stand_in': False,
      'dataset': 'scenes',
      'model.likelihood': 'dmol',
      'model.text_length': 104,
      'model.text_dropout': 0.1,
      'model.num_encoder_layers': 2,
      'train.flip': False,
      'eval.batch_size': 100,
  }, smoke={'train.steps': 1_000})
