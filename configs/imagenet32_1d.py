"""ImageNet 32x32, 1D local attention, categorical (imagenet32_base): the old release, as in the paper.

  python main.py --config=configs/imagenet32_1d.py
  python main.py --mode=eval --workdir=runs/imagenet32_1d --average_checkpoints=8

Hardware: 8 devices with 4 images each give the original's batch. Time: not measured. Expected:
3.77 bits/dim with averaged checkpoints (paper; over how many it does not say); ours: not measured.
On the new release (--config.dataset=imagenet32_new) the same model scores about 0.26 lower.

  python main.py --config=configs/imagenet32_1d.py:smoke --config.data_dir=$DATA_DIR

1 minute on 2 CPU cores; on generated images where the data set is not there.
"""

from image_transformer.configs import base


def get_config(variant=''):
  return base.experiment(variant, {
      'dataset': 'imagenet32_old',
      'model.num_heads': 8,
      'model.dropout': 0.1,
      'train.keep_checkpoints': 8,
      'eval.split': 'validation',
      'optimizer.learning_rate': base.noam_peak(0.5, 512),
  }, smoke=base.smoke(query_block=(96,), memory_flange=(96,), num_steps=200, **{'train.checkpoint_every': 20}))
