"""Bundles of experts: what comes back, how large they are, under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging.dynamic import storage
from merging.dynamic import tall
from merging.dynamic import twin
from tests.merging import drive
from tests.merging import fixtures
from tests.merging.cases import masks

FLOATS = 4 + 12 * 4 + 4 * 12 + 12 * 4 + 12 * 4 + 4 * 12
MATRICES = ('block/tall', 'block/wide', 'embedding', 'head', 'unchanged')


def assert_near(a, b, atol=0.0):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for path, x in merging.tree.flatten(a).items():
    y = merging.tree.flatten(b)[path]
    assert x.dtype == y.dtype
    near = {'rtol': 0, 'atol': atol, 'err_msg': path}
    np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(y, np.float32), **near
    )


def floats(params):
  flat = merging.tree.flatten(params)
  return {path: np.asarray(x) for path, x in flat.items() if path != 'step'}


def task_vectors(base, experts):
  start = floats(base)
  return {
    name: {path: x - start[path] for path, x in floats(end).items()}
    for name, end in experts.items()
  }


@pytest.mark.parametrize('threshold', [0.4, masks.THRESHOLDS])
def test_a_masked_expert_is_what_the_formula_says(threshold):
  base, experts = fixtures.models()
  bundle = tall.compress(base, experts, threshold)
  taus = task_vectors(base, experts)
  total = {
    path: sum(taus[name][path] for name in sorted(taus))
    for path in floats(base)
  }
  limits = threshold
  if not isinstance(threshold, dict):
    limits = dict.fromkeys(taus, threshold)
  expected = masks.tall_masks(taus, total, limits)
  for index, name in enumerate(bundle.names):
    restored = tall.restore(bundle, base, name)
    assert restored['step'] == base['step']
    for path, x in floats(restored).items():
      bits = np.packbits(expected[name][path].ravel())
      np.testing.assert_array_equal(bundle.masks[path][index], bits)
      wanted = floats(base)[path] + expected[name][path] * total[path]
      np.testing.assert_allclose(x, wanted, rtol=0, atol=2e-7)


def test_a_masked_bundle_is_the_one_of_localise():
  """The transform and the bundle agree, entry by entry."""
  base, experts = fixtures.part(*fixtures.models('lattice'), 'bias', 'wide')
  bundle = tall.compress(base, experts, 0.3)
  for name in experts:
    only = {each: float(each == name) for each in experts}
    transform = merging.chain(
      merging.localise(merging.total(), 0.3),
      merging.weigh(only),
      merging.total(),
    )
    merged = merging.merge(transform, base, experts)
    assert_near(tall.restore(bundle, base, name), merged)


def test_masks_of_another_merge():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  inner = merging.chain(merging.elect_sign(), merging.total())
  bundle = tall.compress(base, experts, inner=inner)
  zeros = jax.tree.map(jnp.zeros_like, base)
  deltas = {name: merging.tree.sub(x, base) for name, x in experts.items()}
  expected = merging.merge(inner, zeros, deltas)
  assert_near(bundle.merged, expected)


def test_a_mask_costs_a_bit_for_each_parameter():
  base, experts = fixtures.models()
  stored = tall.compress(base, experts).storage
  # All leaves have a multiple of eight entries but the bias, of four.
  each = (FLOATS - 4) // 8 + 1
  assert stored == storage.Storage(FLOATS, 3, 4 * FLOATS, each)
  assert stored.total == 4 * FLOATS + 3 * each
  assert stored.bits_per_parameter == 8 * each / FLOATS
  half = tall.compress(base, experts, dtype=jnp.bfloat16)
  assert half.storage.shared == 2 * FLOATS


def test_masks_of_experts_that_share_nothing_restore_all():
  base = {'w': jnp.ones((3, 3)), 'scalar': jnp.float32(2)}
  row = jnp.arange(9.0).reshape(3, 3) % 3
  experts = {
    name: {
      'w': base['w'] + jnp.where(row == i, i + 1.0, 0.0),
      'scalar': base['scalar'] + float(i == 1),
    }
    for i, name in enumerate(('a', 'b', 'c'))
  }
  bundle = tall.compress(base, experts)
  for name, expert in experts.items():
    assert_near(tall.restore(bundle, base, name), expert)


@pytest.mark.parametrize('names', [('a',), ('a', 'b')])
def test_masks_of_one_expert_and_of_no_change(names):
  base, experts = fixtures.part(*fixtures.models(names=names), 'bias', 'wide')
  still = tall.compress(base, dict.fromkeys(names, base))
  assert_near(tall.restore(still, base, 'a'), base)
  alone = tall.compress(base, {'a': experts['a']})
  assert_near(tall.restore(alone, base, 'a'), experts['a'], 2e-7)


def test_narrow_models_are_masked_in_float32():
  base, experts = fixtures.part(*fixtures.models(dtype=jnp.bfloat16), 'wide')
  bundle = tall.compress(base, experts)
  wide, ends = jax.tree.map(lambda x: x.astype(jnp.float32), (base, experts))
  assert_near(bundle.merged, tall.compress(wide, ends).merged)
  expected = tall.restore(bundle, wide, 'math')
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected)
  assert_near(tall.restore(bundle, base, 'math'), rounded)


def test_masks_work_under_jit():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  bundle = tall.compress(base, experts)
  traced = jax.jit(tall.compress)(base, experts)
  assert traced.names == bundle.names
  jax.tree.map(np.testing.assert_array_equal, traced, bundle)
  restore = jax.jit(tall.restore, static_argnums=2)
  for name in experts:
    assert_near(
      restore(bundle, base, name), tall.restore(bundle, base, name), 2e-7
    )


def test_restoring_is_checked():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  bundle = tall.compress(base, experts)
  with pytest.raises(ValueError, match=r"named 'mth'; .* mean 'math'"):
    tall.restore(bundle, base, 'mth')
  with pytest.raises(ValueError, match=r"differs at 'wide'"):
    tall.restore(bundle, {**base, 'wide': base['wide'].T}, 'math')
  with pytest.raises(ValueError, match=r"differs at 'other'"):
    tall.restore(bundle, {**base, 'other': base['wide']}, 'math')
  with pytest.raises(ValueError, match='expected at least 0'):
    tall.compress(base, experts, -1.0)
  with pytest.raises(ValueError, match=r"named 'mth'; .* mean 'math'"):
    twin.restore(twin.compress(base, experts), 'mth')
  with pytest.raises(ValueError, match='rank is 2, expected one of the two'):
    twin.compress(base, experts, rank=2)


def test_a_twin_is_what_the_formula_says():
  base, experts = fixtures.models()
  bundle = twin.compress(base, experts, density=0.5)
  taus = task_vectors(base, experts)
  for name in experts:
    restored = floats(twin.restore(bundle, name))
    for path, start in floats(base).items():
      tau = [taus[each][path].astype(np.float64) for each in sorted(taus)]
      shared = start + 0.29 * sum(tau)
      own = start + taus[name][path] - shared
      if own.ndim == 2:
        u, s, vh = np.linalg.svd(own, full_matrices=False)
        own = (u[:, :2] * s[:2]) @ vh[:2]
      np.testing.assert_allclose(
        restored[path], shared + own, rtol=0, atol=3e-6, err_msg=path
      )


def test_a_twin_of_full_density_is_the_expert():
  base, experts = fixtures.models(dtype=jnp.bfloat16)
  bundle = twin.compress(base, experts, density=1.0)
  for name, expert in experts.items():
    assert_near(twin.restore(bundle, name), expert)


def test_a_twin_without_rank_is_the_merge_but_for_what_is_no_matrix():
  base, experts = fixtures.models()
  bundle = twin.compress(base, experts, density=None, rank=0)
  restored = twin.restore(bundle, 'math')
  shared = floats(merging.merge(merging.task_arithmetic(0.29), base, experts))
  for path in MATRICES:
    np.testing.assert_array_equal(floats(restored)[path], shared[path])
  np.testing.assert_allclose(
    floats(restored)['block/bias'], experts['math']['block']['bias'], atol=2e-7
  )


def test_twins_mix_linearly():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  bundle = twin.compress(base, experts, density=0.5)
  mixed = twin.mix(bundle, [0.2, 0.5, 0.3])
  ends = [twin.restore(bundle, name) for name in bundle.names]
  for path, x in mixed.items():
    weighted = zip((0.2, 0.5, 0.3), ends, strict=True)
    expected = sum(w * np.asarray(end[path], np.float64) for w, end in weighted)
    np.testing.assert_allclose(x, expected, atol=1e-6)
  assert_near(twin.mix(bundle, [0.0, 0.0, 0.0]), bundle.shared)
  with pytest.raises(ValueError, match=r'shape \(2,\), expected \(3,\)'):
    twin.mix(bundle, [1.0, 2.0])


def test_twins_work_under_jit_and_vmap():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  bundle = twin.compress(base, experts, density=0.5)
  traced = jax.jit(lambda *args: twin.compress(*args, density=0.5))(
    base, experts
  )
  restore = jax.jit(twin.restore, static_argnums=1)
  for name in experts:
    assert_near(restore(traced, name), twin.restore(bundle, name), 3e-6)
  rows = jnp.eye(3)
  together = jax.vmap(lambda weights: twin.mix(bundle, weights))(rows)
  for i, name in enumerate(bundle.names):
    one = jax.tree.map(lambda x: x[i], together)  # noqa: B023
    assert_near(one, twin.restore(bundle, name), 1e-6)


def test_a_twin_s_size_is_that_of_its_factors():
  base, experts = fixtures.models()
  stored = twin.compress(base, experts, density=0.5).storage
  # Two triples of each of five matrices of 4 by 12, and a bias of four.
  assert stored == storage.Storage(
    FLOATS, 3, 4 * FLOATS, 4 * (5 * 2 * (4 + 12) + 4)
  )


def test_leaves_that_are_no_matrices_are_kept_whole():
  base, experts = fixtures.part(*fixtures.models(), 'tall', 'wide')
  bundle = twin.compress(base, experts, density=0.25, leaves='wide')
  assert isinstance(bundle.exclusive['wide'], twin.Factors)
  assert bundle.exclusive['tall'].shape == (3, 12, 4)
  restored = twin.restore(bundle, 'math')
  np.testing.assert_allclose(
    restored['tall'], experts['math']['tall'], atol=2e-7
  )


@pytest.mark.parametrize(
  'kinds', [pytest.param(drive.AUTO, marks=pytest.mark.slow), drive.EXPLICIT]
)
def test_bundles_of_sharded_models_restore_the_same(kinds):
  base, experts = fixtures.part(*fixtures.models(), 'tall', 'wide')
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=kinds)
  there, ends = drive.shard((base, experts), mesh)
  tall_one = tall.restore(tall.compress(there, ends), there, 'math')
  twin_one = twin.restore(twin.compress(there, ends, density=0.5), 'math')
  expected = (
    tall.restore(tall.compress(base, experts), base, 'math'),
    twin.restore(twin.compress(base, experts, density=0.5), 'math'),
  )
  for one, other in zip((tall_one, twin_one), expected, strict=True):
    assert_near(one, other, 1e-6)
    for path, x in one.items():
      assert x.sharding.is_equivalent_to(there[path].sharding, x.ndim)
