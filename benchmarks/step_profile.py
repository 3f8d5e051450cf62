"""Where the time of a training step goes, from a trace of one step on a CPU.

  python benchmarks/step_profile.py [--config=configs/cifar10_1d.py] [--batch_size=2] [--out=FILE.json]

Every moment is shared among the operations that run in it. `gigabytes` is what an operation reads and writes, each
array once, and `gigabytes/s` how fast: beside the rates of memory and of products in the same run it tells what binds.
"""

import measuring  # first: it sets the process up

import collections
import glob
import math
import re
import tempfile

from absl import app
from absl import flags
import jax
from jax.profiler import ProfileData
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/cifar10_1d.py')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 2, 'Images of the step, over all devices.')
_OUT = flags.DEFINE_string('out', None, 'JSON file to write.')


def group(name: str, op_name: str) -> str:
  """Where an operation belongs; it is named by the modules it comes from."""
  product = name.startswith('dot') or 'dot_general' in op_name
  if '...' in op_name:
    return 'attention: products' if product else 'attention: rest'
  if product:
    return 'products with parameters'
  for part, called in (('dropout', 'dropout'), ('norm', 'layer norms'), ('self_attention', 'attention: rest'),
                       ('ffn', 'feed-forward: rest')):
    if part in op_name:
      return called
  return 'likelihood, embedding, optimizer'


def operations(text: str) -> dict[str, tuple[str, int]]:
  """Of the compiled program: group, and bytes read and written, by the name of the operation."""
  sizes, found = {}, {}
  for name, shape, opcode, arguments, rest in re.findall(
      r'^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*?)\)(.*)$', text, re.MULTILINE):
    sizes[name] = sum(math.prod(map(int, filter(None, dims.split(',')))) * int(bits or 8) // 8
                      for bits, dims in re.findall(r'[a-z]+?(\d*)\[([\d,]*)\]', shape))
    op_name = re.search(r'op_name="([^"]*)"', rest)
    inputs = sum(sizes.get(argument, 0) for argument in re.findall(r'%([\w.\-]+)', arguments))
    if opcode not in ('while', 'call', 'conditional'):  # what they hold is there as well
      found[name] = group(name, op_name[1] if op_name else ''), inputs + sizes[name]
  return found


def spans(folder: str) -> list[tuple[int, int, str]]:
  """Begin and end [ns] of every operation; one that hands its work to other threads ends at a mark of its own."""
  path, = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
  events = [(event.start_ns, event.start_ns + event.duration_ns, event.name)
            for plane in ProfileData.from_file(path).planes for line in plane.lines for event in line.events]
  found, open_ = [], {}
  for begin, end, name in sorted(events):
    began = open_.get(name.removeprefix('end: '))
    if name.startswith('end: ') and began is not None:
      found[began] = found[began][0], max(end, found[began][1]), found[began][2]
    else:
      open_[name] = len(found)
      found.append((begin, end, name))
  return found


def shares(spans: list[tuple[int, int, str]]) -> collections.Counter:
  """Seconds by name: every moment is shared among what runs in it."""
  marks = sorted((time, begins, index) for index, (begin, end, _) in enumerate(spans) if end > begin
                 for time, begins in ((begin, True), (end, False)))
  seconds, active, last = collections.Counter(), set(), marks[0][0]
  for time, begins, index in marks:
    for running in active:
      seconds[spans[running][2]] += (time - last) / len(active) / 1e9
    last = time
    (active.add if begins else active.discard)(index)
  return seconds


def main(argv):
  del argv
  config, model = measuring.load(_CONFIG.value, train__batch_size=_BATCH_SIZE.value)
  batch = measuring.random_batch(model, _BATCH_SIZE.value)
  take_step, _, compiled = measuring.training_step(config, model, batch)
  jax.block_until_ready(take_step())
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      jax.block_until_ready(take_step())
    of = operations(compiled.as_text())
    seconds = shares([span for span in spans(folder) if span[2] in of])
  limits = measuring.in_turn(measuring.products('float32') | measuring.passes(), 3)
  rows = collections.defaultdict(lambda: {'seconds': 0.0, 'gigabytes': 0.0})
  for name, took in seconds.items():
    rows[of[name][0]]['seconds'] += took
    rows[of[name][0]]['gigabytes'] += of[name][1] / 1e9
  total = sum(seconds.values())
  rows = [{'operations': name, 'seconds': row['seconds'], 'share': row['seconds'] / total,
           'gigabytes': row['gigabytes'], 'gigabytes/s': row['gigabytes'] / row['seconds']}
          for name, row in sorted(rows.items(), key=lambda item: -item[1]['seconds'])]
  rate, memory = measuring.product_rate(limits), measuring.bandwidth(limits)
  print(f'{total:.2f} s. Products: {rate / 1e9:.0f} GFLOP/s. Memory is read at {memory["read"] / 1e9:.0f} GB/s, '
        f'updated at {memory["update"] / 1e9:.0f} GB/s.')
  measuring.report('step_profile', rows, _OUT.value, seconds=total, product_flops_per_second=rate,
                   bytes_per_second=memory)


if __name__ == '__main__':
  app.run(main)
