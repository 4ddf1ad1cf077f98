"""Averages, task arithmetic, TIES, DARE, and routing."""

import jax
import numpy as np

import merging
from tests.merging import fixtures
from tests.merging import oracles
from tests.merging.case import Merge

KEY = jax.random.key(5)
WEIGHTS = {'code': 0.5, 'math': 0.25, 'prose': 1.0}


def importance(base):
  """Weights, some of them zero, for all leaves but the head."""
  rng = np.random.default_rng(1)
  return {
    name: {
      path: rng.integers(0, 3, size=x.shape).astype(np.float32)
      for path, x in merging.tree.flatten(base).items()
      if path not in ('head', 'step')
    }
    for name in fixtures.NAMES
  }


def _importance_or_one(taus):
  given = importance(fixtures.models()[0])
  return {
    name: {
      path: given[name].get(path, np.ones_like(x)) for path, x in tau.items()
    }
    for name, tau in taus.items()
  }


def _split(taus, part):
  return {
    name: {path: x for path, x in tau.items() if part(path)}
    for name, tau in taus.items()
  }


def _matrices(taus):
  return _split(taus, lambda path: 'bias' not in path)


def _biases(taus):
  return _split(taus, lambda path: 'bias' in path)


MERGES = (
  Merge('average', merging.average, oracles.average),
  Merge(
    'weighted_average',
    lambda: merging.weighted_average(WEIGHTS),
    lambda taus: oracles.weighted_average(taus, WEIGHTS),
  ),
  Merge(
    'weighted_mean',
    lambda: merging.weighted_mean('importance'),
    lambda taus: oracles.fisher(taus, _importance_or_one(taus)),
    extra=lambda base: {'importance': importance(base)},
  ),
  Merge(
    'task_arithmetic',
    lambda: merging.task_arithmetic(0.3),
    lambda taus: oracles.task_arithmetic(taus, 0.3),
    vary=merging.task_arithmetic,
  ),
  Merge(
    'task_arithmetic_by_name',
    lambda: merging.task_arithmetic(WEIGHTS),
    lambda taus: oracles.weighted_sum(taus, WEIGHTS),
    variant=True,
  ),
  Merge(
    'negate',
    lambda: merging.negate(0.3),
    lambda taus: oracles.task_arithmetic(taus, -0.3),
    vary=merging.negate,
  ),
  Merge(
    'analogy',
    lambda: merging.analogy('code', 'math', 'prose', 0.5),
    lambda taus: oracles.weighted_sum(
      taus, {'code': -0.5, 'math': 0.5, 'prose': 0.5}
    ),
    vary=lambda scale: merging.analogy('code', 'math', 'prose', scale),
  ),
  Merge(
    'ties',
    lambda: merging.ties(0.3, 0.7),
    lambda taus: oracles.ties(taus, 0.3, 0.7),
    vary=lambda density: merging.ties(density, 0.7),
  ),
  Merge(
    'ties_index',
    lambda: merging.ties(0.3, ties='index'),
    lambda taus: oracles.ties(taus, 0.3, ties='index'),
    vary=lambda density: merging.ties(density, ties='index'),
  ),
  Merge(
    'ties_tensor_keep',
    lambda: merging.ties(0.3, scope='tensor', zero='keep'),
    lambda taus: oracles.ties(taus, 0.3, scope='tensor', zero='keep'),
    vary=lambda density: merging.ties(density, scope='tensor', zero='keep'),
    variant=True,
  ),
  Merge(
    'ties_mergekit',
    lambda: merging.ties(0.5, scope='tensor', ties='index', zero='positive'),
    lambda taus: oracles.ties(
      taus, 0.5, scope='tensor', ties='index', zero='positive'
    ),
    variant=True,
  ),
  Merge(
    'ties_sum',
    lambda: merging.ties(0.2, 0.3, combine='sum'),
    lambda taus: oracles.ties(taus, 0.2, 0.3, combine='sum'),
    variant=True,
  ),
  Merge(
    'dare_task_arithmetic',
    lambda: merging.dare(0.5, merging.task_arithmetic(0.4), key=KEY),
    lambda taus: oracles.task_arithmetic(oracles.drop(taus, 0.5, KEY), 0.4),
    vary=lambda rate: merging.dare(rate, merging.task_arithmetic(0.4), key=KEY),
  ),
  Merge(
    'dare_ties',
    lambda: merging.dare_ties(0.25, 0.3, key=KEY),
    lambda taus: oracles.ties(oracles.drop(taus, 0.25, KEY), 0.3),
    variant=True,
  ),
  Merge(
    'dare_linear_mergekit',
    lambda: merging.chain(
      merging.drop_and_rescale(0.5, key=KEY, rescale='l1'), merging.total()
    ),
    lambda taus: oracles.total(oracles.drop(taus, 0.5, KEY, 'l1')),
    sharded=1e-6,
    variant=True,
  ),
  Merge(
    'masked',
    lambda: merging.masked(merging.ties(0.3), '^((?!bias).)*$', 'mean'),
    lambda taus: (
      oracles.ties(_matrices(taus), 0.3) | oracles.average(_biases(taus))
    ),
    variant=True,
  ),
  Merge(
    'partition',
    lambda: merging.partition(
      {
        'matrix': merging.ties(0.3, ties='index'),
        'bias': merging.dare(0.5, merging.ties(0.5, scope='tensor'), key=KEY),
      },
      {'bias': 'bias', '.': 'matrix'},
    ),
    lambda taus: (
      oracles.ties(_matrices(taus), 0.3, ties='index')
      | oracles.ties(oracles.drop(_biases(taus), 0.5, KEY), 0.5, scope='tensor')
    ),
    variant=True,
  ),
)
