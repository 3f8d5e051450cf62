"""Datasets from miniature archives of the true format, folders of odd files, stand-ins only for what is missing."""

import dataclasses
import io
import itertools
import os
import pathlib
import tarfile
import urllib.request
import zipfile

from etils import epath
import numpy as np
from PIL import Image, PngImagePlugin
import pytest
import tensorflow_datasets as tfds

from image_transformer import data
from image_transformer.config import Config, FolderConfig, ImageSpec
from image_transformer.datasets import DATASETS, celeba, cifar10, folder, generated, imagenet
from image_transformer.errors import InputError, MissingDataError
from image_transformer.images import fit
from test_images import encoded, png_header

TRAIN, VALIDATION, TEST = 7, 3, 2  # images in the miniature archives


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  """The official sizes, and no network."""
  for sizes in (imagenet.OLD_SIZES, imagenet.NEW_SIZES, celeba.SIZES):
    for split, size in zip(('train', 'validation', 'test'), (TRAIN, VALIDATION, TEST)):
      if split in sizes:
        monkeypatch.setitem(sizes, split, size)

  def offline(*args, **kwargs):
    raise OSError('no network')

  monkeypatch.setattr(urllib.request, 'urlopen', offline)


def test_datasets_are_not_read_from_buckets():
  with pytest.raises(InputError, match="data_dir is 'gs://bucket/tfds', but must be a local folder"):
    data.check_data(named('digits', 'gs://bucket/tfds'))


def named(dataset, data_dir, **kwargs):
  return Config(dataset=dataset, data_dir=str(data_dir), **kwargs)


def read(config, split):
  source = data.open_split(config, split)
  return [source[index] for index in range(len(source))]


def fails(config, match, kind=InputError, split='train'):
  with pytest.raises(InputError, match=match) as raised:
    data.open_split(config, split)
  assert type(raised.value) is kind and '\n' not in str(raised.value)


def noise(count, size, seed=0):
  return np.random.default_rng(seed).integers(256, size=[count, *size, 3], dtype=np.uint8)


def as_set(images):
  return {(image.shape, image.tobytes()) for image in images}


def write_tar(path, folder_name, pictures):
  with tarfile.open(path, 'w') as tar:
    directory = tarfile.TarInfo(folder_name)
    directory.type = tarfile.DIRTYPE
    tar.addfile(directory)
    for index, picture in enumerate(pictures):
      content = encoded(picture, 'PNG')
      member = tarfile.TarInfo(f'{folder_name}/{index:07d}.png')
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))


def write_npz_zip(path, names, images, labels):
  """As Chrabaszcz et al.: npz files in a zip, images [N, 3 * size * size], labels 1..1000."""
  with zipfile.ZipFile(path, 'w') as outer:
    for name, image_part, label_part in zip(names, np.array_split(images, len(names)),
                                            np.array_split(labels, len(names))):
      inner = io.BytesIO()
      np.savez(inner, data=image_part.transpose(0, 3, 1, 2).reshape(len(image_part), -1), labels=label_part)
      outer.writestr(name, inner.getvalue())


# --- the two ImageNets ---------------------------------------------------------------------------


@pytest.mark.parametrize('size', [32, 64])
def test_old_imagenet(size, tmp_path):
  images = noise(TRAIN + VALIDATION, [size, size])
  pictures = [Image.fromarray(image) for image in images]
  pictures[:2] = pictures[0].convert('L'), pictures[1].quantize(9)  # whose PNGs TFDS would not read as RGB
  images[:2] = [np.array(picture.convert('RGB')) for picture in pictures[:2]]
  write_tar(tmp_path / f'train_{size}x{size}.tar', f'train_{size}x{size}', pictures[:TRAIN])
  write_tar(tmp_path / f'valid_{size}x{size}.tar', f'valid_{size}x{size}', pictures[TRAIN:])
  config = named(f'imagenet{size}_old', tmp_path)
  assert data.image_spec(config) == ImageSpec(size, size, 3)
  for split, expected in (('train', images[:TRAIN]), ('validation', images[TRAIN:])):
    elements = read(config, split)
    assert len(elements) == data.full_size(config, split) == len(expected)
    assert elements[0].keys() == {'image'}
    assert as_set(element['image'] for element in elements) == as_set(expected)
  # It is the stock dataset, bytes and all: `tfds` reads it, and it is used without the archive.
  for archive in tmp_path.glob('*.tar'):
    archive.unlink()
  stock = tfds.builder(f'downsampled_imagenet/{size}x{size}', data_dir=str(tmp_path))
  assert as_set(example['image'] for example in stock.as_data_source('validation')) == as_set(images[TRAIN:])
  assert len(read(config, 'validation')) == VALIDATION


