"""The scripts of launch/, with a main.py and cloud tools that only write down how they were called."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
# What main.py and its installation need of the project.
NEEDED = {'setup.py', 'README.md', 'main.py', 'configs', 'image_transformer'}
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / 'launch').rglob('*') if path.suffix in ('.sh', '.sbatch'))
ARGUMENTS = ['--config=configs/digits.py', '--workdir=gs://b/two words', "--input=it's", '--labels=$(id)', '--x=*;#"']

# Writes down its arguments, then does what $BEHAVIOUR says. `call` counts the calls of this process, from 1.
MAIN = '''
import json, os, signal, sys, time

def note(what):
  with open(f'{process}.jsonl', 'a') as file:
    print(json.dumps(what), file=file)

process = next((word.partition('=')[2] for word in sys.argv if word.startswith('--process_id=')), '0')
note(sys.argv[1:])
call = sum(line.startswith('[') for line in open(f'{process}.jsonl'))
exec(os.environ.get('BEHAVIOUR', ''))
'''

# In the place of every tool: writes down its name, arguments and input; srun and the machines' part also act.
TOOL = '''
import json, os, pathlib, shutil, subprocess, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
here = pathlib.Path(CHECKOUT)
text = sys.stdin.read() if name == 'kubectl' else ''
with open(here / 'tools.jsonl', 'a') as file:
  print(json.dumps([name, *words] + [text] * bool(text)), file=file)
home = here / 'home'
home.mkdir(exist_ok=True)
if name == 'srun':
  sys.exit(subprocess.run([word for word in words if not word.startswith(('--gpu', '--kill', '--cpus'))]).returncode)
if name == 'gcloud' and 'ssh' in words:
  command = next(word.partition('=')[2] for word in words if word.startswith('--command='))
  sys.exit(subprocess.run(['bash', '-c', command], cwd=home, env={**os.environ, 'HOME': str(home)}).returncode)
if name == 'gcloud' and 'scp' in words:
  *sources, target = [word for word in words[words.index('scp') + 1:] if not word.startswith('--')]
  subprocess.run(['cp', '-r', *sources, home / target.partition(':')[2]], check=True)
if name == 'python3':
  (home / '.local/bin').mkdir(parents=True, exist_ok=True)
  shutil.copy(here / 'tools/gcloud', home / '.local/bin/uv')
if words[:1] == ['venv']:
  shutil.copytree(here / '.venv', '.venv')
'''

# Notes each signal; the first ends it as it ends main.py.
WAIT_FOR_SIGNAL = '''
def stop(number, frame):
  note(signal.Signals(number).name)
  time.sleep(0.3)  # a second signal would come now
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
note('ready')
time.sleep(60)
'''


# Two rows for the paper's tables.
PAPER = '''
from types import SimpleNamespace
ROWS = [SimpleNamespace(config=name, num_checkpoints=1) for name in ('one.py', 'two_superres.py')]
'''


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def notes(folder, name):
  """What was written down there by process number `name`, or by the tools."""
  path = folder / f'{name}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


class Checkout:
  """A folder like the project's, to run scripts in."""

  def __init__(self, path):
    self.path, self.started = path, []
    self.search_path = f'{path}/tools:{os.environ["PATH"]}'
    shutil.copytree(ROOT / 'launch', path / 'launch')
    files = {'main.py': MAIN, 'configs/__init__.py': '', 'configs/paper.py': PAPER, 'image_transformer/model.py': '',
             'setup.py': '', 'README.md': ''}
    for name, text in files.items():
      (path / name).parent.mkdir(exist_ok=True)
      (path / name).write_text(text)
    executable(path / '.venv/bin/python', f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    for name in ('gcloud', 'kubectl', 'sbatch', 'srun', 'scontrol', 'python3'):
      executable(path / 'tools' / name, f'#!{sys.executable} -S\nCHECKOUT = {str(path)!r}\n{TOOL}')

  def start(self, script, *arguments, behaviour='', **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'XLA'))}
    environment = {**inherited, 'BEHAVIOUR': behaviour, 'PATH': self.search_path, **environment}
    # As from a terminal: in a process group of its own, and with Ctrl-C, which may be ignored where tests run in the
    # background, and no shell can change that for itself.
    self.started.append(subprocess.Popen(
        ['bash', self.path / 'launch' / script, *arguments], env=environment, cwd='/', start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True))
    return self.started[-1]

  def run(self, *arguments, **options):
    process = self.start(*arguments, **options)
    output, errors = process.communicate(timeout=30)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

  def notes(self, name):
    return notes(self.path, name)

  def wait_for(self, note, processes=2):
    wait_until(lambda: all(note in self.notes(i) for i in range(processes)))

  def files(self):
    return sorted(self.path.rglob('*'))


