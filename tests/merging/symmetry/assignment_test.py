"""The assignment solver against brute force and SciPy."""

import itertools

import numpy as np
import pytest
import scipy.optimize

from merging.symmetry import assignment


@pytest.mark.parametrize('size', range(6))
def test_no_permutation_is_cheaper(size):
  rng = np.random.default_rng(size)
  for kind in ('real', 'ties', 'equal'):
    cost = {
      'real': rng.normal(size=(size, size)),
      'ties': rng.integers(-2, 2, (size, size)).astype(float),
      'equal': np.ones((size, size)),
    }[kind]
    found = assignment.solve(cost)
    assert sorted(found) == list(range(size))
    best = min(
      sum(cost[i, j] for i, j in enumerate(order))
      for order in itertools.permutations(range(size))
    )
    np.testing.assert_allclose(cost[np.arange(size), found].sum(), best)


@pytest.mark.parametrize('kind', ['real', 'ties', 'low rank'])
def test_large_problems_match_scipy(kind):
  rng = np.random.default_rng(3)
  cost = {
    'real': rng.normal(size=(90, 90)),
    'ties': rng.integers(0, 4, (90, 90)).astype(float),
    'low rank': rng.normal(size=(90, 2)) @ rng.normal(size=(2, 90)),
  }[kind]
  found = assignment.solve(cost)
  assert sorted(found) == list(range(90))
  rows, columns = scipy.optimize.linear_sum_assignment(cost)
  np.testing.assert_allclose(
    cost[np.arange(90), found].sum(), cost[rows, columns].sum()
  )


def test_errors():
  with pytest.raises(ValueError, match=r'square matrix of costs, got .*\(2, 3'):
    assignment.solve(np.zeros((2, 3)))
  with pytest.raises(ValueError, match='NaN'):
    assignment.solve(np.array([[np.nan]]))
