"""CIFAR-10, 1D local attention, DMOL: the paper's model (imagetransformer_cifar10_base_dmol).

  python main.py --config=configs/cifar10_1d_dmol.py

Hardware: 8 devices with 8 images each give the original's batch; its code reports just under
4 days on 8 P100 for a variant of 14 layers; ours: not measured. Expected: 2.90 bits/dim (paper,
table 4); ours: not measured. A position is a pixel, so a block of 256 is 8 rows of the image.

  python main.py --config=configs/cifar10_1d_dmol.py:smoke --config.data_dir=$DATA_DIR

5 minutes on 2 CPU cores; 4.01 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base

# Shared with the 2D model, which the paper does not have.
FIELDS = {
    'model.likelihood': 'dmol',
    'model.coordinates': 'learned',
    'model.hidden_size': 256,
    'model.qkv_size': 512,
    'model.num_heads': 8,
    'model.ffn_size': 512,
    'model.dropout': 0.1,
    'train.batch_size': 64,
    'optimizer.learning_rate': base.noam_peak(0.1, 256),
}


def get_config(variant=''):
  return base.experiment(variant, FIELDS, smoke=base.smoke(
      query_block=(32,), memory_flange=(32,), num_steps=3600, batch_size=4, embedding_gain=20.0))
