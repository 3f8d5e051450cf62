"""Everything about several devices and processes: `jax.pmap` over a named axis, and moving data to and from it.

Process k of P holds the k-th of P equal parts of every batch, and its devices share that equally.
"""

from collections.abc import Callable, Iterator
import contextlib
import re
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np

from image_transformer.config import check
from image_transformer.errors import InputError, last_line

AXIS = 'devices'


@contextlib.contextmanager
def settings() -> Iterator[None]:
  """JAX's defaults, whatever the rest of a program or its environment has set; also a decorator."""
  with jax.enable_x64(False), jax.numpy_dtype_promotion('standard'), jax.transfer_guard('allow'):
    yield


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, distributed: bool) -> bool:
  """Joins this process to the others, if it is one of several; returns whether it is.

  Args:
    coordinator, num_processes, process_id: all three, or none.
    distributed: without them, whether to take them from a TPU pod, SLURM or Open MPI; False: a single process.

  Raises:
    InputError: for invalid values, or if the other processes cannot be reached.
  """
  if coordinator is None or num_processes is None or process_id is None:
    given = coordinator, num_processes, process_id
    check(given == (None, None, None), 'coordinator, num_processes, process_id', given, 'given together')
    if not distributed:
      return False
  else:
    check(re.fullmatch(r'\S+:\d+', coordinator), 'coordinator', coordinator, 'HOST:PORT')
    check(num_processes > 0, 'num_processes', num_processes, 'positive')
    check(0 <= process_id < num_processes, 'process_id', process_id, f'in 0..{num_processes - 1}')
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise InputError(f'Cannot join the other processes ({last_line(error)}); see launch/README.md.') from error
  return True


def available() -> bool:
  """Whether JAX has any devices; none, for instance, where JAX_PLATFORMS names others."""
  try:
    return bool(jax.devices())
  except (RuntimeError, AssertionError, AttributeError):  # the last with python -O
    return False


def pmap(function: Callable, **kwargs) -> Any:
  """`jax.pmap` with the named axis over which gradients are averaged."""
  return jax.pmap(function, axis_name=AXIS, **kwargs)


def replicate(tree: Any) -> Any:
  """Copies a tree to every local device, along a new leading axis."""
  # Uses the same axis as every step, so that the first step's input is placed like its
  # output and nothing is compiled twice; `flax.jax_utils.replicate` places it differently.
  return pmap(lambda _, tree: tree, in_axes=(0, None))(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: Any) -> Any:
  """The tree as the first local device holds it."""
  # Indexing the whole array would be a computation over all devices.
  return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def split(tree: Any) -> Any:
  """A process's part of a batch [b, ...] -> [local devices, b / local devices, ...] for every array."""
  return jax.tree.map(lambda x: np.reshape(x, (jax.local_device_count(), -1, *x.shape[1:])), tree)


def own_part(tree: Any) -> Any:
  """This process's part of the arrays of a whole batch."""
  return jax.tree.map(lambda x: np.split(np.asarray(x), jax.process_count())[jax.process_index()], tree)


def gather(tree: Any) -> Any:
  """Inside `pmap`: each device's [b, ...] -> [devices * b, ...], the whole batch, on every device."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def round_up(batch_size: int) -> int:
  """The batch size, rounded up to a multiple of the number of devices."""
  return -(-batch_size // jax.device_count()) * jax.device_count()


def is_first() -> bool:
  """Whether this is the one process that writes and reports."""
  return jax.process_index() == 0


def same_everywhere(text: str) -> bool:
  """Whether all processes have the same text; every process must call this."""
  number = np.uint32(zlib.crc32(text.encode()))
  return jax.process_count() == 1 or bool((multihost_utils.process_allgather(number) == number).all())


def any_process(flag: bool) -> bool:
  """Whether `flag` is true on any process; every process must call this."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
