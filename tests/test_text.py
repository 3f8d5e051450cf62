"""Images given texts: the condition, captions of files, and drawings whose entropy is known."""

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from helpers import apply, make_case, random_images
import image_transformer as it
from image_transformer import batching, data, tasks
from image_transformer.captions import read_captions
from image_transformer.config import Config, FolderConfig, ImageSpec, ModelConfig
from image_transformer.datasets import folder as folder_lib
from image_transformer.datasets import scenes
from image_transformer.errors import InputError
from image_transformer.inputs import read_inputs
from image_transformer.model import make_model
from image_transformer.text import Text

SMALL = {
    'query_block': (64,), 'memory_flange': (64,), 'num_layers': 1, 'hidden_size': 16, 'num_heads': 2, 'ffn_size': 16,
    'likelihood': 'dmol', 'num_mixtures': 2, 'text_length': 104, 'num_encoder_layers': 1, 'dropout': 0.0}


def condition(length):
  config = ModelConfig(text_length=length, num_encoder_layers=1)
  return Text(config, ImageSpec(4, 4, 3, has_texts=True))


def test_texts_are_their_bytes():
  text = condition(8)
  values = text.parse(['a b', 'né', ''])
  assert values.tolist() == [[*b'a b', 0, 0, 0, 0, 0], [*'né'.encode(), 0, 0, 0, 0, 0], [0] * 8]
  assert values.dtype == np.uint8 and text.captions(values) == ['a b', 'né', '']
  with pytest.raises(InputError, match=r"text is .*, but must be at most 8 bytes \(model.text_length\), not 9"):
    text.parse(['ok', 'nine char'])


@pytest.mark.parametrize('stored', ['abcdefgéh', 'abcdefgéh'.encode()])
def test_captions_of_a_dataset_are_cut_between_characters(stored):
  assert condition(8).captions(condition(8).of_example({'text': stored})[None]) == ['abcdefg']
  assert condition(9).captions(condition(9).of_example({'text': stored})[None]) == ['abcdefgé']


def test_in_python_a_text_is_a_string_or_a_list_of_them():
  text = condition(4)
  assert text.captions(text.of_user('one', 3)) == ['one'] * 3
  assert text.captions(text.of_user(['one', 'two'], 2)) == ['one', 'two']
  np.testing.assert_array_equal(text.of_user(np.ones((2, 4), int), 2), np.ones((2, 4), int))


def test_a_dataset_without_texts_is_refused():
  with pytest.raises(InputError, match='model.text_length is 4, but must be 0 for a dataset without texts'):
    make_model(ModelConfig(text_length=4, num_encoder_layers=1), ImageSpec(32, 32, 3))


@pytest.mark.parametrize('name, coordinates', [('1d_text', 'rotary'), ('1d_text', 'sine'),
                                               ('2d_text_superres_classes_dmol', 'rotary')])
def test_every_byte_and_its_place_matter_and_padding_does_not(name, coordinates):
  model, variables = make_case(name, coordinates=coordinates)
  length, image = model.config.text_length, random_images(model.spec, 1)
  given = {name: np.zeros((1, *one.shape), np.int32) for name, one in model.conditions.items()}
  log_prob = jax.jit(lambda text: model.apply(variables, image, {**given, 'text': text}, method='log_prob')[0])
  texts = ['', 'a', 'b', 'ab', 'ba', 'abcdefgh'[:length], 'bcdefgh'[:length - 1] + 'a']
  found = [float(log_prob(text[None])) for text in model.conditions['text'].parse(texts)]
  assert len(set(found)) == len(texts)
  # A longer model is the same one, since nothing sees what pads a text.
  longer = make_model(dataclasses.replace(model.config, text_length=length + 3), model.spec)
  again = apply(longer, variables, image, {**given, 'text': longer.conditions['text'].parse(['ab'])}, method='log_prob')
  assert float(again[0]) == pytest.approx(found[3], rel=1e-6)
  again = apply(longer, variables, image, {**given, 'text': longer.conditions['text'].parse([''])}, method='log_prob')
  assert float(again[0]) == pytest.approx(found[0], rel=1e-6)


