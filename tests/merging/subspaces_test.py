"""Laws of merges by singular vectors, and their edges."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging.combine import joint_basis
from merging.combine import sequential
from merging.combine import subspace
from merging.dynamic import tsv as tsv_c
from tests.merging import fixtures
from tests.merging import oracles
from tests.merging.cases import subspaces as literal

RNG = np.random.default_rng(3)


def draw(*shape, rank=None):
  if rank is None:
    return RNG.normal(size=shape).astype(np.float32)
  return draw(shape[0], rank) @ draw(rank, shape[1])


def combine(transform, *deltas):
  """Merges matrices given as [out, in] by a transform of matrices."""
  experts = {f'{i:02}': {'w': jnp.asarray(x)} for i, x in enumerate(deltas)}
  base = {'w': jnp.zeros(deltas[0].shape)}
  return np.asarray(merging.merge(transform, base, experts)['w'])


def near(a, b, atol=2e-5):
  np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def truncated(x, rank):
  u, s, vt = np.linalg.svd(x.astype(np.float64), full_matrices=False)
  return (u[:, :rank] * s[:rank]) @ vt[:rank]


# Joined singular vectors (TSV-M).


@pytest.mark.parametrize('shape', [(5, 9), (9, 5), (1, 1)])
def test_tsv_of_one_expert_is_the_expert(shape):
  x = draw(*shape)
  near(combine(merging.tsv(), x), x)
  near(combine(merging.opcm(), x), x)


def test_tsv_of_equal_experts_is_the_expert_cut_to_its_share():
  x = draw(6, 9)
  near(combine(merging.join_subspaces(), x, x, x), truncated(x, 2))


def test_tsv_of_experts_in_orthogonal_subspaces_is_their_sum():
  a, b = np.zeros((6, 8), np.float32), np.zeros((6, 8), np.float32)
  a[:3, :4], b[3:, 4:] = draw(3, 4), draw(3, 4)
  near(combine(merging.tsv(), a, b), a + b)


def test_more_experts_than_directions_keep_one_each():
  rows = [draw(2, 7) for _ in range(3)]
  found = combine(merging.join_subspaces(), *rows)
  u, s, v = (
    np.concatenate(each, axis=-1)
    for each in zip(
      *((u[:, :1], s[:1], vt[:1].T) for u, s, vt in map(literal.svd, rows)),
      strict=True,
    )
  )
  near(found, literal.whitened(u) @ np.diag(s) @ literal.whitened(v).T)


def test_a_low_rank_expert_brings_no_arbitrary_directions():
  a, b = draw(8, 8, rank=2), draw(8, 8, rank=2)
  found = combine(merging.join_subspaces(), a, b)
  near(found, literal.tsv_matrix([a, b], ranks=[2, 2]))
  assert np.linalg.matrix_rank(found, tol=1e-4) == 4


def test_equal_shares_as_a_rule_and_no_weights_are_tsv():
  def share(delta, s):
    del delta
    return jnp.int32(s.size // 2)

  rows = draw(5, 7), draw(5, 7)
  rule = merging.r_tsvm(merging.identity(), share)
  near(combine(rule, *rows), combine(merging.tsv(), *rows))


def test_a_rule_may_give_all_to_one_expert():
  def all_or_nothing(delta, s):
    return jnp.where(delta[0, 0] > 0, s.size, 0)

  a, b = draw(4, 6), draw(4, 6)
  a[0, 0], b[0, 0] = 1, -1
  near(combine(merging.join_subspaces(all_or_nothing), a, b), a)


def test_a_rank_that_is_no_rule_is_an_error():
  not_a_rule: Any = 3
  with pytest.raises(TypeError, match='rank is 3, expected a function'):
    merging.join_subspaces(not_a_rule)


def test_the_nearest_orthonormal_columns():
  x = draw(9, 4)
  found = np.asarray(subspace.orthonormal(jnp.asarray(x)))
  near(found.T @ found, np.eye(4))
  near(found, literal.whitened(x))
  wide = np.asarray(subspace.orthonormal(jnp.asarray(x.T)))
  near(wide, found.T)


# One singular value (Iso-C, Iso-CTS).


def test_an_isotropic_sum_has_one_singular_value_and_the_same_nuclear_norm():
  rows = draw(5, 8), draw(5, 8)
  found = np.linalg.svd(combine(merging.isotropic(), *rows), compute_uv=False)
  total = np.linalg.svd(sum(rows), compute_uv=False)
  near(found, np.full(5, total.mean()))


def test_directions_that_no_expert_has_are_not_raised():
  rows = draw(6, 8, rank=1), draw(6, 8, rank=1)
  for merge in (merging.isotropic(), merging.isotropic_split(0.5)):
    s = np.linalg.svd(combine(merge, *rows), compute_uv=False)
    assert np.count_nonzero(s > 1e-4 * s[0]) == 2
  published = combine(merging.isotropic(rank_tol=0), *rows)
  s = np.linalg.svd(published, compute_uv=False)
  assert np.count_nonzero(s > 1e-4 * s[0]) > 2


@pytest.mark.parametrize('common', [1.0, 0.95])
def test_iso_cts_with_all_directions_common_is_iso_c(common):
  rows = [draw(6, 9) for _ in range(3)]
  found = combine(merging.isotropic_split(common), *rows)
  near(found, combine(merging.isotropic(), *rows))


def test_iso_cts_without_common_directions():
  """Rounding up cannot hand out more directions than there are."""
  rows = [draw(5, 9) for _ in range(3)]
  found = combine(merging.isotropic_split(0.0), *rows)
  s = np.linalg.svd(found, compute_uv=False)
  near(s, np.full(5, s[0]))


@pytest.mark.parametrize(
  ('make', 'oracle'),
  [
    (
      functools.partial(merging.iso_cts, 1.0, 0.5),
      lambda taus: literal.iso_cts(taus, 1.0, 0.5, turn=False),
    ),
    (
      functools.partial(merging.knots, merging.ties(0.3, scope='tensor')),
      lambda taus: literal.knots(
        taus, lambda reps: oracles.ties(reps, 0.3, scope='tensor'), turn=False
      ),
    ),
  ],
)
def test_the_output_side_is_where_the_layout_says(make, oracle):
  """Matrices stored as [out, in], and transposed."""
  base, experts = fixtures.part(*fixtures.models(), 'tall', 'wide')
  taus = oracles.task_vectors(base, experts)
  merged = merging.merge(make(layout='out_in'), base, experts)
  turned = jax.tree.map(jnp.transpose, (base, experts))
  other = merging.merge(make(), *turned)
  for path, change in oracle(taus).items():
    near(merged[path] - base[path], change, 2e-6)
    near(other[path].T, merged[path], 2e-6)


def test_common_is_a_fraction():
  with pytest.raises(ValueError, match=r'common is 80, expected a fraction'):
    merging.iso_cts(common=80)


# A shared basis (KnOTS).


@pytest.mark.parametrize('shape', [(5, 9), (9, 2)])
def test_a_linear_merge_does_not_see_the_basis(shape):
  rows = draw(*shape), draw(*shape)
  near(combine(merging.in_joint_basis(merging.total()), *rows), sum(rows))


def test_the_rank_of_adapters_makes_densities_count_as_published():
  """The authors' code drops all other directions before it trims."""
  rows = [draw(8, 10, rank=1) for _ in range(3)]
  u, s, vt = literal.svd(np.concatenate(rows, axis=1).astype(np.float64))
  u, s, vt = u[:, s > 1e-5], s[s > 1e-5], vt[s > 1e-5]
  assert s.size == 3
  parts = np.split(np.diag(s) @ vt, 3, axis=1)
  reps = {str(i): {'w': x.astype(np.float32)} for i, x in enumerate(parts)}
  expected = u @ oracles.ties(reps, 0.3, scope='tensor')['w']
  inner = merging.ties(0.3, scope='tensor')
  merge = merging.in_joint_basis(inner, rank=3)
  near(combine(merge, *rows), expected)
  with_all = merging.in_joint_basis(inner)
  assert np.abs(combine(with_all, *rows) - expected).max() > 0.1


