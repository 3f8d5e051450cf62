"""Trains, resumes and evaluates in generated surroundings: names of folders, links, permissions, variables, outputs.

  python benchmarks/surroundings.py [--count=500] [--first=0] [--seed=0] [--out=FILE.json]

Each case either works from beginning to end, with the same number from the evaluation as from the training, or is
refused before the first step: exit code 2, one line, and no file made or changed. Exit code 1 if one does neither. Case
i of a seed is always the same; `--only=i` runs it alone and prints what it printed.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tqdm import tqdm

from image_transformer import data, metrics
from image_transformer.config import Config

_FIELDS = {'model.num_layers': 1, 'model.hidden_size': 8, 'model.num_heads': 1, 'model.ffn_size': 8,
           'train.batch_size': 4, 'eval.num_images': 4, 'sample.num_images': 1, 'sample.batch_size': 1,
           'train.sample_every': 0, 'optimizer.schedule': 'rsqrt'}

# One process for all of a case, since most of its time is Python's start: a child for each command.
_DRIVER = '''
import os, sys
sys.path.insert(0, os.environ.pop('THE_ROOT'))
from image_transformer import process
process.set_up()
from image_transformer import cli
from image_transformer.__main__ import main
commands, command = [], []
for word in sys.argv[1:]:
  commands, command = (commands + [command], []) if word == '--then' else (commands, command + [word])
for command in commands:
  child = os.fork()
  if not child:
    sys.argv = ['main.py', *command]
    main()
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code:
    os._exit(code)
os._exit(0)
'''

_PIECES = [*'[]{}*?\'"$&;|<>#%~:,=@!^()+` -._\\', *'aZ09', 'é', 'e\u0301', '\u65e5', '\U0001f642', '\u202e', '\u200b',
           '\n', '\t', '\x7f', '\x01', '\udcff', '\udce9', '%s', '{0}', '$HOME', '.json', '.part', 'checkpoints', '..',
           '://', 'gs:', '  ']
_VARIABLES = {
    'LC_ALL': ['C', 'C.UTF-8', 'nonsense'], 'PYTHONUTF8': ['0', '1'], 'PYTHONIOENCODING': ['ascii', 'latin-1'],
    'PYTHONCOERCECLOCALE': ['0'], 'JAX_ENABLE_X64': ['1'], 'JAX_NUMPY_DTYPE_PROMOTION': ['strict'],
    'JAX_TRANSFER_GUARD': ['disallow', 'log'], 'JAX_DEBUG_NANS': ['1'], 'JAX_DEFAULT_MATMUL_PRECISION': ['bfloat16'],
    'JAX_PLATFORMS': ['cuda', 'nonsense', ''], 'JAX_NUM_CPU_DEVICES': ['2', '3'], 'JAX_LOG_COMPILES': ['1'],
    'JAX_DEFAULT_PRNG_IMPL': ['rbg'], 'PYTHONWARNINGS': ['error', 'default'], 'PYTHONSAFEPATH': ['1'],
    'PYTHONOPTIMIZE': ['1', '2'], 'PYTHONDEVMODE': ['1'], 'PYTHONDONTWRITEBYTECODE': ['1'], 'PYTHONHASHSEED': ['7'],
    'HOME': [None, '/nonexistent', ''], 'TMPDIR': ['/nonexistent', ''], 'COLUMNS': ['1', '0', 'x'], 'TERM': ['dumb'],
    'TZ': ['nonsense', 'Asia/Kathmandu'], 'NO_COLOR': ['1'], 'XLA_FLAGS': ['--xla_backend_optimization_level=0'],
    'OMP_NUM_THREADS': ['1'], 'TFDS_DATA_DIR': ['/nonexistent'], 'PROGRESS_SECONDS': ['0'], 'MPLBACKEND': ['nonsense']}
_OUTPUTS = ['', '', '', '<&-', '2>&1 | head -1', '>&-', '2>&-', '>&- 2>&-', '>/dev/full', '2>/dev/full']
_LIMITS = ['', '', '', 'umask 077;', 'ulimit -n 48;', 'ulimit -c 0;', 'trap "" HUP PIPE;']


def name(rng: random.Random) -> str:
  """A name of a folder that a file system might take."""
  text = ''.join(rng.choice(_PIECES) for _ in range(rng.choice([1, 2, 3, 5, 9])))
  if rng.random() < 0.1:
    text = (text * 300)[:rng.choice([100, 200, 250, 255, 256, 300])]
  return text.replace('/', '_') if rng.random() < 0.9 else text


def prepare(rng: random.Random, base: pathlib.Path) -> tuple[str, str]:
  """Makes what is there before the run; returns its workdir, as it is typed, and what the place is like."""
  parts = [name(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
  path = os.path.join(base, *(part.lstrip('/') or 'x' for part in parts))
  kind = rng.choice(['absent'] * 4 + ['empty', 'log', 'foreign', 'file', 'link', 'dangling link', 'link to itself',
                                      'read-only', 'read-only parent', 'relative', 'slash'])
  try:
    if kind in ('empty', 'log', 'foreign', 'read-only', 'slash'):
      os.makedirs(path)
    elif kind != 'absent':
      os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind in ('log', 'foreign'):
      pathlib.Path(path, 'train.log' if kind == 'log' else 'thesis.tex').touch()
    elif kind == 'file':
      pathlib.Path(path).touch()
    elif kind == 'link':
      (base / 'target').mkdir()
      os.symlink(base / 'target', path)
    elif kind == 'dangling link':
      os.symlink(base / 'no' / 'where', path)
    elif kind == 'link to itself':
      os.symlink(path, path)
    elif kind == 'read-only':
      os.chmod(path, 0o555)
    elif kind == 'read-only parent':
      os.chmod(os.path.dirname(path), 0o555)
  except (OSError, ValueError):
    kind = 'impossible'  # a name that this file system does not take
  return (os.path.relpath(path, base) if kind == 'relative' else path + '/' * (kind == 'slash')), kind


def tree(folder: pathlib.Path) -> dict[str, int]:
  return {os.path.join(place, one): os.lstat(os.path.join(place, one)).st_mtime_ns
          for place, folders, files in os.walk(folder) for one in folders + files}


def try_case(seed: int, index: int, data_dir: pathlib.Path) -> tuple[str, str, str]:
  """Returns 'works', 'refused' or what is wrong; what the case is; and what was printed."""
  rng = random.Random(f'{seed} {index}')
  base = pathlib.Path(tempfile.mkdtemp(prefix='surroundings'))
  workdir, kind = prepare(rng, base)
  chosen = {one: rng.choice(_VARIABLES[one]) for one in rng.sample(sorted(_VARIABLES), rng.choice([0, 1, 2, 4]))}
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'THE_ROOT': str(ROOT), 'GLIBC_TUNABLES': '', **chosen}  # no restart
  env = {one: value for one, value in env.items() if value is not None}
  behind, limit = rng.choice(_OUTPUTS), rng.choice(_LIMITS)
  train = ['--config=' + str(ROOT / 'configs' / 'digits.py'), f'--config.data_dir={data_dir}',
           *(f'--config.{field}={value}' for field, value in _FIELDS.items())]
  place = f'--workdir={workdir}'
  commands = [*train, '--config.train.steps=3', place, '--then', *train, '--config.train.steps=4', place, '--then',
              '--mode=eval', place, '--then']
  capabilities = '-dac_override,-dac_read_search'  # with which root ignores permissions
  drop = ['setpriv', f'--bounding-set={capabilities}', f'--inh-caps={capabilities}'] if os.geteuid() == 0 else []
  before = tree(base)
  shell = f'{limit} timeout 600 "$@" {behind}; exit ${{PIPESTATUS[0]}}'  # 124: it hangs
  done = subprocess.run([*drop, 'bash', '-c', shell, 'bash', sys.executable, '-c', _DRIVER, *commands], cwd=base,
                        env=env, capture_output=True)
  err = done.stderr.decode(errors='replace')
  printed = done.stdout.decode(errors='replace') + err
  about = f'{workdir!r} ({kind}), {chosen}, {limit} {behind}'
  results = pathlib.Path(base, workdir, 'results.json')
  try:
    if done.returncode == 0:
      lines = [json.loads(line) for line in results.with_name('metrics.jsonl').read_bytes().splitlines()]
      found = json.loads(results.read_bytes())
      last = [line for line in lines if line.get('num_images') == 4][-1]
      same = abs(found['bits_per_dim'] - last['bits_per_dim']) < 1e-5 and found['step'] == 4
      outcome = 'works' if same else 'evaluates to another number'
    elif done.returncode == 2:
      own = [line for line in err.splitlines() if line.startswith('Error: ')]
      silent = '2>' in behind
      outcome = ('refused' if tree(base) == before and (silent or len(own) == 1 and 'step 1 of' not in printed)
                 else 'is refused late, or not in one line')
    else:
      outcome = f'exit code {done.returncode}'
  except (OSError, KeyError, IndexError, ValueError) as error:
    outcome = f'{type(error).__name__}: {error}'
  for folder, _, _ in os.walk(base):
    os.chmod(folder, 0o700)
  shutil.rmtree(base, ignore_errors=True)
  return outcome, about, printed


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--count', type=int, default=500, help='how many cases')
  parser.add_argument('--first', type=int, default=0, help='the first of them')
  parser.add_argument('--seed', type=int, default=0, help='of the cases')
  parser.add_argument('--only', type=int, help='run this case alone')
  parser.add_argument('--out', help='JSON file to write')
  args = parser.parse_args()
  outcomes: collections.Counter[str] = collections.Counter()
  wrong: list[str] = []

  def report():
    """After every case, so that what is done is kept."""
    if args.out:
      content = {'command': ' '.join(['python', 'benchmarks/surroundings.py', *sys.argv[1:]]),
                 'outcomes': dict(outcomes), 'wrong': wrong, **metrics.environment()}
      pathlib.Path(args.out).write_text(json.dumps(content, indent=2) + '\n')

  with tempfile.TemporaryDirectory() as scratch:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{scratch}/cache'
    data_dir = pathlib.Path(scratch, 'data')
    data.open_split(Config(dataset='digits', data_dir=str(data_dir)), 'train')  # prepared before any case
    cases = [args.only] if args.only is not None else tqdm(range(args.first, args.first + args.count), unit='case')
    for index in cases:
      outcome, about, printed = try_case(args.seed, index, data_dir)
      good = outcome in ('works', 'refused')
      outcomes[outcome if good else 'wrong'] += 1
      if not good:
        wrong.append(f'{index}: {outcome}: {about}')
        print(f'{wrong[-1]}: {printed[-300:]!r}', file=sys.stderr)
      report()
      if args.only is not None:
        print(outcome, about, printed, sep='\n')
  print(dict(outcomes))
  return 1 if wrong else 0


if __name__ == '__main__':
  sys.exit(main())
