"""The paper's tables: a number stands in a row only if it is that row's, and what it lacks is said."""

import csv
import dataclasses
import json
import re

from etils import epath
import pytest

from image_transformer import runs, tables
from image_transformer.configs import paper
from image_transformer.errors import InputError

ENTRIES = paper.entries()
CIFAR10, IMAGENET, CELEBA = 'cifar10_1d.py', 'imagenet32_1d.py', 'celeba_superres_1d.py'
SIZES = {'cifar10': (50_000, 10_000), 'imagenet32_old': (1_281_149, 49_999), 'celeba': (162_770, 19_962)}


def entry(config):
  found, = (entry for entry in ENTRIES if entry.row.config == config)
  return found


def changed(config, **fields):
  """A configuration with dotted fields, spelt with two underscores, changed."""
  for name, value in fields.items():
    section, _, field = name.rpartition('__')
    part = {field: value}
    config = dataclasses.replace(config, **({section: dataclasses.replace(getattr(config, section), **part)}
                                            if section else part))
  return config


@pytest.fixture
def leave(tmp_path):
  """Leaves what an evaluated run of a row leaves, with some results changed; returns its folder."""

  def leave(config, name='run', samples=None, file='results.json', **results):
    folder = epath.Path(tmp_path / name)
    runs.write_config(folder, config)
    num_train_images, num_images = SIZES[config.dataset.removeprefix('generated_')]
    written = {
        'dataset': config.dataset, 'split': config.eval.split, 'bits_per_dim': 2.91234, 'standard_error': 0.00456,
        'num_images': num_images, 'num_train_images': num_train_images, 'ema': False, 'step': config.train.steps,
        'num_checkpoints': 1, 'seed': config.seed, 'num_parameters': 38_328_576, 'training_seconds': 90_000.0,
        'device_kind': 'TPU v9', 'num_devices': 8, 'num_cpus': 96, 'commit': 'abcdef012345', **results}
    (folder / file).write_text(json.dumps(written))
    if samples:
      (folder / 'superres.json').write_text(json.dumps(samples))
    return folder

  return leave


def lines(folder):
  """The tables as CSV, read back."""
  return list(csv.DictReader(tables.render(ENTRIES, tables.collect(folder), as_csv=True).splitlines()))


def lines_of(config, folder):
  row = entry(config).row
  return [line for line in lines(folder) if line['table'] == row.table and line['row'].startswith(row.model)]


def test_the_published_numbers():
  """Bits/dim on CIFAR-10's test images and ImageNet's validation images, and human judges, as in the paper."""
  published = {(entry.row.table, entry.row.model): entry.row.published for entry in ENTRIES}
  number = lambda model, table='CIFAR-10': published[table, model]
  imagenet, blocks = 'ImageNet 32x32, the old release', 'CIFAR-10, block size'
  assert [number(model) for model in ('PixelCNN', 'Row PixelRNN', 'Gated PixelCNN', 'PixelCNN++', 'PixelSNAIL')] == [
      '3.14', '3.00', '3.03', '2.92', '2.85']
  assert number('1D, categorical, 12 layers') == number('1D, DMOL, 12 layers') == '2.90'
  assert [number(f'1D, categorical, 8 layers, block {size}', blocks) for size in (8, 16, 64, 256)] == [
      '4.06', '3.47', '3.13', '2.99']
  assert [number(model, imagenet) for model in ('Row PixelRNN', 'Gated PixelCNN', 'PixelSNAIL')] == [
      '3.86', '3.83', '3.80']
  assert number('1D, categorical, 12 layers, mean of checkpoints', imagenet) == '3.77'
  judges = {entry.row.config or entry.row.model: entry.row.judges for entry in ENTRIES if entry.row.judges}
  assert judges == {'ResNet': {'': '4.0'}, 'srez GAN': {'': '8.5'}, 'PixelRecursive': {'1': '11.0'},
                    CELEBA: {'0.8': '35.94 +- 3.0'}, 'celeba_superres_2d.py': {'0.8': '36.11 +- 2.5'}}


def test_no_run_can_stand_in_two_rows():
  configs = [config for entry in ENTRIES for config in entry.configs.values()]
  alike = sum(not runs.differences(one, other) for one in configs for other in configs)
  assert alike == len(configs)  # each to itself


def test_without_runs_every_row_stands_there_once(tmp_path):
  got = [(line['table'], line['row'], line['published'], line['ours']) for line in lines(tmp_path)
         if not line['table'].startswith('Samples')]
  assert sorted(got) == sorted((row.table, row.model, row.published, 'not run' if row.config else '')
                               for row in paper.ROWS if row.config or row.published)


def test_a_whole_run_stands_in_its_row(leave, tmp_path):
  leave(entry(CIFAR10).configs['full'])
  line, = lines_of(CIFAR10, tmp_path)
  assert line['row'] == '1D, categorical, 12 layers' and line['published'] == '2.90' and line['remarks'] == ''
  assert line['ours'] == '2.91234' and line['standard error'] == '0.00456' and line['hours'] == '25.0'
  assert line['images'] == '10000' and line['training images'] == '50000' and line['steps'] == '500000'
  assert line['device'] == '8 x TPU v9' and line['commit'] == 'abcdef012345'
  assert 'Other runs' not in {line['table'] for line in lines(tmp_path)}


