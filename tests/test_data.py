"""Batches are functions of (seed, step), every image counts once, and preparing leaves nothing half done."""

import collections
import hashlib
import io
import itertools
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds

from image_transformer import batching, data
from image_transformer.config import Config, ImageSpec, ModelConfig
from image_transformer.datasets import celeba, cifar10, digits, generated
from image_transformer.errors import InputError, MissingDataError
from image_transformer.images import area_resize

CIFAR_NAMES = ['data_batch_1', 'data_batch_2', 'data_batch_3', 'data_batch_4', 'data_batch_5', 'test_batch']


def make_source(num_images):
  """Images [2, 3, 1] that differ in every pixel and from one another, labelled by index."""
  pixels = np.arange(6 * num_images, dtype=np.uint8).reshape(num_images, 2, 3, 1)
  return [{'image': image, 'label': np.int32(index)} for index, image in enumerate(pixels)]


def named(dataset, data_dir, upscale=1):
  model = ModelConfig(upscale=upscale, num_encoder_layers=int(upscale > 1))
  return Config(dataset=dataset, data_dir=str(data_dir), model=model)


def take(batches, count):
  return list(itertools.islice(batches, count))


def train(num_images, count, **kwargs):
  kwargs = {'batch_size': 4, 'seed': 0, 'start_step': 0} | kwargs
  return take(batching.train_batches(make_source(num_images), **kwargs), count)


def labels(batches):
  return np.concatenate([batch['label'] for batch in batches]).tolist()


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def join(parts):
  """The batches of all processes, put together in the order of the processes."""
  return [{key: np.concatenate([batch[key] for batch in step]) for key in step[0]}
          for step in zip(*parts, strict=True)]


def test_a_batch_depends_on_seed_and_step_alone():
  batches = train(10, 12, seed=3, flip=True)
  assert_same(train(10, 5, seed=3, flip=True, start_step=7), batches[7:])
  assert labels(train(10, 12, seed=4)) != labels(batches)
  assert batches[0]['image'].shape == (4, 2, 3, 1) and batches[0]['image'].dtype == np.uint8
  assert batches[0]['label'].shape == (4,) and batches[0]['label'].dtype == np.int32


def test_a_far_step_reads_nothing_before_it():
  start = time.perf_counter()
  train(10, 1, start_step=10**12)
  assert time.perf_counter() - start < 2


@pytest.mark.parametrize('num_images', [1, 3, 10, 32])
def test_every_epoch_has_every_image_once(num_images):
  drawn = np.reshape(labels(train(num_images, 3 * num_images)), [-1, num_images])
  np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(num_images), [12, 1]))
  if num_images >= 10:
    assert drawn[0].tolist() != drawn[1].tolist() != sorted(drawn[1])


def test_the_digest_sees_images_in_the_middle():
  images = [{'image': np.full((2, 2, 1), i, np.uint8)} for i in range(200)]
  others = [*images[:101], {'image': images[101]['image'] + 1}, *images[102:]]
  assert batching.digest(images) == batching.digest([*images]) != batching.digest(others)


@pytest.mark.parametrize('process_count', [2, 4])
def test_training_parts_make_up_the_whole_batch(process_count):
  parts = [train(10, 9, flip=True, process_index=index, process_count=process_count)
           for index in range(process_count)]
  assert parts[0][0]['image'].shape[0] == 4 // process_count
  assert_same(join(parts), train(10, 9, flip=True))


def test_flips_mirror_about_half_of_the_images():
  source = make_source(40)
  flips = []
  for batch in train(40, 30, flip=True):
    for image, label in zip(batch['image'], batch['label']):
      original = source[label]['image']
      flips.append(not np.array_equal(image, original))
      np.testing.assert_array_equal(image, original[:, ::-1] if flips[-1] else original)
  assert 0.35 < np.mean(flips) < 0.65
  assert set(flips[:40]) == {True, False} and flips[:40] != flips[40:80]
  for batch in train(40, 10):
    np.testing.assert_array_equal(batch['image'], [source[label]['image'] for label in batch['label']])


