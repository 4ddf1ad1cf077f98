import dataclasses
from fractions import Fraction
import functools
import inspect
import math

import gfloat
from gfloat import formats as gfloat_formats
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import numerics
from numerics import rounding
from tests.numerics import oracles
from tests.numerics import strategies

PRESETS = {
  name: value
  for name, value in inspect.getmembers(numerics)
  if isinstance(value, numerics.Format)
}
NO_SUBNORMALS = [
  dataclasses.replace(numerics.float8_e4m3fn, subnormals=False),
  dataclasses.replace(numerics.float4_e2m1fn, subnormals=False),
  dataclasses.replace(numerics.bfloat16, subnormals=False),
]
# A few formats that between them take every branch.
SOME = [
  numerics.bfloat16,
  numerics.float16,
  numerics.float8_e4m3fn,
  numerics.float8_e5m2fnuz,
  numerics.float4_e2m1fn,
  NO_SUBNORMALS[0],
]
by_name = pytest.mark.parametrize('fmt', SOME, ids=lambda fmt: fmt.name)
every_mode = pytest.mark.parametrize('mode', rounding.MODES)
# Every mode, and every kind of format, but not every pair.
pairs = pytest.mark.parametrize(
  ('fmt', 'mode'),
  [(numerics.float8_e5m2fnuz, mode) for mode in rounding.MODES]
  + [(numerics.bfloat16, mode) for mode in ('nearest_even', 'stochastic')]
  + [(numerics.float4_e2m1fn, 'nearest_even')],
  ids=lambda v: getattr(v, 'name', v),
)
deterministic = pytest.mark.parametrize('mode', oracles.DETERMINISTIC)


@functools.cache
def adversarial(fmt):
  return oracles.adversarial(oracles.spec_of(fmt))


@functools.cache
def rounded(fmt, mode):
  """The adversarial inputs and what the package makes of them."""
  x = adversarial(fmt)
  return x, np.asarray(numerics.round_to(x, fmt, mode=mode))


def patterns(x):
  return np.asarray(x).view(np.uint32)


def key_for(mode, seed=0):
  stochastic = mode in rounding.STOCHASTIC_MODES
  return jax.random.key(seed) if stochastic else None


# Against other implementations.


@pytest.mark.parametrize('name', sorted(set(PRESETS) - {'tfloat32'}))
def test_nearest_even_is_the_cast_of_ml_dtypes(name):
  fmt = PRESETS[name]
  x, result = rounded(fmt, 'nearest_even')
  judged = (fmt.nan != 'none') | ~np.isnan(x)  # Nothing to cast NaN to.
  dtype = np.float16 if name == 'float16' else getattr(ml_dtypes, name)
  with np.errstate(over='ignore', invalid='ignore'):
    expected = x[judged].astype(dtype).astype(np.float32)
  oracles.assert_same(result[judged], expected)


@pytest.mark.parametrize('name', sorted(PRESETS))
@pytest.mark.parametrize('mode', sorted(oracles._GFLOAT_MODES))
def test_modes_are_those_of_gfloat(name, mode):
  fmt = PRESETS[name]
  x, result = rounded(fmt, mode)
  judged = (fmt.nan != 'none') | ~np.isnan(x)  # gfloat refuses NaN here.
  info = oracles.gfloat_info(oracles.spec_of(fmt))
  saturate = fmt.overflow == 'saturate'
  expected = oracles.gfloat_round(info, mode, saturate, x[judged])
  oracles.assert_same(result[judged], expected)


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_to_odd_is_the_odd_neighbour_in_the_table(name):
  fmt = PRESETS[name]
  x, result = rounded(fmt, 'to_odd')
  judged = np.isfinite(x)
  expected = oracles.round_to_odd(oracles.spec_of(fmt), x[judged])
  oracles.assert_same(result[judged], expected)


@pytest.mark.parametrize(
  ('bits', 'precision', 'overflow'),
  [(8, 3, 'inf'), (8, 4, 'saturate'), (6, 3, 'inf')],
)
def test_p3109_formats_are_those_of_gfloat(bits, precision, overflow):
  info = gfloat_formats.format_info_p3109(
    bits, precision, domain=gfloat.Domain.Extended
  )
  fmt = numerics.Format(
    bits - precision,
    precision - 1,
    info.bias,
    nan='negative_zero',
    overflow=overflow,
  )
  assert fmt.max == info.max
  for mode in ('nearest_even', 'nearest_away', 'toward_zero', 'up', 'down'):
    x, result = rounded(fmt, mode)
    expected = oracles.gfloat_round(info, mode, overflow == 'saturate', x)
    oracles.assert_same(result, expected)


