"""The program as a user meets it: train, eval and sample end to end, and what it says to bad input."""

import json
import multiprocessing
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import main as program
from configs import paper
from image_transformer import data
from image_transformer.errors import InputError
from image_transformer.model import make_model

ROOT = pathlib.Path(__file__).parent.parent
TINY = ['--config=configs/digits.py', '--config.model.num_layers=1', '--config.model.hidden_size=16',
        '--config.model.num_heads=2', '--config.model.ffn_size=16', '--config.train.steps=3',
        '--config.train.batch_size=8', '--config.train.sample_every=0', '--config.eval.num_images=20',
        '--config.sample.num_images=10', '--config.sample.batch_size=10']


# Flags can be parsed only once in a process; a fork server makes new ones that have imported everything.
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(['main'])


def _run_program(arguments, output):
  os.chdir(ROOT)
  with open(output, 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.argv = ['main.py', *arguments]  # where ml_collections looks for --config.FIELD
  sys.exit(program.main(sys.argv))


@pytest.fixture
def call(tmp_path):
  """Runs main with these arguments: its exit code, and all it printed."""

  def run(*arguments):
    output = tmp_path / 'output'
    process = _FORKS.Process(target=_run_program, args=(arguments, output))
    process.start()
    process.join(60)
    text = output.read_text()
    output.unlink()
    return process.exitcode, text

  return run


def test_train_eval_and_sample_from_the_command_line(tmp_path):
  def run(*arguments):
    done = subprocess.run([sys.executable, 'main.py', *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  workdir = tmp_path / 'run'
  printed = run(*TINY, f'--config.data_dir={tmp_path / "data"}', f'--workdir={workdir}')
  results = json.loads((workdir / 'results.json').read_text())
  assert f'{results["bits_per_dim"]:.4f} +- {results["standard_error"]:.4f} bits/dim on 20 images' in printed
  assert results['num_images'] == 20 and results['step'] == 3 and results['training_seconds'] > 0
  assert (workdir / 'checkpoints' / '3').exists()
  assert Image.open(workdir / 'samples' / '0000003.png').size[1] > 500
  trained = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert trained['split'] == 'test' and trained['bits_per_dim'] == results['bits_per_dim']

  (workdir / 'results.json').unlink()
  run('--mode=eval', f'--workdir={workdir}')
  again = json.loads((workdir / 'results.json').read_text())
  assert again['bits_per_dim'] == pytest.approx(results['bits_per_dim'], abs=1e-6)

  run('--mode=sample', f'--workdir={workdir}', '--num_samples=7', '--temperature=0.5', '--labels=3,4', '--seed=2',
      '--npz')
  drawn = np.load(workdir / 'samples' / '0000003_labels3-4_seed2_temperature0.5.npz')
  assert drawn['images'].shape == (7, 8, 8, 1) and drawn['images'].max() <= 16
  assert drawn['label'].tolist() == [3, 4, 3, 4, 3, 4, 3] and (drawn['log_probs'] < 0).all()


@pytest.mark.parametrize('arguments, names', [
    ([], '--config'),
    (['--bogus=1'], 'bogus'),
    (['configs/digits.py'], 'configs/digits.py'),
    (['--mode=fly', '--config=configs/digits.py'], 'fly'),
    (['--config=configs/nothing.py'], 'configs/nothing.py'),
    (['--config=configs/digits.py:tiny'], ':tiny'),
    (['--config=configs/digits.py', '--config.model.num_layer=3'], 'num_layers'),
    (['--config=configs/digits.py', '--config.model.num_layers=three'], 'num_layers'),
    (['--config=configs/digits.py', '--config.model.num_heads=5'], 'model.num_heads'),
    (['--config=configs/digits.py', '--config.model.query_block=(99,)'], 'model.query_block'),
    (['--config=configs/digits.py', '--config.model.query_block=(4, 4)'], 'model.memory_flange'),
    (['--config=configs/digits.py', '--config.model.likelihood=normal'], 'model.likelihood'),
    (['--config=configs/digits.py', '--config.dataset=digit'], 'digits'),
    (['--config=configs/digits.py', '--config.eval.split=tset'], 'tset'),
    (['--config=configs/digits.py', '--config.eval.num_images=298'], 'eval.num_images'),
    (['--config=configs/digits.py', '--config.sample.temperature=0.0'], 'sample.temperature'),
    (['--config=configs/digits.py', '--config.optimizer.learning_rate=-1.0'], 'optimizer.learning_rate'),
    (['--config=configs/digits.py', '--config.train.accumulation=7'], 'train.batch_size'),
    (['--mode=eval', '--workdir=nowhere'], 'nowhere'),
    (['--mode=sample', '--workdir=nowhere', '--temperature=warm'], 'temperature'),
])
def test_bad_input_is_one_line_and_leaves_nothing(call, tmp_path, arguments, names):
  workdir = tmp_path / 'run'
  if arguments and not any(argument.startswith('--workdir') for argument in arguments):
    arguments = [*arguments, f'--workdir={workdir}']
  if any(argument.startswith('--config=configs/digits') for argument in arguments):
    arguments = [*arguments, f'--config.data_dir={tmp_path / "data"}']
  if names == '--config':
    arguments = []
  code, printed = call(*arguments)
  assert code == 2
  last = printed.strip().splitlines()[-1]
  assert last.startswith('Error: ') and names in last and 'Traceback' not in printed
  assert not workdir.exists()


def test_a_file_is_no_workdir(call, tmp_path):
  (tmp_path / 'file').write_text('')
  for arguments in (['--mode=eval'], ['--config=configs/digits.py', f'--config.data_dir={tmp_path / "data"}']):
    code, printed = call(*arguments, f'--workdir={tmp_path / "file"}')
    assert code == 2 and 'Traceback' not in printed


def test_a_folder_that_is_not_a_run_is_left_alone(call, tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  code, printed = call('--config=configs/digits.py', f'--config.data_dir={tmp_path / "data"}', f'--workdir={tmp_path}')
  assert code == 2 and 'not empty' in printed
  assert sorted(path.name for path in tmp_path.iterdir()) in (['data', 'thesis.tex'], ['thesis.tex'])


CONFIGS = sorted({path.name for path in (ROOT / 'configs').glob('*.py')} - {'__init__.py', 'base.py', 'paper.py'} |
                 {row.config for row in paper.ROWS if row.config})


@pytest.mark.parametrize('name', CONFIGS)
def test_every_configuration_is_valid(name):
  small_name = paper.smoke(f'{name}:8' if name == 'cifar10_blocks.py' else name)
  full, small = paper.load(name), paper.load(small_name)
  assert not full.stand_in and full.model.hidden_size > small.model.hidden_size or full.dataset == 'digits'
  assert small.train.steps <= 10_000 and small.model.hidden_size <= 128
  for config in (full, small):
    make_model(config.model, data.image_spec(config))


@pytest.mark.parametrize('name', ['cifar10_1d.py:tiny', 'cifar10_blocks.py:0', 'cifar10_blocks.py:x,smoke'])
def test_unknown_arguments_of_configurations_are_refused(name):
  with pytest.raises(InputError, match='cifar10_blocks.py|:smoke'):
    paper.load(name)
