"""The command in unusual surroundings: it works as ever, or says in one line why it cannot."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = ['--config=configs/digits.py', '--config.model.num_layers=1', '--config.model.hidden_size=16',
        '--config.model.num_heads=2', '--config.model.ffn_size=16', '--config.train.steps=3',
        '--config.train.batch_size=8', '--config.eval.num_images=20', '--config.sample.num_images=10',
        '--config.sample.batch_size=10']


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def command(data_dir):
  """Starts the command in a shell that puts something before and behind it; with other environment variables."""

  def start(workdir, *arguments, before='', behind='', **env):
    words = [sys.executable, 'main.py', *(arguments or TINY), f'--config.data_dir={data_dir}'][
        :None if not arguments else -1]
    env = {'PROGRESS_SECONDS': '0', 'JAX_PLATFORMS': 'cpu',
           **{name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}, **env}
    words = ['bash', '-c', f'{before} "$@" {behind}', 'bash', *words, b'--workdir=' + os.fsencode(workdir)]
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  return start


def finish(process):
  out, err = process.communicate(timeout=300)
  return process.returncode, out.decode(errors='replace'), err.decode(errors='replace')


def is_done(workdir):
  return json.loads((pathlib.Path(workdir) / 'results.json').read_bytes())['step'] == 3


NO_LOCKS = 'import fcntl\ndef flock(*_):\n  raise OSError(38, "Function not implemented")\nfcntl.flock = flock\n'
NO_HOME = 'import pwd\ndef missing(*_):\n  raise KeyError("no such user")\npwd.getpwuid = missing\n'
CLOCK = ('import itertools, time\nhonest, calls = time.time, itertools.count()\n'
         'time.time = lambda: honest() - 60 * next(calls)\n')


def site(folder, text):
  """A folder for PYTHONPATH whose text every Python runs first."""
  folder.mkdir()
  (folder / 'sitecustomize.py').write_text(text)
  return str(folder)


def test_all_at_once(command, tmp_path):
  """What the tests below try one at a time."""
  name = os.fsencode(tmp_path) + b'/a [b]*\\caf\xe9'
  os.symlink(name, tmp_path / 'link')
  code, _, err = finish(command(
      tmp_path / 'link', before='env -u HOME -u JAX_COMPILATION_CACHE_DIR', behind='>/dev/full 2>"$TMPDIR/log"',
      PYTHONPATH=site(tmp_path / 'site', NO_LOCKS + NO_HOME + CLOCK), TMPDIR=str(tmp_path), LC_ALL='C', PYTHONUTF8='0',
      PYTHONCOERCECLOCALE='0', PYTHONWARNINGS='error', PYTHONSAFEPATH='1', JAX_ENABLE_X64='1',
      JAX_NUMPY_DTYPE_PROMOTION='strict', JAX_TRANSFER_GUARD='disallow'))
  assert code == 0 and is_done(tmp_path / 'link'), err
  assert 'cannot be locked' in (tmp_path / 'log').read_text()
  lines = [json.loads(line) for line in (tmp_path / 'link' / 'metrics.jsonl').read_text().splitlines()]
  assert all(line.get('seconds', 1) > 0 and line.get('images_per_second', 1) > 0 for line in lines)
  assert not (ROOT / '~').exists()
  assert {path.name for path in tmp_path.iterdir()} == {'link', os.fsdecode(name[-11:]), 'site', 'log'}
  (tmp_path / 'link' / 'results.json').unlink()
  code, _, err = finish(command(tmp_path / 'link', '--mode=eval'))
  assert code == 0 and is_done(tmp_path / 'link') and 'damaged' not in err, err


@pytest.mark.long
@pytest.mark.parametrize('env', [
    {'JAX_ENABLE_X64': '1'}, {'JAX_NUMPY_DTYPE_PROMOTION': 'strict', 'JAX_TRANSFER_GUARD': 'disallow'},
    {'PYTHONWARNINGS': 'error', 'PYTHONSAFEPATH': '1'}], ids=lambda env: '_'.join(env))
def test_settings_of_jax_and_python_change_nothing(command, tmp_path, env):
  code, _, err = finish(command(tmp_path / 'run', **env))
  assert code == 0, err
  results = (tmp_path / 'run' / 'results.json').read_text()
  (tmp_path / 'run' / 'results.json').unlink()
  code, _, err = finish(command(tmp_path / 'run', '--mode=eval', JAX_ENABLE_X64='0'))  # another process, other settings
  assert code == 0 and 'damaged' not in err, err
  assert json.loads((tmp_path / 'run' / 'results.json').read_text())['bits_per_dim'] == pytest.approx(
      json.loads(results)['bits_per_dim'], abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize('behind', ['2>&1 | head -1', '>&- 2>&-', '>/dev/full 2>/dev/full'])
def test_output_that_nobody_can_read_ends_nothing(command, tmp_path, behind):
  code, _, err = finish(command(tmp_path / 'run', behind=behind))
  assert code == 0, err
  assert is_done(tmp_path / 'run')


@pytest.mark.long
@pytest.mark.parametrize('name', ['a [b]*', b'caf\xe9', 'back\\slash {x}?'], ids=str)
def test_any_name_of_a_workdir_is_good(command, tmp_path, name):
  workdir = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
  code, _, err = finish(command(workdir, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', TMPDIR=str(tmp_path)))
  assert code == 0, err
  code, out, err = finish(command(workdir, '--mode=eval', TMPDIR=str(tmp_path)))
  assert code == 0 and 'bits/dim on 20 images' in out, err
  assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [os.fsencode(name)], 'nothing else is left'


@pytest.mark.long
def test_a_file_system_without_locks(command, tmp_path):
  code, _, err = finish(command(tmp_path / 'run', PYTHONPATH=site(tmp_path / 'site', NO_LOCKS)))
  assert code == 0 and 'Warning' in err and 'cannot be locked' in err


@pytest.mark.long
def test_a_workdir_that_is_a_link_or_holds_only_logs(command, tmp_path):
  os.symlink(tmp_path / 'not' / 'there', tmp_path / 'link')
  (tmp_path / 'logs').mkdir()
  for name in ('.nfs0001', 'slurm-7.out', 'train.log'):
    (tmp_path / 'logs' / name).touch()
  for name in ('link', 'logs'):
    code, _, err = finish(command(tmp_path / name))
    assert code == 0 and is_done(tmp_path / name), err
  assert (tmp_path / 'not' / 'there' / 'config.json').exists()


@pytest.mark.parametrize('optimize', ['', '1'])  # python -O, without JAX's assertions
def test_a_back_end_that_is_not_there(command, tmp_path, optimize):
  code, out, err = finish(command(tmp_path / 'run', JAX_PLATFORMS='cuda', PYTHONOPTIMIZE=optimize))
  assert (code, out, err.count('\n')) == (2, '', 1) and 'JAX_PLATFORMS=cuda' in err
  assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_no_home_folder(command, tmp_path):
  """As in a container whose user is not in /etc/passwd."""
  code, _, err = finish(command(tmp_path / 'run', before='env -u HOME -u JAX_COMPILATION_CACHE_DIR',
                                PYTHONPATH=site(tmp_path / 'site', NO_HOME)))
  assert code == 0 and is_done(tmp_path / 'run'), err
  assert not (ROOT / '~').exists()


@pytest.mark.parametrize('ignored', [False, pytest.param(True, marks=pytest.mark.long)])
def test_hanging_up(command, tmp_path, ignored):
  """A lost terminal stops a run as SIGTERM does, unless it was started by nohup."""
  if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not ignored:
    pytest.skip('the tests run under nohup, which every child inherits')
  process = command(tmp_path / 'run', *TINY[:-4], '--config.train.steps=4000', f'--config.data_dir={tmp_path}',
                    before='trap "" HUP; exec' if ignored else 'exec')
  while b'train: step' not in (line := process.stderr.readline()):
    assert line, 'it ended'
  process.send_signal(signal.SIGHUP)
  time.sleep(1)
  if ignored:
    assert process.poll() is None
    process.terminate()
  code, _, err = finish(process)
  assert code == 75 and 'which is saved' in err


@pytest.mark.long
def test_a_clock_that_is_set_back(command, tmp_path):
  """Durations come from a clock that only goes forward."""
  code, _, err = finish(command(tmp_path / 'run', PYTHONPATH=site(tmp_path / 'site', CLOCK)))
  assert code == 0, err
  for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines():
    line = json.loads(line)
    assert line.get('seconds', 1) > 0 and line.get('images_per_second', 1) > 0


def test_a_dry_run_says_what_training_would_do_and_does_nothing(command, tmp_path):
  code, out, err = finish(command(tmp_path / 'run', *TINY, '--dry_run', f'--config.data_dir={tmp_path / "data"}'))
  assert code == 0, err
  rows = dict(line.split(maxsplit=1) for line in out.splitlines())
  assert list(rows) == ['model', 'data', 'devices', 'training', 'workdir', 'step']
  assert '1,500 images of 8 x 8 x 1' in rows['data'] and rows['training'].startswith('steps 0 to 3 of 8 images')
  assert float(rows['step'].split()[0]) > 0 and rows['step'].endswith('GiB on each device')
  assert list(tmp_path.iterdir()) == []
