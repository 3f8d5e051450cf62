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
import pathlib
import shutil
from typing import Any

from etils import epath
import numpy as np

from image_transformer import pictures
from image_transformer.checks import check
from image_transformer.errors import InputError
from image_transformer.workdir import write_whole

FORMS = 'choice', 'single'  # a photograph and a generated image side by side, or one of them
_PAGE = pathlib.Path(__file__).with_name('study_page')
_SIDE = 128  # pixels that images are enlarged to, at least, by an integer factor
_NUM_PLANS = 60  # judges with plans of their own; more begin again
_PRACTICE, _EVERY = 4, 10  # practice trials, and a catch trial after so many others
_KEYS = 'f', 'j'
_EXPOSURES_MS = 1_000, 2_000  # in between
# Rules of exclusion.
_LEAST_CAUGHT = 0.75  # share of catch trials that a judge must get right
_LEAST_ANSWERED = 0.5  # share of the plan's other trials that a judge must answer
_LEAST_MEDIAN_RT = 200  # ms
_MOST_OFF = 100  # ms by which an exposure may differ from what was planned
_DRAWS = 2_000  # of the bootstrap

# What a line of answers holds, at least.
_FIELDS = ('study', 'judge', 'plan', 'trial', 'kind', 'image', 'temperature', 'model', 'form', 'answer', 'chosen',
           'rt_ms', 'exposure_ms', 'exposure_measured_ms')

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