def test_learned_coordinates_tell_the_order_of_bytes():
  model, variables = make_case('1d_text', coordinates='learned')
  image = random_images(model.spec, 1)
  found = [float(apply(model, variables, image, {'text': model.conditions['text'].parse([text])}, method='log_prob')[0])
           for text in ('abc', 'acb')]
  assert np.isfinite(found).all() and abs(found[0] - found[1]) > 1e-4


def test_training_hides_as_many_texts_as_it_should():
  model, variables = make_case('1d_text', text_dropout=0.25)
  number = 256
  images = np.repeat(random_images(model.spec, 1), number, axis=0)
  text, none = (model.conditions['text'].of_user(words, number) for words in ('abc', ''))
  log_prob = jax.jit(lambda text, train, key: model.apply(variables, images, {'text': text}, train, method='log_prob',
                                                          rngs={'dropout': key}), static_argnums=1)
  key = jax.random.key(0)
  given, without, train = log_prob(text, False, key), log_prob(none, False, key), log_prob(text, True, key)
  hidden = np.isclose(train, without, atol=1e-4)
  assert np.isclose(train, given, atol=1e-4)[~hidden].all() and abs(given[0] - without[0]) > 1e-2
  assert abs(hidden.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / number)


# Scenes.


def shapes_in(image):
  """{colour: (top, bottom, left, right, pixels)} of what is drawn on white."""
  found = {}
  for name, color in scenes.COLORS.items():
    rows, columns = np.nonzero((image == np.array(color)).all(axis=-1))
    if len(rows):
      found[name] = rows.min(), rows.max(), columns.min(), columns.max(), len(rows)
  return found


@pytest.mark.parametrize('split', scenes.SPLITS)
def test_drawings_show_what_their_captions_say(split):
  relations = collections.Counter()
  for index in range(150):
    image, text = scenes.scene(split, index)
    shapes, words = shapes_in(image), text.replace(',', '').split()
    objects = [three for three in zip(words, words[1:], words[2:]) if three[0] in scenes.SIZES]
    assert len(shapes) == len(objects) == len([word for word in words if word in scenes.COLORS])
    for size, color, shape in objects:
      top, bottom, left, right, pixels = shapes[color]
      side = scenes.SIZES[size]
      assert bottom - top + 1 == right - left + 1 == side
      assert (pixels == side * side) == (shape == 'square')
    assert any((color, shape) in scenes.UNSEEN for _, color, shape in objects) == (split == 'unseen')
    for (_, one, _), (_, other, _), relation in zip(objects, objects[1:], scenes.parse(text)[1]):
      relations[relation] += 1
      (top, bottom, left, right, _), (top2, bottom2, left2, right2, _) = shapes[one], shapes[other]
      assert {'left of': right + 1 < left2, 'right of': right2 + 1 < left, 'above': bottom + 1 < top2,
              'below': bottom2 + 1 < top}[relation], text
    boxes = [shapes[color] for _, color, _ in objects]
    for (top, bottom, left, right, _), (top2, bottom2, left2, right2, _) in itertools.combinations(boxes, 2):
      assert bottom + 1 < top2 or bottom2 + 1 < top or right + 1 < left2 or right2 + 1 < left
  assert set(relations) == set(scenes.RELATIONS)
  assert len({scenes.scene(split, index)[1] for index in range(150)}) > 100
  np.testing.assert_array_equal(scenes.scene(split, 7)[0], scenes.scene(split, 7)[0])


@pytest.mark.parametrize('text', [
    'a small red circle', 'a large blue cross', 'a small red circle above a large blue square',
    'a large black cross right of a small red circle, which is above a small blue circle',
    'a small red cross left of a small blue cross, which is left of a small black cross'])
