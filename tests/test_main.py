"""The program as a user meets it: every mode end to end, and what it says to bad input."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image
import pytest

from helpers import leave_run
from image_transformer import data, runs
from image_transformer.config import ModelConfig, from_dict
from image_transformer.configs import paper
from image_transformer.errors import InputError
from image_transformer.experiments import load_config
from image_transformer.images import area_resize
from image_transformer.library import load as load_run
from image_transformer.model import make_model, num_parameters
from image_transformer.optimizers import learning_rate
from image_transformer.tasks import Task

ROOT = pathlib.Path(__file__).parent.parent
TINY = ['--config=configs/digits.py', '--config.model.num_layers=1', '--config.model.hidden_size=16',
        '--config.model.num_heads=2', '--config.model.ffn_size=16', '--config.train.steps=3',
        '--config.train.batch_size=8', '--config.train.checkpoint_every=2', '--config.train.sample_every=0',
        '--config.eval.num_images=20', '--config.sample.num_images=10', '--config.sample.batch_size=10']
TINY_SUPERRES = [*TINY, '--config.model.upscale=2', '--config.model.num_encoder_layers=1',
                 # Fewer images than a picture has place for.
                 '--config.eval.split=test[:6]', '--config.eval.num_images=0']


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture(scope='module')
def digits(data_dir, tmp_path_factory):
  """A trained run, from a command of its own; what that printed lies beside it."""
  workdir = tmp_path_factory.mktemp('runs') / 'digits'
  done = subprocess.run([sys.executable, 'main.py', *TINY, f'--config.data_dir={data_dir}', f'--workdir={workdir}'],
                        cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  workdir.with_name('printed').write_text(done.stdout)
  return workdir


@pytest.fixture(scope='module')
def superres(call, digits, data_dir):
  """A trained run of super-resolution from 4 x 4, beside the other."""
  workdir = digits.with_name('superres')
  code, printed = call(*TINY_SUPERRES, f'--config.data_dir={data_dir}', f'--workdir={workdir}')
  assert code == 0, printed
  return workdir


@pytest.fixture(scope='module')
def blocks(data_dir, tmp_path_factory):
  """A run of 2D attention without classes, which nobody trained."""
  workdir = tmp_path_factory.mktemp('blocks') / 'run'
  leave_run(workdir, from_dict({
      'dataset': 'digits', 'data_dir': str(data_dir),
      'model': {'query_block': (2, 4), 'memory_flange': (1, 1), 'num_layers': 1, 'hidden_size': 8, 'num_heads': 1,
                'ffn_size': 8}}))
  return workdir


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of two pictures, one larger than a digit."""
  folder = tmp_path_factory.mktemp('photos')
  for i, shape in enumerate([(9, 12, 3), (8, 8, 3)]):
    Image.fromarray(np.random.default_rng(i).integers(256, size=shape, dtype=np.uint8)).save(folder / f'{i}.png')
  return folder


def load(path):
  return json.loads(path.read_text())


def written(printed, suffix):
  """The files of one kind that a command says it wrote, in order."""
  return [pathlib.Path(name) for name in re.findall(rf'^Wrote (.*{suffix})$', printed, re.MULTILINE)]


def arrays(printed):
  return [np.load(path) for path in written(printed, '.npz')]


def test_train_eval_and_sample_from_the_command_line(call, digits):
  results, printed = load(digits / 'results.json'), digits.with_name('printed').read_text()
  assert f'{results["bits_per_dim"]:.4f} +- {results["standard_error"]:.4f} bits/dim on 20 images' in printed
  assert results['num_images'] == 20 and results['step'] == 3 and results['training_seconds'] > 0
  assert results['num_parameters'] == num_parameters(load_run(digits).model) > 1000
  assert (digits / 'checkpoints' / '3').exists()
  assert Image.open(digits / 'samples' / '0000003.png').size[1] > 500
  trained = json.loads((digits / 'metrics.jsonl').read_text().splitlines()[-1])
  assert trained['split'] == 'test' and trained['bits_per_dim'] == results['bits_per_dim']

  (digits / 'results.json').unlink()
  assert call('--mode=eval', f'--workdir={digits}')[0] == 0
  again = load(digits / 'results.json')
  assert again['bits_per_dim'] == pytest.approx(results['bits_per_dim'], abs=1e-6) and again['num_checkpoints'] == 1

  code, printed = call('--mode=sample', f'--workdir={digits}', '--num_samples=7', '--temperature=0.5,1',
                       '--labels=3,4', '--seed=2', '--npz')
  assert code == 0
  drawn, warmer = arrays(printed)
  assert drawn['images'].shape == (7, 8, 8, 1) and drawn['images'].max() <= 16
  assert drawn['label'].tolist() == [3, 4, 3, 4, 3, 4, 3] and (drawn['log_probs'] < 0).all()
  assert (drawn['images'] != warmer['images']).any()


