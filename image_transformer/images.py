"""Image files as uint8 [H, W, C]: finding, reading, cropping, downsampling and enlarging, with NumPy and PIL."""

from collections.abc import Sequence
import contextlib
import io
import itertools
import os
import pathlib
import warnings
import zlib

from etils import epath
import numpy as np
from PIL import ExifTags, Image, ImageSequence, UnidentifiedImageError

from image_transformer.errors import InputError, NotAnImageError
from image_transformer.paths import as_path

_FORMATS = ('PNG', 'JPEG', 'WEBP')
_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')
_MOVING = ('GIF', 'PNG', 'WEBP')


def find_files(path: os.PathLike | str) -> tuple[list[epath.Path], dict[epath.Path, str]]:
  """Finds the file `path`, or all files below the directory `path`.

  Files and folders whose names begin with a dot are left out, and links to folders are not followed.

  Returns:
    The files, sorted; and the paths of whatever else was left out, except for such names, with the reasons.

  Raises:
    InputError: if `path` does not exist, or is a directory without files.
  """
  root = as_path(path)
  if root.is_file():
    return [root], {}
  if not root.is_dir():
    raise InputError(f'{path} does not exist: name a file or a directory.')
  files, left_out = [], {}

  def unreadable(error):
    left_out[as_path(error.filename)] = f'a folder that cannot be read ({error.strerror})'

  for folder, folders, names in root.walk(on_error=unreadable):
    left_out |= {folder / name: 'a link to a folder: name that folder instead' for name in folders
                 if os.path.islink(folder / name)}
    for file in (folder / name for name in names):
      if os.path.islink(file) and not file.exists():
        left_out[file] = 'a link to nothing'
      elif file.is_file() and not pathlib.Path(file).is_fifo():  # reading a pipe could block forever
        files.append(file)
  shown = lambda file: not any(part.startswith('.') for part in file.relative_to(root).parts)
  files, left_out = sorted(filter(shown, files)), {file: left_out[file] for file in sorted(filter(shown, left_out))}
  if not files:
    more = ''.join(f'; {file.relative_to(root)} is {reason}' for file, reason in list(left_out.items())[:1])
    raise InputError(f'{path} holds no files{more}: put some there, or name another directory.')
  return files, left_out


def read_image(path: os.PathLike | str, channels: int, exact: bool = False) -> np.ndarray:
  """Reads a PNG, JPEG or WebP file, recognised by its content, not its name.

  EXIF orientation is applied, transparency is blended onto white, only the first frame of an animation is read, and
  colour profiles, texts and other metadata are ignored, damaged or not.

  Args:
    path: the file.
    channels: 1 (grey) or 3 (RGB).
    exact: whether to reject what these channels of bytes cannot hold: transparency, 16 bits, more frames or, in grey,
      colours.

  Returns:
    uint8 [H, W, channels].

  Raises:
    InputError: if the file cannot be used; the message says why. Images above PIL's limit of 179 million pixels
      are rejected by their header, before they are decoded.
  """
  with _errors_of(path, 'an image', 'a PNG, JPEG or WebP image'):
    content = as_path(path).read_bytes()
    with Image.open(io.BytesIO(_without_metadata(content)), formats=_FORMATS) as image:
      if exact and _moves(content):
        raise ValueError('it has more than one frame')
      if exact and content.startswith(_PNG) and content[24] == 16:  # PIL reads half of them
        raise ValueError('it holds 16 bits a channel, not 8 bits')
      return _pixels(image, channels, exact)


