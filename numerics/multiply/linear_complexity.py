"""L-Mul: multiplication of floating-point numbers by adding integers."""

import dataclasses
from fractions import Fraction
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics.multiply import multiplier

Variant = typing.Literal['bits', 'value']
Overflow = typing.Literal['inf', 'saturate']

_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_FRACTION = np.uint32(0x007FFFFF)
_HIDDEN = np.uint32(0x00800000)
_BIAS = np.uint32(0x3F800000)
_INF = np.uint32(0x7F800000)
_NAN = np.uint32(0x7FC00000)
_LARGEST = np.uint32(0x7F7FFFFF)
_ZERO = np.uint32(0)


@dataclasses.dataclass(frozen=True)
class LMul(multiplier.Multiplier):
  """Linear-complexity multiplication: mantissas are added, not multiplied.

  Of `x = (1 + a) · 2**p` and `y = (1 + b) · 2**q`, whose mantissas are first
  truncated to `mantissa_bits`, the product `(1 + a + b + ab) · 2**(p + q)` is
  taken to be

      (1 + a + b + δ) · 2**(p + q),   δ = 2**-l,
      l = m for m <= 3, 3 for m = 4, 4 for m > 4,   m = mantissa_bits.

  `variant='value'` is that number. `variant='bits'` is what hardware and the
  published kernels do, one addition of the whole bit patterns: where
  `a + b + δ >= 1` the carry moves into the exponent, and the result is
  `2 (a + b + δ) · 2**(p + q)`, which is nearer to the product (mean relative
  error of full mantissas 2.7 %, against 7.6 %); next to the end, from 2 on, it
  is `4 (a + b + δ − 1) · 2**(p + q)`. It is the default. With `δ = 0` it is
  Mitchell's multiplier. Multiplying by 1 is no identity: `δ` shifts it.

  Zeros, and what kernels leave out: a zero or denormal operand makes zero, as
  does a result below 2**-126; signs are those of the exact product; infinities
  and NaN propagate, and zero times infinity is NaN.

  Attributes:
    mantissa_bits: How many bits of a mantissa are kept, from 1 to 23.
    variant: As above.
    delta: `δ`, a multiple of `2**-mantissa_bits` from 0 to 1/2; None: that of
      the paper.
    overflow: Whether a result beyond float32 is infinite or the largest.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> multiply = numerics.LMul(mantissa_bits=4)
    >>> x = jnp.array([1.0, 1.5, -3.0, 0.0])
    >>> multiply(x, jnp.float32(1.5)).tolist()  # Exact: 1.5, 2.25, −4.5, 0.
    [1.625, 2.25, -4.5, 0.0]
    >>> jax.grad(lambda x: multiply(x, jnp.float32(1.5)).sum())(x).tolist()
    [1.5, 1.5, 1.5, 1.5]
    >>> policy = numerics.Policy(matmul=numerics.Precision(multiply=multiply))
    >>> float(numerics.emulate(jnp.dot, policy)(x, x))
    12.375

  References:
    Luo and Sun, Addition is All You Need for Energy-efficient Language Models,
      2024, arXiv:2410.00907.
    Mitchell, Computer Multiplication and Division Using Binary Logarithms,
      1962, doi:10.1109/TEC.1962.5219391.
  """

  mantissa_bits: int = 4
  variant: Variant = 'bits'
  delta: float | None = None
  overflow: Overflow = 'inf'

  def __post_init__(self) -> None:
    number_format.check_int('LMul', 'mantissa_bits', self.mantissa_bits, 1, 23)
    for field, choices in (('variant', Variant), ('overflow', Overflow)):
      number_format.check_choice(
        'LMul', field, getattr(self, field), typing.get_args(choices)
      )
    if self.delta is None:
      return
    if not isinstance(self.delta, int | float):
      raise TypeError(f'LMul: delta must be a number, got {self.delta!r}.')
    whole = float(self.delta * 2**self.mantissa_bits).is_integer()
    if not 0 <= self.delta <= 0.5 or not whole:
      raise ValueError(
        'LMul: delta must be from 0 to 1/2 and a multiple of'
        f' 2**-mantissa_bits = {2.0**-self.mantissa_bits}; got {self.delta}.'
      )

  @property
  def offset(self) -> float:
    """`δ`, the given one or that of the paper."""
    if self.delta is not None:
      return self.delta
    m = self.mantissa_bits
    return 2.0 ** -(m if m <= 3 else 3 if m == 4 else 4)

  @property
  def expected_error(self) -> float:
    """The mean error of a product, in units of `2**(p + q)`.

    For mantissas spread evenly over [0, 1), so that the exact product is 9/4 in
    the mean. Truncated ones take the values `i / n`, `n = 2**mantissa_bits`,
    alike. In the limit of long mantissas it is `δ − 1/4` of values, and
    `2δ + (1 − δ)**3 / 6 + δ**3 / 3 − 1/4` of bits, its third term that of a
    second carry; of powers of two it is least at `δ = 1/16`.

    Examples:
      >>> import numerics
      >>> round(numerics.LMul(mantissa_bits=23).expected_error, 5)
      0.01241
    """
    n = 2**self.mantissa_bits
    offset = Fraction(self.offset)
    mean = 1 + Fraction(n - 1, n) + offset
    if self.variant == 'bits':
      # What is beyond 1, s = i + j + d − n in units of 1 / n, counts twice.
      d = int(offset * n)

      def total(count, first, last):  # Of s · (count_0 + count_1 · s).
        def sums(k):
          return k * (k + 1) // 2, k * (k + 1) * (2 * k + 1) // 6

        (a1, a2), (b1, b2) = sums(first - 1), sums(last)
        return count[0] * (b1 - a1) + count[1] * (b2 - a2)

      beyond = total((n - d + 1, 1), 1, d - 2) if d > 2 else 0
      beyond += total((n - 1 + d, -1), max(d - 1, 1), n - 1 + d)
      # And beyond 2 again, twice as much.
      beyond += 2 * total((d - 1, -1), 1, d - 2) if d > 2 else 0
      mean += Fraction(beyond, n**3)
    return float(mean - Fraction(9, 4))

  def product(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies float32 arrays."""
    dropped = 23 - self.mantissa_bits
    kept = np.uint32(0xFFFFFFFF >> dropped << dropped)
    x = jax.lax.bitcast_convert_type(x, jnp.uint32)
    y = jax.lax.bitcast_convert_type(y, jnp.uint32)
    sign = (x ^ y) & _SIGN
    a, b = x & _MAGNITUDE, y & _MAGNITUDE
    delta = np.uint32(self.offset * 2**23)
    form = _sum_of_bits if self.variant == 'bits' else _sum_of_values
    found, small = form(a & kept, b & kept, delta)
    end = _INF if self.overflow == 'inf' else _LARGEST
    found = jnp.where(found >= _INF, end, found)
    zero = jnp.minimum(a, b) < _HIDDEN
    found = jnp.where(small | zero, _ZERO, found)
    # What is not finite is greater than any number; NaN than infinity.
    great = jnp.maximum(a, b)
    special = jnp.where((great > _INF) | zero, _NAN, _INF)
    found = jnp.where(great >= _INF, special, found)
    return jax.lax.bitcast_convert_type(found | sign, jnp.float32)


def _sum_of_bits(
  a: jax.Array, b: jax.Array, delta: np.uint32
) -> tuple[jax.Array, jax.Array]:
  """The pattern of the product of magnitudes, and whether it is too small."""
  constant = np.uint32(_BIAS - delta)
  total = a + b  # Of numbers less than 2**32.
  return total - constant, total < constant + _HIDDEN


def _sum_of_values(
  a: jax.Array, b: jax.Array, delta: np.uint32
) -> tuple[jax.Array, jax.Array]:
  """Likewise, without a carry into the exponent."""
  significand = _HIDDEN + (a & _FRACTION) + (b & _FRACTION) + delta
  more = significand >> np.uint32(24)  # 1 from 2 on; it is less than 4.
  # One bit may be lost; to nearest, on a tie to even.
  halved = (significand + ((significand >> more) & more)) >> more
  fields = (a >> np.uint32(23)) + (b >> np.uint32(23)) + more
  # The hidden bit counts one in the exponent field.
  field = jnp.maximum(fields, np.uint32(128)) - np.uint32(128)
  return (field << np.uint32(23)) + halved, fields < np.uint32(128)


def lmul(
  x: jax.typing.ArrayLike,
  y: jax.typing.ArrayLike,
  *,
  mantissa_bits: int = 4,
  variant: Variant = 'bits',
) -> jax.Array:
  """Multiplies by adding mantissas: `LMul(mantissa_bits, variant)(x, y)`.

  Args:
    x: float32, bfloat16 or float16.
    y: Likewise, of a shape that broadcasts.
    mantissa_bits: How many bits of a mantissa are kept.
    variant: `'bits'` adds bit patterns, `'value'` is the formula of the paper.

  Returns:
    float32. The derivative is that of the exact product.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.float32(1.75)
    >>> float(numerics.lmul(x, x)), float(numerics.lmul(x, x, variant='value'))
    (3.25, 2.625)

  References:
    Luo and Sun, Addition is All You Need for Energy-efficient Language Models,
      2024, arXiv:2410.00907.
  """
  return LMul(mantissa_bits, variant)(x, y)
