"""What the benchmarks share: timing in turn, the machine's own limits, the work a model does, reports.

A benchmark imports this first: it sets the process up as main.py does.
"""

from collections.abc import Callable
import json
import logging
import pathlib
import statistics
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from image_transformer import process

process.set_up()
logging.disable(logging.WARNING)

import jax
import jax.numpy as jnp

from image_transformer import config as config_lib
from image_transformer import data, devices, metrics
from image_transformer.model import ImageTransformer, make_model
from image_transformer.optimizers import make_optimizer
from image_transformer.state import init_state
from image_transformer.training_step import make_train_step


def in_turn(functions: dict[str, Callable[[], Any]], num_runs: int) -> dict[str, list[float]]:
  """Seconds of each call: all functions in turn, so many times, so that a slow minute slows them all.

  A first round, which compiles, is not counted. Functions return arrays, which are waited for.
  """
  seconds = {name: [] for name in functions}
  for run in range(num_runs + 1):
    for name, function in functions.items():
      began = time.perf_counter()
      jax.block_until_ready(function())
      if run:
        seconds[name].append(time.perf_counter() - began)
  return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
  return {name: statistics.median(values) for name, values in seconds.items()}


def fastest(seconds: dict[str, list[float]]) -> dict[str, float]:
  """For shares of a limit: on a machine that others use, the medians of both may be of different minutes."""
  return {name: min(values) for name, values in seconds.items()}


def products(dtype: str, num_iterations: int = 4) -> dict[str, Callable[[], Any]]:
  """Plain products of square matrices, several at a stretch, by a name that begins with their size."""
  functions = {}
  for size in _SIZES[jax.default_backend() == 'cpu']:
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)) * size**-0.5 for i in range(2))
    repeat = jax.jit(lambda a, b: jax.lax.fori_loop(0, num_iterations, lambda _, x: x @ b, a))
    functions[f'{size} x {size} {dtype} product'] = lambda a=a, b=b, repeat=repeat: repeat(a, b)
  return functions


_SIZES = {True: (1024, 2048, 3072), False: (4096, 8192, 16384)}


def product_rate(seconds: dict[str, list[float]], num_iterations: int = 4) -> float:
  """FLOP/s of the best of `products`: the limit that the machine sets."""
  return max(2 * int(name.split()[0])**3 * num_iterations / min(values)
             for name, values in seconds.items() if name.endswith('product'))


def passes() -> dict[str, Callable[[], Any]]:
  """Passes over a large array: one reads and writes it, one reads it as a step of sampling reads parameters."""
  array, vector = jnp.ones(_NUM_BYTES // 4, jnp.float32), jnp.ones(_NUM_BYTES // 4 // 4096, jnp.float32)
  update = jax.jit(lambda x: jax.lax.fori_loop(0, _NUM_PASSES, lambda _, x: x + 1, x))
  read = jax.jit(lambda m, v: jax.lax.fori_loop(0, _NUM_PASSES, lambda _, x: m @ (v + x[0]), jnp.zeros(4096)))
  return {'update': lambda: update(array), 'read': lambda: read(array.reshape(4096, -1), vector)}


_NUM_BYTES, _NUM_PASSES = 2**28, 8


def bandwidth(seconds: dict[str, list[float]]) -> dict[str, float]:
  """Bytes/s of `passes`; an update reads and writes."""
  return {name: times * _NUM_PASSES * _NUM_BYTES / min(seconds[name])
          for name, times in (('update', 2), ('read', 1))}


def load(config: Any, **changes: Any) -> tuple[config_lib.Config, ImageTransformer]:
  """A configuration as the flag --config gives it, with dotted fields changed, and its model."""
  with config.unlocked():
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in changes.items()})
  config = config_lib.from_dict(config.to_dict())
  return config, make_model(config.model, data.image_spec(config))


def random_batch(model: ImageTransformer, batch_size: int) -> Any:
  """Images and their classes, a part for every device."""
  whole = {'image': jax.random.randint(jax.random.key(0), (batch_size, *model.spec.shape), 0, model.spec.levels),
           'label': jnp.zeros(batch_size, jnp.int32)}
  return devices.split({name: whole[name] for name in ('image', *model.conditions)})


def training_step(config: config_lib.Config, model: ImageTransformer, batch: Any) -> tuple[Callable, Any, Any]:
  """A function that takes one more training step at every call, the first state, and the compiled step."""
  optimizer = make_optimizer(config.optimizer, config.train.steps)
  state = devices.replicate(init_state(model, optimizer, config))
  step = devices.pmap(make_train_step(model, optimizer, config), donate_argnums=0).lower(state, batch).compile()

  def take_step():
    nonlocal state
    state, scalars = step(state, batch)
    return scalars

  return take_step, state, step


def report(name: str, rows: list[dict[str, Any]], out: str | None, **more: Any) -> None:
  """Prints rows as a table and, where asked to, writes them as JSON with versions, device and commit."""
  table(rows)
  write(name, rows, out, **more)


def write(name: str, rows: list[dict[str, Any]], out: str | None, **more: Any) -> None:
  """Writes rows as JSON, if `out` names a file; see `report`."""
  if out:
    command = ' '.join(['python', f'benchmarks/{name}.py', *sys.argv[1:]])
    content = {'command': command, **metrics.environment(), **more, 'rows': rows}
    pathlib.Path(out).write_text(json.dumps(content, indent=2) + '\n')


def table(rows: list[dict[str, Any]]) -> None:
  """Prints what rows hold, but for lists."""
  names = list(dict.fromkeys(name for row in rows for name in row if not isinstance(row[name], list)))
  cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells)]
  for row in cells:
    print('  '.join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))))


def _shown(value):
  if value is None:
    return ''
  return f'{value:.4g}' if isinstance(value, float) else str(value)
