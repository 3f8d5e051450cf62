"""A study of how often people take generated images for photographs (paper section 5.3, table 5).

`write` makes a folder that can be served anywhere: pages, images and, for each judge, a plan that says what is shown
when and on which side. `analyse` turns the answers into shares of judges fooled, with intervals.

A judge sees each original at most once, every temperature equally often, and the photograph equally often on both
sides. Catch trials, easy for anybody who looks, show who does not. The rules by which judges are left out are fixed
here, before anybody answers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import operator
import pathlib
from typing import Any

from etils import epath
import numpy as np

from image_transformer import pictures
from image_transformer.config import ImageSpec, check
from image_transformer.errors import InputError
from image_transformer.workdir import parse_json, write_whole

FORMS = 'choice', 'single'  # a photograph and a generated image side by side, or one of them
_PAGE = pathlib.Path(__file__).with_name('study_page')
_SIDE = 128  # pixels that images are enlarged to, at least, by an integer factor
_NUM_PLANS = 60  # judges with plans of their own; more begin again
_PRACTICE, _EVERY = 4, 10  # practice trials, and a catch trial after so many others
_KEYS = 'f', 'j'
_EXPOSURES_MS = 1_000, 2_000  # in between
# Rules of exclusion.
_LEAST_CAUGHT = 0.75  # share of catch trials that a judge must get right
_LEAST_ANSWERED = 0.5  # share of the plan's main trials that a judge must answer
_LEAST_MEDIAN_RT = 200  # ms
_MOST_OFF = 100  # ms by which an exposure may differ from what was planned
_DRAWS = 2_000  # of the bootstrap

# What a line of answers holds, at least.
_FIELDS = ('study', 'judge', 'plan', 'trial', 'kind', 'image', 'temperature', 'model', 'form', 'num_main', 'answer',
           'chosen', 'rt_ms', 'exposure_ms', 'exposure_measured_ms')

INSTRUCTIONS = {
    'choice': '<p>You will see two images side by side for one to two seconds. One is a photograph, the other was made '
              'by a computer. Say which was the photograph: press <b>F</b> for the left one, <b>J</b> for the right '
              'one.</p>',
    'single': '<p>You will see one image for one to two seconds. It is a photograph, or it was made by a computer. '
              'Press <b>F</b> if it was a photograph, <b>J</b> if not.</p>'}
# To be filled in by whoever asks people.
_TO_FILL_IN = {
    'title': 'Photograph or not?',
    'consent': '<p>[Who asks, and what for.] You will judge images for about [15] minutes. Your answers and the time '
               'they take are recorded, nothing else about you. You may stop at any time by closing the page.</p>',
    'contact': '[name and address]', 'completion_code': '', 'completion_url': ''}


def check_study(form: str, spec: ImageSpec, number: int, num_temperatures: int) -> None:
  """Raises InputError if there can be no study of this form with so many images and temperatures."""
  check(form in FORMS, 'form', form, f'one of {", ".join(FORMS)}')
  check(not spec.frames, 'mode', 'study', 'another for videos')
  least = _PRACTICE + max(2 * num_temperatures, 4)
  check(number >= least, 'num_inputs', number, f'at least {least}: {_PRACTICE} are for practice')


def write(folder: epath.Path, originals: np.ndarray, generated: Mapping[float, np.ndarray], spec: ImageSpec,
          model: str, form: str = 'choice', seed: int = 0) -> None:
  """Makes a study.

  Args:
    folder: where; it must not exist yet.
    originals: integers [N, H, W, C]; the first few are for practice.
    generated: an image for each original, [N, H, W, C], by temperature.
    spec: what the images are.
    model: what to call the model in the answers.
    form: a name in `FORMS`.
    seed: of plans, exposures and masks.

  Raises:
    InputError: see `check_study`.
  """
  number, height, width, levels = len(originals), spec.height, spec.width, spec.levels
  check_study(form, spec, number, len(generated))
  scale = -(-_SIDE // min(height, width))
  large = lambda image: pictures.as_bytes(image, levels).repeat(scale, axis=0).repeat(scale, axis=1)
  files = {f'images/{i:04d}_photograph.png': image for i, image in enumerate(originals)}
  for temperature, images in generated.items():
    files |= {f'images/{i:04d}_temperature{temperature:g}.png': image for i, image in enumerate(images)}
  rng = np.random.RandomState(seed)
  for i, image in enumerate(originals):  # what is easily told from a photograph: the same pixels anywhere
    files[f'images/{i:04d}_catch.png'] = rng.permutation(image.reshape(height * width, -1)).reshape(image.shape)
  files['images/mask.png'] = rng.randint(levels, size=originals[0].shape).astype(np.uint8)
  digest = hashlib.sha256()
  for name, image in files.items():
    digest.update(name.encode() + image.tobytes())
    write_whole(folder / name, pictures.png(large(image)))
  plans = [_plan(number, sorted(generated), form, judge, seed, model) for judge in range(_NUM_PLANS)]
  study = _TO_FILL_IN | {
      'instructions': INSTRUCTIONS[form], 'form': form, 'keys': _KEYS, 'width': width * scale, 'height': height * scale,
      'mask': 'images/mask.png', 'fixation_ms': 500, 'mask_ms': 250, 'response_ms': 4_000, 'plans': plans}
  digest.update(json.dumps(study).encode())
  study['id'] = digest.hexdigest()[:8]  # answers to other images are never taken for answers to these
  write_whole(folder / 'study.json', json.dumps(study, indent=1) + '\n')
  for path in sorted(_PAGE.glob('*.*')):  # an installed package has a folder of compiled files beside them
    write_whole(folder / path.name, path.read_bytes())


def _plan(number: int, temperatures: Sequence[float], form: str, judge: int, seed: int,
          model: str) -> list[dict[str, Any]]:
  """The trials of one judge, in order."""
  rng = np.random.RandomState([seed, judge])
  order = _PRACTICE + rng.permutation(number - _PRACTICE)
  main = order[:len(order) - max(len(order) // (_EVERY + 1), 1)]
  # Over judges, every image is seen at every temperature; within one, temperatures are equally frequent.
  of_main = [temperatures[(place + judge) % len(temperatures)] for place in range(len(main))]
  trials: list[tuple[str, int, float | None]] = [('main', int(i), temperature) for i, temperature in zip(main, of_main)]
  for k, i in enumerate(order[len(main):]):
    trials.insert(min((k + 1) * (_EVERY + 1) - 1, len(trials)), ('catch', int(i), None))
  shown = [*(('practice', i, temperatures[i % len(temperatures)]) for i in range(_PRACTICE)), *trials]
  sides: dict[int, int] = {}
  for kind in ('main', 'catch', 'practice'):
    own = [t for t, (one, _, _) in enumerate(shown) if one == kind]
    sides |= dict(zip(own, rng.permutation(np.arange(len(own)) % 2).tolist()))
  plan = []
  if form == 'single':  # only what is made can be easy to tell
    sides |= {t: 1 for t, (kind, _, _) in enumerate(shown) if kind == 'catch'}
  for t, (kind, i, temperature) in enumerate(shown):
    made = f'images/{i:04d}_' + ('catch' if kind == 'catch' else f'temperature{temperature:g}') + '.png'
    both = [f'images/{i:04d}_photograph.png', made]
    plan.append({'kind': kind, 'image': i, 'temperature': temperature, 'model': model, 'form': form,
                 'num_main': len(main),
                 'images': (both[::-1] if sides[t] else both) if form == 'choice' else [both[sides[t]]],
                 # The key for the photograph's side; of a single image, for whether it is one.
                 'answer': sides[t], 'exposure_ms': int(rng.randint(_EXPOSURES_MS[0], _EXPOSURES_MS[1] + 1))})
  return plan


@dataclasses.dataclass(frozen=True)
class Fooled:
  """How often people were fooled by one model at one temperature, in studies of one form."""

  model: str
  form: str
  temperature: float
  share: float
  interval: tuple[float, float]  # 95 %, by a bootstrap over judges and images
  num_judges: int
  num_images: int
  num_trials: int


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What the answers say."""

  fooled: list[Fooled]
  excluded: dict[str, str]  # judges that were left out, and why
  num_judges: int  # before that
  num_trials: int
  num_kept: int


