"""Storage in a narrow format with one scale for many values."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

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
  infinite or NaN.

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
  return _absmax_scale(x, fmt, _as_tuple(axis), power_of_two)


def fake_quantize(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  axis: Axis = None,
  power_of_two: bool = False,
  mode: rounding.Mode = 'nearest_even',
  key: jax.Array | None = None,
) -> jax.Array:
  """Quantises and dequantises: what storage in a scaled format preserves.

      fake_quantize(x) = scale * round_to(x * (1 / scale), fmt),
      scale = absmax_scale(x, fmt, axis).

  What is rounded is first clipped to the range of the format, so that no mode
  overflows. A zero group stays zero; a group with an infinity or a NaN becomes
  NaN, since no scale can store it. Float32 denormals count as zero.

  The derivative is the straight-through estimator, the identity; the scale is
  treated as a constant.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format to store in.
    axis: The axes that share a scale. None: all of them, a scale per tensor.
      −1: a scale per row of a matrix.
    power_of_two: Whether the scale is a power of two.
    mode: The direction of rounding, as in `round_to`.
    key: A PRNG key, for the stochastic modes.

  Returns:
    float32 of the shape of `x`.

  Raises:
    TypeError: If `x` has another dtype, or `fmt` another type.
    ValueError: If `mode` is unknown, or if `key` is missing or superfluous.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[0.1, -0.7, 0.33, 1.2], [100.0, 0.0, 20.0, -40.0]])
    >>> fmt = numerics.float4_e2m1fn
    >>> numerics.fake_quantize(x, fmt, axis=-1, power_of_two=True)
    Array([[  0.125,  -0.75 ,   0.375,   1.   ],
           [ 96.   ,   0.   ,  16.   , -32.   ]], dtype=float32)

  References:
    Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient
      Inference: A Whitepaper, 2018, arXiv:1806.08342.
  """
  x = rounding.checked_array('fake_quantize', x)
  rounding.checked_format('fake_quantize', fmt)
  return _fake_quantize(x, key, fmt, _as_tuple(axis), power_of_two, mode)


@functools.partial(jax.jit, static_argnames=('fmt', 'axis', 'power_of_two'))
def _absmax_scale(
  x: jax.Array,
  fmt: number_format.NumberFormat,
  axis: tuple[int, ...] | None,
  power_of_two: bool,
) -> jax.Array:
  absmax = jnp.max(
    jnp.abs(x.astype(jnp.float32)), axis=axis, keepdims=True, initial=0.0
  )
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


@functools.partial(
  jax.jit, static_argnames=('fmt', 'axis', 'power_of_two', 'mode')
)
def _fake_quantize(
  x: jax.Array,
  key: jax.Array | None,
  fmt: number_format.NumberFormat,
  axis: tuple[int, ...] | None,
  power_of_two: bool,
  mode: rounding.Mode,
) -> jax.Array:
  wide = jax.lax.stop_gradient(x.astype(jnp.float32))
  scale = _absmax_scale(wide, fmt, axis, power_of_two)
  largest = np.float32(fmt.max)
  # XLA turns division by a broadcast array into this product where it sees one,
  # which differs between jit, vmap and eager execution; so say it outright.
  scaled = jnp.clip(
    wide * (1 / scale), np.float32(max(fmt.min, -fmt.max)), largest
  )
  stored = rounding.round_to(scaled, fmt, mode=mode, key=key)
  return rounding.straight_through(x, scale * stored)


def _largest_scale(fmt: number_format.NumberFormat) -> np.float32:
  """The largest float32 whose product with the largest value is finite."""
  limit = float(np.finfo(np.float32).max)
  scale = np.float32(min(limit, limit / fmt.max))
  if float(scale) * fmt.max > limit:
    scale = np.nextafter(scale, np.float32(0))
  return scale


def _as_tuple(axis: Axis) -> tuple[int, ...] | None:
  """The axes as a static argument."""
  if axis is None:
    return None
  return (axis,) if isinstance(axis, int) else tuple(axis)
