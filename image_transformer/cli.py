"""Trains, evaluates and samples Image Transformers.

  python main.py --config=configs/cifar10_2d.py [--workdir=DIR] [--config.FIELD=VALUE ...]
  python main.py --mode=eval --workdir=DIR
  python main.py --mode=sample --workdir=DIR --num_samples=100 --temperature=0.9
  python main.py --mode=complete --workdir=DIR --input=FILE_OR_FOLDER --keep=16
  python main.py --mode=superres --workdir=DIR --input=FILE_OR_FOLDER --temperature=1.0,0.9,0.8
  python main.py --mode=picture --workdir=DIR --kind=attention --position=16,16
  python main.py --mode=compress --workdir=DIR --input=FILE_OR_FOLDER --output=FILE
  python main.py --mode=decompress --workdir=DIR --input=FILE --output=FOLDER
  python main.py --mode=score --workdir=DIR --input=FILE_OR_FOLDER
  python main.py --mode=export --workdir=DIR --output=FOLDER
  python main.py --mode=study --workdir=DIR --output=FOLDER, and --mode=study --analyse=FOLDER/answers
  python main.py --mode=table --workdir=runs

Once installed, `image-transformer` is the same program, and takes the configurations that come with it by name
(--config=cifar10_2d:smoke). The same command resumes a run in a workdir that exists. SIGTERM, SIGINT (Ctrl-C) or
SIGHUP stops the program after the current step, with exit code 75; 0 means that it is finished. The other modes read
the run's configuration from its workdir; a --config given as well must be of the same run, and overrides fields
that do not define the run. Bad input is reported in one line, with exit code 2.
"""

import logging
import os
import re
import sys

from absl import flags
from etils import epath
import jax
from ml_collections import config_flags

from image_transformer import config as config_lib
from image_transformer import data, devices, experiments, reports, runs, stopping, tables, tasks, weights
from image_transformer.config import check
from image_transformer.configs import paper
from image_transformer.errors import InputError, RunError, last_line
from image_transformer.library import Run, load
from image_transformer.paths import as_path
from image_transformer.training import dry_run, train

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment, such as configs/digits.py[:smoke].')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run. Default: runs/<name of the configuration>.')
_MODE = flags.DEFINE_string('mode', 'train', 'train, eval, or another of those above.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the model, the data and what a step costs, and do nothing else.')
_AVERAGE = flags.DEFINE_integer('average_checkpoints', 1, 'Use the mean of the parameters of the newest N checkpoints.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', None, 'How many images to draw; per input, if there are inputs. '
                                    'Default: sample.num_images, or 4 per input.')
_TEMPERATURE = flags.DEFINE_list('temperature', None, 'One or more, by commas. Default: sample.temperature.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the images drawn; that of training is config.seed.')
_NPZ = flags.DEFINE_bool('npz', False, 'Also write all arrays as .npz.')
_INPUT = flags.DEFINE_string('input', None, 'An image file or a folder. Default: the images of eval.split.')
_OUTPUT = flags.DEFINE_string('output', None, 'The file or folder to write.')
_NO_VERIFY = flags.DEFINE_bool('no_verify', False, 'Skip the verification, which decompresses the result.')
_NUM_INPUTS = flags.DEFINE_integer('num_inputs', None, 'How many inputs to use, from the first; 0: all. Default: 8, '
                                   'all to compress and score, 54 for a study.')
_KEEP = flags.DEFINE_integer('keep', None, 'How many rows of each input to keep, or frames of a video.')
_KIND = flags.DEFINE_string('kind', 'attention', 'The picture: attention (of one position), memory (what it may attend '
                            'to), bits (of each pixel) or curves (bits/dim by step).')
_POSITION = flags.DEFINE_list('position', None, 'ROW,COLUMN[,FRAME] of the query pixel. Default: the middle.')
_FORM = flags.DEFINE_string('form', 'choice', 'The study: choice (of two images) or single (real or not).')
_ANALYSE = flags.DEFINE_list('analyse', None, 'Files or folders of answers to a study.')
_CSV = flags.DEFINE_bool('csv', False, 'CSV instead of Markdown.')
_ALL = flags.DEFINE_bool('all', False, "All rows of the paper's tables, also those without a run.")
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Run as one of several processes, set up by a TPU pod, SLURM or '
                                 'Open MPI.')
_COORDINATOR = flags.DEFINE_string('coordinator', None, 'The same, set by hand: HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: the number of processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: the index of this process, from 0.')
_CONDITIONS = [flags.DEFINE_multi_string(name, None, text) for name, text in tasks.FLAGS.items()]

