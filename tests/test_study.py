"""The study of judges: plans are balanced, answers are kept, and the analysis finds the rate that there is."""

import collections
import compileall
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

from etils import epath
import numpy as np
from PIL import Image
import pytest

from helpers import random_images
from image_transformer import study, tasks
from image_transformer.config import ImageSpec
from image_transformer.errors import InputError

NUMBER, TEMPERATURES = 48, (0.8, 0.9, 1.0)
SPEC = ImageSpec(8, 8, 3)


@pytest.fixture(scope='module', params=study.FORMS)
def made(request, tmp_path_factory):
  """A study, its study.json and the images in it."""
  folder = tmp_path_factory.mktemp('study') / request.param
  originals = random_images(SPEC, NUMBER)
  generated = {temperature: random_images(SPEC, NUMBER, seed=i + 1) for i, temperature in enumerate(TEMPERATURES)}
  study.write(epath.Path(folder), originals, generated, SPEC, 'tiny', request.param, seed=3)
  return folder, json.loads((folder / 'study.json').read_text()), originals, generated


def test_a_judge_sees_every_original_once_and_all_else_is_balanced(made):
  _, content, _, _ = made
  of_images = collections.defaultdict(collections.Counter)
  for plan in content['plans']:
    assert sorted(trial['image'] for trial in plan) == list(range(NUMBER))
    kinds = collections.Counter(trial['kind'] for trial in plan)
    assert [trial['kind'] for trial in plan[:4]] == ['practice'] * 4 and kinds['practice'] == 4
    assert kinds['catch'] == (NUMBER - 4) // 11 and plan[4 + 10]['kind'] == 'catch'
    main = [trial for trial in plan if trial['kind'] == 'main']
    counts = collections.Counter(trial['temperature'] for trial in main)
    assert counts.keys() == set(TEMPERATURES) and max(counts.values()) - min(counts.values()) <= 1
    for kind in kinds:
      answers = collections.Counter(trial['answer'] for trial in plan if trial['kind'] == kind)
      if kind == 'catch' and content['form'] == 'single':  # no photograph is easy to tell
        assert answers == {1: kinds['catch']}
      else:
        assert abs(answers[0] - answers[1]) <= 1
    assert {trial['num_main'] for trial in plan} == {kinds['main']}
    assert all(1000 <= trial['exposure_ms'] <= 2000 for trial in plan)
    for trial in main:
      of_images[trial['image']][trial['temperature']] += 1
  assert len({json.dumps(plan) for plan in content['plans']}) == len(content['plans'])
  assert len({tuple(trial['image'] for trial in plan[4:]) for plan in content['plans']}) == len(content['plans'])
  counts = np.array([[counts[temperature] for temperature in TEMPERATURES] for counts in of_images.values()])
  assert counts.min() > 5 and counts.max() < 40  # of 60 judges, each about 18 times
  assert len(set(counts.sum(axis=0))) == 1  # also where temperatures do not divide the images


def test_what_is_shown_is_what_the_plan_says(made):
  folder, content, originals, generated = made
  assert content['width'] == content['height'] == 128
  names = {}
  for i in range(NUMBER):
    names[f'images/{i:04d}_photograph.png'] = originals[i]
    names |= {f'images/{i:04d}_temperature{temperature:g}.png': images[i] for temperature, images in generated.items()}
  for name, image in names.items():
    with Image.open(folder / name) as shown:
      np.testing.assert_array_equal(np.array(shown)[::16, ::16], image)
      assert shown.size == (128, 128) and (np.array(shown)[:16, :16] == image[0, 0]).all()
  for trial in content['plans'][7]:
    made_name = f'_temperature{trial["temperature"]:g}.png' if trial['temperature'] else '_catch.png'
    photograph, other = (f'images/{trial["image"]:04d}{end}' for end in ('_photograph.png', made_name))
    if content['form'] == 'choice':
      assert trial['images'] == ([photograph, other] if trial['answer'] == 0 else [other, photograph])
    else:
      assert trial['images'] == [photograph if trial['answer'] == 0 else other]
    assert all((folder / name).exists() for name in trial['images'])
  assert (folder / 'LICENSE-jspsych.txt').exists() and (folder / 'index.html').exists()


def test_a_seed_makes_the_same_study_again(made, tmp_path):
  folder, content, originals, generated = made
  for seed in (3, 4):
    study.write(epath.Path(tmp_path / str(seed)), originals, generated, SPEC, 'tiny', content['form'], seed)
  assert (tmp_path / '3' / 'study.json').read_bytes() == (folder / 'study.json').read_bytes()
  assert json.loads((tmp_path / '4' / 'study.json').read_text())['plans'] != content['plans']
  # Of other images everything else may be the same.
  study.write(epath.Path(tmp_path / 'other'), 255 - originals, generated, SPEC, 'tiny', content['form'], seed=3)
  other = json.loads((tmp_path / 'other' / 'study.json').read_text())
  assert other.pop('id') != content['id'] and other == {name: content[name] for name in other}


