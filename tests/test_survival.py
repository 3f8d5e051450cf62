"""A run survives being stopped, killed, its checkpoints damaged and its disk full; what it then has is the same."""

import dataclasses
import functools
import shutil
import signal
import subprocess

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.chaos import Chaos, outcome
from helpers import leave_run
from image_transformer import config as config_lib
from image_transformer import library, metrics, reports, runs, stopping
from image_transformer.checkpoints import Checkpoints, saved_steps
from image_transformer.errors import InputError, RunError
from image_transformer.library import Run
from image_transformer.optimizers import learning_rate
from image_transformer.state import init_state
from image_transformer.training import Trainer

# What Orbax leaves behind when a save or a load fails.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def make_config(tmp_path_factory):
  data_dir = str(tmp_path_factory.mktemp('data'))

  def make(**train):
    return config_lib.from_dict({
        'dataset': 'digits', 'data_dir': data_dir,
        'model': {'query_block': (16,), 'memory_flange': (16,), 'num_layers': 1, 'hidden_size': 8, 'num_heads': 2,
                  'ffn_size': 8, 'dropout': 0.1},
        'train': {'steps': 8, 'batch_size': 4, 'log_every': 3, 'checkpoint_every': 4, 'ema_decay': 0.9,
                  'eval_every': 2, 'sample_every': 4, 'keep_checkpoints': 2, **train},
        'eval': {'num_images': 12, 'num_images_during_training': 8, 'batch_size': 4},
        'optimizer': {'learning_rate': 1e-2, 'warmup_steps': 4},
        'sample': {'num_images': 4, 'batch_size': 2}})

  return make


@functools.cache
def compiled(model, optimizer, log_every):
  """What trainers of one model share, so that each need not compile it again."""
  return {}


def run(config, workdir, prepare=lambda trainer: None):
  """What main.py does to train, but for its words."""
  trainer = Trainer(config, epath.Path(workdir))
  shared = compiled(config.model, config.optimizer, config.train.log_every)
  for name in ('_step', '_evaluate', '_draw'):
    setattr(trainer, name, shared.setdefault(name, getattr(trainer, name)))
  prepare(trainer)
  with runs.own(epath.Path(workdir), config):
    _, evaluation = trainer.run()
    reports.write_evaluation(Run(config, trainer.model, {}, config.train.steps, epath.Path(workdir)), evaluation,
                             config.eval.split)


