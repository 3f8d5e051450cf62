"""Trains, evaluates and samples Image Transformers.

  python main.py --config=configs/cifar10_2d.py [--workdir=DIR] [--config.FIELD=VALUE ...]
  python main.py --mode=eval --workdir=DIR
  python main.py --mode=sample --workdir=DIR --num_samples=100 --temperature=0.9
  python main.py --mode=complete --workdir=DIR --input=FILE_OR_FOLDER --keep=16
  python main.py --mode=superres --workdir=DIR --input=FILE_OR_FOLDER --temperature=1.0,0.9,0.8
  python main.py --mode=picture --workdir=DIR --kind=attention --position=16,16
  python main.py --mode=table --workdir=runs

A workdir that exists is gone on with. SIGTERM or SIGINT (Ctrl-C) stops the program after the step
in hand, with exit code 75: the same command goes on, and 0 means that it is finished. Later modes
read the run's configuration from its workdir; --config given as well must be the same run's, and
wins in fields that do not define the run. What is wrong with the input is said in one line, with
exit code 2.
"""

from collections.abc import Iterator
import io
import logging
import os
import re
import signal
import sys
from typing import Any
import zlib


def _stop_before_all(*_):
  os.write(2, b'Stopped before anything was done. The same command begins again.\n')
  os._exit(75)


if __name__ == '__main__':
  for signal_number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signal_number, _stop_before_all)
  # Before all that imports JAX.
  from image_transformer import process
  process.set_up()

from absl import app, flags
from etils import epath
import jax
from ml_collections import config_flags
import numpy as np

from configs import paper
from image_transformer import config as config_lib
from image_transformer import data, devices, pictures, runs, stopping, superres, tables
from image_transformer.config import check
from image_transformer.errors import InputError, RunError, last_line
from image_transformer.evaluate import make_evaluator
from image_transformer.inputs import read_inputs, read_labels
from image_transformer.metrics import Evaluation, unless_fuller, write_picture, write_results
from image_transformer.model import make_model, num_parameters
from image_transformer.sampling import class_rows, make_sampler, positions_in_rows
from image_transformer.train import Trainer, check_config, num_train_images
from image_transformer.workdir import write_whole

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment, such as configs/digits.py or its :smoke.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run. Default: runs/<name of the configuration>.')
_MODE = flags.DEFINE_string('mode', 'train', 'What to do: train, eval, sample, complete, superres, picture '
                            'or table.')
_AVERAGE = flags.DEFINE_integer('average_checkpoints', 1, 'Use the mean of the parameters of so many checkpoints, the '
                                'newest.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', None, 'How many images; of each input, where there are inputs. '
                                    'Default: sample.num_images; 4 of each input.')
_TEMPERATURE = flags.DEFINE_list('temperature', None, 'One, or several separated by commas. Default: '
                                 'sample.temperature.')
_LABELS = flags.DEFINE_list('labels', None, 'Classes, repeated to the number of images. Default: rows of each, or '
                            'those of the inputs.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the images drawn.')
_NPZ = flags.DEFINE_bool('npz', False, 'Also write all arrays as .npz.')
_INPUT = flags.DEFINE_string('input', None, 'An image or a folder of them. Default: the images of eval.split.')
_NUM_INPUTS = flags.DEFINE_integer('num_inputs', 8, 'The first so many inputs; 0: all.')
_KEEP = flags.DEFINE_integer('keep', None, 'How many rows of each input are given.')
_KIND = flags.DEFINE_string('kind', 'attention', 'Of picture: attention (what a position used), memory (what it may '
                            'see), bits (what pixels cost) or curves (bits/dim by step).')
