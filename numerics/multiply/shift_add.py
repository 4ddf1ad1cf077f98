"""MixPE: weights of four bits multiply by shifting and adding."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import formats
from numerics import number_format
from numerics.multiply import exact
from numerics.multiply import multiplier

# Magnitudes, by the three bits after the sign.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

Weights = typing.Literal['int4', 'float4_e2m1fn']


@dataclasses.dataclass(frozen=True)
class ShiftAdd(exact.IntegerDot):
  """Products with weights of four bits by shifts and additions.

  * `'int4'`: in two's complement `w = b₀ + 2 b₁ + 4 b₂ − 8 b₃`, so that `w x`
    is the sum of `x` shifted by the places of the bits that are set; the last
    is subtracted.
  * `'float4_e2m1fn'`: codes are the four bits of E2M1, from 0 to 15, whose
    values are `±{0, ½, 1, 1½, 2, 3, 4, 6}`. A product is `x` shifted by the
    exponent, and half of that once more if the bit of the mantissa is set. It
    is counted in halves: the result is `2 Σ x w`, an integer.

  Scales of groups of weights multiply the sums, once a group:
  `numerics.quantized_dot` does so.

  Attributes:
    weights: What weights are.
    x_bits: Of an activation, in two's complement.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[100, -3]], jnp.int8)
    >>> numerics.ShiftAdd().dot(x, jnp.array([[-8], [5]], jnp.int8))
    Array([[-815]], dtype=int32)
    >>> codes = jnp.array([[0b0011], [0b1111]], jnp.uint8)  # 1½ and −6.
    >>> numerics.ShiftAdd('float4_e2m1fn').dot(x, codes)  # 2 · (150 + 18)
    Array([[336]], dtype=int32)

  References:
    Zhang et al., MixPE: Quantization and Hardware Co-design for Efficient LLM
      Inference, 2024, arXiv:2411.16158.
  """

  weights: Weights = 'int4'
  x_bits: int = 8

  def __post_init__(self) -> None:
    number_format.check_choice(
      'ShiftAdd', 'weights', self.weights, typing.get_args(Weights)
    )
    number_format.check_int('ShiftAdd', 'x_bits', self.x_bits, 2, 16)

  @property
  def w_range(self) -> tuple[int, int]:
    """Integers, or codes."""
    return (-8, 7) if self.weights == 'int4' else (0, 15)

  @property
  def terms(self) -> tuple[int, int]:
    """The least and the largest product, in halves for E2M1."""
    if self.weights == 'int4':
      return super().terms
    low, _ = self.x_range  # 6 is 12 halves.
    return 12 * low, -12 * low

  def read(
    self,
    fmt: number_format.NumberFormat,
    codes: jax.Array,
    zero: exact.Zero,
  ) -> tuple[jax.Array, exact.Zero, float]:
    """Integers, or the codes of numbers in E2M1."""
    if self.weights == 'int4':
      return super().read(fmt, codes, zero)
    if fmt != formats.float4_e2m1fn:
      raise TypeError(
        f'ShiftAdd: weights must be in float4_e2m1fn, got {fmt.name}.'
      )
    return e2m1_codes(codes), None, 0.5

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""
    shifted = _int4 if self.weights == 'int4' else _e2m1
    return multiplier.fold(
      lambda total, left, right: total + shifted(left, right),
      jnp.zeros((x.shape[0], w.shape[1]), jnp.int32),
      x,
      w,
    )


def e2m1_codes(x: jax.typing.ArrayLike) -> jax.Array:
  """The four bits of numbers of `float4_e2m1fn`, sign first, as int32.

  Examples:
    >>> import jax.numpy as jnp
    >>> e2m1_codes(jnp.array([0.0, 1.5, 6.0, -0.5])).tolist()
    [0, 3, 7, 9]
  """
  x = jnp.asarray(x)
  code = jnp.signbit(x).astype(jnp.int32) << 3
  for value in _E2M1[1:]:
    code = code + (jnp.abs(x) >= value).astype(jnp.int32)
  return code


def _int4(x: jax.Array, w: jax.Array) -> jax.Array:
  terms = [_if(w & 1 << place, x << place) for place in range(4)]
  return terms[0] + terms[1] + terms[2] - terms[3]


def _e2m1(x: jax.Array, w: jax.Array) -> jax.Array:
  """Twice the product with a code: one shift, and one by a place less."""
  exponent, mantissa = w >> 1 & 3, w & 1
  one = _if(exponent, x << exponent)
  # Below 1 the exponent is that of 1, and there is no hidden bit.
  half = _if(mantissa, x << jnp.maximum(exponent, 1) >> 1)
  return jnp.where(w & 8 != 0, -(one + half), one + half)


def _if(condition: jax.Array, x: jax.Array) -> jax.Array:
  return jnp.where(condition != 0, x, np.int32(0))
