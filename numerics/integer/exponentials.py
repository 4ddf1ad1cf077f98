"""Exponentials by shifts, and the softmax and the GELU made of them."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics import wide
from numerics.integer import checking

Maximum = Literal['row', 'element']

_LARGEST = np.int32(2**31 - 1)
_FAR = np.int32(2**30)  # Where every exponential has long been at its least.

# Steps of 1 in a scale: an int, or i32[...] that broadcasts.
Unit = jax.typing.ArrayLike


def unit(scale: 'np.typing.ArrayLike') -> np.ndarray:
  """How many steps of a scale make 1, rounded up: `⌈1 / scale⌉`.

  It is what exponentials have to know of a scale. What is whole but for 2**-40
  of it counts as whole. Computed by NumPy, before a program runs.

  Args:
    scale: What an integer 1 stands for, positive, of any shape.

  Returns:
    int32.

  Raises:
    ValueError: If a scale is not positive, or finer than 2**-30.

  Examples:
    >>> int(unit(0.1)), int(unit(1 / 16))
    (10, 16)
  """
  scale = np.asarray(scale, np.float64)
  if not ((scale > 2.0**-30) & np.isfinite(scale)).all():
    raise ValueError(f'unit: expected scales from 2**-30 on, got {scale}.')
  return np.ceil((1 - 2.0**-40) / scale).astype(np.int32)


def shift_exp(x: jax.Array, unit: Unit, *, terms: int = 15) -> jax.Array:
  """The exponential of numbers up to 0, by shifts and additions.

  With `log₂ e ≈ 1 + 1/2 − 1/16` and `2**−f ≈ 1 − f / 2`,

      p = x + ⌊x / 2⌋ − ⌊x / 16⌋,   not below −terms · unit,
      −p = q · unit + f,   exp = ⌊(unit − f / 2) · 2**(terms − q)⌋.

  It is above the exponential, by 5.6 % in the mean and 9.2 % at most from −8
  to 0, most of which a softmax divides away.

  Args:
    x: i32[...] in steps of `1 / unit`. Positive ones count as 0.
    unit: Steps of 1, up to `(2**31 − 1) / 2**terms`; see `unit`.
    terms: How many halvings there are before the result stays at its least.

  Returns:
    int32, from `unit` (at −∞) to `unit · 2**terms` (at 0), which stands for 1.

  Raises:
    TypeError: If `x` is no array of integers.
    ValueError: If `unit` is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import integer
    >>> y = integer.shift_exp(jnp.array([0, -100, -200]), 100)
    >>> [round(x / int(y[0]), 3) for x in y.tolist()]  # 1, 0.368, 0.135
    [1.0, 0.393, 0.141]

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
  """
  x = checking.as_int32('shift_exp', x)
  return _shift_exp(x, _checked('shift_exp', unit, terms), terms)


def shiftmax(
  x: jax.Array,
  unit: Unit,
  *,
  axis: int = -1,
  where: jax.Array | None = None,
  bits: int = 8,
  terms: int = 15,
) -> jax.Array:
  """The softmax of integers (Shiftmax).

      e = shift_exp(x − max x),
      p = ⌊e · ⌊(2**31 − 1) / Σ e⌋ / 2**(32 − bits)⌋.

  The sum is exact up to 2**31 − 1 and stays there, where shares are too large;
  next to it the first quotient is small, and shares are too small. So
  `2**terms · unit` times the length of a row should be far below 2**31. Both
  divisions round down, so that rows add up to less than 1: with 8 bits and long
  rows, to much less.

  Args:
    x: i32[...], any int32.
    unit: Steps of 1 in `x`; see `unit`.
    axis: Along which shares add up, of at most 2**16.
    where: Which numbers count, bool[...] that broadcasts; the others have no
      share. None: all.
    bits: Of a result, from 2 to 16.
    terms: As in `shift_exp`.

  Returns:
    int32, from 0 to `2**(bits − 1) − 1`, of the scale `2**(1 − bits)`.

  Raises:
    TypeError: If `x` is no array of integers.
    ValueError: If a setting is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import integer
    >>> integer.shiftmax(jnp.array([0, 16, 32]), integer.unit(1 / 16))
    Array([11, 32, 83], dtype=int32)

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
  """
  x = checking.as_int32('shiftmax', x)
  steps = _checked('shiftmax', unit, terms)
  number_format.check_int('shiftmax', 'bits', bits, 2, 16)
  return _shiftmax(x, steps, where, axis, bits, terms)


def shift_gelu(
  x: jax.Array,
  unit: Unit,
  *,
  maximum: Maximum = 'row',
  axis: int = -1,
  bits: int = 8,
  terms: int = 23,
) -> jax.Array:
  """The Gaussian error linear unit of integers (ShiftGELU): `x · σ(1.702 x)`.

      σ = e₁ / (e₁ + e₂),   e₁ = shift_exp(x' − m),   e₂ = shift_exp(−m),

  where `x'` counts in steps of `1.702 · scale`, and `m`, which keeps both
  exponents at most 0, is

  * `'row'`: the largest of a row, or 0, as published. In a row with a number
    beyond `terms · ln 2` in `x'`, which is 9 in `x`, exponentials of all small
    ones are at their least, and what should vanish is halved.
  * `'element'`: `max(x', 0)`, of each number by itself.

  With many terms, few bits are left to `(2**31 − 1) / (e₁ + e₂)`, which is
  rounded down. Numbers by themselves need but 15: from −8 to 8 in steps of
  8/127 they err by 0.06 at most, rows with 23 by 0.31.

  Args:
    x: i32[...]; beyond `±2**(32 − bits)` it saturates.
    unit: Steps of 1 in `x'`: `unit(1.702 * scale)`, up to `(2**31 − 1) /
      2**terms`, which is 255.
    maximum: As above.
    axis: Of rows.
    bits: Of `σ`, from 2 to 16.
    terms: As in `shift_exp`.

  Returns:
    int32, of the scale of `x` times `2**(1 − bits)`.

  Raises:
    TypeError: If `x` is no array of integers.
    ValueError: If a setting is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import integer
    >>> x = jnp.array([-32, -8, 0, 8, 32])  # In sixteenths.
    >>> y = integer.shift_gelu(x, integer.unit(1.702 / 16))
    >>> [
    ...   round(x / (16 * 128), 2) for x in y.tolist()
    ... ]  # −.05, −.15, 0, .35, 1.95
    [-0.06, -0.16, 0.0, 0.35, 1.88]

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
  """
  x = checking.as_int32('shift_gelu', x)
  steps = _checked('shift_gelu', unit, terms)
  number_format.check_int('shift_gelu', 'bits', bits, 2, 16)
  number_format.check_choice(
    'shift_gelu', 'maximum', maximum, ('row', 'element')
  )
  return _shift_gelu(x, steps, maximum, axis, bits, terms)


@functools.partial(jax.jit, static_argnames='terms', inline=True)
def _shift_exp(x: jax.Array, steps: jax.Array, terms: int) -> jax.Array:
  return _exp(jnp.clip(x, -_FAR, 0), steps, terms)


@functools.partial(
  jax.jit, static_argnames=('axis', 'bits', 'terms'), inline=True
)
def _shiftmax(
  x: jax.Array,
  steps: jax.Array,
  where: jax.Array | None,
  axis: int,
  bits: int,
  terms: int,
) -> jax.Array:
  least = np.int32(-(2**31))
  peak = jnp.max(x, axis=axis, keepdims=True, initial=least, where=where)
  e = _exp(_less(x, peak), steps, terms)
  e = e if where is None else jnp.where(where, e, 0)
  total = wide.saturated(wide.total(e.astype(jnp.uint32), axis))
  factor = _LARGEST // jnp.maximum(jnp.expand_dims(total, axis), 1)
  return (e * factor) >> (32 - bits)


@functools.partial(
  jax.jit, static_argnames=('maximum', 'axis', 'bits', 'terms'), inline=True
)
def _shift_gelu(
  x: jax.Array,
  steps: jax.Array,
  maximum: Maximum,
  axis: int,
  bits: int,
  terms: int,
) -> jax.Array:
  limit = _LARGEST >> np.int32(bits - 1)
  x = jnp.clip(x, -limit, limit)
  peak = jnp.maximum(x, 0)
  if maximum == 'row':
    peak = jnp.max(peak, axis=axis, keepdims=True)
  first = _exp(_less(x, peak), steps, terms)
  second = _exp(_less(jnp.zeros_like(peak), peak), steps, terms)
  total = first.astype(jnp.uint32) + second.astype(jnp.uint32)
  total = jnp.minimum(total, np.uint32(_LARGEST)).astype(jnp.int32)
  share = (first * (_LARGEST // total)) >> (32 - bits)
  return x * share


def _exp(x: jax.Array, steps: jax.Array, terms: int) -> jax.Array:
  """`shift_exp` of numbers from −2**30 to 0."""
  power = jnp.maximum(x + (x >> 1) - (x >> 4), -terms * steps)
  whole = -power // steps
  # Twice the mantissa, from more than `steps` to twice that.
  twice = power + whole * steps + 2 * steps
  left = terms - 1 - whole
  return jnp.where(left < 0, twice >> 1, twice << jnp.maximum(left, 0))


def _less(x: jax.Array, peak: jax.Array) -> jax.Array:
  """`x − peak`, not below −2**30, where `x <= peak`."""
  distance = peak.astype(jnp.uint32) - x.astype(jnp.uint32)
  return -jnp.minimum(distance, np.uint32(_FAR)).astype(jnp.int32)


def _checked(function: str, unit: Unit, terms: int) -> jax.Array:
  """The steps of 1, in int32."""
  number_format.check_int(function, 'terms', terms, 1, 30)
  most = (2**31 - 1) >> terms
  if not isinstance(unit, jax.core.Tracer):
    values = np.asarray(unit)
    if values.size and not (values.min() >= 1 and values.max() <= most):
      raise ValueError(
        f'{function}: unit must be from 1 to {most} for terms={terms}, got'
        f' {values}; take a coarser scale, or fewer terms.'
      )
  return checking.as_int32(function, unit)
