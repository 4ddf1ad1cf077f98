from fractions import Fraction
import math

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import rounding
from tests.numerics import oracles
from tests.numerics import strategies

LARGEST = float(np.finfo(np.float32).max)
FORMATS = [
  numerics.float8_e4m3fn,
  numerics.float8_e5m2,
  numerics.float4_e2m1fn,
  numerics.float6_e3m2fn,
  numerics.bfloat16,
]
by_name = pytest.mark.parametrize('fmt', FORMATS, ids=lambda fmt: fmt.name)
both_kinds = pytest.mark.parametrize('power_of_two', [False, True])


def matrix(seed=0):
  random = np.random.default_rng(seed)
  x = random.normal(size=(8, 32)) * np.exp(random.normal(size=(8, 1)) * 3)
  x[3] = 0
  return x.astype(np.float32)


def literal(x, fmt, scale):
  """The formula in NumPy, with the oracle's rounding."""
  spec = oracles.spec_of(fmt)
  scaled = x * (np.float32(1) / scale)
  scaled = np.clip(scaled, np.float32(-fmt.max), np.float32(fmt.max))
  flat = [
    oracles.round_float(spec, 'nearest_even', float(v)) for v in scaled.ravel()
  ]
  return np.float32(flat).reshape(x.shape) * scale


@both_kinds
@pytest.mark.parametrize(
  ('fmt', 'axis'),
  [(fmt, -1) for fmt in FORMATS]
  + [(numerics.float8_e4m3fn, axis) for axis in (None, 0, (0, 1), ())],
)
def test_the_round_trip_is_the_literal_one(fmt, power_of_two, axis):
  x = matrix()
  absmax = np.abs(x).max(axis=axis, keepdims=True)
  scale = absmax / np.float32(fmt.max)
  if power_of_two:
    # frexp is exact: the exponent of the least power of two that is no less.
    mantissa, exponent = np.frexp(absmax.astype(np.float64) / fmt.max)
    scale = np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))
  scale = np.maximum(scale, 2.0**-126).astype(np.float32)
  scale[absmax == 0] = 2.0**-126
  actual = numerics.absmax_scale(x, fmt, axis=axis, power_of_two=power_of_two)
  if power_of_two:
    np.testing.assert_array_equal(actual, scale, strict=True)
  np.testing.assert_allclose(actual, scale, rtol=2.0**-22, strict=True)
  result = numerics.fake_quantize(x, fmt, axis=axis, power_of_two=power_of_two)
  expected = literal(x, fmt, np.asarray(actual))
  np.testing.assert_array_equal(result, expected, strict=True)


@by_name
@both_kinds
@pytest.mark.parametrize(
  'absmax', [0.0, 1e-45, 1e-38, 1.5e-38, 1e-20, 1.0, 1e20, 3e38, LARGEST]
)
def test_nothing_overflows_at_any_magnitude(fmt, power_of_two, absmax):
  fractions = np.float32([1, -1, 0.99, 0.51, 0.3, -1e-3, 0, -0.0])
  x = np.float32(absmax) * fractions
  scale = float(numerics.absmax_scale(x, fmt, power_of_two=power_of_two).item())
  assert scale >= 2.0**-126
  assert scale * fmt.max <= LARGEST
  result = np.asarray(numerics.fake_quantize(x, fmt, power_of_two=power_of_two))
  assert np.isfinite(result).all()
  normal = np.abs(x) >= 2.0**-126
  np.testing.assert_array_equal(result[~normal], 0)
  # Values below the smallest scale are lost, by at most a step of the scale.
  step = np.maximum(np.abs(x) * fmt.eps, scale * fmt.min_subnormal)
  assert (np.abs(result - x)[normal] <= (step * 1.001)[normal]).all()
  if absmax > 1e-19 and not power_of_two:
    np.testing.assert_allclose(result[:2], x[:2], rtol=3e-7)


@given(strategies.formats(), st.floats(2**-60, 2**60, width=32))
def test_the_power_of_two_is_the_least(fmt, absmax):
  with jax.disable_jit():
    x = jnp.float32([0.1, -1]) * jnp.float32(absmax)
    scale = numerics.absmax_scale(x, fmt, power_of_two=True).item()
  exact = Fraction(scale)
  assert math.frexp(scale)[0] == 0.5
  top = Fraction(2) ** min(126, 127 - fmt.emax)
  if exact > Fraction(2) ** -126:
    assert Fraction(absmax) > exact / 2 * Fraction(fmt.max)
  if exact < top:
    assert Fraction(absmax) <= exact * Fraction(fmt.max)


