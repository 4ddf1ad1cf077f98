"""How wrong a function is, in units of the last place of its results."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from numerics import number_format
from numerics import rounding


class Accuracy(NamedTuple):
  """What the errors of a function are.

  Attributes:
    max_ulps: The largest error, in units of the last place.
    at: The argument it is at.
    mean_ulps: The mean of the magnitudes.
    correct: Fraction of results within half a unit, which are as near to what
      is exact as the format has them.
  """

  max_ulps: float
  at: float
  mean_ulps: float
  correct: float


def errors_in_ulps(
  found: Any, exact: Any, fmt: number_format.NumberFormat
) -> np.ndarray:
  """Errors of results, in units of the last place of what is exact.

  The unit is the spacing of the format in the binade of the exact result, as
  `numerics.ulp` has it, at a power of two the one above.

  Args:
    found: Results, floats of any shape.
    exact: What they approximate, float64 of that shape.
    fmt: The format of the results.

  Returns:
    `f64[*shape]`, with its sign; infinite where only one of both is finite.

  Raises:
    TypeError: If `fmt` is no format.

  Examples:
    >>> import numerics
    >>> errors_in_ulps([1.5, 4.0], [1.25, 4.5], numerics.float4_e2m1fn).tolist()
    [0.5, -0.25]
  """
  rounding.checked_format('errors_in_ulps', fmt)
  found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
  if fmt.uniform:
    unit = np.float64(2.0**fmt.last_place)
  else:
    # A mantissa in [1/2, 1) has an exponent one above that of the binade.
    binade = np.where(exact == 0, fmt.emin, np.frexp(exact)[1] - 1)
    binade = np.clip(binade, fmt.emin, fmt.emax)
    unit = np.ldexp(1.0, binade - (fmt.significant_bits - 1))
  known = np.isfinite(found) & np.isfinite(exact)
  with np.errstate(invalid='ignore'):
    error = np.where(known, (found - exact) / unit, np.inf)
  same = (found == exact) | (np.isnan(found) & np.isnan(exact))
  return np.where(same, 0.0, error)


def accuracy(
  function: Callable[[np.ndarray], Any],
  exact: Callable[[np.ndarray], np.ndarray],
  x: np.ndarray,
  fmt: number_format.NumberFormat,
) -> Accuracy:
  """Measures how wrong a function is.

  float64 is exact enough for results of up to 24 bits: it adds less than
  `2**-28` units. Results that have more need an exact function that is better.

  Args:
    function: Takes float32, and returns the numbers of a format.
    exact: The same in float64.
    x: Arguments, `f32[n]`, all of a format from `arguments`, or drawn.
    fmt: The format of the results.

  Returns:
    The errors.

  Raises:
    ValueError: If there is no argument, or results have another shape.

  Examples:
    >>> import jax, numerics
    >>> half = numerics.float16
    >>> x = arguments(1.0, 2.0, half)
    >>> rounded = numerics.emulate(jax.numpy.exp2, half)
    >>> accuracy(rounded, np.exp2, x, half).max_ulps < 0.51
    True
  """
  x = np.asarray(x, np.float32)
  if not x.size:
    raise ValueError('accuracy: there is no argument')
  found, right = np.asarray(function(x)), exact(x.astype(np.float64))
  if found.shape != x.shape or right.shape != x.shape:
    raise ValueError(
      f'accuracy: results have shapes {found.shape} and {right.shape}, expected'
      f' that of the arguments, {x.shape}'
    )
  errors = np.abs(errors_in_ulps(found, right, fmt))
  worst = int(np.argmax(errors))
  return Accuracy(
    float(errors[worst]),
    float(x[worst]),
    float(np.mean(errors)),
    float(np.mean(errors <= 0.5)),
  )


def arguments(
  low: float,
  high: float,
  fmt: number_format.NumberFormat,
  most: int = 1 << 20,
) -> np.ndarray:
  """The numbers of a format in an interval.

  Args:
    low: The least.
    high: The greatest.
    fmt: The format; float32 if it has more than 16 bits.
    most: How many at most; of more, some that are evenly spaced among them.

  Returns:
    `f32[n]`, ascending, without −0.

  Raises:
    ValueError: If there are none, or one of the ends is not finite.

  Examples:
    >>> import numerics
    >>> arguments(0.4, 2.0, numerics.float4_e2m1fn).tolist()
    [0.5, 1.0, 1.5, 2.0]
  """
  rounding.checked_format('arguments', fmt)
  if not (np.isfinite(low) and np.isfinite(high) and low <= high):
    raise ValueError(f'arguments: no interval from {low} to {high}')
  if fmt.bits <= 16:
    values = fmt.values()
    found = values[(values >= low) & (values <= high)]
  else:
    ends = [_place(np.float32(end)) for end in (low, high)]
    step = max(1, -(-(ends[1] - ends[0] + 1) // most))
    found = _number(np.arange(ends[0], ends[1] + 1, step))
    found = found[(found >= low) & (found <= high)]
  if not found.size:
    raise ValueError(
      f'arguments: {fmt.name} has no number from {low} to {high}'
    )
  return found[:: max(1, -(-found.size // most))]


def _place(x: np.float32) -> int:
  """The place of a float32 in the order of all, that of 0 being 0."""
  bits = int(x.view(np.int32))
  return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _number(places: np.ndarray) -> np.ndarray:
  """The float32 at places."""
  signs = np.where(places < 0, np.uint32(1 << 31), np.uint32(0))
  return (np.abs(places).astype(np.uint32) | signs).view(np.float32)
