"""Writes docs/settings.md, all fields of a configuration, from config.py: python docs/settings.py"""

import dataclasses
import inspect
import pathlib
import re
import sys
import typing

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from image_transformer.config import Config

HEAD = """# Settings

All fields of a configuration with their defaults, written from `image_transformer/config.py` by
`python docs/settings.py`. The files in [`configs/`](../configs) override the defaults. Set others on the command line,
`--config.optimizer.learning_rate=1e-3`, or in Python, `it.load_config('digits', {'optimizer.learning_rate': 1e-3})`.
A value that does not fit is refused with the reason.
"""


def comments(of: type) -> dict[str, str]:
  """What the source of a dataclass says about each field: above it, or at the end of its line."""
  found, above = {}, []
  for line in inspect.getsource(of).splitlines():
    field = re.match(r'  (\w+): [^#]*(?:  # (.*))?$', line)
    if comment := re.match(r'  # (.*)', line):
      above.append(comment[1])
    elif field:
      found[field[1]] = ' '.join([*above, field[2] or '']).strip()
      above = []
  return found


def page() -> str:
  sections = {'general': Config, **{field.name: type(field.default) for field in dataclasses.fields(Config)
                                    if dataclasses.is_dataclass(field.default)}}
  parts = [HEAD, *(f'* [{title.capitalize()}](#{title})' for title in sections)]
  for title, of in sections.items():
    parts += [f'\n## {title.capitalize()}\n', '| field | default | choices | |', '|---|---|---|---|']
    prefix, said, hints = '' if of is Config else f'{title}.', comments(of), typing.get_type_hints(of)
    for field in dataclasses.fields(of):
      if not dataclasses.is_dataclass(field.default):
        choices = ', '.join(typing.get_args(hints[field.name]) if isinstance(field.default, str) else ())
        parts.append(f'| `{prefix}{field.name}` | `{field.default!r}` | {choices} | {said[field.name]} |')
  return '\n'.join(parts) + '\n'


if __name__ == '__main__':
  (ROOT / 'docs' / 'settings.md').write_text(page())
