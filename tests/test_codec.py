"""Compressed images come out as they went in, take the bits that the model says, and damage is always recognised."""

import dataclasses
import functools
import io
import json
import zlib

import jax
import numpy as np
from PIL import Image
import pytest

from helpers import apply, case, given_for, make_case, random_images, random_variables
from image_transformer import codec as codec_lib
from image_transformer.codec import BATCH, MAGIC, Codec
from image_transformer.errors import InputError, RunError
from image_transformer.images import read_image
from image_transformer.model import make_model
from image_transformer.scores import measures, with_small_memory

NUM_IMAGES = BATCH + 3  # a full batch and a part of one
CASES = ['1d_binary_pre_norm', '2d_ragged_classes', '2d_grey_dmol_ragged', '2d_superres_dmol_classes_pre_norm']


@functools.cache
def compressed(name):
  """A codec, images, their conditions, and the file."""
  model, variables = make_case(name)
  images, given = random_images(model.spec, NUM_IMAGES), given_for(model, NUM_IMAGES)
  codec = Codec(model, variables['params'])
  return codec, images, given, codec.compress(images, given, verify=False)


def parts(codec, content):
  """Where the header ends, an entry of the index, and the streams [begin, end] of all images."""
  header = codec.read_header(content)
  begin = len(MAGIC) + 2 + int.from_bytes(content[4:6], 'little') + 4
  about = sum(int(np.prod(c.shape)) * (1 if c.num_values <= 256 else 4) for c in codec.model.conditions.values())
  entry = header['length_bytes'] + 3 + about
  lengths = [4 * int.from_bytes(content[begin + i * entry:][:header['length_bytes']], 'little')
             for i in range(NUM_IMAGES)]
  ends = begin + NUM_IMAGES * entry + np.cumsum(lengths)
  return begin, entry, list(zip(ends - lengths, ends))


@pytest.mark.parametrize('name', CASES)
def test_images_come_out_as_they_went_in(name):
  codec, images, _, content = compressed(name)
  out = codec.decompress(content)
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, images)
  assert content == codec.compress(images, given_for(codec.model, NUM_IMAGES)), 'always the same file'


@pytest.mark.parametrize('name', CASES)
def test_a_stream_takes_the_bits_of_the_model(name):
  """By the probabilities of all positions at once, though no intensity is given less than 2^-24."""
  codec, images, given, content = compressed(name)
  model, likelihood = codec.model, codec.model.likelihood
  parameters = apply(model, {'params': codec._params}, images, given)
  values = images.reshape(*parameters.shape[:-1], -1).astype(np.int32)
  probabilities = np.stack([np.asarray(likelihood.drawn_probabilities(parameters, values, channel), np.float64)
                            for channel in range(values.shape[-1])], axis=-2)
  own = np.take_along_axis(probabilities, values[..., None], axis=-1)
  bits = -np.log2(np.maximum(own, 2.0**-24)).reshape(NUM_IMAGES, -1).sum(axis=1)
  _, entry, streams = parts(codec, content)
  assert streams[-1][1] == len(content) and entry <= 5 + sum(value[0].size for value in given.values())
  for (begin, end), expected in zip(streams, bits):
    assert -1 < end - begin - expected / 8 < 9, 'whole words, and up to one more'
  assert np.mean([end - begin for begin, end in streams] - bits / 8) < 5