def test_the_inner_merge_sees_leaves_of_the_reduced_shape():
  seen = []

  def init(specs, models):
    seen.extend((spec.path, spec.shape) for spec in specs)
    return merging.total().init(specs, models)

  inner = merging.total()._replace(init=init)
  base, _ = fixtures.models()
  for rank in (None, 3):
    merging.knots(inner, rank=rank).init(
      tuple(
        merging.LeafSpec(path, x.shape, x.dtype)
        for path, x in merging.tree.flatten(base['block']).items()
      ),
      ('a', 'b'),
    )
  assert seen == [
    ('tall', (4, 12)),  # [in, out] = [12, 4]
    ('wide', (8, 4)),  # Two experts of four inputs span eight outputs.
    ('tall', (3, 12)),
    ('wide', (3, 4)),
  ]


def test_dropping_at_random_works_in_the_basis():
  key = jax.random.key(0)
  merge = joint_basis.in_joint_basis(
    merging.dare(0.5, merging.total(), key=key), rank=2
  )
  found = combine(merge, draw(5, 7), draw(5, 7))
  assert np.isfinite(found).all()
  assert np.linalg.matrix_rank(found, tol=1e-4) == 2


def test_errors_of_a_basis():
  with pytest.raises(ValueError, match='rank is 0, expected a positive'):
    merging.knots(merging.total(), rank=0)
  with pytest.raises(ValueError, match=r'importance.* for each entry'):
    merging.knots(merging.weighted_mean())


