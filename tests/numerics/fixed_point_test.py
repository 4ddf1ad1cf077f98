from fractions import Fraction
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import rounding
from tests.numerics import oracles

FORMATS = [
  numerics.int4,
  numerics.uint4,
  numerics.FixedPoint(6, 3, overflow='wrap'),
  numerics.FixedPoint(5, -2, signed=False, overflow='wrap'),
  numerics.FixedPoint(3, 126),
  numerics.FixedPoint(25, 3, overflow='wrap'),
  numerics.FixedPoint(24, -100, signed=False),
]
by_name = pytest.mark.parametrize('fmt', FORMATS, ids=lambda fmt: fmt.name)


def literal(fmt, mode, x):
  """Rounds one number, in integers."""
  if math.isnan(x) or (math.isinf(x) and fmt.overflow == 'wrap'):
    return math.nan
  low = -(2 ** (fmt.bits - 1)) if fmt.signed else 0
  high = low + 2**fmt.bits - 1
  if math.isinf(x):
    return float((high if x > 0 else low) * Fraction(2) ** -fmt.fraction_bits)
  exact = Fraction(x) * Fraction(2) ** fmt.fraction_bits
  below, above = math.floor(exact), math.ceil(exact)
  half = Fraction(below + above, 2)
  inner, outer = (below, above) if exact > 0 else (above, below)
  even, odd = (below, above) if below % 2 == 0 else (above, below)
  code = {
    'nearest_even': even if exact == half else round(exact),
    'nearest_away': outer if exact == half else round(exact),
    'nearest_zero': inner if exact == half else round(exact),
    'toward_zero': inner,
    'up': above,
    'down': below,
    'to_odd': odd if below != above else below,
  }[mode]
  if fmt.overflow == 'wrap':
    code = (code - low) % 2**fmt.bits + low
  code = min(max(code, low), high)
  return float(code * Fraction(2) ** -fmt.fraction_bits)


@functools.cache
def hard(fmt):
  """Numbers next to multiples of half a step, in and out of range; specials."""
  random = np.random.default_rng(0)
  count = 4 * 2**fmt.bits
  halves = np.arange(count) if count < 999 else random.integers(0, count, 999)
  with np.errstate(over='ignore', under='ignore'):
    numbers = np.ldexp(halves / 2, -fmt.fraction_bits).astype(np.float32)
  bits = np.concatenate(
    [
      numbers.view(np.uint32),
      np.uint32([0, 1, 2**22, 2**23, 0x7F7FFFFF, 0x7F800000]),
      random.integers(0, 0x7F800000, 300, dtype=np.uint32),
    ]
  )
  bits = np.concatenate([bits, bits + 1, np.maximum(bits, 1) - 1])
  return np.concatenate([bits, bits | np.uint32(2**31)]).view(np.float32)


@by_name
def test_every_mode_is_that_of_integers(fmt):
  x = hard(fmt)
  found = jax.jit(  # One program for all modes.
    lambda x: [numerics.round_to(x, fmt, mode=m) for m in oracles.DETERMINISTIC]
  )(x)
  for mode, result in zip(oracles.DETERMINISTIC, found, strict=True):
    expected = np.float32([literal(fmt, mode, float(v)) for v in x])
    oracles.assert_same(result, expected)
    np.testing.assert_array_equal(np.signbit(result) & (result == 0), False)


@pytest.mark.parametrize('fmt', FORMATS[:5], ids=lambda fmt: fmt.name)
def test_values_are_all_multiples_in_range(fmt):
  values = fmt.values()
  assert len(values) == 2**fmt.bits
  assert (np.diff(values) == fmt.step).all()
  assert (values[0], values[-1]) == (fmt.min, fmt.max)
  assert 2.0**fmt.emax <= fmt.max < 2.0 ** (fmt.emax + 1)
  assert fmt.contains(fmt)
  assert numerics.Format(8, 23).contains(fmt)
  np.testing.assert_array_equal(numerics.ulp(values, fmt), fmt.step)


def test_a_format_contains_another_if_it_has_its_values():
  small = [
    numerics.int4,
    numerics.uint4,
    numerics.FixedPoint(3, 1),
    numerics.FixedPoint(5, 1),
    numerics.FixedPoint(3, -2),
    numerics.float4_e2m1fn,
    numerics.Format(3, 3, subnormals=False),
    numerics.Format(3, 3),
    numerics.float8_e4m3fn,
    numerics.int16,
  ]
  for a in small:
    for b in small:
      assert a.contains(b) == (set(b.values()) <= set(a.values())), (a, b)


def test_stochastic_rounding_has_the_mean_and_its_two_neighbours():
  fmt = numerics.FixedPoint(8, 4)
  x = jnp.repeat(jnp.float32([0.02, -3.3, 1e-3, 7.9]), 20000).reshape(4, -1)
  found = np.asarray(
    numerics.round_to(x, fmt, mode='stochastic', key=jax.random.key(0))
  )
  for row, value in zip(found, x[:, 0], strict=True):
    low = math.floor(value / fmt.step) * fmt.step
    assert set(row) <= {low, low + fmt.step}
    share = float(value - low) / fmt.step
    bound = 4.5 * math.sqrt(share * (1 - share) / row.size)
    assert abs(np.mean(row != low) - share) <= bound


