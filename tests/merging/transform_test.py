"""The algebra: composition, observers, routing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import programs
from tests.merging import drive
from tests.merging import fixtures
from tests.merging import table


@pytest.mark.parametrize(
  'name',
  ['weighted_mean', pytest.param('ties_index', marks=pytest.mark.slow)],
)
def test_the_protocol_alone_is_a_streaming_merge(name):
  """`init`, `observers` and `update`, op by op, leaves in reverse order."""
  case = table.named(name)
  base, experts = fixtures.part(*fixtures.models('lattice'), 'bias', 'wide')
  extra = case.extra(base)
  transform = case.make()
  disk = drive.Disk(transform, base, experts, extra)
  specs = disk.specs

  def leaf_of(index):
    route, (_, (start, *ends), data, _) = disk.read(index)
    deltas = tuple(end - start for end in ends)
    return merging.Leaf(start, deltas, index, route), data

  state = transform.init(specs, disk.models)
  for observer in transform.observers:
    total = None
    for index in reversed(range(len(specs))):
      leaf, data = leaf_of(index)
      statistic = observer.observe(leaf, state, **data)
      if total is None:
        total = statistic
      elif statistic is not None:
        total = jax.tree.map(jnp.add, total, statistic)
    state = observer.finish(total, state)
  merged = merging.merge(case.make(), base, experts, **extra)
  for index, spec in enumerate(specs):
    leaf, data = leaf_of(index)
    out = transform.update(leaf, state, **data)
    # Compiled, a product and a sum are rounded once.
    np.testing.assert_allclose(
      out.base + out.deltas[0], merged[spec.path], rtol=1e-6, atol=1e-8
    )


def test_statistics_add_up_in_any_order():
  base, experts = table.named('ties').alike(kind='lattice')
  base, experts = jax.tree.map(
    lambda params: {**params, 'other': -params['wide'][:, ::-1]},
    (base, experts),
    is_leaf=lambda x: 'wide' in x,
  )
  transform = merging.ties(0.3, ties='index')
  disk = drive.Disk(transform, base, experts, {})
  state = transform.init(disk.specs, disk.models)
  for observer in transform.observers:
    parts = [
      disk.observe(observer, index, state) for index in range(len(disk.specs))
    ]
    sums = [
      functools.reduce(programs.add_statistics, order)
      for order in itertools.permutations(parts)
    ]
    for other in sums[1:]:
      jax.tree.map(np.testing.assert_array_equal, sums[0], other)
    state = programs.finish(observer.finish, sums[0], state)


def values(**leaves):
  return {name: jnp.asarray(x, jnp.float32) for name, x in leaves.items()}


def merge_one(transform, **leaves):
  """Merges one expert into a base of zeros."""
  expert = values(**leaves)
  base = jax.tree.map(jnp.zeros_like, expert)
  merged = merging.merge(transform, base, {'expert': expert})
  return {name: x.tolist() for name, x in merged.items()}


def test_an_empty_chain_is_the_identity():
  assert merge_one(merging.chain(), w=[1, 2]) == {'w': [1, 2]}
  assert merge_one(merging.identity(), w=[1, 2]) == {'w': [1, 2]}


def test_chains_nest():
  flat = merging.ties(0.3, 0.7)
  nested = merging.chain(
    merging.chain(merging.trim(0.3), merging.elect_sign()),
    merging.chain(merging.disjoint_mean(), merging.scale(0.7)),
  )
  base, experts = table.named('ties').alike(kind='lattice')
  one, other = (merging.merge(each, base, experts) for each in (flat, nested))
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_equal_transforms_share_their_functions():
  one, other = merging.ties(0.2, 0.5), merging.ties(0.3, 0.7)
  assert one.update == other.update
  assert [each.observe for each in one.observers] == [
    each.observe for each in other.observers
  ]
  assert one.update != merging.ties(0.2, ties='index').update


def test_map_deltas_is_applied_to_each_expert_before_combining():
  transform = merging.chain(merging.map_deltas(jnp.round), merging.total())
  merged = merging.merge(
    transform, values(w=[0.0]), {'a': values(w=[0.4]), 'b': values(w=[0.9])}
  )
  assert merged['w'].tolist() == [1.0]


def test_partition_selects_within_each_group():
  transform = merging.partition(
    {'a': merging.trim(0.5), 'b': merging.trim(0.25, ties='index')},
    lambda path: path[0],
  )
  merged = merge_one(transform, a1=[1, 2], a2=[3, 4], b1=[1, 4], b2=[4, 3])
  assert merged == {'a1': [0, 2], 'a2': [3, 4], 'b1': [0, 4], 'b2': [0, 0]}


def test_a_partition_inside_a_chain_keeps_the_place_of_a_leaf():
  # The second trim counts per leaf, by its place among all leaves.
  transform = merging.chain(
    merging.partition(
      {'double': merging.scale(2.0), 'same': merging.identity()},
      {'b': 'double', '.': 'same'},
    ),
    merging.trim(0.5, scope='tensor', ties='index'),
  )
  merged = merge_one(transform, a=[1, 2], b=[1, 2, 3, 4], c=[3, 1, 2, 4, 5, 6])
  assert merged == {'a': [0, 2], 'b': [0, 0, 6, 8], 'c': [0, 0, 0, 4, 5, 6]}


def test_masked_policies():
  def merged(otherwise):
    transform = merging.chain(
      merging.masked(merging.scale(2.0), '^w', otherwise), merging.mean()
    )
    experts = {'a': values(w=[1.0], b=[1.0]), 'b': values(w=[3.0], b=[3.0])}
    out = merging.merge(transform, values(w=[0.0], b=[0.0]), experts)
    return float(out['w'][0]), float(out['b'][0])

  assert merged('base') == (4.0, 0.0)
  assert merged('mean') == (4.0, 2.0)
  assert merged('pass') == (4.0, 2.0)


def test_masked_takes_a_predicate():
  transform = merging.masked(merging.mean(), lambda path: len(path) == 1)
  assert merge_one(transform, w=[1], bias=[1]) == {'w': [1], 'bias': [0]}


def refused(match, transform):
  with pytest.raises(ValueError, match=match):
    merge_one(transform, kernel=[1], bias=[1])


def test_a_mask_must_select_something():
  refused(
    "masked: no leaf matches 'kernal'; the leaves are 'bias', 'kernel'; "
    "did you mean 'kernel'",
    merging.masked(merging.mean(), 'kernal'),
  )
  refused(
    'masked: no leaf matches <function',
    merging.masked(merging.mean(), lambda path: False),
  )


def test_a_mask_must_be_a_regular_expression():
  with pytest.raises(ValueError, match=r"masked: '\(' is not a regular"):
    merging.masked(merging.mean(), '(')


def test_a_policy_must_be_known():
  with pytest.raises(ValueError, match=r"otherwise is 'bass', .* 'base'"):
    merging.masked(merging.mean(), '.', 'bass')


def test_every_leaf_needs_a_label_and_every_label_a_leaf():
  transforms = {'matrix': merging.mean(), 'other': merging.total()}
  refused(
    "'bias' is labelled 'othr', .*; did you mean 'other'",
    merging.partition(
      transforms, lambda path: 'matrix' if path == 'kernel' else 'othr'
    ),
  )
  refused(
    "no leaf is labelled 'other'; the leaves are 'bias', 'kernel'",
    merging.partition(transforms, lambda path: 'matrix'),
  )
  refused(
    "no pattern of 'kernel' matches 'bias'",
    merging.partition(transforms, {'kernel': 'matrix'}),
  )
  refused(
    "no leaf matches 'biass'",
    merging.partition(
      transforms, {'kernel': 'matrix', 'biass': 'other', '.': 'other'}
    ),
  )
  refused(
    "the leaves that 'bias' matches are all taken .* among '.'; put it first",
    merging.partition(transforms, {'.': 'matrix', 'bias': 'other'}),
  )