@pytest.fixture
def checkout(tmp_path):
  checkout = Checkout(tmp_path / 'check out')
  yield checkout
  for process in checkout.started:
    process.kill()


def printed_commands(output):
  return [shlex.split(line[2:]) for line in output.splitlines() if line.startswith('$ ')]


def test_shellcheck_finds_nothing():
  shellcheck = shutil.which('shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
  assert shellcheck, 'make setup installs it'
  assert len(SCRIPTS) > 5
  done = subprocess.run([shellcheck, '-x', *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


LOCAL, SLURM, TPU, GKE = 'local_processes.sh', 'slurm.sbatch', 'tpu_pod.sh', 'gke/run.sh'
GKE_OPTIONS = 'job --image=me/it:1 --processes=2 --gpus=4'.split()


@pytest.mark.parametrize('script, arguments, says', [
    (LOCAL, '', 'number'),
    (LOCAL, '0 -- --config=c', "'0'"),
    (LOCAL, 'two -- --config=c', 'two'),
    (LOCAL, '2', 'after --'),
    (LOCAL, '2 --config=c', '--config=c'),
    (LOCAL, '2 --devices=0 -- --config=c', '--devices'),
    (SLURM, '--dry-runn -- --config=c', '--dry-runn'),
    (SLURM, '--dry-run', 'after --'),
    (SLURM, '-- --config=c', 'sbatch'),
    (TPU, '', 'action'),
    (TPU, 'start pod', 'start'),
    (TPU, 'create', 'name'),
    (TPU, 'create --zone=z', '--zone=z'),
    (TPU, 'create pod --type=t', '--version'),
    (TPU, 'create pod --type=t --version=v -- --config=c', 'create'),
    (TPU, 'delete pod --zon=z', '--zon=z'),
    (TPU, 'run pod', 'after --'),
    (TPU, 'run pod --spot -- --config=c', '--spot'),
    (GKE, '', 'name'),
    (GKE, 'job --image=i --processes=2 -- --config=c', '--gpus'),
    (GKE, 'job --image=i --processes=two --gpus=1 -- --config=c', '--processes'),
    (GKE, 'job --images=i', '--images=i'),
    (GKE, ' '.join(GKE_OPTIONS), 'after --'),
])
def test_bad_arguments_are_one_line_and_nothing_is_done(checkout, script, arguments, says):
  before = checkout.files()
  done = checkout.run(script, *arguments.split())
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('Error: ') and says in done.stderr and len(done.stderr.splitlines()) == 1
  assert checkout.files() == before


def test_local_processes_get_their_numbers_and_the_arguments(checkout):
  show = 'print(os.environ["JAX_PLATFORMS"], os.environ["XLA_FLAGS"]); print("last line", end="")'
  done = checkout.run(LOCAL, '3', '--devices=2', '--', *ARGUMENTS, behaviour=show, XLA_FLAGS='--xla_old=1')
  assert (done.returncode, done.stderr) == (0, '')
  lines = ['cpu --xla_old=1 --xla_force_host_platform_device_count=2', 'last line']
  assert sorted(done.stdout.splitlines()) == sorted(f'[{i}] {line}' for i in range(3) for line in lines)
  ports = set()
  for i in range(3):
    (call,) = checkout.notes(i)
    coordinator, *rest = call
    assert rest == ['--num_processes=3', f'--process_id={i}', *ARGUMENTS]
    ports.add(coordinator)
  assert len(ports) == 1 and ports.pop().startswith('--coordinator=127.0.0.1:')


def test_local_processes_that_are_stopped_are_all_started_again(checkout):
  done = checkout.run(LOCAL, '2', '--', 'x', behaviour='sys.exit(75 if call == 1 else 0)')
  assert done.returncode == 0
  assert done.stderr.count('\n') == 1 and 'starting them again' in done.stderr
  assert [len(checkout.notes(i)) for i in range(2)] == [2, 2]


@pytest.mark.parametrize('code', [1, 2, 134])
def test_a_local_process_that_fails_ends_the_others(checkout, code):
  hang = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); note("ready"); time.sleep(60)'
  behaviour = f'''
if process == "0":
  while not os.path.exists("1.jsonl") or "ready" not in open("1.jsonl").read(): time.sleep(0.01)
  sys.exit({code})
''' + (hang if code == 1 else WAIT_FOR_SIGNAL)
  done = checkout.run(LOCAL, '2', '--', 'x', behaviour=behaviour)
  assert done.returncode == code and f'Process 0 failed with exit code {code}' in done.stderr
  assert len(checkout.notes(0)) == 1
  assert checkout.notes(1)[1:] == (['ready'] if code == 1 else ['ready', 'SIGTERM'])


def test_a_local_process_that_is_killed_ends_the_others(checkout):
  # What it had started holds its output open.
  orphan = 'import subprocess; subprocess.Popen(["sleep", "60"]) if process == "1" else None; note(os.getpid())\n'
  script = checkout.start(LOCAL, '2', '--', 'x', behaviour=orphan + WAIT_FOR_SIGNAL)
  checkout.wait_for('ready')
  os.kill(checkout.notes(1)[1], signal.SIGKILL)
  _, errors = script.communicate(timeout=30)
  assert script.returncode == 137 and 'Process 1 failed' in errors
  assert checkout.notes(0)[2:] == ['ready', 'SIGTERM']


# A Ctrl-C goes to the script's process group, `kill` to the script alone.
@pytest.mark.parametrize('send, number', [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_a_signal_reaches_each_local_process_once(checkout, send, number):
  script = checkout.start(LOCAL, '2', '--', 'x', behaviour=WAIT_FOR_SIGNAL)
  checkout.wait_for('ready')
  send(script.pid, number)
  _, errors = script.communicate(timeout=30)
  assert (script.returncode, errors) == (75, '')
  assert [checkout.notes(i)[1:] for i in range(2)] == [['ready', 'SIGTERM']] * 2


def test_a_second_signal_kills_local_processes(checkout):
  deaf = 'signal.signal(signal.SIGTERM, lambda *_: note("SIGTERM")); note("ready")\nwhile True: time.sleep(60)'
  script = checkout.start(LOCAL, '2', '--', 'x', behaviour=deaf)
  checkout.wait_for('ready')
  script.terminate()
  checkout.wait_for('SIGTERM')
  script.terminate()
  script.communicate(timeout=30)
  assert script.returncode == 137
  assert [checkout.notes(i)[1:] for i in range(2)] == [['ready', 'SIGTERM']] * 2


def test_slurm_header():
  lines = (ROOT / 'launch' / SLURM).read_text().splitlines()
  # SLURM reads no further than the first command.
  header = lines[:next(i for i, line in enumerate(lines) if line and not line.startswith('#'))]
  options = {line.split()[1].partition('=')[0]: line.partition('=')[2] for line in header if line.startswith('#SBATCH')}
  assert len(options) == sum(line.startswith('#SBATCH') for line in lines)
  assert options['--signal'] == 'TERM@120'  # with B: before it, only the script would get it
  assert options['--open-mode'] == 'append' and '--requeue' in options
  assert options['--ntasks-per-node'] == options['--gpus-per-node'] and '--gpus-per-task' not in options


@pytest.mark.parametrize('code', [0, 1, 75])
def test_a_slurm_job_that_was_stopped_and_no_other_is_requeued(checkout, tmp_path, code):
  # SLURM runs a copy.
  copy = shutil.copy(checkout.path / 'launch' / SLURM, tmp_path / 'slurm_script')
  done = checkout.run(copy, '--', *ARGUMENTS, behaviour=f'sys.exit({code})', SLURM_JOB_ID='7',
                      SLURM_SUBMIT_DIR=str(checkout.path), SLURM_CPUS_PER_TASK='3')
  assert done.returncode == code
  srun, *others = checkout.notes('tools')
  assert srun == ['srun', '--gpu-bind=none', '--kill-on-bad-exit=0', '--cpus-per-task=3', '.venv/bin/python', 'main.py',
                  '--distributed', *ARGUMENTS]
  assert checkout.notes(0) == [['--distributed', *ARGUMENTS]]
  assert others == ([['scontrol', 'requeue', '7']] if code == 75 else [])


def test_a_slurm_job_submitted_from_elsewhere_says_so(checkout, tmp_path):
  done = checkout.run(SLURM, '--', 'x', SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(tmp_path))
  assert done.returncode == 2 and str(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_tpu_pod_from_its_creation_to_its_end(checkout):
  where = ['--zone=z', '--project=my project']
  gcloud = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  done = checkout.run(TPU, 'create', 'pod', *where, '--type=v5litepod-32', '--version=v2', '--spot')
  assert done.returncode == 0, done.stderr
  assert checkout.notes('tools') == [
      [*gcloud, 'create', 'pod', '--accelerator-type=v5litepod-32', '--version=v2', '--spot', *where]]

  home = checkout.path / 'home/image-transformer'
  stopped_once = 'if call == 1: sys.exit(75)\n'
  done = checkout.run(TPU, 'run', 'pod', *where, '--', *ARGUMENTS, behaviour=stopped_once + WAIT_FOR_SIGNAL)
  assert done.returncode == 0, done.stderr
  try:
    wait_until(lambda: 'ready' in notes(home, 0))
    assert notes(home, 0) == [['--distributed', *ARGUMENTS]] * 2 + ['ready']
    assert NEEDED <= {path.name for path in home.iterdir()}

    done = checkout.run(TPU, 'run', 'pod', *where, '--', 'again')
    assert done.returncode == 2 and done.stderr == 'Error: a run is going; stop it first\n'
  finally:
    done = checkout.run(TPU, 'stop', 'pod', *where)
  assert done.returncode == 0, done.stderr
  # Once, and it was not started again.
  assert notes(home, 0)[2:] == ['ready', 'SIGTERM']
  assert checkout.run(TPU, 'stop', 'pod', *where).returncode == 2

  done = checkout.run(TPU, 'run', 'pod', *where, '--', 'x', behaviour='sys.exit(1)')
  assert done.returncode == 0, done.stderr
  wait_until(lambda: 'Ended with exit code 1.' in (home / 'run.log').read_text())
  assert notes(home, 0)[4:] == [['--distributed', 'x']]

  assert checkout.run(TPU, 'delete', 'pod', *where).returncode == 0
  assert checkout.notes('tools')[-1] == [*gcloud, 'delete', 'pod', *where]
  # Everything but `follow` is done on every machine.
  remote = [call for call in checkout.notes('tools') if call[4:5] in (['ssh'], ['scp'])]
  assert len(remote) > 5 and all('--worker=all' in call and call[-2:] == where for call in remote)


def start_pod(checkout, job, names):
  """Starts what a pod of this job runs, where only these host names are known."""
  (container,) = job['spec']['template']['spec']['containers']
  known = '|'.join(names)
  executable(checkout.path / 'tools/getent', f'#!/bin/sh\ncase $2 in {known}) ;; *) touch unknown; exit 2 ;; esac\n')
  executable(checkout.path / 'tools/python', f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  environment = {**os.environ, 'PATH': checkout.search_path, 'JOB_COMPLETION_INDEX': '1', 'BEHAVIOUR': WAIT_FOR_SIGNAL}
  checkout.started.append(
      subprocess.Popen([*container['command'], *container['args']], cwd=checkout.path, env=environment))
  return checkout.started[-1]


def test_a_gke_job(checkout):
  done = checkout.run(GKE, *GKE_OPTIONS, '--', *ARGUMENTS)
  assert done.returncode == 0, done.stderr
  (call,) = checkout.notes('tools')
  assert call[:-1] == ['kubectl', 'apply', '-f', '-']
  service, job = yaml.safe_load_all(call[-1])
  spec, pod = job['spec'], job['spec']['template']['spec']
  (container,) = pod['containers']

  # Process 0 is found by its name.
  assert job['kind'] == 'Job' and job['metadata']['name'] == 'job' == service['metadata']['name'] == pod['subdomain']
  assert service['spec'] == {'clusterIP': 'None', 'publishNotReadyAddresses': True, 'selector': {'job-name': 'job'}}
  assert spec['completionMode'] == 'Indexed' and spec['completions'] == spec['parallelism'] == 2
  assert container['image'] == 'me/it:1' and container['resources'] == {'limits': {'nvidia.com/gpu': 4}}

  def action(code, disrupted=False):
    """What Kubernetes does with a pod that failed: the first rule that fits, else it is counted."""
    for rule in spec['podFailurePolicy']['rules']:
      codes = rule.get('onExitCodes')
      fits = disrupted if 'onPodConditions' in rule else (code in codes['values']) == (codes['operator'] == 'In')
      if fits:
        return rule['action']
    return 'Count'

  assert pod['restartPolicy'] == 'Never'  # or there are no such rules
  assert [action(code) for code in (75, 1, 2, 137, 139, 134)] == ['Ignore', *['FailJob'] * 4, 'Count']
  assert action(137, disrupted=True) == action(75, disrupted=True) == 'Ignore'
  assert pod['terminationGracePeriodSeconds'] >= 60

  # $$( is Kubernetes' way to write $(.
  assert container['args'] == [argument.replace('$(', '$$(') for argument in ARGUMENTS]
  container['args'] = ARGUMENTS
  process = start_pod(checkout, job, ['job-0.job', 'job-1.job'])
  wait_until(lambda: 'ready' in checkout.notes(1))
  process.terminate()
  assert process.wait(20) == 75
  assert checkout.notes(1) == [['--coordinator=job-0.job:8476', '--num_processes=2', '--process_id=1', *ARGUMENTS],
                               'ready', 'SIGTERM']


def test_a_gke_pod_that_is_stopped_while_it_waits_is_replaced(checkout):
  manifest = checkout.run(GKE, *GKE_OPTIONS, '--dry-run', '--', 'x').stdout.partition('apply -f -\n')[2]
  process = start_pod(checkout, list(yaml.safe_load_all(manifest))[1], ['job-0.job'])
  wait_until((checkout.path / 'unknown').exists)
  process.terminate()
  assert process.wait(20) == 75 and not checkout.notes(1)


def test_the_image_has_what_a_run_needs():
  lines = [line.split() for line in (ROOT / 'launch/gke/Dockerfile').read_text().splitlines()]
  copied = {word for line in lines if line[:1] == ['COPY'] for word in line[1:-1]}
  assert copied == NEEDED <= {path.name for path in ROOT.iterdir()}


@pytest.mark.parametrize('script, options, expected', [
    (LOCAL, ['2', '--devices=4'], [['main.py', '--num_processes=2', f'--process_id={i}', *ARGUMENTS] for i in (0, 1)]),
    (SLURM, [], [['srun', '--distributed', *ARGUMENTS], ['scontrol', 'requeue', 'JOB']]),
    (TPU, ['create', 'pod', '--type=t', '--version=v', '--zone=z'],
     [['gcloud', 'create', '--accelerator-type=t', '--zone=z']]),
    (TPU, ['run', 'pod'], [['ssh'], ['scp', '--recurse', 'pod:image-transformer/'], ['ssh', '--worker=all']]),
    (TPU, ['follow', 'pod'], [['ssh', '--worker=0', '--command=tail -n 100 -F image-transformer/run.log']]),
    (TPU, ['stop', 'pod'], [['ssh', '--worker=all', '--command=image-transformer/launch/tpu_machine.sh stop']]),
    (TPU, ['delete', 'pod'], [['gcloud', 'delete', 'pod']]),
    (GKE, GKE_OPTIONS, [['kubectl', 'apply', '-f', '-']]),
])
def test_a_dry_run_prints_the_commands_and_does_nothing(checkout, script, options, expected):
  before = checkout.files()
  takes_arguments = script != TPU or options[0] == 'run'
  done = checkout.run(script, *options, '--dry-run', *(['--', *ARGUMENTS] if takes_arguments else []))
  assert (done.returncode, done.stderr) == (0, '')
  commands = printed_commands(done.stdout)
  assert len(commands) == len(expected)
  for command, words in zip(commands, expected):
    positions = [command.index(word) for word in words]
    assert positions == sorted(positions)
  assert checkout.files() == before


def test_the_papers_tables_stop_when_a_run_was_stopped(checkout):
  behaviour = 'if call == 2: sys.exit(75)'
  done = checkout.run('paper_tables.sh', behaviour=behaviour)
  assert done.returncode == 75 and 'the same command resumes' in done.stderr and len(done.stderr.splitlines()) == 1
  assert len(checkout.notes(0)) == 2


def test_the_papers_tables_go_on_when_a_row_failed(checkout):
  done = checkout.run('paper_tables.sh', behaviour='if call == 1: sys.exit(1)')
  assert done.returncode == 1 and done.stderr == 'Error: failed: one.py\n'
  modes = [next((word for word in call if word.startswith('--mode')), 'train') for call in checkout.notes(0)]
  assert modes == ['train', 'train', '--mode=superres', '--mode=table']


def test_ctrl_c_stops_the_papers_tables(checkout):
  script = checkout.start('paper_tables.sh', behaviour=WAIT_FOR_SIGNAL)
  checkout.wait_for('ready', processes=1)
  os.killpg(script.pid, signal.SIGINT)
  _, errors = script.communicate(timeout=30)
  assert script.returncode == 75 and 'the same command resumes' in errors
  assert checkout.notes(0)[1:] == ['ready', 'SIGINT']
