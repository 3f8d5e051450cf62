"""Pictures that people know, with their names: the Noto emoji, as folders to train on and to test with.

  (cd runs && npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz)
  python benchmarks/emoji.py --package=runs/package --out=runs/emoji
  python main.py --config=configs/folder.py:texts --config.folder.path=runs/emoji/train --config.folder.size="(8, 8)" \\
      --config.train.batch_size=16 --config.train.steps=6000 --config.train.flip=True --config.model.dropout=0.1 \\
      --workdir=runs/emoji_8_first
  python benchmarks/texts.py --workdir=runs/emoji_8_first --input=runs/emoji/held_out --num_images=100 --num_found=100

At this size names are learned; `results/README.md` has the commands that train on, at 8x8 and at 16x16. At 32x32 from
the start (without these fields), nothing was learned from names.

The art is Google's, under the Apache License 2.0, in the package emoji-datasource-google of npm (version 16). Pictures
that differ only in skin tone, gender or the members of a family stay on one side of the split, and those held out have
names all of whose words occur elsewhere at least twice.
"""

import collections
import json
import pathlib
import re

from absl import app
from absl import flags
import numpy as np
from PIL import Image

_PACKAGE = flags.DEFINE_string('package', None, 'The unpacked npm package.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder to make, with folders train and held_out.', required=True)
_NUM_HELD_OUT = flags.DEFINE_integer('num_held_out', 150, 'How many names to hold out.')

_SIDE = 64  # pixels; the sheet has one more all around
_TONES = {'1F3FB': 'light', '1F3FC': 'medium light', '1F3FD': 'medium', '1F3FE': 'medium dark', '1F3FF': 'dark'}
_GENDERS = {'man', 'woman', 'men', 'women', 'person', 'people', 'male', 'female'}


def words(name: str) -> list[str]:
  return re.findall(r"[a-z0-9']+", name.lower())


def pictures(emoji: dict) -> list[tuple[str, int, int]]:
  """The texts of an emoji and of its skin tones, each with its column and row in the sheet."""
  name = ' '.join(words(emoji['name']))
  found = [(name, emoji['sheet_x'], emoji['sheet_y'])]
  for tones, one in emoji.get('skin_variations', {}).items():
    named = ' and '.join(dict.fromkeys(f'{_TONES[tone]} skin' for tone in tones.split('-')))
    found.append((f'{name}, {named}', one['sheet_x'], one['sheet_y']))
  return found


def held_out(groups: dict[str, list[dict]], number: int) -> set[str]:
  """Which groups to hold out, so that their words remain."""
  of_group = {key: {word for emoji in group for word in words(emoji['name'])} for key, group in groups.items()}
  left = collections.Counter(word for found in of_group.values() for word in found)
  chosen: set[str] = set()
  for key in np.random.RandomState(0).permutation(sorted(groups)).tolist():
    if len(chosen) < number and key != 'family' and all(left[word] >= 3 for word in of_group[key]):
      chosen.add(key)
      left.subtract(of_group[key])
  return chosen


def main(argv):
  del argv
  package, out = pathlib.Path(_PACKAGE.value), pathlib.Path(_OUT.value)
  groups = collections.defaultdict(list)
  for emoji in json.loads((package / 'emoji.json').read_text()):
    key = ' '.join(word for word in words(emoji['name']) if word not in _GENDERS)
    groups['family' if emoji['subcategory'] == 'family' else key].append(emoji)
  chosen = held_out(groups, _NUM_HELD_OUT.value)
  sheet = Image.open(package / f'img/google/sheets/{_SIDE}.png')
  lines = {'train': [], 'held_out': []}
  for side in lines:
    (out / side).mkdir(parents=True)
  for key, group in groups.items():
    side = 'held_out' if key in chosen else 'train'
    # Of those held out, one of each, since tones of skin are hardly told apart at this size.
    for text, column, row in (one for emoji in group for one in pictures(emoji)[:None if side == 'train' else 1]):
      name = f'{len(lines[side]):04d}.png'
      left, top = column * (_SIDE + 2) + 1, row * (_SIDE + 2) + 1
      sheet.crop((left, top, left + _SIDE, top + _SIDE)).save(out / side / name)
      lines[side].append(json.dumps({'file_name': name, 'text': text}))
  for side, entries in lines.items():
    (out / side / 'metadata.jsonl').write_text('\n'.join(entries) + '\n')
    names = sum((key in chosen) == (side == 'held_out') for key in groups)
    print(f'{out / side}: {len(entries):,} pictures of {names:,} names')


if __name__ == '__main__':
  app.run(main)
