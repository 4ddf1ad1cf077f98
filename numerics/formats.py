"""Binary floating-point formats whose values are carried in float32."""

import dataclasses
import functools
import typing

import numpy as np

from numerics import number_format

NanStyle = typing.Literal['ieee', 'all_ones', 'negative_zero', 'none']
Overflow = typing.Literal['inf', 'nan', 'saturate']


@dataclasses.dataclass(frozen=True)
class Format(number_format.NumberFormat):
  """A binary floating-point format, described by its encoding.

  A format is a set of numbers with a rule for what lies beyond the largest.
  It stores nothing itself: its values live in float32 arrays, the carrier,
  which holds each of them exactly. With `e` the exponent field and `f` the
  mantissa field of a code, the magnitude is

      (1 + f / 2**mantissa_bits) * 2**(e - bias)            if e > 0,
           f / 2**mantissa_bits  * 2**(1 - bias)            if e == 0.

  Formats are hashable, compare by value, and serve as static arguments of
  `jax.jit`. Derive one from another with `dataclasses.replace`, which keeps the
  bias.

  Attributes:
    exponent_bits: Width of the exponent field, at least 1.
    mantissa_bits: Width of the stored fraction, the hidden bit not counted;
      from 0 to 23.
    bias: What is subtracted from the exponent field. The default is that of
      IEEE 754, `2**(exponent_bits - 1) - 1`.
    subnormals: Whether exponent field 0 encodes subnormal numbers. Without
      them the only value below `min_normal` is zero.
    infinities: Whether the format has ±inf.
    nan: Which codes are NaN. `'ieee'`: the largest exponent field is kept for
      infinities and NaNs. `'all_ones'`: only the largest code of each sign
      ("fn"). `'negative_zero'`: only the code of −0, so that there is a single
      zero ("uz"); infinities, if any, take the largest code of each sign.
      `'none'`: no code.
    overflow: What a number becomes that rounds beyond the largest value:
      `'inf'`, `'nan'` or `'saturate'` (the largest value of its sign; this
      applies to infinities too, as in ONNX, OCP and NVIDIA's `satfinite`).

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If the fields contradict each other, or if float32 cannot carry
      every value of the format.

  Examples:
    >>> import dataclasses
    >>> import numerics
    >>> half = numerics.Format(exponent_bits=5, mantissa_bits=10)
    >>> half.max, half.min_normal == 2.0**-14, half.name
    (65504.0, True, 'float16')
    >>> dataclasses.replace(half, overflow='saturate').name
    'float16_saturate'
    >>> numerics.float4_e2m1fn.values()[7:].tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

  References:
    IEEE, IEEE Standard for Floating-Point Arithmetic, 2019, IEEE 754-2019.
    Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433.
    Rouhani et al., Microscaling Data Formats for Deep Learning, 2023,
      arXiv:2310.10537.
    Noune et al., 8-bit Numerical Formats for Deep Neural Networks, 2022,
      arXiv:2206.02915 (the single-zero "fnuz" formats).
  """

  exponent_bits: int
  mantissa_bits: int
  bias: int = typing.cast('int', None)  # Replaced by the default on creation.
  subnormals: bool = True
  infinities: bool = True
  nan: NanStyle = 'ieee'
  overflow: Overflow = 'inf'

  def __post_init__(self) -> None:
    check_int = functools.partial(number_format.check_int, 'Format')
    check_int('exponent_bits', self.exponent_bits, 1, 8)
    check_int('mantissa_bits', self.mantissa_bits, 0, 23)
    if self.bias is None:
      object.__setattr__(self, 'bias', 2 ** (self.exponent_bits - 1) - 1)
    check_int('bias', self.bias, -126, 127)
    for field in ('subnormals', 'infinities'):
      number_format.check_bool('Format', field, getattr(self, field))
    for field, choices in (('nan', NanStyle), ('overflow', Overflow)):
      number_format.check_choice(
        'Format', field, getattr(self, field), typing.get_args(choices)
      )
    if self.nan == 'ieee' and not self.infinities:
      raise ValueError(
        "Format: nan='ieee' keeps the largest exponent field for infinities"
        ' and NaNs, but infinities=False. Pass nan="all_ones",'
        ' "negative_zero" or "none".'
      )
    if self.nan == 'ieee' and self.mantissa_bits == 0:
      raise ValueError(
        "Format: nan='ieee' tells NaN from infinity by the mantissa, but"
        ' mantissa_bits=0. Pass infinities=False and nan="all_ones",'
        ' "negative_zero" or "none".'
      )
    if self.infinities and self.nan in ('all_ones', 'none'):
      raise ValueError(
        f'Format: infinities=True needs nan="ieee" or "negative_zero", got'
        f' {self.nan!r}.'
      )
    if self.overflow == 'inf' and not self.infinities:
      raise ValueError(
        "Format: overflow='inf' needs infinities=True. Pass overflow='nan'"
        " or 'saturate'."
      )
    if self.overflow == 'nan' and (self.infinities or self.nan == 'none'):
      raise ValueError(
        "Format: overflow='nan' is for formats with a NaN and no infinities,"
        f' got infinities={self.infinities}, nan={self.nan!r}. Pass overflow='
        f'{"inf" if self.infinities else "saturate"!r}.'
      )
    if self._max_code < 2**self.mantissa_bits:
      raise ValueError(
        f'Format: exponent_bits={self.exponent_bits} leaves no room for a'
        f' normal number with nan={self.nan!r}; add exponent bits.'
      )
    if self.emin < -126 or self.emax > 127:
      raise ValueError(
        'Format: float32 carries normal numbers with exponents from -126 to'
        f' 127, but this format needs {self.emin} to {self.emax}; change'
        f' bias={self.bias}.'
      )

  @property
  def name(self) -> str:
    """The preset's name, or one built like it, distinct for every format."""
    plain = dataclasses.replace(
      self, subnormals=True, overflow=self._default_overflow
    )
    name = _PRESET_NAMES.get(plain)
    if name is None:
      name = f'float{self.bits}_e{self.exponent_bits}m{self.mantissa_bits}'
      # A format without −0 usually has one more of bias.
      usual = 2 ** (self.exponent_bits - 1) - self.negative_zero
      name += '' if self.bias == usual else f'b{self.bias}'
      name += '' if self.infinities else 'f'
      name += {'all_ones': 'nan', 'negative_zero': 'nuz'}.get(self.nan, '')
    if not self.subnormals:
      name += '_no_subnormals'
    if self.overflow != self._default_overflow:
      name += f'_{self.overflow}'
    return name

  @property
  def uniform(self) -> bool:
    """Whether values are evenly spaced everywhere: no."""
    return False

  @property
  def bits(self) -> int:
    """Width of a code: sign, exponent field and mantissa field."""
    return 1 + self.exponent_bits + self.mantissa_bits

  @property
  def emin(self) -> int:
    """Exponent of the smallest normal number, `2**emin`."""
    return 1 - self.bias

  @property
  def emax(self) -> int:
    """Exponent of the largest number: `2**emax <= max < 2**(emax + 1)`."""
    return (self._max_code >> self.mantissa_bits) - self.bias

  @property
  def min(self) -> float:
    """The smallest finite value, `-max`."""
    return -self.max

  @property
  def max(self) -> float:
    """The largest finite value."""
    return self._decode(self._max_code)

  @property
  def min_normal(self) -> float:
    """The smallest positive normal value, `2**emin`."""
    return 2.0**self.emin

  @property
  def min_subnormal(self) -> float:
    """The smallest positive value; `min_normal` if there are no subnormals."""
    if self.subnormals:
      return 2.0 ** (self.emin - self.mantissa_bits)
    return self.min_normal

  @property
  def min_positive(self) -> float:
    """The smallest positive value, `min_subnormal`."""
    return self.min_subnormal

  @property
  def last_place(self) -> int:
    """Every value is a multiple of two to this."""
    return self.emin - self.mantissa_bits

  @property
  def significant_bits(self) -> int:
    """Width of the significand, the hidden bit included."""
    return self.mantissa_bits + 1

  @property
  def eps(self) -> float:
    """The relative spacing `2**-mantissa_bits`, as `jnp.finfo(...).eps`."""
    return 2.0**-self.mantissa_bits

  @property
  def negative_zero(self) -> bool:
    """Whether −0 exists; where it does not, −0 becomes +0."""
    return self.nan != 'negative_zero'

  def values(self) -> np.ndarray:
    """All finite values, ascending, zero once.

    Returns:
      float32[n].

    Raises:
      ValueError: If the format is wider than 16 bits.
    """
    number_format.check_enumerable(self)
    first = 1 if self.subnormals else 2**self.mantissa_bits
    positive = [self._decode(c) for c in range(first, self._max_code + 1)]
    negative = [-v for v in reversed(positive)]
    return np.asarray([*negative, 0.0, *positive], np.float32)

  @property
  def _max_code(self) -> int:
    """The code of the largest finite value."""
    reserved = {
      'ieee': 2**self.mantissa_bits,
      'all_ones': 1,
      'negative_zero': int(self.infinities),
      'none': 0,
    }
    return 2 ** (self.bits - 1) - 1 - reserved[self.nan]

  @property
  def _default_overflow(self) -> Overflow:
    if self.infinities:
      return 'inf'
    return 'saturate' if self.nan == 'none' else 'nan'

  def _decode(self, code: int) -> float:
    """The value of a non-negative code."""
    field, fraction = divmod(code, 2**self.mantissa_bits)
    significand = fraction + (2**self.mantissa_bits if field else 0)
    exponent = max(field, 1) - self.bias - self.mantissa_bits
    return significand * 2.0**exponent