@pytest.fixture(scope='module')
def undisturbed(make_config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  run(make_config(), workdir)
  return outcome(workdir)


def assert_same(got, want):
  for name in want:
    assert got[name] == want[name], name


def test_a_run_stopped_at_every_turn_loses_no_step(make_config, undisturbed, tmp_path, monkeypatch):
  """Stopped at its first poll, then at its second, and so on: between steps, batches of evaluation, and drawings."""
  steps, places = [], set()
  poll = stopping.poll
  for number in range(1, 100):
    count = 0

    def stop_at_last():
      nonlocal count
      count += 1
      if count == number:
        raise stopping.Stopped('')
      poll()

    monkeypatch.setattr(stopping, 'poll', stop_at_last)
    try:
      run(make_config(), tmp_path / 'run')
      break
    except stopping.Stopped as stopped:
      steps.append(int(str(stopped).split()[3]))
      places.add(_innermost(stopped.__cause__))
      assert steps[-1] == max(saved_steps(tmp_path / 'run'), default=0)
  assert steps == sorted(steps) and 0 in steps and 8 in steps
  assert places == {'_train', 'score', 'draw'}
  assert_same(outcome(tmp_path / 'run'), undisturbed)


def _innermost(error):
  """The function in which an error was raised, but for the patch."""
  names, traceback = [], error.__traceback__
  while traceback:
    names.append(traceback.tb_frame.f_code.co_name)
    traceback = traceback.tb_next
  return names[-2]


@pytest.fixture(scope='module')
def saved(make_config, tmp_path_factory):
  """A workdir with two checkpoints, and their states."""
  workdir = tmp_path_factory.mktemp('saved') / 'run'
  states = leave_run(workdir, make_config(), steps=(2, 4))
  return workdir, dict(zip((2, 4), states))


def restored(workdir, like):
  with Checkpoints(workdir) as checkpoints:
    return next(checkpoints.restore(like))


def damage(path, random):
  """Flips one bit of a file, or cuts it off."""
  content = bytearray(path.read_bytes())
  place = random.integers(len(content))
  if random.random() < 0.5:
    content[place] ^= 1 << random.integers(8)
  else:
    content = content[:place]
  path.write_bytes(content)


def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(saved, tmp_path, capsys):
  """50 times: it is recognised and the one before is used, or its values are exactly right."""
  workdir, states = saved
  random = np.random.default_rng(0)
  files = sorted(path for path in (workdir / 'checkpoints' / '4').rglob('*') if path.is_file() and path.stat().st_size)
  used = []
  for i in range(50):
    shutil.copytree(workdir, tmp_path / 'run')
    damage(tmp_path / 'run' / files[random.integers(len(files))].relative_to(workdir), random)
    state = restored(tmp_path / 'run', states[4])
    jax.tree.map(np.testing.assert_array_equal, state, states[int(state.step)])
    used.append(int(state.step))
    assert ('checkpoints/4 is damaged' in capsys.readouterr().err) == (used[-1] == 2)
    shutil.rmtree(tmp_path / 'run')
  assert set(used) == {2, 4}


def test_values_that_are_not_those_that_were_saved_are_not_used(saved, tmp_path, capsys):
  """The file format may be in order: another digest, and a checkpoint of something else in its place."""
  workdir, states = saved
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4' / 'state')
  shutil.copytree(workdir / 'checkpoints' / '2' / 'state', tmp_path / 'run' / 'checkpoints' / '4' / 'state')
  assert int(restored(tmp_path / 'run', states[4]).step) == 2
  assert 'its checksum does not match' in capsys.readouterr().err


def test_loading_executes_nothing(saved, monkeypatch):
  import pickle
  monkeypatch.setattr(pickle, 'loads', None)
  monkeypatch.setattr(pickle, 'load', None)
  monkeypatch.setattr(pickle, 'Unpickler', None)
  restored(saved[0], saved[1][4])


def test_training_goes_on_from_before_a_damaged_checkpoint(make_config, undisturbed, tmp_path, capsys):
  run(make_config(), tmp_path / 'run')
  (tmp_path / 'run' / 'checkpoints' / '8' / 'state' / 'manifest.ocdbt').write_bytes(b'')
  run(make_config(), tmp_path / 'run')
  assert 'checkpoints/8 is damaged' in capsys.readouterr().err
  assert_same(outcome(tmp_path / 'run'), undisturbed)
  assert (tmp_path / 'run' / 'damaged_8' / 'state').is_dir()


def test_a_run_whose_every_checkpoint_is_damaged_is_not_begun_anew(make_config, saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'run')
  for step in (2, 4):
    (tmp_path / 'run' / 'checkpoints' / str(step) / 'state' / '_METADATA').write_text('')
  with pytest.raises(InputError, match='Every checkpoint in .*/checkpoints is damaged'):
    run(make_config(), tmp_path / 'run')
  with pytest.raises(InputError, match='Every checkpoint in .*/checkpoints is damaged'):
    library.load(tmp_path / 'run')
  assert saved_steps(tmp_path / 'run') == [2, 4] and not list((tmp_path / 'run').glob('damaged*'))


def test_a_checkpoint_that_a_run_removes_while_it_is_read_is_not_called_damaged(saved, tmp_path, monkeypatch):
  shutil.copytree(saved[0], tmp_path / 'run')
  read = Checkpoints._read
  monkeypatch.setattr(Checkpoints, '_read', lambda self, step, like: (
      shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(step)), read(self, step, like))[1])
  with pytest.raises(InputError, match='checkpoints/4 was removed while it was read: run the same command again'):
    library.load(tmp_path / 'run')


def test_a_second_process_in_a_workdir_is_refused(make_config, tmp_path):
  workdir = epath.Path(tmp_path / 'run')
  with runs.own(workdir, make_config()):
    with pytest.raises(InputError, match=f'Another process trains in {workdir}'):
      with runs.own(workdir, make_config(steps=9)):
        pass
    assert runs.read_config(workdir) == make_config()
  with runs.own(workdir, make_config(steps=9)):
    pass


def test_so_many_checkpoints_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2, every=2) as checkpoints:
    for step in range(1, 8):
      checkpoints.save_surely(step, {'x': np.zeros(3, np.float32)})
  assert saved_steps(tmp_path) == [4, 6, 7]  # the newest, and two regular ones


