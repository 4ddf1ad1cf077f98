"""What multiplies two arrays, and products of matrices made of it."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from numerics import rounding

# Terms that one turn of a loop adds: fewer cost turns, more only compile.
_CHUNK = 8

Total = TypeVar('Total')


class Multiplier:
  """An algorithm for products, which `Precision(multiply=…)` takes.

  One is a frozen dataclass that defines `product`, of bit patterns or whatever
  it takes. Its derivative is that of exact multiplication (straight-through).
  """

  def product(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies.

    Args:
      x: float32.
      y: float32, which broadcasts against `x`.

    Returns:
      float32. Of −0 and 0 it is −0, so that padding adds nothing.
    """
    raise NotImplementedError

  def __call__(
    self, x: jax.typing.ArrayLike, y: jax.typing.ArrayLike
  ) -> jax.Array:
    """Multiplies, element by element.

    Args:
      x: float32, bfloat16 or float16.
      y: Likewise, of a shape that broadcasts.

    Returns:
      float32.

    Raises:
      TypeError: If an argument has another dtype.
    """
    name = type(self).__name__
    x = rounding.checked_array(name, x).astype(jnp.float32)
    y = rounding.checked_array(name, y).astype(jnp.float32)
    found = self.product(jax.lax.stop_gradient(x), jax.lax.stop_gradient(y))
    return rounding.straight_through(x * y, found)


def dot(lhs: jax.Array, rhs: jax.Array, multiplier: Multiplier) -> jax.Array:
  """Multiplies stacks of matrices, adding in sequence in float32.

  Args:
    lhs: f32[batch, m, k].
    rhs: f32[batch, k, n].
    multiplier: What multiplies.

  Returns:
    f32[batch, m, n].
  """
  batch, rows, _ = lhs.shape
  return fold(
    lambda total, left, right: total + multiplier.product(left, right),
    jnp.zeros((batch, rows, rhs.shape[2]), jnp.float32),
    lhs,
    rhs,
  )


def fold(
  step: Callable[[Total, jax.Array, jax.Array], Total],
  start: Total,
  lhs: jax.Array,
  rhs: jax.Array,
) -> Total:
  """Goes through the terms of a product of matrices, one after the other.

  Args:
    step: From what there is so far, and the operands of a term, [..., m, 1] and
      [..., 1, n], to what there is with it. It has to keep the total where one
      of them is zero, for terms are filled up with zeros.
    start: What there is before the first, a tree of arrays.
    lhs: [..., m, k].
    rhs: [..., k, n].

  Returns:
    What there is after the last.
  """
  length = lhs.shape[-1]
  if length == 0 or any(x.size == 0 for x in jax.tree.leaves(start)):
    return start
  chunk = min(_CHUNK, length)
  missing = -length % chunk

  def grouped(x: jax.Array, axis: int) -> jax.Array:
    terms = jnp.moveaxis(x, axis, 0)
    widths = [(0, missing, 0)] + [(0, 0, 0)] * (terms.ndim - 1)
    padded = jax.lax.pad(terms, np.zeros((), x.dtype), widths)
    return padded.reshape(-1, chunk, *padded.shape[1:])

  def turn(total, terms):
    left, right = terms
    for place in range(chunk):
      total = step(total, left[place][..., None], right[place][..., None, :])
    return total, None

  total, _ = jax.lax.scan(turn, start, (grouped(lhs, -1), grouped(rhs, -2)))
  return total
