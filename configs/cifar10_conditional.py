"""CIFAR-10, class-conditional, 1D local attention, categorical (paper section 5.2).

  python main.py --config=configs/cifar10_conditional.py

Hardware: 8 devices with 4 images each give the original's batch. Time: not measured.
Expected: bits/dim similar to the unconditional model's, better samples (paper); ours: not
measured.

  python main.py --config=configs/cifar10_conditional.py:smoke --config.data_dir=$DATA_DIR

2 minutes on 2 CPU cores; 6.04 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base


def get_config(variant=''):
  return base.experiment(variant, {
      'model.num_layers': 10,
      'model.num_heads': 8,
      'model.class_conditional': True,
      'optimizer.learning_rate': base.noam_peak(0.1, 512),
      'sample.num_images': 40,
  }, smoke=base.smoke(query_block=(96,), memory_flange=(96,), num_steps=600))
