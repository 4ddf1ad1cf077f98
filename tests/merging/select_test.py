"""Selection against NumPy's sort, and counts against Python's integers."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import select


def as_int(count):
  high, low = (int(word) for word in count)
  return high * 2**16 + low


numbers = st.integers(0, 2**47 - 1)


@hypothesis.given(numbers, numbers)
def test_counts_are_integers(a, b):
  pair = select.count_of_ints([a, b])
  x, y = pair[:, 0], pair[:, 1]
  assert as_int(x) == a
  assert bool(select.less(x, y)) == (a < b)
  assert as_int(select.subtract(x, y)) == max(a - b, 0)
  assert as_int(select.carry(x + y)) == a + b
  assert int(select.saturate(x)) == min(a, 2**32 - 1)


def test_counts_of_many_large_leaves_add_up():
  leaves = [2**32 - 1 - i for i in range(300)]
  total = sum(np.asarray(select.count(jnp.uint32(n))) for n in leaves)
  assert as_int(select.carry(total)) == sum(leaves)
  running = select.cumulative(select.count_of_ints(leaves))
  assert as_int(running[:, -1]) == sum(leaves)


@hypothesis.given(st.floats(0, 1), st.integers(0, 10**12))
def test_a_python_density_is_exact(density, size):
  kept = select.kept(density, [size])
  assert as_int(kept[:, 0]) == int(size * density)


@hypothesis.given(st.floats(0, 1, width=32), st.integers(0, 2**40))
def test_a_traced_density_is_rounded_to_float32(density, size):
  kept = as_int(select.kept(jnp.float32(density), [size])[:, 0])
  assert kept <= size
  assert abs(kept - int(size * density)) <= 1 + size * density * 2**-22


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_magnitude_bits_sort_like_magnitudes(dtype):
  x = jnp.array([0.0, -0.0, 1e-6, -2e-6, 1.0, -1.5, 3e4, -jnp.inf], dtype)
  bits = np.asarray(select.magnitude_bits(x)).astype(np.int64)
  assert bits[0] == bits[1] == 0
  assert np.all(np.diff(bits[1:]) > 0)


def test_magnitudes_beyond_float32_are_refused():
  with jax.enable_x64(True), pytest.raises(TypeError, match='float64; cast'):
    select.magnitude_bits(jnp.ones(2, jnp.float64))


kth_smallest = jax.jit(select.kth_smallest)


@jax.jit
def by_histograms(bits, rank):
  upper = select.pick_upper(select.upper_histogram(bits), rank)
  return select.pick_lower(select.lower_histogram(bits, upper), upper)


@hypothesis.given(st.integers(0, 2**32 - 1), st.booleans())
@hypothesis.settings(max_examples=20)
def test_kth_smallest_is_that_of_a_sort(seed, lattice):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, 40)).astype(np.float32)
  if lattice:
    x = np.round(x * 2) / 2
  bits = [select.magnitude_bits(row) for row in jnp.asarray(x)]
  ranks = rng.integers(1, 41, size=2)
  ordered = np.sort(np.abs(x), axis=1)
  expected = ordered[np.arange(2), ranks - 1]

  found = kth_smallest(bits, jnp.asarray(ranks))
  np.testing.assert_array_equal(np.asarray(found).view(np.float32), expected)
  kth = by_histograms(bits, select.count(jnp.asarray(ranks)))
  np.testing.assert_array_equal(kth.bits, found)
  equal = np.abs(x) == expected[:, None]
  smaller = np.abs(x) < expected[:, None]
  np.testing.assert_array_equal(kth.equal[1], equal.sum(axis=1))
  np.testing.assert_array_equal(kth.place[1], ranks - smaller.sum(axis=1))


def test_ranks_out_of_range_find_the_ends():
  bits = [select.magnitude_bits(jnp.array([1.0, 2.0, jnp.inf]))]
  for rank, low in ((0, True), (4, False)):
    one = kth_smallest(bits, rank)
    other = by_histograms(bits, select.count(jnp.array([rank]))).bits
    for found in (one, other):
      assert int(found[0]) == 0 if low else int(found[0]) > int(bits[0][2])


def test_a_model_larger_than_32_bits_is_selected_from():
  # 2**34 entries in two bins, as a sweep over many leaves would have them.
  small, large = (select.magnitude_bits(jnp.float32(x))[0] for x in (1, 2))
  histogram = np.zeros((2, 1, 2**15), np.uint32)
  for bits, entries in ((small, 2**34 - 5), (large, 5)):
    histogram[:, 0, int(bits) >> 16] = divmod(entries, 2**16)
  for rank, expected in ((2**34 - 5, small), (2**34 - 4, large)):
    upper = select.pick_upper(histogram, select.count_of_ints([rank]))
    assert int(upper.bits[0]) == int(expected) >> 16 << 16
  assert as_int(upper.place[:, 0]) == 1
  assert as_int(upper.equal[:, 0]) == 5
