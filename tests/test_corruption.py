"""Damaged files, by seeded accidents: each is still read as what it was, or refused in one line that names it."""

import io
import itertools
import json
import random
import shutil
import struct
import time
import warnings
import zlib

import numpy as np
from PIL import Image, PngImagePlugin
import pytest

from helpers import leave_run
from image_transformer import batching, data, metrics, runs, tables
from image_transformer.config import Config, FolderConfig, from_dict
from image_transformer.errors import InputError
from image_transformer.images import read_image

# What can happen to any file.


def flip(rng, content):
  for _ in range(rng.choice([1, 1, 30])):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(rng, content):
  del content[rng.randrange(len(content)):]


def insert(rng, content):
  place = rng.randrange(len(content))
  content[place:place] = rng.randbytes(rng.randrange(1, 60))


def lose(rng, content):
  place = rng.randrange(len(content))
  del content[place:place + rng.randrange(1, 60)]


def blank(rng, content):
  place, length = rng.randrange(len(content)), rng.randrange(1, 5_000)
  content[place:place + length] = bytes(len(content[place:place + length]))


def exchange(rng, content):
  (i, j), length = sorted(rng.choices(range(len(content)), k=2)), rng.randrange(1, 40)
  content[i:i + length], content[j:j + length] = content[j:j + length], content[i:i + length]


ACCIDENTS = [flip, truncate, insert, lose, blank, exchange]


# Images.


def encoded(image, format, **options):
  buffer = io.BytesIO()
  image.save(buffer, format, **options)
  return bytearray(buffer.getvalue())


def pictures():
  """Files of every kind, of 24 x 20 pixels."""
  rgb = np.random.default_rng(0).integers(256, size=(24, 20, 3), dtype=np.uint8)
  image, exif, text = Image.fromarray(rgb), Image.Exif(), PngImagePlugin.PngInfo()
  exif[0x0112] = 3  # orientation
  text.add_text('title', 'x' * 60, zip=True)
  kinds = [image, *map(image.convert, ('L', '1', 'LA', 'RGBA')), image.quantize(16), Image.fromarray(
      rgb[..., 0].astype(np.uint16) * 257)]
  files = [encoded(kind, 'PNG') for kind in kinds]
  files += [encoded(image, 'PNG', exif=exif, pnginfo=text, icc_profile=b'x' * 99, transparency=(1, 2, 3)),
            encoded(image.quantize(16), 'PNG', transparency=3)]
  files += [encoded(image.convert(mode), 'JPEG', exif=exif) for mode in ('RGB', 'L', 'CMYK')]
  files += [encoded(image, 'JPEG', progressive=True, icc_profile=b'x' * 99)]
  files += [encoded(image.convert(mode), 'WEBP', lossless=lossless, exif=exif)
            for mode in ('RGB', 'RGBA') for lossless in (False, True)]
  files += [encoded(image, 'PNG', exif=b'Exif\0\0MM\0*\0\0\0\x08\0\x05')]  # which breaks off
  return files + [encoded(image, format, save_all=True, append_images=[image.rotate(180)])
                  for format in ('PNG', 'WEBP')]


def forge(rng, content):
  """A PNG whose checksums are right, though its header, its chunks or their order are not."""
  chunks, place = [], 8
  while place < len(content):
    length, = struct.unpack_from('>I', content, place)
    chunks.append(bytearray(content[place + 4:place + 8 + length]))
    place += length + 12
  if rng.random() < 0.5:
    struct.pack_into('>II', chunks[0], 4, *rng.choices([0, 1, 19, 25, 3_000, 9_500, 20_000, 2**31 - 1], k=2))
  else:
    chunk = rng.choice(chunks)
    chunk[rng.randrange(4, len(chunk)) if len(chunk) > 4 else 0] = rng.randrange(256)
    rng.shuffle(chunks[rng.choice([0, 1]):] if rng.random() < 0.5 else chunks)
  content[8:] = b''.join(struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
                         for chunk in chunks)


def damaged_pictures(count):
  files, rng = pictures(), random.Random(0)
  for number in range(count):
    content = bytearray(files[number % len(files)])
    is_png = content.startswith(b'\x89PNG')
    rng.choice(ACCIDENTS + [forge] * 4 * is_png)(rng, content)
    yield bytes(content)


