"""T-MAC: products with weights of few bits by looking up sums."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numerics import grouping
from numerics import number_format
from numerics import wide
from numerics.multiply import exact
from numerics.multiply import half_tables


@dataclasses.dataclass(frozen=True)
class TMac(exact.IntegerDot):
  """Table lookup: sums of a few activations are stored, and weights choose.

  A weight of `b` bits, less `2**(b - 1)` as it is stored, is a sum of signs:

      w = ½ s₀ + s₁ + 2 s₂ + … + 2**(b - 2) s_{b-1} − ½,   sᵢ = ±1.

  For every group of `group` activations the sums with all choices of signs are
  computed once; those with a minus first are the opposites of others, so that
  half a table is stored. A plane of bits of the weights then looks up a sum for
  each group, in place of `group` multiplications.

  `approximate` has tables of int8, as the paper runs it.

  Attributes:
    bits: Of a weight, from 1 to 8, in two's complement.
    group: How many activations share a table.
    x_bits: Of an activation, in two's complement.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[100, -3, 7, 0, 25]], jnp.int8)
    >>> w = jnp.array([[1, -8], [7, 0], [-2, 3], [5, 5], [0, -1]], jnp.int8)
    >>> numerics.TMac(bits=4).dot(x, w)  # 100 − 21 − 14, −800 + 21 − 25
    Array([[  65, -804]], dtype=int32)

  References:
    Wei et al., T-MAC: CPU Renaissance via Table Lookup for Low-Bit LLM
      Deployment on Edge, 2024, arXiv:2407.00088.
  """

  bits: int = 4
  group: int = 4
  x_bits: int = 8

  def __post_init__(self) -> None:
    number_format.check_int('TMac', 'bits', self.bits, 1, 8)
    number_format.check_int('TMac', 'group', self.group, 1, 8)
    number_format.check_int('TMac', 'x_bits', self.x_bits, 2, 16)

  @property
  def w_range(self) -> tuple[int, int]:
    """All integers of `bits` bits."""
    return exact.signed_range(self.bits)

  @property
  def longest(self) -> int:
    """Half as many as usual if weights have one bit, as what is halved fits."""
    return super().longest // (2 if self.bits == 1 else 1)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""
    tables = half_tables.build(x, self.group)
    planes = half_tables.look_up(tables, self.chosen(w), self.group)
    whole = jnp.sum(x, axis=1, dtype=jnp.int32)[:, None]
    total = (planes[0] - whole) >> 1  # It is even.
    for place in range(1, self.bits):
      total = total + (planes[place] << (place - 1))
    return total

  def approximate(
    self, x: exact.Codes, w: exact.Codes, *, shared: int = 64
  ) -> tuple[jax.Array, jax.Array]:
    """Multiplies with tables of int8.

    The activations of `shared` neighbours have tables of one scale, the largest
    sum of magnitudes of a group over 127; entries are rounded to nearest, on a
    tie to even. The sum of activations that the `− ½` asks for is exact.

    Args:
      x: As for `dot`, [m, k].
      w: As for `dot`, [k, n].
      shared: How many activations share a scale, a multiple of `group`.

    Returns:
      The product, f32[m, n], and a bound on its error, f32[m, 1]:
      `½ · scale · (½ + 1 + 2 + …)` for each group.

    Raises:
      TypeError: If an operand has another dtype.
      ValueError: As `dot`, or if `shared` is no multiple of `group`.
    """
    x, w = self.operands(x, w)
    if shared < 1 or shared % self.group:
      raise ValueError(
        f'TMac: shared must be a multiple of group={self.group}, got {shared}.'
      )
    return _approximate(self, x, w, shared)

  def chosen(self, w: jax.Array) -> jax.Array:
    """What weights look up, i32[groups, bits, n]."""
    codes = w + np.int32(2 ** (self.bits - 1))
    return half_tables.signs(codes, self.bits, self.group)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _approximate(
  algorithm: TMac, x: jax.Array, w: jax.Array, shared: int
) -> tuple[jax.Array, jax.Array]:
  tables = half_tables.build(x, algorithm.group)
  each = shared // algorithm.group
  tables = grouping.split(tables, 0, each)
  chosen = grouping.split(algorithm.chosen(w), 0, each)
  largest = jnp.max(jnp.abs(tables), axis=(1, 3), keepdims=True)
  largest = jnp.maximum(largest, 1)  # i32[scales, 1, m, 1]
  stored = wide.nearest_quotient(tables * 127, largest)
  planes = jax.vmap(
    lambda table, choice: half_tables.look_up(table, choice, algorithm.group)
  )(stored, chosen)  # [scales, bits, m, n]
  weights = np.float32(0.5) * 2.0 ** np.arange(algorithm.bits, dtype=np.float32)
  scale = largest.astype(jnp.float32) * np.float32(1 / 127)
  sums = jnp.einsum('sbmn,b->smn', planes.astype(jnp.float32), weights)
  whole = jnp.sum(x, axis=1, dtype=jnp.int32).astype(jnp.float32)
  found = jnp.sum(scale[:, 0] * sums, axis=0) - np.float32(0.5) * whole[:, None]
  bound = np.float32(0.5 * each * weights.sum()) * jnp.sum(
    scale[:, 0, :, 0], axis=0
  )
  return found, bound[:, None]
