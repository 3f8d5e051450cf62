"""CelebA, super-resolution 8x8 -> 32x32, 1D local attention (paper section 5.3, img2img_transformer_b3).

  python main.py --config=configs/celeba_superres_1d.py
  python main.py --mode=superres --workdir=runs/celeba_superres_1d --temperature=1.0,0.9,0.8

Hardware: 8 devices with 2 images each give the original's batch. Time: not measured. Expected: no
bits/dim was published; 35.94 +- 3.0 % of human judges fooled at temperature 0.8 (paper); ours: not measured.

  python main.py --config=configs/celeba_superres_1d.py:smoke --config.data_dir=$DATA_DIR

1 minute on 2 CPU cores; on generated images where the data set is not there.
"""

from image_transformer.configs import base, cifar10_superres_1d


def get_config(variant=''):
  return base.experiment(variant, {**cifar10_superres_1d.FIELDS, 'dataset': 'celeba'},
                         smoke=cifar10_superres_1d.smoke(200, query_block=(96,), memory_flange=(96,)))