@deterministic
@pytest.mark.parametrize('fmt', SOME[2:], ids=lambda fmt: fmt.name)
def test_small_formats_are_those_of_the_literal_oracle(fmt, mode):
  spec = oracles.spec_of(fmt)
  x, result = rounded(fmt, mode)
  expected = [oracles.round_float(spec, mode, float(v)) for v in x[::7]]
  oracles.assert_same(result[::7], np.float32(expected))


@st.composite
def formats_with_inputs(draw):
  """A format and 48 float32s, most of them next to a value or a midpoint."""
  fmt = draw(strategies.formats())
  spec = oracles.spec_of(fmt)
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  last = oracles.largest_code(spec)
  low, high = 2**fmt.mantissa_bits, last + 2
  codes = [*random.integers(0, high, 8), *random.integers(0, 2 * low + 2, 4)]
  codes += [0, 1, low, last, last + 1]
  numbers = []
  for code in codes:
    value = oracles.decode(spec, int(code))
    above = oracles.decode(spec, int(code) + 1)
    numbers += [value, (value + above) / 2]
  limit = Fraction(float(np.finfo(np.float32).max))
  near = np.float32([float(min(n, limit)) for n in numbers])
  near = near.view(np.uint32) + random.integers(0, 3, near.size, np.uint32)
  near = np.maximum(near, 1) - np.uint32(1)
  anything = random.integers(0, 2**32, 48 - near.size, np.uint32)
  signs = random.integers(0, 2, near.size, np.uint32) << np.uint32(31)
  return fmt, np.concatenate([near | signs, anything]).view(np.float32)


@settings(max_examples=60)
@given(formats_with_inputs())
def test_any_format_is_that_of_the_literal_oracle(drawn):
  fmt, x = drawn
  spec = oracles.spec_of(fmt)
  for mode in oracles.DETERMINISTIC:
    expected = [oracles.round_float(spec, mode, float(v)) for v in x]
    with jax.disable_jit():  # A new format would be compiled otherwise.
      actual = numerics.round_to(x, fmt, mode=mode)
    oracles.assert_same(actual, np.float32(expected))


# Laws.


@pairs
def test_values_are_kept(fmt, mode):
  values = fmt.values()
  if fmt.infinities:
    values = np.append(values, np.float32([-np.inf, np.inf]))
  if fmt.negative_zero:
    values = np.append(values, np.float32(-0.0))
  actual = numerics.round_to(values, fmt, mode=mode, key=key_for(mode))
  np.testing.assert_array_equal(patterns(actual), patterns(values))


@pairs
def test_results_are_values(fmt, mode):
  random = np.random.default_rng(0)
  x = random.integers(0, 2**32, 20000, dtype=np.uint32).view(np.float32)
  result = numerics.round_to(x, fmt, mode=mode, key=key_for(mode))
  finite = np.isfinite(result)
  assert np.isin(np.asarray(result)[finite], fmt.values()).all()
  assert not np.isinf(result).any() or fmt.overflow == 'inf'
  again = numerics.round_to(result, fmt, mode=mode, key=key_for(mode, 1))
  np.testing.assert_array_equal(patterns(again), patterns(result))


@every_mode
def test_nan_stays_quiet_nan(mode):
  payloads = np.uint32([0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF])
  x = np.concatenate([payloads, payloads | np.uint32(2**31)]).view(np.float32)
  expected = np.uint32([0x7FC00000] * 4 + [0xFFC00000] * 4)
  for fmt in PRESETS.values():
    with jax.disable_jit():  # Sooner than compiling every pair.
      result = numerics.round_to(x, fmt, mode=mode, key=key_for(mode))
    np.testing.assert_array_equal(patterns(result), expected)


@by_name
@deterministic
def test_rounding_is_monotone(fmt, mode):
  x, result = rounded(fmt, mode)
  result = result[np.argsort(x)]
  result = result[~np.isnan(result)]
  assert (result[1:] >= result[:-1]).all()


