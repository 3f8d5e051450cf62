"""CelebA (Liu et al., 2015): aligned faces, cropped to the same square as in tensor2tensor.

TFDS's own `celeb_a` holds whole JPEGs and attributes from three more files, so this dataset has its own name.
"""

import os
import zipfile

from PIL import Image
import tensorflow_datasets as tfds

from image_transformer.datasets import archives
from image_transformer.errors import InputError

SIZES = {'train': 162_770, 'validation': 19_867, 'test': 19_962}  # numbered 0, 1, 2 in the partition file
HEIGHT, WIDTH = 218, 178
TOP, LEFT, CROP = 40, 20, 138  # pixels


class ImageTransformerCeleba(archives.FromArchives, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """`image`: rows 40..177 and columns 20..157, losslessly; `id`: the file's name, such as '000001.jpg'."""

  VERSION = tfds.core.Version('1.0.0')
  title = 'CelebA'
  origin = '"Align&Cropped Images" and "Train/Val/Test Partitions" of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html'

  @property
  def file_names(self):
    # Kaggle's copy has the partition as CSV.
    names = [f'list_eval_partition.{kind}' for kind in ('txt', 'csv')]
    return 'img_align_celeba.zip', next((name for name in names if self.archive(name).is_file()), names[0])

  def _info(self):
    return tfds.core.DatasetInfo(
        builder=self,
        description='Aligned faces of CelebA, cut to 138x138.',
        features=tfds.features.FeaturesDict({
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(CROP, CROP, 3), encoding_format='png'),
        }),
        homepage='https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html',
    )

  def _split_generators(self, dl_manager):
    images, partition = map(self.archive, self.file_names)
    try:
      lines = [line.replace(',', ' ').split() for line in partition.read_text().splitlines() if line.strip()]
      members = dict(line for line in lines if line != ['image_id', 'partition'])
    except ValueError as error:
      raise InputError(f'{partition} is damaged: every line must hold a name and 0, 1 or 2.') from error
    return {split: archives.whole(self._generate_examples(images, [name for name in members if members[name] == part]),
                                  f'{images} with {partition.name}', count)
            for part, (split, count) in zip('012', SIZES.items())}

  def _generate_examples(self, archive, names):
    with zipfile.ZipFile(archive) as images:
      paths = {os.path.basename(path): path for path in images.namelist()}  # copies have them in other folders
      for name in names:
        with images.open(paths[name]) as file, Image.open(file) as image:
          if image.size != (WIDTH, HEIGHT):
            raise InputError(f'{archive} holds {name} of {image.height} x {image.width} (height x width), but aligned '
                             f'images are {HEIGHT} x {WIDTH}: put the official archive there.')
          yield name, {'id': name, 'image': image.convert('RGB').crop((LEFT, TOP, LEFT + CROP, TOP + CROP))}
