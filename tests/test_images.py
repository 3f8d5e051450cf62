"""Making smaller is exact, and every kind of picture file is read as people see it or refused by name."""

import fractions
import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import time
import zlib

from etils import epath
import numpy as np
from PIL import Image, ImageOps
import pytest

from image_transformer.errors import InputError
from image_transformer.images import area_resize, find_files, fit, read_image

ROOT = pathlib.Path(__file__).parent.parent
ORIENTATION = 0x0112  # EXIF


def slow_area_resize(image, height, width):
  """The definition, in fractions: [H, W, C] to [height, width, C]."""
  rows, columns, channels = image.shape

  def overlap(size, new_size, new, old):
    length = fractions.Fraction(size, new_size)
    return max(0, min((new + 1) * length, old + 1) - max(new * length, old)) / length

  result = np.zeros([height, width, channels], np.uint8)
  for row, column, channel in np.ndindex(height, width, channels):
    mean = sum(overlap(rows, height, row, y) * overlap(columns, width, column, x) * int(image[y, x, channel])
               for y, x in np.ndindex(rows, columns)
               if overlap(rows, height, row, y) and overlap(columns, width, column, x))
    result[row, column, channel] = int(mean)  # truncates
  return result


@pytest.mark.parametrize('size, new_size', [
    ((5, 5), (2, 2)), ((7, 3), (5, 2)), ((8, 8), (2, 2)), ((6, 9), (6, 4)), ((4, 5), (4, 5)), ((11, 13), (1, 1))])
def test_area_resize_equals_its_definition(size, new_size):
  images = np.random.default_rng(0).integers(256, size=[2, *size, 3], dtype=np.uint8)
  resized = area_resize(images, *new_size)
  assert resized.dtype == np.uint8 and resized.shape == (2, *new_size, 3)
  np.testing.assert_array_equal(resized, [slow_area_resize(image, *new_size) for image in images])


