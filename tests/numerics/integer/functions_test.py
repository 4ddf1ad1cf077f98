"""Exponentials, softmax, GELU and norm of integers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics import integer
from tests.numerics.integer import oracles

FAR = [-(2**31), 2**31 - 1, 0, -(2**30), 2**30, 1, -1]


@functools.cache
def program(function, **settings):
  return jax.jit(functools.partial(function, **settings))


def rows(scale, count=40, width=12):
  """Rows of numbers, constant, falling and extreme ones too."""
  random = np.random.default_rng(0)
  x = np.round(random.normal(size=(count, width)) * scale)
  x[1:4] = np.array([-5, 0, 7])[:, None]
  x[4] = -np.arange(width) * 50
  x[5] = -1 - np.arange(width)  # All of them below 0.
  x[6, :7] = FAR
  return np.clip(x, -(2**31), 2**31 - 1).astype(np.int32)


@pytest.mark.parametrize(
  ('unit', 'terms'),
  [(1, 15), (13, 15), (2**16 - 1, 15), (255, 23), (2**30 - 1, 1)],
)
def test_exponential(unit, terms):
  x = np.array([0, -1, -2, -15, -16, -17, -(2**30), -(2**31)], np.int64)
  steps = -np.arange(1, terms + 2) * unit
  x = np.concatenate([x, steps, steps - 1, steps * 11 // 16])
  x = np.clip(np.resize(x, 80), -(2**31), 0).astype(np.int32)
  found = program(integer.shift_exp, terms=terms)(x, np.int32(unit))
  expected = [oracles.exponential(int(each), unit, terms) for each in x]
  np.testing.assert_array_equal(found, expected)
  assert max(expected) == unit * 2**terms
  with pytest.raises(ValueError, match='unit must be from 1 to'):
    integer.shift_exp(x, ((2**31 - 1) >> terms) + 1, terms=terms)


def test_exponential_beside_that_of_floats():
  x = np.linspace(-8, 0, 2000)
  unit = 2**16 - 1
  codes = np.round(x * unit).astype(np.int32)
  found = np.asarray(integer.shift_exp(codes, unit)) / (unit * 2.0**15)
  error = found / np.exp(x) - 1
  np.testing.assert_allclose(error.mean(), 0.056, atol=0.001)
  assert error.min() >= 0
  np.testing.assert_allclose(error.max(), 0.092, atol=0.001)


@pytest.mark.parametrize('unit', [1, 13, 2**16 - 1])
@pytest.mark.parametrize('bits', [8, 16])
def test_softmax(unit, bits):
  x = rows(3 * unit)
  found = program(integer.shiftmax, bits=bits)(x, np.int32(unit))
  expected = [oracles.softmax(row.tolist(), unit, bits) for row in x]
  np.testing.assert_array_equal(found, expected)


def test_softmax_of_long_rows_saturates():
  """4000 times 2**31 − 2**15: the sum has 43 bits."""
  x = np.zeros((2, 4000), np.int32)
  x[1, 1:] = -1000
  found = program(integer.shiftmax)(x, np.int32(2**16 - 1))
  expected = [oracles.softmax(row.tolist(), 2**16 - 1) for row in x]
  np.testing.assert_array_equal(found, expected)


def test_softmax_counts_what_it_should():
  x = rows(40)
  mask = np.tril(np.ones((40, 12), bool))
  mask[0] = False
  found = program(integer.shiftmax)(x, np.int32(16), where=mask)
  expected = np.zeros((40, 12), int)
  for i in range(1, 40):
    expected[i, mask[i]] = oracles.softmax(x[i, mask[i]].tolist(), 16)
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(
    program(integer.shiftmax, axis=0)(x.T, np.int32(16), where=mask.T), found.T
  )


@pytest.mark.parametrize(('bits', 'bound'), [(8, 0.025), (16, 0.018)])
def test_softmax_beside_that_of_floats(bits, bound):
  random = np.random.default_rng(1)
  x = random.normal(size=(300, 12)) * 3
  scale = 1 / 128
  codes = np.round(x / scale).astype(np.int32)
  found = np.asarray(program(integer.shiftmax, bits=bits)(codes, 128))
  found = found / 2.0 ** (bits - 1)
  expected = np.asarray(jax.nn.softmax(x.astype(np.float32)))
  assert np.abs(found - expected).max() < bound
  sums = found.sum(axis=1)
  assert (sums <= 1).all()
  assert sums.mean() > (0.9 if bits == 8 else 0.99)


@pytest.mark.parametrize('unit', [1, 13, 255])
@pytest.mark.parametrize('maximum', ['row', 'element'])
def test_gelu(unit, maximum):
  x = rows(3 * unit)
  found = program(integer.shift_gelu, maximum=maximum)(x, np.int32(unit))
  limit = (2**31 - 1) >> 7
  expected = [
    oracles.gelu(row.tolist(), unit, maximum)
    for row in np.clip(x, -limit, limit)
  ]
  np.testing.assert_array_equal(found, expected)


def test_gelu_beside_that_of_floats():
  x = np.linspace(-8, 8, 513)[None]
  scale = 8 / 127
  codes = np.round(x / scale).astype(np.int32)
  unit = integer.unit(1.702 * scale)
  exact = np.asarray(jax.nn.gelu((codes * scale).astype(np.float32)))
  errors = {}
  for maximum, terms in (('row', 23), ('element', 15)):
    found = program(integer.shift_gelu, maximum=maximum, terms=terms)(
      codes, unit
    )
    errors[maximum] = np.abs(np.asarray(found) * (scale / 128) - exact).max()
  assert 0.3 < errors['row'] < 0.32
  assert errors['element'] < 0.063
  # In a row with a large number, what should vanish is halved.
  codes = np.array([[-50, 250]], np.int32)
  row = program(integer.shift_gelu, maximum='row')(codes, unit)
  each = program(integer.shift_gelu, maximum='element')(codes, unit)
  assert row[0, 0] == -50 * 63
  assert each[0, 0] > -50 * 2


@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('root', ['exact', 'newton'])
def test_norm(root, centred):
  x = np.clip(rows(300), -(2**15), 2**15 - 1)
  bias = np.array([0, 1, -1, 2**30, -(2**30), 5] * 2, np.int32)
  found = program(integer.layer_norm, root=root, centred=centred)(x, bias)
  steps = functools.partial(oracles.newton, steps=10)
  expected = [
    oracles.norm(
      row.tolist(),
      centred,
      math.isqrt if root == 'exact' else steps,
      bias.tolist(),
    )
    for row in x
  ]
  np.testing.assert_array_equal(found, expected)


def test_norm_at_its_ends():
  """The largest sum of squares, of 47 bits, and no variance at all."""
  x = np.full((4, 2**15), -(2**15), np.int32)
  x[0, ::2] = 2**31 - 1
  x[1, 0] = 2**15 - 1
  x[3] = 0
  found = program(integer.layer_norm)(x)
  clipped = np.clip(x, -(2**15), 2**15 - 1)
  expected = [oracles.norm(row.tolist()) for row in clipped]
  np.testing.assert_array_equal(found, expected)
  assert (np.asarray(found)[2:] == 0).all()
  found = program(integer.layer_norm, root='newton')(x)
  steps = functools.partial(oracles.newton, steps=10)
  expected = [oracles.norm(row.tolist(), root=steps) for row in clipped]
  np.testing.assert_array_equal(found, expected)


def test_the_published_root_cannot_return_less_than_64():
  x = np.array([[-3, 3, -2, 2] * 3], np.int32)
  exact = np.asarray(program(integer.layer_norm)(x))
  published = np.asarray(program(integer.layer_norm, root='newton')(x))
  longer = np.asarray(program(integer.layer_norm, root='newton', steps=18)(x))
  np.testing.assert_array_equal(longer, exact)
  assert np.abs(exact).max() > 6 * np.abs(published).max()
  y = x / np.sqrt((x**2).mean())
  found = exact * (math.sqrt(12) / 2**30)
  np.testing.assert_allclose(found, y, rtol=0.11)  # 8 for √78 = 8.8.


def test_norm_beside_that_of_floats():
  random = np.random.default_rng(2)
  x = np.round(random.normal(size=(50, 96)) * 3000 + 500).astype(np.int32)
  gain, bias = random.normal(size=(2, 96)) * 0.3 + np.array([[2.0], [0.0]])
  steps = integer.norm_bias(bias, gain)
  found = np.asarray(program(integer.layer_norm)(x, steps), np.float64)
  found = found * (math.sqrt(96) / 2**30) * gain
  y = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
  np.testing.assert_allclose(found, y * gain + bias, atol=0.005)
  with pytest.raises(ValueError, match='the bias 50 of feature 3 is beyond'):
    integer.norm_bias([0, 0, 0, 50.0], [1, 1, 1, 1])


@pytest.mark.parametrize(
  ('call', 'error', 'message'),
  [
    (lambda x: integer.shiftmax(x / 2, 8), TypeError, 'expected integers'),
    (lambda x: integer.shiftmax(x, 0), ValueError, 'unit must be from 1 to 65'),
    (lambda x: integer.shiftmax(x, 8, bits=17), ValueError, 'bits must be'),
    (lambda x: integer.shift_gelu(x, 256), ValueError, 'from 1 to 255'),
    (
      lambda x: integer.shift_gelu(x, 8, maximum='all'),
      ValueError,
      'one of row, el',
    ),
    (
      lambda x: integer.layer_norm(x, root='five'),
      ValueError,
      'root must be one',
    ),
    (
      lambda x: integer.layer_norm(jnp.zeros(2**15 + 1, jnp.int8)),
      ValueError,
      'expected 1 to 32768 features',
    ),
    (lambda x: integer.unit(0.0), ValueError, 'expected scales from'),
  ],
)
def test_arguments_are_checked(call, error, message):
  with pytest.raises(error, match=message):
    call(np.arange(4, dtype=np.int32))
