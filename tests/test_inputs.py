"""What is completed or enlarged: files of any size are made to fit the model as the data set's images were."""

import dataclasses

from etils import epath
import numpy as np
from PIL import Image
import pytest

from image_transformer import data
from image_transformer.config import Config, ModelConfig
from image_transformer.errors import InputError
from image_transformer.images import fit
from image_transformer.inputs import read_inputs
from image_transformer.library import Run
from image_transformer.model import make_model


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('data'))


@pytest.fixture
def make_run(data_dir):
  """A run without parameters: reading needs none."""

  def make(dataset='cifar10', upscale=1):
    model = ModelConfig(query_block=(16,), memory_flange=(16,), upscale=upscale, num_encoder_layers=int(upscale > 1))
    config = Config(dataset=dataset, data_dir=data_dir, model=model)
    return Run(config, make_model(model, data.image_spec(config)), {}, 0, epath.Path())

  return make


def write(folder, *shapes, seed=0):
  """Random pictures of these shapes, as 0.png, 1.png and so on."""
  random = np.random.default_rng(seed)
  pictures = [random.integers(256, size=shape, dtype=np.uint8) for shape in shapes]
  for i, picture in enumerate(pictures):
    Image.fromarray(picture.squeeze()).save(folder / f'{i}.png')
  return pictures


def test_files_of_any_size_are_cut_and_made_smaller(make_run, tmp_path):
  pictures = write(tmp_path, (32, 32, 3), (50, 37, 3), (33, 200, 3))
  inputs, _ = read_inputs(make_run(), tmp_path, 0)
  assert inputs.keys() == {'image'} and inputs['image'].dtype == np.uint8
  np.testing.assert_array_equal(inputs['image'], [fit(picture, 32, 32) for picture in pictures])
  inputs, _ = read_inputs(make_run(upscale=4), tmp_path / '1.png', 0)
  np.testing.assert_array_equal(inputs['image'], [fit(pictures[1], 32, 32)])
  np.testing.assert_array_equal(inputs['low_res'], [fit(pictures[1], 8, 8)])  # as data sets of larger images do


def test_files_of_the_small_size_are_taken_as_they_are(make_run, tmp_path):
  pictures = write(tmp_path, (8, 8, 3), (8, 8, 3))
  inputs, _ = read_inputs(make_run(upscale=4), tmp_path, 0)
  assert inputs.keys() == {'low_res'}  # of no original
  np.testing.assert_array_equal(inputs['low_res'], pictures)


@pytest.mark.parametrize('shapes, odd', [([(8, 8, 3), (32, 32, 3)], '1.png'), ([(40, 40, 3), (8, 8, 3)], '0.png')])
def test_small_and_large_files_are_not_mixed(make_run, tmp_path, shapes, odd):
  write(tmp_path, *shapes)
  with pytest.raises(InputError, match=f'8 x 8 and others are not, such as .*{odd}'):
    read_inputs(make_run(upscale=4), tmp_path, 0)


@pytest.mark.parametrize('upscale', [1, 4])
def test_a_file_that_is_too_small_is_named(make_run, tmp_path, upscale):
  write(tmp_path, (32, 32, 3), (8, 9, 3))
  small = 'A small image must be exactly 8 x 8' if upscale > 1 else '$'
  with pytest.raises(InputError, match=f'1.png.* 8 x 9 .* at least 32 x 32. ?{small}'):
    read_inputs(make_run(upscale=upscale), tmp_path, 0)


def test_files_in_colour_become_grey_with_the_models_levels(make_run, tmp_path):
  Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / '0.png')
  Image.fromarray(np.full((9, 9, 3), [0, 128, 0], np.uint8)).save(tmp_path / '1.png')
  image = read_inputs(make_run('digits'), tmp_path, 0)[0]['image']
  assert image.shape == (2, 8, 8, 1) and image.dtype == np.uint8
  assert (image[0] == 16).all() and (image[1] == 5).all()  # 0.587 * 128 / 255 * 16 = 4.7


