"""Training resumes bit for bit after a restart, learns, and stops at what is not finite."""

import dataclasses
import itertools
import json
import re

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from helpers import leave_run, make_case, parameter_shapes
from image_transformer import config as config_lib
from image_transformer import data, devices, metrics, pictures, reports, runs
from image_transformer.checkpoints import Checkpoints
from image_transformer.conditions import default_given
from image_transformer.errors import InputError, RunError
from image_transformer.experiments import load_config
from image_transformer.library import load
from image_transformer.model import make_model
from image_transformer.optimizers import _matrices, learning_rate, make_optimizer
from image_transformer.state import init_state
from image_transformer.training import Trainer, _still_falling, train
from image_transformer.training_step import make_train_step


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture
def make_config(data_dir):

  def make(**sections):
    base = {
        'seed': 0,
        'data_dir': data_dir,
        'dataset': 'digits',
        'model': {'query_block': (16,), 'memory_flange': (16,), 'num_layers': 1, 'hidden_size': 16, 'num_heads': 2,
                  'ffn_size': 16, 'dropout': 0.1, 'class_conditional': True},
        'train': {'steps': 8, 'batch_size': 8, 'log_every': 3, 'checkpoint_every': 4, 'ema_decay': 0.9, 'flip': True,
                  'eval_every': 4, 'sample_every': 0},
        'eval': {'num_images': 20, 'num_images_during_training': 10, 'batch_size': 10},
        'optimizer': {'learning_rate': 1e-2, 'warmup_steps': 4},
        'sample': {'num_images': 10, 'batch_size': 10},
    }
    return config_lib.from_dict({name: {**value, **sections.get(name, {})} if isinstance(value, dict) else
                                 sections.get(name, value) for name, value in base.items()})

  return make


def run(config, workdir):
  workdir = epath.Path(workdir)
  trainer = Trainer(config, workdir)
  runs.write_config(workdir, config)
  return trainer.run()[1]


def saved_state(config, workdir):
  model = make_model(config.model, data.image_spec(config))
  with Checkpoints(workdir) as checkpoints:
    return next(checkpoints.restore(init_state(model, make_optimizer(config.optimizer, config.train.steps), config)))


def lines(workdir):
  timed = ('images_per_second', 'seconds')
  return [{k: v for k, v in line.items() if k not in timed} for line in metrics.read_metrics(epath.Path(workdir))]


def test_a_restarted_run_is_the_undisturbed_run_bit_for_bit(make_config, tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  recipe = {'model': {'coordinates': 'rotary', 'norm': 'pre'}, 'optimizer': {'name': 'muon', 'clip_norm': 1.0}}
  config = make_config(**recipe)
  run(config, whole)
  run(make_config(**recipe, train={'steps': 4, 'eval_every': 0}), parts)
  run(config, parts)
  run(config, parts)  # finished: draws and evaluates again, and logs nothing twice
  jax.tree.map(np.testing.assert_array_equal, saved_state(config, whole), saved_state(config, parts))
  # The shorter run also logged its own end, at step 4.
  assert lines(whole) == lines(parts)
  assert [(line['step'], line['split']) for line in lines(whole)] == [
      (3, 'train'), (4, 'test'), (6, 'train'), (8, 'train'), (8, 'test')]


def test_muon_updates_the_matrices_of_the_layers_and_adam_the_rest(make_config):
  config = make_config(optimizer={'name': 'muon', 'warmup_steps': 1})
  model = make_model(config.model, data.image_spec(config))
  optimizer = make_optimizer(config.optimizer, 1)
  params = init_state(model, optimizer, config).params
  gradients = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape)), params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  rate, matrices, others = config.optimizer.learning_rate, 0, 0
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    if path[0].key == 'decoder' and update.ndim == 2:  # orthogonal, up to what five iterations leave
      matrices += 1
      scale = max(1, update.shape[1] / update.shape[0])**0.5
      values = np.linalg.svd(update, compute_uv=False) / (rate * scale)
      assert values.min() > 0.4 and values.max() < 1.3, path
    else:  # the first step of Adam, with Nesterov's momentum, is that of the signs
      others += 1
      b1 = config.optimizer.b1
      np.testing.assert_allclose(np.abs(update), rate * (b1 / (1 + b1) + 1), rtol=1e-3)
  assert matrices == 6 and others > 6