_POSITION = flags.DEFINE_list('position', None, 'ROW,COLUMN of the pixel that looks. Default: the middle.')
_CSV = flags.DEFINE_bool('csv', False, 'As CSV, not Markdown.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'This is one of several processes; which one, a TPU pod, SLURM '
                                 'or Open MPI says.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'The same by hand: HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: which one this is, from 0.')

# Which flags a mode, or a kind of picture, reads, besides --workdir and those of several processes.
_FLAGS = {'train': ['config'], 'eval': ['config', 'average_checkpoints'], 'table': ['csv']}
_FLAGS['sample'] = [*_FLAGS['eval'], 'num_samples', 'temperature', 'labels', 'seed', 'npz']
_FLAGS['superres'] = [*_FLAGS['sample'], 'input', 'num_inputs']
_FLAGS['complete'] = [*_FLAGS['superres'], 'keep']
_FLAGS['picture --kind=attention'] = [*_FLAGS['eval'], 'kind', 'labels', 'input', 'position']
_FLAGS['picture --kind=memory'] = ['config', 'kind', 'position']
_FLAGS['picture --kind=bits'] = [*_FLAGS['eval'], 'kind', 'labels', 'input', 'num_inputs']
_FLAGS['picture --kind=curves'] = ['kind']


def train() -> None:
  workdir = _workdir()
  asked_for = _given_config() or runs.read_config(workdir)
  # Before data are prepared.
  check_config(asked_for)
  if jax.process_count() == 1:  # another process may have begun to write there already
    runs.check_workdir(workdir)
  config = data.with_stand_in(asked_for)
  if config.dataset != asked_for.dataset:
    print(f'{asked_for.dataset} is neither here nor to be had: training on generated images. This is no result.')
  trainer = Trainer(config, workdir)
  _print_note(config)
  with runs.own(workdir, config):
    evaluation = trainer.run()
    try:
      _report(config, config.train.steps, evaluation)
    except OSError as error:
      raise RunError(f'The results could not be written ({error}). Make room, then give the same command again.') \
          from error


def evaluate() -> None:
  run = _load()
  num_train_images(_workdir())  # a damaged file is not to cost the evaluation
  _print_note(run.config)
  source = data.open_split(run.config, run.config.eval.split)
  params = devices.replicate(run.variables['params'])
  evaluation = make_evaluator(run.model, run.config.eval.batch_size)(params, source, run.config.eval.num_images)
  _report(run.config, run.step, evaluation)


def _report(config: config_lib.Config, step: int, evaluation: Evaluation) -> None:
  workdir = _workdir()
  parts = [f'average{_AVERAGE.value}' if _AVERAGE.value > 1 else '', '' if _own_split(config) else config.eval.split]
  path = workdir / ('_'.join(filter(None, ['results', *parts])) + '.json')
  path = unless_fuller(path, step, evaluation.num_images,
                       path.with_name(f'{path.stem}_first{evaluation.num_images}.json'))
  write_results(path, config, num_parameters=num_parameters(make_model(config.model, data.image_spec(config))),
                step=step, evaluation=evaluation, num_train_images=num_train_images(workdir),
                num_checkpoints=_AVERAGE.value)
  print(f'{evaluation} of {config.dataset} {config.eval.split}, step {step}. In {workdir}: {path.name}')


def _own_split(config: config_lib.Config) -> bool:
  """Whether images are of the split on which the run in the workdir evaluates itself."""
  return config.eval.split == runs.read_config(_workdir()).eval.split


def _print_note(config: config_lib.Config) -> None:
  if data.note(config):
    print(data.note(config))


def sample() -> None:
  run = _load()
  check('low_res' not in run.model.conditions, '--mode', 'sample', 'superres: this model enlarges images')
  number = _NUM_SAMPLES.value or run.config.sample.num_images
  given, columns = class_rows(run.model, number)
  given = {**given, **read_labels(run, _LABELS.value, number)}
  draw = make_sampler(run.model, run.config.sample.batch_size)
  params = devices.replicate(run.variables['params'])
  for temperature in _temperatures(run):
    images, log_probs = draw(params, _SEED.value, number, given, temperature)
    picture = pictures.grid(images, run.model.spec.levels, columns)
    _write(run, '', temperature, picture, images=images, log_probs=log_probs, **given)


def complete() -> None:
  num_rows = _KEEP.value
  if num_rows is None:
    raise InputError('--keep is None, but must be the number of rows that are given.')
  run = _load()
  num_kept = positions_in_rows(run.model, num_rows)
  inputs = _inputs(run)
  check('image' in inputs, '--input', _INPUT.value, 'images of the size that the model generates, or larger')
  hidden = np.arange(run.model.spec.height)[:, None, None] >= num_rows
  shown = np.where(hidden, run.model.spec.levels // 4, inputs['image'])
  for temperature, samples, log_probs in _draw_of_each(run, inputs, num_kept):
    columns = [shown, *np.moveaxis(samples, 1, 0), inputs['image']]
    picture = pictures.strips(columns, run.model.spec.levels)
    _write(run, f'_keep{num_rows}', temperature, picture, samples=samples, log_probs=log_probs, **inputs)


def super_resolve() -> None:
  run = _load()
  check('low_res' in run.model.conditions, '--mode', 'superres', 'another: this model does not enlarge images')
  _print_note(run.config)
  inputs, levels = _inputs(run), run.model.spec.levels
  low_res, originals = inputs['low_res'], inputs.get('image')
  bicubic = superres.bicubic(low_res, *run.model.spec.shape[:2], levels)
  measures = {'bicubic': superres.measure(low_res, bicubic[:, None], originals, levels)}
  for temperature, samples, log_probs in _draw_of_each(run, inputs):
    measures[f'temperature {temperature:g}'] = superres.measure(low_res, samples, originals, levels)
    picture = superres.strips(low_res, samples, originals, levels)
    _write(run, '_superres', temperature, picture, samples=samples, log_probs=log_probs, **inputs)
  evaluation = None
  if originals is not None:
    elements = [dict(zip(inputs, values)) for values in zip(*inputs.values())]
    params = devices.replicate(run.variables['params'])
    evaluation = make_evaluator(run.model, run.config.eval.batch_size)(params, elements)
    print(f'{evaluation}, each given its small form')
  print(superres.table(measures))
  path = _path(run, '_superres', log_probs).with_suffix('.json')
  if not _INPUT.value and not _LABELS.value and _AVERAGE.value == 1 and _own_split(run.config):  # what the tables show
    path = unless_fuller(_workdir() / 'superres.json', run.step, len(samples), path, measures)
  superres.write_report(path, measures, evaluation, dataset=run.config.dataset, step=run.step,
                        num_checkpoints=_AVERAGE.value, source=_INPUT.value or run.config.eval.split,
                        labels=_LABELS.value, num_samples=samples.shape[1], seed=_SEED.value)
  print(f'Wrote {path}')


def picture() -> None:
  from image_transformer import figures  # here, since matplotlib takes a while and no other mode needs it
  kind, workdir = _KIND.value, _workdir()
  step, name = 0, kind
  if kind == 'curves':
    figure = figures.curves(figures.read_logs(workdir))
  elif kind == 'memory':  # of a run that need not have begun
    config = _given_config() or runs.read_config(workdir)
    model = make_model(config.model, data.image_spec(config))
    row, column = figures.read_position(_POSITION.value, model.spec)
    figure, name = figures.memory(model, row, column), f'{kind}_row{row}_column{column}'
  else:
    run = _load()
    step, inputs = run.step, _inputs(run)
    check('image' in inputs, '--input', _INPUT.value, 'images of the size that the model generates, or larger')
    name = f'{step:07d}_{kind}_{epath.Path(_INPUT.value).stem if _INPUT.value else run.config.eval.split}'
    if kind == 'bits':
      check(len(inputs['image']) <= 32, '--num_inputs', len(inputs['image']), 'at most 32: they stand side by side')
      figure, name = figures.bits_of_run(run, inputs), f'{name}_{len(inputs["image"])}'
    else:
      row, column = figures.read_position(_POSITION.value, run.model.spec)
      figure, name = figures.attention_of_run(run, inputs, row, column), f'{name}_row{row}_column{column}'
  drawn = figures.pixels(figure)
  path = workdir / 'pictures' / f'{name}.png'
  write_whole(path, pictures.png(drawn))
  if (workdir / 'config.json').exists():  # a run, not a folder of runs
    write_picture(workdir, step, kind, drawn)
  print(f'Wrote {path}')


def table() -> None:
  found = tables.collect(_workdir() if _WORKDIR.value else epath.Path('runs'))
  print(tables.render(paper.entries(), found, as_csv=_CSV.value))


def _load() -> runs.Run:
  check(0 < _AVERAGE.value < 2**31, '--average_checkpoints', _AVERAGE.value, 'in 1..2^31-1')
  check(0 <= _SEED.value < 2**32, '--seed', _SEED.value, 'in 0..2^32-1')
  check(_NUM_SAMPLES.value is None or 0 < _NUM_SAMPLES.value <= 10**6, '--num_samples', _NUM_SAMPLES.value,
        'in 1..1000000')
  check(_NUM_INPUTS.value >= 0, '--num_inputs', _NUM_INPUTS.value, '0 (all) or positive')
  check(_INPUT.value != '', '--input', '', 'a file or a folder')
  good = all(re.fullmatch(r'(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', word) and config_lib.positive_float(float(word))
             for word in _TEMPERATURE.value or ['1'])
  check(good and _TEMPERATURE.value != [], '--temperature', ','.join(_TEMPERATURE.value or ()),
        'one or more positive numbers, separated by commas')
  runs.read_config(_workdir())  # before data are prepared
  config = _given_config()
  return runs.load(_workdir(), config and data.with_stand_in(config), _AVERAGE.value)


def _inputs(run: runs.Run) -> dict[str, np.ndarray]:
  inputs = read_inputs(run, _INPUT.value, _NUM_INPUTS.value)
  inputs |= read_labels(run, _LABELS.value, len(next(iter(inputs.values()))))
  check('label' in inputs or 'label' not in run.model.conditions, '--labels', None, 'the classes of these images')
  return inputs


def _draw_of_each(run: runs.Run, inputs: dict[str, np.ndarray], num_kept: int = 0) -> Iterator[tuple]:
  """Yields temperature, samples [inputs, samples, H, W, C] and log-probabilities [inputs, samples]."""
  num_samples = _NUM_SAMPLES.value or 4
  draw = make_sampler(run.model, run.config.sample.batch_size, num_kept)
  params = devices.replicate(run.variables['params'])
  repeated = {name: np.repeat(values, num_samples, axis=0) for name, values in inputs.items()}
  given = {name: repeated[name] for name in run.model.conditions}
  number = len(next(iter(repeated.values())))
  for temperature in _temperatures(run):
    images, log_probs = draw(params, _SEED.value, number, given, temperature, repeated['image'] if num_kept else None)
    yield temperature, images.reshape(-1, num_samples, *images.shape[1:]), log_probs.reshape(-1, num_samples)


def _temperatures(run: runs.Run) -> list[float]:
  return [float(word) for word in _TEMPERATURE.value] if _TEMPERATURE.value else [run.config.sample.temperature]


def _path(run: runs.Run, kind: str, log_probs: np.ndarray) -> epath.Path:
  """A name for pictures that says what they depend on; of inputs it says their file's or folder's name."""
  source = epath.Path(_INPUT.value).stem if _INPUT.value else run.config.eval.split if kind else ''
  parts = [f'{run.step:07d}{kind}', source, 'x'.join(map(str, log_probs.shape)), f'seed{_SEED.value}']
  if _LABELS.value:
    labels = '-'.join(_LABELS.value)
    parts.append('labels' + (labels if len(labels) <= 40 else f'{zlib.crc32(labels.encode()):08x}'))
  if _AVERAGE.value > 1:
    parts.append(f'average{_AVERAGE.value}')
  return _workdir() / 'samples' / ('_'.join(filter(None, parts)) + '.png')


def _write(run: runs.Run, kind: str, temperature: float, picture: np.ndarray, **arrays: Any) -> None:
  path = _path(run, kind, arrays['log_probs'])
  path = path.with_name(f'{path.stem}_temperature{temperature:g}.png')
  write_whole(path, pictures.png(picture))
  print(f'Wrote {path}')
  if _NPZ.value:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_whole(path.with_suffix('.npz'), file.getvalue())
    print(f'Wrote {path.with_suffix(".npz")}')


def _given_config() -> config_lib.Config | None:
  return config_lib.from_dict(_CONFIG.value.to_dict()) if _CONFIG.value is not None else None


def _workdir() -> epath.Path:
  if _WORKDIR.value:
    check(not _WORKDIR.value.startswith('-'), '--workdir', _WORKDIR.value, 'a folder, not the next flag')
    check('\0' not in _WORKDIR.value, '--workdir', _WORKDIR.value, 'without null characters')
    path = epath.Path(_WORKDIR.value).expanduser()
    check(not str(path).startswith('~'), '--workdir', _WORKDIR.value, 'a path whose user exists')
    try:
      path.exists()
    except ImportError as error:
      raise InputError(f'--workdir={path} needs another package ({last_line(error)}): pip install '
                       "'image_transformer[gcs]' (s3fs for s3://).") from error
    return path
  if _CONFIG.value is None:
    raise InputError('Nothing to do: give --config=configs/NAME.py, or --workdir=DIR of a run.')
  name, _, variant = os.path.basename(config_flags.get_config_filename(flags.FLAGS['config'])).partition(':')
  return epath.Path('runs') / '_'.join([name.removesuffix('.py'), *filter(None, variant.split(','))])


_MODES = {'train': train, 'eval': evaluate, 'sample': sample, 'complete': complete, 'superres': super_resolve,
          'picture': picture, 'table': table}


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  stopping.listen()
  # Libraries print tracebacks of what is reported here in one line, such as a checkpoint that could not be saved.
  logging.disable(logging.ERROR)
  sys.unraisablehook = lambda unraisable: None
  app.define_help_flags()
  try:
    try:
      rest = flags.FLAGS(argv)
      # A file that could not be loaded shows only on use.
      check(_CONFIG.value is None or hasattr(_CONFIG.value, 'to_dict'), '--config', _CONFIG.value,
            'a file whose get_config() returns a ConfigDict')
    except InputError:
      raise
    except flags.UnrecognizedFlagError as error:
      hint = '; it needs --config=configs/NAME.py before it' if error.flagname.startswith('config.') else ''
      raise InputError(last_line(error) + hint) from error
    # Besides absl's own errors, ml_collections lets those of a missing or broken configuration
    # file and of an unknown or mistyped field through.
    except (flags.Error, OSError, ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(last_line(error)) from error
    except Exception as error:  # the file is a program, and can raise anything
      raise InputError(f'The file of --config is no configuration: {type(error).__name__}: {error}') from error
    if rest[1:]:
      raise InputError(f'Unexpected argument {rest[1]!r}; flags begin with --.')
    if _MODE.value not in _MODES:
      raise InputError(f'--mode is {_MODE.value!r}, but must be one of {", ".join(_MODES)}.')
    task = 'picture --kind=' + _KIND.value if _MODE.value == 'picture' else _MODE.value
    check(task in _FLAGS, '--kind', _KIND.value, 'attention, memory, bits or curves')
    for name in {name for names in _FLAGS.values() for name in names}.difference(_FLAGS[task]):
      if flags.FLAGS[name].present:
        readers = ', '.join(reader for reader, names in _FLAGS.items() if name in names)
        raise InputError(f'--{name} means nothing to --mode={task}; leave it out. It is for: {readers}.')
    if devices.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value):
      stopping.tell_others()
      if not devices.is_first():  # which speaks for all
        sys.stdout = open(os.devnull, 'w')
    _MODES[_MODE.value]()
  except (InputError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
    print(f'Error: {error}', file=sys.stderr)
    return 2
  except RunError as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print('Error: There is not enough memory. Raise train.accumulation, or lower train.batch_size, eval.batch_size or '
          'sample.batch_size, or set model.remat=True or model.dtype=bfloat16.', file=sys.stderr)
    return 1
  except stopping.Stopped as stopped:
    print(stopped, file=sys.stderr)
    return stopping.EXIT_CODE
  return 0


if __name__ == '__main__':
  exit_code = main(sys.argv)
  stopping.stop_listening()
  sys.exit(exit_code)
