"""The arithmetics that a model is trained in; adding one is adding a line."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from experiments.precision import rows as precision_rows
from experiments.runtime import config as config_lib
import numerics


class Row(NamedTuple):
  """An arithmetic.

  Attributes:
    key: What settings call it.
    name: What the table calls it.
    bits: What an operand of a product takes, with its share of a scale.
    passes: In what the forward pass and the backward one multiply.
    forward: For `numerics.emulate`.
    backward: For the derivative; None for float32, or where products have one
      of their own.
    aware: Whether it is trained by `numerics.quantization_aware`.
    cost: What a step takes, in steps of float32.
  """

  key: str
  name: str
  bits: float
  passes: tuple[str, str]
  forward: numerics.Policy = numerics.Policy()
  backward: numerics.Policy | None = None
  aware: bool = False
  cost: float = 1.0

  @property
  def blocked(self) -> bool:
    """Whether it needs axes that are multiples of a block."""
    return any(
      isinstance(each.precision, numerics.Precision)
      and isinstance(each.precision.product, numerics.Quartet)
      for each in self.forward.overrides
    )


BASELINE = 'float32'


def _products(precision: numerics.Precision) -> numerics.Policy:
  return numerics.Policy(matmul=precision)


def _dense(precision: numerics.Precision) -> numerics.Policy:
  """Products of dense layers; those of attention stay in float32."""
  return numerics.Policy(
    overrides=(
      numerics.Override(precision, primitive='matmul'),
      numerics.Override(
        None, scope=precision_rows.ATTENTION, primitive='matmul'
      ),
    )
  )


_BF16 = _products(
  numerics.Precision(inputs=numerics.bfloat16, output=numerics.bfloat16)
)
_MXFP4 = _dense(numerics.Precision(inputs=numerics.mxfp4_e2m1))
_STOCHASTIC = _dense(
  numerics.Precision(inputs=numerics.mxfp4_e2m1, mode='stochastic')
)


def _quartet(scale_round: Any) -> numerics.Policy:
  return _dense(numerics.Precision(product=numerics.Quartet(scale_round)))


ROWS: Sequence[Row] = (
  Row(BASELINE, 'float32', 32, ('float32', 'float32')),
  Row('bfloat16', 'bfloat16', 16, ('bfloat16', 'bfloat16'), _BF16, _BF16),
  Row(
    'dfp16',
    'DFP-16',
    16,
    ('int16, an exponent for a tensor', 'the same'),
    _products(numerics.Precision(product=numerics.DynamicFixedPoint())),
    cost=3,
  ),
  Row(
    'int8',
    'INT8, quantisation-aware',
    8,
    ('int8 weights, uint8 activations', 'float32'),
    aware=True,
    cost=1.5,
  ),
  Row(
    'mxfp4',
    'MXFP4, rounded to nearest',
    4.25,
    ('MXFP4, to nearest', 'MXFP4, to nearest'),
    _MXFP4,
    _MXFP4,
    cost=1.5,
  ),
  Row(
    'mxfp4_stochastic',
    'MXFP4, backward at random',
    4.25,
    ('MXFP4, to nearest', 'MXFP4, at random, with clipping'),
    _MXFP4,
    _STOCHASTIC,
    cost=2,
  ),
  Row(
    'quartet',
    'Quartet',
    4.25,
    ('MXFP4, QuEST', 'MXFP4, at random, without clipping'),
    _quartet('floor'),
    cost=3,
  ),
  Row(
    'quartet_nearest',
    'Quartet, nearest scales',
    4.25,
    ('MXFP4, QuEST', 'MXFP4, at random, without clipping'),
    _quartet('nearest'),
    cost=3,
  ),
)


def named(patterns: Sequence[str]) -> list[Row]:
  """The rows that patterns name, float32 first; all if there are none.

  Raises:
    ValueError: If a pattern matches no row.

  Examples:
    >>> [row.key for row in named(['quartet*'])]
    ['float32', 'quartet', 'quartet_nearest']
  """
  rows = {row.key: row for row in ROWS}
  return config_lib.matching('row', rows, patterns, BASELINE)