def test_area_resize_of_celeba():
  image = np.random.default_rng(1).integers(256, size=[138, 138, 1], dtype=np.uint8)
  for size in (8, 32):  # by repeating pixels until the blocks fit, in integers
    fine = np.repeat(np.repeat(image[..., 0].astype(np.int64), size, 0), size, 1)
    sums = fine.reshape(size, 138, size, 138).sum((1, 3))
    np.testing.assert_array_equal(area_resize(image, size, size)[..., 0], sums // 138**2)


def test_area_resize_truncates():
  # As tensor2tensor does; rounding would give 1 and 255.
  assert area_resize(np.uint8([[[0], [1]], [[1], [1]]]), 1, 1).item() == 0
  assert area_resize(np.uint8([[[254], [255]], [[255], [255]]]), 1, 1).item() == 254


@pytest.mark.parametrize('size, new_size', [(138, 32), (5, 3), (4000, 32), (97, 89)])
def test_area_resize_leaves_a_constant_image_constant(size, new_size):
  for value in (0, 1, 127, 254, 255):
    assert (area_resize(np.full([size, size, 1], value, np.uint8), new_size, new_size) == value).all()


def test_area_resize_takes_any_leading_axes_and_integers():
  images = np.random.default_rng(2).integers(256, size=[2, 3, 6, 4, 1])
  resized = area_resize(images, 3, 2)
  assert resized.shape == (2, 3, 3, 2, 1)
  np.testing.assert_array_equal(resized[1, 2], area_resize(images[1, 2].astype(np.uint8), 3, 2))
  assert area_resize(images[:0], 3, 2).shape == (0, 3, 3, 2, 1)


def test_area_resize_of_a_photo():
  rng = np.random.default_rng(3)
  blocks = rng.integers(255, size=[8, 8, 3], dtype=np.uint8)
  image = np.repeat(np.repeat(blocks, 300, 0), 250, 1)
  image[rng.integers(2400, size=99), rng.integers(2000, size=99)] += 1  # too little to count
  np.testing.assert_array_equal(area_resize(image, 8, 8), blocks)


def test_area_resize_is_quick():
  images = np.zeros([128, 32, 32, 3], np.uint8)
  start = time.perf_counter()
  for _ in range(10):
    area_resize(images, 8, 8)
  assert time.perf_counter() - start < 1


def test_area_resize_refuses():
  image = np.zeros([4, 5, 3], np.uint8)
  for bad, size in ((image, (5, 5)), (image, (4, 6)), (image, (0, 1)), (image.astype(np.float32), (2, 2))):
    with pytest.raises(ValueError, match=r'images of 4 x 5 cannot be downsampled to'):
      area_resize(bad, *size)


@pytest.mark.parametrize('shape, target, window', [
    ((8, 12), (2, 2), (0, 8, 2, 10)), ((12, 8), (2, 2), (2, 10, 0, 8)), ((9, 9), (3, 3), (0, 9, 0, 9)),
    ((9, 30), (3, 4), (0, 9, 9, 21)), ((30, 9), (3, 4), (11, 18, 0, 9)), ((7, 10), (2, 3), (0, 7, 0, 10))])
def test_fit_cuts_from_the_centre(shape, target, window):
  image = np.random.default_rng(0).integers(256, size=[*shape, 3], dtype=np.uint8)
  top, bottom, left, right = window
  np.testing.assert_array_equal(fit(image, *target), area_resize(image[top:bottom, left:right], *target))
  np.testing.assert_array_equal(fit(image, *target, crop=False), area_resize(image, *target))


@pytest.mark.parametrize('crop', [True, False])
def test_fit_never_makes_larger(crop):
  for shape in ((31, 99, 3), (99, 31, 3)):
    with pytest.raises(InputError, match=f'image is {shape[0]} x {shape[1]} .* must be at least 32 x 32'):
      fit(np.zeros(shape, np.uint8), 32, 32, crop)
  assert fit(np.full([32, 32, 3], 9, np.uint8), 32, 32, crop).mean() == 9


RGB = np.random.default_rng(0).integers(256, size=[5, 4, 3], dtype=np.uint8)
PICTURE = Image.fromarray(RGB)


@pytest.fixture
def saved(tmp_path):
  """Saves a PIL image, or bytes, and returns what `read_image` makes of the file."""

  def save_and_read(image, name='picture', channels=3, **kwargs):
    path = tmp_path / name
    if isinstance(image, bytes):
      path.write_bytes(image)
    else:
      image.save(path, **({'format': 'PNG'} | kwargs))
    pixels = read_image(path, channels)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == channels and pixels.flags.writeable
    return pixels

  return save_and_read


def test_plain_images(saved):
  np.testing.assert_array_equal(saved(PICTURE), RGB)
  np.testing.assert_array_equal(saved(PICTURE, 'lying.jpg'), RGB)  # the content counts, not the name
  np.testing.assert_array_equal(saved(PICTURE, format='WEBP', lossless=True), RGB)
  smooth = Image.new('RGB', (16, 16), (200, 100, 50))
  np.testing.assert_allclose(saved(smooth, format='JPEG').astype(int), np.array(smooth), atol=3)


def test_paths_may_be_of_any_kind(tmp_path):
  PICTURE.save(tmp_path / 'a.png')
  for path in (tmp_path / 'a.png', str(tmp_path / 'a.png'), epath.Path(tmp_path / 'a.png')):
    np.testing.assert_array_equal(read_image(path, 3), RGB)


def test_grey(saved):
  grey = PICTURE.convert('L')
  np.testing.assert_array_equal(saved(PICTURE, channels=1)[..., 0], np.array(grey))
  np.testing.assert_array_equal(saved(grey, channels=1)[..., 0], np.array(grey))
  np.testing.assert_array_equal(saved(grey), np.array(grey)[..., None].repeat(3, 2))
  np.testing.assert_array_equal(saved(Image.fromarray(RGB[..., 0] > 99), channels=1)[..., 0], (RGB[..., 0] > 99) * 255)


@pytest.mark.parametrize('channels', [1, 3])
def test_16_bit_grey_is_scaled(saved, channels):
  levels = np.uint16([[0, 128, 129, 257], [300, 32_768, 65_000, 65_535]])
  # To the nearest of 256 levels; PIL alone would clip at 255 or drop the lower byte.
  expected = np.uint8([[0, 0, 1, 1], [1, 128, 253, 255]])
  image = Image.fromarray(levels)
  np.testing.assert_array_equal(saved(image, channels=channels), expected[..., None].repeat(channels, 2))
  transparent = saved(image, channels=channels, transparency=32_768)
  assert (transparent[1, 1] == 255).all() and (transparent[0, 3] == 1).all()


def test_palettes(saved):
  palette = PICTURE.quantize(20)
  np.testing.assert_array_equal(saved(palette), np.array(palette.convert('RGB')))
  colour = saved(palette, transparency=int(np.array(palette)[0, 0]))[0, 0]
  np.testing.assert_array_equal(colour, [255] * 3)


def test_transparency_is_laid_on_white(saved):
  alpha = np.array([[0, 255, 51, 128]] * 5, np.uint8)[..., None]
  expected = 255 + (RGB.astype(float) - 255) * alpha / 255
  for kwargs in ({}, {'format': 'WEBP', 'lossless': True, 'exact': True}):
    image = Image.fromarray(np.concatenate([RGB, alpha], -1))
    np.testing.assert_allclose(saved(image, **kwargs), expected, atol=1)
  image = Image.fromarray(np.concatenate([RGB[..., :1], alpha], -1))
  np.testing.assert_allclose(saved(image, channels=1), expected[..., :1], atol=1)
  np.testing.assert_array_equal(saved(PICTURE, transparency=tuple(RGB[2, 1].tolist()))[2, 1], [255] * 3)


def test_cmyk(saved):
  cmyk = Image.new('CMYK', (16, 16), (0, 255, 255, 0))
  np.testing.assert_allclose(saved(cmyk, format='JPEG').astype(int).mean((0, 1)), [255, 0, 0], atol=8)
  assert saved(cmyk, format='JPEG', channels=1).shape == (16, 16, 1)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(saved, orientation):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  # Row 0 and column 0 as the EXIF standard has them.
  turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
            6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}[orientation]
  np.testing.assert_array_equal(saved(PICTURE, exif=exif), turned)


