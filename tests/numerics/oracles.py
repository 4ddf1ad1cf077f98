"""Literal answers about formats, in exact rational and table arithmetic.

Nothing here is shared with the package: a format is a list of parameters, its
values are decoded from codes one by one, and rounding picks a neighbour by
comparing exact numbers. gfloat and ml_dtypes give second opinions.
"""

import bisect
import dataclasses
from fractions import Fraction
import functools
import math

import gfloat
import numpy as np

DETERMINISTIC = (
  'nearest_even',
  'nearest_away',
  'nearest_zero',
  'toward_zero',
  'up',
  'down',
  'to_odd',
)

_GFLOAT_MODES = {
  'nearest_even': gfloat.RoundMode.TiesToEven,
  'nearest_away': gfloat.RoundMode.TiesToAway,
  'toward_zero': gfloat.RoundMode.TowardZero,
  'up': gfloat.RoundMode.TowardPositive,
  'down': gfloat.RoundMode.TowardNegative,
}


@dataclasses.dataclass(frozen=True)
class Spec:
  """The parameters of a format, apart from the class under test."""

  exponent_bits: int
  mantissa_bits: int
  bias: int
  subnormals: bool
  infinities: bool
  nan: str
  overflow: str


def spec_of(fmt) -> Spec:
  fields = dataclasses.fields(Spec)
  return Spec(**{f.name: getattr(fmt, f.name) for f in fields})


def decode(spec: Spec, code: int) -> Fraction:
  """The value of a magnitude code; codes past the largest go on upwards."""
  field, fraction = divmod(code, 2**spec.mantissa_bits)
  fraction = Fraction(fraction, 2**spec.mantissa_bits)
  if field == 0:
    return fraction * Fraction(2) ** (1 - spec.bias)
  return (1 + fraction) * Fraction(2) ** (field - spec.bias)


def largest_code(spec: Spec) -> int:
  """The code of the largest finite value, by counting the special codes."""
  last = 2 ** (spec.exponent_bits + spec.mantissa_bits) - 1
  if spec.nan == 'ieee':
    return last - 2**spec.mantissa_bits
  if spec.nan == 'all_ones' or spec.infinities:
    return last - 1
  return last


def neighbours(spec: Spec, magnitude: Fraction) -> tuple[int, int]:
  """The codes around a magnitude; the same one twice if it has a code."""
  codes = range(2 ** (9 + spec.mantissa_bits))
  low = bisect.bisect_right(codes, magnitude, key=lambda c: decode(spec, c)) - 1
  high = low if decode(spec, low) == magnitude else low + 1
  min_normal = 2**spec.mantissa_bits
  if not spec.subnormals and magnitude < decode(spec, min_normal):
    low, high = 0, min_normal if magnitude else 0
  return low, high


def round_float(spec: Spec, mode: str, x: float) -> float:
  """Rounds one number, literally by the definition of the mode."""
  if math.isnan(x):
    return math.nan
  negative = math.copysign(1.0, x) < 0
  largest = float(decode(spec, largest_code(spec)))
  overflow = {'inf': math.inf, 'nan': math.nan, 'saturate': largest}
  if math.isinf(x):
    result = overflow[spec.overflow]
  else:
    result = float(decode(spec, _chosen_code(spec, mode, abs(Fraction(x)), x)))
    if result > largest:
      inward = mode in ('toward_zero', 'to_odd') or mode == (
        'up' if negative else 'down'
      )
      result = largest if inward else overflow[spec.overflow]
  if result == 0 and spec.nan == 'negative_zero':
    return 0.0
  return -result if negative else result


def _chosen_code(spec: Spec, mode: str, exact: Fraction, x: float) -> int:
  low, high = neighbours(spec, exact)
  to_low = exact - decode(spec, low)
  to_high = decode(spec, high) - exact
  even = low if low % 2 == 0 else high
  odd = low if low % 2 == 1 else high
  nearer = low if to_low < to_high else high
  return {
    'nearest_even': even if to_low == to_high else nearer,
    'nearest_away': high if to_low == to_high else nearer,
    'nearest_zero': low if to_low == to_high else nearer,
    'toward_zero': low,
    'up': high if x > 0 else low,
    'down': high if x < 0 else low,
    'to_odd': low if low == high else odd,
  }[mode]