def test_the_entropy_is_that_of_all_possible_drawings(text, monkeypatch):
  monkeypatch.setattr(scenes, 'SPEC', ImageSpec(10, 10, 3, levels=4))
  monkeypatch.setattr(scenes, 'SIZES', {'small': 2, 'large': 3})
  scenes._entropy.cache_clear()
  words = text.replace(',', '').split()
  sides = [scenes.SIZES[word] for word in words if word in scenes.SIZES]
  relations = [word for word in words if word in ('left', 'right', 'above', 'below')]
  before = {'left': lambda p, q, s, t: p[1] + s < q[1], 'right': lambda p, q, s, t: q[1] + t < p[1],
            'above': lambda p, q, s, t: p[0] + s < q[0], 'below': lambda p, q, s, t: q[0] + t < p[0]}
  number = 0
  for places in itertools.product(*(list(itertools.product(range(11 - side), repeat=2)) for side in sides)):
    pairs = list(zip(places, places[1:], sides, sides[1:]))
    number += all(before[relation](*pair) for relation, pair in zip(relations, pairs)) and all(
        any(test(places[i], places[j], sides[i], sides[j]) for test in before.values())
        for i, j in itertools.combinations(range(len(places)), 2))
  assert scenes.entropy(text) == pytest.approx(math.log2(number))
  # Drawn as often as any other.
  if number < 100:
    drawn = collections.Counter(scenes.draw(text, np.random.RandomState(seed)).tobytes() for seed in range(20 * number))
    assert len(drawn) == number
    chi_square = sum((count - 20)**2 / 20 for count in drawn.values())
    assert abs(chi_square - number) < 5 * math.sqrt(2 * number)
  scenes._entropy.cache_clear()


CHANGES = """
import json, sys
sys.path.insert(0, 'benchmarks')
import texts
import numpy as np
from image_transformer.datasets import scenes
rng, same, other, alone = np.random.default_rng(0), *sys.argv[1:]
print(json.dumps({
    'same': sorted({str(texts.exchanged_colors(same, rng)) for _ in range(30)}),
    'others': sorted({str(texts.exchanged_colors(other, rng)) for _ in range(30)}),
    'alone': texts.turned_relation(alone, rng),
    'wrong': all(texts.facts(*scenes.parse(change(other, rng))) != texts.facts(*scenes.parse(other))
                 for change in texts.CHANGES.values() for _ in range(30))}))
"""


def test_each_split_has_scenes_of_its_own(tmp_path, monkeypatch):
  for split in scenes.SPLITS:
    monkeypatch.setitem(scenes.SPLITS, split, 3)
  for split in scenes.SPLITS:
    found = data.open_split(Config(dataset='scenes', data_dir=str(tmp_path)), split)
    assert {found[i]['image'].tobytes() for i in range(3)} == {scenes.scene(split, i)[0].tobytes() for i in range(3)}


def test_wrong_captions_are_wrong():
  same, other = (f'a small red circle above a small blue cross, which is {relation} a small green circle'
                 for relation in ('below', 'above'))
  # A new process, since benchmarks restart theirs with other settings.
  done = subprocess.run([sys.executable, '-c', CHANGES, same, other, 'a small red circle'], check=True,
                        capture_output=True, text=True, cwd=pathlib.Path(__file__).parent.parent)
  found = json.loads(done.stdout)
  assert found['same'] == [  # exchanging red and green says the same
      'None', 'a small blue circle above a small red cross, which is below a small green circle',
      'a small red circle above a small green cross, which is below a small blue circle']
  assert len(found['others']) == 3 and 'None' not in found['others']
  assert found['alone'] is None and found['wrong']


# Texts of files.


def write_images(folder, *names):
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names):
    Image.fromarray(np.random.default_rng(i).integers(256, size=(9, 9, 3), dtype=np.uint8)).save(folder / name)


def test_captions_come_from_text_files_and_from_metadata(tmp_path):
  write_images(tmp_path, 'a.png', 'b.png', 'c.png')
  write_images(tmp_path / 'more', 'd.png')
  (tmp_path / 'a.TXT').write_text('a small\nhouse \n')
  (tmp_path / 'notes.txt').write_text('of nothing')
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "b.png", "text": "a dog", "more": 1}\n\n'
                                           '{"file_name": "more/d.png", "text": "une é"}\n', encoding='utf-8')
  texts, sources = read_captions(epath.Path(path) for path in tmp_path.rglob('*') if path.is_file())
  assert {path.name: text for path, text in texts.items()} == {'a.png': 'a small house', 'b.png': 'a dog',
                                                               'd.png': 'une é'}
  assert {path.name for path in sources} == {'a.TXT', 'metadata.jsonl'}


