"""Scales as integers and shifts, and going from one scale to another."""

import functools
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics import wide
from numerics.integer import checking

Rounding = Literal['nearest_even', 'gemmlowp']

_SMALLEST = np.int32(-(2**31))
_LARGEST = np.int32(2**31 - 1)
_BITS = np.int32(31)


class Dyadic(NamedTuple):
  """Numbers as integers and shifts: `multiplier · 2**−shift`.

  Attributes:
    multiplier: i32[...], of a magnitude from 2**30 on and below 2**31, or 0.
    shift: i32[...], from 1 to 62.
  """

  multiplier: jax.Array | np.ndarray
  shift: jax.Array | np.ndarray


def dyadic(ratio: 'np.typing.ArrayLike') -> Dyadic:
  """The nearest dyadic numbers, of 31 bits.

  Computed by NumPy, before a program runs. On a tie the multiplier is rounded
  up. Numbers whose products with an int32 all round to 0 are 0.

  Args:
    ratio: Of any shape, a magnitude below 2**30.

  Returns:
    int32 arrays of NumPy.

  Raises:
    ValueError: If a number is too large or none.

  Examples:
    >>> [int(x) for x in dyadic(0.75)]
    [1610612736, 31]

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference, 2018, arXiv:1712.05877.
  """
  values = np.asarray(ratio, np.float64)
  if not (np.abs(values) < 2**30).all():
    raise ValueError(
      'dyadic: expected numbers of a magnitude below 2**30, got'
      f' {values.ravel()[np.argmax(~(np.abs(values) < 2**30).ravel())]};'
      ' an output scale is far too fine, or no number.'
    )
  fraction, exponent = np.frexp(values)
  multiplier = np.floor(np.abs(fraction) * 2**31 + 0.5)
  # What rounds up to 2**31 has one bit less.
  full = multiplier == 2**31
  multiplier = np.where(full, 2**30, multiplier)
  shift = 31 - exponent - full
  lost = shift > 62
  multiplier = np.where(lost, 0, np.sign(fraction) * multiplier)
  shift = np.where(lost | (multiplier == 0), 1, shift)
  return Dyadic(multiplier.astype(np.int32), shift.astype(np.int32))


@functools.partial(jax.jit, static_argnames=('bits', 'rounding'), inline=True)
def rescale(
  x: jax.Array,
  scale: Dyadic,
  *,
  bits: int = 8,
  rounding: Rounding = 'nearest_even',
) -> jax.Array:
  """Requantises: `clip(round(x · scale))`, of integers only.

  The product has 62 bits, and all of them count.

  * `'nearest_even'`: one rounding to nearest, on a tie to even, as I-ViT has in
    float64.
  * `'gemmlowp'`: two, as gemmlowp and TensorFlow Lite have: the doubled high
    half of the product to nearest (`doubling_high_product`), then a shift to
    nearest, on a tie away from zero (`rounding_shift`). It differs by one at
    times. Where the scale is not below 1, `x` is shifted to the left first, and
    saturates.

  Args:
    x: i32[...].
    scale: The scale of `x` over that of the result; it broadcasts.
    bits: Of the result, whose range it is clipped to.
    rounding: As above.

  Returns:
    int32.

  Raises:
    TypeError: If `x` is no array of integers.
    ValueError: If `rounding` is unknown, or `bits` is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import integer
    >>> x = jnp.array([100, -101, 102, 10_000])
    >>> integer.rescale(x, integer.dyadic(0.25))
    Array([ 25, -25,  26, 127], dtype=int32)
    >>> integer.rescale(x, integer.dyadic(0.25), rounding='gemmlowp')
    Array([ 25, -25,  26, 127], dtype=int32)

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
    Google, gemmlowp: a small self-contained low-precision GEMM library,
      fixedpoint/fixedpoint.h.
  """
  found = _rounded('rescale', x, scale, rounding)
  return _clipped('rescale', found, bits)


@functools.partial(jax.jit, static_argnames=('bits', 'rounding'), inline=True)
def add_rescaled(
  x: jax.Array,
  x_scale: Dyadic,
  y: jax.Array,
  y_scale: Dyadic,
  *,
  bits: int = 16,
  rounding: Rounding = 'nearest_even',
) -> jax.Array:
  """Adds numbers of two scales, as a residual connection does.

      clip(round(x · x_scale) + round(y · y_scale)),

  where nothing is clipped before the sum.

  Args:
    x: i32[...].
    x_scale: The scale of `x` over that of the result.
    y: i32[...].
    y_scale: The scale of `y` over that of the result.
    bits: Of the result.
    rounding: As in `rescale`.

  Returns:
    int32.
  """
  left = _rounded('add_rescaled', x, x_scale, rounding)
  right = _rounded('add_rescaled', y, y_scale, rounding)
  return _clipped('add_rescaled', wide.add(left, right), bits)


def doubling_high_product(a: jax.Array, b: jax.Array) -> jax.Array:
  """`round(a · b / 2**31)`, on a tie up: one operation of several processors.

  The exact product and 2**30, or 1 − 2**30 if it is negative, are divided by
  2**31 and cut off toward zero. Of −2**31 twice, it is 2**31 − 1.

  Args:
    a: i32[...].
    b: i32[...], which broadcasts.
  """
  product = wide.signed_product(a, b)
  # To cut off a negative number is to round it down with 2**31 − 1 more, which
  # leaves 2**30 of either constant.
  half = wide.Wide(jnp.uint32(0), jnp.uint32(2**30))
  found = wide.shift_right(wide.add(product, half), jnp.uint32(31))
  both = (a == _SMALLEST) & (b == _SMALLEST)
  return jnp.where(both, _LARGEST, found.low.astype(jnp.int32))


def rounding_shift(x: jax.Array, count: jax.Array) -> jax.Array:
  """`round(x / 2**count)`, on a tie away from zero.

  Args:
    x: i32[...].
    count: i32[...], from 0 to 31.
  """
  mask = (np.uint32(1) << count.astype(jnp.uint32)) - np.uint32(1)
  mask = mask.astype(jnp.int32)
  negative = (x < 0).astype(jnp.int32)
  more = (x & mask) > (mask >> 1) + negative
  return (x >> count) + more.astype(jnp.int32)


def _rounded(
  function: str, x: jax.Array, scale: Dyadic, rounding: Rounding
) -> wide.Wide:
  x = checking.as_int32(function, x)
  multiplier, shift = (jnp.asarray(each) for each in scale)
  number_format.check_choice(
    function, 'rounding', rounding, ('nearest_even', 'gemmlowp')
  )
  if rounding == 'gemmlowp':
    left = jnp.maximum(_BITS - shift, 0)
    x = jnp.clip(x, _SMALLEST >> left, _LARGEST >> left) << left
    found = doubling_high_product(x, multiplier)
    found = rounding_shift(found, jnp.maximum(shift - _BITS, 0))
    return wide.of_int32(found)
  product = wide.signed_product(x, multiplier)
  count = shift.astype(jnp.uint32)
  # What is just less than half, and 1 more where that makes a tie even.
  odd = wide.shift_right(product, count).low & np.uint32(1)
  less = wide.of_int32(odd.astype(jnp.int32) - 1)
  half = wide.add(wide.power(count - np.uint32(1)), less)
  return wide.shift_right(wide.add(product, half), count)


def _clipped(function: str, x: wide.Wide, bits: int) -> jax.Array:
  number_format.check_int(function, 'bits', bits, 2, 32)
  low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  return jnp.clip(wide.saturated(x), np.int32(low), np.int32(high))
