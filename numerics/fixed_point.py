"""Fixed-point numbers and integers whose values are carried in float32."""

import dataclasses
import typing

import numpy as np

from numerics import number_format

Overflow = typing.Literal['saturate', 'wrap']


@dataclasses.dataclass(frozen=True)
class FixedPoint(number_format.NumberFormat):
  """Evenly spaced numbers: integers, each times `2**-fraction_bits`.

      {k · 2**-fraction_bits :  low <= k <= high},
      low, high = -2**(bits - 1), 2**(bits - 1) - 1   if signed,
                  0, 2**bits - 1                      otherwise.

  Integers are those without fraction bits. In the language of high-level
  synthesis, `ap_fixed<W, I>` is `FixedPoint(W, W - I)`, whose name here is Qm.n
  with the sign counted in `m`. Quantisation modes of that language are modes of
  `round_to`: `AP_TRN` is `'down'`, `AP_TRN_ZERO` `'toward_zero'`,
  `AP_RND_CONV` `'nearest_even'`, `AP_RND_INF` `'nearest_away'`.

  As with `Format`, values live in float32 arrays. Its 24 significant bits are
  what there is: a format beyond them is refused, and so is exact only an
  operation whose result has no more.

  Attributes:
    bits: Width of a code, the sign included.
    fraction_bits: How many of them are right of the binary point. More than
      there are, and negative numbers, put the point outside of the code.
    signed: Whether codes are in two's complement.
    overflow: What a number becomes that rounds to one out of range:
      `'saturate'`, the nearer end of the range, or `'wrap'`, what its lowest
      `bits` bits say (`AP_WRAP`). Infinity wraps to NaN.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If float32 cannot carry every value.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> fmt = numerics.FixedPoint(4, 2)
    >>> fmt.name, fmt.min, fmt.max
    ('q2.2', -2.0, 1.75)
    >>> x = jnp.array([0.3, -0.9, 1.9, 5.1])
    >>> numerics.round_to(x, fmt).tolist()
    [0.25, -1.0, 1.75, 1.75]
    >>> wrapping = numerics.FixedPoint(4, 2, overflow='wrap')
    >>> numerics.round_to(x, wrapping).tolist()  # 2 is −2, and 5 is 1.
    [0.25, -1.0, -2.0, 1.0]
    >>> numerics.emulate(lambda x: x * x, numerics.int8)(jnp.float32(11.6))
    Array(127., dtype=float32)

  References:
    Xilinx, Vitis High-Level Synthesis User Guide, UG1399 (`ap_fixed`).
    Yates, Fixed-Point Arithmetic: An Introduction, 2007.
  """

  bits: int
  fraction_bits: int = 0
  signed: bool = True
  overflow: Overflow = 'saturate'

  def __post_init__(self) -> None:
    number_format.check_bool('FixedPoint', 'signed', self.signed)
    number_format.check_int(
      'FixedPoint', 'bits', self.bits, 1 + self.signed, 24 + self.signed
    )
    number_format.check_int(
      'FixedPoint',
      'fraction_bits',
      self.fraction_bits,
      self.significant_bits - 127,
      126,
    )
    number_format.check_choice(
      'FixedPoint', 'overflow', self.overflow, typing.get_args(Overflow)
    )

  @property
  def name(self) -> str:
    """`int8`, or `q2.6` for eight bits of which six are a fraction."""
    if self.fraction_bits:
      name = f'q{self.bits - self.fraction_bits}.{self.fraction_bits}'
    else:
      name = f'int{self.bits}'
    name = name if self.signed else f'u{name}'
    return name if self.overflow == 'saturate' else f'{name}_{self.overflow}'

  @property
  def uniform(self) -> bool:
    """Whether values are evenly spaced everywhere: yes."""
    return True

  @property
  def subnormals(self) -> bool:
    """Whether values are evenly spaced towards zero: yes."""
    return True

  @property
  def infinities(self) -> bool:
    """Whether the format has ±inf: no."""
    return False

  @property
  def negative_zero(self) -> bool:
    """Whether −0 exists: no, it becomes +0."""
    return False

  @property
  def step(self) -> float:
    """The distance of neighbours, `2**-fraction_bits`."""
    return 2.0**-self.fraction_bits

  @property
  def min_code(self) -> int:
    """The integer of the smallest value."""
    return -(2 ** (self.bits - 1)) if self.signed else 0

  @property
  def max_code(self) -> int:
    """The integer of the largest value."""
    return 2**self.significant_bits - 1

  @property
  def min(self) -> float:
    """The smallest value."""
    return self.min_code * self.step

  @property
  def max(self) -> float:
    """The largest value."""
    return self.max_code * self.step

  @property
  def min_positive(self) -> float:
    """The smallest positive value, the step."""
    return self.step

  @property
  def emin(self) -> int:
    """Exponent of the step, since spacing does not grow."""
    return self.last_place

  @property
  def emax(self) -> int:
    """Exponent of the largest number: `2**emax <= max < 2**(emax + 1)`."""
    return self.significant_bits - 1 - self.fraction_bits

  @property
  def last_place(self) -> int:
    """Every value is a multiple of two to this, the step."""
    return -self.fraction_bits

  @property
  def significant_bits(self) -> int:
    """Bits of a magnitude."""
    return self.bits - self.signed

  def values(self) -> np.ndarray:
    """All values, ascending.

    Returns:
      float32[2**bits].

    Raises:
      ValueError: If the format is wider than 16 bits.
    """
    number_format.check_enumerable(self)
    codes = np.arange(self.min_code, self.max_code + 1)
    return np.ldexp(codes, -self.fraction_bits).astype(np.float32)


int2 = FixedPoint(2)
int4 = FixedPoint(4)
int8 = FixedPoint(8)
int16 = FixedPoint(16)
uint2 = FixedPoint(2, signed=False)
uint4 = FixedPoint(4, signed=False)
uint8 = FixedPoint(8, signed=False)
uint16 = FixedPoint(16, signed=False)
