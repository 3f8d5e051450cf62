"""README and docs/: every command works as it is written, every number is in results/, every link leads somewhere.

Commands train in the small form of their configurations, for few steps.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / 'benchmarks'))

import comparison

from image_transformer import config

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
# A page may need what another trains, so those that train come first.
PAGES.sort(key=lambda page: page.stem not in ('README', 'training', 'using'))


def commands():
  """The commands in the code blocks of all pages, in order, without comments."""
  lines = [line for page in PAGES for line in
           re.findall(r'^ {4,6}((?:python main\.py|launch/|make demo).*)$', page.read_text(), re.MULTILINE)]
  return [re.sub(r'\s+#.*', '', line) for line in lines]


def page(name):
  return (ROOT / 'docs' / f'{name}.md').read_text()


def flat(text):
  """Without line breaks."""
  return ' '.join(text.split())


def small(command):
  """The same command, on the small form of a configuration and on this Python."""
  named = re.search(r'configs/(?!digits)(\w+)\.py(?!\S*:)', command)
  if named and 'init_from' not in command:  # in the workdir that the command has as it is written
    workdir = '' if '--workdir' in command else f' --workdir=runs/{named[1]}'
    command = command.replace(named[0], f'{named[0]}:smoke') + workdir
  command = command.replace(':gpu_hour', ':smoke')
  command = re.sub(r'folder\.py:(texts|videos)', r'\g<0> --config.train.steps=100', command)
  command = re.sub(r'(?<=--config\.train\.steps=)\d+', '100', command)
  if 'configs/' in command and not re.search(r'--mode|--dry_run|train\.steps', command):
    command += ' --config.train.steps=100'
  tables = 'launch/paper_tables.sh'
  command = re.sub(rf'^{tables}( --smoke)?$', f'{tables} --smoke --row=cifar10_1d.py', command)
  return re.sub(r'^python ', f'{sys.executable} ', command)


def results(*path):
  return json.loads(ROOT.joinpath('results', *path).read_text())


def test_measured_runs_are_in_results():
  rows = re.findall(r'^\| `configs/(\w+)\.py(?::([\w,]+))?`[^|]*\| ([\d.]+) \+- ([\d.]+) \| (.*) \|$',
                    page('tables'), re.MULTILINE)
  assert len(rows) >= 10
  for name, variant, bits_per_dim, error, rest in rows:
    run = results('_'.join([name, *filter(None, variant.split(','))]), 'results.json')
    assert f'{run["bits_per_dim"]:.3f}' == bits_per_dim and f'{run["standard_error"]:.3f}' == error, name
    counts = run['num_images'], run['num_train_images'], run['step'], round(run['training_seconds'])
    assert ' | '.join(f'{count:,}' for count in counts) == rest, name


@pytest.mark.parametrize('minutes, begin', [(10, 'Ten minutes on one core'), (60, 'An hour')])
def test_the_race_is_in_results(minutes, begin):
  text = re.search(rf'^{begin}.*?\n\n', page('training'), re.MULTILINE | re.DOTALL)[0]
  runs = [results('race', path.name) for path in sorted((ROOT / 'results' / 'race').glob(f'*_{minutes}_seed_*.json'))]
  assert {run['num_cpus'] for run in runs} == {1} and len(runs) >= 3
  assert sorted(re.findall(r'\d\.\d{3}', text)) == sorted(f'{run["bits_per_dim"]:.3f}' for run in runs)


def test_the_size_of_a_compressed_file_is_in_results():
  codec = results('codec', 'cifar10.json')
  text = flat(page('using'))
  assert (f'{codec["file_bits_per_dim"]:.3f} bits/dim for {codec["num_images"]:,} images at '
          f'{codec["bits_per_dim"]:.3f}') in text
  assert set(codec['identical'].values()) == {codec['num_images']} and codec['num_cpus'] == 2
  drawing, there, back = (codec['seconds_per_image'][name] for name in ('sample', 'compress', 'decompress'))
  assert (f'compressing takes {there:.3f} s for each of these images and decompressing {back:.3f} s, '
          f'{back / drawing:.1f} times as long as drawing one') in text


def test_the_run_of_cut_photos_is_in_results():
  run = results('photos', 'results.json')
  assert (f'What {run["num_images"] + run["num_train_images"]} squares cut from nine photos give after {run["step"]:,} '
          f'steps, {run["training_seconds"] / 60:.0f} minutes on a core') in flat(page('using'))


def test_rungs_are_in_results():
  rungs = {1: 'digits', 2: 'cifar10_fast_smoke', 3: 'cifar10_fast'}
  rows = re.findall(r'^\| (\d) \| 2 CPU cores \| .* \| ([\d.]+) \| ([\d,]+), ([\d,]+) ',
                    page('training'), re.MULTILINE)
  assert [int(rung) for rung, *_ in rows] == list(rungs)
  for rung, *numbers in rows:
    run = results(rungs[int(rung)], 'results.json')
    assert numbers == [f'{run["bits_per_dim"]:.3f}', f'{run["num_images"]:,}', f'{run["num_train_images"]:,}'], rung


def test_the_longest_run_is_in_results():
  run = results('cifar10_small_15000', 'results.json')
  steps, minutes, bits, error = re.search(
      r'schedule\)\safter\s([\d,]+)\ssteps.*?, (\d+)\sminutes.*?needs\s([\d.]+)\s\+-\s([\d.]+)',
      page('training'), re.DOTALL).groups()
  assert (steps, minutes, bits, error) == (
      f'{run["step"]:,}', f'{run["training_seconds"] / 60:.0f}', f'{run["bits_per_dim"]:.3f}',
      f'{run["standard_error"]:.3f}')


def test_coders_are_in_results():
  rows = results('coders.json')['rows']
  best = {name: [min(row[which] for row in rows if row['coder'].startswith(name))
                 for which in ('bits/dim', 'bits/dim in one sheet')] for name in ('PNG', 'WebP', 'JPEG XL')}
  found = re.findall(r'^\| (PNG|WebP|JPEG XL) \| ([\d.]+) \| ([\d.]+) \|$', page('training'), re.MULTILINE)
  assert {name: numbers for name, *numbers in found} == {
      name: [f'{value:.2f}' for value in values] for name, values in best.items()}


@pytest.mark.parametrize('experiment, folder', [('paper', 'comparison'), ('blocks', 'blocks')])
def test_the_comparisons_are_in_results(experiment, folder):
  table = comparison.table(comparison.EXPERIMENTS[experiment], ROOT / 'results' / folder)
  assert table in page('tables')
  assert len(re.findall(r'^\| block \d+ \| [\d.]+ \+- [\d.]+ \| [\d.]+, [\d.]+', table, re.MULTILINE)) == 4


def test_bits_by_compute_are_in_results():
  found = re.findall(r'^\| (digits|cifar10), (\S+) FLOPs \| (.*) \|$', page('tables'), re.MULTILINE)
  expected = []
  for dataset in ('digits', 'cifar10'):
    rows = results('flops', f'{dataset}.json')['rows']
    assert all(row['FLOPs'] == pytest.approx(row['budget'], rel=0.02) for row in rows)
    for budget in sorted({row['budget'] for row in rows}):
      cells = [f'{row["bits/dim"]:.3f} +- {row["standard error"]:.3f}, {row["steps"]:,}' for row in rows
               if row['budget'] == budget]
      expected.append((dataset, f'{budget:.2g}'.replace('e+', 'e'), ' | '.join(cells)))
  assert found == expected and len(found) == 6 and all(row[2].count('|') == 2 for row in found)


def test_no_comparison_is_reported_without_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['comparison.py', 'report', f'--out={tmp_path}'])
  with pytest.raises(SystemExit, match='2'):
    comparison.main()
  assert f'{tmp_path} holds no finished runs of this experiment; train them first' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_names_that_stand_for_the_paper_are_there():
  rows = re.findall(r'^\|[^|]+\| ([^|]*`[\w/.]+\.py`[^|]*) \| ([^|]*) \|$', page('paper'),
                    re.MULTILINE)
  assert len(rows) > 8
  for files, names in rows:
    code = ''.join((ROOT / 'image_transformer' / file).read_text() for file in re.findall('`(.*?)`', files))
    for name in re.findall('`(.*?)`', names):
      assert re.search(rf'^ *(class|def) {name}\b', code, re.MULTILINE), name


def test_super_resolution_is_in_results():
  rows = re.findall(r'^\| ([12])D, DMOL, 2 layers \| (.*) \|$', page('tables'), re.MULTILINE)
  assert len(rows) == 2
  for dimensions, rest in rows:
    run, other = (results(f'cifar10_{name}_6000', 'results.json')
                  for name in (f'superres_{dimensions}d', f'{dimensions}d_dmol_2_layers'))
    measured = results(f'cifar10_superres_{dimensions}d_6000', 'superres.json')['temperature 1']
    assert rest == ' | '.join([
        *(f'{each["bits_per_dim"]:.3f} +- {each["standard_error"]:.3f}' for each in (run, other)),
        *(f'{measured[name]["mean"]:.4f}' for name in ('consistency', 'mismatch'))])
  run = results('cifar10_fast_superres', 'results.json')
  bits, error, minutes = run['bits_per_dim'], run['standard_error'], run['training_seconds'] / 60
  assert (f'By the fast recipe (`cifar10_fast.py:superres`), {bits:.3f} +- {error:.3f} in {minutes:.0f} minutes' in
          page('tables'))


def test_measured_speed_is_in_results():
  """What is bold there is measured: a value in the log of a benchmark, or a share in percent."""

  def numbers(value):
    if isinstance(value, dict):
      value = list(value.values())
    if isinstance(value, list):
      return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, (int, float)) else []

  measured = re.findall(r'\*\*(\d[\d.,]*)( %)?\*\*', page('speed'))
  assert len(measured) > 10
  for text, percent in measured:
    decimals = len(text.partition('.')[2])
    logs = [results('bench', path.name) for path in (ROOT / 'results' / 'bench').glob('*.json')]
    values = [number * (100 if percent else 1) for log in logs for number in numbers(log)]
    assert any(f'{value:,.{decimals}f}' == text for value in values), text


def test_memory_of_compiled_steps_is_in_results():
  rows = {(row['model'], row['variant']): row for row in results('bench', 'compiled_h200.json')['rows']}
  variants = 'einsum', 'fused', 'fused, remat'
  shown = re.findall(r'^\| `(\w+)\.py`, (\d+) images \| (.*\|.*\|.*) \|$', page('speed'), re.MULTILINE)
  assert {name for name, *_ in shown} == {name for name, _ in rows}
  for name, batch_size, cells in shown:
    each = [rows[name, variant] for variant in variants]
    assert {row['batch_size'] for row in each} == {int(batch_size)}
    assert cells.split(' | ') == [*(f'{row["temporary_GiB"]:.1f}' for row in each),
                                  *(f'{row["moved_GB"]:.0f}' for row in each[:2])], name
  compiled = results('bench', 'compiled_v5e.json')['rows']
  assert len(compiled) == 6
  for plain, remat in zip(compiled[::2], compiled[1::2]):
    assert (f'| `{plain["model"]}.py`, {plain["batch_size"]} images | {plain["temporary_GiB"]:.1f} | '
            f'{remat["temporary_GiB"]:.1f} |') in page('speed')
  before = results('bench', 'h200_before.json')['rows']
  step = next(row for row in before if row.get('config') == 'cifar10_1d_dmol')
  rate = next(row['GBps'] for row in before if row['what'] == 'bandwidth')
  assert f'moves {rate / 1000:.2f} TB/s' in flat(page('speed'))
  assert f'took {1000 * step["seconds"]:.1f} ms' in flat(page('speed'))
  moved = rows['cifar10_1d_dmol', 'einsum']['moved_GB']
  assert f'to move {moved:.0f} GB alone takes {1000 * moved / rate:.0f} ms' in flat(page('speed'))


def test_texts_and_videos_are_in_results():
  rows = [row for run in ('scenes', 'scenes_more') for row in results(run, 'texts.json')['rows']]
  text = page('text_and_video')
  shown = {'by the model, given its caption': 'bits, own text', 'given none': 'bits, no text',
           "given another image's": "bits, another's text",
           'bits of an image, exact entropy given its caption': 'exact entropy, bits',
           'its caption told from one with a wrong word': 'told from one wrong word',
           '... from one with the colours of two shapes exchanged': 'told from exchanged colours',
           '... from one with a relation turned': 'told from a turned relation', '... from 99 others': 'found among'}
  for name, key in shown.items():
    values = [f'{row[key]["mean"]:.1f} +- {row[key]["standard_error"]:.1f}' if 'mean' in row[key] else
              f'{round(row[key]["share"] * row[key]["num_images"])} of {row[key]["num_images"]}' for row in rows]
    assert f'| {name} | {" | ".join(values)} |' in text, name
  for size, name in (8, 'emoji_8'), (16, 'emoji_16'), (32, 'emoji'):
    emoji, run = results(name, 'texts.json')['rows'][0], results(name, 'results.json')
    values = [f'{emoji[key]["mean"]:,.1f}' for key in ('bits, own text', "bits, another's text", 'bits, no text')]
    found, seconds = emoji['found among'], run['training_seconds']
    assert found['texts'] == found['num_images'] == emoji['num_images'] == 100
    if size < 32:  # trained twice
      seconds += results(f'{name}_first', 'results.json')['training_seconds']
    assert (f'| {size}x{size} | {seconds / 60:.0f} | {" | ".join(values)} | {round(found["share"] * 100)} |') in text
  codes = {row['code']: row for row in results('moving_digits', 'videos.json')['rows']}
  codes['more'] = results('moving_digits_more', 'videos.json')['rows'][1]
  shown = {'exact': 'exact', 'model after 61 minutes': 'model', 'trained on for 76 minutes, below': 'more',
           'a model that sees each frame by itself': 'each frame by itself',
           'each pixel coded given the frame before': 'pixels given the frame before'}
  for name, code in shown.items():
    row = codes[code]
    assert (f'| {name} | {row["bits per frame"]:.2f} +- {row["standard error"]:.2f} | {row["times the exact"]:.1f} | '
            f'{row["where nothing turns"]:.2f} | {row["where it turns"]:.2f} |') in text
  alone = results('moving_digits_per_frame', 'results.json')
  assert f'took {alone["step"]:,} steps and {alone["training_seconds"] / 60:.0f} minutes' in flat(text)
  seconds = [results(f'moving_digits_{name}', 'results.json')['training_seconds'] for name in ('frames', 'more')]
  assert f'trained on for {sum(seconds) / 60:.0f} minutes' in text
  for name in ('scenes', 'moving_digits'):
    minutes = results(name, 'results.json')['training_seconds'] / 60
    assert f'[`results/{name}`](../results/{name}), {minutes:.0f} minutes' in flat(text)


def test_the_exposures_of_the_study_are_in_results():
  rows = [row for form in ('choice', 'single') for row in results(f'study_{form}.json')['rows']]
  assert [row['lines'] for row in rows] == [24, 24, 24, 6] * 2  # the last judge leaves
  most = max(max(row['most'], -row['least']) for row in rows)
  assert f'at most {most:.1f} ms longer or shorter than planned' in flat(page('study'))


def test_links_lead_somewhere():
  for file in [*PAGES, ROOT / 'CONTRIBUTING.md', *ROOT.glob('*/README.md'), *ROOT.glob('results/*.md')]:
    for link, _, heading in re.findall(r'\]\((?!https?:)([^)#]*)(#([^)]+))?', file.read_text()):
      target = file.parent / link if link else file
      assert target.exists(), (file.name, link)
      assert not heading or heading in anchors(target), (file.name, link, heading)


def anchors(file):
  """Of a page's headings, as GitHub makes them."""
  titles = re.findall(r'^#+ (.*)$', file.read_text(), re.MULTILINE)
  return [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles]