def read_answers(paths: Sequence[epath.Path]) -> list[dict[str, Any]]:
  """The lines of answers in files, or in all .jsonl files of folders; the last line of a closed page may be cut off.

  Where a judge answered a trial twice, or a line is in two files, the first counts.

  Raises:
    InputError: if a file cannot be read as answers.
  """
  files = [file for path in paths for file in (sorted(path.glob('*.jsonl')) if path.is_dir() else [path])]
  lines: dict[tuple, dict[str, Any]] = {}
  for file in files:
    if not file.exists():
      raise InputError(f'{file} does not exist: name files or folders of answers.')
    content = file.read_bytes().splitlines()
    for number, text in enumerate(content, 1):
      try:
        line = parse_json(text, _answer)
      except ValueError as error:
        if number == len(content):
          continue
        raise InputError(f'{file}, line {number}, is not an answer of a study: restore it, or leave the file out.'
                         ) from error
      lines.setdefault((line['judge'], line['trial']), line)
  if not lines:
    raise InputError(f'{", ".join(map(str, paths))}: there are no answers there.')
  return list(lines.values())


def _answer(line: Any) -> dict[str, Any]:
  """A line of answers, checked; judges and images of different studies are different."""
  line = {name: line[name] for name in _FIELDS}
  numbers = [line[name] for name in ('trial', 'num_main', 'answer', 'exposure_ms')]
  numbers += [] if line['chosen'] is None else [line['chosen'], line['rt_ms']]
  numbers += [] if line['kind'] != 'main' else [line['temperature']]
  # How long a page in the background showed an image is not known.
  numbers += [] if line['exposure_measured_ms'] is None else [line['exposure_measured_ms']]
  if (not all(isinstance(number, int | float) for number in numbers) or line['form'] not in FORMS or
      line['chosen'] not in (None, 0, 1)):
    raise ValueError('not an answer')
  return line | {'judge': f'{line["study"]}/{line["judge"]}', 'image': f'{line["study"]}/{line["image"]}'}