@by_name
def test_modes_without_direction_are_odd_functions(fmt):
  x = adversarial(fmt)
  half = x.size // 2  # The second half is the first with the sign set.
  np.testing.assert_array_equal(patterns(-x[:half]), patterns(x[half:]))
  for mode in (
    *('nearest_even', 'nearest_away', 'nearest_zero', 'toward_zero', 'to_odd'),
  ):
    _, result = rounded(fmt, mode)
    np.testing.assert_array_equal(-result[:half], result[half:])
  (_, up), (_, down) = rounded(fmt, 'up'), rounded(fmt, 'down')
  np.testing.assert_array_equal(-up[:half], down[half:])
  np.testing.assert_array_equal(-down[:half], up[half:])


@by_name
def test_errors_are_within_ulps_and_directions(fmt):
  x = adversarial(fmt)
  inside = np.abs(x) <= fmt.max
  exact = x[inside].astype(np.float64)
  unit = np.asarray(numerics.ulp(x, fmt))[inside].astype(np.float64)

  def error(mode):
    return rounded(fmt, mode)[1][inside].astype(np.float64) - exact

  assert (np.abs(error('nearest_even')) <= unit / 2).all()
  assert (np.abs(error('nearest_away')) <= unit / 2).all()
  assert (np.abs(error('to_odd')) <= unit).all()
  assert ((error('up') >= 0) & (error('up') <= unit)).all()
  assert ((error('down') <= 0) & (error('down') >= -unit)).all()
  assert (error('toward_zero') * np.sign(exact) <= 0).all()
  assert (np.abs(error('toward_zero')) <= unit).all()


def test_overflow_of_one_half_ulp():
  x = jnp.float32([464.0, np.nextafter(np.float32(464), np.float32(465))])
  result = numerics.round_to(x, numerics.float8_e4m3fn).tolist()
  assert result[0] == 448.0
  assert math.isnan(result[1])
  half = numerics.round_to(jnp.float32([65519.0, 65520.0]), numerics.float16)
  assert half.tolist() == [65504.0, math.inf]


def test_rounding_to_odd_makes_double_rounding_harmless():
  x, once = rounded(numerics.bfloat16, 'nearest_even')
  odd = numerics.round_to(x, numerics.tfloat32, mode='to_odd')
  oracles.assert_same(numerics.round_to(odd, numerics.bfloat16), once)
  even = numerics.round_to(x, numerics.tfloat32)
  twice = numerics.round_to(even, numerics.bfloat16)
  assert (patterns(twice) != patterns(once)).any()


# Stochastic rounding.


def stochastic_cases():
  """Format, number, and the literal neighbours with the probability of each."""
  for fmt in SOME:
    spec = oracles.spec_of(fmt)
    random = np.random.default_rng(1)
    smallest = fmt.min_subnormal
    numbers = [0.3 * smallest, 0.0101 * smallest, 0.9 * fmt.min_normal]
    numbers += [fmt.min_normal * random.uniform(1, 2) for _ in range(2)]
    numbers += [fmt.max * random.uniform(0.4, 0.7) for _ in range(2)]
    for number in np.float32(numbers):
      low, high = oracles.neighbours(spec, Fraction(float(number)))
      below, above = oracles.decode(spec, low), oracles.decode(spec, high)
      share = 0.0
      if low != high:
        share = float((Fraction(float(number)) - below) / (above - below))
      for sign in (1, -1):
        yield fmt, sign * number, np.float32([below, above]) * sign, share


@pytest.mark.parametrize('mode', rounding.STOCHASTIC_MODES)
def test_stochastic_frequencies(mode):
  draws = 20000
  for seed, (fmt, x, both, share) in enumerate(stochastic_cases()):
    expected = 0.5 if mode == 'stochastic_equal' and share else share
    result = numerics.round_to(
      jnp.full(draws, x), fmt, mode=mode, key=jax.random.key(seed)
    )
    result = np.asarray(result)
    assert np.isin(result, both).all(), (fmt.name, x)
    frequency = np.mean(result == both[1])
    bound = 4.5 * math.sqrt(expected * (1 - expected) / draws)
    assert abs(frequency - expected) <= bound, (fmt.name, x)