def test_pages_have_tables_of_contents():
  for file in (ROOT / 'docs').glob('*.md'):
    sections = re.findall(r'^## (.*)$', file.read_text(), re.MULTILINE)
    assert re.findall(r'^\* \[(.*)\]\(#.*\)$', file.read_text(), re.MULTILINE) == sections, file.name


def test_generated_pages_are_up_to_date():
  sys.path.insert(0, str(ROOT / 'docs'))
  import api
  import settings
  assert page('api') == api.page() and page('settings') == settings.page()
  assert set(re.findall(r'^\| `(\S+)` ', page('settings'), re.MULTILINE)) == set(config.fields())


def test_the_readme_is_short_and_its_numbers_are_in_results():
  text = (ROOT / 'README.md').read_text()
  assert text.count('\n') <= 160
  rows = re.findall(r'^\| \[.*\| (\d\.\d{3}) \+- (\d\.\d{3}) bits/dim \|$', text, re.MULTILINE)
  runs = ['digits', 'cifar10_fast_smoke', 'cifar10_fast', 'cifar10_fast_superres']
  assert rows == [tuple(f'{results(run, "results.json")[name]:.3f}' for name in ('bits_per_dim', 'standard_error'))
                  for run in runs]
  run, best = results('cifar10_fast', 'results.json'), results('race', 'recipe_60_seed_0.json')
  assert (f'{best["bits_per_dim"]:.3f} bits/dim on {best["num_images"]:,} test images, after '
          f'{best["seconds"] / 60:.0f} minutes on a CPU and {run["num_train_images"]:,} training images') in flat(text)
  minutes = f'{run["training_seconds"] / 60:.0f} minutes'
  assert f'| [CIFAR-10, {minutes}](docs/training.md)' in text and minutes in page('training')
  run = results('digits', 'results.json')
  assert f'on all {run["num_images"]} test digits (about {run["bits_per_dim"]:.2f} bits/dim)' in flat(text)
  codec, coders = results('codec', 'cifar10.json'), results('coders.json')['rows']
  together = {name: min(row['bits/dim in one sheet'] for row in coders if row['coder'].startswith(name))
              for name in ('PNG', 'WebP', 'JPEG XL')}
  assert (f'{codec["file_bits_per_dim"]:.3f} bits/dim; all images in one file: ' +
          ', '.join(f'{name} {value:.2f}' for name, value in together.items())) in text
  assert f'{codec["file_bits_per_dim"] / codec["bits_per_dim"] - 1:.1%}'.replace('%', ' %') in text
  more = [run['bytes'] / run['num_images'] * (1 - run['bits_per_dim'] / run['file_bits_per_dim'])
          for run in (codec, results('codec', 'digits.json'))]
  assert f'takes {min(more):.0f} to {max(more):.0f} bytes more than its likelihood says' in flat(text)
  assert f'[{times_faster()} times faster](docs/speed.md)' in text
  texts, codes = results('scenes_more', 'texts.json')['rows'][0], results('moving_digits_more', 'videos.json')
  needed, own = (texts[name]['mean'] for name in ('exact entropy, bits', 'bits, own text'))
  assert f'| {texts["num_images"]} drawings | {own:.1f} bits a drawing; at least {needed:.1f} are needed |' in text
  exact, model = (row['bits per frame'] for row in codes['rows'][:2])
  number = codes['num_clips']
  assert f'| {number} clips | {model:.2f} bits a frame, from the third; at least {exact:.2f} are needed |' in text


