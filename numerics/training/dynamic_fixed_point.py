"""Training with integers that share an exponent, and integer sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numerics import blocks
from numerics import fixed_point
from numerics import grouping
from numerics import number_format
from numerics import products

# Products that partial sums of 32 bits hold, if factors have 8.
_LONGEST = 2**14


@dataclasses.dataclass(frozen=True)
class DynamicFixedPoint(products.Product):
  """Products of matrices of integers, which share an exponent.

      lhs ≈ 2**e · l,    rhs ≈ 2**f · r,
      product = 2**(e + f) · Σ (Σ l · r),

  with the integers and the exponent, one of a whole operand, that `dfp16` has:
  the largest magnitude uses all bits. The inner sums, of a chain of products,
  are exact; each is rounded to float32 once, where they are added up (the
  control of overflow: integers of 16 bits have products of 31, so that sums of
  32 bits do not hold many). The derivative has the same products, of cotangents
  that are integers with an exponent of their own. Weights stay in float32, and
  so does whatever is no product.

  Here integers are multiplied as halves of 8 bits, whose sums are exact in 32
  bits; that is how hardware with 8-bit units does it, for chains up to 2**14.
  What accumulates products of 16 bits in 32 gives the same, as long as its sums
  do not overflow: chains of two never do, but for `2 · (−2**15)²`.

  Attributes:
    fmt: The format of operands: integers with an exponent for all of them.
    chain: How many products are added before the sum becomes a float32.
    narrow: Whether the result is stored in the format again. Of an integer sum
      of `b` bits that is a shift by `max(0, b − 15)`, with rounding.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If the format is another, or the chain too long.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> policy = numerics.Policy(
    ...   matmul=numerics.Precision(product=numerics.DynamicFixedPoint())
    ... )
    >>> x = jnp.float32([100.0, 0.001, 3.0])  # A step is 2**-8.
    >>> float(numerics.emulate(jnp.dot, policy)(x, x))
    10009.0

  References:
    Das et al., Mixed Precision Training of Convolutional Neural Networks using
      Integer Operations, 2018, arXiv:1802.00930.
  """

  fmt: blocks.BlockFormat = blocks.dfp16
  chain: int = _LONGEST
  narrow: bool = False

  def __post_init__(self) -> None:
    element = getattr(self.fmt, 'element', None)
    if (
      not isinstance(element, fixed_point.FixedPoint)
      or element.fraction_bits
      or not element.signed
      or self.fmt.size is not None
      or self.fmt.scale is not None
    ):
      raise ValueError(
        'DynamicFixedPoint: fmt must have signed integers that share one'
        ' exponent, as numerics.dfp16 or numerics.BlockFormat(numerics.int8,'
        f' None); got {self.fmt!r}.'
      )
    number_format.check_int('DynamicFixedPoint', 'chain', self.chain, 1, 2**31)
    if self.chain > _LONGEST:
      raise ValueError(
        f'DynamicFixedPoint: chain is at most {_LONGEST}, for which sums of'
        f' halves fit 32 bits; got {self.chain}.'
      )
    number_format.check_bool('DynamicFixedPoint', 'narrow', self.narrow)

  @property
  def formats(self) -> tuple[products.Stored, products.Stored]:
    """In what operands are stored."""
    return self.fmt, self.fmt

  def product(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Multiplies stacks of matrices; see `Product`."""
    del key
    return products.contract(lhs, rhs, None, self._dot, self._dot)

  def _dot(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    del key
    left, e, first = self._codes(lhs)
    right, f, second = self._codes(rhs)
    chain = max(1, min(self.chain, lhs.shape[2]))

    def add(total, chains):
      return total + to_float(*integer_dot(*chains)), None

    total, _ = jax.lax.scan(
      add,
      jnp.zeros((*lhs.shape[:2], rhs.shape[2]), jnp.float32),
      (
        jnp.moveaxis(grouping.split(left, 2, chain), 2, 0),
        jnp.moveaxis(grouping.split(right, 1, chain), 1, 0),
      ),
    )
    total = blocks.times_power(blocks.times_power(total, e), f)
    total = jnp.where(first & second, total, np.nan)
    if not self.narrow:
      return total
    return blocks.fake_quantize(total, self.fmt, None, 'nearest_even', None)

  def _codes(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Integers, their exponent, and whether all numbers are finite."""
    amax = jnp.max(jnp.abs(x), initial=0.0)
    exponent = blocks.shared_exponent(amax, self.fmt)
    element = self.fmt.element
    scaled = jnp.round(blocks.times_power(x, -exponent))
    codes = jnp.clip(scaled, np.float32(element.min), np.float32(element.max))
    finite = amax < np.inf
    return jnp.where(finite, codes, 0).astype(jnp.int32), exponent, finite


def integer_dot(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Multiplies stacks of matrices of 16-bit integers, exactly.

  Args:
    lhs: i32[batch, m, k], from −2**15 to 2**15 − 1; `k` at most 2**14.
    rhs: i32[batch, k, n], likewise.

  Returns:
    i32[batch, m, n] twice: high and low halves, `2**16 · high + low`, with low
    ones from 0 to 2**16 − 1.
  """
  left, right = _halves(lhs), _halves(rhs)
  # Low halves are less by 128, which is made up for by sums of the operands:
  # (x + 128) (y + 128) = x y + 128 (x + y + 128).
  sums = jnp.sum(lhs, 2, keepdims=True) + jnp.sum(rhs, 1, keepdims=True)
  more = sums - np.int32(128 * lhs.shape[2])
  middle = _dot(left[0], right[1]) + _dot(left[1], right[0]) + (more >> 1)
  low = _dot(left[1], right[1]) + ((more & 1) << 7)
  middle = middle + (low >> 8)
  high = _dot(left[0], right[0]) + (middle >> 8)
  return high, ((middle & 255) << 8) | (low & 255)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Numbers `256 · high + low + 128` by halves, i8."""
  return (x >> 8).astype(jnp.int8), ((x & 255) - 128).astype(jnp.int8)


def _dot(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
  return jax.lax.dot_general(
    lhs,
    rhs,
    (((2,), (1,)), ((0,), (0,))),
    preferred_element_type=np.dtype(np.int32),
  )


def to_float(high: jax.Array, low: jax.Array) -> jax.Array:
  """Rounds `2**16 · high + low` to the nearest float32, once.

  Args:
    high: i32, of at most 31 bits in magnitude.
    low: i32 of the same shape, from 0 to 2**16 − 1.

  Returns:
    f32.
  """
  negative = high < 0
  borrow = (low > 0).astype(jnp.int32)
  high = jnp.where(negative, -high - borrow, high)
  low = jnp.where(negative, (-low) & np.int32(0xFFFF), low)
  total = jnp.zeros_like(high)
  scale = jnp.zeros_like(high)
  # As many of the high bits as an int32 has; what is lost below them is odd, so
  # that it decides no tie.
  for kept, below in ((16, 0), (12, 2**15), (6, 2**19), (0, 2**25)):
    lost = 16 - kept
    rest = low & np.int32(2**lost - 1)
    part = (high << np.int32(kept)) | (low >> np.int32(lost))
    part = part | (rest > 0).astype(jnp.int32)
    chosen = high >= np.int32(below)
    total = jnp.where(chosen, part, total)
    scale = jnp.where(chosen, np.int32(lost), scale)
  found = blocks.times_power(total.astype(jnp.float32), scale)
  return jnp.where(negative, -found, found)
