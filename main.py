"""Trains, evaluates and samples Image Transformers.

  python main.py --config=configs/cifar10_2d.py [--workdir=DIR] [--config.FIELD=VALUE ...]
  python main.py --mode=eval --workdir=DIR
  python main.py --mode=sample --workdir=DIR --num_samples=100 --temperature=0.9

A workdir that exists is gone on with. Later modes read the run's configuration from its
workdir; --config given as well must be the same run's, and wins in fields that do not
define the run. What is wrong with the input is said in one line, with exit code 2.
"""

import math
import os
import re
import sys

# Read when a process or a library starts, so they come before everything else. In a log file,
# frequent progress bars would be all there is. On Linux the C library's allocator is told to
# use huge pages and to keep what it got: page faults slow a CPU run down.
os.environ.setdefault('TQDM_MININTERVAL', '0.2' if sys.stderr.isatty() else '20')
if __name__ == '__main__' and sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
  os.environ['GLIBC_TUNABLES'] = ':'.join(
      f'glibc.malloc.{setting}' for setting in ('hugetlb=1', 'mmap_max=0', 'trim_threshold=100000000000'))
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

from absl import app
from absl import flags
from absl import logging
from etils import epath
from ml_collections import config_flags
import numpy as np

from image_transformer import config as config_lib
from image_transformer import data, devices, pictures, runs
from image_transformer.config import check
from image_transformer.errors import InputError
from image_transformer.evaluate import make_evaluator
from image_transformer.metrics import Evaluation, write_results
from image_transformer.sampling import class_rows, make_sampler
from image_transformer.train import NonFiniteError, Trainer

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Experiment, such as configs/digits.py or its :smoke.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run. Default: runs/<name of the configuration>.')
_MODE = flags.DEFINE_string('mode', 'train', 'What to do: train, eval or sample.')
_NUM_SAMPLES = flags.DEFINE_integer('num_samples', None, 'sample: how many images. Default: sample.num_images.')
_TEMPERATURE = flags.DEFINE_float('temperature', None, 'sample: default sample.temperature.')
_LABELS = flags.DEFINE_list('labels', None, 'sample: classes, repeated to the number of images. Default: rows of each.')
_SEED = flags.DEFINE_integer('seed', 0, 'sample: of the images drawn.')
_NPZ = flags.DEFINE_bool('npz', False, 'sample: also write images, labels and log-probabilities as .npz.')


def train() -> None:
  workdir = _workdir()
  config = _given_config() or runs.read_config(workdir)
  trainer = Trainer(config, workdir)
  runs.write_config(workdir, config)
  evaluation = trainer.run()
  _report(workdir, runs.load(workdir, config), evaluation)


def evaluate() -> None:
  run = runs.load(_workdir(), _given_config())
  source = data.open_split(run.config.dataset, run.config.eval.split, run.config.data_dir)
  params = devices.replicate(run.variables['params'])
  evaluation = make_evaluator(run.model, run.config.eval.batch_size)(params, source, run.config.eval.num_images)
  _report(_workdir(), run, evaluation)


def _report(workdir: epath.Path, run: runs.Run, evaluation: Evaluation) -> None:
  train_source = data.open_split(run.config.dataset, run.config.train.split, run.config.data_dir)
  write_results(workdir, run.config, params=run.variables, step=run.step, num_train_images=len(train_source),
                evaluation=evaluation)
  print(f'{evaluation} of {run.config.dataset} {run.config.eval.split}, step {run.step}. In {workdir}: results.json')


def sample() -> None:
  run = runs.load(_workdir(), _given_config())
  number = run.config.sample.num_images if _NUM_SAMPLES.value is None else _NUM_SAMPLES.value
  temperature = run.config.sample.temperature if _TEMPERATURE.value is None else _TEMPERATURE.value
  check(number > 0, '--num_samples', number, 'positive')
  check(temperature > 0 and math.isfinite(temperature), '--temperature', temperature, 'positive')
  check(0 <= _SEED.value < 2**32, '--seed', _SEED.value, 'in 0..2^32-1')
  labels, columns = class_rows(run.model, number)
  if _LABELS.value is not None:
    labels = np.resize(_check_labels(run, _LABELS.value), number)
  draw = make_sampler(run.model, run.config.sample.batch_size)
  images, log_probs = draw(devices.replicate(run.variables['params']), _SEED.value, number, labels, temperature)
  path = _workdir() / 'samples' / f'{run.step:07d}_seed{_SEED.value}_temperature{temperature:g}.png'
  pictures.write_png(path, pictures.grid(images, run.model.spec.levels, columns))
  print(f'Wrote {path}')
  if _NPZ.value:
    arrays = {'images': images, 'log_probs': log_probs} | ({} if labels is None else {'labels': labels})
    with path.with_suffix('.npz').open('wb') as file:
      np.savez_compressed(file, **arrays)
    print(f'Wrote {path.with_suffix(".npz")}')


def _check_labels(run, words):
  classes = run.model.spec.num_classes
  check(run.model.config.class_conditional, '--labels', ','.join(words), 'absent: this model has no classes')
  good = words and all(re.fullmatch(r'\d+', word) and int(word) < classes for word in words)
  check(good, '--labels', ','.join(words), f'classes in 0..{classes - 1}, separated by commas')
  return [int(word) for word in words]


def _given_config() -> config_lib.Config | None:
  return config_lib.from_dict(_CONFIG.value.to_dict()) if _CONFIG.value is not None else None


def _workdir() -> epath.Path:
  if _WORKDIR.value:
    return epath.Path(_WORKDIR.value).expanduser()
  if _CONFIG.value is None:
    raise InputError('Nothing to do: give --config=configs/NAME.py, or --workdir=DIR of a run.')
  name = os.path.basename(config_flags.get_config_filename(flags.FLAGS['config']))
  return epath.Path('runs') / re.sub(r'\.py(:(.*))?$', lambda match: '_' + match[2] if match[2] else '', name)


def _last_line(error: Exception) -> str:
  """What an error says, without the traceback that ml_collections puts before it."""
  error = error.__cause__ or error
  text = str(error).replace('\\n', '\n').strip() or type(error).__name__
  return re.sub(r"^[\w.]*Error: |(?<=\?)['\"]$", '', text.splitlines()[-1].strip())


_MODES = {'train': train, 'eval': evaluate, 'sample': sample}


def main(argv: list[str]) -> int:
  """Runs the program; returns its exit code."""
  logging.set_verbosity(logging.ERROR)
  app.define_help_flags()
  try:
    try:
      rest = flags.FLAGS(argv)
      _CONFIG.value and _CONFIG.value.keys()  # a file that could not be loaded shows only on use
    except InputError:
      raise
    # Besides absl's own errors, ml_collections lets those of a missing or broken configuration
    # file and of an unknown or mistyped field through.
    except (flags.Error, OSError, ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(_last_line(error)) from error
    if rest[1:]:
      raise InputError(f'Unexpected argument {rest[1]!r}; flags begin with --.')
    if _MODE.value not in _MODES:
      raise InputError(f'--mode is {_MODE.value!r}, but must be one of {", ".join(_MODES)}.')
    _MODES[_MODE.value]()
  except (InputError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
    print(f'Error: {error}', file=sys.stderr)
    return 2
  except NonFiniteError as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('Interrupted. The same command goes on from the last checkpoint.', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
