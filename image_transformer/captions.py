"""Texts beside image files: NAME.txt beside NAME.png, or lines {"file_name": ..., "text": ...} of a metadata.jsonl."""

from collections.abc import Iterable
import json
import os

from etils import epath

from image_transformer.errors import InputError

_METADATA = 'metadata.jsonl'


def beside(image: epath.Path) -> list[epath.Path]:
  """An image, and the files in its folder that may hold its text."""
  return [file for file in image.parent.iterdir()
          if file.is_file() and (file.stem == image.stem or file.name == _METADATA)]


def read_captions(files: Iterable[epath.Path]) -> tuple[dict[epath.Path, str], set[epath.Path]]:
  """Reads the captions among some files; where an image has both, the one in the metadata counts.

  Returns:
    The captions by image file, and the files that they come from.

  Raises:
    InputError: for a file that is not UTF-8, or a line of metadata that is not valid.
  """
  files = sorted(files)
  texts: dict[epath.Path, str] = {}
  sources: set[epath.Path] = set()
  by_path = {os.path.normpath(file): file for file in files}
  for file in files:
    if file.name == _METADATA:
      sources.add(file)
      for number, line in enumerate(_read(file).split('\n'), 1):
        try:
          entry = json.loads(line) if line.strip() else None
          if entry is not None:
            image, text = by_path.get(os.path.normpath(file.parent / entry['file_name'])), _plain(entry['text'])
            texts |= {image: text} if image else {}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
          raise InputError(f'{file}, line {number}, must be {{"file_name": "...", "text": "..."}}, with double quotes.'
                           ) from error
  stems: dict[epath.Path, list[epath.Path]] = {}
  for file in files:
    stems.setdefault(file.with_suffix(''), []).append(file)
  for file in files:
    images = [other for other in stems[file.with_suffix('')] if other != file]
    if file.suffix.lower() == '.txt' and images:
      sources.add(file)
      if missing := [image for image in images if image not in texts]:
        texts |= dict.fromkeys(missing, _plain(_read(file)))
  return texts, sources


def _plain(text):
  """In one line, of characters that UTF-8 has."""
  return ' '.join(text.split()).encode(errors='replace').decode()


def _read(file):
  try:
    return file.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(f'{file} is not UTF-8: save it as such.') from error