@pytest.mark.parametrize('process_count', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [4, 8, 20])
@pytest.mark.parametrize('num_images', [1, 3, 8, 13])
def test_evaluation_has_every_image_once_and_in_order(num_images, batch_size, process_count):
  source = make_source(num_images)
  parts = [list(batching.eval_batches(source, batch_size=batch_size, process_index=index,
                                      process_count=process_count)) for index in range(process_count)]
  batches = join(parts)
  assert {len(part) for part in parts} == {-(-num_images // batch_size)}
  assert all(len(batch['image']) == batch_size // process_count for part in parts for batch in part)
  images = np.concatenate([batch['image'] for batch in batches])
  assert labels(batches)[:num_images] == list(range(num_images))
  assert set(labels(batches)[num_images:]) <= {num_images - 1}  # padding
  np.testing.assert_array_equal(images[:num_images], [element['image'] for element in source])


def test_evaluation_of_the_first_images():
  batches = list(batching.eval_batches(make_source(9), batch_size=4, num_images=5))
  assert labels(batches) == [0, 1, 2, 3, 4, 4, 4, 4]
  with pytest.raises(InputError, match='num_images is 10, but must be at most 9'):
    batching.eval_batches(make_source(9), batch_size=4, num_images=10)


class Counted(list):
  """Counts how often each example is read."""

  def __init__(self, examples):
    super().__init__(examples)
    self.reads = collections.Counter()

  def __getitem__(self, index):
    self.reads[index] += 1
    return super().__getitem__(index)


def test_examples_that_fit_in_memory_are_decoded_once(monkeypatch):
  want = train(10, 12, flip=True)
  examples = Counted(make_source(10))
  kept = batching.keep_in_memory(examples)
  assert len(kept) == 10 and set(examples.reads) <= {0}
  examples.reads.clear()
  for _ in range(2):
    got = take(batching.train_batches(kept, batch_size=4, seed=0, start_step=0, flip=True), 12)
    assert_same(got, want)
  assert examples.reads == dict.fromkeys(range(10), 1)
  for example, index in (kept[3], 3), (kept[-1], 9):
    assert_same([example], [examples[index]])
  monkeypatch.setattr(batching, '_KEPT_BYTES', 9 * sum(value.nbytes for value in examples[0].values()))
  assert batching.keep_in_memory(examples) is examples


def test_batches_of_one_image():
  batches = train(5, 15, batch_size=1)
  epochs = np.reshape(labels(batches), (3, 5)).tolist()
  assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3 and epochs[0] != epochs[1]
  # In the same order as in batches of any other size.
  assert labels(train(5, 3, batch_size=5)) == labels(batches)


def test_a_batch_must_divide_among_the_processes():
  for call in (lambda: train(10, 1, process_count=3),
               lambda: batching.eval_batches(make_source(9), batch_size=4, process_count=3)):
    with pytest.raises(InputError, match='batch_size is 4, but must be a multiple'):
      call()


def test_data_dir_comes_from_the_flag_then_the_environment_then_the_home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/somebody')
  monkeypatch.setenv('TFDS_DATA_DIR', '~/env')
  assert data.resolve_data_dir('~/flag') == '/home/somebody/flag'
  assert data.resolve_data_dir('') == '/home/somebody/env'
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert data.resolve_data_dir('') == '/home/somebody/tensorflow_datasets'


@pytest.fixture(scope='module')
def digits_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('digits')
  data.open_split(named('digits', path), 'train')
  return path


def test_a_directory_that_holds_a_dataset_in_another_way_is_refused_and_left_alone(digits_dir, tmp_path):
  shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
  dataset = tmp_path / 'image_transformer_digits'
  files = lambda: sorted(tmp_path.rglob('*'))

  def refused(data_dir, says):
    before = files()
    with pytest.raises(InputError, match=says):
      data.open_split(named('digits', data_dir), 'train')
    assert files() == before

  for inside in (dataset, dataset / '1.0.0'):
    refused(inside, f'data_dir is .*{inside.name}.*, but must be the folder that holds datasets.* perhaps {tmp_path}.')
  info = dataset / '1.0.0' / 'dataset_info.json'
  content = info.read_text()
  info.write_text(content.replace('array_record', 'tfrecord'))
  refused(tmp_path, 'stored as tfrecord, which only TensorFlow reads.* --file_format=array_record')
  info.write_text(content)
  assert len(data.open_split(named('digits', tmp_path), 'train')) == 1_500
  (dataset / '1.0.0').rename(dataset / '0.9.0')
  refused(tmp_path, 'version 1.0.0 of digits, not 0.9.0')


def test_digits(digits_dir):
  builder = digits.ImageTransformerDigits(data_dir=str(digits_dir))
  examples = {split: list(builder.as_data_source(split)) for split in ('train', 'test')}
  rows = {split: {int(example['id'].decode().removeprefix('digits_')) for example in examples[split]}
          for split in examples}
  assert {split: len(rows[split]) for split in rows} == {'train': 1500, 'test': 297}
  assert rows['train'] | rows['test'] == set(range(1797))
  # The split is fixed: results on it must stay comparable.
  assert sorted(rows['test'])[:5] == [11, 23, 24, 25, 28]

  original = np.load(digits.__file__.replace('.py', '.npz'))
  for split, count in (('train', 1500), ('test', 297)):
    source = data.open_split(named('digits', digits_dir), split)
    assert len(source) == count
    (batch,) = batching.eval_batches(source, batch_size=count)
    assert set(np.unique(batch['image'])) == set(range(17)) and set(batch['label']) == set(range(10))
    ids = [int(example['id'][-4:]) for example in examples[split]]
    np.testing.assert_array_equal(batch['image'][..., 0], original['images'][ids])
    np.testing.assert_array_equal(batch['label'], original['labels'][ids])
  assert data.image_spec(named('digits', '')) == ImageSpec(8, 8, 1, levels=17, num_classes=10)
  assert source[0]['image'].shape == (8, 8, 1) and source[0]['label'].dtype == np.int32
  assert len(data.open_split(named('digits', digits_dir), 'train[:90%]')) == 1350


def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
  generate = digits.ImageTransformerDigits._split_generators

  def overtaken(self, dl_manager):
    monkeypatch.setattr(digits.ImageTransformerDigits, '_split_generators', generate)
    digits.ImageTransformerDigits(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
    return generate(self, dl_manager)

  monkeypatch.setattr(digits.ImageTransformerDigits, '_split_generators', overtaken)
  assert len(data.open_split(named('digits', tmp_path), 'test')) == 297


def assert_input_error(match, dataset, split, data_dir, kind=InputError):
  with pytest.raises(InputError, match=match) as raised:
    data.open_split(named(dataset, data_dir), split)
  assert '\n' not in str(raised.value)
  assert type(raised.value) is kind


def test_wrong_names_are_answered_in_one_line(digits_dir):
  assert_input_error("Unknown dataset 'cifar'; did you mean cifar10", 'cifar', 'train', digits_dir)
  known = r'celeba, cifar10, digits, folder, (imagenet.._(old|new)(, )?){4}moving_digits, scenes\.$'
  assert_input_error(f"Unknown dataset 'zzz'; known: {known}", 'zzz', 'train', digits_dir)
  for split in ('tran', 'train[:0%]', 'train[', 'train[5000:]', ''):
    assert_input_error('known: train, test', 'digits', split, digits_dir)
  with pytest.raises(InputError, match='Unknown dataset'):
    data.image_spec(named('cifar', ''))


@pytest.mark.parametrize('damage', ['no info', 'broken info', 'no records', 'broken records'])
def test_a_damaged_directory_is_answered_in_one_line(damage, tmp_path):
  data.open_split(named('digits', tmp_path), 'test')
  kind, what = damage.split()
  (path,) = tmp_path.glob('*/*/dataset_info.json' if what == 'info' else '*/*/*-test.array_record*')
  if kind == 'no':
    path.unlink()
  else:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
  assert_input_error(f'digits cannot be read or prepared in {tmp_path}', 'digits', 'test', tmp_path)


def test_images_of_another_shape_are_refused(digits_dir, monkeypatch):
  other = data.Dataset(ImageSpec(9, 8, 1, levels=17, num_classes=10), digits.ImageTransformerDigits, digits.SIZES)
  monkeypatch.setitem(data.DATASETS, 'digits', lambda config: other)
  assert_input_error(r'shape \(8, 8, 1\), but must have \(9, 8, 1\)', 'digits', 'test', digits_dir)


def test_low_resolution_images(digits_dir):
  plain = data.open_split(named('digits', digits_dir), 'test')
  source = data.open_split(named('digits', digits_dir, 4), 'test')
  assert plain[0].keys() == {'image', 'label'} and source[0].keys() == {'image', 'label', 'low_res'}
  assert source[0]['low_res'].shape == (2, 2, 1) and source[0]['low_res'].dtype == np.uint8
  for index in range(20):
    np.testing.assert_array_equal(source[index]['image'], plain[index]['image'])
    np.testing.assert_array_equal(source[index]['low_res'], area_resize(plain[index]['image'], 2, 2))
  (batch,) = batching.eval_batches(source, batch_size=297)
  np.testing.assert_array_equal(batch['low_res'], area_resize(batch['image'], 2, 2))


@pytest.mark.parametrize('flip', [False, True])
def test_an_image_and_its_low_resolution_are_flipped_together(digits_dir, flip):
  source = data.open_split(named('digits', digits_dir, 2), 'train[:64]')
  originals = {element['image'].tobytes() for element in (source[index] for index in range(64))}
  kept = []
  for batch in take(batching.train_batches(source, batch_size=16, seed=0, start_step=0, flip=flip), 8):
    # Each image still matches its own small one, since making smaller commutes with mirroring ...
    np.testing.assert_array_equal(batch['low_res'], area_resize(batch['image'], 4, 4))
    kept += [image.tobytes() in originals for image in batch['image']]
  assert all(kept) if not flip else 0.3 < np.mean(kept) < 0.7
  # ... which it does exactly, on a ragged ratio too.
  images = np.random.default_rng(0).integers(256, size=[5, 13, 11, 3], dtype=np.uint8)
  np.testing.assert_array_equal(area_resize(images[:, :, ::-1], 4, 3), area_resize(images, 4, 3)[:, :, ::-1])


def test_both_sizes_are_made_from_the_stored_image(monkeypatch, tmp_path):
  wide = generated.settings('wide', ImageSpec(138, 138, 3), ['train'])
  builder = generated.ImageTransformerGenerated
  monkeypatch.setattr(generated, 'NUM_TRAIN', 3)
  for stored in ((138, 138, 3), None):
    source = data.Dataset(ImageSpec(32, 32, 3), builder, {'train': None}, wide, stored)
    monkeypatch.setitem(data.DATASETS, 'celeba', lambda config, source=source: source)
    if stored is None:
      assert_input_error(r'shape \(138, 138, 3\), but must have \(32, 32, 3\)', 'celeba', 'train', tmp_path)
      continue
    element = data.open_split(named('celeba', tmp_path, 4), 'train')[0]
    original = next(iter(builder(data_dir=str(tmp_path), config=wide).as_data_source('train')))['image']
    assert element.keys() == {'image', 'low_res'} and original.shape == (celeba.CROP, celeba.CROP, 3)
    np.testing.assert_array_equal(element['image'], area_resize(original, 32, 32))
    np.testing.assert_array_equal(element['low_res'], area_resize(original, 8, 8))
    # The last line would also pass for an image made smaller twice, if truncation did not show.
    assert (element['low_res'] != area_resize(element['image'], 8, 8)).any()


def test_sizes(digits_dir):
  config = named('digits', digits_dir)
  assert {split: len(data.open_split(config, split)) for split in ('train', 'test', 'train[:90%]', 'test[5:]')} == {
      'train': 1500, 'test': 297, 'train[:90%]': 1350, 'test[5:]': 292}
  assert [data.full_size(config, split) for split in ('train', 'test', 'train[:90%]')] == [1500, 297, None]
  assert data.full_size(named('cifar10', ''), 'test') == 10_000
  assert data.full_size(named('generated_cifar10', ''), 'test') is None
  with pytest.raises(InputError, match='known: train, test'):
    data.open_split(config, 'tran')
  assert data.note(config) == ''


@pytest.fixture
def archive(monkeypatch):
  """A miniature cifar-10-binary.tar.gz: its bytes, labels [6, 3] and pixels [6, 3, 32, 32, 3]."""
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=[6, 3, 32, 32, 3], dtype=np.uint8)
  classes = rng.integers(10, size=[6, 3], dtype=np.uint8)
  planes = images.transpose(0, 1, 4, 2, 3).reshape(6, 3, -1)
  records = np.concatenate([classes[..., None], planes], axis=-1)
  files = {f'{name}.bin': record.tobytes() for name, record in zip(CIFAR_NAMES, records)}
  files['batches.meta.txt'] = '\n'.join(f'class{index}' for index in range(10)).encode() + b'\n\n'
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for name in sorted(files, reverse=True):  # as in the official archive, in no helpful order
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = len(files[name])
      tar.addfile(member, io.BytesIO(files[name]))
  content = buffer.getvalue()
  monkeypatch.setattr(cifar10, 'SHA256', hashlib.sha256(content).hexdigest())
  monkeypatch.setattr(cifar10, 'SIZE', len(content))
  monkeypatch.setattr(urllib.request, 'urlopen', offline)
  return content, classes, images


def offline(url, timeout):
  assert timeout <= 10
  raise urllib.error.URLError('no network')


def test_cifar10_from_the_archive(archive, tmp_path):
  content, classes, images = archive
  (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(content)
  assert len(data.open_split(named('cifar10', tmp_path), 'train')) == 15
  (tmp_path / 'cifar-10-binary.tar.gz').unlink()  # no longer needed
  assert data.open_split(named('cifar10', tmp_path), 'test')[0]['image'].shape == (32, 32, 3)
  for split, first, count in (('train', 0, 15), ('test', 5, 3)):
    stock = tfds.data_source('cifar10', split=split, data_dir=str(tmp_path), download=False)
    assert len(stock) == count
    assert {example['id'].decode() for example in stock} == {f'{split}_{i:05d}' for i in range(count)}
    for example in stock:
      file, row = divmod(int(example['id'][-5:]), 3)
      np.testing.assert_array_equal(example['image'], images[first + file, row])
      assert example['label'] == classes[first + file, row]
  info = tfds.builder('cifar10', data_dir=str(tmp_path)).info
  assert info.features['label'].names == [f'class{index}' for index in range(10)]
  assert (tmp_path / 'cifar10/3.0.2').is_dir()


def test_the_subset_of_the_results_is_selected_by_ids(archive, tmp_path, monkeypatch):
  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'results'))
  import cifar10_subset
  counts = [sum(name.startswith(split) for name in cifar10_subset.IDS) for split in ('train', 'test')]
  assert counts == [8_068, 1_017] and {'train_03999', 'train_41016', 'test_01016'} <= cifar10_subset.IDS
  assert not {'train_04000', 'train_41017', 'test_01017'} & cifar10_subset.IDS
  content, classes, images = archive
  (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(content)
  chosen = {'train_00001', 'train_00007', 'test_00002'}
  monkeypatch.setattr(cifar10_subset, 'IDS', chosen)
  cifar10_subset.Subset(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  assert len(data.open_split(named('cifar10', tmp_path), 'train')) == 2
  stock = [example for split in ('train', 'test')
           for example in tfds.data_source('cifar10', split=split, data_dir=str(tmp_path), download=False)]
  assert {example['id'].decode() for example in stock} == chosen
  np.testing.assert_array_equal(stock[-1]['image'], images[5, 2])


def test_cifar10_is_downloaded_once_and_whole(archive, tmp_path, monkeypatch):
  content = archive[0]
  monkeypatch.setattr(urllib.request, 'urlopen', lambda url, timeout: io.BytesIO(content[:-1]))
  assert_input_error('could not be downloaded.*incomplete', 'cifar10', 'train', tmp_path, MissingDataError)
  assert not list(tmp_path.iterdir())
  monkeypatch.setattr(urllib.request, 'urlopen', lambda url, timeout: io.BytesIO(content))
  assert len(data.open_split(named('cifar10', tmp_path), 'test')) == 3
  assert (tmp_path / 'cifar-10-binary.tar.gz').read_bytes() == content


def test_cifar10_without_archive_or_network(archive, tmp_path):
  start = time.perf_counter()
  path = tmp_path / 'new' / 'cifar-10-binary.tar.gz'
  assert_input_error(f'{cifar10.URL} .* put it at {path}', 'cifar10', 'train', path.parent,
                     MissingDataError)
  assert time.perf_counter() - start < 5
  assert not list(path.parent.iterdir())


def test_a_wrong_archive_is_refused_and_left_alone(archive, tmp_path):
  path = tmp_path / 'cifar-10-binary.tar.gz'
  path.write_bytes(archive[0][:-1])
  assert_input_error(f'{path} is damaged', 'cifar10', 'train', tmp_path)
  assert list(tmp_path.iterdir()) == [path]


def test_tensorflow_is_not_imported(archive, tmp_path):
  trap = tmp_path / 'tensorflow'  # stands in for TensorFlow, installed or not
  trap.mkdir()
  (trap / '__init__.py').write_text('import os; os.write(2, b"TensorFlow was imported"); os._exit(3)')
  (tmp_path / 'cifar-10-binary.tar.gz').write_bytes(archive[0])
  program = f"""if True:
      import sys
      sys.path.insert(0, {str(tmp_path)!r})
      from image_transformer import batching, data
      from image_transformer.config import Config
      from image_transformer.datasets import cifar10
      cifar10.SHA256 = {cifar10.SHA256!r}
      for dataset in ('digits', 'cifar10', 'generated_celeba'):
        source = data.open_split(Config(dataset=dataset, data_dir={str(tmp_path)!r}), 'train')
        next(batching.train_batches(source, batch_size=4, seed=0, start_step=0))
        next(batching.eval_batches(source, batch_size=4))
  """
  root = pathlib.Path(data.__file__).parents[1]
  done = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stderr[-2000:]
