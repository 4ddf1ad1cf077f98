"""Products of matrices stored with scales, by any algorithm for integers."""

import functools
import math

import jax
import jax.numpy as jnp

from numerics import grouping
from numerics import quantizing
from numerics.multiply import exact


def quantized_dot(
  x: quantizing.Quantized,
  w: quantizing.Quantized,
  multiply: exact.IntegerDot,
) -> jax.Array:
  """Multiplies quantised matrices: integers first, scales once a group.

      y = Σ_groups s_x s_w Σ_k (x_k − z_x) (w_k − z_w),

  where the inner sum is one of integers, exact: `Σ x w` by the algorithm, and
  what zero points make of `Σ x` and `Σ w`. Every group then costs a
  multiplication by its scales and an addition in float32, where dequantising
  first costs one for each weight. With one scale for a column, what is rounded
  is the product of scales, the sum if it is beyond 2**24, and their product.

  Codes without sign become those of the algorithm (less `2**(bits − 1)`, or odd
  for `LutTensorCore`), and so do numbers of `float4_e2m1fn` for `ShiftAdd`.

  Args:
    x: Of [..., k], with a scale for all, for a row, or for groups along the
      last axis.
    w: Of [k, n], with a scale for all, for a column, or for groups along the
      first axis, as long as those of `x` if that has groups too.
    multiply: What multiplies.

  Returns:
    float32, [..., n].

  Raises:
    TypeError: If a format is none of the algorithm.
    ValueError: If shapes or groups do not fit, or integers are out of range.

  Examples:
    >>> import numpy as np
    >>> import numerics
    >>> x = np.float32([[0.5, -1.0, 0.25, 2.0]])
    >>> w = np.float32([[0.1], [0.7], [-3.0], [2.0]])  # A product of 2.6.
    >>> numerics.quantized_dot(
    ...   numerics.quantize(x, numerics.int8, axis=-1),
    ...   numerics.quantize(w, numerics.int4, axis=0, group_size=2),
    ...   numerics.TMac(bits=4),
    ... ).round(2)
    Array([[2.87]], dtype=float32)

  References:
    Zhang et al., MixPE: Quantization and Hardware Co-design for Efficient LLM
      Inference, 2024, arXiv:2411.16158.
  """
  if not isinstance(multiply, exact.IntegerDot):
    raise TypeError(
      'quantized_dot: multiply must be an algorithm such as numerics.TMac(),'
      f' got {multiply!r}.'
    )
  length = x.codes.shape[-1]
  if w.codes.ndim != 2 or w.codes.shape[0] != length:
    raise ValueError(
      'quantized_dot: expected x [..., k] and w [k, n], got shapes'
      f' {x.codes.shape} and {w.codes.shape}.'
    )
  size = _group_size(x, w, length)
  multiply.check_length(size)
  left, right = _read(x, w, multiply)
  if left[1] is not None or right[1] is not None:
    ranges = multiply.x_range, multiply.w_range
    if size * math.prod(high - low for low, high in ranges) >= 2**31:
      raise ValueError(
        f'quantized_dot: sums of {size} terms with zero points may not fit'
        ' int32; take groups.'
      )
  multiply.checked(left[0], right[0])
  return _scaled(x, w, left, right, multiply, size)


@functools.partial(jax.jit, static_argnums=2)
def _read(
  x: quantizing.Quantized, w: quantizing.Quantized, multiply: exact.IntegerDot
):
  """Of both: integers, which of them zero is, and what 1 stands for."""
  left = exact.integers('quantized_dot', x.fmt, x.codes, x.zero_point)
  return left, multiply.read(w.fmt, w.codes, w.zero_point)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _scaled(x, w, left, right, multiply: exact.IntegerDot, size: int):
  (x_codes, z_x, x_unit), (w_codes, z_w, w_unit) = left, right
  length = x_codes.shape[-1]
  x_parts = grouping.split(x_codes.reshape(-1, length), 1, size)
  w_parts = grouping.split(w_codes, 0, size)
  product = jax.vmap(multiply.product, (1, 0))
  sums = product(x_parts, w_parts)  # [groups, m, n]
  if z_x is not None or z_w is not None:
    z_x = _of_rows(jnp.int32(0) if z_x is None else z_x, x.codes)
    z_w = _of_columns(jnp.int32(0) if z_w is None else z_w)
    ones = grouping.split(jnp.ones((1, length), jnp.int32), 1, size)
    counts = jnp.sum(ones, axis=2, dtype=jnp.int32).T[..., None]
    of_x = jnp.sum(x_parts, axis=2, dtype=jnp.int32).T[..., None]
    sums = sums - z_w * of_x - z_x * product(ones, w_parts)
    sums = sums + counts * z_x * z_w
  scales = _of_rows(x.scale, x.codes) * _of_columns(w.scale)
  scales = scales * (x_unit * w_unit)
  found = jnp.sum(scales * sums.astype(jnp.float32), axis=0)
  return found.reshape(*x.codes.shape[:-1], w.codes.shape[1])


def _group_size(
  x: quantizing.Quantized, w: quantizing.Quantized, length: int
) -> int:
  """How many terms share scales."""
  for name, each, axis in (('x', x, x.codes.ndim - 1), ('w', w, 0)):
    if each.axis is None:
      if each.scale.ndim and each.scale.shape[axis] != 1:
        raise ValueError(
          f'quantized_dot: {name} has scales that differ along the axis {axis}'
          ' that is added up; quantise along it, as a whole or in groups.'
        )
    elif each.axis != axis:
      raise ValueError(
        f'quantized_dot: groups of {name} lie along axis {each.axis}, not along'
        f' {axis}, which is added up.'
      )
  sizes = {each.group_size for each in (x, w)} - {None}
  if len(sizes) > 1:
    raise ValueError(
      f'quantized_dot: groups of x and w differ in size: {x.group_size} and'
      f' {w.group_size}.'
    )
  return min(next(iter(sizes), length) or length, length)


def _of_rows(values: jax.Array, codes: jax.Array) -> jax.Array:
  """What every row of `x` and group has, [groups, rows, 1], or fewer of it."""
  if values.ndim == 0:
    return values.reshape(1, 1, 1)
  each = jnp.broadcast_to(values, (*codes.shape[:-1], values.shape[-1]))
  return each.reshape(-1, values.shape[-1]).T[..., None]


def _of_columns(values: jax.Array) -> jax.Array:
  """What every group and column of `w` has, [groups, 1, columns]."""
  return values[:, None] if values.ndim else values.reshape(1, 1, 1)
