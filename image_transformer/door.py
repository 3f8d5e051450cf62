"""Validates the images and conditions that are passed to the model and the samplers.

Shapes, dtypes and names are checked for traced arrays too, which costs nothing at run time; the values themselves
only if they are known. Lists, NumPy arrays and JAX arrays are all accepted.
"""

from collections.abc import Mapping, Sequence
import difflib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from image_transformer.config import ImageSpec
from image_transformer.errors import InputError


def check_integers(name: str, values: Any, shape: Sequence[int], num_values: int, num_images: int | None = None) -> Any:
  """Returns a batch of integers as an array.

  Args:
    name: its name in messages.
    values: array or nested lists [B, *shape].
    shape: the shape of one image's values.
    num_values: values must be in 0..num_values-1.
    num_images: B; None: any positive number.

  Raises:
    InputError: if they do not fit; the message says what was given and what is needed.
  """
  traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))
  try:
    array = jnp.asarray(values) if traced else np.asarray(values)
  except (ValueError, TypeError) as error:  # rows of different lengths, say
    raise InputError(f'{name} must be an array of integers, but cannot be converted to one '
                     f'({str(error).splitlines()[0]}).') from error
  verb = 'are' if name == 'images' else 'is'
  need = f'[{num_images or "B"}{"".join(f", {size}" for size in shape)}]'
  got = list(array.shape)
  if got[1:] != list(shape) or array.ndim == 0 or (got[0] != num_images if num_images else not got[0]):
    raise InputError(f'{name} {verb} {got}, but must be {need}{_hint(name, got, list(shape), num_images)}.')
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise InputError(f'{name} {verb} of type {array.dtype}, but must be integers in 0..{num_values - 1}.')
  if not traced and (array.min() < 0 or array.max() >= num_values):
    wrong = array.min() if array.min() < 0 else array.max()
    raise InputError(f'{name} {"hold" if verb == "are" else "holds"} {wrong}, but must be in 0..{num_values - 1}.')
  return array


def check_images(images: Any, spec: ImageSpec, num_images: int | None = None) -> Any:
  """Returns images [B, H, W, C] as an integer array.

  Raises:
    InputError: if they do not fit `spec`.
  """
  return check_integers('images', images, spec.shape, spec.levels, num_images)


def check_given(given: Any, conditions: Mapping[str, Any], num_images: int | None = None) -> dict[str, Any]:
  """Returns the conditions of images as integer arrays.

  Args:
    given: a value for each condition, by name.
    conditions: what the model needs, by name (`ImageTransformer.conditions`).
    num_images: the number of images; None: as many as the first condition has values.

  Raises:
    InputError: if a condition is missing, unknown or does not fit.
  """
  needed = f'this model is conditioned on {" and ".join(conditions) or "nothing"}'
  if not isinstance(given, Mapping):
    raise InputError(f'The conditions are of type {type(given).__name__}, but must be a dictionary; {needed}.')
  for name in given:
    if name not in conditions:
      near = difflib.get_close_matches(str(name), conditions, n=1)
      raise InputError(f'Unknown condition {name!r}; {f"did you mean {near[0]!r}?" if near else f"{needed}."}')
  for name in conditions:
    if name not in given:
      raise InputError(f'The condition {name!r} is missing; {needed}.')
  checked = {}
  for name, condition in conditions.items():
    checked[name] = check_integers(name, given[name], condition.shape, condition.num_values, num_images)
    num_images = len(checked[name])
  return checked


def _hint(name: str, got: list[int], shape: list[int], num_images: int | None) -> str:
  """What is probably wrong."""
  if got == shape:
    return f': one image needs a batch axis, {name}[None]' if shape else ': one for each image'
  if got[1:] == shape:
    return ', one for each image' if num_images else ', with at least one image'
  if len(got) == 4 and [*got[2:], got[1]] == shape:
    return ': channels come last'
  if len(got) == 4 and [got[2], got[1], got[3]] == shape:
    return ': rows come before columns'
  return ''
