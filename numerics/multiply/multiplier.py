"""What multiplies two arrays, and products of matrices made of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from numerics import rounding

# Terms that one turn of a loop adds: fewer cost turns, more only compile.
_CHUNK = 8


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
  batch, rows, length = lhs.shape
  start = jnp.zeros((batch, rows, rhs.shape[2]), jnp.float32)
  if length == 0 or math.prod(start.shape) == 0:
    return start
  chunk = min(_CHUNK, length)
  missing = -length % chunk

  def grouped(x: jax.Array, axis: int) -> jax.Array:
    terms = jnp.moveaxis(x, axis, 0)
    widths = [(0, missing, 0)] + [(0, 0, 0)] * (terms.ndim - 1)
    padded = jax.lax.pad(terms, np.zeros((), x.dtype), widths)
    return padded.reshape(-1, chunk, *padded.shape[1:])

  def step(total, terms):
    left, right = terms
    for place in range(chunk):
      total = total + multiplier.product(
        left[place, :, :, None], right[place, :, None, :]
      )
    return total, None

  total, _ = jax.lax.scan(step, start, (grouped(lhs, 2), grouped(rhs, 1)))
  return total
