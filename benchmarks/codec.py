"""Measures the codec on a trained run: whether images come back, the size of files, times, and what damage does.

  python benchmarks/codec.py --workdir=runs/cifar10_fast_smoke [--damaged=500] [--out=FILE.json]

The images of `eval.split` are compressed by one process and decompressed by another, once on all cores and back on one
(`taskset`), once the other way round. Times are those of a few batches, in turn with the sampler's; `--damaged` files
of 20 images are damaged in every way, and whatever comes out is compared. Exit code 1 if an image ever differs.
"""

import measuring  # first: it sets the process up

import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zlib

from absl import app
from absl import flags
from etils import epath
import numpy as np

from image_transformer import codec, data, experiments, library
from image_transformer.errors import InputError
from image_transformer.inputs import read_inputs
from image_transformer.metrics import environment
from image_transformer.model import init_params, make_model

_WORKDIR = flags.DEFINE_string('workdir', None, 'The run.', required=True)
_NUM_IMAGES = flags.DEFINE_integer('num_images', 0, 'How many, from the first; 0: all.')
_DAMAGED = flags.DEFINE_integer('damaged', 500, 'Damaged files.')
_FULL_SIZE = flags.DEFINE_bool('full_size', False, 'Time the untrained model of cifar10_1d_dmol.py too.')
_RUNS = flags.DEFINE_integer('runs', 3, 'Timed runs, in turn.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')

_PIECE = 20  # images of a file that is damaged
_TIMED = 4 * codec.BATCH  # images


