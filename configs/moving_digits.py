"""Clips of moving digits: 3D local attention over frames, rows and columns, by the recipe of cifar10_fast.py; not in
the paper, which names video as future work.

  python main.py --config=configs/moving_digits.py
  python main.py --mode=complete --workdir=runs/moving_digits --keep=2

Hardware: 2 CPU cores. Time: 61 minutes of training on one of them, beside other work; 1.10 bits per frame from the
third on, of which 0.65 are needed (results/moving_digits). `:smoke` takes minutes. `:per_frame` sees each frame by
itself, for comparison.
"""

from image_transformer.configs import base, cifar10_fast


def get_config(variant=''):
  return base.experiment(variant, {
      **base.smoke(query_block=(1, 4, 16), memory_flange=(1, 4, 0), num_steps=8_500, batch_size=2),
      **cifar10_fast.RECIPE,
      'stand_in': False,
      'dataset': 'moving_digits',
      'model.likelihood': 'dmol',
      'train.flip': False,
      'eval.batch_size': 50,
      'sample.num_images': 8,
      'sample.batch_size': 8,
  }, smoke={'model.hidden_size': 48, 'model.ffn_size': 192, 'train.steps': 200, 'eval.num_images': 100},
     per_frame={'model.memory_flange': (0, 4, 0), 'train.steps': 3_000})
