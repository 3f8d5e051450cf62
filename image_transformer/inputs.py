"""Inputs from the user for a trained model: files of any size, or the first images of a split."""

import os

from etils import epath
import numpy as np

from image_transformer import batching, captions, data, images, pictures
from image_transformer.errors import InputError, NotAnImageError
from image_transformer.library import Run
from image_transformer.paths import as_path
from image_transformer.workdir import warn


def read_inputs(run: Run, path: os.PathLike | str | None, number: int,
                exact: bool = False) -> tuple[dict[str, np.ndarray], list[epath.Path] | None]:
  """Reads images and fits them to a model.

  Args:
    run: the model; its `eval.split` is read if there is no path.
    path: an image file, or a folder of them. Images are cropped to the shape that the model
      generates and downsampled; for super-resolution they may also have
      the small size already, and then have no originals.
    number: how many to read, from the first; 0: all.
    exact: whether to reject images that would lose anything, in size, channels or intensities.

  Returns:
    'image' uint8 [N, H, W, C] (absent without originals), 'low_res' for super-resolution, and
    whatever else the split holds; and the files, if there is a path.

  Raises:
    InputError: for files that cannot be used.
  """
  if not path:
    source = data.open_split(run.config, run.config.eval.split)
    number = min(number or len(source), len(source))
    return batching.first_examples(source, number), None
  files, fitted, texts = _read(as_path(path), run.model, number, exact)
  if texts and texts.keys() >= set(files):
    fitted = [values | _given(run.model, {'text': texts[file]}) for file, values in zip(files, fitted)]
  elif texts:
    warn(f'{next(file for file in files if file not in texts)} has no text, so the texts of the others are not used.')
  small = [file for file, values in zip(files, fitted) if 'image' not in values]
  if 0 < len(small) < len(files):
    height, width = run.model.conditions['low_res'].shape[:2]
    raise InputError(f'Some files in {path} are {height} x {width} and others are not, such as '
                     f'{next(file for file in files if file not in small)}: give them one kind at a time.')
  return {name: np.stack([values[name] for values in fitted]) for name in fitted[0]}, files


def _read(path, model, number, exact):
  """The first files that hold images, what a model needs of each, and the texts of files; says what is left out."""
  spec = model.spec
  found, left_out = images.find_files(path)
  texts, sources = {}, set()
  if spec.has_texts:
    try:
      texts, sources = captions.read_captions(found if path.is_dir() else captions.beside(path))
    except InputError as error:  # texts may be typed instead
      warn(f'{str(error).rstrip(".")}; the texts of {path} are not used.')
  if path.is_dir():
    found = [file for file in found if file not in sources]
    found = images.find_videos(found) if spec.frames else found
  left_out = {file: f'{file} is {reason}' for file, reason in left_out.items()}
  files, fitted = [], []
  for file in found:
    if len(files) == number > 0:
      break
    try:
      photo = (images.read_video(file, spec.channels, spec.frames, exact) if spec.frames else
               images.read_image(file, spec.channels, exact))
    except InputError as error:
      if found == [path] or exact and not isinstance(error, NotAnImageError):
        raise
      left_out[file] = str(error).rstrip('.')
      continue
    files.append(file)
    fitted.append(_fit(file, photo, model, exact))  # at once, since a photo may be large
  for reason in left_out.values():
    warn(f'{reason}, and left out.')
  if not files:
    raise InputError(f'{path} holds no images that can be used: name another folder.')
  return files, fitted, texts


def _fit(file, bytes_, model, exact):
  """An image in the model's size, with conditions made of it; or a condition alone, if the image has its size."""
  spec = model.spec
  photo = ((bytes_.astype(np.uint16) * (spec.levels - 1) + 127) // 255).astype(np.uint8)  # it may have fewer levels
  if exact and photo.shape != spec.shape:
    raise InputError(f'{file} is {photo.shape[-3]} x {photo.shape[-2]} (height x width), but must be exactly '
                     f'{spec.height} x {spec.width}.')
  if exact and not np.array_equal(pictures.as_bytes(photo, spec.levels), bytes_):
    raise InputError(f'{file} has intensities other than the {spec.levels} of the model, which spread over a byte.')
  for name, condition in model.conditions.items():
    if photo.shape == condition.shape:
      return {name: photo}
  try:
    fitted = images.fit(photo, spec.height, spec.width)
  except InputError as error:
    or_small = ''.join(f' A small image must be exactly {condition.shape[0]} x {condition.shape[1]}.'
                       for condition in model.conditions.values() if condition.source == 'image')
    raise InputError(f'{file}: {error}{or_small}') from error
  return {'image': fitted} | _given(model, {'image': images.crop_to(photo, spec.height, spec.width)})


def _given(model, example):
  return {name: condition.of_example(example) for name, condition in model.conditions.items()
          if condition.source in example}
