"""Shared code of builders that read archives which the user must put into `data_dir`."""

from collections.abc import Iterable, Iterator
import pathlib
from typing import Any

from image_transformer.datasets.local import Local
from image_transformer.errors import InputError, MissingDataError

Examples = Iterator[tuple[Any, dict[str, Any]]]


class FromArchives(Local):
  """For a TFDS builder to inherit from, before TFDS's own class."""

  title: str  # of the dataset, for people
  origin: str  # where to get its archives
  data_dir_root: str  # TFDS's: where the user keeps data

  @property
  def file_names(self) -> tuple[str, ...]:
    """The names of the files that must be in `data_dir`."""
    raise NotImplementedError

  def archive(self, name: str) -> pathlib.Path:
    return pathlib.Path(self.data_dir_root, name)

  def download_and_prepare(self, **kwargs):
    # Before TFDS makes any directory, so that a failure leaves nothing behind.
    absent = [name for name in self.file_names if not self.archive(name).is_file()]
    if absent and not self.data_path.exists():
      raise MissingDataError(f'{self.title} is not in {self.data_dir_root}: put {" and ".join(absent)} there '
                             f'({self.origin}).')
    super().download_and_prepare(**kwargs)


def whole(examples: Iterable, source: Any, count: int) -> Examples:
  """Yields `examples`; raises InputError naming `source` if reading fails or there are not `count` of them."""
  number = 0
  try:
    for number, example in enumerate(examples, 1):
      yield example
  except InputError:
    raise
  except Exception as error:  # tar, zip, zlib, NumPy and PIL each raise their own
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise InputError(f'{source} is damaged ({reason}): replace it with an intact one.') from error
  if number != count:
    raise InputError(f'{source} is not the official one: it has {number:,} images for a split of {count:,}.')
