"""What a trained model is given: files of any size or the first images of a split, and classes."""

from collections.abc import Sequence
import re

from etils import epath
import numpy as np

from image_transformer import data, images
from image_transformer.config import check
from image_transformer.errors import InputError
from image_transformer.runs import Run


def read_inputs(run: Run, path: epath.PathLike | None, number: int) -> dict[str, np.ndarray]:
  """Reads images and makes them fit a model.

  Args:
    run: the model; its `eval.split` is read where there is no path.
    path: an image file, or a folder of them. Images are cut to the shape that the model
      generates and made smaller by area; for super-resolution one may also be of the small
      size already, and then has no original.
    number: the first so many; 0 for all.

  Returns:
    'image' uint8 [N, H, W, C] (absent without originals), 'low_res' for super-resolution, and
    what else the split holds.

  Raises:
    InputError: for files that cannot be used.
  """
  config, spec = run.config, run.model.spec
  if not path:
    source = data.open_split(config, config.eval.split)
    number = min(number or len(source), len(source))
    batch = next(data.eval_batches(source, batch_size=number, num_images=number))
    return {name: values for name, values in batch.items() if name != 'mask'}
  files = images.find_files(epath.Path(path).expanduser())[:number or None]
  pictures = [images.read_image(file, spec.channels) for file in files]
  upscale = config.model.upscale
  small = spec.height // upscale, spec.width // upscale
  are_small = [picture.shape[:2] == small for picture in pictures] if upscale > 1 else [False]
  if any(are_small) and not all(are_small):
    example = files[are_small.index(False)]
    raise InputError(f'Some files in {path} are {small[0]} x {small[1]} and others are not, such as {example}: '
                     'give them one kind at a time.')
  # Files hold bytes; the dataset may have fewer levels.
  pictures = [np.round(picture * ((spec.levels - 1) / 255)).astype(np.uint8) for picture in pictures]
  if any(are_small):
    return {'low_res': np.stack(pictures)}
  inputs = {'image': np.stack([_fit(*pair, spec.shape[:2]) for pair in zip(files, pictures)])}
  if upscale > 1:
    inputs['low_res'] = np.stack([_fit(*pair, small) for pair in zip(files, pictures)])
  return inputs


def read_labels(run: Run, words: Sequence[str] | None, number: int) -> dict[str, np.ndarray]:
  """'label' int32 [number] from the words of the flag --labels, repeated; nothing if it is not given.

  Raises:
    InputError: if there are no such classes.
  """
  if words is None:
    return {}
  classes = run.model.spec.num_classes
  check(run.model.config.class_conditional, '--labels', ','.join(words), 'absent: this model has no classes')
  good = words and all(re.fullmatch(r'\d+', word) and int(word) < classes for word in words)
  check(good, '--labels', ','.join(words), f'classes in 0..{classes - 1}, separated by commas')
  return {'label': np.resize(np.array(words, np.int32), number)}


def _fit(file, picture, size):
  try:
    return images.fit(picture, *size)
  except InputError as error:
    raise InputError(f'{file}: {error}') from error
