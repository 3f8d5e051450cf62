"""CelebA, super-resolution 8x8 -> 32x32, 2D local attention, pre-norm, 6 + 12 layers (img2img_transformer2d_n103).

  python main.py --config=configs/celeba_superres_2d_best.py
  python main.py --mode=superres --workdir=runs/celeba_superres_2d_best --temperature=1.0,0.9,0.8

The original's best. Hardware: 8 devices with 1 image each give its batch. Time: not measured.
Expected: nothing was published for it alone; ours: not measured.

  python main.py --config=configs/celeba_superres_2d_best.py:smoke --config.data_dir=$DATA_DIR

1 minute on 2 CPU cores; on generated images where the data set is not there.
"""

from image_transformer.configs import base, cifar10_superres_1d


def get_config(variant=''):
  return base.experiment(variant, {
      **cifar10_superres_1d.FIELDS,
      'dataset': 'celeba',
      'model.norm': 'pre',
      'model.num_encoder_layers': 6,
      'model.num_layers': 12,
      'model.query_block': (8, 16),
      'model.memory_flange': (8, 16),
      'train.batch_size': 8,
  }, smoke=cifar10_superres_1d.smoke(200, query_block=(4, 8), memory_flange=(4, 4)))