@pytest.mark.parametrize('line', [
    '{"file_name": "b.png"}', "{'file_name': 'b.png', 'text': 'a'}", '[]', '{"file_name": "b.png", "text": 3}',
    '{"file_name": 3, "text": "a"}'])
def test_metadata_that_is_not_valid_is_named_by_its_line(tmp_path, line):
  path = tmp_path / 'metadata.jsonl'
  path.write_text('{"file_name": "a.png", "text": "a"}\n' + line)
  with pytest.raises(InputError, match='metadata.jsonl, line 2, must be'):
    read_captions([epath.Path(path)])


def test_text_that_is_not_utf8_is_refused(tmp_path):
  write_images(tmp_path, 'a.png')
  (tmp_path / 'a.txt').write_bytes('café'.encode('latin1'))
  with pytest.raises(InputError, match='a.txt is not UTF-8'):
    read_captions([epath.Path(tmp_path / 'a.png'), epath.Path(tmp_path / 'a.txt')])


def test_one_image_has_one_text(tmp_path):
  write_images(tmp_path, 'a.png', 'z.png')
  for name in 'az':
    (tmp_path / f'{name}.txt').write_text('from a file')
  lines = [{'file_name': 'a.png', 'text': 'one\u2028line'}, {'file_name': 'sub/../z.png', 'text': '\ud83d'}]
  (tmp_path / 'metadata.jsonl').write_text('\n'.join(json.dumps(line, ensure_ascii=i) for i, line in enumerate(lines)),
                                           encoding='utf-8')
  (tmp_path / 'a.txt').write_bytes('café'.encode('latin1'))  # not needed
  texts, _ = read_captions(epath.Path(path) for path in tmp_path.iterdir())
  assert {path.name: text for path, text in texts.items()} == {'a.png': 'one line', 'z.png': '?'}
  around = tmp_path / 'sub' / '..'  # the same folder, named another way
  (tmp_path / 'sub').mkdir()
  texts, _ = read_captions(epath.Path(around / name) for name in ('metadata.jsonl', 'a.png'))
  assert texts == {epath.Path(around / 'a.png'): 'one line'}
  (tmp_path / 'metadata.jsonl').write_text('[' * 100_000)
  with pytest.raises(InputError, match='line 1, must be'):
    read_captions(epath.Path(path) for path in tmp_path.iterdir())


def test_other_texts_are_other_data():
  examples = [{'image': np.zeros((2, 2, 3), np.uint8), 'text': np.full(4, i, np.uint8)} for i in range(2)]
  assert batching.digest(examples[:1]) != batching.digest(examples[1:])


def config_of(folder, data_dir, **changes):
  return Config(dataset='folder', data_dir=str(data_dir), model=ModelConfig(**SMALL),
                folder=FolderConfig(path=str(folder), size=(8, 8), texts=True, **changes))


