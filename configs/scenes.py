"""Drawings given their captions: 1D local attention, DMOL and an encoder of texts, by the recipe of cifar10_fast.py;
not in the paper, which names text as future work.

  python main.py --config=configs/scenes.py
  python main.py --mode=sample --workdir=runs/scenes --text="a large red circle left of a small blue square"

Hardware: 2 CPU cores. Time: 72 minutes of training on one of them, beside other work; 18.9 bits for a drawing, given
its caption, of which 15.9 are exactly needed (results/scenes). `:smoke` takes minutes.
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
  }, smoke={'model.hidden_size': 48, 'model.ffn_size': 192, 'train.steps': 200, 'eval.num_images': 200})
