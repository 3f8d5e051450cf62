"""What is wrong with a configuration or a flag is said in one line, before anything is compiled or written.

Generated: wrong types, values out of range, fields that do not fit each other, absurd sizes, misspelt names. And
good configurations, none of which is refused.
"""

import dataclasses
import difflib
import json
import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import parameter_shapes
from image_transformer.config import Config, from_dict
from image_transformer.datasets import DATASETS
from image_transformer.errors import InputError
from image_transformer.training import Trainer, check_config

BASE = {'dataset': 'digits', 'model.query_block': (16,), 'model.memory_flange': (16,), 'model.num_layers': 1,
        'model.hidden_size': 16, 'model.num_heads': 2, 'model.ffn_size': 16, 'train.batch_size': 8}


def generated(count):
  """Always the same examples, as many as that."""
  return hypothesis.settings(max_examples=count, derandomize=True, deadline=None, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))


def fields_of(cls, prefix=''):
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.default):
      yield from fields_of(type(field.default), f'{prefix}{field.name}.')
    else:
      yield prefix + field.name, field.default


FIELDS = dict(fields_of(Config))
SECTIONS = sorted({name.split('.')[0] for name in FIELDS if '.' in name})


def of_type(kind):
  return [name for name, default in FIELDS.items() if type(default) is kind]


def nested(flat):
  tree = {}
  for name, value in flat.items():
    *sections, last = name.split('.')
    branch = tree
    for section in sections:
      branch = branch.setdefault(section, {})
    branch[last] = value
  return tree


# Wrong by their type.

texts = st.text(max_size=8) | st.sampled_from(['1', '1e3', 'True', 'a\nb', 'x' * 5_000])
others = st.none() | st.sampled_from([{}, {'a': 1}, b'x', 1j, np.zeros((2, 2))])
floats = st.floats() | st.sampled_from([1.0, np.float32(1)])
WRONG_TYPES = {
    int: others | st.booleans() | floats | texts | st.lists(st.integers(), max_size=2),
    float: others | st.booleans() | texts | st.lists(floats, max_size=2),
    bool: others | st.integers(0, 1) | floats | texts | st.just([True]),
    str: others | st.booleans() | st.integers() | floats | st.lists(texts, max_size=1),
    tuple: (others | st.booleans() | st.integers() | floats | texts |
            st.lists(st.booleans() | floats | texts | st.none(), min_size=1, max_size=2)),
}


def of_wrong_type(name):
  return st.tuples(st.just({name: None}), WRONG_TYPES[type(FIELDS[name])]).map(lambda pair: {name: pair[1]})


# Wrong by their size.

ZERO_IS_GOOD = {'seed', 'model.qkv_size', 'model.num_encoder_layers', 'train.eval_every', 'train.sample_every',
                'eval.num_images', 'eval.num_images_during_training', 'optimizer.skip_non_finite', 'folder.frames',
                'model.text_length', *of_type(float)} - {
                    'model.embedding_gain', 'optimizer.learning_rate', 'optimizer.epsilon', 'sample.temperature',
                    'folder.test_fraction'}
FRACTIONS = ['model.dropout', 'model.attention_dropout', 'train.ema_decay', 'optimizer.b1', 'optimizer.b2',
             'model.text_dropout', 'folder.test_fraction']
huge = st.integers(2**33, 2**70) | st.sampled_from([10**12, 10**20, 10**400, 10**5_000])


def out_of_range(name):
  if type(FIELDS[name]) is int:
    bad = huge | huge.map(lambda x: -x) | st.integers(max_value=-1 if name in ZERO_IS_GOOD else 0)
  else:
    bad = st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -10**400]) | st.floats(max_value=-1e-6)
    bad |= st.floats(1, 1e300) | st.just(1 - 1e-9) if name in FRACTIONS[:-1] else st.floats(1e39)
    if name not in ZERO_IS_GOOD:
      bad |= st.sampled_from([0, 0.0, -0.0])
    if name not in FRACTIONS:
      bad |= st.just(1e-40)  # which float32 would round to zero
  return bad.map(lambda value: {name: value})


CHOICES = ['model.scan', 'model.likelihood', 'model.norm', 'model.coordinates', 'model.attention', 'model.dtype',
           'optimizer.name', 'optimizer.schedule']
