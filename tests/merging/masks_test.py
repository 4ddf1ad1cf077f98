"""TALL masks and Consensus: laws and edges."""

import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging.deltas import mask
from tests.merging import fixtures
from tests.merging.cases import masks


def merge(transform, **experts):
  """Merges experts given as lists into a base of zeros."""
  experts = {
    name: {'w': jnp.asarray(x, jnp.float32)} for name, x in experts.items()
  }
  base = {'w': jnp.zeros_like(next(iter(experts.values()))['w'])}
  return merging.merge(transform, base, experts)['w'].tolist()


def restored(name, threshold, **experts):
  """What is left of the merge for one expert."""
  only = {each: float(each == name) for each in experts}
  transform = merging.chain(
    merging.localise(merging.total(), threshold),
    merging.weigh(only),
    merging.total(),
  )
  return merge(transform, **experts)


def test_a_threshold_of_zero_keeps_all_that_an_expert_changed():
  a, b = [1, 0, -3, 0], [1, 2, 0, 0]
  assert restored('a', 0.0, a=a, b=b) == [2, 0, -3, 0]
  assert restored('b', 0.0, a=a, b=b) == [2, 2, 0, 0]


def test_experts_that_share_no_entry_are_restored_exactly():
  a, b = [1.5, 0, -3, 0], [0, 2.5, 0, 0]
  assert restored('a', 0.6, a=a, b=b) == a
  assert restored('b', 0.6, a=a, b=b) == b


def test_equality_does_not_count():
  # |1| > 0.5 |3 - 1| is false.
  assert restored('a', 0.5, a=[1], b=[2]) == [0]
  assert restored('a', 0.499, a=[1], b=[2]) == [3]


def test_selfish_and_catastrophic_entries():
  a, b = [1, 5, 1, 1], [1, 0, 4, -1]
  total = [2, 5, 5, 0]
  needed = [2, 1, 1, 0]
  for k in range(4):
    kept = [x if n >= k else 0 for x, n in zip(total, needed, strict=True)]
    transform = merging.keep_shared(merging.total(), 0.5, k)
    assert merge(transform, a=a, b=b) == kept


def test_k_of_zero_is_the_inner_merge_and_one_expert_has_no_consensus():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  one, other = (
    merging.merge(each, base, experts)
    for each in (merging.consensus(0.3, k=0), merging.task_arithmetic(0.3))
  )
  for path in one:
    np.testing.assert_array_equal(one[path], other[path])
  assert merge(merging.consensus(0.5), a=[1, 2]) == [0, 0]
  assert merge(merging.consensus(0.5, k=1), a=[4, 2]) == [2, 1]


def test_ties_as_inner_merge_equals_the_oracle():
  base, experts = fixtures.part(*fixtures.models('lattice'), 'wide')
  inner = merging.ties(0.5, combine='sum')
  merged = merging.merge(
    merging.consensus(1.0, masks.THRESHOLDS, inner=inner), base, experts
  )
  taus = {
    name: {path: np.asarray(x - base[path]) for path, x in end.items()}
    for name, end in experts.items()
  }
  tau = merging.tree.sub(merging.merge(inner, base, experts), base)
  tau = {path: np.asarray(x) for path, x in tau.items()}
  expected = masks.consensus(taus, 1.0, masks.THRESHOLDS, 2, tau)
  for path, x in merged.items():
    np.testing.assert_allclose(x - base[path], expected[path], atol=1e-7)


def test_thresholds_by_name_by_place_and_for_all():
  a, b = [1, 1], [1, 4]
  for threshold in (0.3, {'a': 0.3, 'b': 0.3}, [0.3, 0.3], jnp.full(2, 0.3)):
    transform = merging.consensus(1.0, threshold)
    assert merge(transform, a=a, b=b) == [2, 0]
  with pytest.raises(ValueError, match=r"'mth'; .* mean 'math'"):
    merge(merging.consensus(1.0, {'mth': 0.3}), math=[1])
  with pytest.raises(ValueError, match=r'threshold is -0.1, expected at least'):
    merging.consensus(1.0, -0.1)
  with pytest.raises(ValueError, match='k is -1, expected at least 0'):
    merging.consensus(1.0, k=-1)


def test_masks_need_one_merge_and_all_experts():
  several = merging.consensus(1.0, inner=merging.identity())
  with pytest.raises(ValueError, match='the inner merge leaves 2 deltas'):
    merge(several, a=[1], b=[1])
  late = merging.chain(merging.total(), merging.consensus(1.0))
  with pytest.raises(ValueError, match='before the experts are combined'):
    merge(late, a=[1], b=[1])


def test_a_mask_equals_its_definition_in_every_entry():
  rng = np.random.default_rng(0)
  tau, merged = rng.normal(size=(2, 200)).astype(np.float32)
  expected = [
    abs(x) > np.float32(0.4) * abs(y - x)
    for x, y in zip(tau, merged, strict=True)
  ]
  np.testing.assert_array_equal(mask.tall_mask(tau, merged, 0.4), expected)


def test_it_says_what_to_cite():
  for transform in (
    merging.consensus(),
    merging.localise(merging.total()),
    merging.keep_shared(merging.total()),
  ):
    assert '{wang2024localizing,' in merging.citations(transform)