@pytest.mark.parametrize('name', ['1d_binary_pre_norm', '2d_superres_dmol_classes_pre_norm'])
def test_damage_is_recognised_and_costs_no_other_image(name):
  codec, images, _, content = compressed(name)
  header_end, entry, streams = parts(codec, content)
  index_end = header_end + NUM_IMAGES * entry
  rng = np.random.default_rng(0)
  tried = set()
  for trial in range(24):
    kind = ['flip', 'cut', 'remove', 'insert', 'length', 'header'][trial % 6]
    damaged, lost = bytearray(content), set()
    if kind == 'flip':
      at = int(rng.integers(index_end, len(content)))
      damaged[at] ^= 1 << int(rng.integers(8))
      lost = {i for i, (begin, end) in enumerate(streams) if begin <= at < end}
    elif kind == 'cut':
      at = int(rng.integers(streams[3][0], len(content)))
      del damaged[at:]
      lost = {i for i, (_, end) in enumerate(streams) if end > at}
    elif kind in ('remove', 'insert'):
      one = int(rng.integers(NUM_IMAGES))
      begin, end = streams[one]
      at = int(rng.integers(begin, end - 1))
      damaged[at:at + (2 if kind == 'remove' else 0)] = b'' if kind == 'remove' else b'\x55\xaa\x55'
      lost = {i for i, (begin, end) in enumerate(streams) if begin < at + 2 and end > at}
    elif kind == 'length':
      one = int(rng.integers(NUM_IMAGES))
      damaged[header_end + one * entry] ^= 1 << int(rng.integers(8))
      lost = {one}
    else:
      damaged[int(rng.integers(header_end))] ^= 1 << int(rng.integers(8))
      with pytest.raises(InputError, match='not a file|header|kind of|version'):
        codec.recover(bytes(damaged))
      continue
    number, found = codec.recover(bytes(damaged))
    assert number == NUM_IMAGES and set(range(number)) - lost <= found.keys(), kind
    for i, image in found.items():
      np.testing.assert_array_equal(image, images[i], err_msg=kind)
    if found.keys() != set(range(number)):
      tried.add(kind)
      with pytest.raises(InputError, match=f'Of {NUM_IMAGES} compressed images .* damaged'):
        codec.decompress(bytes(damaged))
  assert tried == {'flip', 'cut', 'remove', 'insert', 'length'}


def test_a_damaged_condition_costs_its_image_alone():
  codec, _, _, content = compressed('2d_ragged_classes')  # 3 classes, a byte at the end of each entry
  begin, entry, _ = parts(codec, content)
  damaged = bytearray(content)
  damaged[begin + 3 * entry - 1] ^= 0x80
  number, found = codec.recover(bytes(damaged))
  assert set(range(number)) - found.keys() == {2}


def test_many_classes_take_more_bytes():
  model = make_model(*case((4, 4, 1, 4, 300), query_block=(8,), memory_flange=(8,), class_conditional=True))
  codec, images = Codec(model, random_variables(model)['params']), random_images(model.spec, 3)
  content = codec.compress(images, {'label': np.array([1, 256, 299])})
  np.testing.assert_array_equal(codec.decompress(content), images)


def test_what_is_no_such_file_is_refused():
  codec, _, _, content = compressed('1d_binary_pre_norm')
  for other in (b'', b'\x89PNG\r\n', MAGIC, MAGIC + b'\xff' * 300, content[:50], content[3:]):
    with pytest.raises(InputError, match='not a file|header .* damaged'):
      codec.recover(other)


@pytest.mark.parametrize('name', codec_lib._SAME)
def test_what_differs_is_named(name):
  """Whatever decides the numbers, in the header of an intact file."""
  codec, _, _, content = compressed('1d_binary_pre_norm')
  length = int.from_bytes(content[4:6], 'little')
  header = json.loads(zlib.decompress(content[6:6 + length]))
  packed = zlib.compress(json.dumps(header | {name: 'x'}).encode())
  packed = len(packed).to_bytes(2, 'little') + packed
  other = MAGIC + packed + zlib.crc32(packed).to_bytes(4, 'little') + content[6 + length + 4:]
  with pytest.raises(InputError, match=f'another {codec_lib._SAME[name]} .x, here'):
    codec.decompress(other)


def test_another_model_is_refused():
  codec, images, given, content = compressed('2d_ragged_classes')
  params = jax.tree.map(np.array, codec._params)
  jax.tree.leaves(params)[0].flat[0] += 1e-6
  with pytest.raises(InputError, match='another model .* load the run'):
    Codec(codec.model, params).decompress(content)
  other = make_model(dataclasses.replace(codec.model.config, memory_flange=(1, 1)), codec.model.spec)
  with pytest.raises(InputError, match='another model'):
    Codec(other, codec._params).decompress(content)


def test_the_numbers_of_this_machine_are_compared(monkeypatch):
  """A network that computes something else, with the same parameters and versions."""
  codec, _, _, content = compressed('1d_binary_pre_norm')
  honest = codec._programs.step

  def slightly_other(*args):
    parameters_BP, probabilities_BL, caches = honest(*args)
    return parameters_BP, probabilities_BL * np.float32(1 + 1e-6), caches

  monkeypatch.setattr(codec._programs, 'step', slightly_other)
  with pytest.raises(InputError, match='another result of the same computation .* same kind of machine'):
    Codec(codec.model, codec._params).decompress(content)


