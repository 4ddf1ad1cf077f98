"""What range the numbers of a function have, and which format holds it."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import interpreter
from numerics import number_format
from numerics import programs
from numerics import reports
from numerics import rounding

# Exponents of float32, from that of its denormals on.
_LOWEST = -127
_BINS = 255
_INFINITY = np.int32(0x7F800000)


@dataclasses.dataclass(frozen=True)
class Range:
  """The magnitudes that an operation computed, each time that it ran.

  Attributes:
    operation: Which operation.
    count: How many numbers.
    zeros: How many of them are 0.
    negatives: How many are below 0, the finite ones.
    nonfinite: How many are infinite or NaN.
    min: The smallest magnitude but for zeros; infinite if there is none.
    max: The largest finite magnitude.
    histogram: How many have a magnitude in `[2**e, 2**(e + 1))`, for `e` from
      −127 (denormals, all of them) to 127.
  """

  operation: reports.Operation
  count: int
  zeros: int
  negatives: int
  nonfinite: int
  min: float
  max: float
  histogram: np.ndarray

  def lost(self, fmt: number_format.NumberFormat) -> float:
    """The fraction of nonzero numbers that are beyond the range of a format.

    Those above `fmt.max`, and those that rounding to nearest makes zero; within
    a factor of two, since it is the histogram that says. In formats without
    negative numbers, those too; then it is the larger of the two fractions.

    Args:
      fmt: The format.

    Returns:
      From 0 to 1.
    """
    exponents = np.arange(_LOWEST, _LOWEST + _BINS)
    low = math.floor(math.log2(fmt.min_positive)) - 1
    above = (exponents > fmt.emax) & (self.max > fmt.max)
    below = (exponents < low) & (self.min <= fmt.min_positive / 2)
    total = max(1, int(self.histogram.sum()))
    lost = int(self.histogram[above | below].sum())
    if fmt.min == 0:
      lost = max(lost, self.negatives)
    return lost / total

  def smallest_format(
    self,
    candidates: Sequence[number_format.NumberFormat],
    *,
    tolerance: float = 0.0,
  ) -> number_format.NumberFormat | None:
    """The first of some formats that holds the range.

    Args:
      candidates: Formats, the preferred ones first.
      tolerance: Which fraction of nonzero numbers may be lost.

    Returns:
      The format, or None if none does.
    """
    for fmt in candidates:
      rounding.checked_format('smallest_format', fmt)
      if (tolerance or self.max <= fmt.max) and self.lost(fmt) <= tolerance:
        return fmt
    return None

  @property
  def exponent_bits(self) -> int:
    """Bits of exponent that the range takes, if a scale puts it in the middle.

    Counting one more exponent for zero and subnormals.
    """
    [used] = np.nonzero(self.histogram)
    binades = int(used[-1] - used[0]) + 1 if len(used) else 0
    return max(1, math.ceil(math.log2(binades + 1)))


@dataclasses.dataclass(frozen=True)
class Ranges:
  """The ranges of a function.

  Attributes:
    value: What it returns.
    rows: Of every floating operation that ran, in the order of the program.
  """

  value: Any
  rows: Sequence[Range]

  def __str__(self) -> str:
    """The rows as a table, the widest range first."""
    rows = sorted(self.rows, key=lambda row: -row.exponent_bits)
    return reports.table(
      rows,
      {
        'min': lambda row: row.min,
        'max': lambda row: row.max,
        'zeros': lambda row: row.zeros,
        'not finite': lambda row: row.nonfinite,
        'exponent bits': lambda row: row.exponent_bits,
      },
    )


def ranges(function: Callable[..., Any]) -> Callable[..., Ranges]:
  """Reports the range of every floating operation of a function.

  Transform `jax.grad(function)` to see that of gradients.

  Args:
    function: Any function that JAX can trace.

  Returns:
    A function of the same arguments that returns `Ranges`. It is for looking
    at, not for `jit`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> found = numerics.ranges(lambda x: jnp.exp(x) * 2)(jnp.array([-9.0, 9]))
    >>> [(row.operation.primitive, round(row.max)) for row in found.rows]
    [('exp', 8103), ('mul', 16206)]
    >>> formats = [numerics.float8_e4m3fn, numerics.float16]
    >>> found.rows[0].smallest_format(formats).name
    'float16'
    >>> found.rows[0].exponent_bits
    5
  """

  def ranged(*args: Any, **kwargs: Any) -> Ranges:
    value, records = reports.observe(
      function,
      args,
      kwargs,
      interpreter.Interpretation(_observe, empty=_empty, combine=_combine),
    )
    return Ranges(value, [_row(*each) for each in records])

  return ranged


def _row(operation: reports.Operation, record: dict[str, Any]) -> Range:
  return Range(
    operation,
    int(record['count']),
    int(record['zeros']),
    int(record['negatives']),
    int(record['nonfinite']),
    float(record['min'].view(np.float32)),
    float(record['max'].view(np.float32)),
    record['histogram'],
  )


def _empty(equation: programs.Equation) -> dict[str, Any]:
  if not equation.floating:
    return {'count': np.int32(0)}
  return {
    'count': np.int32(0),
    'zeros': np.int32(0),
    'negatives': np.int32(0),
    'nonfinite': np.int32(0),
    # Magnitudes as bit patterns, since a minimum may flush denormals.
    'min': np.int32(_INFINITY),
    'max': np.int32(0),
    'histogram': np.zeros(_BINS, np.int32),
  }


def _combine(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
  special = {'min': jnp.minimum, 'max': jnp.maximum}
  return {name: special.get(name, jnp.add)(a[name], b[name]) for name in a}


def _observe(step: interpreter.Step, inputs: Sequence[Any]) -> Any:
  outputs = step.bind(*inputs)
  record = _empty(step)
  for output in outputs:
    if programs.is_inexact(output):
      record = _combine(record, _range(output))
  return outputs, record


def _range(x: jax.Array) -> dict[str, Any]:
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
  magnitude = jnp.ravel(bits & np.int32(0x7FFFFFFF))
  finite = magnitude < _INFINITY
  counted = finite & (magnitude != 0)
  exponent = jnp.where(counted, magnitude >> np.int32(23), 0)
  histogram = (
    jnp.zeros(_BINS, jnp.int32).at[exponent].add(counted.astype(jnp.int32))
  )
  return {
    'count': jnp.int32(magnitude.size),
    'zeros': jnp.sum(magnitude == 0, dtype=jnp.int32),
    'negatives': jnp.sum(counted & (jnp.ravel(bits) < 0), dtype=jnp.int32),
    'nonfinite': jnp.sum(~finite, dtype=jnp.int32),
    'min': jnp.min(jnp.where(counted, magnitude, _INFINITY), initial=_INFINITY),
    'max': jnp.max(jnp.where(counted, magnitude, 0), initial=0),
    'histogram': histogram,
  }
