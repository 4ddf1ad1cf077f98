"""Quartet against the words of its official code, in NumPy, and statistics."""

import bisect
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics.training import quartet

GRID = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
ENDS = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
POLICY = numerics.Policy(matmul=numerics.Precision(product=numerics.Quartet()))


def walsh(size):
  """Signs by the parity of common bits."""
  bits = np.arange(size)
  parity = [[bin(i & j).count('1') % 2 for j in bits] for i in bits]
  return (1 - 2 * np.array(parity)) / np.sqrt(size)


def rotated(x):
  """Blocks of 32 of the last axis, times the matrix, in float64."""
  return x.reshape(*x.shape[:-1], -1, 32).astype(np.float64) @ walsh(32)


def quest(x, power=np.floor):
  """Values, and which of them do not saturate, block by block."""
  values, inside = np.empty_like(x), np.empty(x.shape, bool)
  for place in np.ndindex(x.shape[:-1]):
    block = x[place]
    variance = np.mean(block**2) - np.mean(block) ** 2
    deviation = np.sqrt(max(variance, 0.0))
    scale = 2.0 ** power(np.log2(2.92247856 / 6 * deviation + 1e-8))
    for i, number in enumerate(block / scale):
      # Strictly beyond an end is the next value: ties go toward zero.
      value = GRID[bisect.bisect_left(ENDS, abs(number))]
      values[(*place, i)] = np.copysign(value, number) * scale
      inside[(*place, i)] = abs(number) < 6
  return values, inside


@functools.cache
def operands():
  random = np.random.default_rng(0)
  x = random.normal(size=(6, 64)) * np.exp(random.normal(size=(6, 1)))
  x[0, 7] = 9.0  # So that something saturates.
  w = random.normal(size=(64, 40)) / 8
  return x.astype(np.float32), w.astype(np.float32)


def test_the_forward_pass_is_that_of_the_official_code():
  x, w = operands()
  left, _ = quest(rotated(x))
  right, _ = quest(rotated(w.T))
  expected = np.einsum('mgk,ngk->mn', left, right)
  found = numerics.emulate(jnp.matmul, POLICY)(
    x, w, rounding_key=jax.random.key(0)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('scale_round', 'power', 'error'),
  [
    ('floor', np.floor, 0.0224),
    ('nearest', np.rint, 0.0134),
    ('ceil', np.ceil, 0.0155),
  ],
)
def test_scales_and_their_errors(scale_round, power, error):
  random = np.random.default_rng(1)
  deviation = 2.0 ** random.uniform(size=(2**13, 1))
  x = (random.normal(size=(2**13, 32)) * deviation).astype(np.float32)
  x[:3, :] = [[0.0], [1e-12], [3.0]]  # No deviation: scales of 2**-27.
  found = jax.jit(quartet.quest, static_argnums=1)(x, scale_round)
  found = np.asarray(found, np.float64)
  few = x[:99].astype(np.float64)
  np.testing.assert_array_equal(found[:99], quest(few, power)[0])
  relative = np.mean(((found - x) / deviation)[3:] ** 2)
  np.testing.assert_allclose(relative, error, rtol=0.02)


def test_ties_go_toward_zero():
  x = np.zeros(32, np.float32)
  ends = np.float32(ENDS)
  above = np.nextafter(ends, np.float32(9))
  # Pairs of opposite numbers, whose deviation makes the scale 1.
  x[:14] = np.concatenate([ends, -ends])
  x[14:28] = np.concatenate([above, -above])
  found = np.asarray(quartet.quest(jnp.asarray(x), 'floor'))
  np.testing.assert_array_equal(found[:7], GRID[:-1])
  np.testing.assert_array_equal(found[14:21], GRID[1:])
  np.testing.assert_array_equal(found[7:14], -found[:7])


def test_room_for_the_largest_costs_what_is_known_and_no_bias():
  x = jax.random.normal(jax.random.key(0), (2**14, 32))
  found = jax.jit(quartet.unsaturated)(x, jax.random.key(1))
  x, found = np.asarray(x, np.float64), np.asarray(found, np.float64)
  # A group is measured against its own numbers, as the anchor was.
  relative = np.mean((found - x) ** 2) / np.mean(x**2)
  np.testing.assert_allclose(relative, 0.02817, rtol=0.01)
  share = np.sum(x * (found - x)) / np.sum(x * x)
  deviation = np.sqrt(np.sum((x * (found - x)) ** 2)) / np.sum(x * x)
  assert abs(share) < 4 * deviation
  assert np.abs(found).max() < 2 * np.abs(x).max()


def test_the_backward_pass_is_right_on_average():
  """Its two products, against float64 of the rounded operands."""
  x, w = operands()
  g = np.random.default_rng(2).normal(size=(6, 40)).astype(np.float32)
  left, left_inside = quest(rotated(x))
  right, right_inside = quest(rotated(w.T))
  wide = g.astype(np.float64)
  dx = (np.einsum('mn,ngk->mgk', wide, right) * left_inside) @ walsh(32)
  dw = (np.einsum('mn,mgk->ngk', wide, left) * right_inside) @ walsh(32)
  assert not left_inside.all()
  f = numerics.emulate(jnp.matmul, POLICY)

  @jax.jit
  def draw(keys):
    def one(key):
      _, pull = jax.vjp(lambda x, w: f(x, w, rounding_key=key), x, w)
      return jnp.concatenate([jnp.ravel(each) for each in pull(g)])

    return jax.lax.map(one, keys, batch_size=256)

  draws = np.asarray(draw(jax.random.split(jax.random.key(3), 2048)))
  expected = np.concatenate([dx.ravel(), dw.reshape(40, 64).T.ravel()])
  deviation = draws.std(axis=0, dtype=np.float64) / np.sqrt(len(draws))
  z = (draws.mean(axis=0, dtype=np.float64) - expected)[deviation > 0]
  z = z / deviation[deviation > 0]
  assert z.size > 2500
  # Of so many normal numbers the largest is about 3.5.
  assert np.abs(z).max() < 5
  np.testing.assert_allclose(np.mean(z**2), 1, atol=0.15)
  # Sums of all, with signs, are within four deviations too.
  signs = np.random.default_rng(4).choice([-1.0, 1.0], (expected.size, 8))
  sums, wanted = draws @ signs, expected @ signs
  error = np.abs(sums.mean(axis=0) - wanted)
  assert (error < 4 * sums.std(axis=0) / np.sqrt(len(draws))).all()


def test_what_it_refuses():
  with pytest.raises(ValueError, match='scale_round must be one of floor'):
    numerics.Quartet('even')