def test_what_does_not_come_out_again_is_not_written(monkeypatch):
  codec, images, given, _ = compressed('1d_binary_pre_norm')
  honest = Codec._decode
  monkeypatch.setattr(Codec, '_decode', lambda *args: [1 - image for image in honest(*args)])
  with pytest.raises(RunError, match='Images 0, 1, 2, .* do not come out'):
    codec.compress(images, given)


# --- what can be compressed ----------------------------------------------------------------------


@pytest.mark.parametrize('mode, channels, says', [
    ('RGB', 3, None), ('L', 1, None), ('L', 3, None), ('P', 3, None), ('RGBA', 3, None), ('1', 1, None),
    ('RGB', 1, 'colours'), ('transparent', 3, 'transparent'), ('I;16', 1, '8 bits'), ('I;16', 3, '8 bits')])
def test_only_what_bytes_can_hold_is_read_exactly(tmp_path, mode, channels, says):
  pixels = np.random.default_rng(0).integers(256, size=(6, 5, 3), dtype=np.uint8)
  image = Image.fromarray(pixels)
  if mode == 'transparent':
    image.putalpha(Image.fromarray(pixels[..., 0]))
  elif mode == 'I;16':
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  else:
    image = image.convert(mode)
  image.save(tmp_path / 'a.png')
  if says:
    with pytest.raises(InputError, match=f'a.png cannot be used .*{says}'):
      read_image(tmp_path / 'a.png', channels, exact=True)
  else:
    expected = np.array(image.convert('L' if channels == 1 else 'RGB')).reshape(6, 5, channels)
    np.testing.assert_array_equal(read_image(tmp_path / 'a.png', channels, exact=True), expected)


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_of_the_definitions():
  """Two classes and three images of two levels, whose probabilities are given."""
  images = np.zeros((3, 4, 4, 1), np.uint8)
  images[1] = 1
  images[2, ::2] = 1
  probabilities = np.array([[0.5, 0.25, 0.125], [0.5, 0.75, 0.125]])
  found = measures(images, 2, np.log(probabilities), np.log(np.full((2, 3), 0.5)))
  np.testing.assert_allclose(found['bits_per_dim'], -np.log2([0.5, 0.5, 0.125]) / 16)
  np.testing.assert_allclose(found['small_memory'], 1 / 16)
  np.testing.assert_allclose(found['minus_small_memory'], found['bits_per_dim'] - 1 / 16)
  np.testing.assert_allclose(found['minus_png'], found['bits_per_dim'] - found['png'])
  np.testing.assert_allclose(found['p_1'], [0.5, 0.75, 0.5])
  np.testing.assert_allclose(found['p_0'] + found['p_1'], 1)
  assert list(found['class'][1:2]) == [1]
  file = io.BytesIO()
  Image.fromarray(images[2, ..., 0] * np.uint8(255)).save(file, 'PNG', optimize=True)
  assert found['png'][2] == 8 * len(file.getvalue()) / 16
  assert 'class' not in measures(images, 2, np.zeros((1, 3)), np.zeros((1, 3)))


@pytest.mark.parametrize('name, most', [('1d_categorical', 4), ('2d_superres_dmol_classes_pre_norm', 20)])
def test_a_small_memory_sees_little(name, most):
  model, _ = make_case(name)
  assert with_small_memory(model).layout.visible().sum(axis=-1).max() == most


def test_a_small_memory_is_possible_where_an_image_is_small():
  for spec, block in [((1, 8, 1, 7), (1, 2)), ((4, 4, 1, 7, 0, 1), (1, 2, 2)), ((1, 1, 1, 7), (1,))]:
    model = make_model(*case(spec, query_block=(1,) * len(block), memory_flange=(1,) * len(block)))
    assert with_small_memory(model).config.query_block == block


def test_a_small_memory_is_of_the_same_network():
  """Each of two layers hands on what lies at most three intensities before: what is further is not seen."""
  model, variables = make_case('1d_categorical')
  small = with_small_memory(model)
  images = random_images(model.spec, 2)
  before = np.asarray(apply(small, variables, images))
  images[:, 0] = 0  # the first row
  after = np.asarray(apply(small, variables, images))
  assert np.array_equal(before[:, 2:], after[:, 2:]) and not np.array_equal(before[:, 1], after[:, 1])