def test_evaluating_the_mean_of_checkpoints(call, digits):
  one = load(digits / 'results.json')
  assert call('--mode=eval', f'--workdir={digits}', '--average_checkpoints=2')[0] == 0
  two = load(digits / 'results_average2.json')
  assert load(digits / 'results.json') == one
  assert two['num_checkpoints'] == 2 and two['step'] == 3 and two['bits_per_dim'] != one['bits_per_dim']


def test_a_smaller_evaluation_does_not_replace_a_larger_one(call, digits):
  whole = load(digits / 'results.json')
  assert call(*TINY, '--mode=eval', f'--workdir={digits}', '--config.eval.num_images=5')[0] == 0
  assert load(digits / 'results.json') == whole
  assert load(digits / 'results_first5.json')['num_images'] == 5


def test_an_evaluation_of_another_split_has_its_own_file(call, digits, superres):
  for run, split, arguments in (digits, 'train[:30]', [*TINY, '--mode=eval']), (
      superres, 'test[:7]', [*TINY_SUPERRES, '--mode=eval']):
    before = load(run / 'results.json')
    assert call(*arguments, f'--workdir={run}', f'--config.eval.split={split}', '--config.eval.num_images=0')[0] == 0
    assert load(run / 'results.json') == before
    assert load(run / f'results_{split}.json')['split'] == split


def test_a_run_on_generated_images_is_evaluated_by_the_command_that_made_it(call, tmp_path):
  arguments = ['--config=configs/imagenet32_1d.py:smoke', f'--config.data_dir={tmp_path}',
               f'--workdir={tmp_path / "run"}', '--config.model.num_layers=1', '--config.train.steps=1',
               '--config.eval.num_images=2',
               '--config.sample.num_images=1']
  code, printed = call(*arguments)
  assert code == 0 and 'training on generated images' in printed and 'not a result' in printed, printed
  code, printed = call('--mode=eval', *arguments)
  assert code == 0 and load(tmp_path / 'run' / 'results.json')['dataset'] == 'generated_imagenet32_old', printed
  code, printed = call('--mode=table', f'--workdir={tmp_path}')
  assert code == 0 and f'generated images: {tmp_path / "run"}' in printed


def test_completing_images_of_the_split_and_of_a_folder(call, digits, photos):
  arguments = '--mode=complete', f'--workdir={digits}', '--keep=5', '--num_samples=3', '--npz'
  for more in (['--num_inputs=2'], [f'--input={photos}', '--labels=7']):
    code, printed = call(*arguments, *more)
    assert code == 0 and written(printed, '.png')[0].parent == digits / 'samples'
    drawn, = arrays(printed)
    assert drawn['samples'].shape == (2, 3, 8, 8, 1) and drawn['log_probs'].shape == (2, 3)
    np.testing.assert_array_equal(drawn['samples'][:, :, :5], np.repeat(drawn['image'][:, None, :5], 3, axis=1))
    assert len(np.unique(drawn['samples'].reshape(6, -1), axis=0)) == 6
  assert drawn['label'].tolist() == [7, 7]


