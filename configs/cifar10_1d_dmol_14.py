"""CIFAR-10, 1D local attention, DMOL, 14 layers: the variant whose result the original's code reports.

  python main.py --config=configs/cifar10_1d_dmol_14.py

Hardware and time: 8 devices with 8 images each; just under 4 days on 8 P100 (tensor2tensor); ours:
not measured. Expected: 2.92 bits/dim (tensor2tensor); ours: not measured.

  python main.py --config=configs/cifar10_1d_dmol_14.py:smoke --config.data_dir=$DATA_DIR

2 minutes on 2 CPU cores; 4.46 bits/dim on 1,017 test images after training on 8,068 (results/).
"""

from image_transformer.configs import base, cifar10_1d_dmol


def get_config(variant=''):
  return base.experiment(variant, {
      **cifar10_1d_dmol.FIELDS,
      'model.num_layers': 14,
      'model.dropout': 0.2,
      'optimizer.clip_norm': 40.0,
  }, smoke=base.smoke(query_block=(32,), memory_flange=(32,), num_steps=1200, batch_size=4, embedding_gain=20.0,
                      **{'model.num_layers': 4, 'optimizer.clip_norm': 40.0}))