# One after another (OPCM).


def test_what_is_added_is_orthogonal_to_what_is_there():
  for merged, delta in ((draw(5, 8), draw(5, 8)), (draw(8, 3), draw(8, 3))):
    rest = sequential.without(jnp.asarray(delta), jnp.asarray(merged))
    near(np.sum(rest * merged), 0, 1e-4)
    scaled = sequential.without(jnp.asarray(delta), 7 * jnp.asarray(merged))
    near(scaled, rest)


def test_a_full_threshold_leaves_nothing_inside_both_subspaces():
  merged, delta = draw(5, 8), draw(5, 8)
  rest = sequential.without(jnp.asarray(delta), jnp.asarray(merged), 1.0)
  _, _, vt = literal.svd(merged)
  near(rest, delta - delta @ vt.T @ vt)


def test_nothing_is_taken_out_in_arbitrary_directions():
  merged, delta = draw(6, 6, rank=1), draw(6, 6)
  rest = sequential.without(jnp.asarray(delta), jnp.asarray(merged))
  u, _, vt = literal.svd(merged)
  a = u[:, 0] @ delta @ vt[0]
  near(rest, delta - a * np.outer(u[:, 0], vt[0]))
  nothing = jnp.zeros((6, 6))
  near(sequential.without(jnp.asarray(delta), nothing), delta, 0)


def test_opcm_has_the_mean_norm_of_the_experts():
  base, experts = fixtures.part(*fixtures.models(), 'tall', 'wide', 'bias')
  merged = merging.merge(merging.opcm(), base, experts)
  norms = [
    merging.tree.norm(merging.tree.sub(each, base))
    for each in (merged, *experts.values())
  ]
  near(norms[0], np.mean(norms[1:]))


def test_experts_are_added_in_the_order_given_else_of_their_names():
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  default = merging.merge(merging.opcm(), base, experts)
  named = merging.merge(merging.opcm(order=sorted(experts)), base, experts)
  near(default['wide'], named['wide'], 0)
  other = merging.merge(merging.opcm(order=literal.ORDER), base, experts)
  assert np.abs(other['wide'] - named['wide']).max() > 1e-3


@pytest.mark.parametrize(
  ('order', 'message'),
  [
    (('code', 'mth'), "names 'mth'; .* did you mean 'math'"),
    (('code', 'math'), "each of the experts 'code', 'math', 'prose' once"),
    (('code', 'math', 'math', 'prose'), 'once'),
  ],
)
def test_an_order_names_each_expert_once(order, message):
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  with pytest.raises(ValueError, match=message):
    merging.merge(merging.opcm(order=order), base, experts)


