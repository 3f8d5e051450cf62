"""Exported parameters: what comes back is what was trained, and nothing else is taken for it."""

import dataclasses
import json
import pathlib

from etils import epath
import numpy as np
from PIL import Image
import pytest
import safetensors.numpy

from helpers import leave_run
import image_transformer as it
from image_transformer import reports, runs, weights
from image_transformer.config import Config, FolderConfig, ModelConfig
from image_transformer.datasets import digits, moving_digits, scenes
from image_transformer.images import area_resize

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ModelConfig(query_block=(16,), memory_flange=(16,), num_layers=1, hidden_size=16, num_heads=2, ffn_size=16,
                    class_conditional=True, dropout=0.0)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  """A run with averaged parameters."""
  config = Config(dataset='digits', data_dir=data_dir, model=MODEL)
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7, ema_decay=0.9))
  workdir = tmp_path_factory.mktemp('run')
  leave_run(workdir, config, steps=(7,))
  return it.load(workdir)


@pytest.fixture
def exported(run, tmp_path):
  run.export(tmp_path / 'exported')
  return tmp_path / 'exported'


def test_exported_parameters_come_back(run, exported):
  again = it.load(exported)
  assert again.step == 7 and again.model.config == run.model.config
  images = np.random.default_rng(0).integers(17, size=(3, 8, 8, 1))
  np.testing.assert_array_equal(again.log_prob(images, label=3), run.log_prob(images, label=3))
  assert sorted(path.name for path in exported.iterdir()) == ['config.json', 'params.safetensors']


def test_others_can_read_them(run, exported):
  flat = safetensors.numpy.load_file(exported / 'params.safetensors')
  assert sum(array.size for array in flat.values()) > 1000
  np.testing.assert_array_equal(flat['output/kernel'], run.variables['params']['output']['kernel'])


def test_nothing_of_this_machine_is_exported(run, tmp_path):
  config = dataclasses.replace(run.config, init_from='/secret/run', folder=FolderConfig(path='/secret/photos'))
  weights.write(epath.Path(tmp_path), config, run.variables['params'], 7)
  content = (tmp_path / 'config.json').read_text()
  assert 'secret' not in content and run.config.data_dir not in content
  assert runs.read_config(tmp_path).model == run.config.model


def test_nothing_is_overwritten(run, exported):
  with pytest.raises(it.InputError, match='folder is .*, but must be one that does not exist yet'):
    run.export(exported)


def test_a_run_can_begin_with_them_but_not_train_among_them(run, exported, tmp_path, data_dir):
  before = {path: path.read_bytes() for path in exported.iterdir()}
  with pytest.raises(it.InputError, match='holds exported weights, which cannot be trained there.*init_from='):
    it.train(dataclasses.replace(run.config, data_dir=data_dir), exported)
  assert {path: path.read_bytes() for path in exported.iterdir()} == before
  config = dataclasses.replace(
      run.config, init_from=str(exported), eval=dataclasses.replace(run.config.eval, num_images=8, batch_size=8),
      sample=dataclasses.replace(run.config.sample, num_images=2),
      optimizer=dataclasses.replace(run.config.optimizer, learning_rate=1e-30),
      train=dataclasses.replace(run.config.train, steps=1, batch_size=8, ema_decay=0.0))
  trained = it.train(config, tmp_path / 'more')
  images = np.random.default_rng(0).integers(17, size=(3, 8, 8, 1))
  np.testing.assert_allclose(trained.log_prob(images, label=3), run.log_prob(images, label=3), rtol=1e-6)


@pytest.mark.parametrize('damage', [
    lambda content: content[:100], lambda content: content[:-1], lambda content: b'',
    lambda content: b'\xff' * 8 + content[8:], lambda content: content[:8] + b'[' + content[9:],
    lambda content: content.replace(b'"step"', b'"stop"', 1), lambda content: content[:-99] + b'x' + content[-98:]])
def test_damage_is_recognised(exported, damage):
  path = exported / 'params.safetensors'
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(it.InputError, match='params.safetensors is damaged .*: replace it'):
    it.load(exported)


