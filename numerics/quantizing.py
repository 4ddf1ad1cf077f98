"""Storage in a narrow format with one scale for many values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numerics import blocks
from numerics import fixed_point
from numerics import grouping
from numerics import number_format
from numerics import rounding
from numerics import scaling


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['codes', 'scale', 'zero_point'],
  meta_fields=['fmt', 'axis', 'group_size'],
)
@dataclasses.dataclass(frozen=True)
class Quantized:
  """An array in a narrow format; `dequantize` gives its values.

  A tree of arrays to JAX.

  Attributes:
    codes: Integers in the narrowest dtype of NumPy that holds them; of other
      formats, the values, float32.
    scale: float32. Of groups, one for each along the axis.
    zero_point: int32, the code of 0; None if that is 0.
    fmt: The format of the codes.
    axis: The axis along which groups lie, from 0 on; None if there are none.
    group_size: How many neighbours share a scale.
  """

  codes: jax.Array
  scale: jax.Array
  zero_point: jax.Array | None
  fmt: number_format.NumberFormat
  axis: int | None = None
  group_size: int | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is static about a quantisation."""

  function: str
  fmt: number_format.NumberFormat
  axis: tuple[int, ...] | None
  group_size: int | None
  symmetric: bool
  power_of_two: bool
  mode: rounding.Mode

  def split(self, x: jax.Array) -> jax.Array:
    """Takes groups apart."""
    if self.group_size is None:
      return x
    [axis] = self.axis or ()
    return grouping.split(x, axis, self.group_size)

  def join(self, x: jax.Array, like: jax.Array) -> jax.Array:
    """Puts groups together."""
    if self.group_size is None:
      return x
    [axis] = self.axis or ()
    return grouping.join(x, axis, like.shape[axis])

  def shared(self) -> tuple[int, ...] | None:
    """The axes that share a scale, once groups are apart."""
    if self.group_size is None:
      return self.axis
    [axis] = self.axis or ()
    return (axis + 1,)


def quantize(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  axis: scaling.Axis = None,
  group_size: int | None = None,
  symmetric: bool = True,
  power_of_two: bool = False,
  scale: jax.typing.ArrayLike | None = None,
  zero_point: jax.typing.ArrayLike | None = None,
  mode: rounding.Mode = 'nearest_even',
  key: jax.Array | None = None,
) -> Quantized:
  """Stores an array in a narrow format, with a scale for many values.

      code = clip(round(x · (1 / scale)) + zero_point),
      x ≈ scale · (code − zero_point).

  Symmetric quantisation has no zero point and the scale of `absmax_scale`; of
  integers, the code opposite to none (−128 of `int8`) is not used. Affine
  quantisation has the scale and the zero point of `affine_scale`, and is for
  integers. Scales are those of the array itself, or given: of a calibration.

  A scale is shared by all of a tensor, by what lies along `axis` (a kernel
  `[in, out]` with `axis=0` has one per output channel), or by groups of
  neighbours along `axis`, the last of which may be shorter.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format to store in.
    axis: The axes that share a scale. None: all of them. With `group_size`, the
      one along which groups lie.
    group_size: How many neighbours along `axis` share a scale; None: all.
    symmetric: Whether 0 is the code of 0. If not, `fmt` is one of integers.
    power_of_two: Whether the scale is rounded up to a power of two, if it is
      symmetric.
    scale: Given scales, float32, that broadcast against `x`; of groups, with
      one for each along `axis`.
    zero_point: Likewise, int32.
    mode: The direction of rounding, as in `round_to`.
    key: A PRNG key, for the stochastic modes.

  Returns:
    Codes, scale and zero point. A group with an infinity or a NaN has a scale
    that is not finite, unless it is given; NaN then has the code of 0.

  Raises:
    TypeError: If an argument has another type, or a zero point is wanted of a
      format that is not one of integers.
    ValueError: If arguments contradict each other, or the axis is not there.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[0.1, -0.7, 0.3, 1.2], [100.0, 0.0, 20.0, -40.0]])
    >>> q = numerics.quantize(x, numerics.int4, axis=-1)
    >>> q.codes
    Array([[ 1, -4,  2,  7],
           [ 7,  0,  1, -3]], dtype=int8)
    >>> affine = numerics.quantize(
    ...   x, numerics.uint8, axis=-1, group_size=2, symmetric=False
    ... )
    >>> affine.zero_point
    Array([[223,   0],
           [  0, 170]], dtype=int32)
    >>> bool(jnp.abs(numerics.dequantize(affine) - x).max() < 0.01)
    True

  References:
    Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient
      Inference: A Whitepaper, 2018, arXiv:1806.08342.
  """
  x, plan = _planned(
    'quantize', x, fmt, axis, group_size, symmetric, power_of_two, mode
  )
  given = _given(x, plan, scale, zero_point)
  codes, scale, zero_point = _quantize(x, key, *given, plan)
  [along] = plan.axis if group_size is not None and plan.axis else (None,)
  return Quantized(codes, scale, zero_point, fmt, along, group_size)