def test_the_first_frame_of_animations(saved):
  other = ImageOps.invert(PICTURE)
  for kwargs in ({'format': 'PNG'}, {'format': 'WEBP', 'lossless': True}):
    np.testing.assert_array_equal(saved(PICTURE, save_all=True, append_images=[other], **kwargs), RGB)


def refused(saved, content, why):
  with pytest.raises(InputError, match=why) as raised:
    saved(content, 'odd.png')
  assert 'odd.png' in str(raised.value) and '\n' not in str(raised.value)


def encoded(image, format):
  buffer = io.BytesIO()
  image.save(buffer, format)
  return buffer.getvalue()


def chunk(kind, content):
  """A part of a PNG."""
  return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png_header(width, height):
  """A PNG that claims a size, and has hardly any pixels."""
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
  return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(99))) + chunk(b'IEND', b'')


@pytest.mark.parametrize('content', [
    b'', b'no image', encoded(PICTURE, 'GIF'), encoded(PICTURE, 'BMP'), encoded(PICTURE, 'TIFF')])
def test_other_files_are_refused(saved, content):
  refused(saved, content, 'is not a PNG, JPEG or WebP image')


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP'])
def test_truncated_images_are_refused(saved, format):
  noise = Image.fromarray(np.random.default_rng(0).integers(256, size=[64, 64, 3], dtype=np.uint8))
  content = encoded(noise, format)
  refused(saved, content[:len(content) // 2], 'cannot be used as an image|is not a')


def test_large_photos_are_read(saved):
  refused(saved, png_header(12_000, 14_900), 'truncated')  # it has no pixels, but its size is not what is wrong


@pytest.mark.parametrize('extra', [
    chunk(b'eXIf', b'\0\x08\0\2\1\x12\0\3'), chunk(b'iCCP', b'icc\0\0' + zlib.compress(bytes(2_000_000))),
    chunk(b'zTXt', b'workflow\0\0' + zlib.compress(b'{"a": 1} ' * 300_000)), b'\0\0\0\x09tEXtComment\0h' + bytes(4),
    b'\0\0\0\4eXIfabcd' + bytes(4)], ids=['exif', 'profile', 'text', 'checksum', 'checksum of exif'])
def test_damaged_metadata_costs_no_pixels(saved, extra):
  content = encoded(PICTURE, 'PNG')
  np.testing.assert_array_equal(saved(content[:33] + extra + content[33:], 'odd.png'), RGB)  # after the header


def test_more_than_bytes_of_one_image_is_not_read_exactly(tmp_path):
  deep = chunk(b'IHDR', struct.pack('>IIBBBBB', 2, 1, 16, 2, 0, 0, 0)) + chunk(
      b'IDAT', zlib.compress(b'\0' + bytes(range(12)))) + chunk(b'IEND', b'')  # PIL opens it as 8 bits
  (tmp_path / 'deep.png').write_bytes(b'\x89PNG\r\n\x1a\n' + deep)
  frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 99)]
  for name in ('moving.png', 'moving.webp'):
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
  for name, says in [('deep.png', '16 bits a channel'), ('moving.png', 'one frame'), ('moving.webp', 'one frame')]:
    assert read_image(tmp_path / name, 3).dtype == np.uint8
    with pytest.raises(InputError, match=f'{name} cannot be used as an image .*{says}'):
      read_image(tmp_path / name, 3, exact=True)


