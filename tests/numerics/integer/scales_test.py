"""Scales as integers, and rescaling with them."""

from fractions import Fraction
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics import integer
from numerics import wide
from numerics.integer import scales
from tests.numerics.integer import oracles

ENDS = [-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 2, 2**31 - 1]


@functools.cache
def program(function, **settings):
  return jax.jit(functools.partial(function, **settings))


def cases(count=2000):
  """Numbers, multipliers and shifts, the ends of each with one another."""
  random = np.random.default_rng(0)
  x = random.integers(-(2**31), 2**31, count)
  x[::5] = random.choice(ENDS, len(x[::5]))
  multiplier = random.integers(2**30, 2**31, count)
  multiplier[::3] = random.choice([2**30, 2**31 - 1], len(multiplier[::3]))
  multiplier[::7] *= -1
  shift = random.integers(1, 63, count)
  shift[::4] = random.choice([1, 30, 31, 32, 33, 61, 62], len(shift[::4]))
  # Ties: products that end with half of what is shifted away.
  x[1::9], multiplier[1::9] = 2 * x[1::9] // 4 + 1, 2**30
  shift[1::9] = 31
  return x.astype(np.int32), multiplier.astype(np.int32), shift.astype(np.int32)


@pytest.mark.parametrize('bits', [8, 16, 32])
def test_rescaling_is_one_rounding_of_the_exact_product(bits):
  x, multiplier, shift = cases()
  found = program(integer.rescale, bits=bits)(
    x, integer.Dyadic(multiplier, shift)
  )
  expected = [
    oracles.clipped(oracles.rescaled(*map(int, each)), bits)
    for each in zip(x, multiplier, shift, strict=True)
  ]
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == jnp.int32


def test_rescaling_as_gemmlowp_does():
  x, multiplier, shift = cases()
  found = program(integer.rescale, bits=32, rounding='gemmlowp')(
    x, integer.Dyadic(multiplier, shift)
  )
  expected = [
    oracles.gemmlowp(*map(int, each))
    for each in zip(x, multiplier, shift, strict=True)
  ]
  np.testing.assert_array_equal(found, expected)


def test_the_parts_of_gemmlowp():
  a, b = np.array([*ENDS, 2**30, -(2**30)]), np.array([*ENDS, 3, -3])
  pairs = np.stack(np.meshgrid(a, b), -1).reshape(-1, 2).astype(np.int32)
  found = jax.jit(scales.doubling_high_product)(pairs[:, 0], pairs[:, 1])
  expected = [oracles.doubling_high_product(int(x), int(y)) for x, y in pairs]
  np.testing.assert_array_equal(found, expected)
  x = np.arange(-6, 7, dtype=np.int32)
  found = scales.rounding_shift(x, np.int32(2))
  assert found.tolist() == [-2, -1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 2]
  x = np.array(ENDS, np.int32)[:, None]
  n = np.arange(32, dtype=np.int32)[None]
  found = jax.jit(scales.rounding_shift)(x, n)
  expected = [
    [oracles.rounding_shift(int(v), int(m)) for m in n[0]] for v in x[:, 0]
  ]
  np.testing.assert_array_equal(found, expected)


def test_sums_of_two_scales_are_clipped_after_the_sum():
  x, multiplier, shift = cases()
  y, other, places = (each[::-1] for each in (x, multiplier, shift))
  found = program(integer.add_rescaled, bits=16)(
    x, integer.Dyadic(multiplier, shift), y, integer.Dyadic(other, places)
  )
  expected = [
    oracles.clipped(
      oracles.rescaled(*map(int, a)) + oracles.rescaled(*map(int, b)), 16
    )
    for a, b in zip(
      zip(x, multiplier, shift, strict=True),
      zip(y, other, places, strict=True),
      strict=True,
    )
  ]
  np.testing.assert_array_equal(found, expected)