@jax.jit
def dequantize(quantized: Quantized) -> jax.Array:
  """The values of what was stored: `scale · (code − zero_point)`.

  Args:
    quantized: What `quantize` returned.

  Returns:
    float32.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> q = numerics.quantize(jnp.array([-1.0, 0.5]), numerics.int8)
    >>> numerics.dequantize(q)
    Array([-1.        ,  0.503937...], dtype=float32)
  """
  codes, fmt = quantized.codes, quantized.fmt
  scale, zero = quantized.scale, quantized.zero_point
  axis, size = quantized.axis, quantized.group_size
  if axis is not None and size is not None:
    length = codes.shape[axis]
    scale = grouping.spread(scale, axis, size, length)
    if zero is not None:
      zero = grouping.spread(zero, axis, size, length)
  if isinstance(fmt, fixed_point.FixedPoint):
    codes = codes.astype(jnp.int32)
    codes = codes if zero is None else codes - zero
    codes = codes.astype(jnp.float32) * np.float32(fmt.step)
  return _restored(codes, scale, zero)


def fake_quantize(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat | blocks.BlockFormat,
  *,
  axis: scaling.Axis = None,
  group_size: int | None = None,
  symmetric: bool = True,
  power_of_two: bool = False,
  scale: jax.typing.ArrayLike | None = None,
  zero_point: jax.typing.ArrayLike | None = None,
  mask: bool = True,
  mode: rounding.Mode = 'nearest_even',
  key: jax.Array | None = None,
) -> jax.Array:
  """Quantises and dequantises: what storage in a scaled format preserves.

      fake_quantize(x) = scale * round_to(x * (1 / scale), fmt),
      scale = absmax_scale(x, fmt, axis),

  or, where it is not symmetric, `dequantize(quantize(x))`, which has a zero
  point; see `quantize` for what the arguments mean. What is rounded is first
  clipped to the range of the format, so that no mode overflows. A zero group
  stays zero; a group with an infinity or a NaN becomes NaN, since no scale can
  store it. Float32 denormals count as zero.

  The derivative is that of clipping (straight-through): 1 where `x` is in the
  range of the format, and 0 beyond, where moving `x` moves nothing. Scales are
  constants. Those found in `x` itself have nothing beyond their range, so that
  the derivative is the identity, but for the numbers that saturate under a rule
  of a `BlockFormat`; `mask=False` makes it so everywhere.

  A `BlockFormat` has its own scales, and takes but `axis`, along which blocks
  lie, of the settings about them.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format to store in.
    axis: The axes that share a scale. None: all of them, a scale per tensor.
      −1: a scale per row of a matrix. Or the one along which groups lie.
    group_size: How many neighbours along `axis` share a scale; None: all.
    symmetric: Whether 0 is the code of 0.
    power_of_two: Whether the scale is a power of two.
    scale: Given scales.
    zero_point: Given zero points.
    mask: Whether the derivative is 0 beyond the range.
    mode: The direction of rounding, as in `round_to`.
    key: A PRNG key, for the stochastic modes.

  Returns:
    float32 of the shape of `x`.

  Raises:
    TypeError: If `x` has another dtype, or `fmt` another type.
    ValueError: If `mode` is unknown, or if `key` is missing or superfluous.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[0.1, -0.7, 0.33, 1.2], [100.0, 0.0, 20.0, -40.0]])
    >>> fmt = numerics.float4_e2m1fn
    >>> numerics.fake_quantize(x, fmt, axis=-1, power_of_two=True)
    Array([[  0.125,  -0.75 ,   0.375,   1.   ],
           [ 96.   ,   0.   ,  16.   , -32.   ]], dtype=float32)
    >>> jax.grad(
    ...   lambda x: numerics.fake_quantize(
    ...     x, numerics.int8, scale=jnp.float32(0.1)
    ...   ).sum()
    ... )(x[1])
    Array([0., 1., 0., 0.], dtype=float32)

  References:
    Krishnamoorthi, Quantizing Deep Convolutional Networks for Efficient
      Inference: A Whitepaper, 2018, arXiv:1806.08342.
  """
  if isinstance(fmt, blocks.BlockFormat):
    x = rounding.checked_array('fake_quantize', x)
    _check_alone(fmt, group_size, symmetric, power_of_two, scale, zero_point)
    axes = None
    if axis is not None or fmt.size is not None:
      axes = (grouping.checked_axis('fake_quantize', axis, x.ndim),)
    return blocks.fake_quantize(x, fmt, axes, mode, key, mask)
  x, plan = _planned(
    'fake_quantize', x, fmt, axis, group_size, symmetric, power_of_two, mode
  )
  return _fake_quantize(x, key, *_given(x, plan, scale, zero_point), plan, mask)


