"""Laws of merges that solve for the least interference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging.cases import interference as oracles

SHAPES = pytest.mark.parametrize('shape', [(3, 8), (8, 3)], ids=str)


def draw(shape=(6, 4), experts=3, seed=0, rank=None):
  """Task vectors `[out, in]` in float32, of full or of a lower rank."""
  rng = np.random.default_rng(seed)
  taus = []
  for _ in range(experts):
    tau = rng.normal(size=shape)
    if rank is not None:
      tau = rng.normal(size=(shape[0], rank)) @ rng.normal(
        size=(rank, shape[1])
      )
    taus.append(tau.astype(np.float32))
  return taus


def merge(transform, taus):
  """Merges task vectors `[out, in]` over a base of zeros."""
  experts = {f'{i:02}': {'w': tau.T} for i, tau in enumerate(taus)}
  base = {'w': np.zeros_like(taus[0].T)}
  return np.asarray(merging.merge(transform, base, experts)['w']).T


def gradient(x, taus):
  """Of the loss of WUDI, in float64, at `x`."""
  taus = [tau.astype(np.float64) for tau in taus]
  norms = [oracles.norm_squared(tau) for tau in taus]
  return oracles.interference_gradient(x.astype(np.float64), taus, taus, norms)


@SHAPES
def test_the_exact_minimum_has_no_gradient(shape):
  taus = draw(shape)
  minimum = merge(merging.swudi('exact', rank=1.0), taus)
  assert np.abs(gradient(minimum, taus)).max() < 2e-5
  assert np.abs(gradient(sum(taus), taus)).max() > 0.5


def test_with_low_ranks_it_stays_at_the_start_outside_of_all_inputs():
  taus = draw((10, 12), rank=2)
  for start in (sum(taus), 0 * taus[0]):
    name = 'sum' if start.any() else 'zero'
    minimum = merge(merging.swudi('exact', rank=1.0, start=name), taus)
    assert np.abs(gradient(minimum, taus)).max() < 1e-4
    _, _, inputs = np.linalg.svd(np.concatenate(taus))
    outside = inputs[6:].T
    np.testing.assert_allclose(minimum @ outside, 0 * outside[:10], atol=1e-4)
  adaptive = merge(merging.aswudi(), taus)
  wide = [tau.astype(np.float64) for tau in taus]
  expected = oracles.swudi(wide, lambda *_: 1.0, 'adaptive', 'sum')
  np.testing.assert_allclose(adaptive, expected, atol=2e-5)


def test_landweber_is_gradient_descent():
  taus = draw()
  gram = sum(tau.T @ tau / oracles.norm_squared(tau) for tau in taus)
  rate = 0.9 / np.linalg.eigvalsh(gram)[-1]
  x = sum(taus).astype(np.float64)
  for _ in range(7):
    x = x - rate / 2 * gradient(x, taus)
  merged = merge(merging.swudi('landweber', 7, rank=1.0), taus)
  np.testing.assert_allclose(merged, x, atol=5e-6)


def test_exponential_is_the_flow_of_the_gradient():
  taus = draw()
  x = sum(taus).astype(np.float64)
  for _ in range(20000):
    x = x - 1e-4 / 2 * gradient(x, taus)
  merged = merge(merging.swudi('exponential', 2.0, rank=1.0), taus)
  np.testing.assert_allclose(merged, x, atol=2e-4)


def test_tikhonov_is_the_minimum_with_a_penalty():
  taus = draw()
  merged = merge(merging.swudi('tikhonov', 0.3, rank=1.0), taus)
  penalty = 2 * 0.3 * (merged - sum(taus))
  np.testing.assert_allclose(gradient(merged, taus), -penalty, atol=2e-5)


@pytest.mark.parametrize(
  ('filter', 'none', 'all_the_way'),
  [('exponential', 0.0, 1e6), ('landweber', 0, 10**6), ('tikhonov', 1e9, 0.0)],
)
def test_filters_go_from_the_start_to_the_minimum(filter, none, all_the_way):
  taus = draw()

  def merged(strength):
    return merge(merging.swudi(filter, strength, rank=1.0), taus)

  minimum = merge(merging.swudi('exact', rank=1.0), taus)
  np.testing.assert_allclose(merged(none), sum(taus), atol=1e-6)
  np.testing.assert_allclose(merged(all_the_way), minimum, atol=1e-5)


def test_a_rank_keeps_the_leading_directions():
  taus = draw()
  wide = [tau.astype(np.float64) for tau in taus]
  for rank, kept in ((0.01, 1), (0.25, 1), (0.26, 2), (0.75, 3), (1.0, 4)):
    merged = merge(merging.swudi('exact', rank=rank), taus)
    expected = oracles.swudi(wide, lambda *_: 1.0, kept / 4, 'sum')
    np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_swudi_is_in_proportion_and_wudi_is_not():
  taus = draw()
  tenth = [tau / 10 for tau in taus]
  for make in (merging.swudi, merging.aswudi):
    np.testing.assert_allclose(
      merge(make(), tenth), merge(make(), taus) / 10, atol=1e-6
    )
  wudi = merging.wudi(20, 1e-2)
  moved, moved_tenth = merge(wudi, taus), merge(wudi, tenth)
  assert np.abs(moved_tenth - moved / 10).max() > 1e-2
  assert np.abs(moved_tenth - sum(tenth)).max() < 1.1 * 20 * 1e-2


def test_without_common_inputs_there_is_nothing_to_do():
  taus = [np.zeros((3, 6), np.float32) for _ in range(3)]
  for i, tau in enumerate(taus):
    tau[:, 2 * i : 2 * i + 2] = draw((3, 2), 1, seed=i)[0]
  for make in (merging.wudi, merging.swudi, merging.aswudi):
    np.testing.assert_array_equal(merge(make(), taus), sum(taus))


def test_one_expert_is_the_merge():
  for shape in ((4, 6), (1, 1)):
    taus = draw(shape, experts=1)
    for make in (
      merging.wudi,
      merging.swudi,
      merging.aswudi,
      merging.optmerge,
      lambda: merging.optmerge('lora'),
    ):
      np.testing.assert_allclose(merge(make(), taus), taus[0], atol=1e-5)


def test_no_steps_are_task_arithmetic():
  taus = draw()
  for make in (merging.wudi, merging.optmerge):
    np.testing.assert_array_equal(
      merge(make(steps=0, scale=0.5), taus),
      merge(merging.task_arithmetic(0.5), taus),
    )
  np.testing.assert_allclose(
    merge(merging.optmerge('lora', 0), taus),
    merge(merging.average(), taus),
    rtol=1e-6,
  )


def test_an_expert_of_zeros_asks_for_nothing():
  taus = draw()
  with_zeros = [*taus, np.zeros_like(taus[0])]
  for make in (
    lambda: merging.wudi(5, 1e-2),
    merging.aswudi,
    lambda: merging.doge(1.0, 1.0, steps=5, learning_rate=1e-2, subspace=8),
  ):
    np.testing.assert_allclose(
      merge(make(), with_zeros), merge(make(), taus), atol=1e-6
    )


def test_optmerge_of_low_ranks_is_wudi_by_momentum_from_the_mean():
  taus = draw((9, 6), rank=2)
  merged = merge(merging.optmerge('lora', 10, 0.1), taus)
  expected = oracles.momentum(
    lambda x: gradient(x, taus), sum(taus) / np.float64(3), 10, 0.1
  )
  np.testing.assert_allclose(merged, expected, atol=1e-5)


def test_more_experts_than_directions_leave_optmerge_where_it_starts():
  taus = draw((2, 5))
  np.testing.assert_array_equal(merge(merging.optmerge(), taus), sum(taus))


def test_doge_without_steps_gives_every_expert_the_same_norm():
  taus = draw()
  expected = sum(0.07 * tau / np.linalg.norm(tau) for tau in taus)
  merged = merge(merging.doge(density=1.0, steps=0), taus)
  np.testing.assert_allclose(merged, expected, atol=1e-7)


def test_doge_brings_the_merge_nearer_to_what_experts_did():
  taus = draw((6, 8))

  def loss(merged):
    return sum(np.sum(np.sum(t * (t - merged), axis=1) ** 2) for t in taus)

  settings = {'density': 1.0, 'learning_rate': 1e-2, 'subspace': 99}
  before = merge(merging.doge(1.0, steps=0, **settings), taus)
  after = merge(merging.doge(1.0, steps=300, **settings), taus)
  assert loss(after) < 0.2 * loss(before)


def test_doge_keeps_the_gradient_out_of_what_is_shared():
  # All experts write to the first output only: nothing is left to change.
  taus = draw((4, 4), experts=2)
  for tau in taus:
    tau[1:] = 0
  settings = {'density': 1.0, 'learning_rate': 1e-2}
  still = merge(merging.doge(1.0, steps=0, **settings), taus)
  held = merge(merging.doge(1.0, steps=5, subspace=4, **settings), taus)
  free = merge(merging.doge(1.0, steps=5, subspace=8, **settings), taus)
  np.testing.assert_array_equal(held, still)
  assert np.abs(free - still).max() > 1e-2


def test_reconcile_leaves_the_experts_apart():
  taus = draw()
  transform = merging.chain(
    merging.reconcile(1.0, 0.5, steps=3), merging.weigh([1.0, 0.0, 0.0])
  )
  merged = merge(
    merging.on_matrices(merging.chain(transform, merging.total())), taus
  )
  keep = np.sort(np.abs(taus[0]).ravel())[-13]
  assert ((merged != 0) == (np.abs(taus[0]) >= keep)).all()


@pytest.mark.parametrize(
  'make',
  [
    lambda **layout: merging.wudi(5, 1e-2, **layout),
    merging.swudi,
    lambda **layout: merging.optmerge('lora', 5, 1e-2, **layout),
    lambda **layout: merging.doge(steps=5, learning_rate=1e-2, **layout),
  ],
  ids=['wudi', 'swudi', 'optmerge', 'doge'],
)
def test_a_transposed_model_merges_to_the_transposed(make):
  taus = draw((6, 12))
  one = merge(make(), taus)
  other = merge(make(layout='out_in'), [tau.T for tau in taus]).T
  np.testing.assert_allclose(one, other, atol=5e-6)
  wrong = merge(make(layout='out_in'), taus)
  assert np.abs(one - wrong).max() > 1e-3


def test_steps_may_be_traced_and_batched():
  taus = draw()
  experts = {f'{i}': {'w': jnp.asarray(tau.T)} for i, tau in enumerate(taus)}
  base = {'w': jnp.zeros((4, 6))}

  @jax.jit
  def merged(steps):
    return merging.merge(merging.wudi(steps, 1e-2), base, experts)['w']

  counts = jnp.array([0, 3, 7])
  together = jax.vmap(merged)(counts)
  for i, count in enumerate(counts.tolist()):
    np.testing.assert_allclose(together[i], merged(count), atol=1e-6)
    np.testing.assert_allclose(
      merged(float(count)), merge(merging.wudi(count, 1e-2), taus).T, atol=1e-6
    )


def test_tables_that_are_looked_up_are_no_linear_layers():
  names = ('embedding', 'positions', 'lm_head', 'block/up', 'block/bias')
  rng = np.random.default_rng(0)

  def tree():
    return {
      name: rng.normal(size=(3,) if 'bias' in name else (3, 3)).astype('f')
      for name in names
    }

  base, experts = tree(), {'a': tree(), 'b': tree()}
  for make in (merging.wudi, merging.doge):
    merged = merging.merge(make(), base, experts)
    for name in names:
      same = np.array_equal(merged[name], base[name])
      assert same == (name != 'block/up')
  everything = merging.merge(merging.wudi(leaves=''), base, experts)
  assert not np.array_equal(everything['embedding'], base['embedding'])
  mean = merging.merge(merging.average(), base, experts)
  merged = merging.merge(merging.aswudi(), base, experts)
  np.testing.assert_array_equal(merged['block/bias'], mean['block/bias'])


def test_settings_are_checked():
  for make, message in (
    (lambda: merging.wudi(-1), r'wudi: steps is -1, expected 0, 1, 2'),
    (lambda: merging.doge(steps=0.5), r'doge: steps is 0.5, expected 0, 1'),
    (lambda: merging.wudi(1, -0.1), r'learning_rate is -0.1, .* at least 0'),
    (lambda: merging.swudi('exp'), r"filter is 'exp', expected one of"),
    (lambda: merging.swudi('exact', 3.0), r"'exact' takes none; leave it out"),
    (lambda: merging.swudi(strength=-1), r'strength is -1, expected at least'),
    (lambda: merging.swudi(rank=0), r"rank is 0, .* \(0, 1\], or 'adaptive'"),
    (lambda: merging.swudi(rank='adptive'), r"did you mean 'adaptive'"),
    (lambda: merging.swudi(start='som'), r"start is 'som', .* mean 'sum'"),
    (lambda: merging.optmerge('lore'), r"tuning is 'lore', .* mean 'lora'"),
    (lambda: merging.doge(density=30), r'density is 30, expected a fraction'),
    (lambda: merging.doge(subspace=0), r'subspace is 0, expected at least 1'),
    (lambda: merging.wudi(layout='io'), r"layout is 'io', expected one of"),
  ):
    with pytest.raises(ValueError, match=message):
      make()


def test_they_cite_their_papers():
  for make, keys in (
    (merging.wudi, ['2503.08099']),
    (merging.swudi, ['2606.07289', '2503.08099']),
    (merging.aswudi, ['2606.07289', '2503.08099']),
    (merging.optmerge, ['2505.19892']),
    (merging.doge, ['2501.01230', '2306.01708']),
  ):
    cited = merging.citations(make())
    assert cited.count('@') == len(keys)
    assert all(f'eprint = {{{key}}}' in cited for key in keys)