def write(folder: epath.Path, originals: np.ndarray, generated: Mapping[float, np.ndarray], levels: int, model: str,
          form: str = 'choice', seed: int = 0) -> None:
  """Makes a study.

  Args:
    folder: where; it must not exist yet.
    originals: integers [N, H, W, C]; the first few are for practice.
    generated: an image for each original, [N, H, W, C], by temperature.
    levels: of intensities.
    model: what to call the model in the answers.
    form: a name in `FORMS`.
    seed: of plans, exposures and masks.

  Raises:
    InputError: if there are too few images.
  """
  check(form in FORMS, 'form', form, f'one of {", ".join(FORMS)}')
  check(originals.ndim == 4, 'mode', 'study', 'another for videos')
  number, height, width, _ = originals.shape
  least = _PRACTICE + max(2 * len(generated), 4)
  check(number >= least, 'num_inputs', number, f'at least {least}: {_PRACTICE} are for practice')
  scale = -(-_SIDE // min(height, width))
  large = lambda image: pictures.as_bytes(image, levels).repeat(scale, axis=0).repeat(scale, axis=1)
  files = {f'images/{i:04d}_photograph.png': image for i, image in enumerate(originals)}
  for temperature, images in generated.items():
    files |= {f'images/{i:04d}_temperature{temperature:g}.png': image for i, image in enumerate(images)}
  rng = np.random.RandomState(seed)
  for i, image in enumerate(originals):  # what is easily told from a photograph: the same pixels anywhere
    files[f'images/{i:04d}_catch.png'] = rng.permutation(image.reshape(height * width, -1)).reshape(image.shape)
  files['images/mask.png'] = rng.randint(levels, size=originals[0].shape).astype(np.uint8)
  for name, image in files.items():
    write_whole(folder / name, pictures.png(large(image)))
  plans = [_plan(number, sorted(generated), form, judge, seed, model) for judge in range(_NUM_PLANS)]
  study = _TO_FILL_IN | {
      'instructions': INSTRUCTIONS[form], 'form': form, 'keys': _KEYS, 'width': width * scale, 'height': height * scale,
      'mask': 'images/mask.png', 'fixation_ms': 500, 'mask_ms': 250, 'response_ms': 4_000, 'plans': plans}
  study['id'] = hashlib.sha256(json.dumps(study).encode()).hexdigest()[:8]
  write_whole(folder / 'study.json', json.dumps(study, indent=1) + '\n')
  for path in sorted(_PAGE.iterdir()):
    shutil.copyfile(path, folder / path.name)


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
  for t, (kind, i, temperature) in enumerate(shown):
    made = f'images/{i:04d}_' + ('catch' if kind == 'catch' else f'temperature{temperature:g}') + '.png'
    both = [f'images/{i:04d}_photograph.png', made]
    plan.append({'kind': kind, 'image': i, 'temperature': temperature, 'model': model, 'form': form,
                 'images': (both[::-1] if sides[t] else both) if form == 'choice' else [both[sides[t]]],
                 # The key for the photograph's side; of a single image, for whether it is one.
                 'answer': sides[t], 'exposure_ms': int(rng.randint(_EXPOSURES_MS[0], _EXPOSURES_MS[1] + 1))})
  return plan


@dataclasses.dataclass(frozen=True)
class Fooled:
  """How often people were fooled by one model at one temperature."""

  model: str
  temperature: float
  share: float
  interval: tuple[float, float]  # 95 %, by a bootstrap over judges and images
  num_judges: int
  num_images: int
  num_trials: int


@dataclasses.dataclass(frozen=True)
class Analysis:
  fooled: list[Fooled]
  excluded: dict[str, str]  # judges that were left out, and why
  num_judges: int  # before that
  num_trials: int
  num_kept: int


def read_answers(paths: Sequence[epath.Path]) -> list[dict[str, Any]]:
  """The lines of answers in files, or in all .jsonl files of folders; the last line of a closed page may be cut off.

  Raises:
    InputError: if a file cannot be read as answers.
  """
  files = [file for path in paths for file in (sorted(path.glob('*.jsonl')) if path.is_dir() else [path])]
  lines = []
  for file in files:
    if not file.exists():
      raise InputError(f'{file} does not exist: name files or folders of answers.')
    content = file.read_text().splitlines()
    for number, text in enumerate(content, 1):
      try:
        line = json.loads(text)
        line = {name: line[name] for name in _FIELDS}
      except (ValueError, TypeError, KeyError) as error:
        if number == len(content):
          continue
        raise InputError(f'{file}, line {number}, is not an answer of a study: restore it, or leave the file out.'
                         ) from error
      lines.append(line | {'judge': f'{line["study"]}/{line["judge"]}'})
  if not lines:
    raise InputError(f'{", ".join(map(str, paths))}: there are no answers there.')
  return lines


def excluded(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Judges that are left out, and why."""
  found = {}
  for judge in dict.fromkeys(line['judge'] for line in lines):
    own = [line for line in lines if line['judge'] == judge]
    catch = [line['chosen'] == line['answer'] for line in own if line['kind'] == 'catch']
    others = [line for line in own if line['kind'] == 'main']
    answered = [line['rt_ms'] for line in others if line['chosen'] is not None]
    if len(answered) < _LEAST_ANSWERED * max(len(others), 1) or not catch:
      found[judge] = 'answered too little'
    elif np.mean(catch) < _LEAST_CAUGHT:
      found[judge] = f'{np.mean(catch):.0%} of catch trials right'
    elif np.median(answered) < _LEAST_MEDIAN_RT:
      found[judge] = f'answered in {np.median(answered):.0f} ms'
  return found


def analyse(lines: Sequence[Mapping[str, Any]], seed: int = 0) -> Analysis:
  """How often people were fooled, by model and temperature.

  In the form `choice` by taking the generated image for the photograph, of two; in `single` by taking a generated image
  for a photograph.
  """
  out = excluded(lines)
  main = [line for line in lines if line['kind'] == 'main']
  kept = [line for line in main if line['judge'] not in out and line['chosen'] is not None and
          abs(line['exposure_measured_ms'] - line['exposure_ms']) <= _MOST_OFF and
          (line['form'] == 'choice' or line['answer'] == 1)]
  rows = []
  for model, temperature in sorted({(line['model'], line['temperature']) for line in kept}):
    own = [line for line in kept if (line['model'], line['temperature']) == (model, temperature)]
    fooled = np.array([line['chosen'] != line['answer'] for line in own], float)
    judges, judge = np.unique([line['judge'] for line in own], return_inverse=True)
    images, image = np.unique([line['image'] for line in own], return_inverse=True)
    rows.append(Fooled(model, temperature, float(fooled.mean()), _interval(fooled, judge, image, seed), len(judges),
                       len(images), len(own)))
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
  rows = ['| model | temperature | fooled, % | 95 % interval | judges | images | trials |', '|---' * 7 + '|']
  rows += [f'| {row.model} | {row.temperature:g} | {100 * row.share:.2f} | {100 * row.interval[0]:.1f} to '
           f'{100 * row.interval[1]:.1f} | {row.num_judges} | {row.num_images} | {row.num_trials} |'
           for row in analysis.fooled]
  rows += [f'| {model}, published | {temperature} | {fooled} | | | | |' for model, temperature, fooled in published]
  left = len(analysis.excluded)
  rows += ['', f'{analysis.num_judges - left} of {analysis.num_judges} judges and {analysis.num_kept:,} of '
           f'{analysis.num_trials:,} trials are used.',
           *(f'Left out: judge {judge}, {reason}.' for judge, reason in analysis.excluded.items())]
  return '\n'.join(rows)