@pytest.mark.parametrize('fields', [dict(data_dir='/elsewhere'), dict(eval__batch_size=7), dict(model__remat=True),
                                    dict(model__attention='einsum'),
                                    dict(train__checkpoint_every=5), dict(train__keep_checkpoints=9)])
def test_what_may_change_on_the_way_does_not_matter(leave, tmp_path, fields):
  leave(changed(entry(CIFAR10).configs['full'], **fields))
  line, = lines_of(CIFAR10, tmp_path)
  assert line['ours'] == '2.91234' and line['remarks'] == ''


@pytest.mark.parametrize('fields, results, remark', [
    ({}, dict(num_train_images=8_068), '8,068 of 50,000 training images'),
    ({}, dict(num_images=1_017), '1,017 of 10,000 test images'),
    ({}, dict(num_train_images=None), 'an unknown number of 50,000 training images'),
    ({}, dict(step=499_999), 'step 499,999, not 500,000'),
    ({}, dict(num_checkpoints=2), 'mean of 2 checkpoint(s), not 1'),
    (dict(eval__split='train'), dict(split='train', num_images=50_000), 'on train'),
    (dict(eval__split='test[:50%]'), dict(split='test[:50%]', num_images=5_000), 'on test[:50%]'),
    (dict(train__steps=1_000), {}, 'step 1,000, not 500,000'),
])
def test_a_run_that_lacks_one_thing_is_not_the_row(leave, tmp_path, fields, results, remark):
  leave(changed(entry(CIFAR10).configs['full'], **fields), **results)
  row, run = lines_of(CIFAR10, tmp_path)
  assert row['ours'] == 'not run' and row['published'] == '2.90'
  assert run['row'] == '1D, categorical, 12 layers: not this row' and run['ours'] == '2.91234'
  assert remark in run['remarks'].split('; ') and run['published'] == ''


@pytest.mark.parametrize('fields', [
    dict(model__dropout=0.1), dict(model__query_block=(255,)), dict(train__flip=True), dict(optimizer__b2=0.9)])
def test_a_run_with_another_configuration_is_another_run(leave, tmp_path, fields):
  folder = leave(changed(entry(CIFAR10).configs['full'], **fields), num_train_images=8_068)
  row, = lines_of(CIFAR10, tmp_path)
  assert row['ours'] == 'not run'
  other, = (line for line in lines(tmp_path) if line['table'] == 'Other runs')
  assert other['row'] == str(folder) and other['ours'] == '2.91234' and other['published'] == ''
  assert 'cifar10' in other['remarks'] and '8,068 of 50,000 training images' in other['remarks']


def test_seeds_stand_side_by_side(leave, tmp_path):
  for seed in (0, 5):
    leave(changed(entry(CIFAR10).configs['full'], seed=seed), name=f'seed_{seed}')
  assert [line['remarks'] for line in lines_of(CIFAR10, tmp_path)] == ['', 'seed 5']


def test_small_forms_are_marked(leave, tmp_path):
  leave(entry(CIFAR10).configs['smoke'])
  row, run = lines_of(CIFAR10, tmp_path)
  assert row['ours'] == 'not run' and run['remarks'] == ':smoke, a small model'


def test_imagenet_is_the_mean_of_checkpoints(leave, tmp_path):
  """Its own file beside that of the last checkpoint alone, which is not the row."""
  leave(entry(IMAGENET).configs['full'])
  row, last = lines_of(IMAGENET, tmp_path)
  assert row['ours'] == 'not run' and last['remarks'] == 'mean of 1 checkpoint(s), not 8'
  leave(entry(IMAGENET).configs['full'], file='results_average8.json', num_checkpoints=8, bits_per_dim=2.5)
  row, last = lines_of(IMAGENET, tmp_path)
  assert row['ours'] == '2.5' and row['published'] == '3.77' and last['ours'] == '2.91234'


def test_generated_images_are_left_out_and_named(leave, tmp_path):
  folder = leave(changed(entry(CIFAR10).configs['smoke'], dataset='generated_cifar10'))
  row, = lines_of(CIFAR10, tmp_path)
  assert row['ours'] == 'not run' and 'Other runs' not in {line['table'] for line in lines(tmp_path)}
  assert tables.render(ENTRIES, tables.collect(tmp_path)).endswith(f'generated images: {folder}.')


def samples_of(config, **about):
  measures = {name: {'mean': mean, 'standard_error': 0.1, 'per_image': [mean]}
              for name, mean in (('consistency', 0.00123), ('psnr', 21.5), ('ssim', 0.765))}
  return {'dataset': config.dataset, 'step': config.train.steps, 'source': 'test', 'num_samples': 4,
          'num_images': 19_962, 'commit': 'abc', 'bits_per_dim': measures['psnr'], 'bicubic': measures,
          'temperature 1': measures, 'temperature 0.8': measures, **about}


