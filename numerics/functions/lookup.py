"""Functions from tables: pieces of polynomials, and two tables added."""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numerics.functions import polynomials


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
  """A polynomial for each of equal parts of an interval.

  The upper bits of an argument choose the part, and its polynomial is evaluated
  by Horner's rule at the distance from the middle of the part: with degree 0 a
  plain table. Each degree makes the error smaller by about as many bits as
  choose the part.

  Attributes:
    low: Where the interval begins.
    high: Where it ends.
    coefficients: f32[parts, degree + 1], from that of 1 upward.

  Examples:
    >>> exp2 = pieces(np.exp2, 0.0, 1.0, bits=4, degree=2)
    >>> exp2.coefficients.shape, abs(float(exp2(0.3)) - 2**0.3) < 1e-6
    ((16, 3), True)
  """

  low: float
  high: float
  coefficients: np.ndarray

  def __call__(self, x: jax.typing.ArrayLike) -> jax.Array:
    """Computes it for float32; beyond the interval, the nearest part does."""
    x = jnp.asarray(x, jnp.float32)
    parts = len(self.coefficients)
    scaled = (x - np.float32(self.low)) * np.float32(
      parts / (self.high - self.low)
    )
    part = jnp.clip(jnp.floor(scaled), 0, parts - 1)
    distance = scaled - part - np.float32(0.5)
    table = jnp.asarray(self.coefficients)[part.astype(jnp.int32)]
    value = table[..., -1]
    for place in reversed(range(self.coefficients.shape[1] - 1)):
      value = value * distance + table[..., place]
    return value


def pieces(
  function: Callable[[np.ndarray], np.ndarray],
  low: float,
  high: float,
  *,
  bits: int,
  degree: int,
) -> Pieces:
  """Makes tables of coefficients.

  Args:
    function: Takes and returns `f64[n]`.
    low: Where the interval begins.
    high: Where it ends.
    bits: There are `2**bits` parts, from 0 to 16 bits.
    degree: Of the polynomials, 0 or more.

  Returns:
    The function. Errors are absolute, the least possible for the degree but for
    roundings of coefficients and of the evaluation to float32.

  Raises:
    ValueError: If there is no interval, or a number is not in its range.
  """
  if not low < high or not 0 <= bits <= 16 or degree < 0:
    raise ValueError(
      'pieces: expected an interval, 0 to 16 bits and a degree of 0 or more;'
      f' got {low} to {high}, {bits} and {degree}'
    )
  parts = 1 << bits
  width = (high - low) / parts
  rows = []
  for part in range(parts):
    start = low + part * width

    def shifted(t, start=start):
      return function(start + (t + 0.5) * width)

    if degree:
      found = polynomials.minimax(shifted, degree, -0.5, 0.5, relative=False)
      rows.append(found.coefficients)
    else:
      values = shifted(np.linspace(-0.5, 0.5, 65))
      rows.append(((values.min() + values.max()) / 2,))
  return Pieces(low, high, np.array(rows, np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class Bipartite:
  """A function of a code as the sum of what two tables say: no product.

  The code has three fields, `a`, `b`, `c`, from its upper bits to its lower
  ones: the first table is at the middle of all `c`, with `a` and `b`, and the
  second has the slope with `a` alone times the distance from that middle.

  Attributes:
    bits: Widths of the three fields.
    values: f32[2**(bits[0] + bits[1])].
    offsets: f32[2**bits[0], 2**bits[2]].

  Examples:
    >>> exp2 = bipartite(np.exp2, 0.0, 1.0, bits=(4, 4, 4))
    >>> exp2.entries, 2**12
    (512, 4096)
    >>> abs(float(exp2(2048)) - 2 ** (2048 / 4096)) < 1e-3
    True

  References:
    Das Sarma, Matula, Faithful Bipartite ROM Reciprocal Tables, 1995.
    Schulte, Stine, Approximating Elementary Functions with Symmetric Bipartite
      Tables, 1999.
  """

  bits: tuple[int, int, int]
  values: np.ndarray
  offsets: np.ndarray

  @property
  def entries(self) -> int:
    """How many numbers are in both tables."""
    return self.values.size + self.offsets.size

  def __call__(self, code: jax.typing.ArrayLike) -> jax.Array:
    """Adds up two entries.

    Args:
      code: Integers from 0 to `2**sum(bits) - 1`, others are clipped.

    Returns:
      float32.

    Raises:
      TypeError: If codes are no integers.
    """
    code = jnp.asarray(code)
    if not jnp.issubdtype(code.dtype, jnp.integer):
      raise TypeError(f'Bipartite: expected integers, got {code.dtype}')
    code = jnp.clip(code.astype(jnp.int32), 0, 2 ** sum(self.bits) - 1)
    _, middle, lower = self.bits
    value = jnp.asarray(self.values)[code >> lower]
    c = code & ((1 << lower) - 1)
    return value + jnp.asarray(self.offsets)[code >> (middle + lower), c]


def bipartite(
  function: Callable[[np.ndarray], np.ndarray],
  low: float,
  high: float,
  *,
  bits: tuple[int, int, int],
) -> Bipartite:
  """Makes both tables.

  Args:
    function: Takes and returns `f64[n]`.
    low: What the code 0 stands for.
    high: What the code after the last stands for; codes are evenly spaced.
    bits: Widths of the fields of a code, 16 bits together at most.

  Returns:
    The function.

  Raises:
    ValueError: If there is no interval, or widths are not as they have to be.
  """
  if not low < high or min(bits) < 1 or sum(bits) > 16:
    raise ValueError(
      'bipartite: expected an interval and three widths, 16 bits together at'
      f' most; got {low} to {high} and {bits}'
    )
  upper, middle, lower = bits
  step = (high - low) / 2 ** sum(bits)
  half = (2**lower - 1) / 2
  first = np.arange(2 ** (upper + middle)) * 2**lower
  last = first + 2**lower - 1

  def at(code):
    return np.asarray(function(low + code * step), np.float64)

  # The mean of both ends halves what the bend of the function costs.
  values = (at(first) + at(last)) / 2
  # The slope over all that share an entry: by the ends of their middle part.
  begin = (
    np.arange(2**upper) * 2 ** (middle + lower) + (2**middle // 2) * 2**lower
  )
  slope = (at(begin + 2**lower - 1) - at(begin)) / (2**lower - 1)
  offsets = slope[:, None] * (np.arange(2**lower) - half)
  return Bipartite(bits, values.astype(np.float32), offsets.astype(np.float32))
