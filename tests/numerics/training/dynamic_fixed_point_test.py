"""Integer products against Python's integers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics.training import dynamic_fixed_point

LARGEST, SMALLEST = 2**15 - 1, -(2**15)


def shared(x, bits=16):
  """Integers and their exponent, in Python numbers."""
  exponent = math.frexp(float(np.abs(x).max()))[1] - (bits - 1)
  high = 2 ** (bits - 1) - 1
  codes = [
    [min(max(round(math.ldexp(v, -exponent)), -high - 1), high) for v in row]
    for row in x.tolist()
  ]
  return codes, exponent


def product(left, right, chain, bits=16):
  """Chains of Python integers, each rounded once and added in float32."""
  l, e = shared(left, bits)
  r, f = shared(right, bits)
  found = np.empty((len(l), right.shape[1]), np.float32)
  for i, j in np.ndindex(found.shape):
    terms = [l[i][k] * r[k][j] for k in range(len(r))]
    total = np.float32(0)
    for start in range(0, len(terms), chain):
      part = sum(terms[start : start + chain])
      assert abs(part) < 2**53  # So that float64 has it.
      total = np.float32(total + np.float32(float(part)))
    found[i, j] = np.ldexp(total, e + f)
  return found


def policy(**settings):
  return numerics.Policy(
    matmul=numerics.Precision(product=numerics.DynamicFixedPoint(**settings))
  )


@pytest.mark.parametrize('chain', [2**14, 2, 7])
def test_products_and_derivatives_are_those_of_integers(chain):
  random = np.random.default_rng(0)
  x = random.normal(size=(5, 40)) * np.exp(3 * random.normal(size=(5, 1)))
  w = random.normal(size=(40, 3)) / 99
  x, w = x.astype(np.float32), w.astype(np.float32)
  g = random.normal(size=(5, 3)).astype(np.float32)
  f = numerics.emulate(jnp.matmul, policy(chain=chain))

  @jax.jit
  def run(x, w):
    y, pull = jax.vjp(f, x, w)
    return y, *pull(g)

  y, dx, dw = run(x, w)
  np.testing.assert_array_equal(y, product(x, w, chain))
  np.testing.assert_array_equal(dx, product(g, w.T, chain))
  np.testing.assert_array_equal(dw, product(x.T, g, chain))


def test_sums_do_not_overflow():
  k = 2**14
  rows = np.array([[LARGEST], [SMALLEST]]) * np.ones((1, k), np.int64)
  columns = np.ones((k, 1), np.int64) * np.array([[LARGEST, SMALLEST]])
  high, low = jax.jit(dynamic_fixed_point.integer_dot)(
    rows[None].astype(np.int32), columns[None].astype(np.int32)
  )
  found = np.asarray(high, np.int64) * 2**16 + np.asarray(low)
  np.testing.assert_array_equal(found[0], rows @ columns)


def test_integers_become_floats_by_one_rounding():
  random = np.random.default_rng(0)
  bits = random.integers(0, 46, 4000)
  whole = random.integers(0, 2**60, 4000) % 2**bits
  ties = (2 * random.integers(2**23, 2**24, 999) + 1) * 2 ** random.integers(
    0, 21, 999
  )
  near = np.concatenate([ties - 1, ties, ties + 1])
  numbers = np.concatenate([whole, near, [0, 1, 2**16 - 1, 2**16, 2**45 - 1]])
  numbers = np.concatenate([numbers, -numbers])
  found = jax.jit(dynamic_fixed_point.to_float)(
    (numbers >> 16).astype(np.int32), (numbers & 0xFFFF).astype(np.int32)
  )
  expected = numbers.astype(np.float64).astype(np.float32)
  np.testing.assert_array_equal(found, expected)


def test_results_go_back_to_integers_by_a_shift():
  random = np.random.default_rng(0)
  x = random.integers(-300, 301, (4, 6)).astype(np.float32)
  w = random.integers(-99, 100, (6, 5)).astype(np.float32)
  x[0, 0], w[0, 0] = 300, 99
  found = numerics.emulate(jnp.matmul, policy(narrow=True))(x, w)
  exact = x.astype(np.int64) @ w.astype(np.int64)
  shift = max(0, int(np.abs(exact).max()).bit_length() - 15)
  assert shift > 0
  codes = np.rint(exact / 2**shift)
  np.testing.assert_array_equal(found, codes * 2**shift)


def test_it_is_dfp16_of_the_operands():
  random = np.random.default_rng(3)
  x, w = random.normal(size=(2, 4, 4)).astype(np.float32)
  found = numerics.emulate(jnp.matmul, policy())(x, w)
  x, w = (np.asarray(numerics.fake_quantize(v, numerics.dfp16)) for v in (x, w))
  expected = (x.astype(np.float64) @ w).astype(np.float32)
  np.testing.assert_array_equal(found, expected)
  bad = np.where(np.eye(4) > 0, np.inf, x).astype(np.float32)
  assert np.isnan(numerics.emulate(jnp.matmul, policy())(bad, w)).all()


@pytest.mark.parametrize(
  ('settings', 'error', 'words'),
  [
    ({'fmt': numerics.int16}, ValueError, 'signed integers that share one'),
    ({'fmt': numerics.mxint8}, ValueError, 'signed integers that share one'),
    ({'chain': 0}, ValueError, 'chain must be from 1'),
    ({'chain': 2**14 + 1}, ValueError, 'chain is at most 16384'),
    ({'narrow': 1}, TypeError, 'narrow must be a bool'),
  ],
)
def test_what_it_refuses(settings, error, words):
  with pytest.raises(error, match=words):
    numerics.DynamicFixedPoint(**settings)
