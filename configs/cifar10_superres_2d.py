"""CIFAR-10, super-resolution 8x8 -> 32x32, 2D local attention (paper section 5.3, img2img_transformer2d_q3).

  python main.py --config=configs/cifar10_superres_2d.py

Hardware: 8 devices with 2 images each give the original's batch. Time: not measured. Expected:
no bits/dim was published; ours: not measured. Blocks are in pixels, so that R, G and B stay together.

  python main.py --config=configs/cifar10_superres_2d.py:smoke --config.data_dir=$DATA_DIR

3 minutes on 2 CPU cores; 4.53 bits/dim on 1,017 test images after training on 8,068 (results/).
It uses DMOL, because that learns several times more per CPU minute.
"""

from image_transformer.configs import base, cifar10_superres_1d

FIELDS = {
    **cifar10_superres_1d.FIELDS,
    'model.query_block': (8, 8),
    'model.memory_flange': (8, 12),
}


def get_config(variant=''):
  return base.experiment(variant, FIELDS, smoke=cifar10_superres_1d.smoke(
      2000, query_block=(4, 8), memory_flange=(4, 4), **cifar10_superres_1d.DMOL_SMOKE))