SPLITS = ['train.split', 'eval.split']
NO_SPLITS = ['', 'tset', 'train[', 'train[:0%]', 'train[:200%]', 'train[10:5]', 'train[5000:]', 'train+tset',
             'test[::2]', '../train', 'train[:99999999999999999999]', '\0']
wrong_words = st.one_of(
    st.tuples(st.sampled_from(SPLITS), st.sampled_from(NO_SPLITS)),
    st.tuples(st.just('dataset'), texts | st.sampled_from(['digit', '../digits', 'generated_',
                                                            'generated_generated_digits'])),
    st.tuples(st.sampled_from(CHOICES), texts),
    st.tuples(st.sampled_from(['data_dir', 'folder.path']), texts.map(lambda text: text + '\0')),
).map(lambda pair: dict([pair]))

wrong_tuples = st.one_of(
    st.tuples(st.sampled_from(['model.query_block', 'model.memory_flange', 'folder.size']), st.sampled_from(
        [(), (1, 1, 1), (-1,), (10**20,), (10**20, 10**20), [0, -1], (16, 0), (2**31, 1)])),
    st.tuples(st.just('model.query_block'), st.integers(65, 10**6).map(lambda x: (x,)) | st.just((0,))),
    st.tuples(st.just('folder.size'), st.integers().map(lambda x: (x,))),
).map(lambda pair: dict([pair]))

# Wrong together; the names that the message may give.

sizes = st.integers(1, 100)
combinations = st.one_of(
    st.tuples(sizes, sizes).filter(lambda p: p[0] % p[1]).map(
        lambda p: ({'model.hidden_size': p[0], 'model.num_heads': p[1]}, ['model.num_heads'])),
    st.tuples(sizes, sizes).filter(lambda p: p[0] % p[1]).map(
        lambda p: ({'train.batch_size': p[0], 'train.accumulation': p[1]}, ['train.batch_size'])),
    st.tuples(sizes, sizes).filter(lambda p: max(p) > 8).map(
        lambda p: ({'model.query_block': p, 'model.memory_flange': (1, 1)}, ['model.query_block'])),
    sizes.map(lambda x: ({'model.memory_flange': (x, x)}, ['model.memory_flange'])),
    sizes.map(lambda x: ({'model.embedding_bias': x, 'model.likelihood': 'categorical'}, ['model.embedding_bias'])),
    st.sampled_from([1, 2, 3, 4, 5, 7, 9]).map(
        lambda x: ({'model.hidden_size': 2 * x, 'model.num_heads': 2, 'model.coordinates': 'rotary'},
                   ['model.num_heads'])),
    st.sampled_from([3, 5, 7, 16, 10**12]).map(
        lambda x: ({'model.upscale': x, 'model.num_encoder_layers': 1}, ['model.upscale'])),
    st.sampled_from([0, -1, 10**9]).map(
        lambda x: ({'model.upscale': 2, 'model.num_encoder_layers': x}, ['model.num_encoder_layers'])),
    sizes.map(lambda x: ({'model.num_encoder_layers': x}, ['model.num_encoder_layers'])),
    st.just(({'model.align_encoder': True}, ['model.align_encoder'])),
    st.sampled_from(['celeba', 'folder', 'imagenet32_old']).map(
        lambda x: ({'dataset': x, 'model.class_conditional': True}, ['model.class_conditional'])),
    st.integers(298, 2**31 - 1).map(lambda x: ({'eval.num_images': x}, ['eval.num_images'])),
    st.integers(6, 297).map(lambda x: ({'eval.split': 'test[:5]', 'eval.num_images': x}, ['eval.num_images'])),
    # None of these is out of range alone, but no memory would do for all.
    st.integers(200_000, 10**6).map(
        lambda x: ({f'model.{name}': x for name in ('hidden_size', 'ffn_size', 'num_heads')}, ['model.hidden_size'])),
    st.integers(1_000, 4_096).map(
        lambda x: ({'dataset': 'folder', 'folder.size': (x, x), 'model.query_block': (1,),
                    'model.memory_flange': (2**31 - 1,)}, ['model.memory_flange'])),
    st.sampled_from(['a_file', 'a_file/below', '~nobody_at_all']).map(lambda x: ({'data_dir': x}, ['data_dir is'])),
    st.sampled_from([('nowhere', 'does not exist'), ('a_file', 'is a file'), ('empty', 'holds no files'),
                     ('~nobody_at_all', 'whose user exists')]).map(
        lambda p: ({'dataset': 'folder', 'folder.path': p[0]}, [p[1]])),
    st.tuples(st.sampled_from(SECTIONS), WRONG_TYPES[int].filter(lambda x: not isinstance(x, dict))).map(
        lambda p: ({p[0]: p[1]}, [p[0]])),
)