def _check_alone(
  fmt: blocks.BlockFormat,
  group_size: int | None,
  symmetric: bool,
  power_of_two: bool,
  scale: jax.typing.ArrayLike | None,
  zero_point: jax.typing.ArrayLike | None,
) -> None:
  """Raises if scales are asked for that a block format does not have."""
  settings = {
    'group_size': group_size is not None,
    'symmetric': not symmetric,
    'power_of_two': power_of_two,
    'scale': scale is not None,
    'zero_point': zero_point is not None,
  }
  for name, said in settings.items():
    if said:
      raise ValueError(
        f'fake_quantize: {fmt.name} has scales of its own; drop {name}=….'
      )


def _planned(
  function: str,
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  axis: scaling.Axis,
  group_size: int | None,
  symmetric: bool,
  power_of_two: bool,
  mode: rounding.Mode,
) -> tuple[jax.Array, _Plan]:
  """The array, and all else, checked."""
  x = rounding.checked_array(function, x)
  rounding.checked_format(function, fmt)
  axes = scaling.as_tuple(axis)
  if group_size is not None:
    axes = (grouping.checked_axis(function, axis, x.ndim),)
    if not isinstance(group_size, int) or group_size < 1:
      raise ValueError(
        f'{function}: group_size must be a positive int, got {group_size!r}.'
      )
  if not symmetric:
    scaling.checked_integers(function, fmt)
    if power_of_two:
      raise ValueError(
        f'{function}: power_of_two=True is for symmetric quantisation; drop it,'
        ' or pass symmetric=True.'
      )
  return x, _Plan(
    function, fmt, axes, group_size, symmetric, power_of_two, mode
  )


def _given(
  x: jax.Array,
  plan: _Plan,
  scale: jax.typing.ArrayLike | None,
  zero_point: jax.typing.ArrayLike | None,
) -> tuple[jax.Array | None, jax.Array | None]:
  """Given scales and zero points, for groups that are apart."""
  if zero_point is None and (scale is None or plan.symmetric):
    zero = None
  elif scale is None or zero_point is None or plan.symmetric:
    raise ValueError(
      f'{plan.function}: a zero point goes with scale=… and symmetric=False;'
      ' pass all three, or none but symmetric=False to find them in the array.'
    )
  else:
    zero = jnp.asarray(zero_point, jnp.int32)
  if scale is None:
    return None, None
  if plan.power_of_two:
    raise ValueError(
      f'{plan.function}: power_of_two=True is of scales that are not given.'
    )
  scale = rounding.checked_array(plan.function, scale).astype(jnp.float32)
  if plan.group_size is not None:
    [axis] = plan.axis or ()
    shapes = [each.shape for each in (scale, zero) if each is not None]
    if any(len(shape) != x.ndim for shape in shapes):
      raise ValueError(
        f'{plan.function}: scales of groups have one for each group along axis'
        f' {axis} of an array of {x.ndim} dimensions, but those given have'
        f' shapes {shapes}.'
      )
    scale = jnp.expand_dims(scale, axis + 1)
    zero = None if zero is None else jnp.expand_dims(zero, axis + 1)
  return scale, zero


