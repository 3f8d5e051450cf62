"""Pictures to look at: images in grids and strips, uint8 [height, width, 3], and as PNG files.

Of videos, pictures show the frames side by side; `film` makes one that moves.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import io
import itertools
import textwrap

import numpy as np
from PIL import Image, ImageDraw

from image_transformer.model import ImageTransformer

_MAX_STRIPS = 32  # rows; a larger picture would be too big to open
_LETTER = 6, 12  # width and height in pixels
_MILLISECONDS = 200  # that a frame is shown


def as_bytes(images: np.ndarray, levels: int) -> np.ndarray:
  """Intensities in 0..levels-1 stretched to the range of bytes, as image files hold them."""
  return np.round(images * (255 / (levels - 1))).astype(np.uint8)


def grid(images: np.ndarray, levels: int, columns: int, height: int = 640, captions: Sequence[str] = (),
         span: int = 1, headings: Sequence[str] = ()) -> np.ndarray:
  """Arranges images in a grid on a dark background.

  Args:
    images: integers [N, H, W, C] in 0..levels-1; videos [N, T, H, W, C] are shown as T images each.
    levels: intensities are stretched to the range of bytes.
    columns: images in a row.
    height: of the picture, roughly; small images are magnified by an integer factor to reach it.
    captions: texts to write above the images, if any.
    span: over how many images a caption may extend.
    headings: texts to write above the columns of still images, if any.

  Returns:
    uint8 [height, width, 3].
  """
  if images.ndim == 5:
    frames = images.shape[1]
    return grid(images.reshape(-1, *images.shape[2:]), levels, frames * max(columns // frames, 1), height,
                _apart(captions, frames), frames * span)
  number, image_height, image_width, _ = images.shape
  rows, gap = -(-number // columns), 2
  bytes_ = as_bytes(images, levels)
  scale = max(height // (rows * image_height), 1)
  bytes_ = np.broadcast_to(bytes_, (*images.shape[:3], 3)).repeat(scale, axis=1).repeat(scale, axis=2)
  cell_width = image_width * scale + gap
  captions = ['\n'.join(textwrap.wrap(caption, max(span * cell_width // _LETTER[0], 1))) for caption in captions]
  text_height = _LETTER[1] * max((caption.count('\n') + 1 for caption in captions), default=0)
  apart = 4 * gap if captions else gap  # a caption is nearer to its own image than to the one before
  cell_height, above = apart + text_height + image_height * scale, _LETTER[1] + gap if headings else 0
  sheet = np.full((above + rows * cell_height + gap, columns * cell_width + gap, 3), 32, np.uint8)
  for i, image in enumerate(bytes_):
    end, left = above + (i // columns + 1) * cell_height, i % columns * cell_width + gap
    sheet[end - image_height * scale:end, left:left + cell_width - gap] = image
  if not captions and not headings:
    return sheet
  picture = Image.fromarray(sheet)
  draw = functools.partial(ImageDraw.Draw(picture).text, fill='white', spacing=1)
  for i, caption in enumerate(captions):
    end = above + (i // columns + 1) * cell_height - image_height * scale
    draw((i % columns * cell_width + gap + 1, end - _LETTER[1] * (caption.count('\n') + 1)), caption)
  for column, heading in enumerate(headings):
    draw((column * cell_width + gap + 1, gap), heading)
  return np.array(picture)


def grid_of(model: ImageTransformer, given: Mapping[str, np.ndarray], images: np.ndarray, columns: int) -> np.ndarray:
  """A grid of samples [N, H, W, C] with captions of what they were given, [N, ...] each; see `grid`."""
  return grid(images, model.spec.levels, columns, captions=captions_of(model, given))


def captions_of(model: ImageTransformer, given: Mapping[str, np.ndarray]) -> list[str]:
  """What images were given, in words; none if that is nothing."""
  texts = [texts for name, condition in model.conditions.items() if (texts := condition.captions(given[name]))]
  return [' '.join(words) for words in zip(*texts)]


def strips(headings: Sequence[str], columns: Sequence[np.ndarray], levels: int,
           captions: Sequence[str] = ()) -> np.ndarray:
  """A row for each of the first images, from columns [N, h, w, C] whose sizes may differ: the smaller are magnified.

  Of videos [N, T, H, W, C], the columns are below one another.

  Args:
    headings: what the columns are.
    columns: of the same number of images each.
    levels: intensities are stretched to the range of bytes.
    captions: texts to write above the rows, if any.

  Returns:
    uint8 [height, width, 3].
  """
  columns, captions = [column[:_MAX_STRIPS] for column in columns], captions[:_MAX_STRIPS]
  if columns[0].ndim == 5:
    videos = np.stack(columns, axis=1)
    above = [': '.join(filter(None, words)) for words in zip(
        itertools.cycle(headings), _apart(captions or [''] * len(videos), len(columns)))]
    return grid(videos.reshape(-1, *videos.shape[2:]), levels, 1, 64 * len(columns) * len(videos), above)
  height = max(column.shape[1] for column in columns)
  scales = [height // column.shape[1] for column in columns]
  same = [column.repeat(scale, axis=1).repeat(scale, axis=2) for column, scale in zip(columns, scales)]
  images = np.stack(same, axis=1)
  flat = images.reshape(-1, *images.shape[2:])
  return grid(flat, levels, len(columns), max(128, height) * len(images), _apart(captions, len(columns)), len(columns),
              headings)


def _apart(captions, number):
  """Captions of the first of so many images each, and none of the others."""
  return [text for caption in captions for text in (caption, *[''] * (number - 1))]


def samples_of(model: ImageTransformer, given: Mapping[str, np.ndarray], samples: np.ndarray,
               originals: np.ndarray | None) -> np.ndarray:
  """A picture with a row per image: what was given | samples | original (where there is one).

  Args:
    model: the model.
    given: its conditions, [N, ...] each; of a small image, it and its bicubic enlargement are shown.
    samples: integers [N, samples, H, W, C].
    originals: integers [N, H, W, C], or None.
  """
  columns = [column for name, condition in model.conditions.items() for column in condition.shown(given[name]).items()]
  columns += zip(numbered('sample', samples.shape[1]), np.moveaxis(samples, 1, 0))
  columns += [] if originals is None else [('original', originals)]
  headings, images = zip(*columns)
  return strips(headings, images, model.spec.levels, captions_of(model, given))


def numbered(word: str, number: int) -> list[str]:
  """Headings of so many columns."""
  return [f'{word} {i + 1}' for i in range(number)] if number > 1 else [word]


def film(draw: Callable[..., np.ndarray], *videos: np.ndarray) -> bytes | None:
  """An animated PNG of what `draw` makes of each frame of videos [N, T, H, W, C]; None of still images."""
  if videos[0].ndim < 5:
    return None
  first, *later = (Image.fromarray(draw(*(video[:, t] for video in videos))) for t in range(videos[0].shape[1]))
  return _encoded(first, save_all=True, append_images=later, duration=_MILLISECONDS, loop=0)


def png(picture: np.ndarray) -> bytes:
  """Encodes a uint8 [height, width, 3 or 1] picture as PNG, as small as it gets."""
  return _encoded(Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture), optimize=True)


def _encoded(image, **settings):
  file = io.BytesIO()
  image.save(file, format='PNG', **settings)
  return file.getvalue()
