"""The methods of mergekit, from mergekit and from here."""

import pytest

import merging
from tests.peers import case
from tests.peers.case import KEY
from tests.peers.case import Row

_WEIGHTS = [0.5, 0.25, 1.0]


def _magprune(density, window):
  prune = merging.magprune(density, window, key=KEY, rescale='l1')
  return merging.on_matrices(prune, prune, layout='out_in')


ROWS = (
  Row(
    'linear',
    lambda: merging.linear(_WEIGHTS),
    'linear',
    {'weight': _WEIGHTS},
  ),
  Row(
    'linear_sum',
    lambda: merging.linear(_WEIGHTS, normalize=False),
    'linear',
    {'weight': _WEIGHTS, 'normalize': False},
  ),
  Row(
    'passthrough',
    lambda: merging.passthrough(0.5),
    'passthrough',
    {'scale': 0.5},
    experts=1,
  ),
  Row('slerp', lambda: merging.slerp(0.3), 'slerp', {'t': 0.3}, experts=1),
  Row(
    'slerp_of_near_models',
    lambda: merging.slerp(0.3),
    'slerp',
    {'t': 0.3},
    experts=1,
    size=0.01,
  ),
  Row(
    'nuslerp',
    lambda: merging.nuslerp([1.0, 3.0]),
    'nuslerp',
    {'weight': [1.0, 3.0], 'with_base': False},
    experts=2,
  ),
  Row(
    'nuslerp_of_deltas',
    lambda: merging.nuslerp([1.0, 3.0], of='deltas'),
    'nuslerp',
    {'weight': [1.0, 3.0]},
    experts=2,
  ),
  Row(
    'nuslerp_of_outputs',
    lambda: merging.nuslerp([1.0, 3.0], axis=1, layout='out_in'),
    'nuslerp',
    {'weight': [1.0, 3.0], 'with_base': False, 'nuslerp_flatten': False},
    experts=2,
  ),
  Row(
    'nuslerp_of_inputs',
    lambda: merging.nuslerp([1, 3], of='deltas', axis=0, layout='out_in'),
    'nuslerp',
    {'weight': [1, 3], 'nuslerp_flatten': False, 'nuslerp_row_wise': True},
    experts=2,
  ),
  Row(
    'multislerp',
    lambda: merging.multislerp(_WEIGHTS),
    'multislerp',
    {'weight': _WEIGHTS, 'with_base': False},
  ),
  Row(
    'multislerp_of_deltas',
    lambda: merging.multislerp(_WEIGHTS, of='deltas', normalize=False),
    'multislerp',
    {'weight': _WEIGHTS, 'normalize_weights': False},
  ),
  Row('karcher', merging.karcher, 'karcher', size=1.0),
  Row(
    'task_arithmetic',
    lambda: merging.chain(
      merging.task_arithmetic(dict(zip(case.NAMES, _WEIGHTS, strict=False))),
      merging.scale(0.7),
    ),
    'task_arithmetic',
    {'weight': _WEIGHTS, 'lambda': 0.7},
  ),
  Row(
    'task_arithmetic_normalised',
    lambda: merging.weighted_average(_WEIGHTS),
    'task_arithmetic',
    {'weight': _WEIGHTS, 'normalize': True},
  ),
  Row(
    'ties',
    lambda: merging.ties(
      0.25, 0.7, scope='tensor', ties='index', zero='positive'
    ),
    'ties',
    {'weight': 1.0, 'density': 0.25, 'lambda': 0.7},
  ),
  Row(
    'ties_dense',
    lambda: merging.ties(1.0, scope='tensor', ties='index', zero='positive'),
    'ties',
    {'weight': 1.0},
  ),
  Row(
    'ties_weighted',
    lambda: merging.chain(
      merging.trim(0.25, scope='tensor', ties='index'),
      merging.weigh(_WEIGHTS),
      merging.elect_sign(zero='positive'),
      merging.disjoint_mean(_WEIGHTS),
    ),
    'ties',
    {'weight': _WEIGHTS, 'density': 0.25},
  ),
  Row(
    'ties_by_default',
    lambda: merging.ties(0.25),
    'ties',
    {'weight': 1.0, 'density': 0.25},
    explained=(merging.ties, 'mergekit selects in each tensor'),
  ),
  Row(
    'dare_linear',
    lambda: merging.chain(
      merging.drop_and_rescale(0.7, key=KEY, rescale='l1'),
      merging.weigh(_WEIGHTS),
      merging.total(),
    ),
    'dare_linear',
    {'weight': _WEIGHTS, 'density': 0.3},
    draws=True,
  ),
  Row(
    'dare_ties',
    lambda: merging.chain(
      merging.drop_and_rescale(0.7, key=KEY, rescale='l1'),
      merging.elect_sign(zero='positive'),
      merging.total(),
    ),
    'dare_ties',
    {'weight': 1.0, 'density': 0.3},
    draws=True,
  ),
  Row(
    'dare_linear_by_default',
    lambda: merging.dare(0.7, merging.total(), key=KEY),
    'dare_linear',
    {'weight': 1.0, 'density': 0.3},
    draws=True,
    explained=(merging.drop_and_rescale, "mergekit does, with `'l1'`"),
  ),
  Row(
    'dare_ties_by_default',
    lambda: merging.dare_ties(0.7, 1.0, key=KEY),
    'dare_ties',
    {'weight': 1.0, 'density': 0.3},
    draws=True,
    explained=(merging.dare_ties, "mergekit's method of this name does not"),
  ),
  Row(
    'breadcrumbs',
    lambda: merging.breadcrumbs(0.25, 0.25, 0.4),
    'breadcrumbs',
    {'weight': 1.0, 'density': 0.5, 'gamma': 0.25, 'lambda': 0.4},
  ),
  Row(
    'breadcrumbs_ties',
    lambda: merging.breadcrumbs(0.25, 0.25, 1.0, weights=_WEIGHTS, elect=True),
    'breadcrumbs_ties',
    {'weight': _WEIGHTS, 'density': 0.5, 'gamma': 0.25},
  ),
  Row(
    'breadcrumbs_of_uneven_parts',
    lambda: merging.breadcrumbs(0.29, 0.01, 1.0),
    'breadcrumbs',
    {'weight': 1.0, 'density': 0.7, 'gamma': 0.01},
    explained=(
      merging.breadcrumbs,
      'it counts what is kept, which may differ by one entry',
    ),
  ),
  Row(
    'della',
    lambda: merging.della(
      0.6,
      0.7,
      window=0.4,
      key=KEY,
      rescale='l1',
      weights=_WEIGHTS,
      layout='out_in',
    ),
    'della',
    {'weight': _WEIGHTS, 'density': 0.6, 'epsilon': 0.2, 'lambda': 0.7},
    draws=True,
  ),
  Row(
    'della_sum',
    lambda: merging.della(
      0.6,
      1.0,
      window=0.4,
      key=KEY,
      rescale='none',
      combine='sum',
      layout='out_in',
    ),
    'della',
    {
      'weight': 1.0,
      'density': 0.6,
      'epsilon': 0.2,
      'rescale': False,
      'normalize': False,
    },
    draws=True,
  ),
  Row(
    'della_linear',
    lambda: merging.chain(_magprune(0.6, 0.3), merging.total()),
    'della_linear',
    {'weight': 1.0, 'density': 0.6},
    draws=True,
  ),
  Row(
    'della_by_default',
    lambda: merging.della(0.6, 1.0, window=0.3, key=KEY, layout='out_in'),
    'della',
    {'weight': 1.0, 'density': 0.6},
    draws=True,
    explained=(
      merging.della,
      'mergekit restores the norm of a tensor instead of dividing',
    ),
  ),
  Row('sce', merging.sce, 'sce'),
  Row('sce_sparse', lambda: merging.sce(0.25), 'sce', {'select_topk': 0.25}),
  Row(
    'sce_of_small_changes',
    lambda: merging.sce(0.25),
    'sce',
    {'select_topk': 0.25},
    size=4e-4,
    explained=(merging.sce, 'mean squares add up to less than 1e-6'),
  ),
  Row('ram', lambda: merging.ram(0.08), 'ram', {'epsilon': 0.08}),
  Row(
    'ramplus',
    lambda: merging.ramplus(0.3, 0.9, 0.12, scope='tensor'),
    'ramplus_tl',
    {'r': 0.3, 'alpha': 0.9, 'epsilon': 0.12},
  ),
  Row(
    'model_stock',
    lambda: merging.model_stock(clip=False),
    'model_stock',
  ),
  Row(
    'model_stock_of_outputs',
    lambda: merging.model_stock(clip=False, axis=1, layout='out_in'),
    'model_stock',
    {'filter_wise': True},
    atol=2e-6,
  ),
  Row(
    'model_stock_by_default',
    merging.model_stock,
    'model_stock',
    explained=(
      merging.model_stock,
      'Without, as in mergekit, opposed deltas move the base backward',
    ),
  ),
  Row(
    'nearswap',
    lambda: merging.nearswap(0.08),
    'nearswap',
    {'t': 0.08},
    experts=1,
  ),
  Row(
    'arcee_fusion',
    lambda: merging.arcee_fusion(layout='out_in'),
    'arcee_fusion',
    experts=1,
  ),
)


def _name(row):
  return row.name


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=_name)
def test_as_mergekit(row, mergekit):
  case.check(row, mergekit)


@pytest.mark.parametrize(
  'row', [row for row in ROWS if row.explained], ids=_name
)
def test_the_difference_is_explained(row):
  case.check_explained(row)


@pytest.mark.slow
def test_all_methods_are_compared(mergekit):
  covered = {row.method for row in ROWS}
  assert covered == set(mergekit.methods)