def test_inputs_of_one_name_give_pictures_of_their_own(call, digits, tmp_path):
  names = ['a/photo.png', 'b/photo.png', 'b/photo.jpg', f'{"q" * 240}.png']
  found = []
  for i, name in enumerate(names):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new('RGB', (8, 8), (60 * i, 0, 0)).save(tmp_path / name)
    code, printed = call('--mode=complete', f'--workdir={digits}', '--keep=4', '--num_samples=1', '--labels=1',
                         f'--input={tmp_path / name}')
    assert code == 0, printed
    found += written(printed, '.png')
  assert len(set(found)) == 4 and all(path.exists() for path in found)


def test_compressing_and_decompressing(call, digits, tmp_path):
  """In processes of their own, from the split and from the folder that came out; damage costs one image."""
  file, folder = tmp_path / 'a.itc', tmp_path / 'out'
  images, given = load_run(digits).examples(3)
  code, printed = call('--mode=compress', f'--workdir={digits}', '--num_inputs=3', f'--output={file}')
  assert code == 0 and f'{file.stat().st_size:,} bytes, which give back the same images' in printed, printed
  code, printed = call('--mode=decompress', f'--workdir={digits}', f'--input={file}', f'--output={folder}')
  assert code == 0 and 'Wrote 3 images' in printed, printed
  for i, image in enumerate(images):
    with Image.open(folder / f'{i:05d}.png') as picture:
      np.testing.assert_array_equal(np.array(picture), np.round(image[..., 0] * (255 / 16)))
  labels = ','.join(map(str, given['label']))
  code, printed = call('--mode=compress', f'--workdir={digits}', f'--input={folder}', f'--labels={labels}',
                       '--no_verify', f'--output={tmp_path / "again.itc"}')
  assert code == 0 and (tmp_path / 'again.itc').read_bytes() == file.read_bytes(), printed
  content = bytearray(file.read_bytes())
  content[-9] ^= 4
  file.write_bytes(content)
  code, printed = call('--mode=decompress', f'--workdir={digits}', f'--input={file}', f'--output={tmp_path / "rest"}')
  assert code == 1 and printed.endswith(f'1 of 3 images in {file} are damaged: 2.\n'), printed
  assert sorted(path.name for path in (tmp_path / 'rest').iterdir()) == ['00000.png', '00001.png']


def test_scores_are_a_line_for_each_image(call, digits, photos):
  for arguments, names in ((['--num_inputs=4'], ['0', '1', '2', '3']), ([f'--input={photos}'], None)):
    code, printed = call('--mode=score', f'--workdir={digits}', *arguments)
    path, = written(printed, '.csv')
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert code == 0 and path.parent == digits / 'scores'
    assert [line['image'] for line in lines] == (names or list(map(str, sorted(photos.iterdir()))))
    for line in lines:
      posterior = [float(line[f'p_{k}']) for k in range(10)]
      assert abs(sum(posterior) - 1) < 1e-4 and int(line['class']) == np.argmax(posterior)
      assert float(line['minus_png']) == pytest.approx(float(line['bits_per_dim']) - float(line['png']), abs=1e-4)


def test_enlarging_images_of_the_split_and_of_a_folder(call, superres, photos):
  assert (superres / 'samples' / '0000003.png').exists()
  arguments = '--mode=superres', f'--workdir={superres}', '--num_samples=2', '--npz'
  code, printed = call(*arguments, '--temperature=1,0.5', '--num_inputs=0')
  assert code == 0 and 'bits/dim on 6 images, each given its small form' in printed
  report = load(superres / 'superres.json')
  assert report['num_images'] == 6 and report['source'] == 'test[:6]' and report['num_samples'] == 2
  assert report['bits_per_dim']['mean'] == pytest.approx(load(superres / 'results.json')['bits_per_dim'], abs=1e-6)
  for way in ('bicubic', 'temperature 1', 'temperature 0.5'):
    assert report[way].keys() == {'consistency', 'mismatch', 'psnr', 'ssim'} and way in printed
    assert len(report[way]['psnr']['per_image']) == 6
  _, drawn = arrays(printed)
  assert drawn['samples'].shape == (6, 2, 8, 8, 1)
  error = np.square((area_resize(drawn['samples'], 4, 4) - drawn['low_res'][:, None].astype(int)) / 16).mean()
  assert report['temperature 0.5']['consistency']['mean'] == pytest.approx(error)

  for fewer in (['--temperature=0.5', '--num_inputs=0'], ['--temperature=1,0.5', '--num_inputs=5'],
                ['--temperature=1,0.5', '--num_inputs=0', '--average_checkpoints=2'],
                ['--temperature=1,0.5', '--num_inputs=0', '--num_samples=1'],
                [*TINY_SUPERRES, '--config.eval.split=test[:7]', '--temperature=1,0.5', '--num_inputs=0']):
    code, printed = call(*arguments, *fewer)
    assert code == 0 and load(superres / 'superres.json') == report, fewer

  reports = []
  for temperature in '1', '0.5,0.8':
    code, printed = call(*arguments, f'--input={photos}', '--labels=1', f'--temperature={temperature}')
    assert code == 0 and load(superres / 'superres.json') == report  # that of the split stays
    reports += written(printed, '.json')
  assert [load(path)['source'] for path in reports] == [str(photos)] * 2  # neither replaces the other
  assert [path.stem.rpartition('_')[2] for path in reports] == ['temperature1', 'temperature0.5-0.8']