@by_name
@pytest.mark.parametrize('mode', rounding.STOCHASTIC_MODES)
def test_stochastic_support_is_the_two_neighbours(fmt, mode):
  x, low = rounded(fmt, 'down')
  _, high = rounded(fmt, 'up')
  result = numerics.round_to(x, fmt, mode=mode, key=jax.random.key(5))
  inside = np.abs(x) <= fmt.max
  low, high, result = low[inside], high[inside], np.asarray(result)[inside]
  chosen = [patterns(result) == patterns(end) for end in (low, high)]
  assert (chosen[0] | chosen[1]).all()
  inexact = patterns(low) != patterns(high)
  assert (chosen[0] & inexact).any()
  assert (chosen[1] & inexact).any()


@by_name
@pytest.mark.parametrize('mode', rounding.STOCHASTIC_MODES)
def test_stochastic_overflow_is_a_choice_only_next_to_the_largest(fmt, mode):
  table = oracles.magnitudes(oracles.spec_of(fmt))
  key = jax.random.key(6)
  halfway = np.float32((3 * table[-1] - table[-2]) / 2)
  near = numerics.round_to(jnp.full(99, halfway), fmt, mode=mode, key=key)
  largest = fmt.max
  overflow = {'inf': math.inf, 'nan': math.nan, 'saturate': largest}
  expected = [largest, overflow[fmt.overflow]]
  np.testing.assert_array_equal(np.unique(near), np.unique(expected))
  if fmt != numerics.bfloat16:  # Beyond its neighbourhood float32 ends.
    far = jnp.full(99, np.float32(2.5 * largest))
    far = numerics.round_to(far, fmt, mode=mode, key=key)
    np.testing.assert_array_equal(far, np.full(99, expected[1]))


def test_stochastic_rounding_has_no_bias():
  x = np.random.default_rng(2).normal(size=200000).astype(np.float32)
  fmt = numerics.float8_e4m3fn
  result = numerics.round_to(x, fmt, mode='stochastic', key=jax.random.key(3))
  error = np.asarray(result).astype(np.float64) - x
  assert abs(error.mean()) < 4.5 * error.std() / math.sqrt(x.size)
  assert error.std() > 1e-2


def test_far_below_the_smallest_value_the_share_is_not_lost():
  fmt = numerics.float4_e2m1fn
  x = jnp.full(2**22, 2.0**-15)  # One in 2**14 goes to 0.5.
  result = numerics.round_to(x, fmt, mode='stochastic', key=jax.random.key(0))
  count = int((result == 0.5).sum())
  assert abs(count - 2**8) < 4.5 * 2**4
  x = jnp.full(2**22, 1e-40)
  result = numerics.round_to(x, fmt, mode='stochastic', key=jax.random.key(0))
  np.testing.assert_array_equal(result, jnp.zeros(2**22))


def test_keys():
  x = jnp.full((64, 3), 0.3)
  draw = functools.partial(
    numerics.round_to, fmt=numerics.float4_e2m1fn, mode='stochastic'
  )
  one = draw(x, key=jax.random.key(1))
  np.testing.assert_array_equal(one, draw(x, key=jax.random.key(1)))
  np.testing.assert_array_equal(one, draw(x, key=jax.random.PRNGKey(1)))
  assert (one != draw(x, key=jax.random.key(2))).any()
  other = draw(x, key=jax.random.key(1, impl='rbg'))
  assert set(np.unique(other)) == {0.0, 0.5}
  keys = jax.random.split(jax.random.key(7), 64)
  batched = jax.vmap(lambda x, key: draw(x, key=key))(x, keys)
  looped = [draw(x[i], key=keys[i]) for i in range(64)]
  np.testing.assert_array_equal(batched, jnp.stack(looped))


# Transformations.


