"""Clips of moving digits: 3D local attention over frames, rows and columns, by the recipe of cifar10_fast.py; not in
the paper, which names video as future work.

  python main.py --config=configs/moving_digits.py
  python main.py --mode=complete --workdir=runs/moving_digits --keep=2
"""

from image_transformer.configs import base, cifar10_fast


def get_config(variant=''):
  return base.experiment(variant, {
      **base.smoke(query_block=(1, 4, 16), memory_flange=(2, 4, 0), num_steps=10_000, batch_size=4),
      **cifar10_fast.RECIPE,
      'stand_in': False,
      'dataset': 'moving_digits',
      'model.embedding_bias': 0.0,
      'train.flip': False,
      'eval.batch_size': 50,
  }, smoke={'train.steps': 1_000})