@pytest.mark.parametrize('name, encoder', [('1d_text', 'text_encoder'), ('1d_superres', 'encoder')])
def test_muon_updates_the_matrices_of_encoders_too(name, encoder):
  shapes = parameter_shapes(make_case(name)[0])
  marks = jax.tree_util.tree_leaves_with_path(_matrices(shapes), is_leaf=lambda mark: isinstance(mark, tuple))
  marked = {jax.tree_util.keystr(path) for path, mark in marks}
  kernels = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
             if path[0].key in (encoder, 'decoder') and leaf.ndim == 2}
  assert marked == kernels and any(encoder in key for key in kernels)


def test_adam_beside_muon_has_the_configured_decays(make_config):
  """Two steps of a bias, by Adam's equations with Nesterov's momentum."""
  settings = make_config(optimizer={'name': 'muon', 'warmup_steps': 1, 'b1': 0.8, 'b2': 0.7, 'epsilon': 0.1}).optimizer
  optimizer, params = make_optimizer(settings, 2), {'output': {'bias': jnp.zeros(3)}}
  state, mean, square = optimizer.init(params), 0, 0
  for t, gradient in enumerate(np.array([[1, -2, 0.5], [3, 1, -0.1]]), 1):
    updates, state = optimizer.update({'output': {'bias': jnp.asarray(gradient, jnp.float32)}}, state, params)
    mean, square = 0.8 * mean + 0.2 * gradient, 0.7 * square + 0.3 * gradient**2
    ahead = 0.8 * mean / (1 - 0.8**(t + 1)) + 0.2 * gradient / (1 - 0.8**t)
    expected = -float(learning_rate(settings, 2)(t - 1)) * ahead / (np.sqrt(square / (1 - 0.7**t)) + 0.1)
    np.testing.assert_allclose(updates['output']['bias'], expected, rtol=1e-5)


def test_dropout_is_a_function_of_seed_and_step(make_config):
  images = np.random.default_rng(0).integers(17, size=(8, 8, 8, 1)).astype(np.uint8)
  batch = devices.split({'image': images, 'label': np.zeros(8, np.int32)})

  def losses(seed, steps):
    config = make_config(seed=seed, model={'dropout': 0.5})
    model = make_model(config.model, data.image_spec(config))
    optimizer = make_optimizer(config.optimizer, 1)
    step = devices.pmap(make_train_step(model, optimizer, config))
    # The same parameters for every seed.
    state = init_state(model, optimizer, make_config(model={'dropout': 0.5}))
    return [float(devices.unreplicate(step(devices.replicate(state.replace(step=jnp.int32(n))), batch)[1]['loss']))
            for n in steps]

  first, second, again = losses(0, [3, 4, 3])
  assert first == again != second
  assert losses(1, [3]) != [first]


def test_lines_past_the_restored_step_are_removed(tmp_path):
  log = metrics.MetricsLog(epath.Path(tmp_path))
  for step in (1, 2, 3):
    log.write(step, 'train', bits_per_dim=step)
  log.close()
  (tmp_path / 'metrics.jsonl').open('a').write('{"step": 4, "spl')  # a crash while writing
  metrics.MetricsLog(epath.Path(tmp_path), keep=lambda line: line['step'] <= 2).close()
  assert [line['step'] for line in metrics.read_metrics(epath.Path(tmp_path))] == [1, 2]


