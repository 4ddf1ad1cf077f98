"""Outliers that take the place of their neighbours."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numerics import grouping
from numerics import number_format
from numerics import products
from numerics import rounding
from numerics import scaling

# Scales that are tried, in shares of three standard deviations.
_SHARES = np.arange(10, 151, 2, dtype=np.float32) / 100


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['codes', 'scale'],
  meta_fields=['fmt', 'axis'],
)
@dataclasses.dataclass(frozen=True)
class OutlierPairsStored:
  """What `OutlierPairs.quantize` returns.

  Attributes:
    codes: uint8 of the shape of the array, `bits` of which are used.
    scale: float32.
    fmt: The format.
    axis: Along which neighbours are pairs, from 0 on.
  """

  codes: jax.Array
  scale: jax.Array
  fmt: 'OutlierPairs'
  axis: int


@dataclasses.dataclass(frozen=True)
class OutlierPairs:
  """Integers, some of which give up their place to a neighbour's outlier.

  Places `2k` and `2k + 1` along an axis are pairs. Where a number is beyond the
  integers, its neighbour, the victim, becomes 0, and its code says so: the one
  that has no opposite, `−2**(bits − 1)`. The other code of the pair is then an
  outlier (abfloat), of a sign, two bits of exponent `e`, and `bits − 3` of a
  mantissa `m`, with the value

      ± 2**(bits − 1 + e) · (1 + m / 2**(bits − 3)),

  in units of the scale, but for the smallest. Of four bits those are the
  integers to 7, then 12, 16, 24, 32, 48, 64 and 96. Of two outliers the first
  survives. A number becomes the nearest value, of two at the same distance the
  one farther from 0; what is beyond the last saturates. Codes stay aligned, and
  the scale is that of the many small numbers.

  Attributes:
    bits: Of a code, 4 to 8.

  Raises:
    TypeError: If `bits` is no int.
    ValueError: If it is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.float32([0.1, -0.3, 2.2, 0.2, 0.7, -0.6])
    >>> pairs = numerics.OutlierPairs()
    >>> stored = pairs.quantize(x, scale=0.1)
    >>> stored.codes
    Array([ 1, 13,  3,  8,  7, 10], dtype=uint8)
    >>> pairs.dequantize(stored)  # 2.2 is an outlier, 0.2 its victim.
    Array([ 0.1, -0.3,  2.4,  0. ,  0.7, -0.6], dtype=float32)

  References:
    Guo et al., OliVe: Accelerating Large Language Models via Hardware-friendly
      Outlier-Victim Pair Quantization, 2023, arXiv:2304.07493.
  """

  bits: int = 4

  def __post_init__(self) -> None:
    number_format.check_int('OutlierPairs', 'bits', self.bits, 4, 8)

  @property
  def largest_integer(self) -> int:
    """Of numbers that are no outliers."""
    return 2 ** (self.bits - 1) - 1

  @property
  def outliers(self) -> np.ndarray:
    """The positive outliers in units of the scale, f32, by their codes.

    The code 0 has none: its place holds NaN.
    """
    mantissas = 2 ** (self.bits - 3)
    code = np.arange(4 * mantissas)
    values = (mantissas + code % mantissas) * 4 * 2.0 ** (code // mantissas)
    values[0] = np.nan
    return values.astype(np.float32)

  def find_scale(
    self,
    x: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    shared: scaling.Axis = None,
  ) -> jax.Array:
    """The scale with the least squared error, that of victims included.

    Those tried map a share, 10 to 150 %, of the larger of `|mean ± 3 standard
    deviations|` to the largest integer.

    Args:
      x: float32, bfloat16 or float16 of any shape but a scalar's.
      axis: Along which neighbours are pairs.
      shared: Which axes share a scale; None: all.

    Returns:
      float32, of length 1 along the axes that share.
    """
    x = rounding.checked_array('OutlierPairs', x).astype(jnp.float32)
    place = grouping.checked_axis('OutlierPairs', axis, x.ndim)
    return _find_scale(x, self, place, scaling.as_tuple(shared))

  def quantize(
    self,
    x: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    scale: jax.typing.ArrayLike | None = None,
  ) -> OutlierPairsStored:
    """Stores an array.

    Args:
      x: float32, bfloat16 or float16 of any shape but a scalar's. NaN becomes
        0.
      axis: Along which neighbours are pairs. A last one without a neighbour
        cannot be an outlier.
      scale: float32 that broadcasts against `x`; None: one for the array, of
        `find_scale`.

    Returns:
      Codes and the scale.

    Raises:
      TypeError: If `x` has another dtype.
      ValueError: If there is no such axis.
    """
    x = rounding.checked_array('OutlierPairs', x).astype(jnp.float32)
    place = grouping.checked_axis('OutlierPairs', axis, x.ndim)
    if scale is None:
      scale = self.find_scale(x, axis=place)
    scale = jnp.asarray(scale, jnp.float32)
    return OutlierPairsStored(
      _encode(x, scale, self, place), scale, self, place
    )

  def dequantize(self, stored: OutlierPairsStored) -> jax.Array:
    """The values of what was stored, float32."""
    return _decode(stored)


@dataclasses.dataclass(frozen=True)
class OutlierProduct(products.Product):
  """Products of matrices whose operands are stored as `OutlierPairs`.

  For `Precision(product=…)`: pairs lie along the axis that is added up. The
  first operand has one scale, the second one for each column, found in them by
  `OutlierPairs.find_scale`. The derivative is that of the exact product.

  Attributes:
    x: For the first operand.
    w: For the second, the weights of a layer.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> how = numerics.Precision(product=numerics.OutlierProduct())
    >>> f = numerics.emulate(jnp.dot, numerics.Policy(matmul=how))
    >>> x = jnp.float32([1.0, 2.0, 50.0, 0.1])
    >>> float(f(x, jnp.float32([1.0, 2.0, 1.0, 1.0])))  # 55.1.
    54.1...

  References:
    As `OutlierPairs`.
  """

  x: OutlierPairs = OutlierPairs()
  w: OutlierPairs = OutlierPairs()

  def __post_init__(self) -> None:
    for field in ('x', 'w'):
      if not isinstance(getattr(self, field), OutlierPairs):
        raise TypeError(
          f'OutlierProduct: {field} must be a numerics.OutlierPairs, got'
          f' {getattr(self, field)!r}.'
        )

  def product(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Multiplies stacks of matrices."""

    def stored(lhs, rhs, key):
      x = self.x.quantize(lhs, axis=2)
      scale = self.w.find_scale(rhs, axis=1, shared=1)
      w = self.w.quantize(rhs, axis=1, scale=scale)
      return products.exact(self.x.dequantize(x), self.w.dequantize(w), key)

    return products.contract(lhs, rhs, key, stored, products.exact)


