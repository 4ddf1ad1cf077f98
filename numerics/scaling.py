"""Scales, by which many values share the range of a narrow format."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numerics import fixed_point
from numerics import number_format
from numerics import rounding

Axis = int | Sequence[int] | None


def absmax_scale(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  axis: Axis = None,
  power_of_two: bool = False,
) -> jax.Array:
  """The scale that maps the largest magnitude to the largest value.

      scale = max(|x|, axis) / fmt.max,

  so that `x / scale` uses the whole range of the format and `scale` times its
  rounding restores `x`; within two units in the last place of float32. With
  `power_of_two`, the smallest power of two that is no less, so that scaling is
  exact and nothing saturates. (The OCP microscaling formats round the exponent
  down and saturate instead.)

  The scale is from 2**-126, also for a group of zeros, to 2**126, so that
  neither it nor its inverse is lost as a denormal, and no larger than keeps
  `scale * fmt.max` finite. If a group holds an infinity or a NaN, its scale is
  infinite or NaN. In formats without negative numbers these do not count.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format to store in.
    axis: The axes that share a scale. None: all of them, a scale per tensor.
      −1: a scale per row of a matrix.
    power_of_two: Whether to round the scale up to a power of two.

  Returns:
    float32, of the shape of `x` with length 1 along `axis`.

  Raises:
    TypeError: If `x` has another dtype, or `fmt` another type.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[3.0, -9.0], [0.5, 0.25]])
    >>> numerics.absmax_scale(
    ...   x, numerics.float4_e2m1fn, axis=-1
    ... ).ravel().tolist()
    [1.5, 0.0833333358168602]
    >>> numerics.absmax_scale(
    ...   x, numerics.float4_e2m1fn, power_of_two=True
    ... ).item()
    2.0
  """
  x = rounding.checked_array('absmax_scale', x)
  rounding.checked_format('absmax_scale', fmt)
  return _absmax_scale(x, fmt, as_tuple(axis), power_of_two)


def affine_scale(
  low: jax.typing.ArrayLike,
  high: jax.typing.ArrayLike,
  fmt: fixed_point.FixedPoint,
) -> tuple[jax.Array, jax.Array]:
  """The scale and the zero point that map a range to all codes of integers.

      x ≈ scale · (code − zero_point),
      scale = (high − low) / (max_code − min_code),
      zero_point = min_code − round(low / scale).

  The range is first widened to include 0, and the zero point is a code, so that
  0 is exact: padding and what a ReLU gives cost no error. The scale is from
  2**-126 to 2**126; it is NaN if the range is not finite.

  Args:
    low: float32 of any shape, the smallest numbers.
    high: Likewise, the largest.
    fmt: Integers of at most 16 bits.

  Returns:
    The scale, float32, and the zero point, int32, of the shape of `low`.

  Raises:
    TypeError: If `fmt` is not an integer format.
    ValueError: If it is wider than 16 bits.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> scale, zero = numerics.affine_scale(
    ...   jnp.float32(-1.0), jnp.float32(4.1), numerics.uint8
    ... )
    >>> round(float(scale), 6), int(zero)
    (0.02, 50)

  References:
    Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient
      Inference: A Whitepaper, 2018, arXiv:1806.08342.
  """
  checked_integers('affine_scale', fmt)
  low = rounding.checked_array('affine_scale', low)
  high = rounding.checked_array('affine_scale', high)
  return _affine_scale(low, high, fmt)


def checked_integers(function: str, fmt: object) -> fixed_point.FixedPoint:
  """Returns `fmt`, if it is one of integers with 16 bits at most."""
  if not isinstance(fmt, fixed_point.FixedPoint) or fmt.fraction_bits:
    raise TypeError(
      f'{function}: a zero point is that of integers such as numerics.uint8;'
      f' got {fmt!r}.'
    )
  if fmt.bits > 16:
    raise ValueError(
      f'{function}: {fmt.name} has {fmt.bits} bits, but integers with a zero'
      ' point at most 16.'
    )
  return fmt


@functools.partial(jax.jit, static_argnames='fmt')
def _affine_scale(
  low: jax.Array, high: jax.Array, fmt: fixed_point.FixedPoint
) -> tuple[jax.Array, jax.Array]:
  low = jnp.minimum(low.astype(jnp.float32), 0)
  high = jnp.maximum(high.astype(jnp.float32), 0)
  # Half the range, since all of it may be beyond float32.
  half = np.float32(0.5) * high - np.float32(0.5) * low
  scale = half * np.float32(2 / (fmt.max_code - fmt.min_code))
  scale = jnp.clip(scale, np.float32(2.0**-126), np.float32(2.0**126))
  scale = jnp.where(half < np.inf, scale, np.float32(np.nan))
  zero = fmt.min_code - jnp.round(low * (1 / scale))
  zero = jnp.clip(jnp.where(half < np.inf, zero, 0), fmt.min, fmt.max)
  return scale, zero.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=('fmt', 'axis', 'power_of_two'))
def _absmax_scale(
  x: jax.Array,
  fmt: number_format.NumberFormat,
  axis: tuple[int, ...] | None,
  power_of_two: bool,
) -> jax.Array:
  wide = x.astype(jnp.float32)
  magnitude = jnp.abs(wide) if fmt.min < 0 else jnp.maximum(wide, 0)
  absmax = jnp.max(magnitude, axis=axis, keepdims=True, initial=0.0)
  if power_of_two:
    # The difference of two patterns counts units of 2**-23 in the exponent.
    pattern = jax.lax.bitcast_convert_type(absmax, jnp.int32)
    difference = pattern - np.float32(fmt.max).view(np.int32)
    exponent = (difference + np.int32(2**23 - 1)) >> np.int32(23)
    exponent = jnp.clip(exponent, -126, min(126, 127 - fmt.emax))
    scale = jax.lax.bitcast_convert_type(
      (exponent + np.int32(127)) << np.int32(23), jnp.float32
    )
  else:
    inverse = jnp.clip(
      np.float32(fmt.max) / absmax,
      np.float32(2.0**-126),
      np.float32(2.0**126),
    )
    scale = jnp.minimum(1 / inverse, _largest_scale(fmt))
  return jnp.where(absmax < np.inf, scale, absmax)


def _largest_scale(fmt: number_format.NumberFormat) -> np.float32:
  """The largest float32 whose product with the largest value is finite."""
  limit = float(np.finfo(np.float32).max)
  scale = np.float32(min(limit, limit / fmt.max))
  if float(scale) * fmt.max > limit:
    scale = np.nextafter(scale, np.float32(0))
  return scale


def as_tuple(axis: Axis) -> tuple[int, ...] | None:
  """The axes as a static argument."""
  if axis is None:
    return None
  return (axis,) if isinstance(axis, int) else tuple(axis)