def times_faster():
  row = r'^\| times faster than running the whole image again .*? \| \*\*(\d+)\*\*'
  return int(re.search(row, page('speed'), re.MULTILINE)[1])


@pytest.fixture(scope='module')
def here(tmp_path_factory):
  """A folder that looks like a checkout, but where `runs` is empty, with a folder of photos."""
  here = tmp_path_factory.mktemp('checkout')
  for path in ROOT.iterdir():
    if path.name not in ('runs', 'launch'):
      (here / path.name).symlink_to(path)
  shutil.copytree(ROOT / 'launch', here / 'launch')  # scripts go to the folder that they are in
  (here / 'photos').mkdir()
  random = np.random.default_rng(0)
  for i, size in enumerate([(40, 60), (100, 90), (64, 64), (33, 200), (48, 48), (70, 40)]):
    Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8)).save(here / 'photos' / f'{i}.png')
  shutil.copytree(here / 'photos', here / 'captioned')
  for i in range(6):
    (here / 'captioned' / f'{i}.txt').write_text(f'noise number {i}')
    (here / 'clips' / str(i)).mkdir(parents=True)
    for frame in range(8):
      noise = random.integers(256, size=(20, 20, 3), dtype=np.uint8)
      Image.fromarray(noise).save(here / 'clips' / str(i) / f'{frame}.png')
  return here


def test_the_readme_has_commands():
  assert len(commands()) > 10 and all(mode in ' '.join(commands()) for mode in ('eval', 'sample', 'superres', 'table'))


@pytest.mark.long
@pytest.mark.parametrize('command', dict.fromkeys(map(small, commands())))
def test_command(here, command):
  done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