def _nearest(
  magnitude: jax.Array, fmt: OutlierPairs
) -> tuple[jax.Array, jax.Array]:
  """The code of the nearest outlier, and whether it is nearer than integers.

  The code is 0 where it is not.
  """
  values = fmt.outliers[1:]
  ends = np.concatenate([[np.float32(fmt.largest_integer)], values])
  middles = (ends[1:] + ends[:-1]) / 2
  place = jnp.searchsorted(middles, magnitude, side='right')
  return place, place > 0


@functools.partial(jax.jit, static_argnames=('fmt', 'axis', 'shared'))
def _find_scale(
  x: jax.Array, fmt: OutlierPairs, axis: int, shared: tuple[int, ...] | None
) -> jax.Array:
  mean = jnp.mean(x, axis=shared, keepdims=True)
  spread = 3 * jnp.std(x, axis=shared, keepdims=True)
  base = jnp.maximum(jnp.abs(mean + spread), jnp.abs(mean - spread))
  base = jnp.maximum(base / fmt.largest_integer, np.float32(2.0**-120))

  def error(share: jax.Array) -> jax.Array:
    scale = share * base
    stored = OutlierPairsStored(_encode(x, scale, fmt, axis), scale, fmt, axis)
    off = _decode(stored) - x
    return jnp.sum(off**2, axis=shared, keepdims=True)

  errors = jax.lax.map(error, jnp.asarray(_SHARES))
  return jnp.asarray(_SHARES)[jnp.argmin(errors, axis=0)] * base


@functools.partial(jax.jit, static_argnames=('fmt', 'axis'))
def _encode(
  x: jax.Array, scale: jax.Array, fmt: OutlierPairs, axis: int
) -> jax.Array:
  scaled = jnp.nan_to_num(x * (1 / scale), nan=0.0)
  length = x.shape[axis]
  pairs = grouping.split(scaled, axis, 2)
  place, beyond = _nearest(jnp.abs(pairs), fmt)
  if length % 2:  # The last one has no neighbour to give its place.
    whole = np.arange(pairs.shape[axis]) < length // 2
    shape = [1] * pairs.ndim
    shape[axis] = len(whole)
    beyond = beyond & whole.reshape(shape)
  first, second = jnp.split(beyond, 2, axis=axis + 1)
  survives = jnp.concatenate([first, second & ~first], axis=axis + 1)
  victim = jnp.concatenate([second & ~first, first], axis=axis + 1)
  sign = np.int32(2 ** (fmt.bits - 1))
  outlier = place.astype(jnp.int32) + jnp.where(pairs < 0, sign, 0)
  integer = jnp.floor(jnp.abs(pairs) + np.float32(0.5)).astype(jnp.int32)
  integer = jnp.minimum(integer, fmt.largest_integer)
  integer = jnp.where(pairs < 0, -integer, integer) & (2 * sign - 1)
  codes = jnp.where(survives, outlier, jnp.where(victim, sign, integer))
  return grouping.join(codes.astype(jnp.uint8), axis, length)


@jax.jit
def _decode(stored: OutlierPairsStored) -> jax.Array:
  fmt, axis = stored.fmt, stored.axis
  length = stored.codes.shape[axis]
  codes = grouping.split(stored.codes, axis, 2).astype(jnp.int32)
  sign = np.int32(2 ** (fmt.bits - 1))
  victim = codes == sign
  integer = jnp.where(codes >= sign, codes - 2 * sign, codes)
  magnitude = jnp.asarray(fmt.outliers)[codes % sign]
  outlier = jnp.where(codes >= sign, -magnitude, magnitude)
  values = jnp.where(
    jnp.flip(victim, axis + 1), outlier, integer.astype(jnp.float32)
  )
  values = jnp.where(victim, 0.0, values)
  return grouping.join(values, axis, length) * stored.scale
