"""Exact products of matrices of integers, by whatever algorithm."""

import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import fixed_point
from numerics import number_format

# Codes, which NumPy holds or JAX.
Codes = jax.typing.ArrayLike

# Of which codes zero is, if not of 0.
Zero = jax.Array | None

_LARGEST = 2**31 - 1


class IntegerDot:
  """An algorithm for products of matrices of integers, `dot(x, w)`.

  One is a frozen dataclass that says which integers it takes and defines
  `product` of them. It is exact: the result is that of integers without bounds.
  Partial sums may wrap, for they do so modulo 2**32, as long as the result
  fits; and it does for as many terms as `longest`, whatever they are.

  Integers out of range are an error, but under `jit`, where values are not
  known: there, weights count by their lowest bits, and a result that does not
  fit wraps.

  Attributes:
    x_bits: Bits of the first operand, in two's complement.
  """

  if typing.TYPE_CHECKING:  # A field of the dataclasses.

    @property
    def x_bits(self) -> int: ...  # noqa: D102

  @property
  def x_range(self) -> tuple[int, int]:
    """The least and the largest integer of the first operand."""
    return signed_range(self.x_bits)

  @property
  def w_range(self) -> tuple[int, int]:
    """The least and the largest integer of the second operand."""
    raise NotImplementedError

  @property
  def terms(self) -> tuple[int, int]:
    """The least and the largest product of two of them."""
    ends = [x * w for x in self.x_range for w in self.w_range]
    return min(ends), max(ends)

  @property
  def longest(self) -> int:
    """How many products can be added, whatever they are."""
    low, high = self.terms
    return min(_LARGEST // max(high, 1), (_LARGEST + 1) // max(-low, 1))

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices.

    Args:
      x: i32[m, k].
      w: i32[k, n].

    Returns:
      i32[m, n].
    """
    raise NotImplementedError

  def dot(self, x: Codes, w: Codes) -> jax.Array:
    """Multiplies a matrix of integers with another.

    Args:
      x: Of any integer dtype, [..., k].
      w: Likewise, [k, n].

    Returns:
      int32, [..., n].

    Raises:
      TypeError: If an operand has another dtype.
      ValueError: If shapes do not fit, or if there are more terms than
        `longest`, or an integer that is out of range.
    """
    x, w = self.operands(x, w)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    found = _product(self, rows, w)
    return found.reshape(*x.shape[:-1], w.shape[1])

  def operands(self, x: Codes, w: Codes) -> tuple[jax.Array, jax.Array]:
    """The operands of `dot` in int32, once they are known to fit together."""
    x, w = self.checked(x, w)
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[0]:
      raise ValueError(
        f'{type(self).__name__}: expected x [..., k] and w [k, n], got shapes'
        f' {x.shape} and {w.shape}; of stacks of matrices, take jax.vmap.'
      )
    self.check_length(w.shape[0])
    return x, w

  def __call__(self, x: Codes, w: Codes) -> jax.Array:
    """The same as `dot`."""
    return self.dot(x, w)

  def read(
    self, fmt: number_format.NumberFormat, codes: jax.Array, zero: Zero
  ) -> tuple[jax.Array, Zero, float]:
    """Weights that `quantize` has stored, as integers of this algorithm.

    Args:
      fmt: Their format.
      codes: What is stored.
      zero: Of which codes zero is, int32; None: of 0.

    Returns:
      Integers, of which of them zero is, and what 1 stands for.

    Raises:
      TypeError: If the algorithm has no such integers.
    """
    return integers(type(self).__name__, fmt, codes, zero)

  def wrong(self, operand: str, values: np.ndarray) -> str | None:
    """What is wrong with integers that are in range; None if nothing is."""
    del operand, values
    return None

  def check_length(self, count: int) -> None:
    """Raises if there are more terms than can be added."""
    if count > self.longest:
      raise ValueError(
        f'{type(self).__name__}: sums of {count} terms may not fit int32; add'
        f' at most {self.longest} of them, and the parts in more bits.'
      )

  def checked(self, x: Codes, w: Codes) -> tuple[jax.Array, jax.Array]:
    """The operands in int32, once they are known to be what is expected."""
    x = self._checked('x', x, self.x_range)
    return x, self._checked('w', w, self.w_range)

  def _checked(
    self, operand: str, x: Codes, limits: tuple[int, int]
  ) -> jax.Array:
    name, (low, high) = type(self).__name__, limits
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(
      x.dtype, jnp.integer
    ):
      raise TypeError(
        f'{name}: {operand} must be an array of integers, got'
        f' {getattr(x, "dtype", type(x).__name__)}; numerics.quantize gives'
        ' codes.'
      )
    if not isinstance(x, jax.core.Tracer):
      values = np.asarray(x)
      ends = (values.min(), values.max()) if values.size else (low, high)
      if ends[0] < low or ends[1] > high:
        raise ValueError(
          f'{name}: {operand} must be from {low} to {high}, got {ends[0]} to'
          f' {ends[1]}.'
        )
      message = self.wrong(operand, values)
      if message is not None:
        raise ValueError(f'{name}: {message}')
    return jnp.asarray(x).astype(jnp.int32)


def integers(
  owner: str, fmt: number_format.NumberFormat, codes: jax.Array, zero: Zero
) -> tuple[jax.Array, Zero, float]:
  """Integers in two's complement; without sign, they are less the half."""
  if not isinstance(fmt, fixed_point.FixedPoint):
    raise TypeError(
      f'{owner}: codes must be integers, got {fmt.name}; quantise to'
      ' numerics.int8 or the like.'
    )
  codes = codes.astype(jnp.int32)
  if fmt.signed:
    return codes, zero, fmt.step
  half = np.int32(2 ** (fmt.bits - 1))
  zero = jnp.int32(0) if zero is None else zero
  return codes - half, zero - half, fmt.step


def signed_range(bits: int) -> tuple[int, int]:
  """The least and the largest integer of so many bits in two's complement."""
  return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@functools.partial(jax.jit, static_argnums=0)
def _product(algorithm: IntegerDot, x: jax.Array, w: jax.Array) -> jax.Array:
  return algorithm.product(x, w)