def command(cores: str, *arguments: str) -> None:
  """Runs main.py in a process of its own on some cores."""
  os.environ.pop('GLIBC_TUNABLES', None)
  subprocess.run(['taskset', '-c', cores, sys.executable, 'main.py', f'--workdir={os.path.abspath(_WORKDIR.value)}',
                  *arguments], cwd=measuring.ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def through_files(folder: pathlib.Path, run: library.Run, images: np.ndarray) -> dict:
  """Compresses and decompresses in other processes; counts the images that come back the same."""
  cores = sorted(os.sched_getaffinity(0))
  every, one = f'{cores[0]}-{cores[-1]}', f'{cores[0]}'
  same, sizes = {}, set()
  for name, (there, back) in {'all cores, then one': (every, one), 'one core, then all': (one, every)}.items():
    file, output = folder / f'{one}{len(same)}.itc', folder / f'out{len(same)}'
    command(there, '--mode=compress', f'--num_inputs={len(images)}', f'--output={file}', '--no_verify')
    command(back, '--mode=decompress', f'--input={file}', f'--output={output}')
    again = read_inputs(run, output, 0, exact=True)[0]['image']
    same[name] = sum(map(np.array_equal, again, images))
    sizes.add(file.stat().st_size)
  assert len(sizes) == 1, 'both files are the same'
  return {'identical': same, 'bytes': sizes.pop()}


def times(run: library.Run, images: np.ndarray, given: dict) -> dict[str, float]:
  """Seconds for each image of a few batches, medians."""
  part, some = images[:_TIMED], {name: values[:_TIMED] for name, values in given.items()}
  content = run.compress(part, verify=False, **some)
  seconds = measuring.in_turn({
      'sample': lambda: run.sample(len(part), **some),
      'compress': lambda: len(run.compress(part, verify=False, **some)),
      'decompress': lambda: run.decompress(content),
  }, _RUNS.value)
  return {name: value / len(part) for name, value in measuring.medians(seconds).items()}


def full_size() -> library.Run:
  """The paper's DMOL model, untrained."""
  config = experiments.load_config('cifar10_1d_dmol')
  model = make_model(config.model, data.image_spec(config))
  return library.Run(config, model, {'params': init_params(model, 0)}, 0, epath.Path('.'))


def damage(content: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """A damaged file, and how."""
  kind = str(rng.choice(['bits flipped', 'cut', 'bytes removed', 'bytes inserted', 'spliced', 'header of another model',
                         'another batch', 'zeros']))
  at = int(rng.integers(len(content)))
  changed = bytearray(content)
  if kind == 'bits flipped':
    for place in rng.integers(len(content), size=rng.integers(1, 5)):
      changed[place] ^= 1 << int(rng.integers(8))
  elif kind == 'cut':
    del changed[at:]
  elif kind == 'bytes removed':
    del changed[at:at + int(rng.integers(1, 200))]
  elif kind == 'bytes inserted':
    changed[at:at] = rng.bytes(int(rng.integers(1, 200)))
  elif kind == 'spliced':
    changed = bytearray(content[:at] + other[at:])
  elif kind == 'zeros':
    end = min(at + int(rng.integers(1, 200)), len(content))
    changed[at:end] = bytes(end - at)
  else:
    length = int.from_bytes(content[4:6], 'little')
    header = json.loads(zlib.decompress(content[6:6 + length]))
    header |= {'model': '0123456789abcdef'} if kind == 'header of another model' else {'batch': 2 * codec.BATCH}
    packed = zlib.compress(json.dumps(header).encode())
    packed = len(packed).to_bytes(2, 'little') + packed
    changed = bytearray(content[:4] + packed + zlib.crc32(packed).to_bytes(4, 'little') + content[6 + length + 4:])
  return kind, bytes(changed)


def damaged(run: library.Run, images: np.ndarray, given: dict) -> dict:
  """What becomes of damaged files: counts by kind."""
  part, rest = (slice(first, first + _PIECE) for first in (0, _PIECE))
  contents = [run.compress(images[each], verify=False, **{name: values[each] for name, values in given.items()})
              for each in (part, rest)]
  rng, found = np.random.default_rng(0), collections.defaultdict(collections.Counter)
  for _ in range(_DAMAGED.value):
    kind, content = damage(*contents, rng)
    counts = found[kind]
    counts['files'] += 1
    if content == contents[0]:
      counts['unchanged'] += 1
      continue
    try:
      _, recovered = run.recover(content)
    except InputError:
      counts['refused as a whole'] += 1
      continue
    either = [images[part], images[rest]]  # of which a spliced file has some
    wrong = [i for i, image in recovered.items()
             if not any(i < len(each) and np.array_equal(image, each[i]) for each in either)]
    counts['wrong images'] += len(wrong)
    counts['undamaged images'] += len(recovered)
    counts['damaged images'] += len(images[part]) - len(recovered)
  return {kind: dict(counts) for kind, counts in sorted(found.items())}


def main(argv):
  del argv
  run = library.load(_WORKDIR.value)
  evaluation = run.evaluate(num_images=_NUM_IMAGES.value)
  images, given = run.examples(len(evaluation.nats))
  spec = run.model.spec
  with tempfile.TemporaryDirectory() as folder:
    files = through_files(pathlib.Path(folder), run, images)
  stored = sum(int(np.prod(c.shape)) for c in run.model.conditions.values()) * 8 / spec.num_dims
  report = {
      'workdir': os.path.basename(os.path.abspath(_WORKDIR.value)), 'step': run.step, 'num_images': len(images),
      'bits_per_dim': evaluation.as_dict()['bits_per_dim'], 'file_bits_per_dim': 8 * files['bytes'] / images.size,
      'of_which_conditions': stored, **files, 'seconds_per_image': times(run, images, given),
      'batch': codec.BATCH,
      'full_size_seconds_per_image': times(full_size(), images[:codec.BATCH], {}) if _FULL_SIZE.value else None,
      'damaged': damaged(run, images, given) if _DAMAGED.value else {}}
  print(json.dumps(report, indent=2))
  if _OUT.value:
    about = {'command': ' '.join(['python', 'benchmarks/codec.py', *sys.argv[1:]]), **environment()}
    pathlib.Path(_OUT.value).write_text(json.dumps(report | about, indent=2) + '\n')
  wrong = sum(counts.get('wrong images', 0) for counts in report['damaged'].values())
  sys.exit(int(wrong > 0 or any(same < len(images) for same in files['identical'].values())))


if __name__ == '__main__':
  app.run(main)
