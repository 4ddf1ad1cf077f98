"""Polynomials whose largest error is least."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numerics.functions import straight_line

_TURNS = 50
_GRID = (
  64  # Points between two extrema, among which the next ones are looked for.
)


class Minimax(NamedTuple):
  """A polynomial, and how far it is from its function.

  Attributes:
    coefficients: From that of 1 upward.
    error: The largest error, relative or absolute as was asked for.
  """

  coefficients: tuple[float, ...]
  error: float

  @property
  def program(self) -> straight_line.Program:
    """Its evaluation by Horner's rule."""
    return straight_line.horner(self.coefficients)


def minimax(
  function: Callable[[np.ndarray], np.ndarray],
  degree: int,
  low: float,
  high: float,
  *,
  relative: bool = True,
) -> Minimax:
  """Finds the polynomial whose largest error is least, by Remez's exchange.

  Its error has the same magnitude and alternating signs at `degree + 2` points,
  which are found in turns: from points follow coefficients that level the error
  at them, and from these the points where the error is largest. In float64,
  which bounds what can be reached to some 1e-15.

  Args:
    function: Takes and returns `f64[n]`; not 0 in the interval if the error is
      relative.
    degree: Of the polynomial, 1 or more.
    low: Where the interval begins.
    high: Where it ends.
    relative: Whether the error is relative to the function.

  Returns:
    The polynomial, in powers of the argument itself.

  Raises:
    ValueError: If there is no interval or the degree is below 1, or the
      function is not finite, or zero, somewhere in it.

  Examples:
    >>> line = minimax(np.exp2, 1, 0.0, 1.0, relative=False)
    >>> [round(c, 4) for c in line.coefficients], round(line.error, 4)
    ([0.957, 1.0], 0.043)

  References:
    Remez, Sur le calcul effectif des polynômes d'approximation de Tchebichef,
      1934.
  """
  if not low < high or degree < 1:
    raise ValueError(
      f'minimax: expected an interval and a degree of 1 or more, got {low} to'
      f' {high} and {degree}'
    )
  count = degree + 2
  # Extrema of the polynomial of Chebyshev, and many points between them.
  turns = np.linspace(0, np.pi, _GRID * (count - 1) + 1)
  t = -np.cos(turns)
  x = low + (high - low) * (t + 1) / 2
  y = np.asarray(function(x), np.float64)
  scale = y if relative else np.ones_like(y)
  if not np.all(np.isfinite(y)) or np.min(scale) * np.max(scale) <= 0:
    raise ValueError(
      'minimax: the function is not finite'
      f'{", or zero," if relative else ""} somewhere from {low} to {high}'
    )
  basis = np.polynomial.chebyshev.chebvander(t, degree)
  signs = (-1.0) ** np.arange(count)
  chosen = np.arange(count) * _GRID
  for _ in range(_TURNS):
    levelled = np.column_stack([basis[chosen], signs * scale[chosen]])
    *coefficients, level = np.linalg.solve(levelled, y[chosen])
    error = (y - basis @ coefficients) / scale
    found = _alternating(error, count)
    if len(found) < count or np.array_equal(found, chosen):
      break  # The error is that of float64, or cannot become more level.
    chosen = found
    if np.max(np.abs(error)) <= abs(level) * (1 + 1e-9):
      break
  series = np.polynomial.Chebyshev(coefficients, domain=[low, high])
  power = series.convert(kind=np.polynomial.Polynomial).coef
  power = np.pad(power, (0, degree + 1 - len(power)))
  return Minimax(tuple(map(float, power)), float(np.max(np.abs(error))))


def _alternating(error: np.ndarray, count: int) -> np.ndarray:
  """Places of the largest errors, with alternating signs."""
  starts = np.flatnonzero(np.diff(error >= 0)) + 1
  runs = np.split(np.arange(error.size), starts)
  peaks = [run[np.argmax(np.abs(error[run]))] for run in runs]
  while len(peaks) > count:
    # An end goes alone; two neighbours together, so that signs alternate.
    sizes = np.abs(error[peaks])
    if len(peaks) == count + 1:
      del peaks[0 if sizes[0] < sizes[-1] else -1]
    else:
      pairs = np.maximum(sizes[:-1], sizes[1:])
      first = int(np.argmin(pairs))
      del peaks[first : first + 2]
  return np.array(peaks)