def test_damaged_images_are_read_or_refused(tmp_path):
  path, num_read = tmp_path / 'odd.png', 0
  for number, content in enumerate(damaged_pictures(300)):
    path.write_bytes(content)
    channels, start = 1 + 2 * (number % 2), time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
      warnings.simplefilter('always')
      try:
        image = read_image(path, channels)
      except InputError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable() and len(str(error)) < 500
      else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels and image.size
        num_read += 1
    assert time.perf_counter() - start < 10 and not warned, number
  assert 30 < num_read < 200  # the damage is neither too little nor too much to test anything


def test_a_folder_of_damaged_images(tmp_path):
  folder = tmp_path / 'photos'
  folder.mkdir()
  for number, content in enumerate([*pictures(), *damaged_pictures(60)]):
    (folder / f'{number:03}').write_bytes(content)
  config = Config(dataset='folder', data_dir=str(tmp_path / 'data'), folder=FolderConfig(path=str(folder), size=(8, 8)))
  images = [element['image'] for split in ('train', 'test') for element in data.open_split(config, split)]
  assert {image.shape for image in images} == {(8, 8, 3)} and len(images) >= len(pictures())
  (summary,) = tmp_path.glob('data/*/*/*/summary.txt')
  assert len(images) + len(summary.read_text().splitlines()) - 1 == len(pictures()) + 60


