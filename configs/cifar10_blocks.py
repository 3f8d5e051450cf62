"""CIFAR-10, the paper's block-size experiment: 8 layers, 1D, categorical. The argument is the block size, or else 256.

  python main.py --config=configs/cifar10_blocks.py:64

Hardware: 8 devices with 4 images each give the original's batch. Time: not measured. Expected
for blocks of 8, 16, 64 and 256: 4.06, 3.47, 3.13 and 2.99 bits/dim (paper); ours: not measured.

  python main.py --config=configs/cifar10_blocks.py:64,smoke --config.data_dir=$DATA_DIR

1 minute on 2 CPU cores; 6.50 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base
from image_transformer.errors import InputError


def get_config(variant='256'):
  size, _, variant = (f'256,{variant}' if variant in ('', 'smoke') else variant).partition(',')
  if not size.isdecimal() or not int(size):
    raise InputError(f'cifar10_blocks.py needs a block size, such as :64 or :64,smoke, and not :{size}.')
  blocks = {'query_block': (int(size),), 'memory_flange': (int(size),)}
  return base.experiment(variant, {
      **{f'model.{field}': value for field, value in blocks.items()},
      'model.num_layers': 8,
      'model.num_heads': 8,
      'optimizer.learning_rate': base.noam_peak(0.1, 512),
  }, smoke=base.smoke(num_steps=300, **blocks))
