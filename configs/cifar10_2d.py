"""CIFAR-10, 2D local attention, categorical (after imagetransformer2d_base_12l_8_16_big_uncond).

  python main.py --config=configs/cifar10_2d.py

Hardware: 8 devices with 1 image each give the original's batch. Time: not measured.
Expected: no bits/dim was published for 2D; ours: not measured. The block is in pixels, so
that R, G and B stay together: memory of 160 pixels = 480 positions, close to the 512 of 1D.

  python main.py --config=configs/cifar10_2d.py:smoke --config.data_dir=$DATA_DIR

3 minutes on 2 CPU cores; 5.85 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base


def get_config(variant=''):
  return base.experiment(variant, {
      'model.query_block': (8, 8),
      'model.memory_flange': (4, 4),
      'model.num_heads': 8,
      'model.ffn_size': 1024,
      'model.dropout': 0.0,
      'train.batch_size': 8,
      'optimizer.learning_rate': base.noam_peak(0.1, 512),
  }, smoke=base.smoke(query_block=(4, 8), memory_flange=(4, 4), num_steps=600))