def test_a_folder_is_read_with_its_texts(tmp_path, capfd):
  names = [f'{i}.png' for i in range(6)]
  write_images(tmp_path / 'photos', *names)
  for i in range(5):
    (tmp_path / 'photos' / f'{i}.txt').write_text(f'number {i}')
  config = config_of(tmp_path / 'photos', tmp_path / 'data')
  found = {}
  for split in ('train', 'test'):
    for example in data.open_split(config, split):
      text, = Text(config.model, data.image_spec(config)).captions(example['text'][None])
      found[text] = example['image']
  assert found.keys() == {f'number {i}' for i in range(5)}
  summary = capfd.readouterr().err
  assert '5 of 6 files are used' in summary and '5.png: without a text' in summary and '.txt' not in summary
  run = it.library.Run(config, make_model(config.model, data.image_spec(config)), {}, 0, epath.Path())
  assert 'text' not in read_inputs(run, tmp_path / 'photos', 0)[0] and '5.png has no text' in capfd.readouterr().err
  (tmp_path / 'photos' / '5.png').unlink()
  # Of one image, texts of others do not matter.
  (tmp_path / 'photos' / '4.txt').write_bytes('né'.encode('latin-1'))
  one, _ = read_inputs(run, tmp_path / 'photos' / '3.png', 0)
  assert Text(config.model, run.model.spec).captions(one['text']) == ['number 3']
  # Nor do those that cannot be read, where a text may be typed.
  inputs, _ = read_inputs(run, tmp_path / 'photos', 0)
  assert 'text' not in inputs and '4.txt is not UTF-8' in capfd.readouterr().err
  (tmp_path / 'photos' / '4.txt').write_text('number 4')
  inputs, _ = read_inputs(run, tmp_path / 'photos', 0)
  for image, text in zip(inputs['image'], Text(config.model, run.model.spec).captions(inputs['text'])):
    np.testing.assert_array_equal(image, found[text])


def test_folders_without_texts_keep_the_names_of_their_datasets(tmp_path):
  old = {'path': str(tmp_path), 'size': (32, 32), 'crop': True, 'test_fraction': 0.1}
  digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
  assert folder_lib.settings(FolderConfig(path=str(tmp_path))).name.endswith(digest[:8])
  assert folder_lib.settings(FolderConfig(path=str(tmp_path), texts=True)).name[-8:] != digest[:8]


# All modes.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scenes, 'SPLITS', {'train': 12, 'test': 4, 'unseen': 4})
    run = it.train({
        'dataset': 'scenes', 'data_dir': str(folder / 'data'), 'model': SMALL | {'text_dropout': 0.1},
        'train': {'steps': 2, 'batch_size': 4, 'ema_decay': 0.9},
        'eval': {'batch_size': 4}, 'sample': {'num_images': 2, 'batch_size': 4}}, folder / 'run')
  return run


def test_a_model_with_texts_does_all_that_others_do(trained, capfd):
  run = it.load(trained.workdir)
  images, given = run.examples(4)
  texts = run.model.conditions['text'].captions(given['text'])
  np.testing.assert_array_equal(run.bits_per_dim(images, text=texts), run.bits_per_dim(images, **given))
  assert (run.bits_per_dim(images, text='') != run.bits_per_dim(images, **given)).all()
  samples, log_probs = run.draw(2, {'text': texts[:2]})
  np.testing.assert_allclose(log_probs, run.log_prob(samples, text=texts[:2]), rtol=1e-4)
  completed = run.complete(images, 10, text=texts)
  np.testing.assert_array_equal(completed[:, :10], images[:, :10])
  content = run.compress(images[:2], text=texts[:2])
  np.testing.assert_array_equal(run.decompress(content), images[:2])
  assert run.evaluate('unseen').num_images == 4
  task = tasks.Task(run, {'text': ['a small red circle', 'a, b']}, num_samples=2)
  task.sample()
  tasks.Task(run, num_samples=2).sample()
  tasks.Task(run, num_inputs=2, num_samples=1).complete(16)
  tasks.Task(run, num_inputs=2).show('attention', None)
  tasks.Task(run, num_inputs=2).score()
  tasks.Task(run, {'text': ['\udcff']}, num_samples=1).sample()  # as a terminal may give it
  out = capfd.readouterr().out
  names = re.findall(r'Wrote (.*)', out)
  assert len(names) == len(set(names)) == 6 and sum('_test_' in os.path.basename(name) for name in names) == 4
  (run.workdir / 'other').mkdir()
  Image.fromarray(random_images(ImageSpec(32, 32, 3), 1)[0]).save(run.workdir / 'other' / 'a.png')
  for task in (tasks.Task(run, input=str(run.workdir / 'other')), ):
    with pytest.raises(InputError, match='text is missing, but must be given: the text of each of these images'):
      task.score()
  tasks.Task(run, {'text': ['']}, input=str(run.workdir / 'other')).score()
  with pytest.raises(InputError, match="The condition 'text' is missing"):
    run.bits_per_dim(images)