def test_training_learns_and_load_gives_the_model(make_config, tmp_path):
  config = make_config(train={'steps': 60, 'checkpoint_every': 60, 'eval_every': 0, 'batch_size': 32, 'ema_decay': 0.0},
                       eval={'num_images': 0, 'batch_size': 99})
  evaluation = run(config, tmp_path / 'run')
  assert evaluation.num_images == 297
  assert evaluation.bits_per_dim < 3.2  # uniform: log2(17) = 4.09
  loaded = load(tmp_path / 'run')
  assert loaded.step == 60 and loaded.config == config
  assert sorted(p.name for p in (tmp_path / 'run' / 'samples').iterdir()) == ['0000060.png']


def test_ema_is_evaluated_where_asked_for(make_config, tmp_path):
  config = make_config(train={'steps': 4, 'eval_every': 0})
  run(config, tmp_path / 'run')
  averaged = load(tmp_path / 'run').variables
  raw = load(tmp_path / 'run', make_config(train={'steps': 4, 'eval_every': 0}, eval={'ema': False})).variables
  state = saved_state(config, tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, averaged, {'params': state.ema_params})
  jax.tree.map(np.testing.assert_array_equal, raw, {'params': state.params})
  assert not np.array_equal(jax.tree.leaves(raw)[0], jax.tree.leaves(averaged)[0])


def test_training_reports_and_returns_the_averaged_parameters(make_config, tmp_path):
  config = make_config(train={'steps': 4, 'eval_every': 0}, optimizer={'learning_rate': 0.1})
  trained = train(config, tmp_path / 'run')
  reported = json.loads((tmp_path / 'run' / 'results.json').read_text())['bits_per_dim']
  loaded = load(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, trained.variables, loaded.variables)
  raw = load(tmp_path / 'run', make_config(train={'steps': 4, 'eval_every': 0}, optimizer={'learning_rate': 0.1},
                                           eval={'ema': False})).evaluate().bits_per_dim
  assert reported == pytest.approx(loaded.evaluate().bits_per_dim, abs=1e-6) != pytest.approx(raw, abs=1e-3)


def test_training_draws_what_the_trained_run_would(make_config, tmp_path):
  """With the parameters, the seed and the temperature of the configuration."""
  config = make_config(seed=3, train={'steps': 4, 'eval_every': 0}, optimizer={'learning_rate': 0.1},
                       sample={'temperature': 0.5})
  trained = train(config, tmp_path / 'run')
  images = trained.sample(10, seed=3)
  assert (images != trained.sample(10, seed=3, temperature=1.0)).any() and (images != trained.sample(10)).any()
  given, columns = default_given(trained.model.conditions, 10)
  assert (tmp_path / 'run' / 'samples' / '0000004.png').read_bytes() == pictures.png(
      pictures.grid_of(trained.model, given, images, columns))


def test_the_seconds_of_training_go_on_where_a_run_was_resumed(make_config, tmp_path):
  run(make_config(train={'steps': 4, 'eval_every': 0}), tmp_path)
  path = tmp_path / 'metrics.jsonl'
  path.write_text(re.sub(r'"seconds": [^,}]+', '"seconds": 1000.0', path.read_text()))
  run(make_config(train={'steps': 8, 'eval_every': 0}), tmp_path)
  assert metrics.training_seconds(epath.Path(tmp_path)) > 1000


