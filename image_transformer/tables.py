"""The paper's tables, with measured results beside the published ones.

A run appears in a row only if it has the row's configuration and was trained on all of the data
for all of the steps, and evaluated on all of the test images. Any other run gets a line that says
what is missing; a run on generated images gets none. Runs that are in no row come first.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import io
from typing import Any, NamedTuple

from etils import epath

from image_transformer import data, reports, runs
from image_transformer.config import Config
from image_transformer.errors import InputError, one_line
from image_transformer.paths import as_path

_OTHERS, _SAMPLES = 'Other runs', 'Samples of super-resolution'

Line = dict[str, Any]  # column -> its content; numbers stay numbers

_MEASURES = dict(zip(('consistency', 'PSNR', 'SSIM'), reports.MEASURES))
_COLUMNS = ('row', 'published', 'ours', 'standard error', 'images', 'training images', 'steps', 'parameters', 'device',
            'hours', 'commit', 'remarks')
_SAMPLE_COLUMNS = ('row', 'temperature', 'judges fooled', *_MEASURES, 'images', 'samples of each', 'commit', 'remarks')


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the paper's tables. Without a configuration, it is another paper's model, for comparison."""

  table: str
  model: str
  published: str  # bits/dim; '' where there is no number
  config: str | None = None  # what is typed after `configs/`
  num_checkpoints: int = 1  # over how many checkpoints parameters are averaged
  # Super-resolution: % of human judges fooled by samples, by temperature ('' where there is none).
  judges: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Entry(NamedTuple):
  """A row and its runs."""

  row: Row
  configs: Mapping[str, Config]  # of its run, 'full' and 'smoke', its small form; none for others' models


class Found(NamedTuple):
  """The reports of an evaluated run."""

  folder: epath.Path
  config: Config
  results: dict[str, Any]  # results.json
  samples: dict[str, Any] | None  # superres.json


class Damaged(NamedTuple):
  """A run that cannot be read."""

  folder: epath.Path
  reason: str


def collect(folder: epath.PathLike) -> list[Found | Damaged]:
  """Reads every results.json below a folder, with the files beside it.

  Raises:
    InputError: if there is no such folder.
  """
  folder = as_path(folder)
  if not folder.is_dir():
    raise InputError(f'There is no folder {folder}: the workdir must hold the folders of runs.')
  all_found: list[Found | Damaged] = []
  for path in sorted(path for path, _, names in folder.walk() if any(map(reports.is_results, names))):
    try:
      config = runs.read_config(path)
      data.image_spec(config)  # a dataset may be known to another version only
      all_found += [Found(path, config, *found) for found in reports.read_reports(path)]
    except InputError as error:
      all_found.append(Damaged(path, str(error)))
  return all_found


def render(entries: Sequence[Entry], found: Sequence[Found | Damaged], as_csv: bool = False,
           only_runs: bool = False) -> str:
  """The tables as Markdown, or all in one as CSV; `only_runs` leaves out rows without a run."""
  damaged = [run for run in found if isinstance(run, Damaged)]
  evaluated = [run for run in found if isinstance(run, Found)]
  real = [run for run in evaluated if not data.is_stand_in(run.config)]
  tables: dict[str, list[Line]] = {_OTHERS: []}
  others = list(real)
  samples: list[Line] = []
  for entry in entries:
    own = [run for run in real if _form(entry, run)]
    if only_runs and not own:
      continue
    others = [run for run in others if run not in own]
    tables.setdefault(entry.row.table, []).extend(_lines(entry, own))
    samples.extend(_sample_lines(entry, own))
  tables[_OTHERS] = [_line(str(run.folder), '', run, [run.config.dataset, *_parts(run)]) for run in others]
  tables[_OTHERS] += [{'row': str(run.folder), 'remarks': run.reason} for run in damaged]
  tables[_SAMPLES] = samples
  tables = {name: lines for name, lines in tables.items() if lines}
  if as_csv:
    return _csv(tables)
  sections = [_markdown(name, lines) for name, lines in tables.items()]
  left_out = dict.fromkeys(str(run.folder) for run in evaluated if run not in real)
  if left_out:
    sections.append(f'Left out, because they saw generated images: {", ".join(left_out)}.')
  return '\n\n'.join(sections) or 'No runs have been evaluated.'


def _form(entry: Entry, run: Found) -> str | None:
  """'full' or 'smoke' if the run has the row's configuration in that form (with any seed)."""
  for form, config in entry.configs.items():
    if not set(runs.differences(run.config, config)) - {'seed'}:
      return form
  return None