@pytest.mark.parametrize('size', [32, 64])
def test_new_imagenet(size, tmp_path):
  images, labels = noise(TRAIN + VALIDATION, [size, size]), np.array([1, 1000, *range(2, 2 + TRAIN + VALIDATION - 2)])
  archives = {32: [('train', TRAIN)], 64: [('train_part1', 4), ('train_part2', TRAIN - 4)]}[size]
  start = 0
  for name, count in (*archives, ('val', VALIDATION)):
    part = slice(start, start := start + count)
    names = ['val_data.npz'] if name == 'val' else [f'{name}_data_batch_{index}.npz' for index in (1, 2)]
    write_npz_zip(tmp_path / f'Imagenet{size}_{name}_npz.zip', names, images[part], labels[part])
  config = named(f'imagenet{size}_new', tmp_path)
  assert data.image_spec(config) == ImageSpec(size, size, 3, num_classes=1000)
  for split, part in (('train', slice(0, TRAIN)), ('validation', slice(TRAIN, None))):
    elements = read(config, split)
    assert len(elements) == data.full_size(config, split)
    found = {element['image'].tobytes(): element['label'] for element in elements}
    assert found == {image.tobytes(): label - 1 for image, label in zip(images[part], labels[part])}
    stock = tfds.builder(f'imagenet_resized/{size}x{size}', data_dir=str(tmp_path))
    assert as_set(example['image'] for example in stock.as_data_source(split)) == as_set(images[part])
  assert elements[0]['label'].dtype == np.int32


def test_the_two_imagenets_name_themselves(tmp_path):
  for size in (32, 64):
    old, new = (data.note(named(f'imagenet{size}_{kind}', tmp_path)) for kind in ('old', 'new'))
    assert old.startswith(f'imagenet{size}_old: the original') and '49,999' in old
    assert new.startswith(f'imagenet{size}_new: the new') and '50,000' in new
    for text in (old, new):
      assert 'do not compare' in text and '0.26 lower on the new' in text and '\n' not in text
  assert not list(tmp_path.iterdir())


# --- CelebA --------------------------------------------------------------------------------------


def write_celeba(path, shapes=None, folder='img_align_celeba/', csv=False):
  """Twelve smooth JPEGs 000001.jpg .. in three parts; returns their decoded pixels."""
  decoded = {}
  parts = [0] * TRAIN + [1] * VALIDATION + [2] * TEST
  with zipfile.ZipFile(path / 'img_align_celeba.zip', 'w') as images:
    for index in range(len(parts)):
      small = Image.fromarray(noise(1, [11, 9], seed=index)[0])
      content = encoded(small.resize((shapes or {}).get(index, (178, 218))), 'JPEG')
      name = f'{index + 1:06d}.jpg'
      images.writestr(f'{folder}{name}', content)
      decoded[name] = np.array(Image.open(io.BytesIO(content)))
  lines = [f'{name} {part}' for name, part in zip(decoded, parts)]
  if csv:
    lines = [*(line.replace(' ', ',') for line in lines), 'image_id,partition']
  (path / f'list_eval_partition.{"csv" if csv else "txt"}').write_text('\n'.join(lines[::-1]) + '\n')
  return decoded


@pytest.mark.parametrize('folder, csv', [('img_align_celeba/', False), ('img_align_celeba/img_align_celeba/', False),
                                         ('', False), ('img_align_celeba/', True)])
