"""A workdir may be in a bucket: what is written there goes through one path library, and survives."""

import os
import pathlib
import shutil
import subprocess
import sys

from etils import epath
import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from image_transformer import config as config_lib
from image_transformer import metrics, runs
from image_transformer.errors import InputError
from image_transformer.paths import as_path
from image_transformer.workdir import survive, write_whole


class Bucket(MemoryFileSystem):
  """Google Cloud Storage in memory."""

  protocol = 'gcs', 'gs'
  store, pseudo_dirs = {}, ['']

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + str(path).split('://')[-1].strip('/')


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  for name in ('gs', 'gcs'):
    fsspec.register_implementation(name, Bucket, clobber=True)
  monkeypatch.chdir(tmp_path)  # where a folder named gs: would appear
  yield epath.Path('gs://bucket/runs/digits')
  assert not os.listdir()


def test_the_files_of_a_run_in_a_bucket(bucket, capsys):
  config = config_lib.from_dict({'dataset': 'digits'})
  for step in (1, 2):
    with runs.own(bucket, config):
      log = metrics.MetricsLog(bucket, keep=lambda line: line['step'] < 9)
      log.write(step, 'train', bits_per_dim=1.5)
      log.write(9, 'train', bits_per_dim=0.5)
      log.close()
  assert runs.read_config(bucket) == config
  assert [line['step'] for line in metrics.read_metrics(bucket)] == [1, 2, 9]
  names = sorted(path.name for path in bucket.iterdir())
  assert names[0] == 'config.json' and names[1].startswith('events.out') and names[-1] == 'metrics.jsonl'
  assert b'train/bits_per_dim' in (bucket / names[1]).read_bytes()
  with pytest.raises(InputError, match='holds no run'):
    runs.check_workdir(bucket.parent)
  assert not capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(tmp_path, capsys):
  path = epath.Path(tmp_path / 'folder' / 'file')
  write_whole(path, 'old')
  part = tmp_path / 'folder' / f'file.{os.getpid()}.part'
  os.mkdir(part)
  with survive('Writing a file'):
    write_whole(path, 'new')
  assert path.read_text() == 'old' and 'Warning: Writing a file failed (' in capsys.readouterr().err
  os.rmdir(part)
  write_whole(path, b'new')
  assert path.read_text() == 'new' and os.listdir(tmp_path / 'folder') == ['file']


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
  path = epath.Path(tmp_path / 'file')
  script = ('import sys; from etils import epath; from image_transformer.workdir import write_whole\n'
            'for _ in range(1000): write_whole(epath.Path(sys.argv[1]), "a whole file")')
  others = [subprocess.Popen([sys.executable, '-c', script, path]) for _ in range(2)]
  assert [other.wait() for other in others] == [0, 0]
  assert path.read_text() == 'a whole file' and os.listdir(tmp_path) == ['file']


def test_the_commit_is_of_this_project_only(tmp_path, monkeypatch):
  assert metrics.environment()['commit']
  site = pathlib.Path(metrics.__file__).parents[1]
  shutil.copytree(site / 'image_transformer', tmp_path / 'venv' / 'image_transformer', symlinks=True,
                  ignore=shutil.ignore_patterns('*.pyc'))
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=x', '-c', 'user.email=x@example.com']
  subprocess.run([*git, 'init', '--quiet'], check=True)
  subprocess.run([*git, 'commit', '--quiet', '--allow-empty', '--message=x'], check=True)
  monkeypatch.setattr(metrics, '__file__', str(tmp_path / 'venv' / 'image_transformer' / 'metrics.py'))
  assert metrics.environment()['commit'] is None


@pytest.mark.parametrize('mode', ['eval', 'table'])
def test_a_bucket_without_its_package_is_one_line(call, mode):
  code, printed = call(f'--mode={mode}', '--workdir=s3://bucket/run')
  last = printed.strip().splitlines()[-1]
  assert code == 2 and last.startswith('Error: --workdir is s3://bucket/run, which needs another package'), printed


def test_a_name_that_is_too_long_is_refused_before_a_folder_is_made(tmp_path):
  for folder in (tmp_path / ('x' * 300), tmp_path / 'parent' / ('日' * 100)):
    with pytest.raises((InputError, OSError), match='File name too long'):
      runs.check_workdir(epath.Path(folder))
  assert not list(tmp_path.iterdir())


def test_only_the_beginning_of_a_path_makes_it_an_address(tmp_path):
  for name in ('a://b', "日本{'://x", 'gs://x', 's3:/x'):
    folder = as_path(f'{tmp_path}/{name}')
    folder.mkdir(parents=True)
    assert os.path.isdir(f'{tmp_path}/{name}') and folder.is_dir()
  assert os.fspath(as_path('gs://bucket/runs')) == 'gs://bucket/runs'
  with pytest.raises(InputError, match='path is ftp://host/run, an address of an unknown kind'):
    as_path('ftp://host/run')
