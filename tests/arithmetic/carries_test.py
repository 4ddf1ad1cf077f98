"""Carries as they are done by hand, and samples balanced by them."""

import collections

import jax
import numpy as np
import pytest

from arithmetic import tasks


def _by_hand(a, b):
  """Count, longest chain and longest ripple of a sum, digit by digit."""
  width, carried, marks = max(len(a), len(b)), 0, ''
  for i in range(1, width + 1):
    total = int(a.zfill(width)[-i]) + int(b.zfill(width)[-i])
    ripples = total == 9 and carried
    carried = int(total + carried > 9)
    marks += 'r' if ripples else 'c' if carried else '.'
  chains = marks.replace('r', 'c').split('.')
  ripples = marks.replace('c', '.').split('.')
  return len(marks.replace('.', '')), *(
    max(map(len, x)) for x in (chains, ripples)
  )


def test_carries_by_hand():
  rng = np.random.default_rng(0)
  pairs = [
    tuple(str(rng.integers(0, 10**n)) for n in rng.integers(1, 9, 2))
    for _ in range(1000)
  ]
  pairs += [('99999999', '1'), ('5', '5'), ('55555555', '44444445')]
  operands = tuple(tasks.from_strings(x, 8) for x in zip(*pairs, strict=True))
  found = np.stack(tasks.carries(operands), axis=1)
  np.testing.assert_array_equal(found, [_by_hand(*pair) for pair in pairs])
  sums = [sum(map(int, x + y + str(int(x) + int(y)))) for x, y in pairs]
  digits = [sum(map(int, str(int(x) + int(y)))) for x, y in pairs]
  # Nine for every carry is lost from the sum of the digits.
  np.testing.assert_array_equal(
    found[:, 0], [(s - 2 * d) // 9 for s, d in zip(sums, digits, strict=True)]
  )


def test_every_number_of_carries_is_as_frequent_as_it_should_be():
  draw = jax.jit(
    lambda key: tasks.sample_carrying(
      key, 60_000, digits=2, carry_weights=(1, 2, 3)
    )
  )
  written = list(
    zip(*map(tasks.to_strings, draw(jax.random.key(0))), strict=True)
  )
  by_count = collections.defaultdict(collections.Counter)
  for pair in written:
    by_count[_by_hand(*pair)[0]][pair] += 1
  share = [by_count[n].total() / 60_000 for n in range(3)]
  np.testing.assert_allclose(share, [1 / 6, 2 / 6, 3 / 6], atol=0.01)
  possible = collections.defaultdict(set)
  for a in range(10, 100):
    for b in range(10, 100):
      possible[_by_hand(str(a), str(b))[0]].add((str(a), str(b)))
  for n in range(3):
    # All pairs that carry so often, each equally likely.
    assert set(by_count[n]) <= possible[n]
    mean = by_count[n].total() / len(possible[n])
    counts = [by_count[n][pair] for pair in possible[n]]
    chi = sum((x - mean) ** 2 for x in counts) / mean
    freedom = len(counts) - 1
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


def test_stored_sums_have_the_published_composition():
  pairs = tasks.balanced_sums(10_000, seed=0)
  assert len(pairs) == 10_000
  assert {(str(a), str(b)) for a in range(10) for b in range(10)} <= set(pairs)
  # The published set of 10,000 has 9,891 different sums.
  assert 9_800 < len(set(pairs)) < 9_950
  counts = collections.Counter(_by_hand(*pair)[0] for pair in pairs)
  # At most 2,250 of 9,000, 300 of 900 and 55 of 100 carry once, and so on.
  assert counts[3] == 2_250
  assert all(2_200 < counts[n] <= 2_250 + 300 + 55 for n in range(3))
  large = sum(max(map(len, pair)) == 3 for pair in pairs)
  assert 8_800 < large <= 9_000
  assert tasks.balanced_sums(500, seed=1) == tasks.balanced_sums(500, seed=1)
  with pytest.raises(ValueError, match='size=50'):
    tasks.balanced_sums(50, seed=0)


def test_weights_that_make_no_sense():
  for weights in [(1, 1), (0, 0, 0), (-1, 1, 1)]:
    with pytest.raises(ValueError, match='each of 0 to 2 carries'):
      tasks.sample_carrying(
        jax.random.key(0), 4, digits=2, carry_weights=weights
      )
