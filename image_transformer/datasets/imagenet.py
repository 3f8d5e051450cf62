"""The two datasets that are both called ImageNet 32x32 (and 64x64), as TFDS prepares them, but without TensorFlow.

The old one is van den Oord et al. (2016), "Pixel Recurrent Neural Networks", used in the Image Transformer
paper. The new one is Chrabaszcz et al. (2017), "A Downsampled Variant of ImageNet", downsampled with
anti-aliasing and hence smoother and easier to compress. The prepared files are those of the stock datasets
`downsampled_imagenet` and `imagenet_resized`, and data that the stock builders prepared as array_record is read.
"""

import io
import itertools
import pathlib
import tarfile
import zipfile

from etils import epath
import numpy as np
from PIL import Image
from tensorflow_datasets.datasets.downsampled_imagenet import downsampled_imagenet_dataset_builder as old
from tensorflow_datasets.datasets.imagenet_resized import imagenet_resized_dataset_builder as new

from image_transformer.datasets import archives

OLD_SIZES = {'train': 1_281_149, 'validation': 49_999}
NEW_SIZES = {'train': 1_281_167, 'validation': 50_000}
NO_COMPARISON = 'bits/dim of the old and the new ImageNet do not compare: at 32x32 they are about 0.26 lower on the new'


class DownsampledImagenet(archives.FromArchives, old.Builder, skip_registration=True):
  """The old one: no labels. Configs '32x32' and '64x64'."""

  name = 'downsampled_imagenet'
  pkg_dir_path = epath.Path(old.__file__).parent  # where TFDS has its description
  title = 'The original downsampled ImageNet (van den Oord et al., 2016)'
  origin = 'image-net.org has withdrawn it; https://github.com/tensorflow/datasets/issues/4662 lists copies'

  @property
  def file_names(self):
    return tuple(f'{split}_{self.builder_config.name}.tar' for split in ('train', 'valid'))

  def _split_generators(self, dl_manager):
    return {split: archives.whole(self._generate_examples(self.archive(name)), self.archive(name), count)
            for name, (split, count) in zip(self.file_names, OLD_SIZES.items())}

  def _generate_examples(self, archive):
    size = int(self.builder_config.name.split('x')[0])
    with tarfile.open(archive) as tar:
      while member := tar.next():
        tar.members.clear()  # otherwise it keeps the headers of a million files
        if member.isfile():
          # The key as in the stock builder: it decides the order of storage.
          yield member.name, {'image': _rgb_png(tar.extractfile(member).read(), size)}


class ImagenetResized(archives.FromArchives, new.Builder, skip_registration=True):
  """The new one: labels 0..999. Configs '32x32' and '64x64'."""

  name = 'imagenet_resized'
  pkg_dir_path = epath.Path(new.__file__).parent
  title = 'The new downsampled ImageNet (Chrabaszcz et al., 2017)'
  origin = 'from https://image-net.org/download-images.php, after logging in'

  @property
  def file_names(self):
    size = self.builder_config.size
    parts = ('train_part1', 'train_part2') if size == 64 else ('train',)
    return tuple(f'Imagenet{size}_{part}_npz.zip' for part in (*parts, 'val'))

  def _split_generators(self, dl_manager):
    *train, validation = map(self.archive, self.file_names)
    return {split: archives.whole(itertools.chain(*map(self._generate_examples, paths)),
                                  ' with '.join(map(str, paths)), NEW_SIZES[split])
            for split, paths in (('train', train), ('validation', [validation]))}

  def _generate_examples(self, archive: pathlib.Path):
    size = self.builder_config.size
    with zipfile.ZipFile(archive) as outer:
      for name in outer.namelist():
        if name.endswith('.npz'):
          arrays = np.load(io.BytesIO(outer.read(name)))
          images = arrays['data'].reshape(-1, 3, size, size).transpose(0, 2, 3, 1)
          for index, (image, label) in enumerate(zip(images, arrays['labels'], strict=True)):
            # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
            example = {'image': Image.fromarray(np.ascontiguousarray(image)), 'label': int(label) - 1}
            yield f'{name}{index}', example  # the stock builder's key


def _rgb_png(content: bytes, size: int) -> bytes:
  """Returns the PNG as it is if it is RGB; TFDS would read other kinds as they are stored."""
  with Image.open(io.BytesIO(content), formats=['PNG']) as image:
    if image.size != (size, size):
      raise ValueError(f'an image is {image.width} x {image.height}')
    if image.mode == 'RGB':
      return content
    buffer = io.BytesIO()
    image.convert('RGB').save(buffer, 'PNG')
    return buffer.getvalue()