@pytest.mark.parametrize('mode', rounding.MODES)
def test_modes_stay_in_range(mode):
  x = matrix(1)
  key = jax.random.key(0) if mode in rounding.STOCHASTIC_MODES else None
  for fmt in (numerics.float8_e4m3fn, numerics.float8_e5m2):
    scale = numerics.absmax_scale(x, fmt, axis=-1)
    result = numerics.fake_quantize(x, fmt, axis=-1, mode=mode, key=key)
    assert np.isfinite(result).all()
    unit = numerics.ulp(x * (1 / scale), fmt) * scale
    assert (np.abs(result - x) <= np.asarray(unit) * 1.001).all()
    if mode == 'stochastic':
      other = jax.random.key(1)
      again = numerics.fake_quantize(x, fmt, axis=-1, mode=mode, key=other)
      assert (result != again).any()


@by_name
def test_groups_are_independent(fmt):
  x = matrix(2)
  rows = numerics.fake_quantize(x, fmt, axis=-1)
  alone = [numerics.fake_quantize(x[i], fmt) for i in range(len(x))]
  np.testing.assert_array_equal(rows, np.stack(alone))
  mapped = jax.vmap(lambda row: numerics.fake_quantize(row, fmt))(x)
  np.testing.assert_array_equal(rows, mapped)
  columns = numerics.fake_quantize(x.T, fmt, axis=0)
  np.testing.assert_array_equal(rows, columns.T)


@by_name
def test_powers_of_two_commute_with_scaling_and_are_idempotent(fmt):
  x = matrix(3)
  once = numerics.fake_quantize(x, fmt, power_of_two=True)
  scaled = numerics.fake_quantize(8 * x, fmt, power_of_two=True)
  np.testing.assert_array_equal(scaled, 8 * once)
  again = numerics.fake_quantize(once, fmt, power_of_two=True)
  np.testing.assert_array_equal(again, once)


@both_kinds
def test_what_is_not_finite_spoils_its_group_only(power_of_two):
  x = matrix(4)
  x[1, 5] = np.inf
  x[2, 6] = -np.inf
  x[4, 7] = np.nan
  fmt = numerics.float8_e4m3fn
  result = np.asarray(
    numerics.fake_quantize(x, fmt, axis=-1, power_of_two=power_of_two)
  )
  spoilt = np.isnan(result)
  np.testing.assert_array_equal(spoilt.any(1), spoilt.all(1))
  np.testing.assert_array_equal(np.flatnonzero(spoilt.any(1)), [1, 2, 4])


def test_transformations_change_no_bit():
  x = matrix(5)

  def f(x):
    return numerics.fake_quantize(x, numerics.float4_e2m1fn, axis=-1)

  expected = f(x)
  with jax.disable_jit():
    eager = f(x)
  compiled = jax.jit(f)(x)
  _, scanned = jax.lax.scan(lambda c, row: (c, f(row)), 0, x)
  for other in (eager, compiled, scanned):
    np.testing.assert_array_equal(other, expected)


@both_kinds
def test_the_derivative_is_the_identity(power_of_two):
  x = matrix(6)
  weights = np.arange(x.size, dtype=np.float32).reshape(x.shape)

  def loss(x):
    y = numerics.fake_quantize(
      x, numerics.float8_e4m3fn, axis=-1, power_of_two=power_of_two
    )
    return (weights * y).sum()

  np.testing.assert_array_equal(jax.grad(loss)(x), weights)


def test_narrow_inputs_and_empty_arrays():
  x = jnp.asarray(matrix(7), jnp.bfloat16)
  fmt = numerics.float8_e4m3fn
  result = numerics.fake_quantize(x, fmt)
  wide = numerics.fake_quantize(x.astype(jnp.float32), fmt)
  np.testing.assert_array_equal(result, wide, strict=True)
  gradient = jax.grad(lambda x: numerics.fake_quantize(x, fmt).sum())(x)
  assert gradient.dtype == jnp.bfloat16
  empty = numerics.fake_quantize(jnp.zeros((0, 3)), fmt)
  assert empty.shape == (0, 3)


def test_arguments_are_checked():
  x = jnp.ones((2, 3))
  fmt = numerics.float8_e4m3fn
  for function in (numerics.absmax_scale, numerics.fake_quantize):
    name = function.__name__
    with pytest.raises(TypeError, match=rf'{name}: x must be an array of'):
      function(np.ones(3), fmt)
    with pytest.raises(TypeError, match=rf'{name}: fmt must be a numerics'):
      function(x, 8)
    with pytest.raises(ValueError, match='axis 2 is out of bounds'):
      function(x, fmt, axis=2)
  with pytest.raises(ValueError, match='needs key='):
    numerics.fake_quantize(x, fmt, mode='stochastic')