def test_celeba(folder, csv, tmp_path):
  """As its authors and as Kaggle's copies have it."""
  decoded = write_celeba(tmp_path, folder=folder, csv=csv)
  config = named('celeba', tmp_path)
  assert data.image_spec(config) == ImageSpec(32, 32, 3)
  names = iter(decoded)
  for split, count in (('train', TRAIN), ('validation', VALIDATION), ('test', TEST)):
    elements = read(config, split)
    examples = celeba.ImageTransformerCeleba(data_dir=str(tmp_path)).as_data_source(split)
    assert {example['id'].decode() for example in examples} == set(itertools.islice(names, count))
    for example, element in zip(examples, elements, strict=True):
      square = decoded[example['id'].decode()][40:178, 20:158]
      np.testing.assert_array_equal(example['image'], square)
      np.testing.assert_array_equal(element['image'], fit(square, 32, 32))
      assert element.keys() == {'image'}


def test_celeba_must_be_aligned(tmp_path):
  write_celeba(tmp_path, shapes={TRAIN: (178, 217)})
  fails(named('celeba', tmp_path), r'img_align_celeba.zip holds 000008.jpg of 217 x 178 .* images are 218 x 178')


# --- what is missing, and what is damaged --------------------------------------------------------

FILES = {
    'celeba': ['img_align_celeba.zip', 'list_eval_partition.txt'],
    'imagenet32_old': ['train_32x32.tar', 'valid_32x32.tar'],
    'imagenet64_old': ['train_64x64.tar', 'valid_64x64.tar'],
    'imagenet32_new': ['Imagenet32_train_npz.zip', 'Imagenet32_val_npz.zip'],
    'imagenet64_new': ['Imagenet64_train_part1_npz.zip', 'Imagenet64_train_part2_npz.zip', 'Imagenet64_val_npz.zip'],
}


@pytest.mark.parametrize('dataset', FILES)
def test_missing_archives_are_named(dataset, tmp_path):
  config = named(dataset, tmp_path)
  fails(config, f'is not in {tmp_path}: put {" and ".join(FILES[dataset])} there .*http', MissingDataError)
  first, *others = FILES[dataset]
  (tmp_path / first).touch()
  fails(config, f': put {" and ".join(others)} there', MissingDataError)
  assert list(tmp_path.iterdir()) == [tmp_path / first]


@pytest.mark.parametrize('damage', ['cut', 'empty', 'short', 'no picture', 'wrong size'])
def test_damaged_tars_are_named(damage, tmp_path):
  pictures = [Image.fromarray(image) for image in noise(TRAIN, [32, 32])]
  path = tmp_path / 'train_32x32.tar'
  write_tar(tmp_path / 'valid_32x32.tar', 'valid_32x32', pictures[:VALIDATION])
  if damage == 'wrong size':
    pictures[3] = pictures[3].resize((31, 32))
  write_tar(path, 'train_32x32', pictures[:TRAIN - (damage == 'short')])
  content = path.read_bytes()
  if damage == 'cut':
    path.write_bytes(content[:10_000])
  elif damage == 'empty':
    path.write_bytes(b'')
  elif damage == 'no picture':
    path.write_bytes(content.replace(b'\x89PNG', b'\x89PMG', 1))
  fails(named('imagenet32_old', tmp_path), {
      'short': f'{path} is not the official one: it has 6 images for a split of 7',
      'wrong size': rf'{path} is damaged \(an image is 31 x 32\)'}.get(damage, f'{path} is damaged'))
  assert not list(tmp_path.glob('**/*.array_record*'))


@pytest.mark.parametrize('damage', ['cut', 'no npz', 'wrong size'])
def test_damaged_zips_are_named(damage, tmp_path):
  images, labels = noise(TRAIN, [32, 32]), np.arange(1, TRAIN + 1)
  path = tmp_path / 'Imagenet32_train_npz.zip'
  write_npz_zip(tmp_path / 'Imagenet32_val_npz.zip', ['val_data.npz'], images[:VALIDATION], labels[:VALIDATION])
  write_npz_zip(path, ['a.txt' if damage == 'no npz' else 'a.npz'],
                noise(TRAIN, [31, 31]) if damage == 'wrong size' else images, labels)
  if damage == 'cut':
    path.write_bytes(path.read_bytes()[:-30])
  fails(named('imagenet32_new', tmp_path), f'{path} is (damaged|not the official one: it has 0 images)')


