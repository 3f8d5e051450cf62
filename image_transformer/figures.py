"""Figures: the memory of a position, its attention, the bits of each pixel, and training curves.

Functions take arrays and numbers and return matplotlib figures; `pixels` turns one into a picture.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from etils import epath
import jax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
import numpy as np

from image_transformer.config import ImageSpec, check
from image_transformer.layout import BlockLayout
from image_transformer.library import Run
from image_transformer.metrics import read_metrics
from image_transformer.model import ImageTransformer
from image_transformer.runs import read_config

HIDDEN, MEMORY, OWN_BLOCK, QUERY, LATER = range(5)

_ROWS_AROUND = 4  # of the image, shown around the memory

_COLORS = '#e8e8e8', '#7fb2dd', '#f2b15f', '#c0302c', '#f8e3c4'
_LEGEND = 'not visible', 'memory', 'earlier in the block', 'to be predicted', 'later in the block, not visible'


def attention_of_run(run: Run, images: np.ndarray, row: int, column: int, frame: int = 0,
                     **given: np.ndarray) -> Figure:
  """Shows the attention of the first position of a pixel to each pixel of the first image."""
  model, index = run.model, _index(run.model, row, column, frame)
  look = jax.jit(lambda *args: model.apply(*args, index, method='attention_weights'))
  weights = look(run.variables, images[:1], {name: values[:1] for name, values in given.items()})
  return attention(np.asarray(weights[:, 0]), model.layout, model.spec, index, np.asarray(images[0]))


def middle(model: ImageTransformer) -> tuple[int, ...]:
  """Row and column of the pixel in the middle, and in a video the frame."""
  spec = model.spec
  return spec.height // 2, spec.width // 2, *([spec.frames // 2] if spec.frames else [])


def _index(model, row, column, frame):
  """The raster index of the first position of a pixel; raises InputError if there is no such pixel."""
  height, width, frames = model.spec.height, model.spec.width, model.spec.frames
  fits = 0 <= row < height and 0 <= column < width and 0 <= frame < max(frames, 1)
  check(fits, 'position', f'{row},{column}' + (f',{frame}' if frames else ''),
        f'a row in 0..{height - 1} and a column in 0..{width - 1}' +
        (f' and a frame in 0..{frames - 1}' if frames else ''))
  return ((frame * height + row) * width + column) * model.layout.image[-1]


def _side_by_side(values, spec):
  """[..., positions, X] -> [..., H, W, X], the frames of a video side by side."""
  shape = *values.shape[:-2], max(spec.frames, 1), spec.height, spec.width, values.shape[-1]
  return np.concatenate(list(np.moveaxis(values.reshape(shape), -4, 0)), axis=-2)


def read_logs(folder: epath.Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
  """`metrics.jsonl` of a run, or of every run in a folder, by dataset and name.

  Raises:
    InputError: if none of them has bits/dim.
  """
  folders = [folder] if (folder / 'metrics.jsonl').exists() else sorted(
      path.parent for path in folder.glob('*/metrics.jsonl'))
  logs: dict[str, dict[str, list[dict[str, Any]]]] = {}
  for one in folders:
    lines = read_metrics(one)
    if any(line.get('bits_per_dim') is not None for line in lines):
      logs.setdefault(read_config(one).dataset, {})[one.name] = lines
  check(logs, 'workdir', str(folder), 'a run that has logged its training, or a folder of such runs')
  return logs


def visible_from(layout: BlockLayout, index: int) -> np.ndarray:
  """What the query at a raster index may see: int8 [positions] of HIDDEN, MEMORY, OWN_BLOCK and QUERY."""
  block, slot = divmod(int(layout.slots[index]), layout.block_size)
  kind = np.where(np.arange(layout.memory.shape[1]) < layout.halo_size, MEMORY, OWN_BLOCK)
  visible = layout.visible(block, slot)
  kinds = np.full(layout.num_positions, HIDDEN, np.int8)
  kinds[layout.memory[block, visible]] = kind[visible]
  kinds[index] = QUERY
  return kinds


def _place(spec, row, column, frame):
  return f'row {row}, column {column}' + (f' of frame {frame}' if spec.frames else '')


def memory(model: ImageTransformer, row: int, column: int, frame: int = 0) -> Figure:
  """What the first position of a pixel may see (paper figure 2); the channels of a pixel are shown side by side, and so
  are the frames of a video."""
  spec, frames = model.spec, max(model.spec.frames, 1)
  figure = _figure(5.2 * max(frames / 3, 1), 5.4 if frames == 1 else 3.5)
  axes = figure.add_subplot()
  layout, index = model.layout, _index(model, row, column, frame)
  seen = visible_from(layout, index)
  number = np.count_nonzero(seen)
  block = layout.order[layout.slots[index] // layout.block_size]
  later = block[(block >= 0) & (seen[block] == HIDDEN)]
  seen[later] = LATER
  kinds = _side_by_side(seen.reshape(-1, layout.image[-1]), spec).reshape(spec.height, -1)
  axes.imshow(kinds, ListedColormap(_COLORS), vmin=HIDDEN, vmax=LATER, interpolation='nearest', aspect='auto',
              extent=(0, frames * spec.width, spec.height, 0))
  for edge in range(1, frames):
    axes.axvline(edge * spec.width, color='black', linewidth=0.8)
  axes.set_aspect('equal')
  blocks = ' x '.join(map(str, model.config.query_block))
  axes.set_title(f'{len(model.config.query_block)}D attention, query blocks of {blocks}: {number:,} of {kinds.size:,} '
                 f'positions\nare visible from {_place(spec, row, column, frame)}', fontsize=9)
  channels = f', {layout.image[-1]} channels of each side by side' if layout.image[-1] > 1 else ''
  axes.set(xlabel='column' + channels + (', frame after frame' if frames > 1 else ''), ylabel='row')
  figure.legend(handles=[Patch(color=color, label=label) for color, label in zip(_COLORS, _LEGEND)],
                loc='lower center', ncols=3, frameon=False, fontsize=8)
  figure.subplots_adjust(bottom=0.17, top=0.91, left=0.09, right=0.97)
  return figure


def attention(weights: np.ndarray, layout: BlockLayout, spec: ImageSpec, index: int, image: np.ndarray) -> Figure:
  """The attention to each pixel from the query at a raster index, in the rows of its memory and a few around them.

  Args:
    weights: [layers, heads, positions], each row sums to 1, as `ImageTransformer.attention_weights` gives them.
    layout: of the model.
    spec: of the image.
    index: of the query.
    image: integers [H, W, C], or [T, H, W, C], to show behind.
  """
  num_layers, num_heads, _ = weights.shape
  depth, frames = layout.image[-1], max(spec.frames, 1)
  by_pixel = _side_by_side(weights.reshape(num_layers, num_heads, -1, depth), spec).sum(-1)
  seen = _side_by_side((visible_from(layout, index) != HIDDEN).reshape(-1, depth), spec).any(-1)
  frame, row, column = np.unravel_index(index // depth, (frames, spec.height, spec.width))
  place, column = _place(spec, row, column, frame), column + frame * spec.width  # of the frames side by side
  rows = np.flatnonzero(seen.any(axis=1))
  first, last = max(rows[0] - _ROWS_AROUND, 0), min(rows[-1] + _ROWS_AROUND, spec.height - 1)
  behind = _side_by_side(image.reshape(-1, spec.channels), spec).mean(axis=-1) / (spec.levels - 1)
  height = 1.5 * (last - first + 1) / spec.width  # inches of a panel
  figure = _figure(1.5 * frames * num_heads + 1.2, (height + 0.3) * num_layers + 0.6)
  panels = figure.subplots(num_layers, num_heads, squeeze=False)
  for layer, head in np.ndindex(num_layers, num_heads):
    axes, shown = panels[layer, head], by_pixel[layer, head]
    axes.imshow(behind, 'gray', vmin=0, vmax=1, interpolation='nearest')
    # Each has its own scale: attention spread over hundreds of pixels would look black beside a sharp peak.
    heat = axes.imshow(np.ma.masked_where(~seen, shown / shown.max()), 'inferno', vmin=0, vmax=1,
                       alpha=np.where(seen, 0.35 + 0.65 * np.sqrt(shown / shown.max()), 0), interpolation='nearest')
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color='#30e0e0', linewidth=1))
    axes.set(xticks=[], yticks=[], ylim=(last + 0.5, first - 0.5))
    axes.set_title(f'head {head + 1}, at most {shown.max():.2f}', fontsize=7, pad=2)
    if not head:
      axes.set_ylabel(f'layer {layer + 1}', fontsize=8)
  figure.suptitle(f'Attention from {place} (the square); rows {first} to {last}. Each head has its own scale.',
                  fontsize=8, wrap=True)
  figure.colorbar(heat, ax=panels, aspect=30).set_label("share of the head's largest", fontsize=8)
  figure.set_layout_engine('compressed')
  return figure


def bits(images: np.ndarray, nats: np.ndarray, levels: int) -> Figure:
  """Images, and below each image the bits of each of its pixels.

  Args:
    images: integers [N, H, W, C] in 0..levels-1, or videos [N, T, H, W, C].
    nats: negative log-probabilities [N, (T,) H, W, positions of a pixel].
  """
  if images.ndim == 5:  # the frames of videos are one below another
    images, nats = (np.concatenate(list(np.moveaxis(array, 1, 0)), axis=1) for array in (images, nats))
  per_pixel = nats.sum(axis=-1) / math.log(2)
  figure = _figure(1.5 * len(images) + 0.9, 3.4 * max(images.shape[1] / images.shape[2] / 2, 1))
  panels = figure.subplots(2, len(images), squeeze=False)
  for axes in panels.flat:
    axes.set(xticks=[], yticks=[])
  for (above, below), image, cost in zip(panels.T, images, per_pixel):
    above.imshow(np.broadcast_to(image, (*image.shape[:2], 3)) / (levels - 1), interpolation='nearest')
    heat = below.imshow(cost, 'inferno', vmin=0, vmax=np.percentile(per_pixel, 99.5), interpolation='nearest')
    below.set_xlabel(f'{cost.mean() / image.shape[-1]:.2f} bits/dim', fontsize=8)
  figure.colorbar(heat, ax=panels, label='bits per pixel', fraction=0.03)
  return figure


def curves(logs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
  """Bits/dim by step, from the lines of `metrics.jsonl`, by dataset and name of the run: training as lines, evaluations
  as points. Bits/dim of different data sets cannot be compared, so that each has a panel."""
  figure = _figure(7, 4.5 * len(logs))
  panels = figure.subplots(len(logs), squeeze=False)[:, 0]
  for axes, (dataset, runs) in zip(panels, logs.items()):
    for number, (name, lines) in enumerate(runs.items()):
      measured = [line for line in lines if line.get('bits_per_dim') is not None]
      for split in dict.fromkeys(line['split'] for line in measured):
        points = [(line['step'], line['bits_per_dim']) for line in measured if line['split'] == split]
        style = {'linewidth': 1} if split == 'train' else {'marker': 'o', 'markersize': 4, 'linewidth': 0.5}
        axes.plot(*zip(*points), color=f'C{number % 10}', alpha=0.5 if split == 'train' else 1,
                  label=f'{name}, {split}', **style)
    axes.set(title=dataset, xlabel='step', ylabel='bits/dim')
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  figure.tight_layout()
  return figure


def pixels(figure: Figure) -> np.ndarray:
  """uint8 [height, width, 3]."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _figure(width, height):
  return Figure(figsize=(width, height), dpi=110)
