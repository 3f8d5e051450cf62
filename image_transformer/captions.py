"""Texts beside image files: NAME.txt beside NAME.png, or lines {"file_name": ..., "text": ...} of a metadata.jsonl."""

from collections.abc import Iterable
import json

from etils import epath

from image_transformer.errors import InputError

_METADATA = 'metadata.jsonl'


def read_captions(files: Iterable[epath.Path]) -> tuple[dict[epath.Path, str], set[epath.Path]]:
  """Reads the captions among some files.

  Returns:
    The captions by image file, and the files that they come from.

  Raises:
    InputError: for a file that is not UTF-8, or a line of metadata that is not valid.
  """
  files, texts, sources = set(files), {}, set()
  stems: dict[epath.Path, list[epath.Path]] = {}
  for file in files:
    stems.setdefault(file.with_suffix(''), []).append(file)
  for file in sorted(files):
    if file.name == _METADATA:
      sources.add(file)
      for number, line in enumerate(_read(file).splitlines(), 1):
        try:
          entry = json.loads(line) if line.strip() else None
          if entry is not None:
            texts[file.parent / entry['file_name']] = ' '.join(entry['text'].split())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
          raise InputError(f'{file}, line {number}, must be {{"file_name": "...", "text": "..."}}, with double quotes.'
                           ) from error
    elif file.suffix == '.txt' and len(stems[file.with_suffix('')]) > 1:
      sources.add(file)
      text = ' '.join(_read(file).split())
      texts |= {image: text for image in stems[file.with_suffix('')] if image != file}
  return texts, sources


def _read(file):
  try:
    return file.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(f'{file} is not UTF-8: save it as such.') from error
