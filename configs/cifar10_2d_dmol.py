"""CIFAR-10, 2D local attention, DMOL: the paper's DMOL model with a two-dimensional memory; not in the paper.

  python main.py --config=configs/cifar10_2d_dmol.py

Hardware: 8 devices with 8 images each, as for 1D. Time: not measured. Expected: nothing was
published; ours: not measured.

  python main.py --config=configs/cifar10_2d_dmol.py:smoke --config.data_dir=$DATA_DIR

2 minutes on 2 CPU cores; 4.50 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base, cifar10_1d_dmol

FIELDS = {
    **cifar10_1d_dmol.FIELDS,
    'model.query_block': (16, 16),
    'model.memory_flange': (8, 8),
}


def get_config(variant=''):
  return base.experiment(variant, FIELDS, smoke=base.smoke(
      query_block=(4, 8), memory_flange=(4, 4), num_steps=1500, batch_size=4, embedding_gain=20.0))
