"""Of what looks at every operation: errors, ranges, costs."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import numerics
from tests.numerics import written

X, W = written.X, written.W
BF16 = numerics.bfloat16


def cast(x):
  return np.asarray(x, ml_dtypes.bfloat16).astype(np.float32)


def rows_of(rows, primitive):
  return [row for row in rows if row.operation.primitive == primitive]


def everywhere(x):
  """A product in every kind of control flow, of 2 ** -k for k from 0 on."""
  half = np.float32(0.5)
  x, _ = jax.lax.scan(lambda c, _: (c * half, None), x, length=3)
  _, x = jax.lax.while_loop(
    lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * half), (0, x)
  )
  x = jax.lax.cond(x[0] > 9, lambda x: x * 99, lambda x: x * half, x)
  x = jax.checkpoint(jax.jit(lambda x: x * half))(x)
  return jax.shard_map(
    lambda x: x * half,
    mesh=written.MESH,
    in_specs=jax.P('i'),
    out_specs=jax.P('i'),
  )(x)


# Errors.


def test_errors_are_those_of_numpy():
  def f(x, y):
    return x * y + x

  found = numerics.shadow(f, BF16)(X, W[:4])
  x, y = cast(X), cast(W[:4])
  product = cast(x * y)
  exact = X * W[:4]
  np.testing.assert_array_equal(found.value, cast(product + x))
  np.testing.assert_allclose(found.reference, exact + X, rtol=1e-6)
  multiply, add = found.errors
  relative = np.abs(product - exact) / np.abs(exact)
  assert multiply.count == X.size
  np.testing.assert_allclose(multiply.max_relative, relative.max(), rtol=1e-4)
  np.testing.assert_allclose(multiply.mean_relative, relative.mean(), rtol=1e-4)
  spacing = 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)
  ulps = np.abs(product - exact) / spacing
  np.testing.assert_allclose(multiply.max_ulps, ulps.max(), rtol=1e-4)
  local = np.abs(cast(product + x) - (product + X))
  spacing = 2.0 ** (np.floor(np.log2(np.abs(product + X))) - 7)
  np.testing.assert_allclose(
    add.max_local_ulps, (local / spacing).max(), rtol=1e-4
  )
  assert 'diagnostics_test.py' in add.operation.source
  assert str(found).splitlines()[1].split()[0] == 'add'


@pytest.mark.slow
def test_errors_in_control_flow_add_up():
  found = numerics.shadow(everywhere, BF16)(jnp.ones(8))
  counts = [row.count for row in rows_of(found.errors, 'mul')]
  assert counts == [24, 16, 8, 8, 8]  # Only the branch that was taken.
  assert {row.max_relative for row in found.errors} == {0.0}


def test_overflow_and_draws_are_seen():
  key = jax.random.key(0)
  f = numerics.shadow(
    lambda x: x * x, numerics.float8_e4m3fn, mode='stochastic'
  )
  found = f(jnp.array([30.0, 3.0]), rounding_key=key)
  assert found.errors[0].nonfinite == 1
  with pytest.raises(ValueError, match='shadow: rounding is stochastic'):
    f(X)


# Ranges.


def test_ranges_are_those_of_numpy():
  x = np.float32([0.0, -0.75, 3.0, np.inf, 1e-40, 1.9, 2.0])
  found = numerics.ranges(lambda x: jax.lax.rev(x, (0,)))(x)
  [row] = found.rows
  assert (row.count, row.zeros, row.nonfinite) == (7, 1, 1)
  assert (row.min, row.max) == (np.float32(1e-40), 3.0)
  assert {
    exponent - 127: count
    for exponent, count in enumerate(row.histogram)
    if count
  } == {-127: 1, -1: 1, 0: 1, 1: 2}
  np.testing.assert_array_equal(found.value, x[::-1])


@pytest.mark.slow
def test_ranges_in_control_flow_are_of_all_turns():
  found = numerics.ranges(everywhere)(jnp.ones(8))
  rows = rows_of(found.rows, 'mul')
  assert [(row.min, row.max) for row in rows] == [
    (2.0**-low, 2.0**-high)
    for low, high in ((3, 1), (5, 4), (6, 6), (7, 7), (8, 8))
  ]
  assert [int(row.histogram.sum()) for row in rows] == [24, 16, 8, 8, 8]
  assert rows[0].exponent_bits == 2
  assert str(found).splitlines()[0].split()[:3] == [
    'operation',
    'result',
    'min',
  ]


@pytest.mark.slow
def test_the_smallest_format_holds_what_there_was():
  formats = [numerics.float4_e2m1fn, numerics.float8_e4m3fn, numerics.float16]
  f = numerics.ranges(lambda x: x + 0)

  def smallest(values, tolerance=0.0):
    [row] = f(np.float32(values)).rows
    return row.smallest_format(formats, tolerance=tolerance)

  assert smallest([0.5, 6]) == formats[0]
  assert smallest([0.5, 7]) == formats[1]
  assert smallest([0.01, 448]) == formats[1]
  assert smallest([0.0001, 448]) == formats[2]
  assert smallest([0.0001, *[1] * 99], tolerance=0.01) == formats[0]
  assert smallest([1e6]) is None


# Costs.


def test_costs_count_loops_and_terms():
  def f(x, w):
    def step(c, _):
      return jnp.tanh(c @ w) + x**3, None

    return jax.lax.scan(step, x, length=5)[0].sum()

  costs = numerics.count(f)(X, W)
  product = 4 * 8 * 8
  assert costs.adds == 5 * (product + 32) + 32
  assert costs.multiplies == 5 * (product + 2 * 32)
  assert costs.others == 5 * 32
  [row] = rows_of(costs.rows, 'dot_general')
  assert row.bytes == 5 * 4 * (32 + 64 + 32)
  assert row.energy(numerics.HOROWITZ_45NM) == pytest.approx(
    5 * product * (0.9 + 3.7)
  )
  energy, missing = costs.energy()
  assert missing == costs.others
  assert energy == pytest.approx(0.9 * costs.adds + 3.7 * costs.multiplies)
  assert costs.intensity == (
    (costs.adds + costs.multiplies + costs.others) / costs.bytes
  )


def test_costs_are_those_of_the_policy():
  half = numerics.float16
  costs = numerics.count(jnp.matmul, half)(X, W)
  assert costs.bytes == 2 * (32 + 64 + 32)
  assert costs.energy()[0] == pytest.approx(256 * (0.4 + 1.1))
  fp8 = numerics.count(jnp.matmul, numerics.float8_e4m3fn)(X, W)
  assert fp8.energy() == (0.0, 512)  # No price was published.
  assert fp8.bytes == 128


def test_l_mul_adds_integers():
  x = jnp.ones((4, 8)), jnp.ones((8, 2))
  how = numerics.Precision(
    inputs=numerics.float8_e4m3fn, multiply=numerics.LMul(3)
  )
  costs = numerics.count(jnp.matmul, numerics.Policy(matmul=how))(*x)
  assert (costs.adds, costs.multiplies, costs.integer_adds) == (64, 0, 64)
  prices = {('add', 'int', 8): 0.03, ('add', 'float', 8): 0.2}
  assert costs.energy(prices)[0] == pytest.approx(64 * 0.23)
  row = costs.rows[0]
  assert (row.bits, row.bytes) == (8, 4 * 8 + 8 * 2 + 4 * 4 * 2)


def test_convolutions_and_integers_are_counted():
  convolve = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1,), padding='VALID'
  )
  image, kernel = np.ones((1, 2, 9), np.float32), np.ones((3, 2, 4), np.float32)
  costs = numerics.count(convolve)(image, kernel)
  assert costs.multiplies == 3 * 6 * (2 * 4)
  [row] = numerics.count(lambda x: x * x)(np.ones(3, np.int32)).rows
  assert (row.kind, row.bits, row.multiplies) == ('int', 32, 3)
  assert row.energy(numerics.HOROWITZ_45NM) == pytest.approx(3 * 3.1)
