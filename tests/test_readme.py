"""Every command of the README works as it is written; training runs in the small form of its configuration."""

import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def commands():
  """The commands in the README's code blocks, in order, without comments."""
  lines = re.findall(r'^    ((?:python main\.py|launch/|make demo).*)$', (ROOT / 'README.md').read_text(), re.MULTILINE)
  return [re.sub(r'\s+#.*', '', line) for line in lines]


def small(command):
  """The same command, on the small form of a configuration and on this Python."""
  command = re.sub(r'(configs/(?!digits)\w+\.py)(?!\S*:)', r'\1:smoke', command)
  command = re.sub(r'^launch/paper_tables\.sh$', 'launch/paper_tables.sh --smoke', command)
  return re.sub(r'^python ', f'{sys.executable} ', command)


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
  return here


def test_the_readme_has_commands():
  assert len(commands()) > 10 and all(mode in ' '.join(commands()) for mode in ('eval', 'sample', 'superres', 'table'))


@pytest.mark.long
@pytest.mark.parametrize('command', dict.fromkeys(map(small, commands())))
def test_command(here, command):
  done = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
