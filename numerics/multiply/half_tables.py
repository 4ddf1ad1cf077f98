"""Sums of a few numbers with every choice of signs, half of them stored."""

import jax
import jax.numpy as jnp
import numpy as np

from numerics import grouping


def build(x: jax.Array, size: int) -> jax.Array:
  """The tables of rows of activations.

  Args:
    x: i32[m, k].
    size: How many neighbours share a table.

  Returns:
    i32[groups, m, 2**(size - 1)]. Entry `j` is `±x₀ ± x₁ …`, where `x₀` has a
    plus, and `x_b` has one if bit `b - 1` of `j` is set. Those with a minus
    before `x₀` are their opposites.
  """
  members = grouping.split(x, 1, size).transpose(1, 0, 2)
  table = members[..., :1]
  for place in range(1, size):
    more = members[..., place : place + 1]
    table = jnp.concatenate([table - more, table + more], axis=-1)
  return table


def signs(codes: jax.Array, bits: int, size: int) -> jax.Array:
  """What is looked up: the bits of a group of weights, for every bit-weight.

  Args:
    codes: i32[k, n] without sign, of which `bits` bits count.
    bits: How many.
    size: How many neighbours share a table.

  Returns:
    i32[groups, bits, n], of which bit `b` is that of weight `b` of the group.
  """
  members = grouping.split(codes, 0, size)  # [groups, size, n]
  planes = members[:, None] >> np.arange(bits, dtype=np.int32).reshape(
    1, -1, 1, 1
  )
  places = np.arange(size, dtype=np.int32).reshape(1, 1, -1, 1)
  return jnp.sum((planes & 1) << places, axis=2, dtype=jnp.int32)


def look_up(tables: jax.Array, chosen: jax.Array, size: int) -> jax.Array:
  """Adds up what is looked up: bits that are set are pluses.

  Args:
    tables: i32[groups, m, 2**(size - 1)], from `build`.
    chosen: i32[groups, bits, n], from `signs`.
    size: How many neighbours share a table.

  Returns:
    i32[bits, m, n].
  """
  shape = chosen.shape[1], tables.shape[1], chosen.shape[2]

  def turn(total, group):
    table, choice = group
    plus = choice & 1 == 1
    place = jnp.where(plus, choice, np.int32(2**size - 1) - choice) >> 1
    found = jnp.take(table, place, axis=1).transpose(1, 0, 2)
    return total + jnp.where(plus[:, None], found, -found), None

  total = jnp.zeros(shape, jnp.int32)
  return jax.lax.scan(turn, total, (tables, chosen))[0]
