"""CORDIC: functions from additions and shifts of integers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

# Hyperbolic rotations converge only if these are done twice.
_TWICE = frozenset([4, 13])


@dataclasses.dataclass(frozen=True)
class Cordic:
  """Rotations by angles whose tangent is a power of two, in fixed point.

  A vector is rotated by `±atan(2**-i)` for `i = 0, 1, ...`, which takes two
  shifts and two additions each, until the angle is used up (or until the vector
  lies on the axis). Hyperbolic rotations, by `±atanh(2**-i)` for `i = 1, ...`
  with the 4th and 13th done twice, give exponentials, logarithms and roots. The
  lengths that all rotations change vectors by are constants.

  A number `v` is the int32 `round(v * 2**fraction_bits)`. Every step truncates
  two numbers, and the last angle remains, so that results are within
  `2**(2 - iterations) + 2 * iterations * 2**-fraction_bits`, times the result
  where it exceeds 1.

  Attributes:
    fraction_bits: Bits after the binary point, at most 28: two in front of it
      and a sign are needed.
    iterations: How many rotations, at most `fraction_bits`.

  Raises:
    ValueError: If one of them is not in its range.

  Examples:
    >>> cordic = Cordic()
    >>> sine, cosine = cordic.sin_cos(cordic.encode(0.5))
    >>> round(float(cordic.decode(sine)), 5), round(math.sin(0.5), 5)
    (0.47943, 0.47943)

  References:
    Volder, The CORDIC Trigonometric Computing Technique, 1959.
    Walther, A Unified Algorithm for Elementary Functions, 1971.
  """

  fraction_bits: int = 28
  iterations: int = 24

  def __post_init__(self) -> None:
    if not 8 <= self.fraction_bits <= 28:
      raise ValueError(
        f'Cordic: fraction_bits must be from 8 to 28, got {self.fraction_bits}'
      )
    if not 1 <= self.iterations <= self.fraction_bits:
      raise ValueError(
        'Cordic: iterations must be from 1 to fraction_bits'
        f' ({self.fraction_bits}), got {self.iterations}'
      )

  def encode(self, x: float | np.ndarray) -> jax.Array:
    """Returns numbers in fixed point, to nearest: int32."""
    scaled = np.rint(np.asarray(x, np.float64) * 2.0**self.fraction_bits)
    if not np.all(np.abs(scaled) < 2**31):
      raise ValueError(
        f'Cordic: {x} is beyond ±{2 ** (31 - self.fraction_bits)}, which'
        f' {self.fraction_bits} bits after the point leave room for'
      )
    return jnp.asarray(scaled.astype(np.int32))

  def decode(self, codes: jax.Array | np.ndarray) -> np.ndarray:
    """Returns what codes stand for, float64."""
    return np.asarray(codes, np.float64) * 2.0**-self.fraction_bits

  def sin_cos(self, angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine.

    Args:
      angle: int32 in fixed point, in radians; from −1.74 to 1.74, the sum of
        all angles.

    Returns:
      Both, int32.

    Raises:
      TypeError: If the angle is no int32.
    """
    angle = self._checked('sin_cos', angle)
    shifts = range(self.iterations)
    length = math.prod(math.sqrt(1 + 4.0**-i) for i in shifts)
    cosine, sine, _ = self._rotate(
      shifts, math.atan, 1, jnp.full_like(angle, self._code(1 / length)), angle
    )
    return sine, cosine

  def exp(self, x: jax.Array) -> jax.Array:
    """The exponential.

    Args:
      x: int32 in fixed point, from −1.11 to 1.11; more is for the caller to
        split off, as a power of two.

    Returns:
      int32 in fixed point.

    Raises:
      TypeError: If it is no int32.
    """
    x = self._checked('exp', x)
    shifts = self._hyperbolic()
    length = math.prod(math.sqrt(1 - 4.0**-i) for i in shifts)
    cosh, sinh, _ = self._rotate(
      shifts, math.atanh, -1, jnp.full_like(x, self._code(1 / length)), x
    )
    return cosh + sinh

  def log(self, x: jax.Array) -> jax.Array:
    """The natural logarithm, `2 atanh((x - 1) / (x + 1))`.

    Args:
      x: int32 in fixed point, from 0.11 to 6, and to 3 with 28 bits after the
        point, so that 1 more has room.

    Returns:
      int32 in fixed point.

    Raises:
      TypeError: If it is no int32.
    """
    x = self._checked('log', x)
    one = np.int32(1 << self.fraction_bits)
    return self._level(x + one, x - one)[1] << np.int32(1)

  def sqrt(self, x: jax.Array) -> jax.Array:
    """The square root, from `(x + 1/4)**2 - (x - 1/4)**2 = x`.

    Args:
      x: int32 in fixed point, from 0.03 to 2.

    Returns:
      int32 in fixed point.

    Raises:
      TypeError: If it is no int32.
    """
    x = self._checked('sqrt', x)
    quarter = np.int32(1 << (self.fraction_bits - 2))
    shifts = self._hyperbolic()
    root = self._level(x + quarter, x - quarter)[0]
    length = math.prod(math.sqrt(1 - 4.0**-i) for i in shifts)
    return self._times(root, 1 / length)

  def _hyperbolic(self) -> list[int]:
    shifts = range(1, self.iterations + 1)
    return [i for i in shifts for _ in range(1 + (i in _TWICE))]

  def _rotate(self, shifts, arc, sign, x, angle):
    """Rotates until the angle is used up."""
    y = jnp.zeros_like(x)
    for i in shifts:
      turn = np.int32(self._code(arc(2.0**-i)))
      left = angle >= 0
      dx, dy = y >> np.int32(i), x >> np.int32(i)
      turned = x + dx if sign < 0 else x - dx
      other = x - dx if sign < 0 else x + dx
      x = jnp.where(left, turned, other)
      y = jnp.where(left, y + dy, y - dy)
      angle = jnp.where(left, angle - turn, angle + turn)
    return x, y, angle

  def _level(self, x, y):
    """Rotates hyperbolically until `y` is used up; gives `x` and the angle."""
    angle = jnp.zeros_like(x)
    for i in self._hyperbolic():
      turn = np.int32(self._code(math.atanh(2.0**-i)))
      above = y >= 0
      dx, dy = y >> np.int32(i), x >> np.int32(i)
      x = jnp.where(above, x - dx, x + dx)
      y = jnp.where(above, y - dy, y + dy)
      angle = jnp.where(above, angle + turn, angle - turn)
    return x, angle

  def _times(self, x, constant):
    """Multiplies by a constant: a shift and an addition for each bit."""
    code = round(constant * 2**self.fraction_bits)
    total = jnp.zeros_like(x)
    for place in range(code.bit_length()):
      if code >> place & 1:
        total += _shifted(x, place - self.fraction_bits)
    return total

  def _code(self, value: float) -> int:
    return round(value * 2**self.fraction_bits)

  def _checked(self, name: str, x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    if x.dtype != jnp.int32:
      raise TypeError(
        f'Cordic.{name}: expected int32 in fixed point, as encode makes it, got'
        f' {x.dtype}'
      )
    return x


def _shifted(x, places):
  return x << np.int32(places) if places >= 0 else x >> np.int32(-places)
