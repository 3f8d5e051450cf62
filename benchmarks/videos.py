"""Bits of every frame of moving digits given the frames before, beside what is exactly needed.

  python benchmarks/videos.py --workdir=runs/moving_digits [--per_frame=runs/moving_digits_per_frame]
      [--num_clips=500] [--out=FILE.json] [--figure=FILE.png]

Digits move straight on, at no cost, and turn at walls, for a few bits: `moving_digits.surprise`. For comparison, a
model that sees each frame by itself (`configs/moving_digits.py:per_frame`), and a code that knows of each pixel only
what was there in the frame before, with probabilities counted in training clips.
"""

import measuring  # first: it sets the process up

from absl import app
from absl import flags
from matplotlib.figure import Figure
import numpy as np

from image_transformer import figures, library, pictures
from image_transformer.datasets import moving_digits
from image_transformer.metrics import standard_error
from image_transformer.paths import as_path
from image_transformer.workdir import write_whole

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.', required=True)
_PER_FRAME = flags.DEFINE_string('per_frame', None, 'The run of a model that sees each frame by itself.')
_NUM_CLIPS = flags.DEFINE_integer('num_clips', 500, 'How many test clips, from the first.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')
_FIGURE = flags.DEFINE_string('figure', None, 'PNG file to write: bits of the frames of a few clips.')

_GIVEN = 2  # frames
_NUM_SHOWN = 6


def bits_of_frames(run: library.Run, clips: np.ndarray) -> np.ndarray:
  """Bits of each frame given those before: [clips, frames]."""
  return -run.pixel_log_probs(clips).sum(axis=(2, 3, 4)) / np.log(2)


def copying(train: np.ndarray, clips: np.ndarray) -> np.ndarray:
  """Bits of each frame but the first if every pixel is coded given the one before it in time: [clips, frames - 1]."""
  counts = np.full((moving_digits.SPEC.levels,) * 2, 0.5)
  np.add.at(counts, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
  bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
  return bits[clips[:, :-1], clips[:, 1:]].sum(axis=(2, 3, 4))


def draw(bits: np.ndarray, exact: np.ndarray) -> Figure:
  """A panel for each clip: bits of its frames by the model, and exactly."""
  figure = Figure(figsize=(10, 4.5), dpi=110)
  panels = figure.subplots(2, len(bits) // 2, sharex=True, sharey=True)
  frames = np.arange(_GIVEN, _GIVEN + exact.shape[1]) + 1
  for axes, one, needed in zip(panels.flat, bits, exact):
    axes.bar(frames, needed, color='#f2b15f', label='needed')
    axes.plot(frames, one, 'o-', color='#c0302c', markersize=4, label='model')
    axes.grid(alpha=0.3)
  for axes in panels[-1]:
    axes.set_xlabel('frame')
  for axes in panels[:, 0]:
    axes.set_ylabel('bits')
  panels[0, 0].legend(fontsize=8)
  figure.suptitle('Bits of each frame given all frames before: needed only where the digit turns', fontsize=10)
  figure.tight_layout()
  return figure


def main(argv):
  del argv
  run = library.load(_WORKDIR.value)
  clips, _ = run.examples(_NUM_CLIPS.value)
  exact = np.stack([moving_digits.surprise(clip) for clip in clips])
  codes = {'exact': exact, 'model': bits_of_frames(run, clips)[:, _GIVEN:]}
  if _PER_FRAME.value:
    codes['each frame by itself'] = bits_of_frames(library.load(_PER_FRAME.value), clips)[:, _GIVEN:]
  codes['pixels given the frame before'] = copying(run.examples(2_000, 'train')[0], clips)[:, _GIVEN - 1:]
  rows = [{'code': name, 'bits per frame': float(bits.mean()),
           'standard error': standard_error(bits.mean(axis=1)), 'times the exact': float(bits.mean() / exact.mean()),
           'where nothing turns': float(bits[exact == 0].mean()), 'where it turns': float(bits[exact > 0].mean()),
           'exactly there': float(exact[exact > 0].mean())} for name, bits in codes.items()]
  measuring.report('videos', rows, _OUT.value, step=run.step, num_clips=len(clips))
  if _FIGURE.value:
    turning = np.argsort(-(exact > 0).sum(axis=1), kind='stable')[::len(clips) // _NUM_SHOWN][:_NUM_SHOWN]
    figure = draw(codes['model'][turning], exact[turning])
    write_whole(as_path(_FIGURE.value), pictures.png(figures.pixels(figure)))


if __name__ == '__main__':
  app.run(main)