def test_a_small_picture_without_an_original_is_enlarged(call, superres, tmp_path):
  Image.new('L', (4, 4), 99).save(tmp_path / 'small.png')
  code, printed = call('--mode=superres', f'--workdir={superres}', f'--input={tmp_path}/small.png', '--labels=1',
                       '--num_samples=1')
  assert code == 0 and 'consistency' in printed and 'psnr' not in printed and 'bits/dim' not in printed


def test_pictures_of_what_a_model_sees_used_and_found_surprising(call, digits, photos, tmp_path):
  for arguments, name in [
      ('--kind=memory --position=2,3', 'memory_row2_column3'),
      ('', '0000003_attention_test_row4_column4'),
      (f'--input={photos / "1.png"} --labels=3 --position=7,7',
       f'0000003_attention_1-{zlib.crc32(bytes(photos / "1.png")):08x}_row7_column7_labels3'),
      ('--kind=bits --num_inputs=3', '0000003_bits_test_3'), ('--kind=curves', 'curves')]:
    code, printed = call('--mode=picture', f'--workdir={digits}', *arguments.split())
    assert code == 0 and written(printed, '.png') == [digits / 'pictures' / f'{name}.png'], printed
    picture = np.asarray(Image.open(digits / 'pictures' / f'{name}.png'))
    assert picture.std() > 10, 'nothing is drawn'
  code, printed = call('--mode=picture', f'--workdir={digits.parent}', '--kind=curves')
  assert code == 0 and (digits.parent / 'pictures' / 'curves.png').exists()
  assert not list(digits.parent.glob('events*'))
  code, printed = call('--mode=picture', '--kind=memory', '--config=configs/cifar10_2d.py', f'--workdir={tmp_path}')
  assert code == 0 and [path.name for path in tmp_path.rglob('*.png')] == ['memory_row16_column16.png'], printed
  runs.check_workdir(tmp_path)  # a run can still begin there


def test_the_table_of_runs(call, digits, superres):
  code, printed = call('--mode=table', f'--workdir={digits.parent}')
  assert code == 0 and printed.startswith('### Other runs') and '### CIFAR-10' not in printed
  code, printed = call('--mode=table', f'--workdir={digits.parent}', '--all')
  assert code == 0 and '### CIFAR-10' in printed
  code, printed = call('--mode=table', f'--workdir={digits.parent}', '--csv')
  lines = [line for line in csv.DictReader(printed.splitlines()) if line['table'] == 'Other runs']
  for path in [*digits.glob('results.json'), *digits.glob('results_average*.json'), superres / 'results.json']:
    assert (str(path.parent), str(load(path)['bits_per_dim'])) in [(line['row'], line['ours']) for line in lines]


@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_a_folder_without_a_path_is_not_replaced_by_generated_images(call, tmp_path, more):
  arguments = '--config=folder:smoke', f'--config.data_dir={tmp_path}', f'--workdir={tmp_path / "run"}', *more
  code, printed = call(*arguments, '--config.stand_in=True')
  assert code == 2 and 'folder.path is not set' in printed and not any(tmp_path.iterdir())
  code, printed = call(*arguments, f'--config.folder.path={tmp_path / "typo"}')
  assert code == 2 and 'typo, which does not exist' in printed and not any(tmp_path.iterdir())


