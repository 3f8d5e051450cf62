"""Inputs from the user for a trained model: files of any size, or the first images of a split."""

import os
from typing import Any

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
  config, spec = run.config, run.model.spec
  if not path:
    source = data.open_split(config, config.eval.split)
    number = min(number or len(source), len(source))
    return batching.first_examples(source, number), None
  files, photos, texts = _read(as_path(path), spec, number, exact)
  # Files hold bytes; the dataset may have fewer levels.
  bytes_, photos = photos, [np.round(photo * ((spec.levels - 1) / 255)).astype(np.uint8) for photo in photos]
  for file, photo, before in zip(files, photos, bytes_) if exact else ():
    if photo.shape != spec.shape:
      raise InputError(f'{file} is {photo.shape[-3]} x {photo.shape[-2]} (height x width), but must be exactly '
                       f'{spec.height} x {spec.width}.')
    if not np.array_equal(pictures.as_bytes(photo, spec.levels), before):
      raise InputError(f'{file} has intensities other than the {spec.levels} of the model, which spread over a byte.')
  more: list[dict[str, Any]] = [{} for _ in files]
  if texts and texts.keys() >= set(files):
    more = [{'text': texts[file]} for file in files]
  elif texts:
    warn(f'{next(file for file in files if file not in texts)} has no text, so the texts of the others are not used.')

  def given(examples):
    return {name: np.stack([condition.of_example(example) for example in examples])
            for name, condition in run.model.conditions.items() if condition.source in examples[0]}

  # A condition may itself be an image, and the photos may already have its size.
  for name, condition in run.model.conditions.items():
    are_it = [photo.shape == condition.shape for photo in photos]
    if any(are_it) and not all(are_it):
      height, width, _ = condition.shape
      raise InputError(f'Some files in {path} are {height} x {width} and others are not, such as '
                       f'{files[are_it.index(False)]}: give them one kind at a time.')
    if any(are_it):
      return {name: np.stack(photos)} | given(more), files
  fitted = []
  for file, photo, example in zip(files, photos, more):
    try:
      fitted.append(images.fit(photo, spec.height, spec.width))
    except InputError as error:
      raise InputError(f'{file}: {error}') from error
    example['image'] = images.crop_to(photo, spec.height, spec.width)
  return {'image': np.stack(fitted)} | given(more), files


def _read(path, spec, number, exact):
  """The first files that hold images, these, and the texts of files; what is left out of a folder is said."""
  found, left_out = images.find_files(path)
  texts, sources = {}, set()
  if spec.has_texts:
    texts, sources = captions.read_captions(found if path.is_dir() else captions.beside(path))
  if path.is_dir():
    found = [file for file in found if file not in sources]
    found = images.find_videos(found) if spec.frames else found
  left_out = {file: f'{file} is {reason}' for file, reason in left_out.items()}
  files, photos = [], []
  for file in found:
    if len(files) == number > 0:
      break
    try:
      photos.append(images.read_video(file, spec.channels, spec.frames, exact) if spec.frames else
                    images.read_image(file, spec.channels, exact))
      files.append(file)
    except InputError as error:
      if found == [path] or exact and not isinstance(error, NotAnImageError):
        raise
      left_out[file] = str(error).rstrip('.')
  for reason in left_out.values():
    warn(f'{reason}, and left out.')
  if not files:
    raise InputError(f'{path} holds no images that can be used: name another folder.')
  return files, photos, texts