def test_nothing_is_lost_where_files_must_be_exact(make_run, tmp_path):
  write(tmp_path, (32, 32, 3))
  Image.new('RGBA', (32, 32), (1, 2, 3, 9)).save(tmp_path / '1.png')
  assert len(read_inputs(make_run(), tmp_path, 0)[0]['image']) == 2
  with pytest.raises(InputError, match='1.png .*transparen'):
    read_inputs(make_run(), tmp_path, 0, exact=True)
  Image.fromarray(np.full((8, 8), 100, np.uint8)).save(tmp_path / 'grey.png')  # 6.27 of 16
  assert read_inputs(make_run('digits'), tmp_path / 'grey.png', 0)[0]['image'].max() == 6
  with pytest.raises(InputError, match='grey.png has intensities other than the 17'):
    read_inputs(make_run('digits'), tmp_path / 'grey.png', 0, exact=True)


def test_images_of_the_split_as_files_give_what_the_split_gives(make_run, tmp_path):
  """The small image too: it is made of the data set's levels, not of a file's bytes."""
  run = make_run('digits', upscale=2)
  from_split, _ = read_inputs(run, None, 20)
  for i, image in enumerate(from_split['image'][..., 0]):
    Image.fromarray(np.round(image / 16 * 255).astype(np.uint8)).save(tmp_path / f'{i:02}.png')
  for name, values in read_inputs(run, tmp_path, 0)[0].items():
    np.testing.assert_array_equal(values, from_split[name], err_msg=name)


def test_a_still_image_among_videos_is_left_out(data_dir, tmp_path, capsys):
  model = ModelConfig(query_block=(1, 4, 16), memory_flange=(1, 4, 0))
  config = Config(dataset='moving_digits', data_dir=data_dir, model=model)
  run = Run(config, make_model(model, data.image_spec(config)), {}, 0, epath.Path())
  (tmp_path / 'clip').mkdir()
  write(tmp_path / 'clip', *[(16, 16)] * 8)
  write(tmp_path, (16, 16))
  assert read_inputs(run, tmp_path, 0)[0]['image'].shape == (1, 8, 16, 16, 1)
  assert f'{tmp_path} has 1 frames' in capsys.readouterr().err
  (tmp_path / 'clip' / '7.png').unlink()
  with pytest.raises(InputError, match='clip has 7 frames, but must have 8'):
    read_inputs(run, tmp_path / 'clip', 0)


@pytest.mark.parametrize('number, expected', [(0, 3), (2, 2), (5, 3)])
def test_the_first_files_by_name(make_run, tmp_path, number, expected):
  pictures = write(tmp_path, *[(32, 32, 3)] * 3)
  np.testing.assert_array_equal(read_inputs(make_run(), tmp_path, number)[0]['image'], pictures[:expected])


@pytest.mark.parametrize('split, number, expected', [('test', 3, 3), ('test[:4]', 0, 4), ('train[-2:]', 9, 2)])
def test_without_files_the_first_images_of_the_evaluated_split(make_run, split, number, expected):
  run = make_run('digits', upscale=2)
  config = dataclasses.replace(run.config, eval=dataclasses.replace(run.config.eval, split=split))
  inputs, _ = read_inputs(dataclasses.replace(run, config=config), None, number)
  source = data.open_split(config, split)
  assert inputs.keys() == {'image', 'low_res', 'label'}
  for name, values in inputs.items():
    np.testing.assert_array_equal(values, [source[i][name] for i in range(expected)])


def test_files_of_a_folder_that_are_no_images_are_left_out(make_run, tmp_path, capsys):
  pictures = write(tmp_path, (32, 32, 3), (32, 32, 3))
  (tmp_path / '0.db').write_bytes(b'\xd0\xcf\x11\xe0')  # before the pictures
  (tmp_path / 'gone.png').symlink_to(tmp_path / 'nothing')
  np.testing.assert_array_equal(read_inputs(make_run(), tmp_path, 2)[0]['image'], pictures)
  said = capsys.readouterr().err
  assert f'Warning: {tmp_path}/0.db is not a PNG, JPEG or WebP image, and left out.' in said
  assert f'Warning: {tmp_path}/gone.png is a link to nothing, and left out.' in said
  for name in ('0.db', 'none'):
    with pytest.raises(InputError, match=name):
      read_inputs(make_run(), tmp_path / name, 0)
  for name in ('0.png', '1.png'):
    (tmp_path / name).unlink()
  with pytest.raises(InputError, match='holds no images that can be used'):
    read_inputs(make_run(), tmp_path, 0)
