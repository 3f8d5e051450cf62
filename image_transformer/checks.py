"""Checks of configuration fields: a bad value raises `InputError` that names the field and what it must be."""

from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from image_transformer.errors import InputError, shown


def check(condition: object, field: str, value: Any, need: str) -> None:
  """Raises InputError naming `field`, its value and what it must be."""
  if not condition:
    is_missing = value is None or (isinstance(value, str) and not value)
    raise InputError(f'{field} is {"missing" if is_missing else shown(value)}, but must be {need}.')


def check_ranges(prefix: str, config: Any, need: str, test, *fields: str) -> None:
  for field in fields:
    value = getattr(config, field)
    check(test(value), f'{prefix}.{field}', value, need)


def check_whole(prefix: str, config: Any, low: int, high: int, *fields: str, zero: str = '') -> None:
  """`zero`: what 0 means, if it has a special meaning."""
  need = f'0 ({zero}) or positive, at most {high}' if zero else f'in {low}..{high}'
  check_ranges(prefix, config, need, lambda value: low <= value <= high, *fields)


def check_choices(prefix: str, config: Any) -> None:
  """Fields annotated as Literal[...] must have one of these values."""
  for field, kind in get_type_hints(type(config)).items():
    if get_origin(kind) is Literal:
      value = getattr(config, field)
      check(value in get_args(kind), f'{prefix}.{field}', value, f'one of {", ".join(get_args(kind))}')


# Floats are used as float32, so they must satisfy these bounds there too.
POSITIVE = 'a positive number that float32 holds'
FRACTION = 'in [0, 1), rounded to float32 too', lambda value: 0 <= value and np.float32(value) < 1
OR_ZERO = f'0 or {POSITIVE}', lambda value: value == 0 or positive_float(value)
_MIN_FLOAT, MAX_FLOAT = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def positive_float(value: Any) -> bool:
  """Whether this is a number that is positive and finite in float32."""
  return isinstance(value, (int, float, np.number)) and bool(_MIN_FLOAT <= value <= MAX_FLOAT)