def test_they_can_be_evaluated_on_the_images_of_a_folder(data_dir, tmp_path):
  (tmp_path / 'photos').mkdir()
  for i, pixels in enumerate(np.random.default_rng(0).integers(256, size=(10, 8, 8, 3), dtype=np.uint8)):
    Image.fromarray(pixels).save(tmp_path / 'photos' / f'{i}.png')
  config = Config(dataset='folder', data_dir=data_dir, folder=FolderConfig(path=str(tmp_path / 'photos'), size=(8, 8)),
                  model=dataclasses.replace(MODEL, class_conditional=False))
  leave_run(tmp_path / 'run', config)
  it.load(tmp_path / 'run').export(tmp_path / 'exported')
  evaluated = it.load(tmp_path / 'exported', config)
  assert evaluated.evaluate().num_images == 1
  assert reports.folder_of(it.load(tmp_path / 'run', config)) == ''
  names = {reports.folder_of(evaluated)}
  (tmp_path / 'photos').rename(tmp_path / 'others')
  others = dataclasses.replace(config.folder, path=str(tmp_path / 'others'))
  evaluated = it.load(tmp_path / 'exported', dataclasses.replace(config, folder=others))
  names |= {reports.folder_of(evaluated)}
  assert {name.split('-')[0] for name in names} == {'photos', 'others'}
  reports.write_evaluation(evaluated, evaluated.evaluate(), 'test')
  assert (tmp_path / 'exported' / f'results_{reports.folder_of(evaluated)}.json').exists()
  with pytest.raises(it.InputError, match='folder.path is not set'):  # where they are is not exported
    it.load(tmp_path / 'exported').evaluate()
  with pytest.raises(it.InputError, match=r'holds another run: folder.crop \(True there, False here'):
    it.load(tmp_path / 'exported', dataclasses.replace(config, folder=dataclasses.replace(config.folder, crop=False)))


def test_those_of_another_network_are_recognised(exported):
  config = json.loads((exported / 'config.json').read_text())
  config['model']['ffn_size'] = 24
  (exported / 'config.json').write_text(json.dumps(config))
  with pytest.raises(it.InputError, match='is of another network: decoder/layer_0/ffn/.* there, and .*24'):
    it.load(exported)


def test_other_parameters_than_were_exported_are_not_there(run, exported, tmp_path):
  raw = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, ema=False))
  with pytest.raises(it.InputError, match='eval.ema is False, but must be True: no others were exported'):
    it.load(exported, raw)
  none_averaged = dataclasses.replace(raw, train=dataclasses.replace(raw.train, ema_decay=0.0))
  leave_run(tmp_path / 'run', none_averaged)
  it.load(tmp_path / 'run').export(tmp_path / 'again')
  eval_averaged = dataclasses.replace(none_averaged, eval=dataclasses.replace(raw.eval, ema=True))
  assert it.load(tmp_path / 'again', eval_averaged).step == 1  # there are no others then


def test_checkpoints_of_them_cannot_be_averaged(exported):
  with pytest.raises(it.InputError, match='num_checkpoints is 2, but must be 1 for exported weights'):
    it.load(exported, num_checkpoints=2)


