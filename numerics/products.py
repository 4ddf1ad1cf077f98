"""Products of matrices by an algorithm, with a derivative of its own."""

from collections.abc import Callable

import jax

from numerics import blocks
from numerics import number_format

Stored = number_format.NumberFormat | blocks.BlockFormat | None
# Multiplies f32[batch, m, k] and f32[batch, k, n], with a key if it draws.
Dot = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


class Product:
  """An algorithm for products of matrices, for `Precision(product=…)`.

  One is a frozen dataclass that defines `product`. Where a `Multiplier` takes
  the place of multiplication and leaves sums and derivatives alone, this takes
  the place of the whole: `dot_general` and convolutions arrive as products of
  stacks of matrices, and the derivative is that of what `product` does. With
  `contract` the two products in the derivative are computed in another way than
  the one they belong to, with other roundings of their operands.

  Attributes:
    draws: Whether it needs a key.

  Examples:
    >>> import dataclasses
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> @dataclasses.dataclass(frozen=True)
    ... class NarrowBackward(numerics.Product):
    ...   fmt: numerics.Format
    ...
    ...   def product(self, lhs, rhs, key):
    ...     def narrow(lhs, rhs, key):
    ...       lhs, rhs = (numerics.round_to(x, self.fmt) for x in (lhs, rhs))
    ...       return lhs @ rhs
    ...
    ...     return numerics.contract(
    ...       lhs, rhs, key, lambda lhs, rhs, key: lhs @ rhs, narrow
    ...     )
    >>> how = numerics.Precision(product=NarrowBackward(numerics.float4_e2m1fn))
    >>> f = numerics.emulate(jnp.dot, numerics.Policy(matmul=how))
    >>> x, y = jnp.float32([1.1, 2.3]), jnp.float32([0.9, 3.6])
    >>> float(f(x, y)), jax.grad(f)(x, y)
    (9.26..., Array([1., 4.], dtype=float32))
  """

  draws: bool = False

  @property
  def formats(self) -> tuple[Stored, Stored]:
    """In what the operands are stored, for reports; None for float32."""
    return None, None

  def product(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Multiplies stacks of matrices.

    Args:
      lhs: f32[batch, m, k]. Of a dense layer, `m` are all its tokens.
      rhs: f32[batch, k, n].
      key: If it draws, one that no other operation and no other turn of a loop
        has.

    Returns:
      f32[batch, m, n].
    """
    raise NotImplementedError

  def check(self, where: str, length: int) -> None:
    """Raises a ValueError if it cannot add up so many products.

    Args:
      where: The operation, and the line of the user's code.
      length: The axis that is added up, `k`.
    """


def contract(
  lhs: jax.Array,
  rhs: jax.Array,
  key: jax.Array | None,
  forward: Dot,
  backward: Dot,
) -> jax.Array:
  """A product of matrices, the derivative of which is two products of another.

      y = forward(lhs, rhs),
      ∂lhs = backward(∂y, rhsᵀ),    ∂rhs = backward(lhsᵀ, ∂y).

  Args:
    lhs: f32[batch, m, k].
    rhs: f32[batch, k, n].
    key: For those that draw. The three products get different ones.
    forward: `(lhs, rhs, key) -> f32[batch, m, n]`; not differentiated.
    backward: Likewise, for both products of the derivative.

  Returns:
    f32[batch, m, n]. It has no forward-mode derivative.
  """

  @jax.custom_vjp
  def call(key, lhs, rhs):
    return forward(lhs, rhs, key)

  def primal(key, lhs, rhs):
    return forward(lhs, rhs, key), (key, lhs, rhs)

  def pull(saved, cotangent):
    key, lhs, rhs = saved
    keys = [
      None if key is None else jax.random.fold_in(key, place)
      for place in (1, 2)
    ]
    return (
      None,
      backward(cotangent, rhs.swapaxes(1, 2), keys[0]),
      backward(lhs.swapaxes(1, 2), cotangent, keys[1]),
    )

  call.defvjp(primal, pull)
  return call(key, lhs, rhs)


def exact(
  lhs: jax.Array, rhs: jax.Array, key: jax.Array | None = None
) -> jax.Array:
  """The product of stacks of matrices in float32."""
  del key
  return jax.lax.dot_general(
    lhs,
    rhs,
    (((2,), (1,)), ((0,), (0,))),
    precision=jax.lax.Precision.HIGHEST,
  )
