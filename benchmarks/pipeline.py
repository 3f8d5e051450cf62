"""The data pipeline: images/s that it delivers by itself, from generated images of the data set's shape.

  python benchmarks/pipeline.py [--config=configs/cifar10_1d.py] [--batch_sizes=2,32,256] [--runs=3] [--out=FILE.json]

What the training step takes of them is in `benchmarks/training.py`.
"""

import measuring  # first: it sets the process up

import dataclasses
import itertools
import statistics
import tempfile
import time

from absl import app
from absl import flags
from ml_collections import config_flags

from image_transformer import batching, data

NUM_IMAGES = 8192


def measure(config, batch_size: int) -> float:
  """Images/s once all images are in memory: the median over the runs."""
  return statistics.median(runs(config, batch_size, 3)[1])


def runs(config, batch_size: int, num_runs: int) -> tuple[float, list[float]]:
  """Images/s of decoding, and of training batches from images that are in memory."""
  with tempfile.TemporaryDirectory() as folder:
    generated = dataclasses.replace(config, data_dir=folder, dataset=f'generated_{config.dataset}')
    source = data.open_split(generated, config.train.split)

    def rate(batches, num_images):
      began = time.perf_counter()
      number = sum(len(batch['image']) for batch in itertools.islice(batches, -(-num_images // batch_size)))
      return number / (time.perf_counter() - began)

    decoding = rate(batching.eval_batches(source, batch_size=batch_size), len(source))
    # As many as a small data set has: orders of few images take Grain longer.
    many = batching.keep_in_memory([source[index % len(source)] for index in range(NUM_IMAGES)])
    batches = batching.train_batches(many, batch_size=batch_size, seed=0, start_step=0, flip=config.train.flip)
    rate(batches, NUM_IMAGES)
    return decoding, [rate(batches, NUM_IMAGES) for _ in range(num_runs)]


def main(argv):
  del argv
  config, _ = measuring.load(_CONFIG.value)
  rows = []
  for batch_size in map(int, _BATCH_SIZES.value):
    decoding, rates = runs(config, batch_size, _RUNS.value)
    rows.append({'dataset': config.dataset, 'batch_size': batch_size, 'images/s': statistics.median(rates),
                 'decoding': decoding, 'all': rates})
  measuring.report('pipeline', rows, _OUT.value)


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_1d.py')
  _BATCH_SIZES = flags.DEFINE_list('batch_sizes', ['2', '32', '256'], 'Images of a batch.')
  _RUNS = flags.DEFINE_integer('runs', 3, 'Timed runs.')
  _OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
  app.run(main)
