"""The paper's tables, with what was measured beside what was published.

A run stands in a row only if it is that row's: the same configuration, trained on all of the
data for all of the steps, evaluated on all of the test images. Any other run gets a line that says
what is missing, and one on generated images gets none.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import io
import json
from typing import Any, NamedTuple

from etils import epath

from image_transformer import data, runs
from image_transformer.config import Config
from image_transformer.errors import InputError

Line = dict[str, str]

_COLUMNS = ('row', 'published', 'ours', 'images', 'training images', 'steps', 'parameters', 'device', 'hours', 'commit',
            'remarks')
_SAMPLE_COLUMNS = ('row', 'temperature', 'judges fooled, published', 'consistency', 'PSNR', 'SSIM', 'images',
                   'samples of each', 'commit', 'remarks')


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the paper's tables. Without a configuration it is somebody else's model, for comparison."""

  table: str
  model: str
  published: str  # bits/dim; '' where there is no number
  config: str | None = None  # what is typed after `configs/`
  num_checkpoints: int = 1  # over how many checkpoints parameters are averaged
  judges: Mapping[float, str] = dataclasses.field(default_factory=dict)  # temperature -> % of human judges fooled


class Entry(NamedTuple):
  """A row and the configurations of its run; both None for others' models."""

  row: Row
  full: Config | None
  smoke: Config | None  # of its small form


class Found(NamedTuple):
  """What an evaluated run left."""

  folder: epath.Path
  config: Config
  results: dict[str, Any]  # results.json
  samples: dict[str, Any] | None  # superres.json


def collect(folder: epath.PathLike) -> list[Found]:
  """Reads every results.json below a folder, with the files beside it.

  Raises:
    InputError: if there is no such folder, or a file in it cannot be read.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    raise InputError(f'There is no folder {folder}: --workdir must hold the folders of runs.')

  def read(path):
    try:
      return json.loads(path.read_text())
    except ValueError as error:
      raise InputError(f'{path} cannot be read ({error}); repeat --mode=eval there, or remove it.') from error

  found = []
  for path in sorted(parent / name for parent, _, names in folder.walk() for name in names if name == 'results.json'):
    samples = path.parent / 'superres.json'
    found.append(Found(path.parent, runs.read_config(path.parent), read(path),
                       read(samples) if samples.exists() else None))
  return found


def render(entries: Sequence[Entry], found: Sequence[Found], as_csv: bool = False) -> str:
  """The tables as Markdown, or all in one as CSV."""
  real = [run for run in found if not data.is_stand_in(run.config)]
  tables: dict[str, list[Line]] = {}
  others = list(real)
  samples: list[Line] = []
  for entry in entries:
    own = [run for run in real if _form(entry, run)]
    others = [run for run in others if run not in own]
    tables.setdefault(entry.row.table, []).extend(_lines(entry, own))
    samples.extend(_sample_lines(entry, own))
  if others:
    tables['Other runs'] = [_line(str(run.folder), '', run, []) for run in others]
  if samples:
    tables['Samples of super-resolution'] = samples
  if as_csv:
    return _csv(tables)
  sections = [_markdown(name, lines) for name, lines in tables.items()]
  left_out = [str(run.folder) for run in found if run not in real]
  if left_out:
    sections.append(f'Left out, because they saw generated images: {", ".join(left_out)}.')
  return '\n\n'.join(sections)


def _form(entry: Entry, run: Found) -> str | None:
  """'full' or 'smoke' if the run has the row's configuration in that form (with any seed)."""
  for form in ('full', 'smoke'):
    config = getattr(entry, form)
    if config is not None and not set(runs.differences(run.config, config)) - {'seed'}:
      return form
  return None