def _missing(entry: Entry, run: Found) -> list[str]:
  """Why the number of a run with the row's configuration, in either form, is not the row's."""
  results, full, form = run.results, entry.configs['full'], _form(entry, run)
  assert form, 'only runs with the configuration of the row come here'
  missing = [':smoke, a small model'] if form == 'smoke' else []
  if run.config.model.likelihood != full.model.likelihood:
    missing.append(f'likelihood {run.config.model.likelihood}')
  if results['split'] != full.eval.split:
    missing.append(f'on {results["split"]}')
  missing += _parts(run)
  steps = entry.configs[form].train.steps
  if results['step'] != steps:
    missing.append(f'step {results["step"]:,}, not {steps:,}')
  if results["num_checkpoints"] != entry.row.num_checkpoints:
    missing.append(f'mean of {results["num_checkpoints"]} checkpoint(s), not {entry.row.num_checkpoints}')
  return missing


def _parts(run: Found) -> list[str]:
  """The splits of which only a part was used."""
  results, parts = run.results, []
  for what, count, split in (('training', results['num_train_images'], run.config.train.split),
                             (results['split'], results['num_images'], results['split'])):
    full = data.full_size(run.config, split)
    if count is None or count != full:
      number = 'an unknown number' if count is None else f'{count:,}'
      parts.append(f'{number} of {full:,} {what} images' if full else f'{number} of images of {split}')
  return parts


def _lines(entry: Entry, own: Sequence[Found]) -> Iterator[Line]:
  row = entry.row
  if row.config is None:
    if row.published:
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
  about = [f'mean of {results["num_checkpoints"]} checkpoints'] if results["num_checkpoints"] > 1 else []
  about += [f'seed {results["seed"]}'] if results['seed'] else []
  return {
      'row': name,
      'published': published,
      'ours': results['bits_per_dim'],
      'standard error': results['standard_error'],
      'images': results['num_images'],
      'training images': results['num_train_images'],
      'steps': results['step'],
      'parameters': results['num_parameters'],
      'device': f'{results["num_devices"]} x {results["device_kind"]}',
      'hours': round(results['training_seconds'] / 3600, 2),
      'commit': results['commit'],
      'remarks': '; '.join([*remarks, *about]),
  }


def _sample_lines(entry: Entry, own: Sequence[Found]) -> Iterator[Line]:
  name = f'{entry.row.table}: {entry.row.model}'
  for temperature, judges in entry.row.judges.items():
    yield {'row': f'{name}, published', 'temperature': temperature, 'judges fooled': f'{judges} %'}
  for run in own:
    samples, missing = run.samples, _missing(entry, run)
    if samples is None:
      continue
    if samples['source'] != run.results['split']:
      missing.append(f'images of {samples["source"]}')
    if samples['num_images'] != run.results['num_images']:
      missing.append(f'the first {samples["num_images"]:,} images only')
    if samples["num_checkpoints"] != entry.row.num_checkpoints:
      missing.append(f'mean of {samples["num_checkpoints"]} checkpoint(s), not {entry.row.num_checkpoints}')
    if samples['step'] != run.results['step']:  # drawn before training was resumed
      missing.append(f'samples of step {samples["step"]:,}')
    for way in reports.ways(samples):
      yield {
          'row': name if not missing else f'{name}: not this row',
          'temperature': way.rpartition(' ')[2],
          **{title: samples[way][measure]['mean'] for title, measure in _MEASURES.items()},
          'images': samples['num_images'],
          'samples of each': None if way == 'bicubic' else samples['num_samples'],
          'commit': samples['commit'],
          'remarks': '; '.join(missing),
      }


def _markdown(name: str, lines: Sequence[Line]) -> str:
  """A table whose columns are aligned, for terminals; empty ones are left out."""
  cells = {column: [_cell(line.get(column)) for line in lines]
           for column in (_SAMPLE_COLUMNS if name == _SAMPLES else _COLUMNS)}
  padded = []
  for title, column in cells.items():
    if any(column):
      width = max(map(len, [title, *column]))
      padded.append([title.ljust(width), '-' * width, *(cell.ljust(width) for cell in column)])
  return '\n'.join([f'### {name}', '', *('| ' + ' | '.join(row) + ' |' for row in zip(*padded))])


def _cell(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.4f}'
  return '' if value is None else f'{value:,}' if isinstance(value, int) else one_line(value)


def _csv(tables: Mapping[str, Sequence[Line]]) -> str:
  output = io.StringIO()
  columns = ['table', *dict.fromkeys(_COLUMNS + _SAMPLE_COLUMNS)]
  writer = csv.DictWriter(output, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows({'table': name, **line} for name, lines in tables.items() for line in lines)
  return output.getvalue().rstrip('\n')