@pytest.mark.parametrize('number, form, says', [
    (20, 'none', "form is 'none', but must be one of choice, single"), (7, 'choice', 'num_inputs is 7,.*at least 8')])
def test_what_makes_no_study_is_refused(tmp_path, number, form, says):
  images = random_images(SPEC, number)
  with pytest.raises(InputError, match=says):
    study.write(epath.Path(tmp_path / 'out'), images, {1.0: images}, SPEC, 'x', form)
  assert not (tmp_path / 'out').exists()


# Answers.


def answers_of(content, judge, right, rng, **changes):
  """Lines of a judge; right(trial) is the probability of the right answer."""
  lines = []
  for number, trial in enumerate(content['plans'][judge % len(content['plans'])]):
    chosen = trial['answer'] if rng.random() < right(trial) else 1 - trial['answer']
    lines.append({**{name: value for name, value in trial.items() if name != 'images'}, 'study': content['id'],
                  'judge': str(judge), 'plan': judge, 'trial': number, 'chosen': chosen, 'rt_ms': 700,
                  'exposure_measured_ms': trial['exposure_ms'] + 8.0, **changes})
  return lines


def fooled_at(rate):
  return lambda trial: 1 - rate if trial['kind'] == 'main' else 1.0


def test_the_rate_is_within_its_interval():
  """100 studies of 20 judges, some easier to fool than others, and some images that fool more often."""
  plans = [study._plan(NUMBER, [0.8, 1.0], 'choice', judge, 0, 'tiny') for judge in range(20)]
  content = {'plans': plans, 'id': 'x'}
  inside, widths = 0, []
  for seed in range(100):
    rng = np.random.default_rng(seed)
    of_judge, of_image = rng.uniform(-0.1, 0.1, 20), rng.uniform(-0.15, 0.15, NUMBER)
    lines = [line for judge in range(20) for line in answers_of(
        content, judge, lambda trial, j=judge: fooled_at(0.36 + of_judge[j] + of_image[trial['image']])(trial), rng)]
    found = study.analyse(lines, seed).fooled
    assert [row.temperature for row in found] == [0.8, 1.0] and {row.num_judges for row in found} == {20}
    low, high = found[0].interval
    inside += low <= 0.36 <= high
    widths.append(high - low)
  assert inside >= 93 and np.mean(widths) < 0.25


@pytest.mark.parametrize('rate', [0.0, 0.5, 1.0])
def test_judges_who_are_always_right_guess_or_are_always_fooled(made, rate):
  _, content, _, _ = made
  rng = np.random.default_rng(0)
  lines = [line for judge in range(12) for line in answers_of(content, judge, fooled_at(rate), rng)]
  analysis = study.analyse(lines)
  assert not analysis.excluded and len(analysis.fooled) == 3
  for row in analysis.fooled:
    assert abs(row.share - rate) < 0.2 and row.interval[0] <= row.share <= row.interval[1]
  if content['form'] == 'single':  # only generated images can fool
    assert analysis.num_kept < 0.6 * analysis.num_trials
  text = study.table(analysis, [('the paper', '0.8', '36.11 +- 2.5 %')])
  assert '| the paper, published | choice | 0.8 | 36.11 +- 2.5 % |' in text
  assert '12 of 12 judges' in text and text.count(f'| tiny | {content["form"]} |') == 3


def test_judges_are_left_out_by_the_rules(made):
  _, content, _, _ = made
  rng, lines = np.random.default_rng(0), []
  lines += answers_of(content, 0, fooled_at(0.3), rng)
  lines += answers_of(content, 1, lambda trial: 0.0 if trial['kind'] == 'catch' else 0.7, rng)
  lines += answers_of(content, 2, fooled_at(0.3), rng, rt_ms=90)
  lines += answers_of(content, 3, fooled_at(0.3), rng, chosen=None)
  lines += answers_of(content, 4, fooled_at(0.3), rng)[:4 + 16]  # closed the page after a catch trial
  lines += answers_of(content, 5, fooled_at(0.3), rng, exposure_measured_ms=3000.0)  # a slow machine
  analysis = study.analyse(lines)
  assert analysis.excluded == {'1': '0% of catch trials right', '2': 'answered in 90 ms', '3': 'answered too little',
                                 '4': 'answered too little'}
  assert analysis.num_judges == 6 and {row.num_judges for row in analysis.fooled} == {1}