@pytest.mark.parametrize('damage', ['cut', 'partition', 'member'])
def test_damaged_celeba_is_named(damage, tmp_path):
  write_celeba(tmp_path)
  images, partition = tmp_path / 'img_align_celeba.zip', tmp_path / 'list_eval_partition.txt'
  if damage == 'cut':
    images.write_bytes(images.read_bytes()[:-50])
  else:
    lines = partition.read_text()
    partition.write_text({'partition': 'nonsense\n', 'member': lines.replace('000001', '000099')}[damage])
  fails(named('celeba', tmp_path), f'{partition if damage == "partition" else images}.* is damaged')


# --- stand-ins -----------------------------------------------------------------------------------


@pytest.mark.parametrize('dataset', DATASETS)
def test_stand_ins_look_like_the_dataset(dataset, tmp_path, monkeypatch):
  monkeypatch.setattr(generated, 'NUM_TRAIN', 24)
  monkeypatch.setattr(generated, 'NUM_EVAL', 12)
  config = named(f'generated_{dataset}', tmp_path, folder=FolderConfig(size=(12, 9)))
  spec = data.image_spec(config)
  assert spec == data.image_spec(dataclasses.replace(config, dataset=dataset))
  splits = DATASETS[dataset](config).sizes
  pictures = set()
  for split in splits:
    elements = read(config, split)
    assert len(elements) == (24 if split == 'train' else 12) and data.full_size(config, split) is None
    for element in elements:
      assert element['image'].shape == spec.shape and element['image'].max() < spec.levels
      assert ('label' in element) == bool(spec.num_classes)
      assert element.get('label', 0) in range(spec.num_classes or 1)
    pictures |= as_set(element['image'] for element in elements)
  assert len(pictures) == 24 + 12 * (len(splits) - 1)  # all differ, between splits too
  assert data.note(config) == f'generated_{dataset}: generated images in place of {dataset}, not a result'


def test_stand_ins_are_always_the_same_and_can_be_learnt(tmp_path):
  images = []
  for name in ('a', 'b'):
    elements = read(named('generated_cifar10', tmp_path / name), 'train')
    images.append(np.stack([element['image'] for element in elements]))
  np.testing.assert_array_equal(*images)
  assert len(elements) == 256 and len(read(named('generated_cifar10', tmp_path / 'a'), 'test')) == 64
  # Neighbours predict one another, colours are spread, and labels say which way it brightens.
  pixels = images[0].astype(float)
  assert np.abs(np.diff(pixels, axis=2)).mean() < 6 < 40 < pixels.std()
  rightwards = pixels[:, :, 16:].mean((1, 2, 3)) - pixels[:, :, :16].mean((1, 2, 3))
  labels = np.array([element['label'] for element in elements])
  assert rightwards[labels == 0].mean() > 30 and rightwards[labels == 5].mean() < -30


def test_stand_in_only_if_asked_for_and_missing(tmp_path, monkeypatch):
  for dataset in (*FILES, 'cifar10'):
    config = named(dataset, tmp_path)
    assert data.with_stand_in(config) is config  # not asked for
    asked = dataclasses.replace(config, stand_in=True)
    assert data.with_stand_in(asked) == dataclasses.replace(asked, dataset=f'generated_{dataset}')
    assert data.with_stand_in(data.with_stand_in(asked)).dataset == f'generated_{dataset}'
  digits = named('digits', tmp_path, stand_in=True)
  assert data.with_stand_in(digits) is digits
  with pytest.raises(InputError, match='Unknown dataset'):
    data.with_stand_in(named('cifra10', tmp_path, stand_in=True))

  write_celeba(tmp_path)  # what is there is used, and prepared only once
  config = named('celeba', tmp_path, stand_in=True)
  assert data.with_stand_in(config) is config
  monkeypatch.setattr(celeba.ImageTransformerCeleba, '_split_generators', None)
  assert data.with_stand_in(config) is config and len(read(config, 'train')) == TRAIN