def excluded(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Judges that are left out, and why."""
  found = {}
  for judge in dict.fromkeys(line['judge'] for line in lines):
    own = [line for line in lines if line['judge'] == judge]
    catch = [line['chosen'] == line['answer'] for line in own if line['kind'] == 'catch']
    answered = [line['rt_ms'] for line in own if line['kind'] == 'main' and line['chosen'] is not None]
    if len(answered) < _LEAST_ANSWERED * own[0]['num_main'] or not catch:
      found[judge] = 'answered too little'
    elif np.mean(catch) < _LEAST_CAUGHT:
      found[judge] = f'{np.mean(catch):.0%} of catch trials right'
    elif np.median(answered) < _LEAST_MEDIAN_RT:
      found[judge] = f'answered in {np.median(answered):.0f} ms'
  return found


def analyse(lines: Sequence[Mapping[str, Any]], seed: int = 0) -> Analysis:
  """How often people were fooled, by model, form and temperature, from lines as `read_answers` returns them.

  In the form `choice` by taking the generated image for the photograph, of two; in `single` by taking a generated image
  for a photograph.
  """
  out = excluded(lines)
  main = [line for line in lines if line['kind'] == 'main']
  kept = [line for line in main if line['judge'] not in out and line['chosen'] is not None and
          line['exposure_measured_ms'] is not None and
          abs(line['exposure_measured_ms'] - line['exposure_ms']) <= _MOST_OFF and
          (line['form'] == 'choice' or line['answer'] == 1)]
  rows = []
  kind = operator.itemgetter('model', 'form', 'temperature')
  for model, form, temperature in sorted(set(map(kind, kept))):
    own = [line for line in kept if kind(line) == (model, form, temperature)]
    fooled = np.array([line['chosen'] != line['answer'] for line in own], float)
    judges, judge = np.unique([line['judge'] for line in own], return_inverse=True)
    images, image = np.unique([line['image'] for line in own], return_inverse=True)
    rows.append(Fooled(model, form, temperature, float(fooled.mean()), _interval(fooled, judge, image, seed),
                       len(judges), len(images), len(own)))
  return Analysis(rows, out, len({line['judge'] for line in lines}), len(main), len(kept))


def _interval(fooled, judge, image, seed):
  """95 %, by a bootstrap of judges and of images: both are samples of those that there could be."""
  rng = np.random.default_rng(seed)
  counts = [rng.multinomial(size, np.full(size, 1 / size), _DRAWS) for size in (judge.max() + 1, image.max() + 1)]
  weights = counts[0][:, judge] * counts[1][:, image]
  total = weights.sum(axis=1)
  shares = (weights @ fooled)[total > 0] / total[total > 0]
  low, high = np.percentile(shares, [2.5, 97.5])
  return float(low), float(high)


def table(analysis: Analysis, published: Sequence[tuple[str, str, str]] = ()) -> str:
  """Markdown: a row for each model and temperature, and who was left out.

  Args:
    analysis: as `analyse` returns it.
    published: models, temperatures and percentages, to compare with.
  """
  rows = ['| model | form | temperature | fooled, % | 95 % interval | judges | images | trials |', '|---' * 8 + '|']
  rows += [f'| {row.model} | {row.form} | {row.temperature:g} | {100 * row.share:.2f} | {100 * row.interval[0]:.1f} to '
           f'{100 * row.interval[1]:.1f} | {row.num_judges} | {row.num_images} | {row.num_trials} |'
           for row in analysis.fooled]
  rows += [f'| {model}, published | {FORMS[0]} | {temperature} | {fooled} | | | | |'
           for model, temperature, fooled in published]
  left = len(analysis.excluded)
  rows += ['', f'{analysis.num_judges - left} of {analysis.num_judges} judges and {analysis.num_kept:,} of '
           f'{analysis.num_trials:,} trials are used.',
           *(f'Left out: judge {judge}, {reason}.' for judge, reason in analysis.excluded.items())]
  return '\n'.join(rows)