@pytest.mark.parametrize('more', [[], ['--dry_run']])
def test_what_a_run_would_begin_with_is_looked_at_before_its_data_are_prepared(call, tmp_path, more):
  arguments = '--config=digits', f'--config.data_dir={tmp_path / "data"}', f'--workdir={tmp_path / "run"}', *more
  for init_from, says in [('nowhere', 'nowhere/config.json: init_from must be the folder of a run'),
                          ('cifar10', 'init_from is .*cifar10.* of the same network')]:
    code, printed = call(*arguments, f'--config.init_from={init_from}')
    assert code == 2 and re.search(says, printed) and printed.count('\n') == 1, printed
  assert not any(tmp_path.iterdir())


def test_evaluating_does_not_care_for_how_long_a_configuration_trains(call, digits, data_dir):
  arguments = ['--mode=eval', f'--workdir={digits}', *TINY, f'--config.data_dir={data_dir}']
  code, printed = call(*arguments, '--config.train.steps=77', '--config.optimizer.schedule=cosine')
  assert code == 0 and 'step 3.' in printed, printed


def test_another_run_is_refused_before_its_data_are_prepared(call, digits, tmp_path):
  for more in ([], ['--dry_run']):
    code, printed = call('--config=digits', f'--workdir={digits}', f'--config.data_dir={tmp_path / "data"}', *more)
    assert code == 2 and 'holds another run: model.num_layers (1 there' in printed and printed.count('\n') == 1
    code, printed = call('--config=digits', *TINY[1:], f'--workdir={digits}', '--config.train.steps=1', *more)
    assert code == 2 and 'train.steps is 1' in printed.splitlines()[-1], printed
  assert not list(tmp_path.iterdir())


def test_files_are_enlarged_wherever_the_data_set_is(call, superres, photos):
  code, printed = call('--mode=superres', f'--workdir={superres}', f'--input={photos}', '--labels=1', '--num_inputs=1',
                       '--num_samples=1', *TINY_SUPERRES, '--config.data_dir=~nobody-has-this-name')
  assert code == 0, printed


def test_a_dry_run_says_that_generated_images_may_be_trained_on(call, tmp_path):
  arguments = '--dry_run', f'--config.data_dir={tmp_path}', f'--workdir={tmp_path / "run"}', *TINY[1:]
  for config, expected in ('cifar10_fast:smoke', True), ('digits', False):
    code, printed = call(f'--config={config}', *arguments)
    assert code == 0 and ('stand-in  generated images, if cifar10 is not available' in printed) == expected, printed


def test_a_run_that_began_with_another_is_evaluated_by_the_same_names(call, digits, data_dir, tmp_path):
  arguments = ['--config=digits', *TINY[1:], f'--config.init_from={os.path.relpath(digits, ROOT)}',
               f'--config.data_dir={data_dir}', f'--workdir={tmp_path / "run"}']
  code, printed = call(*arguments)
  assert code == 0, printed
  code, printed = call(*arguments, '--mode=eval')
  assert code == 0, printed