def _missing(entry: Entry, run: Found) -> list[str]:
  """Why a run with the row's configuration, in either form, is not the row's number."""
  results, config = run.results, run.config
  missing = [':smoke, a small model'] if _form(entry, run) == 'smoke' else []
  if results['split'] != entry.full.eval.split:
    missing.append(f'on {results["split"]}')
  for what, count, split in (('training', results['num_train_images'], config.train.split),
                             (results['split'], results['num_images'], results['split'])):
    full = data.full_size(config, split)
    if count != full:
      missing.append(f'{count:,} of {full:,} {what} images' if full else f'{count:,} images of {split}')
  if not missing and results['step'] < entry.full.train.steps:
    missing.append(f'step {results["step"]:,} of {entry.full.train.steps:,}')
  if results.get('num_checkpoints', 1) != entry.row.num_checkpoints:
    missing.append(f'mean of {results.get("num_checkpoints", 1)} checkpoint(s), not {entry.row.num_checkpoints}')
  return missing


def _lines(entry: Entry, own: Sequence[Found]) -> Iterator[Line]:
  row = entry.row
  if row.config is None:
    yield {'row': row.model, 'published': row.published}
    return
  whole = [run for run in own if not _missing(entry, run)]
  for run in whole:
    yield _line(row.model, row.published, run, [])
  if not whole:
    yield {'row': row.model, 'published': row.published, 'ours': 'not run'}
  for run in own:
    if run not in whole:
      yield _line(f'{row.model}: not this row', '', run, _missing(entry, run))


def _line(name: str, published: str, run: Found, remarks: Sequence[str]) -> Line:
  results = run.results
  error = results['standard_error']
  return {
      'row': name,
      'published': published,
      'ours': f'{results["bits_per_dim"]:.4f}' + ('' if error is None else f' +- {error:.4f}'),
      'images': f'{results["num_images"]:,}',
      'training images': f'{results["num_train_images"]:,}',
      'steps': f'{results["step"]:,}',
      'parameters': f'{results["num_parameters"]:,}',
      'device': f'{results["num_devices"]} x {results["device_kind"]}',
      'hours': f'{results["training_seconds"] / 3600:.2f}',
      'commit': results['commit'] or '',
      'remarks': '; '.join([*remarks, *([f'seed {results["seed"]}'] if results['seed'] else [])]),
  }


def _sample_lines(entry: Entry, own: Sequence[Found]) -> Iterator[Line]:
  row, whole = entry.row, False
  for run in own:
    if run.samples is None:
      continue
    missing = _missing(entry, run)
    whole = whole or not missing
    for way, measures in run.samples.items():
      if way != 'bicubic' and not way.startswith('temperature '):
        continue
      temperature = way.removeprefix('temperature ')
      judges = '' if missing or way == 'bicubic' else row.judges.get(float(temperature), '')
      yield {
          'row': f'{row.table}: {row.model}' + (': not this row' if missing else ''),
          'temperature': temperature,
          'judges fooled, published': judges and f'{judges} %',
          **{title: f'{measures[name]["mean"]:.4f}'
             for title, name in (('consistency', 'consistency'), ('PSNR', 'psnr'), ('SSIM', 'ssim'))},
          'images': f'{run.samples["num_images"]:,}',
          'samples of each': '' if way == 'bicubic' else str(run.samples['num_samples']),
          'commit': run.samples['commit'] or '',
          'remarks': '; '.join(missing),
      }
  if not whole:
    for temperature, judges in row.judges.items():
      yield {'row': f'{row.table}: {row.model}', 'temperature': f'{temperature:g}',
             'judges fooled, published': f'{judges} %', 'remarks': 'not run'}


def _columns(name: str) -> Sequence[str]:
  return _SAMPLE_COLUMNS if name == 'Samples of super-resolution' else _COLUMNS


def _markdown(name: str, lines: Sequence[Line]) -> str:
  columns = _columns(name)
  table = [columns, ['---'] * len(columns), *([line.get(column, '') for column in columns] for line in lines)]
  return '\n'.join([f'### {name}', '', *('| ' + ' | '.join(cells) + ' |' for cells in table)])


def _csv(tables: Mapping[str, Sequence[Line]]) -> str:
  output = io.StringIO()
  columns = ['table', *dict.fromkeys(_COLUMNS + _SAMPLE_COLUMNS)]
  writer = csv.DictWriter(output, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows({'table': name, **line} for name, lines in tables.items() for line in lines)
  return output.getvalue().rstrip('\n')
