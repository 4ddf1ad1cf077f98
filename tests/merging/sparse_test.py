"""Sparse merges and competition: laws, edges, and options of the table's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import ranks
from merging import references
from merging import select
from merging.deltas import outlying
from tests.merging import fixtures
from tests.merging import oracles
from tests.merging.cases import sparse

KEY = sparse.KEY


def merged(transform, taus):
  """Merges task vectors over a base of zeros."""
  experts = {
    name: {path: jnp.asarray(x, jnp.float32) for path, x in tau.items()}
    for name, tau in taus.items()
  }
  base = jax.tree.map(jnp.zeros_like, next(iter(experts.values())))
  out = merging.merge(transform, base, experts)
  return {path: np.asarray(x) for path, x in out.items()}


def one(transform, *values):
  """Merges task vectors of one leaf."""
  taus = {f'e{i}': {'w': np.asarray(x)} for i, x in enumerate(values)}
  return merged(transform, taus)['w']


def draw(*shape, seed=0, number=3):
  rng = np.random.default_rng(seed)
  return list(rng.normal(size=(number, *shape)).astype(np.float32))


def test_ranks_are_those_of_a_stable_sort():
  x = np.random.default_rng(0).integers(-3, 4, size=(5, 20)).astype(np.float32)
  rows = [select.magnitude_bits(jnp.asarray(row)) for row in x]
  order = np.argsort(np.abs(x), axis=1, kind='stable')
  last = np.argsort(-np.abs(x), axis=1, kind='stable')
  place = np.asarray(ranks.places(jnp.abs(x)))
  np.testing.assert_array_equal(np.argsort(place, axis=1), order)
  for number in (0, 1, 7, 20):
    found = ranks.smallest(rows, number), ranks.largest(rows, number)
    for masks, ordered in zip(found, (order, last), strict=True):
      for mask, row in zip(masks, ordered, strict=True):
        assert set(np.flatnonzero(mask)) == set(row[:number])


def test_without_a_window_magprune_is_dare():
  values = draw(4, 6)
  for rescale in ('expectation', 'l1', 'none'):
    found, expected = (
      one(merging.chain(drop, merging.total()), *values)
      for drop in (
        merging.magprune(0.5, 0.0, key=KEY, rescale=rescale),
        merging.drop_and_rescale(0.5, key=KEY, rescale=rescale),
      )
    )
    np.testing.assert_array_equal(found, expected)


def test_magprune_keeps_the_expectation_and_large_changes_more_often():
  expert = {'w': jnp.linspace(-1, 1, 40)}

  def sample(key):
    transform = merging.magprune(0.5, 0.8, key=key)
    base = {'w': jnp.zeros(40)}
    return merging.merge(transform, base, {'a': expert})['w']

  number = 400
  samples = np.asarray(jax.vmap(sample)(jax.random.split(KEY, number)))
  place = np.argsort(np.argsort(np.abs(expert['w']), stable=True))
  rate = 0.1 + 0.8 * place / 39
  kept = (samples != 0).mean(axis=0)
  spread = np.sqrt(rate * (1 - rate) / number)
  assert np.all(np.abs(kept - rate) < 5 * spread)
  deviation = np.abs(expert['w']) * spread / rate
  gap = np.abs(samples.mean(axis=0) - expert['w'])
  assert np.all(gap <= 5 * deviation + 1e-6)


def test_rows_of_one_entry_are_kept_at_the_average_rate():
  transform = merging.della(0.5, 1.0, window=0.5, key=KEY)
  tau = {'column': np.ones((1, 300)), 'one': np.ones(1), 'scalar': np.ones(())}
  out = merged(transform, {'a': tau})
  assert set(out['column'].ravel()) == {0.0, 2.0}
  assert 110 < np.count_nonzero(out['column']) < 190
  for path in ('one', 'scalar'):
    assert out[path].item() in (0.0, 2.0)


def test_a_density_of_one_is_the_weighted_disjoint_mean():
  values = draw(3, 4)
  weights = np.array([0.5, 2.0, 1.0], np.float32)
  transform = merging.della(1.0, 1.0, window=0.0, key=KEY, weights=weights)
  taus = {f'e{i}': {'w': x} for i, x in enumerate(values)}
  by_name = {f'e{i}': w for i, w in enumerate(weights)}
  expected = sparse.weighted_vote(taus, by_name, 'mean')['w']
  np.testing.assert_allclose(one(transform, *values), expected, rtol=1e-6)


def test_a_weighted_disjoint_mean_with_equal_weights_is_the_plain_one():
  values = [np.where(x > 0, x, 0) for x in draw(20)]
  for weight in (1.0, 4.0):
    weights = [weight] * 3
    weighted = merging.chain(
      merging.weigh(weights), merging.disjoint_mean(weights)
    )
    np.testing.assert_allclose(
      one(weighted, *values), one(merging.disjoint_mean(), *values), rtol=1e-6
    )


def test_a_weighted_disjoint_mean_survives_weights_that_cancel():
  weights = [1.0, -1.0]
  transform = merging.chain(
    merging.weigh(weights), merging.disjoint_mean(weights)
  )
  assert one(transform, [2.0, 0.0], [1.0, 3.0]).tolist() == [1.0, 3.0]


def oriented(make, stored, layout):
  """Merges kernels that are stored in a layout; returns them as [in, out]."""
  turn = (lambda x: x) if layout == 'in_out' else np.transpose
  base, *experts = (
    {'w': jnp.asarray(turn(x)), 'b': jnp.asarray(x[0])} for x in stored
  )
  models = {f'e{i}': expert for i, expert in enumerate(experts)}
  out = merging.merge(make(layout=layout), base, models)
  return turn(np.asarray(out['w'])), np.asarray(out['b'])


@pytest.mark.parametrize(
  ('make', 'number'),
  [
    (lambda **layout: merging.della(0.5, window=0.4, key=KEY, **layout), 3),
    (
      lambda **layout: merging.breadcrumbs(0.4, 0.2, scope='row', **layout),
      3,
    ),
    (merging.widen, 3),
    (merging.arcee_fusion, 2),
  ],
  ids=['della', 'breadcrumbs', 'widen', 'arcee_fusion'],
)
def test_the_layout_is_that_of_the_model_not_of_the_method(make, number):
  stored = draw(5, 7, number=number)
  found = oriented(make, stored, 'in_out')
  for x, y in zip(found, oriented(make, stored, 'out_in'), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


def test_a_band_of_all_is_task_arithmetic():
  values = draw(30)
  for elsewhere in ({}, {'scope': 'row'}):
    transform = merging.chain(
      merging.keep_band(0.0, 0.0, **elsewhere), merging.total()
    )
    np.testing.assert_array_equal(
      one(transform, *values), one(merging.total(), *values)
    )


def test_a_small_leaf_without_outliers_is_kept():
  # Where 1 % of the entries is less than one, mergekit keeps none at all.
  values = draw(40, number=1)
  found = one(merging.breadcrumbs(0.5, 0.01, 1.0), *values)
  assert np.count_nonzero(found) == 20
  assert np.abs(found).max() == np.abs(values[0]).max()


@pytest.mark.parametrize('scope', ['tensor', 'row'])
def test_a_band_holds_its_number_of_equal_entries(scope):
  transform = merging.keep_band(0.3, 0.2, scope=scope)
  found = one(transform, np.ones(10))
  assert found.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
  assert np.count_nonzero(one(merging.keep_band(0.5, 0.5), np.ones(10))) == 0


def test_a_traced_band_keeps_the_same():
  values = draw(32, number=1)
  for low, high in ((0.0, 0.25), (0.5, 0.125), (0.75, 0.25)):
    fixed = one(merging.keep_band(low, high), *values)
    traced = merging.keep_band(jnp.float32(low), jnp.float32(high))
    np.testing.assert_array_equal(one(traced, *values), fixed)


def test_sce_follows_the_scale_of_the_changes():
  # Weights are equal in older mergekit for changes as small as these.
  values = draw(6, 5)
  for density in (0.4, 1.0):
    found = one(merging.sce(density), *[np.float32(1e-6) * x for x in values])
    expected = one(merging.sce(density), *values)
    np.testing.assert_allclose(found, 1e-6 * expected, rtol=1e-5)


def test_sce_of_one_expert_or_of_equal_ones():
  [x] = draw(12, number=1)
  np.testing.assert_allclose(one(merging.sce(), x), x, rtol=1e-6)
  np.testing.assert_allclose(one(merging.sce(), x, x, x), x, rtol=1e-6)
  # Without variance there is nothing to select.
  assert not one(merging.sce(0.5), x, x, x).any()
  assert not one(merging.sce(0.5), x).any()


def test_variance_selects_the_first_of_equals():
  found = one(
    merging.chain(merging.keep_varying(0.5), merging.total()),
    [1.0, 1, 1, 1, 5],
    [3.0, 3, 3, 3, 5],
  )
  assert found.tolist() == [4, 4, 0, 0, 0]


@pytest.mark.parametrize(
  'variant',
  [
    'raw',
    *(pytest.param(x, marks=pytest.mark.slow) for x in ('signed', 'pairwise')),
  ],
)
def test_the_programs_of_pcb(variant):
  for number in (1, 3):
    values = draw(250, number=number)
    taus = {f'e{i}': {'w': x} for i, x in enumerate(values)}
    expected = sparse.pcb(taus, 0.1, 1.2, variant)['w']
    found = merged(merging.pcb(0.1, 1.2, variant=variant), taus)['w']
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert 0 < np.count_nonzero(found) <= number * 25
  assert not one(merging.pcb(variant=variant), np.zeros(250)).any()


def test_pcb_with_more_density_than_agreement():
  # The quantile of the scores is negative.
  values = draw(250, number=2)
  taus = {'a': {'w': values[0]}, 'b': {'w': -values[0] + 0.1 * values[1]}}
  for variant in ('signed', 'pairwise'):
    expected = sparse.pcb(taus, 0.9, 1.0, variant)['w']
    found = merged(merging.pcb(0.9, 1.0, variant=variant), taus)['w']
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pcb_of_one_expert_keeps_its_largest_changes():
  [x] = draw(200, number=1)
  found = one(merging.pcb(0.1, 1.2), x)
  expected = oracles.keep_index(np.abs(x), 0.1) * np.float32(1.2) * x
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_pcb_competes_over_the_whole_model():
  small, large = draw(100, number=2)
  tau = {'large': large, 'small': np.float32(0.01) * small}
  out = merged(merging.pcb(0.05, 1.0), {'a': tau})
  assert not out['small'].any()
  assert np.count_nonzero(out['large']) == 10


def test_pcb_of_tiny_models():
  assert one(merging.pcb(0.5, 1.0), [3.0]).tolist() == [3.0]
  assert one(merging.pcb(0.5, 1.0), [3.0], [5.0]).tolist() == [4.0]
  assert one(merging.pcb(1.0, 1.0, variant='signed'), [3.0]).tolist() == [0.0]


def test_widen_of_one_expert_is_the_expert():
  values = draw(6, 5, number=2)
  base, expert = ({'w': jnp.asarray(x), 'b': jnp.asarray(x[0])} for x in values)
  out = merging.merge(merging.widen(), base, {'a': expert})
  for path, x in out.items():
    np.testing.assert_allclose(x, expert[path], rtol=1e-6, atol=1e-6)


def test_widen_of_columns_that_are_zero():
  base = {'w': jnp.ones((4, 3)).at[1].set(0.0)}
  grown = {'w': base['w'].at[1].set(2.0)}
  gone = {'w': base['w'].at[0].set(0.0)}
  out = merging.merge(merging.widen(), base, {'a': grown, 'b': gone})
  assert np.all(np.isfinite(out['w']))
  assert np.all(np.asarray(out['w'][1]) > 0)
  same = merging.merge(merging.widen(), base, {'a': base, 'b': base})
  np.testing.assert_array_equal(same['w'], base['w'])


def test_widen_ranks_columns_that_hardly_turned():
  # In float32, 1 - cosine of these changes is zero.
  base = np.ones((8, 4), np.float32)
  tilt = np.float32(1e-4) * np.arange(8, dtype=np.float32)[:, None]
  change = tilt * np.array([1, -1, 1, -1], np.float32)
  models = [{'w': jnp.asarray(x)} for x in (base, base + change)]
  transform = merging.widen(score=0.0)
  out = merging.merge(transform, models[0], {'a': models[1]})['w'] - base
  # Of one expert the softmax is 1, and what is important has weight 0. All
  # columns keep their norm: their ranks by magnitude are noise, at most 1/2.
  assert np.all(np.abs(out[4:]) <= 0.51 * np.abs(change[4:]) + 1e-6)
  assert np.all(np.abs(out[1:4]) >= 0.49 * np.abs(change[1:4]) - 1e-6)


@pytest.mark.parametrize('size', [1e-6, 1e-3, 0.3, 3.0, 60.0])
def test_the_divergence_of_softmaxes_is_accurate(size):
  base, delta = draw(6, 50, number=2)
  delta = (size * delta).astype(np.float32)
  a = base.astype(np.float64)
  b = a + delta
  log_q, log_p = (x - x.max(axis=1, keepdims=True) for x in (a, b))
  log_q, log_p = (
    x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (log_q, log_p)
  )
  expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
  found = outlying.softmax_divergence(jnp.asarray(base), jnp.asarray(delta))
  if size < 1e-3:  # Where float64 cancels, half the variance is as good.
    q = np.exp(log_q)
    centred = delta - (q * delta).sum(axis=1, keepdims=True)
    expected = (q * centred**2).sum(axis=1) / 2
  np.testing.assert_allclose(found, expected, rtol=2e-5)
  assert np.all(np.asarray(found) >= 0)


def test_fusion_keeps_the_tail_of_a_large_leaf_exactly():
  base, delta = draw(64, 200, number=2)
  delta *= np.float32(0.05)
  models = [{'w': jnp.asarray(x)} for x in (base, base + delta)]
  fusion = merging.arcee_fusion(layout='out_in')
  out = merging.merge(fusion, models[0], {'a': models[1]})
  layout = {'w': base.T}, {'a': {'w': (base + delta).T}}
  expected = sparse.arcee_fusion(*layout)['w'].T
  changed = np.asarray(out['w']) != base
  assert 0.01 < changed.mean() < 0.3
  assert np.mean(changed != (expected != base)) < 1e-3


def test_fusion_takes_one_expert():
  model = {'w': jnp.ones((2, 2))}
  with pytest.raises(ValueError, match=r"takes one expert, got 'a', 'b'; for"):
    merging.merge(merging.arcee_fusion(), model, {'a': model, 'b': model})


def test_ram_keeps_what_is_ones_own():
  values = [np.array([4.0, 2.0, 0.0, 1e-6]), np.array([2.0, 0.0, 0.0, 0.0])]
  assert one(merging.ram(), *values).tolist() == [3.0, 2.0, 0.0, 0.0]
  found = one(merging.ramplus(0.0), *values)
  np.testing.assert_array_equal(found, one(merging.ram(), *values))


@pytest.mark.parametrize('scope', ['global', 'tensor'])
def test_ramplus_counts_in_its_scope(scope):
  base, experts = fixtures.part(*fixtures.models('lattice'), 'bias', 'wide')
  taus = oracles.task_vectors(
    {path: np.asarray(x) for path, x in base.items()},
    {
      name: {path: np.asarray(x) for path, x in expert.items()}
      for name, expert in experts.items()
    },
  )
  transform = merging.ramplus(0.5, 2.0, scope=scope)
  expected = sparse.ram(taus, 1e-5, 0.5, 2.0, scope)
  for path, x in merged(transform, taus).items():
    np.testing.assert_allclose(x, expected[path], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
  'make',
  [
    lambda x: merging.della(0.5, x, key=KEY),
    lambda x: merging.breadcrumbs(0.5, 0.1, x),
    lambda x: merging.pcb(0.5, x),
    lambda x: merging.widen(score=x),
    merging.ramplus,
  ],
)
def test_merges_are_differentiable_in_their_coefficients(make):
  values = draw(4, 5)
  base = {'w': jnp.asarray(values[0])}
  experts = {
    'a': {'w': jnp.asarray(values[1])},
    'b': {'w': values[2] * base['w']},
  }

  def loss(x):
    return jnp.sum(jnp.square(merging.merge(make(x), base, experts)['w']))

  at = jnp.float32(0.7)
  gradient = jax.grad(loss)(at)
  slope = (loss(at + 0.01) - loss(at - 0.01)) / 0.02
  np.testing.assert_allclose(gradient, slope, rtol=1e-2, atol=1e-3)


def test_errors():
  with pytest.raises(ValueError, match=r'from 0.0 to 0.4, .* narrower window'):
    merging.magprune(0.2, 0.4, key=KEY)
  with pytest.raises(ValueError, match='narrower window'):
    merging.della(0.95, key=KEY)
  with pytest.raises(TypeError, match=r'magprune: key is 3, expected a random'):
    merging.della(key=3)
  with pytest.raises(ValueError, match="magprune: rescale is 'L1', expected"):
    merging.della(key=KEY, rescale='L1')
  with pytest.raises(ValueError, match="della: combine is 'max', expected one"):
    merging.della(key=KEY, combine='max')
  with pytest.raises(ValueError, match=r'drop_low is 0.9 and drop_high is 0.2'):
    merging.breadcrumbs(0.9, 0.2)
  with pytest.raises(
    ValueError, match="keep_band: scope is 'global', expected"
  ):
    merging.breadcrumbs(scope='global')
  with pytest.raises(ValueError, match='density is -1, expected a fraction'):
    merging.sce(-1)
  with pytest.raises(ValueError, match=r'density is 5, .*; 5 % is 0.05'):
    merging.pcb(5)
  with pytest.raises(ValueError, match="variant is 'code', expected one of"):
    merging.pcb(variant='code')
  with pytest.raises(ValueError, match="mean_of_shared: scope is 'leaf'"):
    merging.ramplus(scope='leaf')
  model = {'w': jnp.ones((2, 2)), 'b': jnp.ones(2)}
  experts = {'a': model, 'b': model}
  late = merging.chain(merging.mean(), merging.magprune(0.5, 0.1, key=KEY))
  with pytest.raises(ValueError, match='magprune: 1 deltas of 2 experts; drop'):
    merging.merge(late, model, experts)
  late = merging.chain(merging.mean(), merging.disjoint_mean([1.0, 2.0]))
  with pytest.raises(ValueError, match='disjoint_mean: 2 weights for 1 deltas'):
    merging.merge(late, model, experts)
  with pytest.raises(ValueError, match=r'shape \(2,\) has no columns; give it'):
    merging.merge(merging.disentangled_sum(), model, experts)
  with pytest.raises(ValueError, match="weigh: no expert is named 'c'"):
    merging.merge(merging.della(key=KEY, weights={'c': 1.0}), model, experts)


def test_papers_are_cited():
  cited = {
    'deep2024della': merging.della(key=KEY),
    'davari2024model': merging.breadcrumbs(),
    'wan2025fusechat': merging.sce(),
    'du2024parameter': merging.pcb(),
    'yu2024extend': merging.widen(),
    'yuan2026behavior': merging.ramplus(),
  }
  for key, transform in cited.items():
    keys = [
      each.key
      for source in transform.sources
      for each in references.references_of(source)
    ]
    assert key in keys
