"""The arithmetics that a model is scored in; adding one is adding a line."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import NamedTuple

from experiments.runtime import config as config_lib
import numerics

# Products of attention alone: of queries and keys, of weights and values.
ATTENTION = 'attention(?!/(query_key_value|output|bias))'

GROUPS: Mapping[str, str] = {
  'all': 'Every operation',
  'products': 'Operands of products of matrices',
  'blocks': 'The same, with scales',
  'sums': 'Operands and sums of products of matrices',
  'attention': 'Operands of the products of attention alone',
  'lmul': 'L-Mul in place of multiplication',
  'mode': 'Operands of products, rounded otherwise',
}


class Row(NamedTuple):
  """An arithmetic.

  Attributes:
    group: A key of `GROUPS`.
    name: What it is called there.
    policy: For `numerics.emulate`.
    bits: What an operand takes, with its share of a scale. Of L-Mul: sign, the
      eight bits of a float32 exponent, and the mantissa that is kept.
  """

  group: str
  name: str
  policy: numerics.Policy
  bits: float

  @property
  def key(self) -> str:
    """What settings call it."""
    return f'{self.group}/{self.name}'

  def with_lmul(self, scope: str) -> bool:
    """Whether products of matrices in a scope are those of L-Mul."""
    how: object = self.policy.matmul
    for override in self.policy.overrides:
      if re.search(override.scope, scope):
        how = override.precision
    return isinstance(how, numerics.Precision) and isinstance(
      how.multiply, numerics.LMul
    )


BASELINE = 'all/float32'

_FLOAT32 = numerics.Format(8, 23)


def _saturating(fmt: numerics.Format) -> numerics.Format:
  """What is beyond the largest number becomes the largest, as casts have it."""
  return dataclasses.replace(fmt, overflow='saturate')


def _scaled(element: numerics.NumberFormat) -> numerics.BlockFormat:
  """One scale in float32 for a tensor, by its largest magnitude."""
  return numerics.BlockFormat(
    element, size=None, scale=_FLOAT32, rule='nearest'
  )


def _products(fmt, **more) -> numerics.Policy:
  return numerics.Policy(matmul=numerics.Precision(inputs=fmt, **more))


def _attention(precision: numerics.Precision) -> numerics.Policy:
  return numerics.Policy(
    overrides=(
      numerics.Override(precision, scope=ATTENTION, primitive='matmul'),
    )
  )


_E4M3 = _saturating(numerics.float8_e4m3fn)
_E5M2 = _saturating(numerics.float8_e5m2)

_BARE = {
  'bfloat16': numerics.bfloat16,
  'float16': numerics.float16,
  'float8_e4m3fn': _E4M3,
  'float8_e5m2': _E5M2,
  'float6_e3m2fn': numerics.float6_e3m2fn,
  'float6_e2m3fn': numerics.float6_e2m3fn,
  'float4_e2m1fn': numerics.float4_e2m1fn,
}


def _careful(fmt: numerics.BlockFormat) -> numerics.BlockFormat:
  """Scales that let nothing saturate, where those of OCP let the largest."""
  return dataclasses.replace(fmt, rule='rceil')


_SCALED = {
  'float8_e4m3fn by tensor': _scaled(numerics.float8_e4m3fn),
  'float8_e5m2 by tensor': _scaled(numerics.float8_e5m2),
  'int8 by tensor': _scaled(numerics.int8),
  'int4 by tensor': _scaled(numerics.int4),
  'float4_e2m1fn by tensor': _scaled(numerics.float4_e2m1fn),
  'mxint8': numerics.mxint8,
  'mxfp8_e4m3': numerics.mxfp8_e4m3,
  'mxfp8_e4m3_rceil': _careful(numerics.mxfp8_e4m3),
  'mxfp8_e5m2': numerics.mxfp8_e5m2,
  'mxfp8_e5m2_rceil': _careful(numerics.mxfp8_e5m2),
  'mxfp6_e2m3': numerics.mxfp6_e2m3,
  'mxfp6_e3m2': numerics.mxfp6_e3m2,
  'nvfp4': numerics.nvfp4,
  'mxfp4_e2m1': numerics.mxfp4_e2m1,
  'mxfp4_e2m1_rceil': _careful(numerics.mxfp4_e2m1),
}

# Operands, and what the partial sums of a product are rounded to.
_SUMS = {
  'float16 in float16': (numerics.float16, numerics.float16),
  'bfloat16 in bfloat16': (numerics.bfloat16, numerics.bfloat16),
  'float8_e4m3fn in float16': (_E4M3, numerics.float16),
  'float8_e4m3fn in bfloat16': (_E4M3, numerics.bfloat16),
}

MODES = ('toward_zero', 'stochastic')
ROUNDED = (
  *('bfloat16', 'float8_e4m3fn', 'float8_e5m2', 'float6_e3m2fn'),
  *('float6_e2m3fn', 'float4_e2m1fn'),
)

LMUL_BITS = (2, 3, 4, 7)


def _all() -> list[Row]:
  rows = [
    Row('all', 'float32', numerics.Policy(), 32),
    Row('all', 'bfloat16', numerics.Policy(numerics.bfloat16), 16),
    Row('all', 'float16', numerics.Policy(numerics.float16), 16),
    Row('all', 'float8_e4m3fn', numerics.Policy(_E4M3), 8),
    Row('all', 'float8_e5m2', numerics.Policy(_E5M2), 8),
    # As the format has it: what is beyond 448 is NaN.
    Row(
      'all',
      'float8_e4m3fn not saturating',
      numerics.Policy(numerics.float8_e4m3fn),
      8,
    ),
  ]
  rows += [
    Row('products', name, _products(fmt), fmt.bits)
    for name, fmt in _BARE.items()
  ]
  rows += [
    Row('blocks', name, _products(fmt), fmt.bits_per_value)
    for name, fmt in _SCALED.items()
  ]
  rows += [
    Row(
      'sums',
      name,
      _products(fmt, accumulator=numerics.Accumulator(total)),
      fmt.bits,
    )
    for name, (fmt, total) in _SUMS.items()
  ]
  rows += [
    Row('attention', name, _attention(numerics.Precision(inputs=fmt)), fmt.bits)
    for name, fmt in _BARE.items()
    if fmt in (_E4M3, _E5M2)
  ]
  for m in LMUL_BITS:
    lmul = numerics.Precision(multiply=numerics.LMul(m))
    rows.append(Row('lmul', f'attention {m}', _attention(lmul), 9 + m))
  for m in LMUL_BITS:
    lmul = numerics.Precision(multiply=numerics.LMul(m))
    rows.append(Row('lmul', f'all {m}', numerics.Policy(matmul=lmul), 9 + m))
  for name in ROUNDED:
    fmt = _BARE[name]
    rows += [
      Row('mode', f'{name} {mode}', _products(fmt, mode=mode), fmt.bits)
      for mode in MODES
    ]
  return rows


ROWS: Sequence[Row] = tuple(_all())


def named(patterns: Sequence[str]) -> list[Row]:
  """The rows that patterns name, float32 first; all if there are none.

  Raises:
    ValueError: If a pattern matches no row.

  Examples:
    >>> [row.key for row in named(['lmul/all *'])]
    ['all/float32', 'lmul/all 2', 'lmul/all 3', 'lmul/all 4', 'lmul/all 7']
  """
  rows = {row.key: row for row in ROWS}
  return config_lib.matching('row', rows, patterns, BASELINE)