def _stored(
  x: jax.Array,
  key: jax.Array | None,
  scale: jax.Array | None,
  zero: jax.Array | None,
  plan: _Plan,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
  """Rounds scaled values, which are apart by groups.

  Returns:
    What is rounded, less the zero point; the scale, the zero point, and whether
    a value is in range.
  """
  fmt = plan.fmt
  shared = plan.shared()
  if scale is None and plan.symmetric:
    scale = scaling.absmax_scale(
      x, fmt, axis=shared, power_of_two=plan.power_of_two
    )
  elif scale is None:
    integers = scaling.checked_integers(plan.function, fmt)
    low = jnp.min(x, axis=shared, keepdims=True, initial=0.0)
    high = jnp.max(x, axis=shared, keepdims=True, initial=0.0)
    scale, zero = scaling.affine_scale(low, high, integers)
  if zero is None:
    low, high = np.float32(max(fmt.min, -fmt.max)), np.float32(fmt.max)
    target = fmt
  else:
    offset = zero.astype(jnp.float32)
    low, high = np.float32(fmt.min) - offset, np.float32(fmt.max) - offset
    target = fixed_point.FixedPoint(25)
  # XLA turns division by a broadcast array into this product where it sees one,
  # which differs between jit, vmap and eager execution; so say it outright.
  scaled = x * (1 / scale)
  half = np.float32(2.0 ** (fmt.emax - fmt.significant_bits))
  inside = (scaled >= low - half) & (scaled <= high + half)
  clipped = jnp.clip(scaled, low, high)
  stored = rounding.round_to(clipped, target, mode=plan.mode, key=key)
  return stored, scale, zero, inside


@functools.partial(jax.jit, static_argnames='plan')
def _quantize(
  x: jax.Array,
  key: jax.Array | None,
  scale: jax.Array | None,
  zero: jax.Array | None,
  plan: _Plan,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  wide = plan.split(jax.lax.stop_gradient(x.astype(jnp.float32)))
  stored, scale, zero, _ = _stored(wide, key, scale, zero, plan)
  fmt = plan.fmt
  codes = stored
  if isinstance(fmt, fixed_point.FixedPoint):
    codes = jnp.where(jnp.isnan(stored), 0, stored * np.float32(1 / fmt.step))
    codes = codes.astype(jnp.int32)
    codes = codes if zero is None else codes + zero
    codes = codes.astype(_dtype(fmt))
  codes = plan.join(codes, x)
  if plan.group_size is not None:
    [axis] = plan.shared() or ()
    scale = scale.squeeze(axis)
    zero = None if zero is None else zero.squeeze(axis)
  return codes, scale, zero


@functools.partial(jax.jit, static_argnames=('plan', 'mask'))
def _fake_quantize(
  x: jax.Array,
  key: jax.Array | None,
  scale: jax.Array | None,
  zero: jax.Array | None,
  plan: _Plan,
  mask: bool,
) -> jax.Array:
  wide = plan.split(jax.lax.stop_gradient(x.astype(jnp.float32)))
  stored, scale, zero, inside = _stored(wide, key, scale, zero, plan)
  y = plan.join(_restored(stored, scale, zero), x)
  if mask:
    x = jnp.where(plan.join(inside, x), x, jax.lax.stop_gradient(x))
  return rounding.straight_through(x, y)


def _restored(
  stored: jax.Array, scale: jax.Array, zero: jax.Array | None
) -> jax.Array:
  """The values of what is rounded."""
  y = scale * stored
  if zero is None:
    return y
  # The ends of a range are rounded to codes, maybe to beyond the last float32.
  largest = np.finfo(np.float32).max
  return jnp.clip(y, -largest, largest)


def _dtype(fmt: fixed_point.FixedPoint) -> np.dtype:
  """The narrowest dtype of NumPy that holds the codes."""
  for bits in (8, 16):
    if fmt.bits <= bits:
      return np.dtype(f'{"" if fmt.signed else "u"}int{bits}')
  return np.dtype(np.int32)