# Prepared datasets.


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A directory of digits, and all that can be read from it."""
  folder = tmp_path_factory.mktemp('prepared')
  return folder, read_all(folder)


def read_all(folder):
  """Both splits in full, and the first epoch of training."""
  config, batches = Config(dataset='digits', data_dir=str(folder)), []
  for split in ('train', 'test'):
    source = data.open_split(config, split)
    batches += batching.eval_batches(source, batch_size=99)
    batches += itertools.islice(batching.train_batches(source, batch_size=99, seed=0, start_step=0),
                                len(source) // 99)
  return batches


def assert_same_or_refused(folder, expected):
  """Returns whether it was refused."""
  try:
    batches = read_all(folder)
  except InputError as error:
    message = str(error)
    assert message.isprintable() and message.startswith(
        (f'digits cannot be read or prepared in {folder}', f'digits in {folder}', 'Split ')), message
    return True
  for batch, other in zip(batches, expected, strict=True):
    for name in other:
      np.testing.assert_array_equal(batch[name], other[name])
  return False


@pytest.mark.parametrize('seed', range(40))
def test_damaged_records_are_never_other_images(prepared, seed, tmp_path):
  """Where no checksum covers the damage, nothing is lost: the images are those that were stored."""
  folder, expected = prepared
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  rng = random.Random(seed)
  # features.json is not read here: what features there are, the program knows.
  path = rng.choice(sorted(tmp_path.glob('*/*/*.array_record*')) * 2 + sorted(tmp_path.glob('*/*/*.json')))
  content = bytearray(path.read_bytes())
  if rng.random() < 0.1:
    path.unlink()
  else:
    rng.choice(ACCIDENTS)(rng, content)
    path.write_bytes(content)
  assert_same_or_refused(tmp_path, expected)


@pytest.mark.parametrize('old, new', [
    ('"1500"', '"1400"'), ('"1500"', '"1600"'), ('"297"', '"1"'), ('"297"', '"0"'), ('"297"', '"-5"'),
    ('"297"', '"200", "97"'), ('"train"', '"trian"'), ('"train"', '"test"'), ('array_record', 'tfrecord'),
    ('-{SPLIT}', '-test'), ('"1500"', f'"{10**30}"'), ('"splits"', '"spilts"'), ('1.0.0', '9.9.9')])
def test_a_wrong_description_of_the_records_is_refused(prepared, old, new, tmp_path):
  folder, expected = prepared
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  (path,) = tmp_path.glob('*/*/dataset_info.json')
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new))
  assert assert_same_or_refused(tmp_path, expected)


def test_exchanged_records_are_refused(prepared, tmp_path):
  folder, expected = prepared
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  one, other = sorted(tmp_path.glob('*/*/*.array_record*'))
  one.rename(tmp_path / 'aside')
  other.rename(one)
  (tmp_path / 'aside').rename(other)
  assert assert_same_or_refused(tmp_path, expected)


# Files of a run.

RESULTS = {'dataset': 'digits', 'split': 'test', 'bits_per_dim': 2.5, 'standard_error': 0.1, 'num_images': 297,
           'num_train_images': 1500, 'ema': False, 'step': 1, 'num_checkpoints': 1, 'seed': 0, 'num_parameters': 9,
           'training_seconds': 9.5, 'device_kind': 'cpu', 'num_devices': 1, 'commit': 'abc'}
SUMMARY = {name: {'mean': 0.5, 'standard_error': 0.1, 'per_image': [0.5]} for name in ('consistency', 'psnr', 'ssim')}
SUPERRES = {'source': 'test', 'num_images': 297, 'num_samples': 2, 'step': 1, 'commit': 'abc', 'bicubic': SUMMARY,
            'temperature 1': SUMMARY}
NOTHING = ['', '{', '[]', '3', 'null', '"x"', '[' * 100_000, '{"seed": 1e400}', '\0', '\ud800']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'run'
  leave_run(folder, from_dict({'dataset': 'digits', 'data_dir': str(folder / 'data'), 'model': {
      'query_block': (16,), 'memory_flange': (16,), 'num_layers': 1, 'hidden_size': 8, 'num_heads': 1, 'ffn_size': 8}}))
  (folder / 'data.json').write_text('{"num_train_images": 1500}')
  (folder / 'results.json').write_text(json.dumps(RESULTS))
  (folder / 'superres.json').write_text(json.dumps(SUPERRES))
  assert tables.render([], tables.collect(folder.parent)).count('297') == 1
  return folder


def copy(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  return tmp_path / 'run'


def wrong_types(report):
  for name in report:
    for value in ('x', [], {}, None, 1.5, True, 'nan'):
      yield {**report, name: value}
    yield {other: report[other] for other in report if other != name}


@pytest.mark.parametrize('file', ['results.json', 'superres.json'])
def test_damaged_reports_are_shown_or_named(run, file, tmp_path):
  folder = copy(run, tmp_path)
  good = json.loads((folder / file).read_text())
  texts = [*NOTHING, *map(json.dumps, wrong_types(good))]
  texts += [json.dumps(good)[:length] for length in range(0, len(json.dumps(good)) - 1, 40)]
  num_refused = 0
  entry = tables.Entry(tables.Row('a', 'b', '', 'c'), {'full': runs.read_config(folder)})
  for text in texts:
    (folder / file).write_bytes(text.encode(errors='surrogatepass'))
    found = tables.collect(tmp_path)
    for as_csv in (False, True):
      tables.render([entry], found, as_csv)
    for damaged in (one for one in found if isinstance(one, tables.Damaged)):
      assert str(folder / file) in damaged.reason and damaged.reason.isprintable()
      num_refused += 1
  assert num_refused > len(texts) / 3


def test_damaged_files_of_a_run_are_named(run, tmp_path):
  folder = copy(run, tmp_path)
  good = json.loads((folder / 'config.json').read_text())
  for text in [*NOTHING, *map(json.dumps, wrong_types({name: good[name] for name in ('model', 'seed', 'dataset')})),
               *(json.dumps(good)[:length] for length in range(0, 900, 40))]:
    (folder / 'config.json').write_bytes(text.encode(errors='surrogatepass'))
    try:
      config = runs.read_config(folder)
    except InputError as error:
      assert str(folder / 'config.json') in str(error) and str(error).isprintable() and len(str(error)) < 500
    else:
      assert isinstance(config, Config)
  for text in [*NOTHING, '{}', '{"num_train_images": "x"}', '{"num_train_images": 1.5}']:
    (folder / 'data.json').write_bytes(text.encode(errors='surrogatepass'))
    with pytest.raises(InputError, match='data.json is damaged') as raised:
      runs.read_trained_on(folder)
    assert str(raised.value).isprintable()


def test_damaged_lines_of_metrics_are_left_out(tmp_path):
  lines = [json.dumps({'step': step, 'split': 'train', 'seconds': 1.5 * step}).encode() for step in (1, 2)]
  for text in [*(text.encode(errors='surrogatepass') for text in NOTHING), b'{"step": "x"}', b'{"split": "train"}',
               b'{"step": 2, "seconds": null}', lines[1][:-3], b'\xff' + lines[1]]:
    (tmp_path / 'metrics.jsonl').write_bytes(b'\n'.join([lines[0], text, lines[1]]))
    assert [line['step'] for line in metrics.read_metrics(tmp_path)] == [1, 2]
    assert metrics.training_seconds(tmp_path) == 3


@pytest.mark.parametrize('mode, file', [('eval', 'config.json'), ('sample', 'config.json')])
def test_a_damaged_file_ends_the_program_with_one_line(call, run, mode, file, tmp_path):
  folder = copy(run, tmp_path)
  (folder / file).write_bytes((folder / file).read_bytes()[:50])
  before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
  code, printed = call(f'--mode={mode}', f'--workdir={folder}')
  assert code == 2 and printed.startswith('Error: ') and printed.count('\n') == 1 and file in printed
  assert {path: path.stat().st_mtime_ns for path in folder.rglob('*')} == before
