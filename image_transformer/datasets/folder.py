"""Images of your own: a folder of PNG, JPEG and WebP files, fitted to one size, with a fixed split.

The prepared dataset is named after the folder and a hash of its path and every setting, and is used without
reading the folder again.
"""

import dataclasses
import hashlib
import json
import re
import sys
import tempfile

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tqdm

from image_transformer import images
from image_transformer.captions import read_captions
from image_transformer.config import FolderConfig, ImageSpec
from image_transformer.datasets.local import Local
from image_transformer.errors import InputError, one_line
from image_transformer.paths import as_path

SPLITS = ('train', 'test')
_MAX_LINES = 20  # of the summary, when it is printed


@dataclasses.dataclass(eq=False, kw_only=True)
class Settings(tfds.core.BuilderConfig):
  """The builder's config: a FolderConfig with its path made absolute ('' if it has none)."""

  folder: FolderConfig


def settings(folder: FolderConfig) -> Settings:
  if folder.path:  # '' must not become the working directory
    folder = dataclasses.replace(folder, path=str(as_path(folder.path, 'folder.path').resolve()))
  # Fields that are newer than datasets which were prepared without them do not change the names of those.
  fields = {name: value for name, value in dataclasses.asdict(folder).items()
            if value or name not in ('texts', 'frames')}
  digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
  name = re.sub(r'[^\w-]+', '_', as_path(folder.path).name)[:60] or 'images'
  return Settings(name=f'{name}-{digest[:8]}', folder=folder)


def spec(folder: FolderConfig) -> ImageSpec:
  height, width = folder.size
  return ImageSpec(height, width, channels=3, frames=folder.frames, has_texts=folder.texts)


def check(builder: tfds.core.DatasetBuilder) -> None:
  """Raises InputError if there is no folder to prepare."""
  path = builder.builder_config.folder.path
  if not path:
    raise InputError('folder.path is not set: it must name a folder of images.')
  if not as_path(path).is_dir():
    what = 'is a file' if as_path(path).exists() else 'does not exist'
    raise InputError(f'folder.path is {path}, which {what}: name a folder of images.')


def note(builder: tfds.core.DatasetBuilder) -> str:
  counts = ' and '.join(f'{split.num_examples:,} {name}' for name, split in builder.info.splits.items())
  return counts and (f'{counts} images of {builder.builder_config.folder.path}, kept in {builder.data_path}; '
                     'to read the folder again, set another data_dir')


class ImageTransformerFolder(Local, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`id`: the path below the folder; `summary.txt` beside the records names what was left out, and why.

  `download_and_prepare` raises InputError if the folder has too few usable images; `check` comes before.
  """

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    folder = self.builder_config.folder
    return tfds.core.DatasetInfo(
        builder=self,
        description='Images of a folder, downsampled.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=spec(folder).stacked_shape, encoding_format='png'),
        } | ({'text': tfds.features.Text()} if folder.texts else {})),
    )

  def download_and_prepare(self, **kwargs):
    if self.data_path.exists():
      return
    # Fitted images wait here until all are read and the split is known; the file has no name, so none is left behind.
    with tempfile.TemporaryFile() as self._spool:
      self._read()
      super().download_and_prepare(**kwargs)
    shown = self._summary[:_MAX_LINES]
    more = len(self._summary) - len(shown)
    print(*shown, *([f'  and {more} more in {self.data_path / "summary.txt"}'] if more else []), sep='\n',
          file=sys.stderr)

  def _read(self):
    """Spools the usable images, and sets `_splits`, {split: [(digest, id, position, text)]}, and `_summary`."""
    folder = self.builder_config.folder
    try:
      files, unseen = images.find_files(folder.path)
    except InputError as error:
      raise InputError(f'folder.path: {error}') from error
    # Names need not be Unicode, but text in a dataset must be.
    name_of = lambda file: str(file.relative_to(folder.path)).encode(errors='replace').decode()
    kept, left_out = {}, [f'  {name_of(file)}: {reason}' for file, reason in unseen.items()]
    texts, sources = read_captions(files) if folder.texts else ({}, set())
    files = [file for file in files if file not in sources]
    files = images.find_videos(files) if folder.frames else files
    for file in tqdm.tqdm(files, desc='reading images', disable=None):
      name = name_of(file)
      try:
        if folder.texts and file not in texts:
          raise InputError('without a text')
        pixels = images.read_video(file, 3, folder.frames) if folder.frames else images.read_image(file, channels=3)
        image = images.fit(pixels, *folder.size, crop=folder.crop)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        if digest in kept:  # a duplicate could be in both splits
          raise InputError(f'the same picture as {kept[digest][0]}')
      except (InputError, OSError) as error:
        left_out.append(f'  {name}: {str(error).removeprefix(one_line(f"{file} "))}')
        continue
      self._spool.write(image.tobytes())
      kept[digest] = name, len(kept), texts.get(file, '')
    if len(kept) < 2:
      reason = f' (the first left out: {left_out[0].strip()})' if left_out else ''
      raise InputError(f'folder.path is {folder.path}, which has {len(kept)} usable images among {len(files)} files'
                       f'{reason}; 2 are needed, one of them to test with.')
    # By content, so that the split depends neither on names nor on their order.
    ordered = [(digest, *kept[digest]) for digest in sorted(kept)]
    num_test = min(max(round(folder.test_fraction * len(kept)), 1), len(kept) - 1)
    self._splits = {'train': ordered[num_test:], 'test': ordered[:num_test]}
    self._summary = [*map(one_line, [
        f'{folder.path}: {len(kept)} of {len(files)} files are used, {len(kept) - num_test} to train and '
        f'{num_test} to test with' + ('; left out:' if left_out else '.'), *left_out])]

  def _split_generators(self, dl_manager):
    (self.data_path / 'summary.txt').write_text('\n'.join(self._summary) + '\n')
    return {split: self._generate_examples(examples) for split, examples in self._splits.items()}

  def _generate_examples(self, examples):
    shape = spec(self.builder_config.folder).stacked_shape
    size = int(np.prod(shape))
    texts = self.builder_config.folder.texts
    for digest, name, position, text in examples:
      self._spool.seek(position * size)
      image = np.frombuffer(self._spool.read(size), np.uint8).reshape(shape)
      # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
      yield digest, {'id': name, 'image': Image.fromarray(image)} | ({'text': text} if texts else {})
