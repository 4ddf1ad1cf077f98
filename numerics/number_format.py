"""What all number formats have in common, and rounding needs to know."""

import typing

import numpy as np


class NumberFormat:
  """A set of numbers that float32 carries, with a rule for what lies beyond.

  `Format` (floating point) and `FixedPoint` are of this kind. It holds the few
  facts by which numbers are rounded to a format, scaled, counted and looked up,
  so that whatever takes one of them takes all.

  Attributes:
    bits: Width of a code.
    infinities: Whether the format has ±inf.
    overflow: What a number becomes that rounds beyond the range: `'inf'`,
      `'nan'`, `'saturate'` (the end of the range) or `'wrap'` (congruent to it
      modulo `2**bits` steps).
    subnormals: Whether values are spaced evenly towards zero.
    uniform: Whether they are so everywhere.
  """

  if typing.TYPE_CHECKING:  # Fields of the dataclasses that formats are.

    @property
    def bits(self) -> int: ...  # noqa: D102

    @property
    def infinities(self) -> bool: ...  # noqa: D102

    @property
    def overflow(self) -> str: ...  # noqa: D102

    @property
    def subnormals(self) -> bool: ...  # noqa: D102

    @property
    def uniform(self) -> bool: ...  # noqa: D102

  @property
  def name(self) -> str:
    """A name, distinct for every format."""
    raise NotImplementedError

  @property
  def min(self) -> float:
    """The smallest finite value."""
    raise NotImplementedError

  @property
  def max(self) -> float:
    """The largest finite value."""
    raise NotImplementedError

  @property
  def min_positive(self) -> float:
    """The smallest positive value, a power of two."""
    raise NotImplementedError

  @property
  def emin(self) -> int:
    """Exponent from which on spacing grows with the value, if it does."""
    raise NotImplementedError

  @property
  def emax(self) -> int:
    """Exponent of the largest number: `2**emax <= max < 2**(emax + 1)`."""
    raise NotImplementedError

  @property
  def last_place(self) -> int:
    """Every value is a multiple of two to this."""
    raise NotImplementedError

  @property
  def significant_bits(self) -> int:
    """Bits from the first to the last that is not zero, at most."""
    raise NotImplementedError

  @property
  def negative_zero(self) -> bool:
    """Whether −0 exists; where it does not, −0 becomes +0."""
    raise NotImplementedError

  def contains(self, other: 'NumberFormat') -> bool:
    """Whether every number of another format is one of this.

    Examples:
      >>> import numerics
      >>> numerics.bfloat16.contains(numerics.float8_e4m3fn)
      True
      >>> numerics.bfloat16.contains(numerics.int8)
      True
      >>> numerics.int8.contains(numerics.float4_e2m1fn)  # 0.5 is not.
      False
    """
    return (
      (self.uniform or other.significant_bits <= self.significant_bits)
      and other.last_place >= self.last_place
      and other.min_positive >= self.min_positive
      and other.min >= self.min
      and other.max <= self.max
    )

  def values(self) -> np.ndarray:
    """All finite values, ascending, zero once: float32[n]."""
    raise NotImplementedError


def check_int(owner: str, field: str, value: object, low: int, high: int):
  """Raises if a field is not an int in a range."""
  if isinstance(value, bool) or not isinstance(value, int):
    raise TypeError(
      f'{owner}: {field} must be an int, got {value!r} of type'
      f' {type(value).__name__}.'
    )
  if not low <= value <= high:
    raise ValueError(
      f'{owner}: {field} must be from {low} to {high}, got {value}; float32'
      ' carries nothing wider.'
    )


def check_bool(owner: str, field: str, value: object) -> None:
  """Raises if a field is not a bool."""
  if not isinstance(value, bool):
    raise TypeError(f'{owner}: {field} must be a bool, got {value!r}.')


def check_choice(
  owner: str, field: str, value: object, choices: tuple[str, ...]
) -> None:
  """Raises if a field is none of what it may be."""
  if value not in choices:
    raise ValueError(
      f'{owner}: {field} must be one of {", ".join(choices)}; got {value!r}.'
    )


def check_enumerable(fmt: NumberFormat) -> None:
  """Raises if a format has too many values to list."""
  if fmt.bits > 16:
    raise ValueError(
      f'{type(fmt).__name__}.values: {fmt.name} has {fmt.bits} bits; only'
      ' formats of at most 16 bits are enumerated.'
    )
