"""Your own images: 2D local attention, DMOL, on any folder of PNG, JPEG and WebP files; not in the paper.

  python main.py --config=configs/folder.py --config.folder.path=DIR [--config.folder.size="(64, 64)"]

Hardware: any; a batch of 32 images of 32x32. Time and bits/dim depend on the images.

  python main.py --config=configs/folder.py:smoke --config.folder.path=DIR

`:smoke` trains a small model by the recipe of cifar10_fast.py, in minutes. `:texts` trains a small model that draws
what texts say: it reads a text for every image, from NAME.txt beside NAME.png or from metadata.jsonl. `:videos` trains
a small model of videos of 8 frames of 16x16: GIFs, or sub-folders of images.
"""

from image_transformer.configs import base, cifar10_2d_dmol, cifar10_fast

SMALL = base.smoke(query_block=(4, 8), memory_flange=(4, 4), num_steps=3000, batch_size=2) | cifar10_fast.RECIPE | {
    'stand_in': False, 'train.flip': False}


def get_config(variant=''):
  return base.experiment(variant, {
      **cifar10_2d_dmol.FIELDS,
      'dataset': 'folder',
      'model.query_block': (8, 8),
      'train.batch_size': 32,
  }, smoke=SMALL, texts=SMALL | {
      'folder.texts': True,
      'model.query_block': (32,),
      'model.memory_flange': (96,),
      'model.text_length': 96,
      'model.text_dropout': 0.1,
      'model.num_encoder_layers': 2,
      'train.steps': 8000,
  }, videos=SMALL | {
      'folder.frames': 8,
      'folder.size': (16, 16),
      'model.query_block': (1, 4, 16),
      'model.memory_flange': (1, 4, 4),
      'sample.num_images': 8,
      'sample.batch_size': 8,
  })