def test_models_that_come_with_the_program_have_names(run, data_dir, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(weights, '_SHIPPED', tmp_path / 'shipped')
  monkeypatch.chdir(tmp_path)
  run.export(tmp_path / 'shipped' / 'tiny')
  (tmp_path / 'shipped' / 'tiny' / 'README.md').write_text('A card.')
  (tmp_path / 'shipped' / 'tiny' / 'samples').mkdir()  # of somebody who used it there
  assert weights.shipped() == ['tiny']
  assert it.load('tiny').step == it.load('weights/tiny').step == 7
  assert weights.find('weights/tiny/') == tmp_path / 'shipped' / 'tiny'
  for other in ('runs/tiny', 'x/weights/tiny', 'weights/other', pathlib.Path('/weights/tiny')):
    assert weights.find(other) == other
  assert weights.lasting_path('weights/tiny') == 'weights/tiny'
  # The command draws into its workdir, so that it needs a copy; but a run may be named tiny.
  assert weights.place('tiny') == 'tiny' and not pathlib.Path('tiny').exists()
  with pytest.raises(it.InputError, match='weights/tiny holds exported weights, which cannot be trained there'):
    it.train(dataclasses.replace(run.config, data_dir=data_dir), 'weights/tiny')
  assert not pathlib.Path('weights').exists()
  for _ in range(2):
    assert weights.place('weights/tiny') == 'weights/tiny'
    files = sorted(path.name for path in pathlib.Path('weights/tiny').iterdir())
    assert files == ['README.md', 'config.json', 'params.safetensors']
  assert capsys.readouterr().out.count('Copied') == 1
  assert it.load('weights/tiny').workdir == epath.Path('weights/tiny')
  pathlib.Path('weights/tiny/config.json').unlink()  # a copy that was stopped
  pathlib.Path('weights/tiny/README.md').write_text('My own words.')
  pathlib.Path('weights/tiny/params.safetensors').write_text('of another release')
  assert weights.place('weights/tiny') == 'weights/tiny' and it.load('weights/tiny').step == 7
  assert pathlib.Path('weights/tiny/README.md').read_text() == 'My own words.'
  assert weights.lasting_path('weights/tiny/') == 'weights/tiny'  # as before it was copied
  assert weights.lasting_path('weights/other') == str(tmp_path / 'weights' / 'other')
  assert weights.lasting_path('tiny') == str(tmp_path / 'shipped' / 'tiny')
  pathlib.Path('tiny/checkpoints').mkdir(parents=True)  # one's own comes first, though its configuration is lost
  with pytest.raises(it.InputError, match='There is no tiny/config.json'):
    it.load('tiny')


# The models that come with the program, and the folders of their results.
SHIPPED = {'cifar10': 'cifar10_fast', 'digits': 'digits', 'moving_digits': 'moving_digits_more',
           'scenes': 'scenes_more', 'superres': 'cifar10_fast_superres'}


def test_the_models_that_come_with_the_program_are_small_and_have_cards():
  assert weights.shipped() == sorted(SHIPPED)
  folders = [ROOT / 'weights' / name for name in SHIPPED]
  assert sum(file.stat().st_size for folder in folders for file in folder.glob('*.*')) < 10e6
  for folder, results in zip(folders, SHIPPED.values()):
    card = (folder / 'README.md').read_text()
    assert all(f'**{word}**' in card for word in ('Data', 'License', 'Trained by', 'Measured', 'Not for')), folder.name
    measured = json.loads((ROOT / 'results' / results / 'results.json').read_text())
    assert f'{measured["bits_per_dim"]:.4g} +- {measured["standard_error"]:.2g} bits/dim' in card, folder.name
    assert f'{measured["num_images"]:,}' in card and f'results/{results}' in card, folder.name


def test_the_digits_that_come_with_the_program_are_those_that_were_measured(data_dir):
  config = dataclasses.replace(runs.read_config(ROOT / 'weights' / 'digits'), data_dir=data_dir)
  measured = json.loads((ROOT / 'results' / 'digits' / 'results.json').read_text())
  assert it.load('digits', config).evaluate().bits_per_dim == pytest.approx(measured['bits_per_dim'], abs=1e-4)


def test_the_others_know_what_they_were_trained_for():
  photos = np.stack([np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BOX))
                     for path in sorted((ROOT / 'docs' / 'photos').glob('*.jpg'))])
  # As PNG, three of them need more than 6. What a JPEG shows differs a little among decoders.
  assert it.load('cifar10').bits_per_dim(photos) == pytest.approx([3.848, 4.336, 4.677, 2.096], abs=0.01)
  upscaler = it.load('superres')
  small = area_resize(photos, 8, 8)
  assert upscaler.bits_per_dim(photos, low_res=small) == pytest.approx([3.792, 4.218, 4.708, 2.200], abs=0.01)
  assert upscaler.bits_per_dim(photos, low_res=small[::-1]).min() > 5
  drawings, captions = zip(*(scenes.scene('test', i) for i in range(2)))
  drawer = it.load('scenes')
  bits = lambda texts: drawer.bits_per_dim(np.stack(drawings), text=texts) * 3072
  assert bits([*captions]) == pytest.approx([31.05, 17.91], rel=2e-3)
  assert bits('') == pytest.approx([43.90, 29.01], rel=2e-3)
  clip = moving_digits.clip('test', 0, digits.images()['test'])
  assert it.load('moving_digits').bits_per_dim(clip[None]) == pytest.approx([0.07091], rel=2e-3)
