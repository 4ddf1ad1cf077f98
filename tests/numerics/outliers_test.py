"""Outliers that take their neighbours' places, against a literal search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics

PAIRS = numerics.OutlierPairs()


def grid(bits):
  """All values, as the paper's code lists them, in units of the integers."""
  unit = 32 / 2 ** (bits - 1)
  integers = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))
  fractions = np.arange(2 ** (bits - 3)) / 2 ** (bits - 3)
  outliers = [
    sign * 2.0**e * (1 + m)
    for sign in (-1, 1)
    for e in (5, 6, 7, 8)
    for m in fractions
  ]
  outliers = np.array([x for x in outliers if abs(x) > 32]) / unit
  return integers, outliers


def literal(x, scale, bits):
  """One row, number by number."""
  integers, outliers = grid(bits)
  values = np.concatenate([integers, outliers])
  values = values[np.argsort(-np.abs(values), kind='stable')]
  found, large = [], []
  for each in x:
    distance = np.abs(each / scale - values)
    value = values[np.argmin(distance)]
    found.append(value)
    large.append(abs(value) > integers[-1])
  for first in range(0, len(x) - 1, 2):
    if large[first]:
      found[first + 1] = 0
    elif large[first + 1]:
      found[first] = 0
  if len(x) % 2 and large[-1]:
    found[-1] = np.sign(found[-1]) * integers[-1]
  return np.array(found) * scale


def test_four_bits_are_those_of_the_paper():
  assert PAIRS.outliers[1:].tolist() == [12, 16, 24, 32, 48, 64, 96]
  assert sorted(x for x in grid(4)[1] if x > 0) == PAIRS.outliers[1:].tolist()


@pytest.mark.parametrize('bits', [4, 5, 8])
@pytest.mark.parametrize('length', [32, 33])
def test_every_number_is_the_nearest_that_its_pair_allows(bits, length):
  random = np.random.default_rng(0)
  fmt = numerics.OutlierPairs(bits)
  x = random.standard_t(2, size=(20, length)) * 2 ** (bits - 2)
  x = x.astype(np.float32)
  stored = fmt.quantize(x, scale=1.0)
  assert int(stored.codes.max()) < 2**bits
  found = fmt.dequantize(stored)
  np.testing.assert_array_equal(found, [literal(r, 1.0, bits) for r in x])
  down = fmt.quantize(x.T, axis=0, scale=1.0)
  np.testing.assert_array_equal(fmt.dequantize(down), found.T)


def test_every_value_is_stored_as_it_is():
  for bits in (4, 6, 8):
    fmt = numerics.OutlierPairs(bits)
    x = np.concatenate(grid(bits)).astype(np.float32)
    pairs = np.stack([x, np.zeros_like(x)], axis=1)
    for each in (pairs, pairs[:, ::-1]):
      stored = fmt.quantize(each * 0.25, scale=0.25)
      np.testing.assert_array_equal(fmt.dequantize(stored), each * 0.25)


def test_ties_infinities_and_nan():
  x = jnp.float32(
    [9.5, 0, -9.5, 0, 2.5, -2.5, jnp.inf, 1, jnp.nan, 1, 1e9, -1e9]
  )
  found = PAIRS.dequantize(PAIRS.quantize(x, scale=1.0))
  assert found.tolist() == [12, 0, -12, 0, 3, -3, 96, 0, 0, 1, 96, 0]


def test_the_scale_is_the_best_that_is_tried():
  random = np.random.default_rng(1)
  x = random.standard_t(3, size=(6, 200)).astype(np.float32)
  scale = np.asarray(PAIRS.find_scale(x, shared=1))
  for row, found in zip(x.astype(np.float64), scale[:, 0], strict=True):
    base = max(abs(row.mean() + 3 * row.std()), abs(row.mean() - 3 * row.std()))
    tried = base / 7 * np.arange(10, 151, 2) / 100
    errors = [((literal(row, s, 4) - row) ** 2).sum() for s in tried]
    best = ((literal(row, float(found), 4) - row) ** 2).sum()
    np.testing.assert_allclose(best, min(errors), rtol=1e-3)
  zeros = PAIRS.quantize(np.zeros((2, 3), np.float32))
  np.testing.assert_array_equal(PAIRS.dequantize(zeros), np.zeros((2, 3)))


def test_they_lose_less_than_integers_where_there_are_outliers():
  random = np.random.default_rng(2)
  x = random.normal(size=(64, 128)).astype(np.float32)
  x[random.random(x.shape) < 0.005] *= 30
  own = PAIRS.dequantize(PAIRS.quantize(x))
  integers = numerics.fake_quantize(x, numerics.int4)
  assert ((own - x) ** 2).mean() < ((integers - x) ** 2).mean() / 5


def test_a_product_is_that_of_what_is_stored():
  random = np.random.default_rng(3)
  x = random.standard_t(3, size=(2, 5, 16)).astype(np.float32)
  w = random.standard_t(3, size=(16, 7)).astype(np.float32)
  how = numerics.Precision(product=numerics.OutlierProduct())
  f = numerics.emulate(jnp.matmul, numerics.Policy(matmul=how))
  left = PAIRS.dequantize(PAIRS.quantize(x.reshape(10, 16)))
  scale = PAIRS.find_scale(w, axis=0, shared=0)
  right = PAIRS.dequantize(PAIRS.quantize(w, axis=0, scale=scale))
  expected = np.asarray(left, np.float64) @ right
  np.testing.assert_allclose(
    f(x, w).reshape(10, 7), expected, rtol=1e-4, atol=1e-4
  )
  gradient = jax.grad(lambda w: f(x, w).sum())(jnp.asarray(w))
  exact = np.broadcast_to(x.sum((0, 1))[:, None], w.shape)
  np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-4)


def test_arguments_are_checked():
  with pytest.raises(ValueError, match='bits must be'):
    numerics.OutlierPairs(3)
  with pytest.raises(TypeError, match='x must be a numerics'):
    numerics.OutlierProduct(x=4)
  with pytest.raises(ValueError, match='axis 1 is out of bounds'):
    PAIRS.quantize(np.ones(4, np.float32), axis=1)