def test_dyadic_numbers_are_the_nearest():
  random = np.random.default_rng(1)
  ratio = np.exp(random.uniform(-20, 20, 500)) * random.choice([-1, 1], 500)
  ratio[:6] = 0, 1, -0.5, 2.0**-31, 2.0**30 - 1, 1 - 2.0**-40
  multiplier, shift = integer.dyadic(ratio)
  assert multiplier.dtype == shift.dtype == np.int32
  assert ((shift >= 1) & (shift <= 62)).all()
  value = multiplier.astype(np.float64) * 2.0 ** -shift.astype(np.float64)
  np.testing.assert_allclose(value, ratio, rtol=2.0**-31)
  size = np.abs(multiplier.astype(np.int64))
  assert ((size >= 2**30) | (ratio == 0)).all()
  lost = integer.dyadic(2.0**-33)  # Of any int32, half at most.
  assert int(integer.rescale(jnp.int32(-(2**31)), lost)) == 0
  for wrong in (2.0**30, np.nan, -np.inf):
    with pytest.raises(ValueError, match='a magnitude below 2'):
      integer.dyadic([1.0, wrong])


def test_arguments_are_checked():
  half = integer.dyadic(0.5)
  with pytest.raises(TypeError, match='rescale: expected integers that int32'):
    integer.rescale(jnp.ones(3), half)
  with pytest.raises(TypeError, match='got uint32'):
    integer.rescale(jnp.ones(3, jnp.uint32), half)
  with pytest.raises(ValueError, match='rounding must be one of nearest_even'):
    integer.rescale(jnp.arange(3), half, rounding='up')
  with pytest.raises(ValueError, match='bits must be from 2 to 32'):
    integer.rescale(jnp.arange(3), half, bits=33)


def test_numbers_of_64_bits():
  random = np.random.default_rng(2)
  a, b = random.integers(-(2**31), 2**31, (2, 300)).astype(np.int32)
  a[:7], b[:7] = ENDS, ENDS[::-1]

  def whole(x):
    high, low = (np.asarray(each).astype(object) for each in x)
    return (high << 32) + low

  @jax.jit
  def run(a, b):
    x = wide.signed_product(a, b)
    u, v = a.astype(jnp.uint32), b.astype(jnp.uint32)
    y = wide.product(u, v)
    return (
      (x, y, wide.add(x, y), wide.shift_left(y, 24), wide.total(u)),
      wide.shift_right(x, v & np.uint32(63)),
      wide.square_root(y),
    )

  (x, y, total, moved, added), shifted, root = run(a, b)
  p, q = a.astype(object), b.astype(object)
  np.testing.assert_array_equal(whole(x), p * q % 2**64)
  u, v = p % 2**32, q % 2**32
  np.testing.assert_array_equal(whole(y), u * v)
  np.testing.assert_array_equal(whole(total), (p * q + u * v) % 2**64)
  np.testing.assert_array_equal(whole(moved), u * v * 2**24 % 2**64)
  assert whole(added) == sum(u)
  right = [int(i) >> (int(j) % 64) for i, j in zip(p * q, q, strict=True)]
  np.testing.assert_array_equal(whole(shifted), np.array(right, object) % 2**64)
  squared = np.asarray(root).astype(object) ** 2
  assert (squared <= u * v).all()
  after = (np.asarray(root).astype(object) + 1) ** 2
  assert (after > u * v).all()
  most = np.full(wide.LONGEST, 2**32 - 1, np.uint32)
  assert whole(wide.total(most)) == 2**16 * (2**32 - 1)
  with pytest.raises(ValueError, match='at most 65536 numbers'):
    wide.total(jnp.zeros(wide.LONGEST + 1, jnp.uint32))


def test_the_spread_of_one_rounding_and_of_two():
  """Where they differ they do by one, near ties."""
  x = np.arange(-5000, 5000, dtype=np.int32)
  scale = integer.dyadic(0.037)
  one = np.asarray(integer.rescale(x, scale, bits=32))
  two = np.asarray(integer.rescale(x, scale, bits=32, rounding='gemmlowp'))
  assert np.abs(one - two).max() <= 1
  exact = np.array([round(Fraction(int(v)) * Fraction(37, 1000)) for v in x])
  assert np.mean(one == exact) > 0.999
