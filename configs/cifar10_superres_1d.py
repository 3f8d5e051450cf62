"""CIFAR-10, super-resolution 8x8 -> 32x32, 1D local attention (paper section 5.3, img2img_transformer_b3).

  python main.py --config=configs/cifar10_superres_1d.py
  python main.py --mode=superres --workdir=runs/cifar10_superres_1d --temperature=1.0,0.9,0.8

Hardware: 8 devices with 2 images each give the original's batch. Time: not measured. Expected:
no bits/dim was published; ours: not measured.

  python main.py --config=configs/cifar10_superres_1d.py:smoke --config.data_dir=$DATA_DIR

3 minutes on 2 CPU cores; 4.24 bits/dim on 1,017 test images after training on 8,068 (results/).
It uses DMOL, because that learns several times more per CPU minute.
"""

from image_transformer.configs import base

# Of all super-resolution models, on CelebA too.
FIELDS = {
    'model.upscale': 4,
    'model.num_encoder_layers': 4,
    'model.num_layers': 8,
    'model.num_heads': 8,
    'model.query_block': (128,),
    'model.memory_flange': (128,),
    'model.dropout': 0.1,
    'train.batch_size': 16,
    'optimizer.learning_rate': base.noam_peak(0.2, 512, 12_000),
    'optimizer.warmup_steps': 12_000,
    'sample.num_images': 8,
    'sample.temperature': 0.9,
}


def smoke(num_steps, **fields):
  """The small form of all of them: aligned, since so few steps would not teach it the places of small pixels."""
  return base.smoke(num_steps=num_steps, **{
      'model.align_encoder': True, 'model.num_encoder_layers': 1, 'model.num_layers': 2, 'sample.num_images': 8,
      'sample.batch_size': 8, **fields})


DMOL_SMOKE = {'model.likelihood': 'dmol', 'embedding_gain': 20.0, 'batch_size': 4}


def get_config(variant=''):
  return base.experiment(variant, FIELDS, smoke=smoke(
      2400, query_block=(32,), memory_flange=(32,), **DMOL_SMOKE))