def test_load_takes_the_mean_of_the_newest_checkpoints(make_config, tmp_path):
  states = leave_run(tmp_path, make_config(), steps=(2, 4, 10))
  for ema, number in itertools.product([True, False], [1, 2, 3]):
    run = load(tmp_path, make_config(eval={'ema': ema}), number)
    params = [state.ema_params if ema else state.params for state in states[-number:]]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *params)
    assert run.step == 10
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7),
                 run.variables['params'], mean)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.variables)} == {np.dtype('float32')}
  with pytest.raises(InputError, match='num_checkpoints is 4, but must be at most 3'):
    load(tmp_path, num_checkpoints=4)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(make_config, tmp_path):
  config = make_config(train={'steps': 2, 'checkpoint_every': 2, 'eval_every': 0})
  run(config, tmp_path / 'run')
  before = saved_state(config, tmp_path / 'run')
  broken = make_config(train={'steps': 20, 'checkpoint_every': 1, 'eval_every': 0})
  trainer = Trainer(broken, epath.Path(tmp_path / 'run'))

  class Poisoned:
    """The third step is fed an infinite parameter."""

    def __init__(self, step):
      self.step, self.calls = step, 0

    def __call__(self, state, batch):
      self.calls += 1
      if self.calls == 3:
        state = state.replace(params=jax.tree.map(lambda x: x * jnp.inf, state.params))
      return self.step(state, batch)

  trainer._step = Poisoned(trainer._step)
  with pytest.raises(RunError, match='Step 5: .*checkpoint of step 4 is kept'):
    trainer.run()
  after = saved_state(config, tmp_path / 'run')
  assert int(before.step) == 2 and int(after.step) == 4
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_another_run_is_not_overwritten(make_config, tmp_path):
  workdir = epath.Path(tmp_path / 'run')
  runs.write_config(workdir, make_config(model={'num_layers': 2}))
  runs.write_config(workdir, make_config())  # no checkpoint yet, so nothing is lost
  (workdir / 'checkpoints' / '4').mkdir(parents=True)
  before = (workdir / 'config.json').read_text()
  with pytest.raises(InputError, match=r'model.num_heads \(2 there, 4 here\)'):
    runs.write_config(workdir, make_config(model={'num_heads': 4}))
  assert (workdir / 'config.json').read_text() == before
  with pytest.raises(InputError, match=r'train.batch_size \(8 there, 4 here\)'):
    runs.write_config(workdir, make_config(train={'batch_size': 4}))
  runs.write_config(workdir, make_config(train={'steps': 9}, eval={'num_images': 3}))
  assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == 9
  with pytest.raises(InputError, match='train.steps is 3, but must be at least 4'):
    runs.check_free(workdir, make_config(train={'steps': 3}))
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'thesis.tex').write_text('')
  with pytest.raises(InputError, match='not empty'):
    runs.write_config(epath.Path(tmp_path / 'other'), make_config())


@pytest.mark.parametrize('field, value, free', [
    *((name, value, True) for name, value in {
        'data_dir': 'elsewhere', 'stand_in': True, 'sample.temperature': 0.5, 'eval.split': 'train',
        'model.remat': True, 'model.attention': 'einsum', 'train.steps': 9, 'train.accumulation': 2,
        'train.log_every': 9, 'train.checkpoint_every': 9, 'train.keep_checkpoints': 9, 'train.eval_every': 9,
        'train.sample_every': 9}.items()),
    *((name, value, False) for name, value in {
        'seed': 1, 'init_from': 'elsewhere', 'folder.crop': False, 'model.dropout': 0.4, 'model.dtype': 'bfloat16',
        'train.flip': True, 'train.split': 'test', 'train.ema_decay': 0.5, 'optimizer.schedule': 'cosine'}.items())])
def test_what_a_run_may_change(field, value, free):
  assert bool(runs.differences(load_config('cifar10_1d'), load_config('cifar10_1d', {field: value}))) != free


def test_batches_that_devices_cannot_share_are_refused(make_config, tmp_path):
  with pytest.raises(InputError, match='train.batch_size'):
    config = make_config(train={'batch_size': 9 * jax.device_count(), 'accumulation': 9})
    object.__setattr__(config.train, 'batch_size', 9 * jax.device_count() + 1)
    Trainer(config, epath.Path(tmp_path))


