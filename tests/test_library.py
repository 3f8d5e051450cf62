"""The library as its users meet it: wrong inputs are refused, a run does in Python what the command does."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import make_case, random_images
import image_transformer as it
from image_transformer.sampling import positions_in_rows, sample

ROOT = pathlib.Path(__file__).parent.parent
TINY = {'model.num_layers': 1, 'model.hidden_size': 16, 'model.num_heads': 2, 'model.ffn_size': 16, 'train.steps': 3,
        'train.batch_size': 8, 'train.checkpoint_every': 2, 'train.sample_every': 0, 'eval.batch_size': 8,
        'eval.num_images': 20, 'sample.num_images': 10, 'sample.batch_size': 10}
SUPERRES = {**TINY, 'model.upscale': 2, 'model.num_encoder_layers': 1, 'eval.num_images': 6}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def digits(data_dir, tmp_path_factory):
  """A class-conditional model of 8 x 8 digits, trained from Python."""
  return it.train(it.load_config('digits', {**TINY, 'data_dir': data_dir}), tmp_path_factory.mktemp('runs') / 'digits')


@pytest.fixture(scope='module')
def superres(data_dir, tmp_path_factory):
  """The same, given classes and 4 x 4 images."""
  return it.train(it.load_config('digits', {**SUPERRES, 'data_dir': data_dir}),
                  str(tmp_path_factory.mktemp('runs') / 'superres'))


def images_of(count, *shape, high=17):
  return np.random.default_rng(0).integers(high, size=(count, *(shape or (8, 8, 1)))).astype(np.uint8)


GOOD, LABELS, SMALL = images_of(4), np.arange(4), images_of(4, 4, 4, 1)

# What is wrong with images, as the message says it.
WRONG_IMAGES = {
    'channels first': (GOOD.transpose(0, 3, 1, 2), r'\[4, 1, 8, 8\], but must be \[\w+, 8, 8, 1\]: channels come last'),
    'no batch axis': (GOOD[0], r'images\[None\]'),
    'no channels': (GOOD[..., 0], r'images are \[4, 8, 8\]'),
    'a number': (3, r'images are \[\]'),
    'one row less': (GOOD[:, :7], r'\[4, 7, 8, 1\], but must be \[\w+, 8, 8, 1\]'),
    'one column more': (images_of(4, 8, 9, 1), r'\[4, 8, 9, 1\]'),
    'three channels': (images_of(4, 8, 8, 3), r'\[4, 8, 8, 3\]'),
    'another axis': (GOOD[None], r'\[1, 4, 8, 8, 1\]'),
    'none at all': (GOOD[:0], r'images are \[0, 8, 8, 1\], but must be \[\w+, 8, 8, 1\], (with at|one)'),
    'floats': (GOOD.astype(np.float32), 'of type float32, but must be integers in 0..16'),
    'booleans': (GOOD > 8, 'of type bool'),
    'too bright': (np.where(GOOD == GOOD.max(), 17, GOOD), 'images hold 17, but must be in 0..16'),
    'bytes': (GOOD + np.uint8(239), r'images hold 2\d\d, but'),
    'negative': (GOOD.astype(int) - 1, 'images hold -1, but'),
    'enormous': (GOOD.astype(np.int64) + 2**32, 'images hold 42949'),
    'ragged lists': ([[[1], [2, 3]]], 'array of integers'),
    'text': ('digits', r'images are \[\]'),
    'nothing': (None, r'images are \[\]'),
    'beyond all integers': ([[[[10**30]] * 8] * 8] * 4, 'of type object'),
}
WRONG_LABELS = {
    'short': (LABELS[:3], r'label is \[3\], but must be \[4\], one for each image'),
    'long': (np.arange(5), r'label is \[5\], but must be \[4\]'),
    'two axes': (LABELS[:, None], r'label is \[4, 1\]'),
    'negative': (LABELS - 1, 'label holds -1, but must be in 0..9'),
    'ten of ten': (LABELS + 7, 'label holds 10, but must be in 0..9'),
    'floats': (LABELS * 1.0, 'of type float64, but must be integers in 0..9'),
    'ragged': ([[0], [1, 2], [3], [4]], 'label'),
    'words': (['one', 'two', 'three', 'four'], 'label is of type'),
    'one that is too large': (10, 'label holds 10'),
}
WRONG_SMALL = {
    'of the large size': (GOOD, r'low_res is \[4, 8, 8, 1\], but must be \[\w+, 4, 4, 1\]'),
    'one row more': (images_of(4, 5, 4, 1), r'low_res is \[4, 5, 4, 1\]'),
    'channels first': (SMALL.transpose(0, 3, 1, 2), 'channels come last'),
    'one too few': (SMALL[:3], r'low_res is \[3, 4, 4, 1\], but must be \[4, 4, 4, 1\], one for each'),
    'too bright': (SMALL + np.uint8(17), 'low_res holds'),
    'floats': (SMALL / 16, 'low_res is of type float64'),
}


def refused(says, function, *args, **kwargs):
  with pytest.raises(it.InputError, match=says) as raised:
    function(*args, **kwargs)
  assert '\n' not in str(raised.value) and len(str(raised.value)) < 300


def eager(run, images, given):
  return run.model.apply(run.variables, images, given, method='log_prob')


@pytest.mark.parametrize('name', WRONG_IMAGES)
def test_wrong_images_are_refused(digits, name):
  """Scored, shown pixel by pixel, and completed; by the library and by the model itself."""
  images, says = WRONG_IMAGES[name]
  refused(says, digits.log_prob, images, label=LABELS)
  refused(says, digits.pixel_log_probs, images, label=LABELS)
  refused(says, digits.bits_per_dim, images, label=LABELS)
  refused(says, digits.complete, images, rows=4, label=LABELS)
  refused(says, eager, digits, images, {'label': LABELS})
  refused(says, digits.model.apply, digits.variables, images, {'label': LABELS}, 5, method='attention_weights')
  refused(says, sample, digits.model, digits.variables, jax.random.split(jax.random.key(0), 4), {'label': LABELS}, 1.0,
          images, 8)


@pytest.mark.parametrize('name', WRONG_LABELS)
def test_wrong_labels_are_refused(digits, name):
  labels, says = WRONG_LABELS[name]
  refused(says, digits.log_prob, GOOD, label=labels)
  refused(says, digits.complete, GOOD, rows=4, label=labels)
  refused(says, digits.sample, 4, label=labels)
  if isinstance(labels, list | np.ndarray):
    refused(says, eager, digits, GOOD, {'label': labels})
    refused(says, sample, digits.model, digits.variables, jax.random.split(jax.random.key(0), 4), {'label': labels})


@pytest.mark.parametrize('name', WRONG_SMALL)
def test_wrong_small_images_are_refused(superres, name):
  low_res, says = WRONG_SMALL[name]
  refused(says, superres.log_prob, GOOD, low_res=low_res, label=LABELS)
  refused(says, superres.complete, GOOD, rows=4, low_res=low_res, label=LABELS)
  refused(says, superres.sample, 4, low_res=low_res)
  refused(says, eager, superres, GOOD, {'low_res': low_res, 'label': LABELS})
  if name != 'one too few':
    refused(says, superres.enlarge, low_res, label=LABELS)


@pytest.mark.parametrize('given, says', [
    ({}, "The condition 'label' is missing"), ({'label': LABELS}, "The condition 'low_res' is missing"),
    ({'label': LABELS, 'lowres': SMALL}, "Unknown condition 'lowres'; did you mean 'low_res'"),
    ({'label': LABELS, 'low_res': SMALL, 'text': LABELS}, "Unknown condition 'text'; this model is conditioned on")])
def test_missing_and_unknown_conditions_are_refused(superres, given, says):
  refused(says, superres.log_prob, GOOD, **given)
  refused(says, superres.complete, GOOD, rows=4, **given)
  refused(says, eager, superres, GOOD, given)


def test_conditions_of_a_model_without_any_are_refused():
  model, variables = make_case('1d_dmol')
  refused('conditioned on nothing', model.apply, variables, random_images(model.spec, 2), {'label': np.zeros(2, int)})


@pytest.mark.parametrize('wrong', [
    lambda run: run.sample(0), lambda run: run.sample(-1), lambda run: run.sample(2.0), lambda run: run.sample('3'),
    lambda run: run.sample(4, temperature=0), lambda run: run.sample(4, temperature='1'),
    lambda run: run.sample(4, temperature=float('nan')), lambda run: run.sample(4, seed=-1),
    lambda run: run.sample(4, seed=2**32), lambda run: run.sample(4, seed=0.5),
    lambda run: run.complete(GOOD, rows=0, label=LABELS), lambda run: run.complete(GOOD, rows=8, label=LABELS),
    lambda run: run.complete(GOOD, rows='4', label=LABELS), lambda run: run.complete(GOOD, rows=None, label=LABELS),
    lambda run: run.enlarge(SMALL), lambda run: run.evaluate('tset'), lambda run: run.evaluate(num_images=-1),
    lambda run: run.evaluate(num_images=10**6), lambda run: run.examples(0), lambda run: run.examples(10**6),
    lambda run: run.scores(GOOD, label=3)])
def test_wrong_numbers_are_refused(digits, wrong):
  refused('must be|has|is unknown|cannot', wrong, digits)


def test_too_many_images_are_named_as_they_were_asked_for(digits):
  refused('^num_images is 1000000, but must be at most 297', digits.examples, 10**6)
  refused('^num_images is 1000000, but must be at most 297', digits.evaluate, num_images=10**6)


@pytest.mark.parametrize('images, given', [
    (GOOD.transpose(0, 3, 1, 2), LABELS), (GOOD[0], LABELS), (GOOD[:, :7], LABELS), (GOOD * 1.0, LABELS),
    (GOOD, LABELS[:3]), (GOOD, LABELS * 1.0), (GOOD, LABELS[:, None])])
def test_shapes_and_types_are_refused_while_tracing(digits, images, given):
  traced = jax.jit(lambda images, label: eager(digits, images, {'label': label}))
  refused('images|label', traced, images, given)


def test_no_name_no_value_is_refused_under_jit_for_what_is_good(digits):
  """And the traced program holds no check: nothing but the network."""
  jitted = jax.jit(lambda images, label: eager(digits, images, {'label': label}))
  expected = digits.log_prob(GOOD, label=LABELS)
  np.testing.assert_allclose(jitted(GOOD, LABELS), expected, rtol=1e-5)
  text = str(jax.make_jaxpr(jitted)(GOOD, LABELS))
  assert 'callback' not in text and 'check' not in text


@pytest.mark.parametrize('convert', [np.ndarray.tolist, jnp.asarray, lambda x: x.astype(np.int64), lambda x: x])
def test_lists_and_all_arrays_are_good(digits, convert):
  expected = np.asarray(eager(digits, GOOD, {'label': LABELS}))
  for labels in (convert(LABELS), [0, 1, 2, 3], tuple(range(4))):
    np.testing.assert_allclose(digits.log_prob(convert(GOOD), label=labels), expected, rtol=1e-5)
    np.testing.assert_allclose(eager(digits, convert(GOOD), {'label': labels}), expected, rtol=1e-5)


def test_samples_take_numpy_images_outside_jit(digits):
  keys = jax.random.split(jax.random.key(0), 4)
  images, _ = sample(digits.model, digits.variables, keys, {'label': LABELS.tolist()}, 1.0, GOOD,
                     positions_in_rows(digits.model, 7))
  np.testing.assert_array_equal(images[:, :7], GOOD[:, :7])


def test_a_run_trained_from_python_is_a_run_like_any_other(call, digits):
  files = {path.name for path in digits.workdir.iterdir()}
  assert {'config.json', 'lock', 'results.json', 'metrics.jsonl', 'data.json', 'checkpoints', 'samples'} <= files
  results = json.loads((digits.workdir / 'results.json').read_text())
  evaluation = digits.evaluate()
  assert results['bits_per_dim'] == pytest.approx(evaluation.bits_per_dim, abs=1e-6) and results['step'] == 3
  loaded = it.load(str(digits.workdir))
  assert loaded.config == digits.config and loaded.step == digits.step == 3
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, digits.variables)
  assert call('--mode=sample', f'--workdir={digits.workdir}', '--num_samples=3')[0] == 0
  again = it.train(digits.config, digits.workdir)  # finished: nothing changes
  jax.tree.map(np.testing.assert_array_equal, again.variables, digits.variables)
  refused('holds another run', it.train, it.load_config('digits', {**TINY, 'seed': 1}), digits.workdir)


def test_more_steps_resume(data_dir, tmp_path):
  config = {**TINY, 'data_dir': data_dir, 'optimizer.schedule': 'rsqrt'}
  straight = it.train(it.load_config('digits', config), tmp_path / 'straight')
  it.train(it.load_config('digits', {**config, 'train.steps': 2}), tmp_path / 'resumed')
  resumed = it.train(it.load_config('digits', config), tmp_path / 'resumed')
  jax.tree.map(np.testing.assert_array_equal, resumed.variables, straight.variables)


def test_scores_of_images_are_the_evaluators(digits):
  images, given = digits.examples(20)
  assert images.shape == (20, 8, 8, 1) and given.keys() == {'label'}
  bits = digits.bits_per_dim(images, **given)
  assert bits.dtype == np.float64 and bits.shape == (20,)
  assert bits.mean() == pytest.approx(digits.evaluate().bits_per_dim, abs=1e-6)
  nats = digits.pixel_log_probs(images, **given)
  assert nats.shape == (20, 8, 8, 1)
  np.testing.assert_allclose(nats.sum(axis=(1, 2, 3)), digits.log_prob(images, **given), rtol=1e-5)
  np.testing.assert_allclose(digits.log_prob(images[:3], label=given['label'][:3]),
                             digits.log_prob(images, **given)[:3], rtol=1e-5)


def test_samples_follow_from_seed_label_and_temperature(digits):
  images = digits.sample(10)
  assert images.dtype == np.uint8 and images.shape == (10, 8, 8, 1) and images.max() < 17
  np.testing.assert_array_equal(images, digits.sample(10, label=np.arange(10)))  # of each class
  np.testing.assert_array_equal(digits.sample(3, label=2), digits.sample(3, label=[2, 2, 2], seed=0))
  assert (digits.sample(10, label=3) != images).any() and (digits.sample(10, seed=1) != images).any()
  assert (digits.sample(10, temperature=0.5) != images).any()
  drawn, log_probs = digits.draw(10, {'label': np.arange(10)})
  np.testing.assert_array_equal(drawn, images)
  np.testing.assert_allclose(log_probs, digits.log_prob(images, label=np.arange(10)), rtol=1e-4)


def test_completions_keep_rows_and_enlargements_have_the_size_of_the_model(digits, superres):
  completed = digits.complete(GOOD, rows=5, label=LABELS)
  np.testing.assert_array_equal(completed[:, :5], GOOD[:, :5])
  assert (completed[:, 5:] != GOOD[:, 5:]).any()
  large = superres.enlarge(SMALL, label=LABELS)
  assert large.shape == (4, 8, 8, 1)
  np.testing.assert_array_equal(large, superres.sample(4, low_res=SMALL, label=LABELS))
  images, given = superres.examples(4)
  assert superres.log_prob(images, **given).shape == (4,) and given['low_res'].shape == (4, 4, 4, 1)


def test_compression_does_not_depend_on_the_users_settings_of_jax(digits):
  images = np.concatenate([GOOD] * 6)
  content = digits.compress(images, label=3)
  settings = {'jax_enable_x64': True, 'jax_numpy_dtype_promotion': 'strict', 'jax_transfer_guard': 'disallow'}
  before = {name: getattr(jax.config, name) for name in settings}
  try:
    for name, value in settings.items():  # of all threads, as by environment variables
      jax.config.update(name, value)
    assert digits.compress(images, label=3) == content
    np.testing.assert_array_equal(digits.decompress(content), images)
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def test_many_images_go_through_in_batches(digits, monkeypatch):
  seen = []
  monkeypatch.setattr('image_transformer.devices.own_part', lambda tree: seen.append(len(tree[0])) or tree)
  assert digits.sample(25, label=1).shape == (25, 8, 8, 1)
  assert seen == [10, 10, 10]


def test_names_of_the_package():
  assert it.__version__ and set(dir(it)) == set(it.__all__)
  for name in it.__all__:
    assert getattr(it, name) is not None
  assert callable(it.train) and it.Config is type(it.load_config('digits'))
  assert it.from_dict({'seed': 3}).seed == 3
  with pytest.raises(AttributeError, match='no attribute'):
    _ = it.nonsense


def test_importing_the_package_imports_nothing_large():
  code = 'import sys, image_transformer; sys.exit("jax" in sys.modules or "numpy" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize('changes, says', [
    ({'train.step': 3}, 'did you mean train.steps'), ({'learning_rate': 1.0}, 'did you mean optimizer.learning_rate'),
    ({'model': 3}, 'Unknown configuration field model'), ({'train.steps': 'x'}, 'train.steps is')])
def test_wrong_fields_are_refused(changes, says):
  refused(says, it.load_config, 'digits', changes)


@pytest.mark.parametrize('name', ['nonsense', '', 'base', 'paper', '../digits', 'digits:huge'])
def test_unknown_configurations_are_refused(name):
  with pytest.raises(it.InputError, match='cifar10_1d, .*digits, folder' if ':' not in name else ':huge'):
    it.load_config(name)


def test_the_python_of_the_readme(digits, capsys):
  code = re.search(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
  names = {}
  exec(code.replace("load('digits')", f'load({str(digits.workdir)!r})'), names)
  assert names['threes'].shape == names['completed'].shape == (10, 8, 8, 1) and names['bits_per_dim'].shape == (10,)
  np.testing.assert_array_equal(names['completed'][:, :4], names['threes'][:, :4])
  assert 'bits/dim on 20 images' in capsys.readouterr().out


FROM_PYTHON = """
import image_transformer as it
it.train(it.load_config('digits', FIELDS), 'from_python')
run = it.load('from_python')
images, given = run.examples(4)
print('scores', run.evaluate(), run.bits_per_dim(images, **given).shape)
print('shapes', run.sample(10).shape, run.complete(images, rows=4, **given).shape, it.__file__)
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A new environment with the package installed from a wheel, beside what it needs, and an empty folder."""
  place = tmp_path_factory.mktemp('installed')
  source, venv = place / 'source', place / 'venv'
  source.mkdir()
  for name in ('setup.py', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source / name)
  for name in ('configs', 'image_transformer'):
    shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
  library, = (venv / 'lib').glob('*/site-packages')
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation',
                  '--disable-pip-version-check', f'--target={library}', source], check=True)
  # What the package depends on comes from here, without the editable installation of this checkout.
  (library / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
  assert (library / 'bin' / 'image-transformer').exists()
  (place / 'empty').mkdir()
  return place


def test_installed_it_runs_from_anywhere(installed):
  """The command by name, its later modes, and the library, from an empty folder; no warnings on the screen."""
  python, = (installed / 'venv' / 'bin').glob('python')
  library, = (installed / 'venv' / 'lib').glob('*/site-packages')
  environment = {**os.environ, 'TFDS_DATA_DIR': str(installed / 'data'), 'PYTHONPATH': ''}

  def run(*command):
    done = subprocess.run([python, *command], cwd=installed / 'empty', env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'warning' not in done.stderr.lower(), done.stderr
    return done.stdout

  command = str(library / 'bin' / 'image-transformer')
  printed = run(command, '--config=digits:smoke', *(f'--config.{name}={value}' for name, value in TINY.items()))
  assert 'bits/dim on 20 images of digits test, step 3. In runs/digits_smoke: results.json' in printed
  assert 'bits/dim on 20 images' in run(command, '--mode=eval', '--workdir=runs/digits_smoke')
  assert 'Wrote' in run(command, '--mode=sample', '--workdir=runs/digits_smoke', '--num_samples=10')
  assert 'Wrote' in run(command, '--mode=complete', '--workdir=runs/digits_smoke', '--keep=4', '--num_inputs=2')
  printed = run(command, '--mode=complete', '--workdir=weights/digits', '--keep=4', '--num_inputs=2')
  assert 'Copied the weights' in printed and 'Wrote weights/digits/samples/' in printed
  printed = run('-c', f'FIELDS = {TINY}\n{FROM_PYTHON}')
  assert 'scores' in printed and '(10, 8, 8, 1) (4, 8, 8, 1)' in printed and str(library) in printed
  assert '--average_checkpoints' in run('-m', 'image_transformer', '--help')
