"""Methods of FusionBench, from FusionBench and from here."""

import numpy as np
import pytest

import merging
from merging.dynamic import tall
from tests.peers import case
from tests.peers.case import KEY
from tests.peers.case import Row

_WEIGHTS = [0.5, 0.25, 1.0]
_ENCODER = r'^encoder.*weight$'
_SUM = {'merge_func': 'sum', 'remove_keys': []}

ROWS = (
  Row('average', merging.average, 'simple_average'),
  Row(
    'weighted_average',
    lambda: merging.weighted_average(_WEIGHTS),
    'weighted_average',
    {'normalize': True, 'weights': _WEIGHTS},
  ),
  Row(
    'linear_sum',
    lambda: merging.linear(_WEIGHTS, normalize=False),
    'weighted_average',
    {'normalize': False, 'weights': _WEIGHTS},
  ),
  Row(
    'slerp',
    lambda: merging.slerp(0.3, toward='law'),
    'slerp',
    {'t': 0.3},
    experts=2,
  ),
  Row(
    'task_arithmetic',
    lambda: merging.task_arithmetic(0.3),
    'task_arithmetic',
    {'scaling_factor': 0.3},
  ),
  Row(
    'ties',
    lambda: merging.ties(0.2, 0.3, combine='sum'),
    'ties',
    {'scaling_factor': 0.3, 'threshold': 20, **_SUM},
  ),
  Row(
    'ties_mean',
    lambda: merging.ties(0.2, 0.3),
    'ties',
    {
      'scaling_factor': 0.3,
      'threshold': 20,
      'merge_func': 'mean',
      'remove_keys': [],
    },
  ),
  Row(
    'ties_by_default',
    lambda: merging.ties(0.2, 0.3),
    'ties',
    {'scaling_factor': 0.3, 'threshold': 20, **_SUM},
    explained=(merging.ties, 'FusionBench adds instead of averaging'),
  ),
  Row(
    'dare_task_arithmetic',
    lambda: merging.dare(0.7, merging.task_arithmetic(0.3), key=KEY),
    'dare_task_arithmetic',
    {
      'scaling_factor': 0.3,
      'sparsity_ratio': 0.7,
      'only_on_linear_weights': False,
    },
    draws=True,
  ),
  Row(
    'dare_ties',
    lambda: merging.dare(0.7, merging.ties(0.2, 0.3, combine='sum'), key=KEY),
    'dare_ties',
    {
      'sparsity_ratio': 0.7,
      'only_on_linear_weights': False,
      'rescale': True,
      'scaling_factor': 0.3,
      'threshold': 20,
      **_SUM,
    },
    draws=True,
  ),
  Row(
    'model_stock_of_two',
    lambda: merging.model_stock(clip=False),
    'model_stock',
    experts=2,
  ),
  Row(
    'consensus',
    lambda: merging.consensus(0.3, 0.6, 2),
    'consensus',
    {'scale': 0.3, 'tall_mask_lambda': 0.6, 'k': 2},
  ),
  Row('tsv', lambda: merging.tsv(0.8), 'tsvm', {'alpha': 0.8}, atol=1e-5),
  Row(
    'tsv_of_four',
    lambda: merging.tsv(leaves='^((?!embedding).)*$'),
    'tsvm',
    {'exclude_keys': ['embedding.weight']},
    experts=4,
    atol=1e-5,
  ),
  Row(
    'iso_c',
    lambda: merging.iso_c(1.3),
    'iso_c',
    {'scaling_factor': 1.3},
    atol=1e-5,
  ),
  Row(
    'iso_cts',
    lambda: merging.iso_cts(1.5, 0.5, layout='out_in'),
    'iso_cts',
    {'scaling_factor': 1.5, 'common_space_fraction': 0.5},
    atol=1e-5,
  ),
  Row(
    'knots_ties',
    lambda: merging.knots(merging.ties(0.2), otherwise='base', layout='out_in'),
    'knots_ties',
    {'reset_thresh': 20, 'merge_func': 'mean'},
    atol=1e-5,
  ),
  Row(
    'opcm',
    lambda: merging.opcm(leaves='(encoder|head).*weight'),
    'opcm',
    {'alpha': 0.5, 'shuffle_order': False, 'save_on_every_step': False},
    atol=1e-5,
  ),
  Row(
    'wudi',
    lambda: merging.wudi(20, leaves='', otherwise='mean', layout='out_in'),
    'wudi',
    {'iter_num': 20},
    experts=2,
  ),
  Row(
    'doge',
    lambda: merging.doge(0.07, 0.3, leaves=_ENCODER, layout='out_in'),
    'doge',
    {'lamda': 0.07, 'K': 30, 'subspace': 6},
  ),
)


def _name(row):
  return row.name


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=_name)
def test_as_fusion_bench(row, fusion_bench):
  case.check(row, fusion_bench)


@pytest.mark.parametrize(
  'row', [row for row in ROWS if row.explained], ids=_name
)
def test_the_difference_is_explained(row):
  case.check_explained(row)


@pytest.mark.slow
def test_masks_restore_the_same_experts(fusion_bench):
  base, experts = case.models(ROWS[0])
  fusion_bench.load(base, experts)
  theirs = fusion_bench.merge('tall', {'tall_mask_lambda': 0.6}).params
  bundle = tall.compress(base, experts, 0.6)
  for name in experts:
    for path, leaf in tall.restore(bundle, base, name).items():
      np.testing.assert_allclose(theirs[f'{name}/{path}'], leaf, atol=1e-6)
