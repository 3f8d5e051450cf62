"""Reports of a run: naming, writing and reading its results and pictures."""

from collections.abc import Collection, Mapping, Sequence
import contextlib
import csv
import io
import json
import re
from typing import Any
import zlib

from etils import epath
import numpy as np

from image_transformer import pictures
from image_transformer.datasets import folder
from image_transformer.errors import one_line, shown
from image_transformer.library import Run
from image_transformer.metrics import (
  Evaluation,
  bits_per_dim,
  environment,
  standard_error,
  training_seconds,
  write_picture,
)
from image_transformer.model import num_parameters
from image_transformer.runs import read_config, read_trained_on
from image_transformer.workdir import parse_json, read_json, write_whole

_NEEDED = {'bits_per_dim': float, 'standard_error': float | None, 'split': str, 'num_images': int,
           'num_train_images': int | None, 'step': int, 'num_parameters': int, 'seed': int, 'num_devices': int,
           'device_kind': str, 'training_seconds': float | int, 'commit': str | None}
_NEEDED_OF_SAMPLES = {'source': str, 'num_images': int, 'num_samples': int, 'step': int, 'commit': str | None,
                      'bicubic': dict}
MEASURES = 'consistency', 'psnr', 'ssim'  # of enlarged images
_TEMPERATURE = 'temperature '


def way(temperature: float) -> str:
  """The name in reports for images drawn at a temperature."""
  return f'{_TEMPERATURE}{temperature:g}'


def ways(report: Mapping[str, Any]) -> list[str]:
  """The names of the ways in which the images of a report were enlarged."""
  return [name for name in report if name == 'bicubic' or name.startswith(_TEMPERATURE)]


def write_evaluation(run: Run, evaluation: Evaluation, split: str) -> None:
  """Writes `results.json`: the exact bits/dim of a run on a split, and all that is needed to interpret it.

  Evaluations on a split or folder other than the run's own, with other parameters than its own, or on fewer images than
  in the existing report are written to files of their own.
  """
  other = '' if split == read_config(run.workdir).eval.split else split
  path = run.workdir / ('_'.join(filter(None, ['results', *_parameters(run), other, folder_of(run)])) + '.json')
  if _is_fuller(path, run, num_images=evaluation.num_images):
    path = path.with_name(f'{path.stem}_first{evaluation.num_images}.json')
  results = {
      'dataset': run.config.dataset,
      'split': split,
      **evaluation.as_dict(),
      'num_train_images': read_trained_on(run.workdir).num_train_images,
      'ema': run.config.eval.ema and run.config.train.ema_decay > 0,
      'step': run.step,
      'num_checkpoints': run.num_checkpoints,
      'seed': run.config.seed,
      'num_parameters': num_parameters(run.model),
      'training_seconds': training_seconds(run.workdir),
      **environment(),
  }
  write_whole(path, json.dumps(results, indent=2) + '\n')
  print(f'{evaluation} of {run.config.dataset} {split}, step {run.step}. In {run.workdir}: {path.name}')


def folder_of(run: Run) -> str:
  """Names the folder of the images of exported weights, which have none of their own; '' for all others."""
  return '' if run.config.folder == read_config(run.workdir).folder else folder.settings(run.config.folder).name


def write_superres(run: Run, name: str, measures: Mapping[str, Mapping[str, np.ndarray]],
                   evaluation: Evaluation | None, for_tables: bool, **about: Any) -> None:
  """Writes the measures of enlarged images: means with standard errors, and the values of each image.

  Args:
    run: the run that enlarged them.
    name: the name of the file.
    measures: as `superres.measure` returns them, by way.
    evaluation: of the originals, where there are any.
    for_tables: whether tables should show this: it is written to `superres.json`, unless that covers more already.
    about: other fields of the report, `source` and `num_samples` among them.
  """

  def summary(values):
    return {'mean': float(values.mean()), 'standard_error': standard_error(values), 'per_image': values.tolist()}

  num_images = len(measures['bicubic']['consistency'])
  path = run.workdir / 'superres.json'
  if not for_tables or _parameters(run) or _is_fuller(path, run, measures, num_images=num_images,
                                                      num_samples=about['num_samples']):
    path = run.workdir / 'samples' / f'{name}.json'
  report = {
      'dataset': run.config.dataset,
      'step': run.step,
      'num_checkpoints': run.num_checkpoints,
      **about,
      'num_images': num_images,
      'bits_per_dim': None if evaluation is None else summary(bits_per_dim(evaluation.nats, evaluation.num_dims)),
      **{name: {measure: summary(values) for measure, values in of_way.items()} for name, of_way in measures.items()},
      **environment(),
  }
  write_whole(path, json.dumps(report, indent=2) + '\n')
  print(f'Wrote {path}')


