"""Class-conditional 8x8 digits, 17 grey levels: the demo (`make demo`).

  python main.py --config=configs/digits.py

Hardware: 2 CPU cores. Time: 4 minutes of training on one of them, beside other work.
Measured: 1.657 +- 0.014 bits/dim on all 297 test digits (results/digits).
Settings were chosen on 300 of the training digits (train.split=train[:1200],
eval.split=train[1200:]); the test split was not used for that.
"""

from image_transformer.configs import base


def get_config(variant=''):
  return base.experiment(variant, {
      'dataset': 'digits',
      'model.likelihood': 'dmol',
      'model.query_block': (16,),
      'model.memory_flange': (48,),
      'model.num_layers': 3,
      'model.hidden_size': 96,
      'model.num_heads': 3,
      'model.ffn_size': 384,
      'model.class_conditional': True,
      'model.dropout': 0.1,
      'optimizer.learning_rate': 3e-3,
      'optimizer.warmup_steps': 100,
      'optimizer.schedule': 'cosine',
      'train.steps': 1500,
      'train.batch_size': 32,
      'train.log_every': 50,
      'train.checkpoint_every': 500,
      'train.eval_every': 0,
      'train.sample_every': 500,
      'eval.batch_size': 100,
      'sample.num_images': 100,
      'sample.batch_size': 100,
  }, smoke={'train.steps': 100})
