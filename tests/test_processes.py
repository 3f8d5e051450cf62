"""Several processes on this machine do what one does, and a run goes from one to several and back."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

from etils import epath
import numpy as np
import pytest

from image_transformer import data, devices, library, metrics
from image_transformer.checkpoints import saved_steps
from image_transformer.config import Config
from image_transformer.sampling import make_sampler

ROOT = pathlib.Path(__file__).parent.parent
FIELDS = {'model.num_layers': 1, 'model.hidden_size': 16, 'model.num_heads': 2, 'model.ffn_size': 16,
          'model.dropout': 0.1, 'train.batch_size': 8, 'train.steps': 12, 'train.log_every': 1, 'train.flip': True,
          'train.checkpoint_every': 3, 'train.keep_checkpoints': 4, 'train.eval_every': 6, 'train.sample_every': 0,
          'optimizer.schedule': 'rsqrt', 'eval.num_images': 33, 'eval.num_images_during_training': 20,
          'eval.batch_size': 8, 'sample.num_images': 5, 'sample.batch_size': 4}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Prepared once, so that processes that begin together find it."""
  folder = tmp_path_factory.mktemp('data')
  data.open_split(Config(dataset='digits', data_dir=str(folder)), 'train')
  return folder


def launch(*arguments, processes=1, devices=1):
  """Runs main.py as so many processes; returns what they printed."""
  command = ['launch/local_processes.sh', str(processes), f'--devices={devices}', '--', *map(str, arguments)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def train(workdir, data_dir, processes=1, devices=1, **fields):
  return launch('--config=configs/digits.py', f'--config.data_dir={data_dir}', f'--workdir={workdir}',
                *(f'--config.{name}={value}' for name, value in {**FIELDS, **fields}.items()),
                processes=processes, devices=devices)


def lines(workdir, split, field='bits_per_dim'):
  return {line['step']: line[field] for line in metrics.read_metrics(epath.Path(workdir)) if line['split'] == split}


@pytest.fixture(scope='module')
def whole(data_dir, tmp_path_factory):
  """A run by one process on one device."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  train(workdir, data_dir)
  return workdir


@pytest.fixture(scope='module')
def parts(whole, data_dir, tmp_path_factory):
  """The same run by one device, then by four, then by two processes, then by one device again."""
  workdir = tmp_path_factory.mktemp('parts') / 'run'
  # As if it had been killed after its first checkpoint.
  shutil.copytree(whole, workdir)
  for step in (6, 9, 12):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  train(workdir, data_dir, devices=4, **{'train.steps': 6})
  train(workdir, data_dir, processes=2, **{'train.steps': 9})
  train(workdir, data_dir)
  return workdir


def test_a_run_goes_from_one_device_to_four_to_two_processes_and_back(whole, parts):
  """With dropout: its masks belong to the images of the whole batch."""
  want, got = lines(whole, 'train'), lines(parts, 'train')
  assert list(got) == list(want) == list(range(1, 13))
  np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
  assert lines(whole, 'test').keys() == lines(parts, 'test').keys()


def test_two_processes_evaluate_and_sample_as_one_does(parts):
  one = json.loads((parts / 'results.json').read_text())
  (parts / 'results.json').unlink()
  printed = launch('--mode=eval', f'--workdir={parts}', processes=2)
  two = json.loads((parts / 'results.json').read_text())
  assert two['num_devices'] == 2 and two['num_images'] == one['num_images'] == 33
  assert two['bits_per_dim'] == pytest.approx(one['bits_per_dim'], abs=1e-6)
  assert printed.count('bits/dim on 33 images') == 1  # one speaks for all

  run = library.load(parts)
  labels = np.arange(5)
  images, log_probs = make_sampler(run.model, 5)(devices.replicate(run.variables['params']), 3, 5, {'label': labels})
  printed = launch('--mode=sample', f'--workdir={parts}', '--num_samples=5', '--labels=0,1,2,3,4', '--seed=3', '--npz',
                   processes=2)
  drawn = np.load(re.search(r'Wrote (.*npz)', printed)[1])
  np.testing.assert_array_equal(drawn['images'], images)
  np.testing.assert_allclose(drawn['log_probs'], log_probs, rtol=1e-5)


@pytest.mark.long
def test_one_of_two_processes_is_stopped_and_both_go_on(data_dir, tmp_path):
  """SIGTERM to one of them: both stop after the same step, and are started again."""
  workdir = tmp_path / 'run'

  def stop_one():
    deadline = time.monotonic() + 200
    while len(metrics.read_metrics(epath.Path(workdir))) < 5 and time.monotonic() < deadline:
      time.sleep(0.1)
    subprocess.run(['pkill', '-TERM', '-f', '--', f'--process_id=1 .*--workdir={workdir}'], check=True)

  stopper = threading.Thread(target=stop_one, daemon=True)
  stopper.start()
  printed = train(workdir, data_dir, processes=2, **{'train.steps': 200, 'train.eval_every': 0})
  stopper.join()
  steps = re.findall(r'Stopped after step (\d+) of 200', printed)
  assert len(steps) == 2 and len(set(steps)) == 1 and 0 < int(steps[0]) < 200
  assert list(lines(workdir, 'train')) == list(range(1, 201))


def test_processes_of_different_commands_are_refused(data_dir, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  commands = [[sys.executable, 'main.py', f'--coordinator=127.0.0.1:{port}', '--num_processes=2',
               f'--process_id={number}', '--config=configs/digits.py', f'--config.data_dir={data_dir}',
               f'--workdir={tmp_path / "run"}', *(f'--config.{name}={value}' for name, value in FIELDS.items()),
               f'--config.seed={number}'] for number in range(2)]
  processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env=os.environ | {'JAX_PLATFORMS': 'cpu'}) for command in commands]
  printed = [process.communicate(timeout=300)[0] for process in processes]
  # Either may end before the other has heard why.
  assert any(process.returncode == 2 and 'Error: The processes have different configurations' in text
             for process, text in zip(processes, printed)), printed
  assert all(process.returncode for process in processes) and not saved_steps(tmp_path / 'run')


@pytest.mark.parametrize('arguments, says', [
    (['--num_processes=2'], 'coordinator, num_processes, process_id is'),
    (['--coordinator=here', '--num_processes=2', '--process_id=0'], "--coordinator is 'here'"),
    (['--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=2'], r'--process_id is 2, but must be in 0\.\.1'),
    (['--distributed'], 'Cannot join the other processes'),
])
def test_processes_that_cannot_be_are_refused(call, tmp_path, arguments, says):
  code, printed = call('--config=configs/digits.py', f'--workdir={tmp_path / "run"}', *arguments)
  last = printed.strip().splitlines()[-1]
  assert code == 2 and last.startswith('Error: ') and re.search(says, last), printed
  assert not any(tmp_path.iterdir())