# Which flags each mode or kind of picture reads, besides --workdir and those for several processes.
_TYPED = list(tasks.FLAGS)
_FLAGS = {'train': ['config', 'dry_run'], 'eval': ['config', 'average_checkpoints'], 'table': ['csv', 'all']}
_FLAGS['sample'] = [*_FLAGS['eval'], 'num_samples', 'temperature', *_TYPED, 'seed', 'npz']
_FLAGS['superres'] = [*_FLAGS['sample'], 'input', 'num_inputs']
_FLAGS['complete'] = [*_FLAGS['superres'], 'keep']
_FLAGS['score'] = [*_FLAGS['eval'], *(flag for flag in _TYPED if flag != 'labels'), 'input', 'num_inputs']
_FLAGS['compress'] = [*_FLAGS['score'], 'labels', 'output', 'no_verify']
_FLAGS['decompress'] = [*_FLAGS['eval'], 'input', 'output']
_FLAGS['export'] = [*_FLAGS['eval'], 'output']
_FLAGS['study'] = [*_FLAGS['score'], 'labels', 'temperature', 'seed', 'output', 'form', 'analyse']
_FLAGS['picture --kind=attention'] = [*_FLAGS['eval'], 'kind', *_TYPED, 'input', 'position']
_FLAGS['picture --kind=memory'] = ['config', 'kind', 'position']
_FLAGS['picture --kind=bits'] = [*_FLAGS['eval'], 'kind', *_TYPED, 'input', 'num_inputs']
_FLAGS['picture --kind=curves'] = ['kind']
_AS_FLAG = {'rows': '--keep', 'num_checkpoints': '--average_checkpoints', **{name: f'--{name}' for name in (
    'mode', 'position', 'num_inputs', 'num_samples', 'seed', 'input', 'output', 'form', 'temperature', 'coordinator',
    'num_processes', 'process_id', *_TYPED)}}


def _train() -> None:
  given = _given_config() or runs.read_config(_workdir()), _workdir()
  print(dry_run(*given)) if _DRY_RUN.value else train(*given)


def _eval() -> None:
  run = _load()
  reports.write_evaluation(run, run.evaluate(), run.config.eval.split)


def _picture() -> None:
  words = _POSITION.value
  check(words is None or len(words) in (2, 3) and all(re.fullmatch(r'\d{1,9}', word) for word in words), 'position',
        ','.join(words or ()), 'ROW,COLUMN, or ROW,COLUMN,FRAME of a video')
  position = [*map(int, words)] if words else None
  if _KIND.value == 'curves':
    tasks.show_curves(_workdir())
  elif _KIND.value == 'memory':
    tasks.show_memory(_given_config() or runs.read_config(_workdir()), _workdir(), position)
  else:
    _task().show(_KIND.value, position)


def _table() -> None:
  found = tables.collect(_workdir() if _WORKDIR.value else epath.Path('runs'))
  print(tables.render(paper.entries(), found, as_csv=_CSV.value, only_runs=not _ALL.value))


_MODES = {'train': _train, 'eval': _eval, 'sample': lambda: _task().sample(), 'picture': _picture, 'table': _table,
          'complete': lambda: _task().complete(_KEEP.value), 'superres': lambda: _task().enlarge(),
          'compress': lambda: _task().compress(_OUTPUT.value or '', not _NO_VERIFY.value),
          'decompress': lambda: _task().decompress(_OUTPUT.value or ''), 'score': lambda: _task().score(),
          'export': lambda: _task().export(_OUTPUT.value or ''), 'study': lambda: tasks.analyse_study(_ANALYSE.value)
                    if _ANALYSE.value else _task().study(_OUTPUT.value or '', _FORM.value)}


def _load() -> Run:
  check(0 < _AVERAGE.value < 2**31, 'num_checkpoints', _AVERAGE.value, 'in 1..2^31-1')
  runs.read_config(_workdir())  # before data are prepared
  runs.read_trained_on(_workdir())  # so that a damaged file fails before the slow part
  config = _given_config()
  run = load(_workdir(), config and data.with_stand_in(config), _AVERAGE.value)
  # Where files are given, the data set need not be there.
  if _MODE.value in ('eval', 'superres') and not _INPUT.value and data.note(run.config):
    print(data.note(run.config))
  return run


def _task() -> tasks.Task:
  words = _TEMPERATURE.value
  good = words is None or words and all(re.fullmatch(r'(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', word) and
                                        config_lib.positive_float(float(word)) for word in words)
  check(good, 'temperature', ','.join(words or ()), 'one or more positive numbers, separated by commas')
  tasks.check_choices(_INPUT.value, _NUM_INPUTS.value, _NUM_SAMPLES.value, _SEED.value)
  typed = {flag.name: tasks.split(flag.name, flag.value) for flag in _CONDITIONS if flag.value is not None}
  return tasks.Task(_load(), typed, _INPUT.value, _NUM_INPUTS.value, _NUM_SAMPLES.value, [*map(float, words or ())],
                    _SEED.value, _NPZ.value)