def test_learning_rate_schedules():
  config = config_lib.OptimizerConfig(learning_rate=2.0, warmup_steps=100)
  rate = learning_rate(config, 1000)
  # Step t is count + 1: peak * min(t / w, sqrt(w / t)).
  np.testing.assert_allclose([rate(0), rate(49), rate(99), rate(399)], [0.02, 1.0, 2.0, 1.0], rtol=1e-6)
  # The paper's formula, for lr = 10 * hp * d^-0.5 * min((s+1)^-0.5, (s+1) * w^-1.5) and its peak.
  peak = 10 * 0.5 * (512 * 4000)**-0.5
  paper = learning_rate(config_lib.OptimizerConfig(learning_rate=peak, warmup_steps=4000), 1)
  for s in (0, 1000, 3999, 100_000):
    want = 10 * 0.5 * 512**-0.5 * min((s + 1)**-0.5, (s + 1) * 4000**-1.5)
    np.testing.assert_allclose(paper(s), want, rtol=1e-5)
  cosine = learning_rate(config_lib.OptimizerConfig(learning_rate=2.0, warmup_steps=100, schedule='cosine'), 1000)
  np.testing.assert_allclose([cosine(49), cosine(549), cosine(999)], [1.0, 1.0, 0.0], atol=1e-6)


def test_a_cosine_run_cannot_be_made_longer_but_trained_on(make_config, tmp_path):
  cosine = lambda steps: make_config(optimizer={'schedule': 'cosine'}, train={'steps': steps, 'eval_every': 0})
  leave_run(tmp_path / 'run', cosine(4), steps=(4,))
  with pytest.raises(InputError, match='train.steps is 9.* trains 4 steps.*in another workdir, with init_from='):
    train(cosine(9), tmp_path / 'run')
  more = train(dataclasses.replace(cosine(9), init_from=str(tmp_path / 'run')), tmp_path / 'more')
  assert more.step == 9 and more.config.init_from == str(tmp_path / 'run')


def test_a_curve_that_still_falls_is_told_from_one_that_is_flat_or_memorises():
  lines = [{'step': i, 'split': 'train', 'bits_per_dim': 4 - 0.03 * i} for i in range(20)]
  lines.insert(5, {'step': 5, 'split': 'train', 'bits_per_dim': 9.0, 'num_images': 10})  # an evaluation of that split
  evaluation = lambda bits: metrics.Evaluation(np.full(2, bits * np.log(2)), 1)
  assert _still_falling(lines, evaluation(3.5)) == pytest.approx(4 * 0.03)
  assert _still_falling(lines, evaluation(3.7)) == 0  # the last fifth has 3.475 on average
  assert _still_falling([line | {'bits_per_dim': 4.0} for line in lines], evaluation(4.0)) == 0
  assert _still_falling(lines[:4], evaluation(3.5)) == 0


def test_training_starts_from_the_parameters_of_another_run(make_config, tmp_path, monkeypatch):
  leave_run(tmp_path / 'run', make_config(), steps=(2, 4))
  monkeypatch.chdir(tmp_path)
  # Averaged parameters start there too.
  config = dataclasses.replace(make_config(train={'steps': 1, 'ema_decay': 0.9}, optimizer={'learning_rate': 1e-30}),
                               init_from='run')
  started = train(config, 'started')
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-20), started.variables,
               load('run').variables)
  (tmp_path / 'run').rename(tmp_path / 'moved')
  assert train(config, 'started').step == 1, 'once begun, it needs the other run no more'
  for init_from, says in [('moved', 'init_from is .*moved.* of the same network, but .* is .* there'),
                          ('none', 'config.json')]:
    with pytest.raises(InputError, match=says):
      train(dataclasses.replace(make_config(model={'hidden_size': 32}), init_from=init_from), tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_results_of_an_earlier_step_are_replaced_even_by_fewer_images(make_config, tmp_path):
  leave_run(tmp_path, make_config())
  loaded, reported = load(tmp_path), []
  for step, number in (1, 20), (1, 10), (2, 10):
    evaluation = metrics.Evaluation(np.full(number, 1.0), 64)
    reports.write_evaluation(dataclasses.replace(loaded, step=step), evaluation, 'test')
    report = json.loads((tmp_path / 'results.json').read_text())
    reported.append((report['step'], report['num_images']))
  assert reported == [(1, 20), (1, 20), (2, 10)]


def test_parameters_other_than_the_runs_own_have_files_of_their_own(make_config, tmp_path):
  config = make_config(train={'ema_decay': 0.9})
  leave_run(tmp_path, config, steps=(1, 2))
  evaluation = metrics.Evaluation(np.full(20, 1.0), 64)
  raw = dataclasses.replace(config, eval=dataclasses.replace(config.eval, ema=False))
  for loaded in load(tmp_path), load(tmp_path, raw), load(tmp_path, raw, 2):
    reports.write_evaluation(loaded, evaluation, 'test')
  found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob('results*')}
  assert {name: (report['ema'], report['num_checkpoints']) for name, report in found.items()} == {
      'results.json': (True, 1), 'results_raw.json': (False, 1), 'results_average2_raw.json': (False, 2)}
  assert reports.file_name(load(tmp_path, raw), ['test'], {}) == '0000002_test_raw'
  names = {reports.file_name(load(tmp_path), ['test'], {'text': words})
           for words in (['1', '2'], ['1-2'], ['1_2'], [str(i) for i in range(99)])}
  assert len(names) == 4 and '0000002_test_text1-2' in names and max(map(len, names)) < 30
  assert [reports.is_results(name) for name in found] == [name == 'results.json' for name in found]


