"""CIFAR-10, 1D local attention, DMOL, by the recipe that learns most in little time; not in the paper.

  python main.py --config=configs/cifar10_fast.py

Rotary coordinates, pre-norm, normalised queries and keys, biases of the embedding, Muon and small batches: what else
was tried is in results/recipe_tried.json. Hardware: 2 CPU cores. Time: 69 minutes of training on one of them,
beside other work; 3.49 bits/dim on 1,017 test images after training on 8,068 (results/cifar10_fast).

  python main.py --config=configs/cifar10_fast.py:smoke --config.data_dir=$DATA_DIR
  python main.py --config=configs/cifar10_fast.py:gpu
  python main.py --config=configs/cifar10_fast.py:gpu_hour

`:smoke` took 6 minutes of training on one CPU core; 3.67 bits/dim on 1,017 test images after training on 8,068
(results/). `:superres` enlarges 8x8 to 32x32; 16 minutes and 3.57 bits/dim, likewise. `:gpu` trains the paper's DMOL
model in some 10 minutes on one GPU, `:gpu_hour` in an hour; not measured.
"""

from image_transformer.configs import base, cifar10_1d_dmol

RECIPE = {
    'model.coordinates': 'rotary',
    'model.embedding_gain': 5.0,
    'model.embedding_bias': 1.0,
    'model.norm': 'pre',
    'model.qk_norm': True,
    'optimizer.name': 'muon',
    'optimizer.learning_rate': 1e-2,
    'optimizer.schedule': 'cosine',
    'optimizer.clip_norm': 1.0,
    'optimizer.warmup_steps': 100,
    'train.flip': True,
    'train.ema_decay': 0.999,
    'train.sample_every': 0,
}


GPU = {
    **cifar10_1d_dmol.FIELDS,
    **RECIPE,
    'model.query_block': (256,),
    'model.memory_flange': (256,),
    'model.num_layers': 12,
    'model.dropout': 0.25,
    'model.dtype': 'bfloat16',
    'train.steps': 7000,
    'eval.batch_size': 256,
}


def get_config(variant=''):
  small = base.smoke(query_block=(32,), memory_flange=(32,), num_steps=3400, batch_size=2) | RECIPE
  return base.experiment(variant, {
      **small,
      'model.likelihood': 'dmol',
      'stand_in': False,
      'model.memory_flange': (64,),
      'model.hidden_size': 128,
      'model.ffn_size': 512,
      'train.steps': 12000,
      'eval.batch_size': 100,
  }, smoke=small | {'stand_in': True, 'train.flip': False}, superres=small | {
      'stand_in': False,
      'model.upscale': 4,
      'model.num_encoder_layers': 1,
      'model.num_layers': 2,
      'train.steps': 8000,
      'sample.num_images': 8,
      'sample.batch_size': 8,
  }, gpu=GPU, gpu_hour=GPU | {'train.steps': 42000})
