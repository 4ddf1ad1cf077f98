"""Trimming: which entries are kept, and how many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import fixtures
from tests.merging import oracles


def trim(density, leaves, **options):
  """Trims one expert's leaves over a base of zeros."""
  expert = {path: jnp.asarray(x, jnp.float32) for path, x in leaves.items()}
  base = jax.tree.map(jnp.zeros_like, expert)
  transform = merging.trim(density, **options)
  merged = merging.merge(transform, base, {'expert': expert})
  return {path: np.asarray(x) for path, x in merged.items()}


@pytest.mark.parametrize('scope', ['global', 'tensor'])
@pytest.mark.parametrize('ties', ['threshold', 'index'])
@pytest.mark.parametrize('density', [0.0, 0.01, 0.3, 0.5, 0.99, 1.0])
def test_equals_the_oracle_on_a_lattice(density, ties, scope):
  _, experts = fixtures.part(*fixtures.models('lattice'), 'bias', 'wide')
  leaves = {path: np.asarray(x) for path, x in experts['math'].items()}
  trimmed = trim(density, leaves, ties=ties, scope=scope)
  expected = oracles.trim_one(
    {path: leaves[path] for path in sorted(leaves)}, density, scope, ties
  )
  for path, x in trimmed.items():
    np.testing.assert_array_equal(x, expected[path])


def test_a_large_leaf_is_selected_from_exactly():
  rng = np.random.default_rng(0)
  x = rng.integers(-500, 500, size=2**18 + 1).astype(np.float32)
  for ties in ('threshold', 'index'):
    trimmed = trim(0.2, {'w': x}, scope='tensor', ties=ties)
    expected = oracles.trim_one({'w': x}, 0.2, 'tensor', ties)
    np.testing.assert_array_equal(trimmed['w'], expected['w'])


@pytest.mark.parametrize('scope', ['global', 'tensor'])
@pytest.mark.parametrize('ties', ['threshold', 'index'])
def test_a_density_of_one_is_the_identity(ties, scope):
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  one, other = (
    merging.merge(merging.chain(*before, merging.total()), base, experts)
    for before in ((merging.trim(1.0, ties=ties, scope=scope),), ())
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_threshold_keeps_one_more_and_all_ties():
  assert trim(0.25, {'w': [1, 2, 3, 4, 5, 6, 7, 8]})['w'].tolist() == (
    [0, 0, 0, 0, 0, 6, 7, 8]
  )
  assert trim(0.25, {'w': [3, -3, 3, 1]})['w'].tolist() == [3, -3, 3, 0]


def test_index_keeps_the_first_of_equals_in_the_order_of_paths():
  leaves = {'b': [2, 2], 'a': [1, 2], 'c/1': [2, 5]}
  trimmed = trim(0.5, leaves, ties='index')
  assert {path: x.tolist() for path, x in trimmed.items()} == {
    'a': [0, 2],
    'b': [2, 0],
    'c/1': [0, 5],
  }
  trimmed = trim(0.5, leaves, ties='index', scope='tensor')
  assert {path: x.tolist() for path, x in trimmed.items()} == {
    'a': [0, 2],
    'b': [2, 0],
    'c/1': [0, 5],
  }


def test_experts_are_trimmed_apart():
  base = {'w': jnp.zeros(2)}
  experts = {
    'a': {'w': jnp.array([1.0, 2.0])},
    'b': {'w': jnp.array([90.0, 80])},
  }
  transform = merging.chain(merging.trim(0.5, ties='index'), merging.total())
  assert merging.merge(transform, base, experts)['w'].tolist() == [90, 2]


@pytest.mark.parametrize('scope', ['global', 'tensor'])
def test_a_traced_density_keeps_the_same(scope):
  _, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  leaves = experts['math']
  for density in (0.0, 0.25, 0.5, 1.0):
    fixed = trim(density, leaves, scope=scope, ties='index')
    traced = trim(jnp.float32(density), leaves, scope=scope, ties='index')
    jax.tree.map(np.testing.assert_array_equal, fixed, traced)


def test_the_density_is_a_fraction():
  for density in (20, -0.1, float('nan')):
    with pytest.raises(ValueError, match=r'expected a fraction .* 20 % is 0.2'):
      merging.trim(density)


def test_options_are_checked():
  with pytest.raises(ValueError, match=r"scope is 'globe', .* mean 'global'"):
    merging.trim(0.2, scope='globe')
  with pytest.raises(ValueError, match="ties is 'first', expected one of"):
    merging.trim(0.2, ties='first')