def test_the_log_is_on_disk_before_a_step_is_saved(make_config, tmp_path, monkeypatch):
  save, logged = Checkpoints.save, {}

  def remember(self, step, state):
    logged[step] = [line['step'] for line in metrics.read_metrics(tmp_path / 'run') if line['split'] == 'train']
    save(self, step, state)

  monkeypatch.setattr(Checkpoints, 'save', remember)
  run(make_config(log_every=1), tmp_path / 'run')
  assert len(logged) > 1 and all(steps[-1] == step for step, steps in logged.items())


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(saved, monkeypatch):
  workdir, states = saved

  def refuse(*_, **__):
    raise PermissionError('not yours')

  monkeypatch.setattr(Checkpoints.save.__globals__['_Manager'], 'restore', refuse)
  with pytest.raises(PermissionError, match='not yours'):
    restored(workdir, states[4])


def test_a_save_that_fails_is_reported_and_tried_again(make_config, tmp_path, monkeypatch, capsys):
  run(make_config(log_every=1), tmp_path / 'undisturbed')
  save = Checkpoints.save.__globals__['_Manager'].save
  failures = []

  def fail_twice(self, step, **kwargs):
    if len(failures) < 2:
      failures.append(step)
      raise OSError(28, 'No space left on device')
    return save(self, step, **kwargs)

  monkeypatch.setattr(Checkpoints.save.__globals__['_Manager'], 'save', fail_twice)
  run(make_config(log_every=1), tmp_path / 'run')
  assert failures == [4, 5]  # the second at the next line of the log
  assert capsys.readouterr().err.count('No space left on device); the older ones are intact') == 2
  assert saved_steps(tmp_path / 'run') == [6, 8]
  assert outcome(tmp_path / 'run')['checkpoints']['8'] == outcome(tmp_path / 'undisturbed')['checkpoints']['8']


def test_a_run_whose_last_step_cannot_be_saved_says_so(make_config, tmp_path, monkeypatch):
  monkeypatch.setattr('image_transformer.checkpoints.time.sleep', lambda seconds: None)

  def full(self, step, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Checkpoints.save.__globals__['_Manager'], 'save', full)
  with pytest.raises(RunError, match='step 8 could not be saved in .*; there is none. Free disk space'):
    run(make_config(), tmp_path / 'run')


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MiB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', folder], capture_output=True).returncode:
    pytest.skip('only root can mount a small file system')
  yield folder
  subprocess.run(['umount', '-l', folder], check=True)


def test_a_full_disk_is_reported_and_training_goes_on(make_config, undisturbed, small_disk, capsys):
  """Full from before step 4 is saved; there is room again before step 8 is."""
  workdir = small_disk / 'run'

  def prepare(trainer):
    step = trainer._step
    calls = iter(range(1, 9))

    def stepping(*args):
      number = next(calls)
      if number == 6:
        # What was saved before is whole while the disk is full.
        assert int(restored(workdir, jax.eval_shape(lambda: states[0])).step) == 2
      elif number == 3:
        trainer._checkpoints.failed(wait=True)
        (small_disk / 'full').write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
      elif number == 8:
        (small_disk / 'full').unlink()
      return step(*args)

    trainer._step = stepping

  states = leave_run(small_disk / 'other', make_config(), steps=(2,))
  shutil.rmtree(small_disk / 'other')
  run(make_config(checkpoint_every=2), workdir, prepare)
  printed = capsys.readouterr().err
  assert 'a checkpoint could not be saved' in printed
  assert outcome(workdir)['checkpoints']['8'] == undisturbed['checkpoints']['8']
  assert outcome(workdir)['metrics.jsonl'] == undisturbed['metrics.jsonl']


class Poisoned:
  """A step whose calls of some numbers, from 1, get a gradient that is not finite."""

  def __init__(self, step, numbers):
    self.step, self.numbers, self.calls = step, numbers, 0

  def __call__(self, state, batch):
    self.calls += 1
    if self.calls not in self.numbers:
      return self.step(state, batch)
    averages = jax.tree.map(jnp.copy, state.ema_params)  # the step takes what it is given
    new, values = self.step(state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params)), batch)
    return new.replace(params=state.params, ema_params=averages), values


def skipping(make_config, limit, log_every=1):
  config = make_config(log_every=log_every, eval_every=0, sample_every=0)
  return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, skip_non_finite=limit))


