"""CIFAR-10, 1D local attention, categorical: the paper's model (imagetransformer_cifar10_base, 38.3M parameters).

  python main.py --config=configs/cifar10_1d.py

Hardware: the paper does not state its own; 8 devices with 4 images each give its batch.
Time: not measured. Expected: 2.90 bits/dim (paper, table 4); ours: not measured.

  python main.py --config=configs/cifar10_1d.py:smoke --config.data_dir=$DATA_DIR

2 minutes on 2 CPU cores; 5.62 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base


def get_config(variant=''):
  return base.experiment(variant, {
      'optimizer.learning_rate': base.noam_peak(0.5, 512),
  }, smoke=base.smoke(query_block=(96,), memory_flange=(96,), num_steps=600))