@pytest.mark.parametrize('run, arguments, says', [
    ('digits', '--mode=train --average_checkpoints=2', '--average_checkpoints means nothing to --mode=train'),
    ('digits', '--mode=picture --kind=heads', "--kind is 'heads', but must be attention, memory, bits or curves"),
    ('digits', '--mode=picture --kind=bits --position=1,1', '--position means nothing to --mode=picture --kind=bits; '
     'leave it out. It is for: picture --kind=attention, picture --kind=memory.'),
    ('digits', '--mode=picture --kind=curves --average_checkpoints=2', '--average_checkpoints means nothing'),
    ('digits', '--mode=picture --kind=bits --num_inputs=33', '--num_inputs is 33, but must be at most 32'),
    ('digits', '--mode=eval --kind=bits', '--kind means nothing to --mode=eval'),
    ('digits', '--mode=picture --position=8,0', "--position is '8,0', but must be a row in 0..7"),
    ('digits', '--mode=sample --keep=4', '--keep means nothing to --mode=sample'),
    ('digits', '--mode=eval --average_checkpoints=0', '--average_checkpoints is 0'),
    ('digits', '--mode=eval --average_checkpoints=3', '--average_checkpoints is 3, but must be at most 2'),
    ('digits', '--mode=sample --num_samples=0', '--num_samples is 0'),
    ('digits', '--mode=sample --seed=-1', '--seed is -1'),
    ('digits', '--mode=sample --temperature=0', "--temperature is '0'"),
    ('digits', '--mode=sample --temperature=1.0,x', "--temperature is '1.0,x'"),
    ('digits', '--mode=sample --labels=1,10', "--labels is '1,10', but must be classes in 0..9"),
    ('blocks', '--mode=sample --labels=1', "--labels is '1', but must be absent"),
    ('superres', '--mode=sample', '--mode is'),
    ('digits', '--mode=superres', '--mode is'),
    ('digits', '--mode=complete', '--keep'),
    ('digits', '--mode=complete --keep=0', '--keep is 0, but must be a number of rows in 1..7'),
    ('digits', '--mode=complete --keep=8', '--keep is 8'),
    ('blocks', '--mode=complete --keep=3', 'first 3 rows cannot be kept.* can: 2 or 4.'),
    ('digits', '--mode=complete --keep=4 --num_inputs=-1', '--num_inputs is -1'),
    ('digits', '--mode=complete --keep=4 --num_samples=0', '--num_samples is 0'),
    ('digits', '--mode=complete --keep=4 --input=nowhere.png', 'nowhere.png does not exist'),
    ('digits', '--mode=complete --keep=4 --input=README.md', 'README.md is not a PNG'),
    ('digits', '--mode=complete --keep=4 --input=results/digits/samples.png', '--labels'),
    ('digits', '--mode=compress', "--output is missing, but must be a file"),
    ('digits', '--mode=compress --output=README.md', "--output is 'README.md', but must be one that does not exist"),
    ('digits', '--mode=compress --output=README.md/here', 'since .*README.md is not a folder .* choose another output'),
    ('digits', '--mode=compress --output=nowhere.itc --input=results/digits/samples.png --labels=1', 'exactly 8 x 8'),
    ('digits', '--mode=decompress --output=nowhere', '--input is missing, but must be a compressed file'),
    ('digits', '--mode=decompress --input=README.md --output=nowhere', 'README.md: This is not a file that was'),
    ('digits', '--mode=score --output=nowhere', '--output means nothing to --mode=score'),
    ('digits', '--mode=score --labels=3', '--labels means nothing to --mode=score'),
])
def test_what_a_run_cannot_do_is_said_and_nothing_is_written(request, call, run, arguments, says):
  workdir = request.getfixturevalue(run)

  def files():
    return {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}

  before = files()
  code, printed = call(*arguments.split(), f'--workdir={workdir}')
  assert code == 2 and 'Traceback' not in printed
  last = printed.strip().splitlines()[-1]
  assert last.startswith('Error: ') and re.search(says, last), printed
  assert files() == before


def test_files_are_named_by_what_fits_of_long_names_in_any_script(digits, tmp_path):
  folder = tmp_path / ('画' * 80)  # of 240 bytes; 255 are allowed
  folder.mkdir()
  name = Task(load_run(digits), input=str(folder))._source()
  assert re.fullmatch('画{20}-[0-9a-f]{8}', name)


def test_a_link_to_nothing_is_not_written_over(digits, call, tmp_path):
  (tmp_path / 'link').symlink_to(tmp_path / 'gone' / 'file')
  code, printed = call('--mode=compress', f'--workdir={digits}', '--num_inputs=1', f'--output={tmp_path / "link"}')
  assert code == 2 and "link', but must be one that does not exist yet" in printed
  assert (tmp_path / 'link').is_symlink() and not (tmp_path / 'gone').exists()