def file_name(run: Run, parts: Sequence[str], typed: Mapping[str, Sequence[str]]) -> str:
  """A file name that says what its content depends on, without an ending.

  Args:
    run: the run that made it.
    parts: what was done, with what inputs, how many and so on; empty ones are left out.
    typed: what was typed, by the name of the flag; other words than numbers, and very many, appear as a checksum.
  """
  parts = [f'{run.step:07d}', *parts]
  for flag, words in typed.items():
    plain = '-'.join(words)
    is_plain = len(plain) <= 40 and all(re.fullmatch(r'[\d.]+', word) for word in words)
    parts.append(flag + (plain if is_plain else f'{zlib.crc32(repr(words).encode(errors="replace")):08x}'))
  return '_'.join(filter(None, [*parts, *_parameters(run)]))


def write_drawing(run: Run, name: str, temperature: float, picture: np.ndarray,
                  arrays: Mapping[str, np.ndarray] | None, film: bytes | None = None) -> None:
  """Writes a picture of samples; beside it, if any, a picture that moves, and the arrays as .npz."""
  path = run.workdir / 'samples' / f'{name}_temperature{temperature:g}.png'
  write_whole(path, pictures.png(picture))
  print(f'Wrote {path}')
  if film is not None:
    write_whole(path.with_name(f'{path.stem}_film.png'), film)
    print(f'Wrote {path.with_name(f"{path.stem}_film.png")}')
  if arrays is not None:
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    write_whole(path.with_suffix('.npz'), file.getvalue())
    print(f'Wrote {path.with_suffix(".npz")}')


def write_figure(workdir: epath.Path, step: int, kind: str, name: str, picture: np.ndarray) -> None:
  """Writes a figure of a run, or of a folder of runs, and shows it in TensorBoard."""
  path = workdir / 'pictures' / f'{name}.png'
  write_whole(path, pictures.png(picture))
  if (workdir / 'config.json').exists():  # a run, not a folder of runs
    write_picture(workdir, step, kind, picture)
  print(f'Wrote {path}')


def write_scores(workdir: epath.Path, name: str, files: Sequence[epath.Path] | None,
                 scores: Mapping[str, np.ndarray]) -> None:
  """Writes scores [N] by name as CSV, a line for each image: its file, or its index."""
  rows = io.StringIO()
  writer = csv.writer(rows, lineterminator='\n')
  writer.writerow(['image', *scores])
  number = len(next(iter(scores.values())))
  names = range(number) if files is None else [one_line(str(file)) for file in files]
  writer.writerows(zip(names, *([f'{value:.6g}' for value in values] for values in scores.values())))
  path = workdir / 'scores' / f'{name}.csv'
  write_whole(path, rows.getvalue())
  print(f'Wrote {path}')


def is_results(name: str) -> bool:
  """Whether tables show a file of this name."""
  return bool(re.fullmatch(r'results(_average\d+)?\.json', name))


def read_reports(workdir: epath.Path) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
  """Every results.json of a run, each with its superres.json, where there is one.

  Raises:
    InputError: if one cannot be read.
  """
  advice, samples = 'repeat the evaluation, which replaces it.', None
  if (workdir / 'superres.json').exists():
    samples = read_json(workdir / 'superres.json', advice, lambda report: _checked(report, _NEEDED_OF_SAMPLES))
  return [(read_json(path, advice, lambda report: _checked(report, _NEEDED)),
           samples if path.name == 'results.json' else None)
          for path in sorted(workdir.iterdir()) if is_results(path.name)]


def _checked(report: dict[str, Any], needed: Mapping[str, Any]) -> dict[str, Any]:
  """Validates the fields, so that a malformed report fails here; old reports are of one checkpoint."""
  report = {'num_checkpoints': 1, **report}
  values, kinds = {name: report[name] for name in needed}, dict(needed)
  for one in ways(report):
    for measure in MEASURES:
      values[f'{one} {measure}'], kinds[f'{one} {measure}'] = report[one][measure]['mean'], float
  for name, value in (values | {'num_checkpoints': report['num_checkpoints']}).items():
    if not isinstance(value, kinds.get(name, int)):
      raise TypeError(f'{name} is {shown(value)}')
  return report


def _parameters(run: Run) -> list[str]:
  """Names for parameters other than the run's own: of several checkpoints, or averaged in training or not."""
  names = [f'average{run.num_checkpoints}'] if run.num_checkpoints > 1 else []
  if run.config.train.ema_decay and run.config.eval.ema != read_config(run.workdir).eval.ema:
    names.append('ema' if run.config.eval.ema else 'raw')
  return names


def _is_fuller(path: epath.Path, run: Run, measured: Collection[str] = (), **numbers: int) -> bool:
  """Whether the report at `path` is of this step, and of more images or samples, or of temperatures not measured."""

  def check(old):
    more = any(old[name] > number for name, number in numbers.items())
    return old['step'] == run.step and (more or not set(ways(old)) <= set(measured))

  with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is replaced
    return parse_json(path.read_bytes(), check)
  return False
