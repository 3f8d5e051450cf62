"""The benchmarks run, and count the work that the paper's visibility makes; what they time is not tested."""

import json
import os
import re
import subprocess
import sys

import jax
import pytest

from helpers import leave_run, paper_visible
from image_transformer import config as config_lib
from image_transformer import data
from image_transformer.experiments import load_config
from image_transformer.model import init_params, make_model
from main import __file__ as MAIN


def measure(tmp_path, name, *arguments):
  """What a benchmark writes."""
  out = tmp_path / 'measured.json'
  subprocess.run([sys.executable, f'benchmarks/{name}.py', *arguments, f'--out={out}'], check=True,
                 cwd=os.path.dirname(MAIN))
  measured = json.loads(out.read_text())
  assert measured['command'].startswith(f'python benchmarks/{name}.py')
  assert measured['versions']['jax'] == jax.__version__
  return measured


SMALL = '--config=configs/digits.py', '--config.model.num_layers=1'


@pytest.fixture(scope='module')
def model():
  config = load_config('digits', {'model.num_layers': 1})
  return make_model(config.model, data.image_spec(config))


def visible_pairs(model):
  config, spec = model.config, model.spec
  return int(paper_visible(*spec.shape, config.query_block, config.memory_flange).sum())


def test_training(tmp_path, model):
  row, = measure(tmp_path, 'training', *SMALL, '--batch_sizes=3', '--runs=1')['rows']
  config = model.config
  num_parameters = sum(leaf.size for leaf in jax.tree.leaves(init_params(model, 0)))
  products = 2 * visible_pairs(model) * (2 * config.qkv_width)  # of queries and keys, of weights and values
  flops = 3 * (6 * num_parameters * model.layout.num_positions + 3 * config.num_layers * products)
  assert row['gigaflop'] == pytest.approx(flops / 1e9)
  assert row['of limit'] == pytest.approx(row['gigaflop'] / row['seconds'] / row['product GFLOP/s'])
  assert row['images/s'] * row['seconds'] == pytest.approx(3)


def test_bytes_moved():
  """Of a sum and a loop of products: each reads two arrays and writes one."""
  program = """
import sys
sys.path.insert(0, 'benchmarks')
from compiled import bytes_moved
import jax, jax.numpy as jnp
a = jnp.ones((250, 250))
print(bytes_moved(jax.jit(lambda a, b: a + b).lower(a, a).compile().as_text()))
print(bytes_moved(jax.jit(lambda a, b: jax.lax.fori_loop(0, 9, lambda _, x: x @ b, a)).lower(a, a).compile().as_text()))
"""
  printed = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True,
                           cwd=os.path.dirname(MAIN)).stdout
  once, loop = map(int, printed.split())
  assert once == 3 * 4 * 250**2
  assert once <= loop < 3 * once  # XLA may copy what goes into a loop


def test_sampling(tmp_path, model):
  measured = measure(tmp_path, 'sampling', *SMALL, '--batch_sizes=1,2', '--runs=1')
  config, params = model.config, init_params(model, 0)
  # Every kernel and vector of the layers, and not the tables, of which a step looks up a row.
  layers = sum(leaf.nbytes for leaf in jax.tree.leaves((params['decoder'], params['output'])))
  caches = config.num_layers * visible_pairs(model) * 2 * 4 * config.qkv_width
  for row, batch_size in zip(measured['rows'], (1, 2), strict=True):
    reading = (model.layout.num_positions * layers + batch_size * caches) / measured['bytes_per_second']['read']
    assert row['times reading'] == pytest.approx(row['seconds_per_batch'][0] / reading, rel=0.01)
    rerun = row['seconds_per_pass'][0] * model.layout.num_positions
    assert row['times rerun'] == pytest.approx(rerun / row['seconds_per_batch'][0])


@pytest.mark.long
def test_scale(tmp_path):
  sizes = ['--sizes=16,32', '--dense_sizes=16,32', '--layers=1', '--width=16']
  rows = measure(tmp_path, 'scale', *sizes, '--runs=1')['rows']
  assert [row['positions'] for row in rows] == [768, 3072, 768, 3072]
  local, dense = rows[1], rows[3]
  assert local['exponent of memory'] < 1.2 < 1.8 < dense['exponent of memory'] < 2.1