def test_the_rules_begin_where_they_say(made):
  _, content, _, _ = made
  rng = np.random.default_rng(0)

  def excluded(changes):
    lines = answers_of(content, 0, fooled_at(0.3), rng)
    for line, change in zip([line for line in lines if line['kind'] == changes[0]], changes[1]):
      line |= change
    return study.excluded(lines)

  plan = content['plans'][0]
  num_catch, num_main = (sum(trial['kind'] == kind for trial in plan) for kind in ('catch', 'main'))
  wrong = [{'chosen': 1 - trial['answer']} for trial in plan if trial['kind'] == 'catch']
  assert num_catch == 4 and not excluded(('catch', wrong[:1])) and excluded(('catch', wrong[:2]))
  assert not excluded(('main', [{'chosen': None}] * (num_main // 2)))
  assert excluded(('main', [{'chosen': None}] * (num_main // 2 + 1)))
  assert not excluded(('main', [{'rt_ms': 201}] * num_main)) and excluded(('main', [{'rt_ms': 199}] * num_main))
  assert excluded(('main', [{'rt_ms': 90}] * (num_main - 1) + [{'rt_ms': 5000}]))  # one pause changes nothing
  for off, counts in (100, True), (101, False), (-100, True), (-101, False):
    lines = answers_of(content, 0, fooled_at(0.3), rng)
    for line in lines:
      line['exposure_measured_ms'] = line['exposure_ms'] + off
    assert (study.analyse(lines).num_kept > 0) == counts


def test_the_table_has_percentages():
  row = study.Fooled('tiny', 'choice', 0.8, 0.3611, (0.301, 0.425), 5, 6, 70)
  text = study.table(study.Analysis([row], {'x/1': 'answered too little'}, 6, 90, 70))
  assert '| tiny | choice | 0.8 | 36.11 | 30.1 to 42.5 | 5 | 6 | 70 |' in text and '5 of 6 judges and 70 of 90' in text


def test_trials_without_an_answer_do_not_count(made):
  _, content, _, _ = made
  lines = answers_of(content, 0, fooled_at(0.0), np.random.default_rng(0))
  main = [line for line in lines if line['kind'] == 'main']
  for line in main[::4]:  # temperatures take turns, three of them
    line['chosen'] = None
  assert [row.share for row in study.analyse(lines).fooled] == [0, 0, 0]


def test_files_of_answers_are_read(tmp_path, made):
  _, content, _, _ = made
  lines = [json.dumps(line) for line in answers_of(content, 0, fooled_at(0.3), np.random.default_rng(0))]
  (tmp_path / '0.jsonl').write_text('\n'.join(lines) + '\n' + lines[0][:50])  # cut off
  (tmp_path / '1.jsonl').write_text('')  # a page that was closed at once
  assert len(study.read_answers([epath.Path(tmp_path)])) == NUMBER
  # What a judge saved as a file was sent before, in part.
  (tmp_path / '2.jsonl').write_text('\n'.join(lines) + '\n')
  assert len(study.read_answers([epath.Path(tmp_path)])) == NUMBER
  # A judge who loads the page again has seen the images: the first answers count.
  first = json.loads(lines[10])
  (tmp_path / '2.jsonl').write_text(json.dumps(first | {'chosen': 1 - first['chosen']}) + '\n')
  found = {line['trial']: line['chosen'] for line in study.read_answers([epath.Path(tmp_path)])}
  assert found[first['trial']] == first['chosen']
  (tmp_path / '2.jsonl').unlink()
  (tmp_path / '0.jsonl').write_text('\n'.join([lines[0], '{}', lines[1]]))
  with pytest.raises(InputError, match='0.jsonl, line 2, is not an answer'):
    study.read_answers([epath.Path(tmp_path)])
  (tmp_path / '0.jsonl').write_text('\n'.join([json.dumps(first | {'chosen': -1}), lines[1]]))  # neither key
  with pytest.raises(InputError, match='0.jsonl, line 1, is not an answer'):
    study.read_answers([epath.Path(tmp_path)])
  with pytest.raises(InputError, match='there are no answers'):
    study.read_answers([epath.Path(tmp_path / '1.jsonl')])
  with pytest.raises(InputError, match='2.jsonl does not exist'):
    study.read_answers([epath.Path(tmp_path / '2.jsonl')])


@pytest.mark.parametrize('second', [b'\x89PNG\xff', b'[' * 100_000, b'[]', b'7', b'{"judge": 1}', None])
def test_what_is_no_answer_is_named(tmp_path, made, second):
  _, content, _, _ = made
  first, last = answers_of(content, 0, fooled_at(0.3), np.random.default_rng(0))[:2]
  second = second or json.dumps(first | {'exposure_ms': 'long'}).encode()
  (tmp_path / '0.jsonl').write_bytes(b'\n'.join([json.dumps(first).encode(), second, json.dumps(last).encode()]))
  with pytest.raises(InputError, match='0.jsonl, line 2, is not an answer'):
    study.read_answers([epath.Path(tmp_path)])


def test_a_page_in_the_background_shows_nothing(tmp_path, made):
  _, content, _, _ = made
  lines = answers_of(content, 0, fooled_at(0.0), np.random.default_rng(0), exposure_measured_ms=None)
  (tmp_path / '0.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  assert study.analyse(study.read_answers([epath.Path(tmp_path)])).num_kept == 0


def test_studies_of_two_forms_and_their_images_are_told_apart(tmp_path):
  for form, rate in [('choice', 0.0), ('single', 1.0)]:
    content = {'plans': [study._plan(NUMBER, [1.0], form, judge, 0, 'tiny') for judge in range(4)], 'id': form}
    for judge in range(4):
      lines = answers_of(content, judge, fooled_at(rate), np.random.default_rng(0))
      (tmp_path / f'{form}{judge}.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  lines = study.read_answers([epath.Path(tmp_path)])
  assert [(row.form, row.share) for row in study.analyse(lines).fooled] == [('choice', 0.0), ('single', 1.0)]
  assert len({line['judge'] for line in lines}) == 8 and len({line['image'] for line in lines}) == 2 * NUMBER


def test_the_files_of_an_installed_package_are_copied(tmp_path, monkeypatch):
  page = tmp_path / 'study_page'
  shutil.copytree(study._PAGE, page, ignore=shutil.ignore_patterns('__pycache__'))
  compileall.compile_dir(page, quiet=1)  # as pip does
  assert (page / '__pycache__').exists()
  monkeypatch.setattr(study, '_PAGE', page)
  images = random_images(SPEC, 12)
  study.write(epath.Path(tmp_path / 'out'), images, {1.0: images}, SPEC, 'x')
  assert {'index.html', 'serve.py', 'study.js', 'study.json'} < {path.name for path in (tmp_path / 'out').iterdir()}


@pytest.fixture
def served(made):
  folder, content, _, _ = made
  server = subprocess.Popen([sys.executable, folder / 'serve.py', '--port=0'], stdout=subprocess.PIPE, text=True)
  yield folder, content, server.stdout.readline().split()[4]
  server.terminate()
  server.wait()


def call(address, content=None):
  data = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
  with urllib.request.urlopen(urllib.request.Request(address, data=data), timeout=30) as answer:
    return answer.read()


def test_the_server_numbers_judges_and_keeps_their_answers(served):
  folder, content, address = served
  assert b'study.js' in call(address) and json.loads(call(f'{address}study.json')) == content
  first, second = (json.loads(call(f'{address}judge', b''))['judge'] for _ in range(2))
  assert second == first + 1
  lines = answers_of(content, second, fooled_at(0.3), np.random.default_rng(0))
  for line in lines:
    assert json.loads(call(f'{address}record', line)) == {'recorded': True}
  kept = [json.loads(line) for line in (folder / 'answers' / f'{second}.jsonl').read_text().splitlines()]
  assert kept == lines
  for wrong in (b'nonsense', b'[]', b'{"judge": "../../etc/passwd"}', b'{"judge": 1, "x": "' + b'y' * 20_000 + b'"}'):
    with pytest.raises(urllib.error.HTTPError, match='400'):
      call(f'{address}record', wrong)
  file = f'{second}.jsonl'
  for secret in (f'answers/{file}', f'%61nswers/{file}', f'images/../answers/{file}', 'answers/', 'answers', 'serve.py',
                 'images/'):
    with pytest.raises(urllib.error.HTTPError, match='404'):
      call(f'{address}{secret}')
  assert call(f'{address}images/mask.png') == (folder / 'images' / 'mask.png').read_bytes()


def test_the_answers_are_shown_beside_the_papers(tmp_path, made, capsys):
  _, content, _, _ = made
  lines = answers_of(content, 0, fooled_at(0.3), np.random.default_rng(0))
  (tmp_path / '0.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  tasks.analyse_study([str(tmp_path)])
  out = capsys.readouterr().out
  assert '| 1D, categorical, published | choice | 0.8 | 35.94 +- 3.0 %' in out
  assert f'| tiny | {content["form"]} | 0.9 |' in out
