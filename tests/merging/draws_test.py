"""Random numbers: those of Threefry, at every place, and evenly spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import draws
from merging import transform

# Of Random123, kat_vectors: counter, key, block.
_KNOWN = (
  ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
  ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
  (
    (0x243F6A88, 0x85A308D3),
    (0x13198A2E, 0x03707344),
    (0xC4923A9C, 0x483DF7A0),
  ),
)


@pytest.mark.parametrize(('counter', 'key', 'block'), _KNOWN)
def test_threefry_gives_the_blocks_its_authors_publish(counter, key, block):
  for xp in (np, jnp):
    words = (xp.array([word], np.uint32) for word in (*key, *counter))
    first, second, high, low = words
    found = draws.threefry((first, second), high, low)
    assert tuple(int(word[0]) for word in found) == block


def drawn(key, size, start=0, path='w', name='a'):
  """The numbers of one expert for a leaf without a change."""
  spec = transform.LeafSpec(path, (size,), np.dtype(np.float32))
  seeds = draws.seeds(key, (spec,), (name,))
  zero = jnp.zeros(size)
  leaf = transform.Leaf(zero, (zero,), 0, start=np.uint32(start))
  [numbers] = jax.jit(draws.uniforms, static_argnums=0)('test', leaf, seeds)
  return np.asarray(numbers)


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_they_are_those_of_jax(impl):
  key = jax.random.key(3, impl=impl)
  path, name = draws.hashes(['w', 'a'])
  own = jax.random.fold_in(jax.random.fold_in(key, path), name)
  expected = jax.random.uniform(own, 1000)
  np.testing.assert_array_equal(drawn(key, 1000), expected)


@pytest.mark.parametrize('start', [0, 1, 999, 2**31 - 1000])
def test_a_piece_has_the_numbers_of_its_places(start):
  key = jax.random.key(0)
  whole = drawn(key, 1000, start)
  parts = [drawn(key, 250, start + at) for at in range(0, 1000, 250)]
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def chi_square(counts):
  """How many standard deviations a statistic of many cells is off."""
  expected = counts.sum() / counts.size
  statistic = float((np.square(counts - expected) / expected).sum())
  freedom = counts.size - 1
  return (statistic - freedom) / np.sqrt(2 * freedom)


def bins(numbers, count=64):
  return (numbers * count).astype(np.int64)


def test_they_are_uniform_and_independent():
  # 2**20 numbers; 4 standard deviations are passed once in 10,000 tests, and
  # what is drawn here never changes.
  key, size, count = jax.random.key(1), 1 << 20, 64
  one = bins(drawn(key, size))
  assert abs(chi_square(np.bincount(one, minlength=count))) < 4
  others = {
    'the next entry': np.roll(one, 1),
    'the next row': np.roll(one, 1024),
    'another expert': bins(drawn(key, size, name='b')),
    'another leaf': bins(drawn(key, size, path='v')),
    'another seed': bins(drawn(jax.random.key(2), size)),
  }
  for name, other in others.items():
    pairs = np.bincount(count * one + other, minlength=count * count)
    assert abs(chi_square(pairs)) < 4, name
  # The last bits too: two halves of the 23 bits that a number has.
  last = (drawn(key, size) * 2**23).astype(np.int64) % count
  assert abs(chi_square(np.bincount(last, minlength=count))) < 4
  pairs = np.bincount(count * one + last, minlength=count * count)
  assert abs(chi_square(pairs)) < 4


def test_hashes_are_the_same_in_every_process():
  assert draws.hashes(['a/b', '']).tolist() == [0x7F4401C, 0]
