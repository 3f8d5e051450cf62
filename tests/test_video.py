"""Videos: files of frames, clips whose entropy is known, pictures of them, and all that can be done with images."""

import collections
import dataclasses
import math

import jax
import numpy as np
from PIL import Image
import pytest

from helpers import CASES, apply, case, make_case, random_images, random_variables
import image_transformer as it
from image_transformer import data, figures, images, pictures, tasks
from image_transformer.config import Config, FolderConfig, ImageSpec, ModelConfig
from image_transformer.datasets import digits, moving_digits
from image_transformer.embeddings import Coordinates
from image_transformer.errors import InputError, NotAnImageError
from image_transformer.model import Encoded, make_model
from image_transformer.sampling import positions_in_rows, sample

SMALL = {'query_block': (1, 8, 16), 'memory_flange': (1, 8, 0), 'num_layers': 1, 'hidden_size': 16, 'num_heads': 2,
         'ffn_size': 16, 'dropout': 0.0}


# Moving digits.


def places_of(clip):
  """The top left corners [T, 2] of what is drawn, and its size."""
  corners, sizes = [], set()
  for frame in clip[..., 0]:
    rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
    corners.append((rows[0], columns[0]))
    sizes.add((rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
  (size,) = sizes
  return np.array(corners), size


def test_digits_move_straight_on_and_turn_only_at_walls():
  sources, turns = digits.images()['test'], collections.defaultdict(collections.Counter)
  for index in range(400):
    clip = moving_digits.clip('test', index, sources)
    places, (height, width) = places_of(clip)
    steps = np.diff(places, axis=0)
    assert (abs(steps).max(axis=1) == 2).all() and set(np.unique(abs(steps))) <= {0, 2}
    inside = lambda place: 0 <= place[0] <= 16 - height and 0 <= place[1] <= 16 - width
    expected = []
    for t in range(2, 8):
      ahead = places[t - 1] + steps[t - 2]
      if inside(ahead):
        assert (places[t] == ahead).all()
        expected.append(0)
      else:
        possible = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)
                    if (dy, dx) != (0, 0) and inside(places[t - 1] + [dy, dx])]
        assert tuple(steps[t - 1]) in possible
        turns[tuple(possible)][tuple(steps[t - 1])] += 1
        expected.append(math.log2(len(possible)))
    np.testing.assert_allclose(moving_digits.surprise(clip), expected)
    for t, (row, column) in enumerate(places):
      shown = clip[t, row:row + height, column:column + width]
      np.testing.assert_array_equal(shown, clip[0, places[0][0]:, places[0][1]:][:height, :width])
  ways, counts = max(turns.items(), key=lambda item: sum(item[1].values()))
  mean = sum(counts.values()) / len(ways)
  assert mean > 20 and sum((counts[way] - mean)**2 / mean for way in ways) < len(ways) + 5 * math.sqrt(2 * len(ways))


# Files.


