"""Exact arithmetic on arrays of decimal digits, least significant first."""

import jax
import jax.numpy as jnp

from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits


def pad(values: jax.Array, width: int) -> jax.Array:
  """Widens i32[..., n] to i32[..., width] with zeros at the high end."""
  missing = width - values.shape[-1]
  return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def carry(values: jax.Array) -> jax.Array:
  """Turns column sums into digits: i32[..., width] -> i32[..., width].

  Column sums may be negative (a borrow) as long as the number is not.

  Args:
    values: Column values, each of magnitude far below 2^31.

  Returns:
    Digits between 0 and 9; a carry out of the last column is dropped.
  """

  def step(carried, value):
    total = carried + value
    return total // 10, total % 10

  columns = jnp.moveaxis(values, -1, 0)
  _, digits = jax.lax.scan(step, jnp.zeros_like(columns[0]), columns)
  return jnp.moveaxis(digits, 0, -1)


def strip(values: jax.Array) -> Digits:
  """Digits without leading zeros; zero itself is written with one digit."""
  length = jnp.max(jnp.where(values != 0, column(values) + 1, 1), axis=-1)
  return Digits(values, length.astype(jnp.int32))


def less(a: jax.Array, b: jax.Array) -> jax.Array:
  """Whether a < b, for digits of the same width: bool[...]."""
  # The most significant column in which the two differ decides.
  place = column(a)
  last = jnp.max(jnp.where(a != b, place, -1), axis=-1, keepdims=True)
  smaller = (a < b) & (place == last)
  return jnp.any(smaller, axis=-1)


def divide(
  values: jax.Array, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Long division by a small number.

  Args:
    values: i32[..., width], the dividend's digits.
    divisor: i32[...], between 1 and 2^31 / 10.

  Returns:
    The quotient's digits i32[..., width] and the remainder i32[...].
  """

  def step(remainder, digit):
    total = remainder * 10 + digit
    return total % divisor, total // divisor

  columns = jnp.moveaxis(values, -1, 0)
  remainder, quotient = jax.lax.scan(
    step, jnp.zeros_like(divisor), columns, reverse=True
  )
  return jnp.moveaxis(quotient, 0, -1), remainder


def from_integer(number: jax.Array, width: int) -> Digits:
  """A non-negative i32[...] below 10**width as digits without leading zeros."""
  quotients = [number // 10**i for i in range(width)]
  return strip(jnp.stack(quotients, axis=-1) % 10)


def reverse(digits: Digits) -> Digits:
  """The string read backwards."""
  width = digits.values.shape[-1]
  index = digits.length[..., None] - 1 - column(digits.values)
  values = jnp.take_along_axis(
    digits.values, jnp.clip(index, 0, width - 1), axis=-1
  )
  return Digits(values, digits.length).masked()