@pytest.mark.parametrize('arguments', [[], ['--smoke']])
def test_the_script_of_the_papers_tables_has_every_row_once(arguments, tmp_path):
  done = subprocess.run(['launch/paper_tables.sh', *arguments, '--dry-run', f'--runs={tmp_path}/runs'], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  trained = re.findall(r'--config=configs/(\S+) .*--workdir=(\S+)', done.stdout.replace('\\', ''))
  rows = [row.config for row in paper.ROWS if row.config]
  assert [name for name, _ in trained] == ([paper.smoke(row) for row in rows] if arguments else rows)
  assert len({workdir for _, workdir in trained}) == len(rows)
  assert done.stdout.count('--average_checkpoints=8') == 1
  assert done.stdout.count('--mode=superres') == sum('superres' in row for row in rows)
  assert done.stdout.count('--mode=table') == 1 and not any(tmp_path.iterdir())


@pytest.mark.parametrize('arguments', [['--smok'], ['--row=cifar10_3d.py', '--dry-run'], ['everything']])
def test_the_script_of_the_papers_tables_refuses_what_it_does_not_know(arguments):
  done = subprocess.run(['launch/paper_tables.sh', *arguments], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('Error: ') and arguments[0].removeprefix('--row=') in done.stderr
  assert len(done.stderr.splitlines()) == 1


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


@pytest.mark.parametrize('arguments, code, says', [
    (['--help'], 0, ['--config: ', '--average_checkpoints: ', '--labels: ', 'python main.py --mode=eval']),
    (['--config=nonsense'], 2, ["no configuration 'nonsense'", 'cifar10_1d, ', 'digits, folder']),
    (['--config=base'], 2, ["no configuration 'base'"]),
    (['--config', 'digits:huge'], 2, ['Unknown variant :huge']),
    (['--config=digits', '--config.learning_rate=3'], 2, ['learning_rate; did you mean optimizer.learning_rate?']),
    (['--config=digits', '--config.batch_size=3'], 2, ['did you mean train.batch_size or eval.batch_size or sample.']),
    (['--config=digits', '--config.train.step=3'], 2, ['field train.step; did you mean train.steps?']),
])
def test_names_on_the_command_line(call, tmp_path, arguments, code, says):
  got, printed = call(*arguments, f'--workdir={tmp_path / "run"}')
  assert got == code and all(text in printed for text in says), printed
  assert code == 0 or printed.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_a_configuration_by_name_is_the_file(call, tmp_path, data_dir):
  for name in ('digits', 'configs/digits.py'):
    arguments = [f'--config={name}', *TINY[1:], f'--config.data_dir={data_dir}']
    assert call('--mode=picture', '--kind=memory', f'--config={name}', f'--workdir={tmp_path / "pictures"}')[0] == 0
    code, printed = call(*arguments, '--config.train.steps=1', f'--workdir={tmp_path / name.replace("/", "_")}')
    assert code == 0, printed
  assert load(tmp_path / 'digits' / 'config.json') == load(tmp_path / 'configs_digits.py' / 'config.json')


def test_a_folder_does_not_hide_the_configuration_of_its_name(tmp_path):
  (tmp_path / 'digits').mkdir()
  done = subprocess.run([sys.executable, ROOT / 'main.py', '--mode=picture', '--kind=memory', '--config=digits'],
                        cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0 and (tmp_path / 'runs' / 'digits' / 'pictures').is_dir(), done.stderr


CONFIGS = sorted({path.name for path in (ROOT / 'configs').glob('*.py')} - {'__init__.py', 'base.py', 'paper.py'} |
                 {row.config for row in paper.ROWS if row.config})


@pytest.mark.parametrize('name', CONFIGS)
def test_every_configuration_is_valid(name):
  full, small = load_config(name), load_config(paper.smoke(name))
  assert not full.stand_in and full.model.hidden_size > small.model.hidden_size or full.dataset == 'digits'
  assert small.train.steps <= 10_000 and small.model.hidden_size <= 128
  for config in (full, small):
    make_model(config.model, data.image_spec(config))


# Layers, width, heads, feed-forward, query block, memory flange, dropout; batch, the rate of tensor2tensor, warm-up.
PAPERS = {
    'cifar10_1d': (12, 512, 4, 2048, (256,), (256,), 0.3, 32, 0.5, 4_000),
    'cifar10_1d_dmol': (12, 256, 8, 512, (256,), (256,), 0.1, 64, 0.1, 4_000),
    'cifar10_1d_dmol_14': (14, 256, 8, 512, (256,), (256,), 0.2, 64, 0.1, 4_000),
    'cifar10_conditional': (10, 512, 8, 2048, (256,), (256,), 0.3, 32, 0.1, 4_000),
    'cifar10_2d': (12, 512, 8, 1024, (8, 8), (4, 4), 0.0, 8, 0.1, 4_000),
    'cifar10_2d_dmol': (12, 256, 8, 512, (16, 16), (8, 8), 0.1, 64, 0.1, 4_000),
    'cifar10_blocks.py:16': (8, 512, 8, 2048, (16,), (16,), 0.3, 32, 0.1, 4_000),
    'imagenet32_1d': (12, 512, 8, 2048, (256,), (256,), 0.1, 32, 0.5, 4_000),
    'cifar10_superres_1d': (8, 512, 8, 2048, (128,), (128,), 0.1, 16, 0.2, 12_000),
    'cifar10_superres_2d': (8, 512, 8, 2048, (8, 8), (8, 12), 0.1, 16, 0.2, 12_000),
    'celeba_superres_1d': (8, 512, 8, 2048, (128,), (128,), 0.1, 16, 0.2, 12_000),
    'celeba_superres_2d': (8, 512, 8, 2048, (8, 8), (8, 12), 0.1, 16, 0.2, 12_000),
    'celeba_superres_2d_best': (12, 512, 8, 2048, (8, 16), (8, 16), 0.1, 8, 0.2, 12_000),
}


@pytest.mark.parametrize('name', PAPERS)
def test_the_papers_configurations_are_the_papers(name):
  config, (*network, batch_size, rate, warmup) = load_config(name), PAPERS[name]
  model, optimizer, train = config.model, config.optimizer, config.train
  assert [model.num_layers, model.hidden_size, model.num_heads, model.ffn_size, model.query_block,
          model.memory_flange, model.dropout] == network
  dmol, superres, best = 'dmol' in name, 'superres' in name, 'best' in name
  assert model == ModelConfig(
      *network[-3:-1], num_layers=network[0], hidden_size=network[1], num_heads=network[2], ffn_size=network[3],
      dropout=network[-1], likelihood='dmol' if dmol else 'categorical', num_mixtures=10, qkv_size=512 if dmol else 0,
      norm='pre' if best else 'post', coordinates='learned' if dmol else 'sine', embedding_gain=1.0,
      class_conditional='conditional' in name, upscale=4 if superres else 1,
      num_encoder_layers=6 if best else 4 if superres else 0)
  # tensor2tensor: 5000 x 0.002 x rate / sqrt(width) x min(1 / sqrt(step), step / warmup**1.5)
  rates = {step: float(learning_rate(optimizer, train.steps)(step)) for step in (99, warmup - 1, 4 * warmup - 1)}
  assert rates == pytest.approx({step: 10 * rate * model.hidden_size**-0.5 * min((step + 1)**-0.5, (step + 1) *
                                                                                 warmup**-1.5) for step in rates})
  assert (optimizer.name, optimizer.b1, optimizer.b2, optimizer.epsilon) == ('adam', 0.9, 0.98, 1e-9)
  assert optimizer.clip_norm == (40 if name == 'cifar10_1d_dmol_14' else 0)
  assert (train.batch_size, train.accumulation, train.flip, train.ema_decay) == (batch_size, 1, False, 0)
  assert config.sample.temperature == (0.9 if superres else 1)


@pytest.mark.parametrize('name', ['cifar10_1d.py:tiny', 'cifar10_blocks.py:0', 'cifar10_blocks.py:x,smoke'])
def test_unknown_arguments_of_configurations_are_refused(name):
  with pytest.raises(InputError, match='cifar10_blocks.py|:smoke'):
    load_config(name)