@st.composite
def misspelt(draw):
  """A letter lost, doubled or changed, or two exchanged."""
  name = draw(st.sampled_from(sorted(FIELDS) + SECTIONS))
  *section, last = name.split('.')
  i = draw(st.integers(0, len(last) - 2))
  wrong = draw(st.sampled_from([last[:i] + last[i + 1:], last[:i] + last[i] + last[i:], last[:i] + 'z' + last[i + 1:],
                                last[:i] + last[i + 1] + last[i] + last[i + 2:]]))
  wrong = '.'.join([*section, wrong])
  hypothesis.assume(wrong not in FIELDS and wrong not in SECTIONS)
  near = len(last) > 5 and difflib.SequenceMatcher(None, wrong, name).ratio() > 0.8
  return {wrong: draw(st.integers())}, [f'{wrong}; did you mean'] if near else [f'field {wrong};']


one_field = st.one_of(
    st.sampled_from(sorted(FIELDS)).flatmap(of_wrong_type),
    st.sampled_from(of_type(int) + of_type(float)).flatmap(out_of_range),
    wrong_words,
    wrong_tuples,
)
bad = one_field.map(lambda values: (values, list(values))) | combinations | misspelt()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder in which nothing may be made."""
  place = tmp_path_factory.mktemp('place')
  (place / 'a_file').write_text('')
  (place / 'empty').mkdir()
  return place


@pytest.fixture(scope='module')
def compiled():
  """What has been compiled so far."""
  events = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, duration, **_: events.append(event) if 'compile' in event else None)
  jax.jit(lambda x: x + len(events))(jnp.zeros(3))
  assert events
  return events


def files(place):
  return {path: path.stat().st_mtime_ns for path in place.rglob('*')}


def assert_names(message, names):
  # Splits are called what the message is about, too.
  names = [*names, *(['Split '] if names[0].endswith('.split') else ['dataset'] if names == ['dataset'] else [])]
  assert message.isprintable() and len(message) < 2_000
  assert any(name in message for name in names), (names, message)


def assert_refused(place, compiled, values, names):
  flat = {**BASE, 'data_dir': 'data', **values}
  for name in ('data_dir', 'folder.path'):
    if isinstance(flat.get(name), str) and not flat[name].startswith('~'):
      flat[name] = str(place / flat[name])
  # A section that is no section leaves no place for its fields.
  flat = {name: value for name, value in flat.items() if name in values or name.split('.')[0] not in values}
  before, num_compiled = files(place), len(compiled)
  with pytest.raises(InputError) as raised:
    Trainer(from_dict(nested(flat)), place / 'run')
  assert_names(str(raised.value), names)
  assert files(place) == before and len(compiled) == num_compiled


@generated(300)
@hypothesis.given(case=bad)
def test_300_bad_configurations_are_refused_before_anything_is_done(place, compiled, case):
  assert_refused(place, compiled, *case)


SUBTLE = {
    int: [True, False, None, 1.0, '1', '1e3', [1], -1, 2**33, 10**12, 2**70, 10**5_000],
    float: [True, None, '0.5', [0.5], math.nan, math.inf, -math.inf, -1e-9, 1e39, 10**400, -10**400],
    bool: [0, 1, None, 'True', 1.0],
    str: [None, 1, True, b'x', ['x'], 'x\0'],
    tuple: [None, 1, 16.0, '(16,)', (True,), (True, True), [1.0], [None], ('1', '1'), (), (1, 1, 1), (-1,), (10**20,)],
}


@pytest.mark.parametrize('name', sorted(FIELDS))
def test_every_field_refuses_what_is_nearly_right(place, compiled, name):
  kind = type(FIELDS[name])
  values = SUBTLE[kind] + (['', 'x', 'a\nb'] if name in CHOICES else NO_SPLITS if name in SPLITS else [])
  values += [1, 1.0, 1 - 1e-9] if name in FRACTIONS[:-1] else []
  if kind in (int, float) and name not in ZERO_IS_GOOD:
    values += [0] if kind is int else [0, 0.0, -0.0]
  if kind is float and name not in FRACTIONS:
    values += [1e-40]
  for value in values:
    assert_refused(place, compiled, {name: value}, [name])


@pytest.mark.parametrize('name', SPLITS)
def test_splits_are_checked_before_a_stand_in_is_sought(place, name):
  for split in NO_SPLITS:
    with pytest.raises(InputError):
      check_config(from_dict(nested({**BASE, 'data_dir': str(place / 'data'), name: split})))


# The same from the command line, where everything is text.

typed = st.one_of(
    st.sampled_from(of_type(int) + of_type(float)).flatmap(lambda name: out_of_range(name)).filter(
        lambda values: len(str(*values.values())) < 4_000 if abs(*values.values()) < 10**4_000 else False),
    st.tuples(st.sampled_from(of_type(int)), st.sampled_from(['', 'x', '1e3', 'True', '1.0', 'a\nb', '()'])).map(
        lambda p: dict([p])),
    wrong_words.filter(lambda values: values != {'dataset': ''}),
    wrong_tuples.filter(lambda values: () not in values.values()),
).map(lambda values: ([f'--config.{name}={value}' for name, value in values.items()], list(values)))


def assert_one_line(call, place, arguments, names):
  before = files(place)
  code, printed = call(*arguments, f'--workdir={place / "run"}')
  assert code == 2 and printed.startswith('Error: ') and printed.count('\n') == 1, printed
  assert_names(printed.removeprefix('Error: ').strip(), names)
  assert files(place) == before


@generated(20)
@hypothesis.given(case=typed)
def test_20_bad_flags_end_the_program_with_one_line(call, place, case):
  arguments, names = case
  hypothesis.assume('\0' not in ''.join(arguments))  # which no command line can hold
  data_dir = f'--config.data_dir={place / "data"}'
  assert_one_line(call, place, ['--config=configs/digits.py', data_dir, *arguments], names)


@pytest.mark.parametrize('flag, values', [
    ('temperature', ['', '0', '-1', 'nan', 'inf', '1,', '1,,2', '1e-50', '1e50', '1e400', 'x']),
    ('seed', ['-1', str(2**32), str(2**70), '1e3', '']),
    ('num_samples', ['-1', '0', '1.5', 'x\ny', str(10**9), str(10**30)]),
    ('average_checkpoints', ['0', '-1', 'x', str(2**70)])])
def test_bad_flags_of_a_mode(call, place, flag, values):
  for value in values:
    assert_one_line(call, place, ['--mode=sample', f'--{flag}={value}'], [f'--{flag}'])


@pytest.mark.parametrize('content, says', [
    ('def get_config(:', 'SyntaxError'), ('1 / 0', 'ZeroDivisionError'), ('raise RuntimeError("a\\nb")', 'a\\nb'),
    ('x = 1', 'get_config'), ('def get_config():\n  return 3', 'ConfigDict')])
def test_a_file_that_is_no_configuration(call, place, tmp_path, content, says):
  (tmp_path / 'config.py').write_text(content)
  assert_one_line(call, place, [f'--config={tmp_path / "config.py"}'], [says])


# Good ones.


@st.composite
def good(draw, most_layers=1_000):
  flat = {}

  def choose(name, strategy):
    flat[name] = draw(strategy)
    return flat[name]

  dataset = choose('dataset', st.sampled_from([*DATASETS, 'generated_digits', 'generated_celeba']))
  size = choose('folder.size', st.tuples(st.integers(1, 64), st.integers(1, 64)) if dataset == 'folder' else
                st.just((32, 32)))
  choose('folder.path', st.just(__file__.rpartition('/')[0] if dataset == 'folder' else ''))
  spec = DATASETS[dataset.removeprefix('generated_')](from_dict({'folder': {'size': size}})).spec
  dmol = choose('model.likelihood', st.sampled_from(['categorical', 'dmol'])) == 'dmol'
  choose('model.num_mixtures', st.integers(1, 20))
  if draw(st.booleans()):
    positions = spec.num_dims // (spec.channels if dmol else 1)
    block = choose('model.query_block', st.tuples(st.integers(-(-positions // 64), positions)))
    choose('model.memory_flange', st.tuples(st.integers(0, 16 * block[0])) | st.just((0,)))
  else:
    choose('model.query_block', st.tuples(*(st.integers(-(-side // 8), side) for side in spec.shape[:-1])))
    choose('model.memory_flange', st.tuples(*(st.integers(0, side + 1) for side in spec.shape[:-1])))
  heads = choose('model.num_heads', st.integers(1, 16))
  choose('model.hidden_size', st.integers(1, 64).map(lambda x: x * heads))
  choose('model.qkv_size', st.integers(0, 8).map(lambda x: x * heads))
  choose('model.ffn_size', st.integers(1, 4_096))
  choose('model.num_layers', st.integers(1, most_layers))
  choose('model.class_conditional', st.booleans() if spec.num_classes else st.just(False))
  width = (flat['model.qkv_size'] or flat['model.hidden_size']) // flat['model.num_heads']
  axes = len(spec.shape[:-1]) + (spec.channels > 1 and not dmol)
  rotary = ['rotary'] if width % 2 == 0 and width >= max(2 * axes, 6) else []
  choose('model.coordinates', st.sampled_from(['sine', 'learned', *rotary]))
  choose('model.qk_norm', st.booleans())
  choose('model.norm', st.sampled_from(['pre', 'post']))
  choose('model.dtype', st.sampled_from(['float32', 'bfloat16']))
  factors = [x for x in range(2, 9) if spec.height % x == spec.width % x == 0]
  if spec.has_texts and draw(st.booleans()):
    choose('model.text_length', st.integers(1, 200))
    choose('model.text_dropout', st.floats(0, 0.999))
    choose('model.num_encoder_layers', st.integers(1, min(most_layers, 12)))
  if factors and not spec.frames and draw(st.booleans()):
    choose('model.upscale', st.sampled_from(factors))
    choose('model.num_encoder_layers', st.integers(1, min(most_layers, 12)))
    choose('model.align_encoder', st.booleans() if flat['model.coordinates'] == 'sine' else st.just(False))
  # Whole numbers are good floats, NumPy's numbers are good numbers, and so are lists for tuples.
  positive = st.floats(1e-30, 1e30) | st.integers(1, 10**20) | st.floats(0.5, 1.5, width=32).map(np.float32)
  fraction = st.floats(0, 0.999) | st.sampled_from([0, 0.0, -0.0])
  for name in FRACTIONS[:-2]:
    choose(name, fraction)
  for name in ('model.embedding_gain', 'optimizer.learning_rate', 'optimizer.epsilon', 'sample.temperature'):
    choose(name, positive)
  choose('optimizer.clip_norm', positive | st.just(0))
  choose('model.embedding_bias', positive | st.just(0) if flat['model.likelihood'] == 'dmol' else st.just(0))
  choose('folder.test_fraction', st.floats(1e-9, 0.999))
  parts = choose('train.accumulation', st.integers(1, 64))
  choose('train.batch_size', st.integers(1, 64).map(lambda x: x * parts * jax.device_count()))
  for name in ('train.steps', 'train.log_every', 'train.checkpoint_every', 'train.keep_checkpoints',
               'optimizer.warmup_steps'):
    choose(name, st.integers(1, 2**31 - 1) | st.integers(1, 100).map(np.int64))
  for name in ('train.eval_every', 'train.sample_every', 'eval.num_images_during_training',
               'optimizer.skip_non_finite'):
    choose(name, st.integers(0, 2**31 - 1))
  for name in ('eval.batch_size', 'sample.batch_size', 'sample.num_images'):
    choose(name, st.integers(1, 10**6))
  choose('seed', st.integers(0, 2**32 - 1))
  splits = DATASETS[dataset.removeprefix('generated_')](Config()).sizes
  for name in ('train.split', 'eval.split'):
    choose(name, st.tuples(st.sampled_from(sorted(splits)), st.sampled_from(['', '[:90%]', '[5:20]', '[-10:]'])).map(
        ''.join))
  choose('eval.num_images', st.integers(0, 10))
  for name in set(of_type(bool)) - {'model.class_conditional', 'model.align_encoder'}:
    choose(name, st.booleans())
  return {name: list(value) if isinstance(value, tuple) and draw(st.booleans()) else value
          for name, value in flat.items()}


@generated(200)
@hypothesis.given(flat=good())
def test_200_good_configurations_are_not(place, flat):
  config = from_dict(nested({**flat, 'data_dir': str(place / 'data')}))
  check_config(config)
  assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@generated(10)
@hypothesis.given(flat=good(most_layers=1))
def test_a_good_configuration_has_a_model(flat):
  assert parameter_shapes(check_config(from_dict(nested(flat))))['output']['kernel'].size