def test_errors_of_sequences():
  with pytest.raises(ValueError, match='opcm: threshold is 50'):
    merging.opcm(50)
  with pytest.raises(ValueError, match='continual_opcm: threshold is -1'):
    merging.continual_opcm(-1)
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  late = merging.chain(merging.total(), merging.orthogonal_total())
  with pytest.raises(ValueError, match='1 deltas of 3 experts'):
    merging.merge(late, base, experts)
  open_ended = merging.at_mean_norm(merging.identity())
  with pytest.raises(ValueError, match='leaves 3 deltas, expected one'):
    merging.merge(open_ended, base, experts)


def test_a_merge_at_the_mean_norm_keeps_its_own_statistics():
  base, experts = fixtures.part(*fixtures.models(), 'wide', 'bias')
  inner = merging.chain(merging.elect_sign(), merging.total())
  elected = merging.merge(inner, base, experts)
  scaled = merging.merge(merging.at_mean_norm(inner), base, experts)
  taus = [merging.tree.sub(x, base) for x in experts.values()]
  change = merging.tree.sub(elected, base)
  mean = np.mean([merging.tree.norm(tau) for tau in taus])
  factor = mean / merging.tree.norm(change)
  for path, x in merging.tree.sub(scaled, base).items():
    near(x, factor * change[path], 1e-6)


def test_experts_one_at_a_time_are_the_published_sequence():
  """After every expert, in constant memory, under jit."""
  base, experts = fixtures.models()
  merge = merging.continual_opcm(0.4)
  add = jax.jit(merge.add)
  state = merge.init(base)
  merged = unmerged = merging.tree.flatten(merge.params(state))
  flat = {
    name: {
      path: np.asarray(x)
      for path, x in merging.tree.flatten(each).items()
      if path != 'step'
    }
    for name, each in experts.items()
  }
  reference = merging.tree.flatten(base)
  for seen, name in enumerate(literal.ORDER, start=1):
    state = add(state, experts[name])
    order = literal.ORDER[:seen]
    taus = oracles.task_vectors(
      {path: np.asarray(reference[path]) for path in flat['code']},
      {name: flat[name] for name in order},
    )
    merged = merging.tree.flatten(merge.params(state))
    assert merged.pop('step') == 7
    for path, change in literal.opcm(taus, 0.4, order).items():
      near(merged[path], reference[path] + change, 2e-6)
  together = merging.merge(merging.opcm(0.4, literal.ORDER), base, experts)
  for path, x in merged.items():
    near(x, merging.tree.flatten(together)[path], 1e-6)
  for path, x in unmerged.items():
    near(x, reference[path], 0)


def test_one_at_a_time_keeps_dtypes_and_chooses_leaves():
  base, experts = fixtures.part(*fixtures.models(dtype=jnp.bfloat16), 'wide')
  merge = merging.continual_opcm(leaves=lambda path: False)
  state = merge.init(base)
  for expert in experts.values():
    state = merge.add(state, expert)
  assert state.total['wide'].dtype == jnp.float32
  merged = merge.params(state)['wide']
  assert merged.dtype == jnp.bfloat16
  plain = merging.at_mean_norm(merging.total())
  expected = merging.merge(plain, base, experts)['wide']
  near(merged.astype(jnp.float32), expected.astype(jnp.float32), 0)
  with pytest.raises(ValueError, match='expert'):
    merge.add(state, {'wide': jnp.zeros((2, 2), jnp.bfloat16)})


# Compression (TSV-C).