@pairs
def test_transformations_change_no_bit(fmt, mode):
  x = np.random.default_rng(0).choice(adversarial(fmt), (8, 512))
  keys = jax.random.split(jax.random.key(0), 8)

  def row(x, key):
    key = key if mode in rounding.STOCHASTIC_MODES else None
    return numerics.round_to(x, fmt, mode=mode, key=key)

  expected = patterns(np.stack([row(x[i], keys[i]) for i in range(8)]))
  batched = jax.vmap(row)(x, keys)
  compiled = jax.jit(jax.vmap(row))(x, keys)
  _, scanned = jax.lax.scan(lambda c, xs: (c, row(*xs)), 0, (x, keys))
  with jax.disable_jit():
    eager = np.stack([row(x[i], keys[i]) for i in range(8)])
  mesh = jax.make_mesh((8,), ('rows',), (jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('rows')
  mapped = jax.jit(
    jax.shard_map(
      jax.vmap(row), mesh=mesh, in_specs=(spec, spec), out_specs=spec
    )
  )(x, keys)
  for other in (batched, compiled, scanned, eager, mapped):
    np.testing.assert_array_equal(patterns(other), expected)


@pytest.mark.parametrize('mode', ['nearest_even', 'stochastic'])
def test_sharding_changes_no_bit(mode):
  x = adversarial(numerics.float8_e5m2)[:4096].reshape(64, 64)
  round_to = functools.partial(
    numerics.round_to,
    fmt=numerics.float8_e5m2,
    mode=mode,
    key=key_for(mode),
  )
  expected = patterns(round_to(x))
  for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
    mesh = jax.make_mesh((4, 2), ('a', 'b'), (kind, kind))
    spec = jax.sharding.PartitionSpec('a', 'b')
    with jax.set_mesh(mesh):
      sharded = jax.device_put(x, jax.NamedSharding(mesh, spec))
      result = jax.jit(round_to)(sharded)
    np.testing.assert_array_equal(patterns(result), expected)
    assert result.sharding.is_equivalent_to(sharded.sharding, 2)


def test_new_data_and_keys_compile_nothing(caplog):
  def run(seed, size):
    x = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    key = jax.random.key(seed)
    numerics.round_to(x, numerics.float8_e3m4)
    numerics.round_to(x, numerics.Format(3, 4))
    numerics.round_to(x, numerics.float8_e3m4, mode='stochastic', key=key)
    numerics.ulp(x, numerics.float8_e3m4)

  def compiled():
    return sum('Compiling' in r.getMessage() for r in caplog.records)

  with jax.log_compiles():
    run(0, 77)
    first = compiled()
    run(1, 77)
    assert compiled() == first > 0


@pairs
def test_the_derivative_is_the_identity(fmt, mode):
  x = jnp.float32([0.3, -1e-30, 0.0, 5.0, -1e30, 1e-40, jnp.inf])
  weights = jnp.arange(1.0, 8.0)
  key = key_for(mode)

  def f(x):
    return numerics.round_to(x, fmt, mode=mode, key=key)

  gradient = jax.grad(lambda x: jnp.vdot(weights, f(x)))(x)
  np.testing.assert_array_equal(gradient, weights)
  value, tangent = jax.jvp(f, (x,), (weights,))
  np.testing.assert_array_equal(patterns(value), patterns(f(x)))
  np.testing.assert_array_equal(tangent, weights)
  np.testing.assert_array_equal(jax.jacfwd(f)(x), jnp.eye(7))
  np.testing.assert_array_equal(jax.jacrev(jax.vmap(f))(x[:, None]).sum(), 7)


def test_higher_derivatives():
  def f(x):
    return numerics.round_to(x, numerics.float16) ** 3

  x = jnp.float32(3.0001)
  assert jax.grad(f)(x) == 27.0
  assert jax.grad(jax.grad(f))(x) == 18.0
  assert jax.hessian(f)(x) == 18.0


# Types.


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_are_widened_exactly(dtype):
  x = np.arange(2**16, dtype=np.uint16).view(dtype)
  x = x[~np.isnan(x.astype(np.float32))]
  for fmt in (*SOME, numerics.tfloat32):
    for mode in ('nearest_even', 'up'):
      result = numerics.round_to(jnp.asarray(x), fmt, mode=mode)
      wide = numerics.round_to(x.astype(np.float32), fmt, mode=mode)
      oracles.assert_same(np.asarray(result).astype(np.float32), wide)
  unit = numerics.ulp(jnp.asarray(x), numerics.tfloat32)
  oracles.assert_same(
    unit, numerics.ulp(x.astype(np.float32), numerics.tfloat32)
  )


def test_result_dtypes():
  def dtype_of(dtype, fmt):
    x = jax.ShapeDtypeStruct((2,), dtype)
    return jax.eval_shape(lambda x: numerics.round_to(x, fmt), x).dtype

  for fmt in PRESETS.values():
    assert dtype_of(jnp.float32, fmt) == jnp.float32
    held = fmt not in (numerics.float16, numerics.tfloat32)
    expected = jnp.bfloat16 if held else jnp.float32
    assert dtype_of(jnp.bfloat16, fmt) == expected
    held = fmt not in (numerics.bfloat16, numerics.tfloat32)
    expected = jnp.float16 if held else jnp.float32
    assert dtype_of(jnp.float16, fmt) == expected
  gradient = jax.grad(lambda x: numerics.round_to(x, numerics.bfloat16).sum())(
    jnp.ones(2, jnp.float16)
  )
  assert gradient.dtype == jnp.float16


@pytest.mark.parametrize('shape', [(), (0,), (2, 0, 3), (2, 3, 4)])
@pytest.mark.parametrize('mode', ['up', 'stochastic'])
def test_shapes(shape, mode):
  x = jnp.ones(shape)
  result = numerics.round_to(
    x, numerics.float8_e4m3, mode=mode, key=key_for(mode)
  )
  np.testing.assert_array_equal(result, x, strict=True)


@pytest.mark.parametrize(
  'x', [0.5, 3, [0.5], np.float64(0.5), np.ones(2), np.int32(1), True, None]
)
def test_other_types_are_refused(x):
  message = 'must be an array of float32, bfloat16 or float16, got .*twice'
  with pytest.raises(TypeError, match=f'round_to: x {message}'):
    numerics.round_to(x, numerics.float16)
  with pytest.raises(TypeError, match=f'ulp: x {message}'):
    numerics.ulp(x, numerics.float16)


def test_wide_jax_arrays_are_refused():
  with jax.enable_x64(True):
    wide = jnp.ones(3, jnp.float64)
    with pytest.raises(TypeError, match='got float64'):
      numerics.round_to(wide, numerics.float16)
    narrow = numerics.round_to(jnp.float32([0.3]), numerics.float8_e4m3fn)
    assert narrow.dtype == jnp.float32


def test_arguments_are_checked():
  x = jnp.ones(3)
  key = jax.random.key(0)
  with pytest.raises(TypeError, match=r"a numerics.Format.*got 'float16'"):
    numerics.round_to(x, 'float16')
  with pytest.raises(TypeError, match=r'ulp: fmt must be a numerics.Format'):
    numerics.ulp(x, jnp.bfloat16)
  with pytest.raises(ValueError, match=r'one of nearest_even.*got'):
    numerics.round_to(x, numerics.float16, mode='nearest')
  with pytest.raises(ValueError, match='needs key='):
    numerics.round_to(x, numerics.float16, mode='stochastic')
  with pytest.raises(ValueError, match='draws nothing'):
    numerics.round_to(x, numerics.float16, key=key)
  with pytest.raises(ValueError, match=r'batch of shape \(2,\)'):
    numerics.round_to(
      x, numerics.float16, mode='stochastic', key=jax.random.split(key)
    )
  with pytest.raises(TypeError, match='key must be'):
    numerics.round_to(x, numerics.float16, mode='stochastic', key=3)


# ulp.


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_ulp_is_numpys_spacing(dtype):
  largest = np.asarray(ml_dtypes.finfo(dtype).max, dtype).view(np.uint16)
  codes = np.arange(largest, dtype=np.uint16).view(dtype)
  actual = numerics.ulp(codes.astype(np.float32), PRESETS[codes.dtype.name])
  gaps = np.spacing(codes).astype(np.float32)
  np.testing.assert_array_equal(actual, gaps)


@pytest.mark.parametrize('fmt', PRESETS.values(), ids=list(PRESETS))
def test_ulp_is_the_gap_in_the_table(fmt):
  table = oracles.magnitudes(oracles.spec_of(fmt))
  gaps = np.diff(table)
  inside = (table[:-1] + gaps / 3).astype(np.float32)
  np.testing.assert_array_equal(numerics.ulp(inside, fmt), gaps)
  np.testing.assert_array_equal(numerics.ulp(-inside, fmt), gaps)
  beyond = np.float32([fmt.max, np.finfo(np.float32).max])
  np.testing.assert_array_equal(numerics.ulp(beyond, fmt), gaps[-1])


def test_ulp_without_subnormals_and_finite_values():
  fmt = NO_SUBNORMALS[0]
  x = jnp.float32([0.0, 0.01, fmt.min_normal, jnp.inf, -jnp.inf, jnp.nan])
  unit = fmt.min_normal
  expected = [unit, unit, unit / 8, math.nan, math.nan, math.nan]
  np.testing.assert_array_equal(numerics.ulp(x, fmt), expected)
