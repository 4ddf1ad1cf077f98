"""Exact arithmetic on arrays of decimal digits, least significant first."""

import jax
import jax.numpy as jnp

from arithmetic.tasks.base import ALPHABET
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
  return totals(values) % 10


def totals(values: jax.Array) -> jax.Array:
  """What columns add up to, each with the carry into it.

  Args:
    values: Column values, i32[..., width], as `carry` takes them.

  Returns:
    i32[..., width]; the last digit of each is the digit of its column.
  """

  def step(carried, value):
    total = carried + value
    return total // 10, total

  columns = jnp.moveaxis(values, -1, 0)
  _, sums = jax.lax.scan(step, jnp.zeros_like(columns[0]), columns)
  return jnp.moveaxis(sums, 0, -1)


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


def divide_long(
  values: jax.Array, divisor: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Long division by a number of any size.

  Args:
    values: i32[batch, width], the dividend's digits.
    divisor: i32[batch, n], the divisor's digits; it is not zero.

  Returns:
    The digits of the quotient i32[batch, width] and of the remainder
    i32[batch, n].
  """
  divisor = pad(divisor, divisor.shape[-1] + 1)
  multiples = _multiples(divisor)

  def step(rest: jax.Array, digit: jax.Array):
    rest = jnp.concatenate([digit[:, None], rest[:, :-1]], axis=-1)
    times, taken = _largest(multiples, rest)
    return carry(rest - taken), times

  columns = jnp.moveaxis(values, -1, 0)
  rest, quotient = jax.lax.scan(
    step, jnp.zeros_like(divisor), columns, reverse=True
  )
  return jnp.moveaxis(quotient, 0, -1), rest[:, :-1]


def square_root(values: jax.Array) -> jax.Array:
  """The whole part of a square root, by the method of pairs of digits.

  Args:
    values: i32[batch, 2 * n], digits.

  Returns:
    i32[batch, n], digits.
  """
  half = values.shape[-1] // 2
  pairs = jnp.moveaxis(values.reshape(-1, half, 2), 1, 0)

  def step(state, pair: jax.Array):
    rest, root = state
    rest = jnp.concatenate([pair, rest[:, :-2]], axis=-1)
    # With root r so far, the next digit d is the largest for which
    # (20 r + d) d is at most what is left.
    shifted = jnp.pad(root, [(0, 0), (1, 0)])[:, :-1]
    times = jnp.arange(1, 10, dtype=jnp.int32)[:, None, None]
    unit = column(root)[None] == 0
    trials = carry((2 * shifted[None] + jnp.where(unit, times, 0)) * times)
    digit, taken = _largest(trials, rest)
    return (carry(rest - taken), shifted.at[:, 0].set(digit)), None

  zero = jnp.zeros((values.shape[0], half + 2), jnp.int32)
  (_, root), _ = jax.lax.scan(step, (zero, zero), pairs, reverse=True)
  return root[:, :half]


def _multiples(values: jax.Array) -> jax.Array:
  """A number times 1 to 9: i32[9, batch, width]."""
  return carry(values[None] * jnp.arange(1, 10, dtype=jnp.int32)[:, None, None])


def _largest(
  multiples: jax.Array, limit: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """How many of nine growing numbers are at most a limit, and the last of them.

  Args:
    multiples: i32[9, batch, width].
    limit: i32[batch, width].

  Returns:
    i32[batch], and i32[batch, width], which is zero if there is none.
  """
  limits = jnp.broadcast_to(limit[None], multiples.shape)
  count = jnp.sum(~less(limits, multiples), axis=0, dtype=jnp.int32)
  which = jnp.arange(1, 10, dtype=jnp.int32)[:, None] == count[None]
  return count, jnp.sum(jnp.where(which[..., None], multiples, 0), axis=0)


def remainder(values: jax.Array, modulus: int) -> jax.Array:
  """A number modulo a small one: i32[..., width] -> i32[...]."""
  return divide(values, jnp.full(values.shape[:-1], modulus, jnp.int32))[1]


def with_point(digits: Digits, places: jax.Array) -> Digits:
  """Puts a point before the last `places` digits."""
  values = pad(digits.values, digits.values.shape[-1] + 1)
  place, point = column(values), places[..., None]
  source = jnp.where(place > point, place - 1, place)
  values = jnp.take_along_axis(values, source, axis=-1)
  values = jnp.where(place == point, ALPHABET.index('.'), values)
  return Digits(values, digits.length + 1).masked()


def without_point(digits: Digits) -> tuple[Digits, jax.Array]:
  """The inverse: the digits, and how many stood behind the point."""
  place = column(digits.values)
  at_point = digits.values == ALPHABET.index('.')
  places = jnp.sum(jnp.where(at_point, place, 0), axis=-1)
  source = jnp.where(place >= places[..., None], place + 1, place)
  values = jnp.take_along_axis(
    pad(digits.values, digits.values.shape[-1] + 1), source, axis=-1
  )
  return Digits(values, digits.length - 1).masked(), places


def from_integer(number: jax.Array, width: int) -> Digits:
  """A non-negative i32[...] below 10**width as digits without leading zeros."""
  quotients = [number // 10**i for i in range(width)]
  return strip(jnp.stack(quotients, axis=-1) % 10)


def signed(magnitude: Digits, negative: jax.Array) -> Digits:
  """Puts a minus sign before the numbers that are negative: bool[...]."""
  values = pad(magnitude.values, magnitude.values.shape[-1] + 1)
  sign = (column(values) == magnitude.length[..., None]) & negative[..., None]
  return Digits(
    jnp.where(sign, ALPHABET.index('-'), values),
    magnitude.length + negative.astype(jnp.int32),
  )


def reverse(digits: Digits) -> Digits:
  """The string read backwards."""
  width = digits.values.shape[-1]
  index = digits.length[..., None] - 1 - column(digits.values)
  values = jnp.take_along_axis(
    digits.values, jnp.clip(index, 0, width - 1), axis=-1
  )
  return Digits(values, digits.length).masked()