def test_restored_experts_are_the_nearest_of_the_rank():
  base, experts = fixtures.models()
  bundle = tsv_c.compress(base, experts)
  for name, expert in experts.items():
    restored = jax.jit(tsv_c.restore, static_argnums=2)(bundle, base, name)
    assert jax.tree.structure(restored) == jax.tree.structure(base)
    near(restored['block']['bias'], expert['block']['bias'], 1e-6)
    for leaf in ('tall', 'wide'):
      change = np.subtract(expert['block'][leaf], base['block'][leaf])
      near(restored['block'][leaf], base['block'][leaf] + truncated(change, 1))
  # A bias of 4, and five matrices of 48 entries as factors of 4 + 12.
  assert bundle.storage.parameters == 4 + 5 * 48
  assert bundle.storage.each == 4 * (4 + 5 * 16)
  assert bundle.storage.shared == 0


def test_narrow_experts_are_compressed_in_float32():
  base, experts = fixtures.part(*fixtures.models(dtype=jnp.bfloat16), 'wide')
  bundle = tsv_c.compress(base, experts)
  restored = tsv_c.restore(bundle, base, 'math')['wide']
  assert restored.dtype == jnp.bfloat16
  base, expert = (
    np.asarray(x['wide'].astype(jnp.float32)) for x in (base, experts['math'])
  )
  expected = base + truncated(expert - base, 1)
  np.testing.assert_allclose(
    restored.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6
  )


def test_what_factors_would_not_make_smaller_is_stored_whole():
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  bundle = tsv_c.compress(base, experts, share=1.0)
  assert bundle.storage.each == 4 * 48
  near(tsv_c.restore(bundle, base, 'math')['wide'], experts['math']['wide'])
  with pytest.raises(ValueError, match="no expert is named 'mth'"):
    tsv_c.restore(bundle, base, 'mth')
  with pytest.raises(ValueError, match='share is 0, expected'):
    tsv_c.compress(base, experts, share=0)
  with pytest.raises(ValueError, match='wide'):
    tsv_c.compress({'wide': jnp.zeros((2, 2))}, experts)


# All of them.

METHODS = {
  'tsv': merging.tsv,
  'iso_c': merging.iso_c,
  'iso_cts': lambda: merging.iso_cts(common=0.5),
  'knots': lambda: merging.knots(merging.ties(0.3, scope='tensor')),
  'opcm': merging.opcm,
}


@pytest.mark.parametrize('name', METHODS)
def test_stacked_layers_are_merged_one_by_one(name):
  layers = [draw(3, 5) for _ in range(4)]
  base = {'layers': {str(i): jnp.zeros((3, 5)) for i in range(2)}}
  experts = {
    'a': {'layers': {'0': layers[0], '1': layers[1]}},
    'b': {'layers': {'0': layers[2], '1': layers[3]}},
  }
  merge = METHODS[name]()
  one_by_one = merging.merge(merge, base, experts)['layers']

  def stack(params):
    return {'layers': jnp.stack(list(params['layers'].values()))}

  stacked = merging.merge(
    merging.unstacked(merge, '^layers'),
    stack(base),
    {name: stack(each) for name, each in experts.items()},
  )
  near(stacked['layers'], stack({'layers': one_by_one})['layers'], 2e-6)


@pytest.mark.parametrize('name', METHODS)
def test_scalars_as_matrices_and_experts_that_did_not_move(name):
  merge = METHODS[name]()
  near(combine(merge, np.ones((1, 1), np.float32)), 1)
  still, moved = np.zeros((3, 4), np.float32), draw(3, 4)
  found = combine(merge, still, moved)
  assert np.isfinite(found).all()
  assert np.abs(found).max() > 0


@pytest.mark.parametrize(
  ('merge', 'keys'),
  [
    (merging.tsv(), ['gargiulo2025task']),
    (merging.iso_c(), ['marczak2025no']),
    (merging.iso_cts(), ['marczak2025no']),
    (merging.knots(merging.ties()), ['stoica2025model', 'yadav2023ties']),
    (merging.opcm(), ['tang2025merging']),
    (
      merging.r_tsvm(merging.identity(), lambda delta, s: jnp.int32(1)),
      ['yang2025mix', 'gargiulo2025task'],
    ),
  ],
)
def test_they_cite_their_papers(merge, keys):
  found = merging.citations(merge)
  assert all(key in found for key in keys)
