"""CIFAR-10 (Krizhevsky, 2009) as TFDS prepares it, but without TensorFlow.

The stock builder needs TensorFlow to read the archive and to encode PNGs, so
reading the archive is reimplemented here. The prepared files are those of the
stock dataset: `tfds.data_source('cifar10')` reads them, and this builder reads
what the stock builder has prepared as array_record.
"""

import hashlib
import http.client
import os
import pathlib
import shutil
import tarfile
import tempfile
import urllib.request

import numpy as np
from PIL import Image
from tensorflow_datasets.image_classification import cifar
import tqdm

from image_transformer.datasets.local import Local
from image_transformer.errors import InputError, MissingDataError

SIZES = {'train': 50_000, 'test': 10_000}
URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
SIZE = 170_052_171  # bytes of the archive
_TIMEOUT = 10  # seconds without an answer
_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then the red, green and blue planes


class Cifar10(Local, cifar.Cifar10, skip_registration=True):
  """The stock builder, fed from `data_dir/cifar-10-binary.tar.gz`.

  `download_and_prepare` raises MissingDataError if the archive is not available,
  InputError if it is not the official one.
  """

  name = 'cifar10'

  def download_and_prepare(self, **kwargs):
    # Before TFDS makes any directory, so that a failure leaves nothing behind.
    if not self.data_path.exists():
      self._archive = _find_archive(pathlib.Path(self.data_dir_root))
    super().download_and_prepare(**kwargs)

  def _split_generators(self, dl_manager):
    info = self._cifar_info
    with tarfile.open(self._archive) as tar:
      names = tar.extractfile(info.prefix + info.label_files[0]).read().decode().split()
    self.info.features['label'].names = names
    return {
        'train': self._generate_examples('train_', info.train_files),
        'test': self._generate_examples('test_', info.test_files),
    }

  def _generate_examples(self, split_prefix, filepaths):
    index = 0  # the key, as in the stock builder: it decides the order of storage
    with tarfile.open(self._archive) as tar:
      for path in filepaths:
        file = tar.extractfile(self._cifar_info.prefix + path)
        while record := file.read(_RECORD):
          planes = np.frombuffer(record, np.uint8, offset=1).reshape(3, 32, 32)
          # TFDS encodes arrays with TensorFlow, but PIL images with PIL.
          image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
          yield index, {'id': f'{split_prefix}{index:05d}', 'image': image, 'label': record[0]}
          index += 1


def _find_archive(data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the path of the verified archive, downloading it if there is none."""
  archive = data_dir / os.path.basename(URL)
  if archive.exists():
    if not _is_official(archive):
      raise InputError(f'{archive} is damaged or not the official archive (its SHA-256 differs): '
                       f'move it away and run again, or put {URL} there.')
    return archive
  data_dir.mkdir(parents=True, exist_ok=True)
  try:
    with tempfile.TemporaryDirectory(prefix='cifar10-', dir=data_dir) as scratch:
      part = pathlib.Path(scratch, archive.name)
      _download(part)
      if not _is_official(part):
        raise OSError('the download is incomplete or altered')
      part.rename(archive)
  except (OSError, http.client.HTTPException) as error:
    raise MissingDataError(f'CIFAR-10 could not be downloaded ({error}): download {URL} by other means '
                           f'and put it at {archive}') from error
  return archive


def _download(path: pathlib.Path) -> None:
  with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response, open(path, 'wb') as file:
    with tqdm.tqdm.wrapattr(response, 'read', total=SIZE, desc=path.name) as progress:
      shutil.copyfileobj(progress, file)


def _is_official(path: pathlib.Path) -> bool:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest() == SHA256