# Storage formats with infinities and NaNs, as IEEE 754 arranges them.
bfloat16 = Format(8, 7)
float16 = Format(5, 10)
tfloat32 = Format(8, 10)
float8_e3m4 = Format(3, 4)
float8_e4m3 = Format(4, 3)
float8_e5m2 = Format(5, 2)

# Finite, with one NaN per sign.
float8_e4m3fn = Format(4, 3, infinities=False, nan='all_ones', overflow='nan')

# Finite, with one NaN in the place of −0.
float8_e4m3b11fnuz = Format(
  4, 3, bias=11, infinities=False, nan='negative_zero', overflow='nan'
)
float8_e4m3fnuz = Format(
  4, 3, bias=8, infinities=False, nan='negative_zero', overflow='nan'
)
float8_e5m2fnuz = Format(
  5, 2, bias=16, infinities=False, nan='negative_zero', overflow='nan'
)

# The elements of the OCP microscaling formats: numbers only.
float6_e3m2fn = Format(3, 2, infinities=False, nan='none', overflow='saturate')
float6_e2m3fn = Format(2, 3, infinities=False, nan='none', overflow='saturate')
float4_e2m1fn = Format(2, 1, infinities=False, nan='none', overflow='saturate')

_PRESET_NAMES = {
  value: name
  for name, value in list(globals().items())
  if isinstance(value, Format)
}