def test_a_finished_run_that_is_run_again_has_one_line_for_its_evaluation(make_config, tmp_path):
  """Also where evaluations during training are of as many images."""
  config = make_config(eval={'num_images_during_training': 20})
  run(config, tmp_path)
  before = lines(tmp_path)
  assert [line['step'] for line in before if line['split'] == 'test'] == [4, 8]
  run(config, tmp_path)
  assert lines(tmp_path) == before


def test_a_run_does_not_go_on_with_other_images(make_config, tmp_path, data_dir):
  """`num_train_images` in results.json is what the run was trained on, wherever it is evaluated."""
  config = make_config(train={'steps': 4, 'eval_every': 0})
  run(config, tmp_path / 'run')
  assert runs.read_trained_on(tmp_path / 'run').num_train_images == 1_500
  (tmp_path / 'run' / 'data.json').write_text('{"num_train_images": 99}')
  longer = make_config(train={'steps': 8, 'eval_every': 0})
  with pytest.raises(InputError, match='holds 1500 images here, but .* 99'):
    Trainer(longer, epath.Path(tmp_path / 'run'))
  (tmp_path / 'run' / 'data.json').write_text('{"num_train_images": 1500}')  # as older runs have it
  Trainer(longer, epath.Path(tmp_path / 'run'))


def test_a_run_does_not_go_on_with_other_photos(make_config, tmp_path):
  """As many photos in the folder, but others, read again into another data_dir."""
  photos = tmp_path / 'photos'
  photos.mkdir()

  def start(data_dir, steps):
    config = make_config(model={'class_conditional': False}, train={'steps': steps, 'eval_every': 0},
                         eval={'num_images': 1})
    config = dataclasses.replace(config, dataset='folder', data_dir=str(tmp_path / data_dir),
                                 folder=config_lib.FolderConfig(str(photos), (8, 8)))
    return Trainer(config, epath.Path(tmp_path / 'run'))

  for first, data_dir in ((0, 'data'), (100, 'other')):
    for seed in range(first, first + 10):
      pixels = np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(photos / f'{seed - first}.png')
    if first == 0:
      start(data_dir, 1).run()
  start('data', 2)
  with pytest.raises(InputError, match='holds other images here, but the run in .* use the data_dir'):
    start('other', 2)


def test_an_evaluated_run_without_checkpoints_is_not_overwritten(make_config, tmp_path):
  runs.write_config(epath.Path(tmp_path / 'run'), make_config())
  (tmp_path / 'run' / 'results.json').write_text('{}')
  with pytest.raises(InputError, match='another run.*seed'):
    runs.write_config(epath.Path(tmp_path / 'run'), make_config(seed=1))