def _given_config() -> config_lib.Config | None:
  return config_lib.from_dict(_CONFIG.value.to_dict()) if _CONFIG.value is not None else None


def _workdir() -> epath.Path:
  if _WORKDIR.value:
    check(not _WORKDIR.value.startswith('-'), '--workdir', _WORKDIR.value, 'a folder, not the next flag')
    training = _MODE.value == 'train'  # which takes no such folder
    return as_path(_WORKDIR.value if training else weights.place(_WORKDIR.value), '--workdir')
  if _CONFIG.value is None:
    raise InputError('Nothing to do: give --config=configs/NAME.py, or --workdir=DIR of a run.')
  name, _, variant = os.path.basename(config_flags.get_config_filename(flags.FLAGS['config'])).partition(':')
  return epath.Path('runs') / '_'.join([name.removesuffix('.py'), *filter(None, variant.split(','))])


def _parse(argv: list[str]) -> None:
  """Reads flags; a configuration may be given by its name.

  Raises:
    InputError: if they are not valid.
  """
  for i, (before, word) in enumerate(zip(argv, argv[1:]), 1):
    field = re.match(r'--?config\.([\w.]+)', word)
    if field and field[1] not in config_lib.fields():
      raise config_lib.unknown_field(field[1])
    named = re.fullmatch(r'(--?config=)?([\w-]+)(:.*)?', word)
    if named and (named[1] or before in ('--config', '-config')) and not os.path.isfile(named[2]):
      argv = [*argv[:i], f'{named[1] or ""}{experiments.find(named[2])}{named[3] or ""}', *argv[i + 1:]]
  try:
    rest = flags.FLAGS(argv)
    # A file that could not be loaded is detected only on use.
    check(_CONFIG.value is None or hasattr(_CONFIG.value, 'to_dict'), '--config', _CONFIG.value,
          'a file whose get_config() returns a ConfigDict')
  except InputError:
    raise
  except flags.UnrecognizedFlagError as error:
    hint = '; it needs --config=configs/NAME.py before it' if error.flagname.startswith('config.') else ''
    raise InputError(last_line(error) + hint) from error
  # Besides absl's own errors, ml_collections passes on those of a missing or broken
  # configuration file and of a mistyped field.
  except (flags.Error, OSError, ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(last_line(error)) from error
  except Exception as error:  # the file is a program, and can raise anything
    raise InputError(f'The file of --config is not a configuration: {type(error).__name__}: {error}') from error
  if rest[1:]:
    raise InputError(f'Unexpected argument {rest[1]!r}; flags begin with --.')
  check(_MODE.value in _MODES, 'mode', _MODE.value, f'one of {", ".join(_MODES)}')
  task = f'picture --kind={_KIND.value}' if _MODE.value == 'picture' else _MODE.value
  check(task in _FLAGS, '--kind', _KIND.value, 'attention, memory, bits or curves')
  for name in {name for names in _FLAGS.values() for name in names}.difference(_FLAGS[task]):
    if flags.FLAGS[name].present:
      readers = ', '.join(reader for reader, names in _FLAGS.items() if name in names)
      raise InputError(f'--{name} means nothing to --mode={task}; leave it out. It is for: {readers}.')


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  if {'--help', '-help', '-h', '--helpfull'} & set(argv[1:]):
    print(__doc__ + '\nFlags:\n')
    for flag in flags.FLAGS.get_flags_for_module(__name__):
      print(f'  --{flag.name}: {flag.help} [{flag.default}]')
    return 0
  stopping.listen()
  # Libraries print tracebacks for errors that are reported here in one line, such as a failed checkpoint.
  logging.disable(logging.ERROR)
  sys.unraisablehook = lambda unraisable: None
  try:
    _parse(argv)
    if devices.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value):
      stopping.tell_others()
      if not devices.is_first():  # the first one prints for all
        sys.stdout = open(os.devnull, 'w')
    with devices.settings():
      _MODES[_MODE.value]()
  except (InputError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
    # Messages name the library's parameters; the user knows them as flags.
    return _end(re.sub(r'^(\w+)(?= is )', lambda name: _AS_FLAG.get(name[1], name[1]), str(error)), 2)
  except RunError as error:
    return _end(error, 1)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return _end('There is not enough memory. Raise train.accumulation, or lower train.batch_size, eval.batch_size or '
                'sample.batch_size, or set model.remat=True or model.dtype=bfloat16.', 1)
  except (RuntimeError, AssertionError, AttributeError):  # the last with python -O
    if devices.available():
      raise
    return _end(f'JAX has no devices of JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")} here: set it to what this '
                'machine has, such as cpu, or unset it.', 2)
  except stopping.Stopped as stopped:
    print(stopped, file=sys.stderr)
    return stopping.EXIT_CODE
  return 0


def _end(error: object, exit_code: int) -> int:
  print(f'Error: {error}', file=sys.stderr)
  return exit_code