@contextlib.contextmanager
def _errors_of(path, use, kind):
  """Turns what PIL raises into one line."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # about damaged metadata, say; damaged pixels raise
      yield
  except UnidentifiedImageError as error:
    raise NotAnImageError(f'{path} is not {kind}.') from error
  except InputError:
    raise
  except Exception as error:  # PIL's decoders raise more than a dozen kinds
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
    raise InputError(f'{path} cannot be used as {use} ({reason}).') from error


def find_videos(files: Sequence[epath.Path]) -> list[epath.Path]:
  """The videos among files: animations, and folders of still images, which are their frames in order of their names.

  Files that are no images are returned too, to be named when they cannot be read.
  """
  return list(dict.fromkeys(file.parent if _is_frame(file) else file for file in files))


def _is_frame(file):
  """Whether a file is one still image: by its content or, if that is damaged, by its name."""
  with contextlib.suppress(Exception):
    content = file.read_bytes()
    if _moves(content):
      return False
    with Image.open(io.BytesIO(_without_metadata(content)), formats=_FORMATS):
      return True
  return file.suffix.lower() in _SUFFIXES


def _moves(content):
  with contextlib.suppress(Exception), warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with Image.open(io.BytesIO(content), formats=_MOVING) as image:
      return image.format == 'GIF' or getattr(image, 'n_frames', 1) > 1
  return False


def read_video(path: os.PathLike | str, channels: int, frames: int, exact: bool = False) -> np.ndarray:
  """Reads the first frames of an animated GIF, PNG or WebP file, or of a folder of image files in order of their names.

  Args:
    path: the file or folder, as `find_videos` finds them.
    channels: 1 (grey) or 3 (RGB).
    frames: how many.
    exact: whether to reject what would lose anything, more frames too; see `read_image`.

  Returns:
    uint8 [frames, H, W, channels].

  Raises:
    InputError: if it cannot be used; the message says why.
  """
  if as_path(path).is_dir():
    files = sorted(file for file in as_path(path).iterdir() if not file.name.startswith('.') and _is_frame(file))
    number, read = len(files), [read_image(file, channels, exact) for file in files[:frames]]
  else:
    with (_errors_of(path, 'a video', 'a GIF, PNG or WebP animation'),
          Image.open(io.BytesIO(as_path(path).read_bytes()), formats=_MOVING) as image):
      number = getattr(image, 'n_frames', 1)
      moving = itertools.islice(ImageSequence.Iterator(image), frames)
      read = [_pixels(frame.copy(), channels, exact) for frame in moving]
  if number < frames or exact and number > frames:
    raise InputError(f'{path} has {number} frames, but must have {frames}{"" if exact else " or more"}.')
  if len({frame.shape for frame in read}) > 1:
    raise InputError(f'{path} has frames of different sizes.')
  return np.stack(read)


def fit(image: np.ndarray, height: int, width: int, crop: bool = True) -> np.ndarray:
  """Downsamples an image or a video, first cropping it to the new shape's proportions if `crop`.

  Args:
    image: uint8 [..., H, W, C].
    height: of the result.
    width: of the result.
    crop: whether to crop to the largest such part, from the centre; False: the whole image is squeezed.

  Returns:
    uint8 [..., height, width, C].

  Raises:
    InputError: if the image is smaller than the result in either direction.
  """
  rows, columns, _ = image.shape[-3:]
  if rows < height or columns < width:
    raise InputError(f'The image is {rows} x {columns} (height x width), but must be at least {height} x {width}.')
  return area_resize(crop_to(image, height, width) if crop else image, height, width)


def crop_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """The largest part of images [..., H, W, C] with the proportions of height and width, from the centre."""
  rows, columns, _ = image.shape[-3:]
  new_rows, new_columns = min(rows, round(columns * height / width)), min(columns, round(rows * width / height))
  top, left = (rows - new_rows) // 2, (columns - new_columns) // 2
  return image[..., top:top + new_rows, left:left + new_columns, :]


def area_resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
  """Downsamples images: the mean over each new pixel's area, truncated to an integer as in tensor2tensor.

  Args:
    images: integers in 0..255, [..., H, W, C].
    height: in 1..H.
    width: in 1..W.

  Returns:
    uint8 [..., height, width, C].

  Raises:
    ValueError: if the images are not integers, or would have to be enlarged.
  """
  rows, columns = images.shape[-3:-1]
  if not np.can_cast(images.dtype, np.int64) or not (0 < height <= rows and 0 < width <= columns):
    raise ValueError(f'{images.dtype} images of {rows} x {columns} cannot be downsampled to {height} x {width}.')
  sums = _sums(_sums(images, height, axis=-3), width, axis=-2)
  return (sums // (rows * columns)).astype(np.uint8)


def bicubic(images: np.ndarray, height: int, width: int, levels: int) -> np.ndarray:
  """Integer images [N, h, w, C] in 0..levels-1 enlarged by bicubic interpolation: uint8 [N, height, width, C]."""

  def enlarge(channel):
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))

  channels = [enlarge(channel) for image in images for channel in np.moveaxis(image, -1, 0)]
  large = np.moveaxis(np.reshape(channels, (len(images), -1, height, width)), 1, -1)
  return np.clip(np.round(large), 0, levels - 1).astype(np.uint8)


def _sums(values: np.ndarray, new_size: int, axis: int) -> np.ndarray:
  """Sums over new pixels along `axis`, in integers: an old pixel has length `new_size`, a new one the old size.

  Equal to a product with the matrix of overlaps, but without NumPy's threads, which would contend with the training's.
  """
  size = values.shape[axis]
  shape = [-1] + [1] * (-axis - 1)
  # Where new pixels begin and end: in which old pixel, and how far into it.
  pixel, inside = np.divmod(np.arange(new_size + 1) * size, new_size)
  whole = np.add.reduceat(values, pixel[:-1], axis, dtype=np.int64) * new_size
  before = np.take(values, np.minimum(pixel, size - 1), axis) * inside.reshape(shape)
  return whole + np.diff(before, axis=axis)


_PNG = b'\x89PNG\r\n\x1a\n'
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}


def _without_metadata(content: bytes) -> bytes:
  """A PNG with only the parts that determine its pixels, since PIL refuses files for others; any other file."""
  if not content.startswith(_PNG):
    return content
  kept, position = [_PNG], len(_PNG)
  while position + 8 <= len(content):
    end = position + 12 + int.from_bytes(content[position:position + 4])
    kind = content[position + 4:position + 8]
    intact = zlib.crc32(content[position + 4:end - 4]) == int.from_bytes(content[end - 4:end])
    critical = kind[:1].isupper()
    if critical and not intact and end <= len(content):
      raise ValueError(f'the checksum of its part {kind.decode(errors="replace")} does not match')
    if critical or kind in (b'tRNS', b'eXIf') and intact:
      kept.append(content[position:end])
    position = end
  return b''.join(kept)


def _pixels(image: Image.Image, channels: int, exact: bool) -> np.ndarray:
  with contextlib.suppress(Exception):  # damaged EXIF can raise anything
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = image.transpose(turn) if turn is not None else image
  if exact and image.mode not in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA'):
    raise ValueError(f'it holds {image.mode}, not 8 bits of grey or RGB')
  if image.mode.startswith('I'):  # 16-bit grey, which PIL would clip to 8 bits
    values = np.array(image, np.int32)
    values[values == image.info.get('transparency', -1)] = 65_535
    image = Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    if exact and image.getchannel('A').getextrema() != (255, 255):
      raise ValueError('it is transparent')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  image = image.convert('RGB')
  if channels == 1:
    grey = image.convert('L')
    if exact and grey.convert('RGB').tobytes() != image.tobytes():
      raise ValueError('it has colours')
    image = grey
  return np.array(image).reshape(image.height, image.width, channels)
