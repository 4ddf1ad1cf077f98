"""Experts with settings of their own: as each alone, and out of core too."""

import jax
import numpy as np
import pytest

import merging
from tests.merging import drive
from third_party.mergekit import apart
from third_party.mergekit import methods

KEY = jax.random.key(3)
SHAPE = (8, 6)
SPEC = merging.LeafSpec('w', SHAPE, np.dtype(np.float32))
DENSITIES = {'a': 0.5, 'b': 1.0, 'c': 0.3}


def models():
  """A base, and changes on a lattice, many of which are equal."""
  rng = np.random.default_rng(0)
  base = {'w': np.zeros(SHAPE, np.float32)}
  experts = {
    name: {'w': (rng.integers(-4, 5, SHAPE) / 16).astype(np.float32)}
    for name in DENSITIES
  }
  return base, experts


@pytest.mark.parametrize(
  ('method', 'rescale'),
  [
    ('ties', False),
    ('ties', True),
    ('breadcrumbs', False),
    ('dare_linear', True),
    ('dare_ties', False),
    ('della', True),
    ('della_linear', False),
  ],
)
def test_densities_that_differ_need_no_leaf_in_memory(method, rescale):
  tensor = methods.Tensor(
    merge={'normalize': False, 'lambda': 1.0, 'rescale': rescale},
    experts={
      name: {'weight': 0.5, 'density': x, 'epsilon': 0.1, 'gamma': 0.1}
      for name, x in DENSITIES.items()
    },
    shape=SHAPE,
    based=True,
    key=KEY,
  )
  transform = methods.METHODS[method].build(tensor)
  transform.init((SPEC,), tuple(DENSITIES))
  if (method, rescale) != ('ties', True):  # Its sums are of what is left.
    assert transform.entrywise(SPEC) or transform.selection(SPEC)
  base, experts = models()
  merged = merging.merge(transform, base, experts)['w']
  streamed = drive.stream(transform, base, experts, piece=15)['w']
  np.testing.assert_allclose(streamed, merged, rtol=1e-6, atol=1e-7)


def test_each_is_as_alone():
  steps = {
    name: merging.magprune(x, 0.2 if x < 1 else 0.0, key=KEY, rescale='l1')
    for name, x in DENSITIES.items()
  }
  base, experts = models()
  for name, step in steps.items():
    weights = {each: float(each == name) for each in steps}
    together = merging.chain(
      apart.apart(steps), merging.weigh(weights), merging.total()
    )
    alone = merging.chain(step, merging.total())
    wanted = merging.merge(alone, base, {name: experts[name]})['w']
    for found in (
      merging.merge(together, base, experts)['w'],
      drive.stream(together, base, experts, piece=15)['w'],
    ):
      np.testing.assert_allclose(found, wanted, rtol=1e-6)
