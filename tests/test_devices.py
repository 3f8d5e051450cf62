"""Several devices compute what one does (invariant 4 and the data-parallel step)."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest


@functools.cache
def run(num_devices: int, accumulation: int = 1, *recipe: str) -> dict:
  root = pathlib.Path(__file__).parent.parent
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={num_devices}',
         'PYTHONPATH': os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')])}
  command = [sys.executable, root / 'tests/device_check.py', str(accumulation), *recipe]
  done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
  return json.loads(done.stdout)


@pytest.fixture(scope='module')
def one() -> dict:
  return run(1)


@pytest.mark.parametrize('num_devices, accumulation', [
    (4, 2), pytest.param(4, 1, marks=pytest.mark.long), pytest.param(1, 4, marks=pytest.mark.long)])
def test_devices_and_accumulation_do_what_one_device_does(one, num_devices, accumulation):
  many = run(num_devices, accumulation)
  assert many['devices'] == num_devices
  (gradient,), (want,) = np.array(many['gradient']), np.array(one['gradient'])
  assert np.linalg.norm(gradient - want) < 1e-5 * np.linalg.norm(want)
  moved = np.abs(np.array(one['params']) - one['begin']).max()
  assert moved > 1e-2
  np.testing.assert_allclose(many['params'], one['params'], rtol=0, atol=1e-5)
  np.testing.assert_allclose(list(many['bits_per_dim'].values()), one['bits_per_dim']['13'], rtol=0, atol=1e-6)


@pytest.mark.long
def test_the_recipe_on_several_devices_is_that_on_one():
  """Muon makes all directions of a gradient equally long, and so the rounding of the smallest."""
  one, four = run(1, 1, 'recipe'), run(4, 1, 'recipe')
  assert four['devices'] == 4
  assert np.abs(np.array(one['params']) - one['begin']).max() > 3e-2
  np.testing.assert_allclose(four['params'], one['params'], rtol=0, atol=1e-3)


def test_bits_per_dim_does_not_depend_on_the_batch_size(one):
  np.testing.assert_allclose(list(one['bits_per_dim'].values()), one['bits_per_dim']['13'], rtol=0, atol=1e-6)


def test_samples_belong_to_the_image_and_not_to_the_device(one):
  assert np.mean(np.array(run(4, 2)['images']) == one['images']) > 0.99  # rounding may flip a rare one