def test_transformations_change_no_bit_and_the_derivative_is_the_identity():
  fmt = FORMATS[2]
  x = hard(fmt)[:1200].reshape(8, 150)

  def f(x):
    return numerics.round_to(x, fmt)

  expected = f(x)
  oracles.assert_same(jax.jit(jax.vmap(f))(x), expected)
  with jax.disable_jit():
    oracles.assert_same(f(x), expected)
  value, tangent = jax.jvp(f, (x,), (np.ones_like(x),))
  oracles.assert_same(value, expected)
  np.testing.assert_array_equal(tangent, 1)
  narrow = f(jnp.ones(3, jnp.bfloat16))
  assert narrow.dtype == jnp.bfloat16


def test_names_tell_formats_apart():
  drawn = {
    numerics.FixedPoint(bits, fraction, signed, overflow)
    for bits in (2, 8, 10)
    for fraction in (-3, 0, 4, 12)
    for signed in (True, False)
    for overflow in ('saturate', 'wrap')
  }
  assert len({fmt.name for fmt in drawn}) == len(drawn)
  assert numerics.FixedPoint(8) == numerics.int8
  assert numerics.uint16.name == 'uint16'
  assert numerics.FixedPoint(8, 6, signed=False).name == 'uq2.6'


@pytest.mark.parametrize(
  ('arguments', 'error', 'message'),
  [
    ((8.0,), TypeError, 'bits must be an int'),
    ((1,), ValueError, 'bits must be from 2 to 25'),
    ((26,), ValueError, 'got 26; float32 carries nothing wider'),
    ((25, 0, False), ValueError, 'bits must be from 1 to 24'),
    ((8, 127), ValueError, 'fraction_bits must be from -120 to 126'),
    ((8, 0, 1), TypeError, 'signed must be a bool'),
    ((8, 0, True, 'inf'), ValueError, 'overflow must be one of saturate, wrap'),
  ],
)
def test_what_float32_does_not_carry_is_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    numerics.FixedPoint(*arguments)
  with pytest.raises(ValueError, match=r'q21\.4 has 25 bits'):
    numerics.FixedPoint(25, 4).values()


# In the rest of the package.


def test_functions_run_in_integers_and_note_what_they_know():
  wrapping = numerics.FixedPoint(8, overflow='wrap')

  def f(x, y):
    return x * y + 3, -x + y, abs(x) + y

  def wrap(x):
    return (x + 128) % 256 - 128

  x, y = np.int64([-128, 100, 7, -5]), np.int64([1, 3, -9, 127])
  found = numerics.emulate(f, wrapping)(np.float32(x), np.float32(y))
  # −(−128) is not rounded by itself, since nothing was computed: 128 is −128.
  expected = [
    wrap(x * y + 3),
    wrap(wrap(-x) + y),
    wrap(wrap(abs(x)) + y),
  ]
  np.testing.assert_array_equal(np.stack(found), np.stack(expected))
  np.testing.assert_array_equal(
    numerics.emulate(f, numerics.int8)(np.float32(x), np.float32(y))[0],
    np.clip(np.clip(x * y, -128, 127) + 3, -128, 127),
  )


def test_accumulators_wrap_as_integers_do():
  random = np.random.default_rng(0)
  a, b = random.integers(-128, 128, (2, 5, 40))
  for overflow in ('wrap', 'saturate'):
    fmt = numerics.FixedPoint(18, overflow=overflow)
    precision = numerics.Precision(
      inputs=numerics.int8, accumulator=numerics.Accumulator(fmt)
    )
    found = numerics.emulate(jnp.matmul, precision)(
      np.float32(a), np.float32(b.T)
    )
    expected = np.zeros((5, 5), np.int64)
    for k in range(40):
      expected += a[:, k, None] * b[None, :, k]
      if overflow == 'wrap':
        expected = (expected + 2**17) % 2**18 - 2**17
      else:
        expected = expected.clip(-(2**17), 2**17 - 1)
    np.testing.assert_array_equal(found, expected)


def test_reports_know_integers():
  def f(x):
    return (x * 3).sum()

  x = jnp.float32([1, -2, 40])
  costs = numerics.count(f, numerics.int8)(x)
  assert (costs.rows[0].kind, costs.rows[0].bits) == ('int', 8)
  assert costs.energy()[1] == 0
  rows = numerics.ranges(f)(x).rows
  candidates = [numerics.uint8, numerics.int4, numerics.int8]
  assert rows[0].smallest_format(candidates) == numerics.int8
  assert (rows[0].negatives, rows[0].lost(numerics.uint8)) == (1, 1 / 3)
  assert rows[1].smallest_format(candidates) == numerics.uint8
  errors = numerics.shadow(f, numerics.int8)(x).errors
  assert errors[0].max_local_ulps == 0
  found = numerics.fake_quantize(x, numerics.int8)
  np.testing.assert_allclose(found, x, atol=40 / 127 / 2)
  assert rounding.checked_format('f', numerics.int8) is numerics.int8