def test_steps_whose_gradient_is_not_finite_are_skipped_and_counted(make_config, tmp_path):
  config = skipping(make_config, 2)
  trainers = []

  def prepare(trainer):
    trainer._step = Poisoned(trainer._step, {3, 4, 6})
    trainers.append(trainer)

  run(config, tmp_path / 'run', prepare)
  lines = [line for line in metrics.read_metrics(tmp_path / 'run') if line['split'] == 'train']
  assert [line['skipped_steps'] for line in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
  assert [line['step'] for line in lines if line['bits_per_dim'] is None] == [3, 4, 6]
  taken = [line['learning_rate'] for line in lines if line['step'] not in (3, 4, 6)]
  rate = learning_rate(config.optimizer, config.train.steps)
  assert taken == [float(rate(count)) for count in range(5)]
  assert [line['step'] for line in lines if line['grad_norm'] is None] == [3, 4, 6]
  like = jax.eval_shape(lambda: init_state(trainers[0].model, trainers[0]._optimizer, config))
  state = restored(tmp_path / 'run', like)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  assert state.opt_state.inner_state[1][0].count == 5  # of 8 steps


def test_too_many_steps_that_are_not_finite_stop_the_run(make_config, tmp_path):

  def prepare(trainer):
    trainer._step = Poisoned(trainer._step, {2, 5, 6, 7})

  with pytest.raises(RunError, match='Step 7: .*checkpoint of step 4 is kept'):
    run(skipping(make_config, 2), tmp_path / 'run', prepare)


def test_a_line_of_the_log_is_the_mean_of_the_steps_that_were_finite(make_config, tmp_path):
  bits = []
  for log_every in (1, 3):
    workdir = tmp_path / str(log_every)
    run(skipping(make_config, 2, log_every), workdir, lambda trainer: setattr(trainer, '_step',
                                                                              Poisoned(trainer._step, {2, 4})))
    bits.append({line['step']: line['bits_per_dim'] for line in metrics.read_metrics(workdir)
                 if line['split'] == 'train'})
  of_each, of_three = bits
  assert of_three == pytest.approx({3: np.mean([of_each[1], of_each[3]]), 6: np.mean([of_each[5], of_each[6]]),
                                    8: np.mean([of_each[7], of_each[8]])}, rel=1e-5)


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is(make_config, tmp_path):

  def prepare(trainer):
    step = trainer._step
    trainer._step = lambda *args: (lambda state, values: (state, values | {'grad_norm': values['loss'] * np.inf}))(
        *step(*args))

  with pytest.raises(RunError, match=r'Step 1: the loss is \d.* and the gradient norm inf'):
    run(make_config(), tmp_path / 'run', prepare)
  assert not saved_steps(tmp_path / 'run')


@pytest.fixture
def queued(monkeypatch):
  """As on a GPU, where a step is looked at while the next one is computed."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')


def test_steps_looked_at_later_are_the_same_run(make_config, undisturbed, tmp_path, queued):
  run(make_config(), tmp_path / 'run')
  assert_same(outcome(tmp_path / 'run'), undisturbed)


@pytest.mark.parametrize('polls', [5, 100])  # stopped before the sixth step, and not at all
def test_a_step_looked_at_later_that_is_not_finite_stops_the_run(make_config, tmp_path, monkeypatch, queued, polls):
  """The fifth, where nothing is due."""
  left = polls

  def poll():
    nonlocal left
    left -= 1
    if left < 0:
      raise stopping.Stopped('')

  monkeypatch.setattr(stopping, 'poll', poll)
  with pytest.raises(RunError, match='Step 5: .*checkpoint of step 4 is kept'):
    run(make_config(eval_every=0, sample_every=0), tmp_path / 'run',
        lambda trainer: setattr(trainer, '_step', Poisoned(trainer._step, {5})))
  assert max(saved_steps(tmp_path / 'run')) == 4


@pytest.mark.long
def test_a_run_killed_at_random_moments_is_the_undisturbed_run(tmp_path):
  """The short form of `benchmarks/chaos.py`."""
  chaos = Chaos(tmp_path)
  assert chaos.disturb(2, signal.SIGKILL) == []
  assert chaos.disturb(1, signal.SIGTERM) == []
  assert chaos.moments.total() == 3