@functools.cache
def magnitudes(spec: Spec) -> np.ndarray:
  """float64 of all magnitudes, in the order of their codes."""
  codes = np.arange(largest_code(spec) + 1)
  field, fraction = np.divmod(codes, 2**spec.mantissa_bits)
  hidden = np.where(field > 0, 2**spec.mantissa_bits, 0)
  exponent = np.maximum(field, 1) - spec.bias - spec.mantissa_bits
  return np.ldexp((hidden + fraction).astype(np.float64), exponent)


def round_to_odd(spec: Spec, x: np.ndarray) -> np.ndarray:
  """Rounds finite numbers to odd by looking them up in the table."""
  table = magnitudes(spec)
  magnitude = np.minimum(np.abs(x.astype(np.float64)), table[-1])
  low = np.searchsorted(table, magnitude, side='right') - 1
  inexact = table[low] != magnitude
  code = low + (inexact & (low % 2 == 0))
  result = np.copysign(table[code], x).astype(np.float32)
  return result + np.float32(0) if spec.nan == 'negative_zero' else result


def gfloat_round(info: gfloat.FormatInfo, mode, sat, x) -> np.ndarray:
  """Rounds float32 numbers with gfloat, which computes in float64."""
  with np.errstate(all='ignore'):  # Overflow and signalling NaNs are meant.
    wide = x.astype(np.float64)
    result = gfloat.round_ndarray(info, wide, _GFLOAT_MODES[mode], sat=sat)
    return result.astype(np.float32)


def gfloat_info(spec: Spec) -> gfloat.FormatInfo:
  """The format in gfloat's terms."""
  high_nans = {'ieee': 2**spec.mantissa_bits - 1, 'all_ones': 1}
  return gfloat.FormatInfo(
    name='oracle',
    k=1 + spec.exponent_bits + spec.mantissa_bits,
    precision=spec.mantissa_bits + 1,
    bias=spec.bias,
    is_signed=True,
    domain=getattr(gfloat.Domain, 'Extended' if spec.infinities else 'Finite'),
    has_nz=spec.nan != 'negative_zero',
    num_high_nans=high_nans.get(spec.nan, 0),
    has_subnormals=True,
    is_twos_complement=False,
  )


def adversarial(spec: Spec) -> np.ndarray:
  """Every value and midpoint with its float32 neighbours, and all specials.

  Both signs of: the values, the midpoints of adjacent values, a ramp from the
  largest value to 4.5 times it, the first grid points beyond it, float32
  denormals, the largest float32, infinity, and NaNs with payloads; for each of
  them the next float32 below and above.
  """
  table = magnitudes(spec)
  top = table[-1] - table[-2]
  with np.errstate(over='ignore'):
    numbers = np.concatenate(
      [
        table,
        (table[1:] + table[:-1]) / 2,
        table[-1] * np.linspace(1, 4.5, 1001),
        [table[-1] + top / 2, table[-1] + top],
      ]
    ).astype(np.float32)
  random = np.random.default_rng(0)
  bits = np.concatenate(
    [
      numbers.view(np.uint32),
      np.array([0, 1, 2**22, 2**23, 0x7F7FFFFF, 0x7F800000], np.uint32),
      random.integers(0, 2**23, 64, dtype=np.uint32),
      0x7F800000 + random.integers(1, 2**23, 64, dtype=np.uint32),
    ]
  ).astype(np.uint32)
  bits = np.unique(np.concatenate([bits, bits + 1, np.maximum(bits, 1) - 1]))
  return np.concatenate([bits, bits | np.uint32(2**31)]).view(np.float32)


def assert_same(actual, expected) -> None:
  """Asserts equal bits, all NaNs being the same."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.dtype == expected.dtype == np.float32
  same = actual.view(np.uint32) == expected.view(np.uint32)
  same |= np.isnan(actual) & np.isnan(expected)
  np.testing.assert_array_equal(same, True)
