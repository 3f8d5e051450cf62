"""What texts tell a model about images, by its own likelihood.

  python benchmarks/texts.py --workdir=runs/scenes --splits=test,unseen [--num_images=200] [--out=FILE.json]
  python benchmarks/texts.py --workdir=runs/emoji_run --input=runs/emoji/held_out --num_images=100

Bits of images given their own text, that of another image, and none; how often the likelihood of an image tells its
text from 99 others; and of `scenes`, the exact entropy, and how often its text is told from one with a wrong word, a
turned relation, or the colours of two shapes exchanged.
"""

import measuring  # first: it sets the process up

from absl import app
from absl import flags
import numpy as np

from image_transformer import library
from image_transformer.datasets import scenes
from image_transformer.inputs import read_inputs
from image_transformer.metrics import standard_error

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.', required=True)
_SPLITS = flags.DEFINE_list('splits', ['test'], 'Splits of its dataset.')
_INPUT = flags.DEFINE_string('input', None, 'A folder of images with texts, instead of splits.')
_NUM_IMAGES = flags.DEFINE_integer('num_images', 200, 'How many images of each split, from the first.')
_NUM_FOUND = flags.DEFINE_integer('num_found', 50, 'For how many images to find the text among 100.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

_OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
_WORDS = list(scenes.SIZES), list(scenes.COLORS), list(scenes.SHAPES)


def wrong_word(text: str, rng: np.random.Generator) -> str:
  """A caption with another size, colour or shape; colours stay different."""
  objects, relations = scenes.parse(text)
  while True:
    i, place = rng.integers(len(objects)), rng.integers(3)
    words = list(objects[i])
    words[place] = rng.choice(_WORDS[place])
    changed = [*objects[:i], tuple(words), *objects[i + 1:]]
    if changed != objects and len({color for _, color, _ in changed}) == len(changed):
      return scenes.caption(changed, relations)


def turned_relation(text: str, rng: np.random.Generator) -> str | None:
  """A caption with one relation turned; None if there is none."""
  objects, relations = scenes.parse(text)
  if not relations:
    return None
  i = rng.integers(len(relations))
  return scenes.caption(objects, [*relations[:i], _OPPOSITE[relations[i]], *relations[i + 1:]])


def exchanged_colors(text: str, rng: np.random.Generator) -> str | None:
  """A caption with the colours of two shapes exchanged; None if there are not two, or it would say the same."""
  objects, relations = scenes.parse(text)
  if len(objects) < 2:
    return None
  i, j = rng.choice(len(objects), 2, replace=False)
  changed = list(objects)
  (size, color, shape), (other_size, other_color, other_shape) = objects[i], objects[j]
  changed[i], changed[j] = (size, other_color, shape), (other_size, color, other_shape)
  return None if facts(changed, relations) == facts(objects, relations) else scenes.caption(changed, relations)


def facts(objects: list[tuple[str, str, str]], relations: list[str]) -> set:
  """What a caption says, in whatever order: its objects, and which is left of or above which."""
  pairs = zip(objects, relations, objects[1:])
  return {*objects, *((one, relation, other) if relation in ('left of', 'above') else (other, _OPPOSITE[relation], one)
                      for one, relation, other in pairs)}


CHANGES = {'one wrong word': wrong_word, 'a turned relation': turned_relation, 'exchanged colours': exchanged_colors}


def summary(values: np.ndarray) -> dict[str, float | None]:
  return {'mean': float(values.mean()), 'standard_error': standard_error(values)}


def measure(run: library.Run, split: str, inputs: dict[str, np.ndarray], num_found: int) -> dict:
  """All numbers of the images of one split or folder."""
  images, number = inputs['image'], len(inputs['image'])
  texts = run.model.conditions['text'].captions(inputs['text'])
  bits = lambda images, texts: -run.log_prob(images, text=texts) / np.log(2)
  rng = np.random.default_rng(0)
  own, none, other = bits(images, texts), bits(images, ''), bits(images, [*texts[1:], texts[0]])
  row = {'split': split, 'num_images': number, 'num_dims': run.model.spec.num_dims, 'bits, own text': summary(own),
         'bits, no text': summary(none), "bits, another's text": summary(other),
         'information in the text, bits': summary(none - own)}
  if run.config.dataset == 'scenes':
    entropy = np.array([scenes.entropy(text) for text in texts])
    row |= {'exact entropy, bits': summary(entropy), 'own text / entropy': float(own.mean() / entropy.mean())}
    for name, change in CHANGES.items():
      pairs = [(i, wrong) for i, text in enumerate(texts) if (wrong := change(text, rng)) is not None]
      chosen = [i for i, _ in pairs]
      right = own[chosen] < bits(images[chosen], [wrong for _, wrong in pairs])
      row[f'told from {name}'] = {'share': float(right.mean()), 'num_images': len(pairs)}
  candidates = min(100, number)
  found = [int(bits(np.repeat(images[i:i + 1], candidates, axis=0), texts[:candidates]).argmin()) == i
           for i in range(min(num_found, candidates))]
  row['found among'] = {'texts': candidates, 'share': float(np.mean(found)), 'num_images': len(found)}
  return row


def main(argv):
  del argv
  run = library.load(_WORKDIR.value)
  rows = []
  for split in [_INPUT.value] if _INPUT.value else _SPLITS.value:
    if _INPUT.value:
      inputs, _ = read_inputs(run, _INPUT.value, _NUM_IMAGES.value)
    else:
      images, given = run.examples(_NUM_IMAGES.value, split)
      inputs = {'image': images, **given}
    rows.append(measure(run, split, inputs, _NUM_FOUND.value))
    print(f'\n{split}, {rows[-1]["num_images"]} images:')
    for name, value in rows[-1].items():
      if isinstance(value, dict):
        print(f'  {name:32}', ', '.join(f'{key} {number:.4g}' for key, number in value.items() if number is not None))
    if 'own text / entropy' in rows[-1]:
      print(f'  bits given the own text are {rows[-1]["own text / entropy"]:.3f} times the entropy')
  measuring.write('texts', rows, _OUT.value, step=run.step)


if __name__ == '__main__':
  app.run(main)