def sample_lines(folder):
  """The published line of a row, and ours."""
  model = f'{entry(CELEBA).row.table}: 1D, categorical'
  published, *own = (line for line in lines(folder)
                     if line['table'].startswith('Samples') and line['row'].startswith(model))
  assert published['row'] == f'{model}, published' and published['temperature'] == '0.8'
  assert published['judges fooled'] == '35.94 +- 3.0 %' and published['PSNR'] == ''
  return own


def test_samples_stand_beside_the_judges(leave, tmp_path):
  config = entry(CELEBA).configs['full']
  leave(config, samples=samples_of(config))
  own = sample_lines(tmp_path)
  assert [line['temperature'] for line in own] == ['bicubic', '1', '0.8']
  for line in own:
    assert [line[name] for name in ('consistency', 'PSNR', 'SSIM', 'images')] == ['0.00123', '21.5', '0.765', '19962']
    assert line['samples of each'] == ('' if line['temperature'] == 'bicubic' else '4')
    assert line['row'].endswith('categorical') and not line['remarks'] and not line['judges fooled']


@pytest.mark.parametrize('results, about, remark', [
    (dict(num_images=99), dict(num_images=99), '99 of 19,962 test images'),
    ({}, dict(num_images=16), 'the first 16 images only'),
    ({}, dict(step=1_000), 'samples of step 1,000'),  # the training went on
    ({}, dict(source='train'), 'images of train'),
])
def test_samples_of_no_whole_run_are_marked(leave, tmp_path, results, about, remark):
  config = entry(CELEBA).configs['full']
  leave(config, samples=samples_of(config, **about), **results)
  own = sample_lines(tmp_path)
  assert len(own) == 3
  for line in own:
    assert line['row'].endswith(': not this row') and remark in line['remarks'].split('; ')


def rounded(cell):
  """A cell of CSV as Markdown shows it."""
  try:
    return f'{float(cell):.4f}' if '.' in cell else f'{int(cell):,}'
  except ValueError:
    return cell


def test_markdown_and_csv_hold_the_same_cells(leave, tmp_path):
  leave(entry(CIFAR10).configs['full'])
  leave(entry(IMAGENET).configs['smoke'], name='small', standard_error=None)
  config = entry(CELEBA).configs['full']
  leave(config, name='faces', samples=samples_of(config))
  table, columns, from_markdown = '', (), []
  for line in tables.render(ENTRIES, tables.collect(tmp_path)).splitlines():
    if line.startswith('### '):
      table, columns = line[4:], ()
    elif line.startswith('| '):
      cells = [cell.strip() for cell in line[1:-1].split('|')]
      if columns and cells[0].strip('-'):
        from_markdown.append({'table': table, **dict(zip(columns, cells, strict=True))})
      columns = columns or cells
  from_csv = lines(tmp_path)
  assert len(from_csv) == len(from_markdown) > 20
  for one, other in zip(from_csv, from_markdown):
    numbers = one.keys() - {'published', 'temperature'}
    shown = {name: rounded(cell) if name in numbers else cell for name, cell in one.items()}
    assert shown == {**dict.fromkeys(one, ''), **other}


@pytest.mark.parametrize('file, text', [
    *((file, text) for file in ('results.json', 'superres.json') for text in ('', '{"bits_per_dim": 2.9', '{}', '[]')),
    ('config.json', '{"seed": 1'), ('config.json', '{"dataset": "of another version"}')])
def test_a_damaged_file_is_named_in_one_line(leave, tmp_path, file, text):
  folder = leave(entry(CIFAR10).configs['full'])
  (folder / file).write_text(text)
  config = changed(entry(CIFAR10).configs['full'], seed=1)
  leave(config, name='good')
  damaged, = (line for line in lines(tmp_path) if line['row'] == str(folder))
  assert re.search(f'{file}|Unknown dataset', damaged['remarks']) and damaged['remarks'].isprintable()
  assert damaged['table'] == 'Other runs'
  assert [line['ours'] for line in lines_of(CIFAR10, tmp_path)] == ['2.91234'], 'the other run is still shown'


def test_rows_without_a_run_can_be_left_out(leave, tmp_path):
  """Runs that are in no row come first, and lines are aligned."""
  assert tables.render(ENTRIES, [], only_runs=True) == 'No runs have been evaluated.'
  leave(entry(CIFAR10).configs['smoke'])
  other = leave(changed(entry(CIFAR10).configs['full'], seed=5, train__flip=True), name='other')
  text = tables.render(ENTRIES, tables.collect(tmp_path), only_runs=True)
  sections = text.split('\n\n')
  assert sections[::2] == ['### Other runs', '### CIFAR-10'] and f'| {other} ' in sections[1]
  assert 'PixelCNN' not in text and '| 2.90 ' in sections[3] and ':smoke, a small model' in sections[3]
  for section in sections[1::2]:
    assert len({len(line) for line in section.splitlines()}) == 1


def test_only_a_folder_can_hold_runs(tmp_path):
  with pytest.raises(InputError, match='the workdir must hold'):
    tables.collect(tmp_path / 'nowhere')