def test_damaged_pixels_are_refused(saved):
  content = bytearray(encoded(PICTURE, 'PNG'))
  content[content.index(b'IDAT') + 8] ^= 1
  refused(saved, bytes(content), 'cannot be used as an image')


def test_other_tags_of_exif_may_be_damaged(saved):
  entries = (0x0112, 3, 1, b'\6\0\0\0'), (0x0128, 2, 4, b'xyz\0')  # orientation; a unit that is text
  exif = b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 2) + b''.join(
      struct.pack('<HHI4s', *entry) for entry in entries) + bytes(4)
  jpeg = encoded(Image.new('RGB', (16, 8)), 'JPEG')
  content = jpeg[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + jpeg[2:]
  assert saved(content, 'odd.jpg').shape == (16, 8, 3)


@pytest.mark.parametrize('size', [(20_000, 9_000), (100_000, 100_000)])
def test_absurd_sizes_are_refused_before_decoding(saved, size, monkeypatch):
  monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('it was decoded'))
  refused(saved, png_header(*size), f'{size[0] * size[1]} pixels.* exceeds limit')


def test_what_cannot_be_opened_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'none.png cannot be used as an image \(No such file or directory\)\.'):
    read_image(tmp_path / 'none.png', 3)
  with pytest.raises(InputError, match='Is a directory'):
    read_image(tmp_path, 3)


def test_find_files(tmp_path):
  names = ['b.png', 'a/c.txt', 'a/b/[d]*.png', '.hidden', '.git/e.png', 'a/.f/g.png']
  for name in names:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / 'loop').symlink_to(tmp_path)
  (tmp_path / 'link.png').symlink_to(tmp_path / '.hidden')
  (tmp_path / 'gone.png').symlink_to(tmp_path / 'nothing')
  found = [file.relative_to(tmp_path).as_posix() for file in find_files(tmp_path)[0]]
  assert found == ['a/b/[d]*.png', 'a/c.txt', 'b.png', 'link.png']
  assert find_files(tmp_path)[1] == {tmp_path / 'gone.png': 'a link to nothing',
                                     tmp_path / 'loop': 'a link to a folder: name that folder instead'}
  assert find_files(str(tmp_path / 'b.png'))[0] == [tmp_path / 'b.png']
  assert len(find_files(tmp_path / '.git')[0]) == 1  # named by the user, it is not hidden
  (tmp_path / 'empty').mkdir()
  for name, why in (('none', 'does not exist'), ('empty', 'holds no files')):
    with pytest.raises(InputError, match=f'{name} {why}'):
      find_files(tmp_path / name)


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
  """Root may read everything, unless it has given up the right to."""
  (tmp_path / 'locked').mkdir(mode=0)
  (tmp_path / 'a.png').touch()
  code = f'from image_transformer.images import find_files; print(*map(str, find_files({os.fspath(tmp_path)!r})))'
  capabilities = '-dac_override,-dac_read_search'
  drop = ['setpriv', f'--bounding-set={capabilities}', f'--inh-caps={capabilities}'] if os.geteuid() == 0 else []
  if drop and not shutil.which('setpriv'):
    pytest.skip('root needs setpriv')
  done = subprocess.run([*drop, sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
  assert 'a.png' in done.stdout and 'locked' in done.stdout
  assert 'a folder that cannot be read (Permission denied)' in done.stdout
