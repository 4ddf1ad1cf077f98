"""Integer arithmetic that JAX lacks: 64 bits, division to nearest.

Integers of 64 bits are pairs of 32, for which JAX needs no `enable_x64`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_LAST = np.uint32(31)
_LARGEST = np.int32(2**31 - 1)
_SMALLEST = np.int32(-(2**31))

# Numbers that `total` adds: more could carry beyond the halves it adds apart.
LONGEST = 2**16


class Wide(NamedTuple):
  """Integers of 64 bits: `high · 2**32 + low`.

  Signed ones are in two's complement.

  Attributes:
    high: u32[...].
    low: u32[...].
  """

  high: jax.Array
  low: jax.Array


def product(a: jax.Array, b: jax.Array) -> Wide:
  """The exact product of numbers without sign.

  Args:
    a: u32[...].
    b: u32[...], which broadcasts.

  Examples:
    >>> import jax.numpy as jnp
    >>> largest = jnp.uint32(2**32 - 1)
    >>> [hex(x) for x in product(largest, largest)]
    ['0xfffffffe', '0x1']
  """
  a1, a0 = a >> _HALF, a & _LOW
  b1, b0 = b >> _HALF, b & _LOW
  # No sum reaches 2**32.
  first = a0 * b1 + (a0 * b0 >> _HALF)
  second = a1 * b0 + (first & _LOW)
  high = a1 * b1 + (first >> _HALF) + (second >> _HALF)
  return Wide(high, a * b)


def signed_product(a: jax.Array, b: jax.Array) -> Wide:
  """The exact product of signed numbers.

  Args:
    a: i32[...].
    b: i32[...], which broadcasts.

  Examples:
    >>> import jax.numpy as jnp
    >>> [hex(x) for x in signed_product(jnp.int32(-3), jnp.int32(5))]
    ['0xffffffff', '0xfffffff1']
  """
  x, y = a.astype(jnp.uint32), b.astype(jnp.uint32)
  found = product(x, y)
  # A negative number is 2**32 too large.
  excess = _where(a < 0, y) + _where(b < 0, x)
  return Wide(found.high - excess, found.low)


def add(a: Wide, b: Wide) -> Wide:
  """The sum, modulo 2**64."""
  low = a.low + b.low
  carry = (low < a.low).astype(jnp.uint32)
  return Wide(a.high + b.high + carry, low)


def total(x: jax.Array, axis: int = -1) -> Wide:
  """The exact sum along an axis, of numbers without sign.

  Args:
    x: u32[...], of at most 2**16 along the axis.
    axis: Which.

  Raises:
    ValueError: If there are more.
  """
  if x.shape[axis] > LONGEST:
    raise ValueError(
      f'total: at most {LONGEST} numbers can be added, got {x.shape[axis]}'
      f' along axis {axis}; add them in parts.'
    )
  upper = jnp.sum(x >> _HALF, axis=axis, dtype=jnp.uint32)
  lower = jnp.sum(x & _LOW, axis=axis, dtype=jnp.uint32)
  return add(
    Wide(upper >> _HALF, upper << _HALF), Wide(jnp.zeros_like(lower), lower)
  )


def shift_left(x: Wide, count: int) -> Wide:
  """`x · 2**count`, modulo 2**64, for `count` from 1 to 31."""
  left, right = np.uint32(count), np.uint32(32 - count)
  return Wide(x.high << left | x.low >> right, x.low << left)


def of_int32(x: jax.Array) -> Wide:
  """The same signed numbers, i32[...]."""
  sign = x >> np.int32(31)
  return Wide(sign.astype(jnp.uint32), x.astype(jnp.uint32))


def power(count: jax.Array) -> Wide:
  """`2**count`, for u32[...] from 0 to 63."""
  one = np.uint32(1) << (count & _LAST)
  far = count > _LAST
  return Wide(_where(far, one), _where(~far, one))


def shift_right(x: Wide, count: jax.Array) -> Wide:
  """`floor(x / 2**count)` of a signed number.

  Args:
    x: The number.
    count: u32[...], from 0 to 63, which broadcasts.
  """
  sign = (x.high.astype(jnp.int32) >> np.int32(31)).astype(jnp.uint32)
  far = count > _LAST
  # By 32, then by less than 32; and a shift by 32 − n is one by 1 and 31 − n.
  high, low = jnp.where(far, sign, x.high), jnp.where(far, x.high, x.low)
  rest = count & _LAST
  carried = high << np.uint32(1) << (_LAST - rest)
  shifted = high.astype(jnp.int32) >> rest.astype(jnp.int32)
  return Wide(shifted.astype(jnp.uint32), low >> rest | carried)


def saturated(x: Wide) -> jax.Array:
  """The nearest number of 32 bits to a signed one, i32[...]."""
  value = x.low.astype(jnp.int32)
  sign = value >> np.int32(31)
  fits = x.high.astype(jnp.int32) == sign
  negative = x.high > np.uint32(_LARGEST)
  return jnp.where(fits, value, jnp.where(negative, _SMALLEST, _LARGEST))


def quotient(x: Wide, y: jax.Array) -> jax.Array:
  """`floor(x / y)` of numbers without sign, a bit in each of 64 turns.

  Args:
    x: The number.
    y: u32[...], from 1 to 2**31.

  Returns:
    u32[...], modulo 2**32.

  Examples:
    >>> import jax.numpy as jnp
    >>> x = Wide(jnp.uint32(5), jnp.uint32(7))
    >>> int(quotient(x, jnp.uint32(10))) == (5 * 2**32 + 7) // 10
    True
  """

  def turn(_, state):
    rest, x, found = state
    rest = rest << np.uint32(1) | x.high >> _LAST
    more = rest >= y
    rest = jnp.where(more, rest - y, rest)
    found = found << np.uint32(1) | more.astype(jnp.uint32)
    return rest, shift_left(x, 1), found

  zero = jnp.zeros_like(x.low)
  return jax.lax.fori_loop(0, 64, turn, (zero, x, zero))[2]


def square_root(x: Wide) -> jax.Array:
  """`floor(√x)` of a number without sign, u32[...]: a bit in each of 32 turns.

  Examples:
    >>> import jax.numpy as jnp
    >>> int(square_root(Wide(jnp.uint32(1), jnp.uint32(0))))
    65536
  """

  def turn(place: jax.Array, root: jax.Array) -> jax.Array:
    more = root | np.uint32(1) << (_LAST - place.astype(jnp.uint32))
    square = product(more, more)
    below = (square.high < x.high) | (
      (square.high == x.high) & (square.low <= x.low)
    )
    return jnp.where(below, more, root)

  return jax.lax.fori_loop(0, 32, turn, jnp.zeros_like(x.low))


def nearest_quotient(a: jax.Array, b: jax.Array | np.int32) -> jax.Array:
  """`a / b` to the nearest integer, on a tie to the even one.

  Args:
    a: i32[...].
    b: i32[...], positive, less than 2**30.

  Examples:
    >>> import jax.numpy as jnp
    >>> nearest_quotient(jnp.array([-3, -1, 1, 3, 5, 6]), np.int32(2)).tolist()
    [-2, 0, 0, 2, 2, 3]
  """
  quotient = a // b
  twice = 2 * (a - quotient * b)
  odd = quotient & 1 == 1
  return quotient + ((twice > b) | ((twice == b) & odd)).astype(jnp.int32)


def _where(condition: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.where(condition, x, np.uint32(0))
