"""LUT Tensor Core: weights on a grid of odd numbers look up sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics.multiply import exact
from numerics.multiply import half_tables


@dataclasses.dataclass(frozen=True)
class LutTensorCore(exact.IntegerDot):
  """Table lookup with weights that are odd, and so are sums of signs.

  Codes `q` of `b` bits without sign are read as `q' = 2 q − (2**b − 1)`, an odd
  number from `−(2**b − 1)` to `2**b − 1`; `symmetric` says with which scale and
  zero point. Then every bit is a sign,

      q' = s₀ + 2 s₁ + … + 2**(b - 1) s_{b-1},   sᵢ = ±1,

  and nothing has to be subtracted afterwards, as `TMac` has to. Tables have the
  sums of 4 activations with all choices of signs, half of them stored, and bits
  of weights are taken one after the other.

  Even weights are an error; under `jit` they count as the odd number below.

  Attributes:
    bits: Of a weight, from 1 to 8.
    x_bits: Of an activation, in two's complement.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> q = jnp.array([[0, 3], [2, 1]], jnp.uint8)
    >>> w, scale, zero = numerics.LutTensorCore(bits=2).symmetric(q, 0.5, 1)
    >>> w, scale, zero
    (Array([[-3,  3], [ 1, -1]], dtype=int32), 0.25, -1)
    >>> numerics.LutTensorCore(bits=2).dot(jnp.array([[10, 1]], jnp.int8), w)
    Array([[-29,  29]], dtype=int32)

  References:
    Mo et al., LUT Tensor Core: Lookup Table Enables Efficient Low-Bit LLM
      Inference Acceleration, 2024, arXiv:2408.06003.
  """

  bits: int = 4
  x_bits: int = 8

  # Activations that share a table.
  GROUP = 4

  def __post_init__(self) -> None:
    number_format.check_int('LutTensorCore', 'bits', self.bits, 1, 8)
    number_format.check_int('LutTensorCore', 'x_bits', self.x_bits, 2, 16)

  @property
  def w_range(self) -> tuple[int, int]:
    """The ends of the odd grid."""
    return 1 - 2**self.bits, 2**self.bits - 1

  def wrong(self, operand: str, values: np.ndarray) -> str | None:
    """Says that weights are odd."""
    if operand == 'x' or (values % 2 == 1).all():
      return None
    even = values[values % 2 == 0].flat[0]
    return (
      f'w must be odd, got {even}; codes of {self.bits} bits without sign'
      ' become so by LutTensorCore.symmetric.'
    )

  def symmetric(
    self,
    codes: jax.Array,
    scale: jax.typing.ArrayLike,
    zero_point: jax.typing.ArrayLike,
  ) -> tuple[jax.Array, jax.typing.ArrayLike, jax.typing.ArrayLike]:
    """Reads codes on the odd grid.

    Args:
      codes: Without sign, of any integer dtype.
      scale: Of which `scale · (codes − zero_point)` is meant.
      zero_point: Likewise.

    Returns:
      Odd codes in int32, and the scale and the zero point with which they mean
      the same.
    """
    odd = self._odd(codes.astype(jnp.int32))
    return odd, scale / 2, self._odd(zero_point)

  def read(
    self,
    fmt: number_format.NumberFormat,
    codes: jax.Array,
    zero: exact.Zero,
  ) -> tuple[jax.Array, exact.Zero, float]:
    """Integers with and without sign, on the odd grid."""
    codes, zero, unit = super().read(fmt, codes, zero)
    half = np.int32(2 ** (fmt.bits - 1))
    zero = jnp.int32(0) if zero is None else zero
    return self._odd(codes + half), self._odd(zero + half), unit / 2

  def _odd(self, codes):
    return 2 * codes - (2**self.bits - 1)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""
    codes = (w + np.int32(2**self.bits - 1)) >> 1
    planes = half_tables.look_up(
      half_tables.build(x, self.GROUP),
      half_tables.signs(codes, self.bits, self.GROUP),
      self.GROUP,
    )
    total = planes[0]
    for place in range(1, self.bits):
      total = total + (planes[place] << place)
    return total
