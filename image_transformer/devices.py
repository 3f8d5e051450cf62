"""The one seam to several devices: `jax.pmap` over a named axis, and what carries data to and from it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

AXIS = 'devices'

def pmap(function: Callable, **kwargs) -> Callable:
  """`jax.pmap` with the named axis over which gradients are averaged."""
  return jax.pmap(function, axis_name=AXIS, **kwargs)


def replicate(tree: Any) -> Any:
  """The same tree on every local device, with a leading axis for them."""
  # Through the same axis as every step, so that the first step's input is placed like its
  # output and nothing is compiled twice; `flax.jax_utils.replicate` places it differently.
  return pmap(lambda _, tree: tree, in_axes=(0, None))(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: Any) -> Any:
  """The tree as the first local device holds it."""
  # Indexing the whole array would be a computation over all devices.
  return jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree)


def split(tree: Any) -> Any:
  """[batch, ...] -> [local devices, batch / local devices, ...] for every array."""
  return jax.tree.map(lambda x: np.reshape(x, (jax.local_device_count(), -1, *x.shape[1:])), tree)


def merge(x: jax.Array) -> np.ndarray:
  """The inverse of `split`, on the host."""
  return np.asarray(x).reshape(-1, *x.shape[2:])


def round_up(batch_size: int) -> int:
  """The next batch size that the local devices divide."""
  return -(-batch_size // jax.local_device_count()) * jax.local_device_count()