def test_pipeline(tmp_path):
  row, = measure(tmp_path, 'pipeline', '--config=configs/digits.py', '--batch_sizes=32', '--runs=1')['rows']
  assert row['images/s'] == row['all'][0] > 0


@pytest.mark.long
def test_the_codec_and_outliers(tmp_path):
  leave_run(tmp_path / 'run', config_lib.from_dict({
      'dataset': 'digits', 'data_dir': str(tmp_path / 'data'), 'eval': {'num_images': 12},
      'model': {'query_block': (16,), 'memory_flange': (16,), 'num_layers': 1, 'hidden_size': 8, 'num_heads': 1,
                'ffn_size': 8, 'class_conditional': True}}))
  where = f'--workdir={tmp_path / "run"}'
  measured = measure(tmp_path, 'codec', where, '--num_images=40', '--damaged=24', '--runs=1')
  assert set(measured['identical'].values()) == {40} and measured['of_which_conditions'] == 8 / 64
  assert sum(counts['files'] for counts in measured['damaged'].values()) == 24
  assert measured['file_bits_per_dim'] > measured['bits_per_dim']
  assert 0 <= measure(tmp_path, 'outliers', where, '--num_images=20')['classes_found'] <= 1


@pytest.mark.long
def test_flops(tmp_path):
  command = [sys.executable, 'benchmarks/flops.py', '--share=0.001', f'--data_dir={tmp_path / "data"}',
             f'--out={tmp_path}']
  for _ in range(2):  # what is there is not trained again
    subprocess.run(command, check=True, cwd=os.path.dirname(MAIN))
  rows = json.loads((tmp_path / 'digits.json').read_text())['rows']
  assert len(rows) == 9 and len({row['parameters'] for row in rows}) == 3
  assert all(row['FLOPs'] == pytest.approx(row['budget'], rel=0.5) for row in rows if row['steps'] > 1)
  assert (tmp_path / 'flops.png').exists()


@pytest.mark.long
def test_generated_surroundings(tmp_path):
  outcomes = measure(tmp_path, 'surroundings', '--count=3')['outcomes']
  assert sum(outcomes.values()) == 3 and 'wrong' not in outcomes


@pytest.mark.long
def test_attention(tmp_path):
  rows = measure(tmp_path, 'attention', '--runs=1')['rows']
  for row in rows:
    if row['kind'] == 'einsum':
      assert row['visible_pairs'] == paper_visible(32, 32, 3, row['query_block'], row['flange']).sum()
  assert all(row['error'] < 1e-5 and row['gradient error'] < 1e-5 for row in rows)
  assert all(row['memory of dense'] < 0.25 for row in rows if row['kind'] == 'einsum' and 'memory of dense' in row)


@pytest.mark.long
def test_step_profile(tmp_path):
  measured = measure(tmp_path, 'step_profile', '--config=configs/digits.py')
  rows = {row['operations']: row for row in measured['rows']}
  assert {'products with parameters', 'attention: products', 'layer norms'} <= rows.keys()
  assert sum(row['seconds'] for row in rows.values()) == pytest.approx(measured['seconds'])


@pytest.mark.long
def test_startup(tmp_path):
  rows = measure(tmp_path, 'startup', '--config=configs/digits.py', '--runs=1')['rows']
  assert [row['compilation cache'] for row in rows] == ['cold', 'warm']


@pytest.mark.long
def test_the_script_for_accelerators_in_its_small_form(tmp_path):
  for _ in range(2):  # what is there is not measured again
    done = subprocess.run(['benchmarks/device.sh', '--small', f'--out={tmp_path}'], check=True, capture_output=True,
                          text=True, cwd=os.path.dirname(MAIN))
  assert 'exit code' not in done.stdout
  table = (tmp_path / 'table.md').read_text()
  for part, figures in ('attention', 'of gradients'), ('training_digits', 'GiB'), ('sampling_digits', 's per image'):
    assert re.search(rf'^\| {part} \|.*{figures}', table, re.MULTILINE), table
  assert subprocess.run(['benchmarks/device.sh', '--nonsense'], cwd=os.path.dirname(MAIN)).returncode == 2
