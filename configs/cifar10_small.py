"""CIFAR-10, 1D local attention, DMOL, for one ordinary machine: six layers of width 128; not in the paper.

  python main.py --config=configs/cifar10_small.py

Hardware: 2 CPU cores. Time: an hour. Measured: 3.63 bits/dim on 1,017 test images after training on
8,068 (results/). Flips and averaged parameters are on, since so few images are soon known by heart.
"""

from image_transformer.configs import base


def get_config(variant=''):
  small = base.smoke(query_block=(32,), memory_flange=(64,), num_steps=8000, batch_size=4, embedding_gain=20.0)
  return base.experiment(variant, {
      **small,
      'model.likelihood': 'dmol',
      'stand_in': False,
      'model.num_layers': 6,
      'model.hidden_size': 128,
      'model.ffn_size': 512,
      'optimizer.learning_rate': 2e-3,
      'optimizer.warmup_steps': 300,
      'train.flip': True,
      'train.ema_decay': 0.999,
      'train.sample_every': 1000,
  }, smoke=small | {'train.steps': 100})
