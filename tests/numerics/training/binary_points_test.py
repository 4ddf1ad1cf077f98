"""Learned binary points and sparse ones, against Python's integers."""

from fractions import Fraction
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics

BITS = 6
random = np.random.default_rng(0)
# Multiples of a quarter of the finest step, in range and beyond: all ties.
X = (np.arange(-160, 161) / 16).astype(np.float32)


@jax.jit
def fixed(x, integer_bits):
  f = functools.partial(numerics.learned_fixed_point, bits=BITS)
  y, pull = jax.vjp(f, x, integer_bits)
  return y, *pull(jnp.ones_like(y))


def literal(x, point):
  """Python's rounding is to the even one on ties."""
  scale = Fraction(2) ** (point - BITS)
  code = round(Fraction(float(x)) / scale)
  low, high = -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1
  return float(min(max(code, low), high) * scale)


@pytest.mark.parametrize('integer_bits', [2.0, 3.4, 0.6, 2.5, 9.0, -4.0])
def test_values_and_derivatives_are_the_formulas(integer_bits):
  y, dx, di = fixed(X, jnp.float32(integer_bits))
  point = round(integer_bits)
  expected = np.float32([literal(x, point) for x in X])
  np.testing.assert_array_equal(y, expected)
  step = 2.0 ** (point - BITS)
  low, high = -(2 ** (BITS - 1)) * step, (2 ** (BITS - 1) - 1) * step
  inside = (low - step / 2 <= X) & (high + step / 2 >= X)
  np.testing.assert_array_equal(dx, inside)
  slope = math.log(2) * np.where(inside, expected - X, expected)
  np.testing.assert_allclose(di, slope.sum(dtype=np.float64), rtol=1e-4)
  fmt = numerics.FixedPoint(BITS, BITS - point)
  np.testing.assert_array_equal(y, numerics.round_to(X, fmt))


def test_channels_have_points_of_their_own_and_find_them():
  scales = np.float32([0.01, 1.0, 30.0])
  x = random.normal(size=(200, 3)).astype(np.float32) * scales

  def errors(points):
    y = numerics.learned_fixed_point(x, points, bits=BITS)
    return jnp.mean(((y - x) / scales[None]) ** 2, axis=0)

  @jax.jit
  def descend(points):
    def step(points, _):
      gradient = jax.grad(lambda points: errors(points).sum())(points)
      return points - 0.05 * jnp.sign(gradient), None

    return jax.lax.scan(step, points, length=200)[0]

  # They come to lie between two integers, where the gradient changes its sign.
  points = descend(jnp.float32([2.0, 2.0, 2.0]))
  found = np.minimum(errors(jnp.floor(points)), errors(jnp.ceil(points)))
  every = [errors(jnp.full(3, float(i))) for i in range(-8, 12)]
  np.testing.assert_allclose(found, np.min(every, axis=0), rtol=1e-6)


def test_the_highest_ones_are_those_of_integers():
  codes = random.integers(-(2**15), 2**15, 500)
  codes[:3] = [0, -1, 2**15 - 1]
  for ones in (1, 3):
    expected = []
    for code in codes.tolist():
      text = bin(abs(code))[2:]
      places = [i for i, bit in enumerate(text) if bit == '1'][:ones]
      kept = sum(2 ** (len(text) - 1 - i) for i in places)
      expected.append(math.copysign(kept, code) / 2**9)
    x = (codes / 2**9).astype(np.float32)
    found = numerics.k_hot(x, ones)
    np.testing.assert_array_equal(found, np.float32(expected))
  special = np.float32([np.inf, -np.inf, np.nan, -0.0])
  found = np.asarray(numerics.k_hot(special, 1))
  np.testing.assert_array_equal(found, special)
  assert np.signbit(found[3])
  slope = jax.grad(lambda x: numerics.k_hot(x, 3).sum())(jnp.float32([0.3, 7]))
  np.testing.assert_array_equal(slope, 1)


def test_what_they_refuse():
  with pytest.raises(ValueError, match='bits must be from 2 to 16'):
    numerics.learned_fixed_point(X, 2.0, bits=17)
  with pytest.raises(TypeError, match='x must be an array of float32'):
    numerics.learned_fixed_point(3, 2.0)
  with pytest.raises(ValueError, match='ones must be from 1 to 24'):
    numerics.k_hot(X, 0)
