"""Products by digits of the multiplier, added up without carrying."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics.multiply import exact
from numerics.multiply import multiplier


def booth_digits(x: jax.typing.ArrayLike, bits: int = 8) -> jax.Array:
  """The digits of integers to the base 4, from −2 to 2 (radix-4 Booth).

      x = Σ 4**i dᵢ,   dᵢ = −2 b_{2i+1} + b_{2i} + b_{2i−1},   b₋₁ = 0,

  where `b` are bits in two's complement. Partial products `dᵢ y` then need no
  more than a shift and a change of sign, and are half as many as bits.

  Args:
    x: Integers of any dtype and shape.
    bits: How many bits count, an even number.

  Returns:
    int32, with an axis of `bits / 2` digits more, the least first.

  Raises:
    ValueError: If `bits` is odd or out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> booth_digits(jnp.array([7, -128]))  # 7 = −1 + 2 · 4
    Array([[-1,  2,  0,  0],
           [ 0,  0,  0, -2]], dtype=int32)

  References:
    Booth, A Signed Binary Multiplication Technique, 1951.
    MacSorley, High-Speed Arithmetic in Binary Computers, 1961 (to the base 4).
  """
  _check_bits('booth_digits', 'bits', bits)
  # With b₋₁ behind it; three bits to a digit.
  behind = jnp.asarray(x).astype(jnp.int32) << 1
  three = jnp.stack([behind >> i & 7 for i in range(0, bits, 2)], axis=-1)
  return (three & 1) + (three >> 1 & 1) - (three >> 1 & 2)


def digit_shares(x: jax.typing.ArrayLike, bits: int = 8) -> jax.Array:
  """How many of the digits are not zero, by place.

  Zero digits are work that a sparse multiplier does not do.

  Args:
    x: Integers of any dtype and shape.
    bits: How many bits count.

  Returns:
    f32[bits / 2], shares, the least digit first.

  Examples:
    >>> import jax.numpy as jnp
    >>> digit_shares(jnp.arange(-128, 128)).tolist()  # Uniform: three quarters.
    [0.75, 0.75, 0.75, 0.75]
  """
  digits = booth_digits(x, bits)
  used = (digits != 0).astype(jnp.float32)
  return jnp.mean(used, axis=tuple(range(digits.ndim - 1)))


def carry_save(
  a: jax.Array, b: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds three numbers into two, bit by bit: `a + b + c = sum + carry`.

  A row of full adders, of which none waits for another.

  Args:
    a: u32[...].
    b: Likewise.
    c: Likewise.

  Returns:
    The sums without carries, and the carries in their places, modulo 2**32.

  Examples:
    >>> import jax.numpy as jnp
    >>> a, b, c = jnp.uint32(3), jnp.uint32(5), jnp.uint32(6)
    >>> [int(x) for x in carry_save(a, b, c)]
    [0, 14]
  """
  majority = a & b | a & c | b & c
  return a ^ b ^ c, majority << np.uint32(1)


@dataclasses.dataclass(frozen=True)
class BitWeight(exact.IntegerDot):
  """Products summed over terms and digits alike, in carry-save form.

  The multiplier `w` is recoded (`booth_digits`), and a product of matrices is

      Σ_k Σ_i 4**i d_{k,i} x_k,

  whose terms are 0, ±x or ±2x, shifted. They are added by `carry_save`, which
  keeps a sum and its carries apart, and only the result is added up.

  Attributes:
    bits: Of `w`, an even number, in two's complement.
    x_bits: Of `x`, likewise in two's complement.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[-128, 3]], jnp.int8)
    >>> numerics.BitWeight().dot(x, jnp.array([[-128], [7]], jnp.int8))
    Array([[16405]], dtype=int32)

  References:
    Wu et al., Exploring the Performance Improvement of Tensor Processing
      Engines through Transformation in the Bit-weight Dimension of MACs, 2025,
      arXiv:2503.06342.
  """

  bits: int = 8
  x_bits: int = 8

  def __post_init__(self) -> None:
    _check_bits('BitWeight', 'bits', self.bits)
    number_format.check_int('BitWeight', 'x_bits', self.x_bits, 2, 16)

  @property
  def w_range(self) -> tuple[int, int]:
    """All integers of `bits` bits."""
    return exact.signed_range(self.bits)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""

    def step(total, left, right):
      behind = right << 1
      for place in range(0, self.bits, 2):
        three = behind >> place & 7
        # 0, x, x, 2x, −2x, −x, −x, 0 for the eight values of three bits.
        size = jnp.where(three > 3, 7 - three, three)
        part = jnp.where(size == 3, left << 1, left)
        part = jnp.where(size == 0, 0, part)
        part = jnp.where(three > 3, -part, part) << place
        total = carry_save(total[0], total[1], part.astype(jnp.uint32))
      return total

    zero = jnp.zeros((x.shape[0], w.shape[1]), jnp.uint32)
    kept, carries = multiplier.fold(step, (zero, zero), x, w)
    return (kept + carries).astype(jnp.int32)


def _check_bits(owner: str, field: str, bits: int) -> None:
  number_format.check_int(owner, field, bits, 2, 16)
  if bits % 2:
    raise ValueError(f'{owner}: {field} must be even, got {bits}.')
