"""Scales and roundings from data, against literal searches."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import numerics

FORMATS = [
  numerics.float4_e2m1fn,
  numerics.float8_e4m3fn,
  numerics.int4,
  numerics.FixedPoint(3),
]
by_name = pytest.mark.parametrize('fmt', FORMATS, ids=lambda fmt: fmt.name)


def layer(seed=0, inputs=10, outputs=6, samples=60):
  random = np.random.default_rng(seed)
  mix = random.normal(size=(3, inputs))
  x = random.normal(size=(samples, 3)) @ mix
  x = x + 0.3 * random.normal(size=x.shape)
  w = random.normal(size=(inputs, outputs))
  return w.astype(np.float32), x.astype(np.float32)


def values(*args, **kwargs):
  stored = numerics.quantize(*args, **kwargs)
  return np.asarray(numerics.dequantize(stored), np.float64)


def errors(w, x, rounded):
  return ((x.astype(np.float64) @ (rounded - w)) ** 2).sum(0)


@by_name
def test_no_choice_of_neighbours_is_much_better(fmt):
  w, x = layer()
  stored = numerics.learned_rounding(w, x, fmt, steps=300)
  found = np.asarray(numerics.dequantize(stored), np.float64)
  down, up = (values(w, fmt, axis=0, mode=mode) for mode in ('down', 'up'))
  np.testing.assert_array_equal(np.where(found > w, up, down), found)
  np.testing.assert_array_equal(
    stored.scale, numerics.absmax_scale(w, fmt, axis=0)
  )
  nearest, least = errors(w, x, values(w, fmt, axis=0)), errors(w, x, found)
  assert (least <= nearest * 1.0001).all()
  masks = np.array(list(itertools.product([False, True], repeat=10)))
  gram = x.astype(np.float64).T @ x
  best = []
  for column in range(6):
    rounded = np.where(masks, up[:, column], down[:, column])
    off = rounded - w[:, column]
    best.append(np.einsum('ni,ij,nj->n', off, gram, off).min())
  # Of what is to be gained over rounding to nearest, most is.
  assert (nearest - least).sum() > 0.7 * (nearest - np.array(best)).sum()


def test_no_single_weight_would_do_better_the_other_way():
  w, x = layer(1, 40, 8, 400)
  fmt = numerics.int4
  scale = numerics.mse_scale(w, fmt, axis=0, group_size=16)
  stored = numerics.learned_rounding(
    w, x, fmt, group_size=16, scale=scale, steps=50
  )
  assert stored.codes.dtype == np.int8
  assert stored.group_size == 16
  np.testing.assert_array_equal(stored.scale, scale)
  found = np.asarray(numerics.dequantize(stored), np.float64)
  down, up = (
    values(w, fmt, axis=0, group_size=16, scale=scale, mode=mode)
    for mode in ('down', 'up')
  )
  least = errors(w, x, found)
  for i in range(40):
    other = found.copy()
    other[i] = down[i] + up[i] - found[i]
    assert (errors(w, x, other) > least * 0.9999).all()


@by_name
def test_the_scale_is_the_best_of_its_candidates(fmt):
  random = np.random.default_rng(2)
  x = random.standard_t(3, size=(5, 33)).astype(np.float32)
  largest = np.asarray(numerics.absmax_scale(x, fmt, axis=1))
  tried = np.float32(np.arange(1, 21) / 20)[:, None, None] * largest
  error = [((values(x, fmt, axis=1, scale=s) - x) ** 2).sum(1) for s in tried]
  found = numerics.mse_scale(x, fmt, axis=1, candidates=20)
  np.testing.assert_allclose(
    ((values(x, fmt, axis=1, scale=found) - x) ** 2).sum(1),
    np.min(error, axis=0),
    rtol=1e-5,
  )
  whole = numerics.mse_scale(x, fmt)
  assert whole.shape == (1, 1)
  groups = numerics.mse_scale(jnp.asarray(x), fmt, axis=-1, group_size=8)
  assert groups.shape == (5, 5)
  alone = numerics.mse_scale(x[:, 8:16], fmt, axis=-1)
  np.testing.assert_allclose(groups[:, 1:2], alone, rtol=1e-6)


def test_arguments_are_checked():
  w, x = layer()
  with pytest.raises(ValueError, match=r'expected w \[in, out\] and x'):
    numerics.learned_rounding(w.T, x, numerics.int4)
  with pytest.raises(ValueError, match='steps'):
    numerics.learned_rounding(w, x, numerics.int4, steps=0)
  with pytest.raises(ValueError, match='candidates'):
    numerics.mse_scale(w, numerics.int4, candidates=0)
  with pytest.raises(TypeError, match='axis must be an int'):
    numerics.mse_scale(w, numerics.int4, group_size=8)