@pytest.mark.parametrize('dataset', ['cifar10', 'imagenet32_old', 'celeba', 'prepared'])
def test_what_is_damaged_is_never_replaced(dataset, tmp_path):
  names = FILES.get(dataset, [pathlib.Path(cifar10.URL).name])
  for name in names:
    (tmp_path / name).write_bytes(b'damaged')
  if dataset == 'prepared':
    write_celeba(tmp_path)
    dataset = 'celeba'
    read(named('celeba', tmp_path), 'test')
    (info,) = tmp_path.glob('**/dataset_info.json')
    info.write_text('{')
  with pytest.raises(InputError) as raised:
    data.with_stand_in(named(dataset, tmp_path, stand_in=True))
  assert type(raised.value) is InputError and str(tmp_path) in str(raised.value)


# --- a folder ------------------------------------------------------------------------------------


def write_mixed_folder(path):
  """200 files in folders; returns {name below: why it is left out}."""
  rng = np.random.default_rng(0)
  sizes = [(8, 8), (20, 30), (64, 48), (9, 200)]
  count = 0
  for index in range(189):
    name, format = [('a.png', 'PNG'), ('b.jpg', 'JPEG'), ('c.webp', 'WEBP')][index % 3]
    file = path / f'folder {index % 5}' / f'{index:03d}{name}'
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(rng.integers(256, size=[*sizes[index % 4], 3], dtype=np.uint8))
    file.write_bytes(encoded(picture, format))
    count += 1
  large = Image.fromarray(rng.integers(256, size=[40, 40, 3], dtype=np.uint8))
  jpeg = encoded(large, 'JPEG')
  good = {
      'cmyk.jpg': encoded(large.convert('CMYK'), 'JPEG'),
      'grey.png': encoded(large.convert('L'), 'PNG'),
      '16 bit.png': encoded(Image.fromarray(np.uint16([[0, 65_535], [128, 300]]).repeat(8, 0).repeat(8, 1)), 'PNG'),
      'palette': encoded(large.quantize(9), 'PNG'),
      'n\udcffme.png': encoded(large.crop((0, 0, 20, 20)), 'PNG'),
  }
  bad = {
      'truncated.jpg': (jpeg[:len(jpeg) // 2], 'cannot be used as an image (image file is truncated'),
      'single.png': (encoded(large.crop((0, 0, 1, 1)), 'PNG'), 'The image is 1 x 1 (height x width), but must be'),
      'notes.txt': (b'shopping', 'is not a PNG, JPEG or WebP image'),
      'twice.png': ((path / 'folder 0/000a.png').read_bytes(), 'the same picture as folder 0/000a.png'),
      'bomb.png': (png_header(100_000, 100_000), 'exceeds limit'),
      'empty.png': (b'', 'is not a PNG, JPEG or WebP image'),
  }
  contents = good | {name: content for name, (content, _) in bad.items()}
  for name, content in contents.items():
    (path / name).write_bytes(content)
  (path / '.hidden.png').write_bytes(encoded(large.crop((0, 0, 30, 30)), 'PNG'))
  assert count + len(contents) == 200
  return {name: why for name, (_, why) in bad.items()}


@pytest.fixture
def photos(tmp_path):
  """A folder of ten 4x6 images, whose values say which is which."""
  path = tmp_path / 'my photos'
  path.mkdir()
  for index in range(10):
    Image.new('RGB', (6, 4), (index, 0, 0)).save(path / f'{index}.png')
  return path


def of_folder(tmp_path, path, **kwargs):
  return named('folder', tmp_path / 'data', folder=FolderConfig(**{'path': str(path), 'size': (4, 4)} | kwargs))


def values(config, split):
  return {int(element['image'][0, 0, 0]) for element in read(config, split)}


def test_a_mixed_folder(tmp_path, capsys):
  path = tmp_path / 'mixed'
  left_out = write_mixed_folder(path)
  config = of_folder(tmp_path, path, size=(8, 8), test_fraction=0.25)
  assert data.image_spec(config) == ImageSpec(8, 8, 3)
  train, test = read(config, 'train'), read(config, 'test')
  used = 200 - len(left_out)
  assert len(test) == round(0.25 * used) and len(train) == used - len(test)
  assert all(element.keys() == {'image'} and element['image'].shape == (8, 8, 3) for element in train + test)

  examples = [example for split in ('train', 'test')
              for example in folder.ImageTransformerFolder(
                  data_dir=config.data_dir, config=folder.settings(config.folder)).as_data_source(split)]
  images = {example['id'].decode(): example['image'] for example in examples}
  assert len(images) == used and 'n?me.png' in images and '.hidden.png' not in images
  # Each name has its own pixels: spooling and splitting mixed nothing up.
  for name in ('folder 1/001b.jpg', 'folder 0/000a.png', 'folder 1/011c.webp', 'folder 2/042a.png'):
    original = np.array(Image.open(path / name).convert('RGB'))
    np.testing.assert_array_equal(images[name], fit(original, 8, 8))
  np.testing.assert_array_equal(images['16 bit.png'][::4, ::4, 0], [[0, 255], [0, 1]])
  assert (images['grey.png'] == images['grey.png'][..., :1]).all()

  (summary,) = (tmp_path / 'data').glob('*/*/*/summary.txt')
  head, *lines = summary.read_text().splitlines()
  assert head.startswith(f'{path}: {used} of 200 files are used, {len(train)} to train and {len(test)} to test with')
  assert len(lines) == len(left_out)
  for name, why in left_out.items():
    (line,) = [line for line in lines if line.startswith(f'  {name}: ')]
    assert why in line and str(path) not in line
  assert capsys.readouterr().err.splitlines()[-len(lines) - 1:] == [head, *lines]


def test_a_long_list_is_printed_in_part(photos, tmp_path, capsys):
  for index in range(50):
    (photos / f'{index}.txt').write_text(f'{index}')
  read(of_folder(tmp_path, photos), 'train')
  (summary,) = (tmp_path / 'data').glob('*/*/*/summary.txt')
  lines = summary.read_text().splitlines()
  printed = [line for line in capsys.readouterr().err.splitlines() if line]
  assert len(lines) == 51 and printed[-21:-1] == lines[:20]
  assert printed[-1] == f'  and 31 more in {summary}'


def test_the_split_follows_from_content_alone(photos, tmp_path):
  splits = []
  config = of_folder(tmp_path, photos, test_fraction=0.3)
  splits.append((values(config, 'train'), values(config, 'test')))
  for index in range(10):
    (photos / f'{index}.png').rename(photos / f'{(index * 7 + 3) % 10}.renamed')
  photos.rename(tmp_path / 'elsewhere')
  config = of_folder(tmp_path, tmp_path / 'elsewhere', test_fraction=0.3)
  splits.append((values(config, 'train'), values(config, 'test')))
  assert splits[0] == splits[1]
  assert len(splits[0][1]) == 3 and splits[0][0] | splits[0][1] == set(range(10))


@pytest.mark.parametrize('fraction, num_test', [(0.001, 1), (0.04, 1), (0.16, 2), (0.5, 5), (0.999, 9)])
def test_neither_split_is_empty(photos, tmp_path, fraction, num_test):
  config = of_folder(tmp_path, photos, test_fraction=fraction)
  assert (len(values(config, 'train')), len(values(config, 'test'))) == (10 - num_test, num_test)


def test_a_prepared_folder_is_not_looked_at_again(photos, tmp_path, monkeypatch):
  config = of_folder(tmp_path, photos)
  before = values(config, 'train')
  prepared = next((tmp_path / 'data').glob('*/*/1.0.0'))
  assert data.note(config) == (f'folder: 9 train and 1 test images of {photos}, kept in {prepared}; '
                               'to read the folder again, set another data_dir')
  assert data.full_size(config, 'train') is None and len(data.open_split(config, 'train')) == 9
  photos.rename(tmp_path / 'gone')
  assert values(config, 'train') == before
  # However the same path is written; but other settings are another dataset.
  monkeypatch.chdir(tmp_path)
  assert values(of_folder(tmp_path, 'my photos/../my photos/'), 'train') == before
  for other in ({'size': (2, 4)}, {'crop': False}, {'test_fraction': 0.2}):
    fails(of_folder(tmp_path, photos, **other), f'folder.path is {photos}, which does not exist')


def test_settings_of_a_folder(photos, tmp_path):
  original = np.random.default_rng(0).integers(256, size=[8, 16, 3], dtype=np.uint8)
  for index in range(10):
    Image.fromarray(original + np.uint8(index)).save(photos / f'{index}.png')
  for crop in (True, False):
    element = read(of_folder(tmp_path, photos, size=(4, 4), crop=crop), 'train')[0]
    expected = as_set(fit(original + np.uint8(index), 4, 4, crop) for index in range(10))
    assert as_set([element['image']]) <= expected


def test_folders_that_cannot_be_used(photos, tmp_path):
  fails(of_folder(tmp_path, ''), 'folder.path is not set')
  fails(of_folder(tmp_path, tmp_path / 'none'), 'folder.path is .*none, which does not exist')
  (tmp_path / 'empty').mkdir()
  fails(of_folder(tmp_path, tmp_path / 'empty'), 'empty holds no files')
  fails(of_folder(tmp_path, photos, size=(5, 5)),
        r'has 0 usable images among 10 files \(the first left out: 0.png: The image is 4 x 6')
  fails(of_folder(tmp_path, photos / '1.png'), 'folder.path is .*1.png, which is a file')
  assert not (tmp_path / 'data').exists()


def test_a_crash_leaves_nothing_half_prepared(photos, tmp_path, monkeypatch):
  config = of_folder(tmp_path, photos)
  generate = folder.ImageTransformerFolder._generate_examples

  def crash(self, examples):
    yield from itertools.islice(generate(self, examples), 2)
    raise RuntimeError('crash')

  monkeypatch.setattr(folder.ImageTransformerFolder, '_generate_examples', crash)
  fails(config, 'folder cannot be read or prepared in .*crash')
  assert not [path for path in (tmp_path / 'data').rglob('*') if path.is_file()]
  monkeypatch.undo()
  assert len(values(config, 'train')) == 9


def test_unreadable_files_are_left_out(photos, tmp_path, monkeypatch):
  (photos / 'broken link.png').symlink_to(photos / 'none')
  (photos / 'two\nlines.png').write_bytes(b'no image')
  os.mkfifo(photos / 'pipe.png')  # reading it would wait for ever
  (photos / 'secret.png').write_text('secret')
  read_bytes = type(epath.Path('x')).read_bytes

  def deny(self):
    if self.name == 'secret.png':
      raise PermissionError(13, 'Permission denied')
    return read_bytes(self)

  monkeypatch.setattr(type(epath.Path('x')), 'read_bytes', deny)
  assert len(values(of_folder(tmp_path, photos), 'train')) == 9
  (summary,) = (tmp_path / 'data').glob('*/*/*/summary.txt')
  assert summary.read_text().splitlines()[1:] == [
      '  broken link.png: a link to nothing', '  secret.png: cannot be used as an image (Permission denied).',
      '  two\\nlines.png: is not a PNG, JPEG or WebP image.']


def test_equal_pictures_in_different_files_are_used_once(photos, tmp_path):
  """One would be in training, the other in the test."""
  for path in sorted(photos.iterdir()):
    with Image.open(path) as image:
      comment = PngImagePlugin.PngInfo()
      comment.add_text('Comment', 'a copy')
      image.save(photos / f'copy of {path.name}', pnginfo=comment)
      image.save(photos / f'{path.stem}.webp', lossless=True)
  config = of_folder(tmp_path, photos)
  assert sorted(values(config, 'train') | values(config, 'test')) == list(range(10))
  assert len(read(config, 'train')) == 9 and len(read(config, 'test')) == 1


def test_a_folder_named_from_here_is_the_same_from_elsewhere(photos, tmp_path, monkeypatch):
  monkeypatch.chdir(photos.parent)
  config = dataclasses.replace(of_folder(tmp_path, photos.name), data_dir='data')
  monkeypatch.chdir(tmp_path.parent)
  assert config.folder.path == str(photos) and len(read(config, 'train')) == 9
  assert config.data_dir == str(photos.parent / 'data') and os.listdir(config.data_dir)


@pytest.mark.parametrize('name', [b'caf\xe9', b'p' * 250])
def test_a_folder_of_any_name(photos, tmp_path, name):
  path = os.path.join(os.fsencode(tmp_path), name)
  os.rename(photos, path)
  assert len(read(of_folder(tmp_path, os.fsdecode(path)), 'train')) == 9