@pytest.fixture
def moving(tmp_path):
  """Frames [4, 9, 8, 3], as an animated PNG and as a folder; in grey as a GIF; and other files beside them."""
  frames = np.random.default_rng(0).integers(256, size=(4, 9, 8, 3), dtype=np.uint8)
  first, *later = map(Image.fromarray, frames)
  first.save(tmp_path / 'moving.png', save_all=True, append_images=later)
  first, *later = map(Image.fromarray, frames[..., 0] // 64 * 64)
  first.save(tmp_path / 'moving.gif', save_all=True, append_images=later)
  (tmp_path / 'clip').mkdir()
  for t, frame in enumerate(frames):
    Image.fromarray(frame).save(tmp_path / 'clip' / f'{t}.png')
  (tmp_path / 'clip' / 'Thumbs.db').write_bytes(b'no image')
  (tmp_path / 'README.txt').write_text('no image either')
  return frames


def test_each_split_has_clips_of_its_own_digits(tmp_path, monkeypatch):
  for split in moving_digits.SPLITS:
    monkeypatch.setitem(moving_digits.SPLITS, split, 3)
  for split in moving_digits.SPLITS:
    found = data.open_split(Config(dataset='moving_digits', data_dir=str(tmp_path)), split)
    clips = [moving_digits.clip(split, i, digits.images()[split]).tobytes() for i in range(3)]
    assert {found[i]['image'].tobytes() for i in range(3)} == set(clips)


def test_animations_and_folders_of_images_are_videos(moving, tmp_path):
  found = images.find_videos(images.find_files(tmp_path)[0])
  videos = [path for path in found if path.suffix not in ('.txt', '.db')]
  assert sorted(path.name for path in videos) == ['clip', 'moving.gif', 'moving.png'] and len(found) == 5
  for path in set(found) - set(videos):  # named when they are read, and nothing is a video because of them
    with pytest.raises(NotAnImageError, match=f'{path.name} is not a GIF, PNG or WebP animation'):
      images.read_video(path, 3, 3)
  for name in ('clip', 'moving.png'):
    np.testing.assert_array_equal(images.read_video(tmp_path / name, 3, 3), moving[:3])
    np.testing.assert_array_equal(images.read_video(tmp_path / name, 3, 4, exact=True), moving)
  np.testing.assert_array_equal(images.read_video(tmp_path / 'moving.gif', 1, 4)[..., 0], moving[..., 0] // 64 * 64)


@pytest.mark.parametrize('name', ['clip', 'moving.png', 'moving.gif'])
def test_videos_that_would_lose_or_lack_something_are_refused(moving, tmp_path, name):
  with pytest.raises(InputError, match=f'{name} has 4 frames, but must have 5 or more'):
    images.read_video(tmp_path / name, 3, 5)
  with pytest.raises(InputError, match=f'{name} has 4 frames, but must have 3.') as raised:
    images.read_video(tmp_path / name, 3, 3, exact=True)
  assert not isinstance(raised.value, NotAnImageError)  # which would be left out with a warning


def test_frames_of_different_sizes_and_damaged_ones_are_refused(moving, tmp_path):
  Image.fromarray(moving[0, :5]).save(tmp_path / 'clip' / '4.png')
  with pytest.raises(InputError, match='clip has frames of different sizes'):
    images.read_video(tmp_path / 'clip', 3, 5)
  (tmp_path / 'clip' / '1.png').write_bytes((tmp_path / 'clip' / '1.png').read_bytes()[:150])
  with pytest.raises(InputError, match='1.png cannot be used as an image'):
    images.read_video(tmp_path / 'clip', 3, 3)
  content = (tmp_path / 'moving.gif').read_bytes()
  (tmp_path / 'moving.gif').write_bytes(content[:len(content) // 2])
  with pytest.raises(InputError) as raised:
    images.read_video(tmp_path / 'moving.gif', 3, 4)
  assert 'moving.gif' in str(raised.value) and not isinstance(raised.value, NotAnImageError)


def test_a_frame_that_cannot_be_read_is_not_passed_over(moving, tmp_path):
  frame = tmp_path / 'clip' / '1.png'
  content = frame.read_bytes()
  frame.write_bytes(content[:33] + b'\0\0\0\x09tEXtComment\0h' + bytes(4) + content[33:])  # a false checksum
  np.testing.assert_array_equal(images.read_video(tmp_path / 'clip', 3, 4), moving)
  frame.write_bytes(b'')
  found = images.find_videos(images.find_files(tmp_path)[0])
  assert frame not in found and tmp_path / 'clip' in found
  with pytest.raises(InputError, match='clip/1.png is not a PNG'):
    images.read_video(tmp_path / 'clip', 3, 3)


def test_photos_with_a_preview_inside_are_frames(moving, tmp_path):
  (tmp_path / 'phone').mkdir()
  for t, frame in enumerate(moving):  # cameras write such files, which end in .jpg
    Image.fromarray(frame).save(tmp_path / 'phone' / f'{t}.jpg', 'MPO', save_all=True,
                                append_images=[Image.fromarray(frame[:4])])
  assert tmp_path / 'phone' in images.find_videos(images.find_files(tmp_path)[0])
  assert images.read_video(tmp_path / 'phone', 3, 4).shape == moving.shape


def test_a_transparent_video_loses_something(moving, tmp_path):
  first, *later = [Image.fromarray(np.dstack([frame, np.full(frame.shape[:2], 128, np.uint8)])) for frame in moving]
  first.save(tmp_path / 'glass.png', save_all=True, append_images=later)
  assert images.read_video(tmp_path / 'glass.png', 3, 4).shape == (4, 9, 8, 3)
  with pytest.raises(InputError, match='glass.png cannot be used as a video .it is transparent') as raised:
    images.read_video(tmp_path / 'glass.png', 3, 4, exact=True)
  assert not isinstance(raised.value, NotAnImageError)


def test_a_folder_of_videos_is_a_dataset(tmp_path, capfd):
  for name in 'abc':
    (tmp_path / 'clips' / name).mkdir(parents=True)
    for t in range(3 - (name == 'c')):
      frame = np.random.default_rng(ord(name) + t).integers(256, size=(8, 8, 3), dtype=np.uint8)
      Image.fromarray(frame).save(tmp_path / 'clips' / name / f'{t}.png')
  model = ModelConfig(query_block=(1, 4, 4), memory_flange=(1, 4, 0))
  config = Config(dataset='folder', data_dir=str(tmp_path / 'data'), model=model,
                  folder=FolderConfig(path=str(tmp_path / 'clips'), size=(4, 4), frames=3))
  found = [example['image'] for split in ('train', 'test') for example in data.open_split(config, split)]
  expected = [images.area_resize(images.read_video(tmp_path / 'clips' / name, 3, 3), 4, 4) for name in 'ab']
  assert sorted(map(np.ndarray.tobytes, found)) == sorted(map(np.ndarray.tobytes, expected))
  assert found[0].shape == (3, 4, 4, 3)
  assert 'c: has 2 frames, but must have 3 or more' in capfd.readouterr().err


# The network, and all modes.


def test_one_frame_has_the_layout_of_a_still_image():
  still, _ = make_case('2d_dmol')
  config = dataclasses.replace(still.config, query_block=(1, *still.config.query_block),
                               memory_flange=(0, *still.config.memory_flange))
  video = make_model(config, dataclasses.replace(still.spec, frames=1))
  np.testing.assert_array_equal(video.layout.order, still.layout.order)
  np.testing.assert_array_equal(video.layout.memory, still.layout.memory)
  np.testing.assert_array_equal(video.layout.visible(), still.layout.visible())


IN_1D = case((3, 4, 1, 17, 0, 3), query_block=(5,), memory_flange=(7,), scan='column', coordinates='learned')


@pytest.mark.parametrize('which, possible', [
    (CASES['3d_categorical'], [1, 2, 3]), (CASES['3d_dmol_ragged_classes'], [2, 4]), (IN_1D, [1, 2])])
def test_whole_frames_can_be_kept_where_they_are_generated_first(which, possible):
  model = make_model(*which)
  frame = model.layout.num_positions // model.spec.frames
  for kept in range(1, model.spec.frames):
    if kept in possible:
      assert positions_in_rows(model, kept) == kept * frame
    else:
      with pytest.raises(InputError, match=f'The first {kept} frames cannot be kept.*nearest numbers of frames'):
        positions_in_rows(model, kept)
  with pytest.raises(InputError, match=f'rows is {model.spec.frames}, but must be a number of frames in'):
    positions_in_rows(model, model.spec.frames)


def test_the_frames_of_a_video_can_be_one_sequence():
  model = make_model(*IN_1D)
  variables, videos = random_variables(model), random_images(model.spec, 2)
  samples, log_probs = jax.jit(lambda: sample(model, variables, jax.random.split(jax.random.key(0), 2)))()
  np.testing.assert_allclose(log_probs, apply(model, variables, samples, method='log_prob'), rtol=1e-5)
  changed = videos.copy()
  changed[:, 1, 2, 3] = (changed[:, 1, 2, 3] + 5) % 17
  before, after = (apply(model, variables, each, method='pixel_log_probs') for each in (videos, changed))
  moved = (before != after).reshape(2, 3, -1).any(axis=-1)
  assert not moved[:, 0].any() and moved[:, 1].all()


@pytest.mark.parametrize('kind', ['sine', 'learned'])
def test_every_pixel_of_every_frame_has_coordinates_of_its_own(kind):
  coordinates = Coordinates(3, 4, 24, kind, frames=2)
  frame, row, column = np.indices((2, 3, 4)).reshape(3, -1)
  encoded, _ = coordinates.init_with_output(jax.random.key(0), row, column, frame)
  assert len(np.unique(np.asarray(encoded), axis=0)) == 24
  config, spec = CASES['3d_categorical']  # 4 frames of 2 rows
  model = make_model(dataclasses.replace(config, coordinates=kind, hidden_size=24), spec)
  number = model.layout.num_positions
  embedded = model.apply(random_variables(model), np.zeros((1, number, 1), int), np.full(number, -1), np.arange(number),
                         Encoded(None, []), method='embed')
  assert len(np.unique(np.asarray(embedded[0]).round(5), axis=0)) == number


def test_what_does_not_fit_is_refused():
  with pytest.raises(InputError, match='model.query_block is .*, but must be one number or 3 for videos'):
    make_model(ModelConfig(query_block=(2, 2), memory_flange=(1, 1)), ImageSpec(4, 4, 3, frames=2))
  with pytest.raises(InputError, match='model.upscale is 2, but must be 1 for videos'):
    make_model(ModelConfig(upscale=2, num_encoder_layers=1), ImageSpec(4, 4, 3, frames=2))
  with pytest.raises(InputError, match='model.num_heads is 8, .* at least 8 wide here, not 6'):
    make_model(ModelConfig(coordinates='rotary', hidden_size=48, num_heads=8, query_block=(4,)),
               ImageSpec(4, 4, 3, frames=2))
  model = make_model(*CASES['3d_categorical'])
  with pytest.raises(InputError, match=r'images are \[3, 3, 3, 3\], but must be \[B, 4, 2, 3, 3\]'):
    model.apply({}, np.zeros((3, 3, 3, 3), int), method='values')


def test_the_memory_of_a_position_is_shown_frame_by_frame():
  model = make_model(*CASES['3d_dmol_ragged_classes'])
  spec = model.spec
  shown = figures.memory(model, 1, 2, 3).axes[0].images[0].get_array()
  assert shown.shape == (spec.height, spec.frames * spec.width)
  seen = figures.visible_from(model.layout, (3 * spec.height + 1) * spec.width + 2).reshape(spec.shape[:-1])
  for frame in range(spec.frames):
    np.testing.assert_array_equal(shown[:, frame * spec.width:(frame + 1) * spec.width], seen[frame])
  with pytest.raises(InputError, match='a column in 0..3 and a frame in 0..4'):
    figures.memory(model, 1, 2, 5)


def test_frames_are_side_by_side_in_a_grid():
  videos = random_images(ImageSpec(4, 4, 3, frames=3), 2)
  flat = videos.reshape(6, 4, 4, 3)
  np.testing.assert_array_equal(pictures.grid(videos, 256, 1), pictures.grid(flat, 256, 3))
  np.testing.assert_array_equal(pictures.grid(videos, 256, 6, captions=['a', 'b']),
                                pictures.grid(flat, 256, 6, captions=['a', '', '', 'b', '', ''], span=3))
  below = ['one: a', '', '', 'two', '', '', 'one: b', '', '', 'two', '', '']
  np.testing.assert_array_equal(pictures.strips(['one', 'two'], [videos, videos], 256, ['a', 'b']), pictures.grid(
      np.stack([videos, videos], 1).reshape(12, 4, 4, 3), 256, 3, 256, below, 3))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('video')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(moving_digits, 'SPLITS', {'train': 12, 'test': 4})
    return it.train({
        'dataset': 'moving_digits', 'data_dir': str(folder / 'data'), 'model': SMALL,
        'train': {'steps': 2, 'batch_size': 4, 'flip': True}, 'eval': {'batch_size': 4},
        'sample': {'num_images': 2, 'batch_size': 4}}, folder / 'run')


def test_a_model_of_videos_does_all_that_others_do(trained, tmp_path, capfd):
  run = it.load(trained.workdir)
  videos, _ = run.examples(4)
  assert videos.shape == (4, 8, 16, 16, 1) and run.pixel_log_probs(videos).shape == (4, 8, 16, 16, 1)
  samples, log_probs = run.draw(2, {})
  np.testing.assert_allclose(log_probs, run.log_prob(samples), rtol=1e-4)
  completed = run.complete(videos[:2], 2)
  np.testing.assert_array_equal(completed[:, :2], videos[:2, :2])
  assert (completed[:, 2:] != videos[:2, 2:]).any()
  np.testing.assert_array_equal(run.decompress(run.compress(videos[:2])), videos[:2])
  tasks.Task(run, num_samples=2).sample()
  tasks.Task(run, num_inputs=2, num_samples=1).complete(6)
  tasks.Task(run, num_inputs=2).show('attention', None)
  tasks.Task(run, num_inputs=2).show('bits', None)
  tasks.Task(run, num_inputs=2).score()
  out = capfd.readouterr().out
  films = [line.split()[1] for line in out.splitlines() if line.endswith('_film.png')]
  assert out.count('Wrote ') == 7 and len(films) == 2
  for film in films:
    with Image.open(film) as image:
      assert image.is_animated
  with pytest.raises(InputError, match='position is .3,4., but must be ROW,COLUMN,FRAME'):
    tasks.Task(run, num_inputs=1).show('attention', [3, 4])
  # Frames come out of a file as they went in, and so they can go in again.
  file = tmp_path / 'file'
  file.write_bytes(run.compress(videos[:2]))
  tasks.Task(run, input=str(file)).decompress(str(tmp_path / 'out'))
  again = tasks.Task(run, input=str(tmp_path / 'out'))._inputs(originals=True, exact=True)
  np.testing.assert_array_equal(again['image'], videos[:2])
  with pytest.raises(InputError, match='00000.png has 1 frames, but must have 8 or more'):  # not the folder around it
    tasks.Task(run, input=str(tmp_path / 'out' / '00000' / '00000.png'))._inputs()


def test_the_frames_are_one_video(trained):
  """Not one after the other: the log-probability of a frame depends on the frames before."""
  run = it.load(trained.workdir)
  videos, _ = run.examples(1)
  changed = videos.copy()
  changed[:, 3] = (changed[:, 3] + 5) % 17
  before, after = (run.pixel_log_probs(each).sum(axis=(2, 3, 4))[0] for each in (videos, changed))
  moved = before != after
  assert not moved[:3].any() and moved[3] and moved[4] and not moved[6:].any()  # one layer reaches one frame back
