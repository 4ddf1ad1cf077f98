"""Laws between recipes, signs and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import fixtures
from tests.merging.cases import basics


def merge(transform, **experts):
  """Merges experts given as lists into a base of zeros."""
  experts = {
    name: {'w': jnp.asarray(x, jnp.float32)} for name, x in experts.items()
  }
  base = jax.tree.map(jnp.zeros_like, next(iter(experts.values())))
  return merging.merge(transform, base, experts)['w'].tolist()


def assert_equal_merges(one, other, models=None, atol=0.0):
  base, experts = models or fixtures.part(
    *fixtures.models(), 'bias', 'wide', 'tall'
  )
  a, b = (merging.merge(each, base, experts) for each in (one, other))
  for path in a:
    np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol)


def test_task_arithmetic_with_one_over_the_experts_is_the_average():
  assert_equal_merges(
    merging.task_arithmetic(1 / 3), merging.average(), atol=3e-7
  )


def test_equal_weights_are_the_average():
  assert_equal_merges(
    merging.weighted_average([2, 2, 2]), merging.average(), atol=3e-7
  )


def test_weights_by_name_and_by_position_agree():
  for make in (merging.weighted_average, merging.task_arithmetic):
    by_name = make(basics.WEIGHTS)
    if make is merging.weighted_average:
      other = make(jnp.array([0.5, 0.25, 1.0]))
    else:
      other = merging.chain(merging.weigh([0.5, 0.25, 1.0]), merging.total())
    assert_equal_merges(by_name, other)


def test_a_weight_of_zero_leaves_an_expert_out():
  weights = {'a': 1.0, 'b': 0.0}
  assert merge(merging.weighted_average(weights), a=[3], b=[99]) == [3]
  assert merge(merging.task_arithmetic(weights), a=[3], b=[99]) == [3]


def test_weights_may_be_traced():
  base, experts = {'w': jnp.zeros(2)}, {'a': {'w': jnp.ones(2)}}

  def loss(weight):
    transform = merging.task_arithmetic({'a': weight})
    return jnp.sum(merging.merge(transform, base, experts)['w'])

  assert jax.grad(loss)(0.5) == 2.0
  average = jax.jit(
    lambda weight: merging.merge(
      merging.weighted_average({'a': weight}), base, experts
    )
  )
  assert average(4.0)['w'].tolist() == [1, 1]


def test_ties_of_agreeing_experts_without_trimming_is_the_average():
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  agreeing = {
    name: jax.tree.map(lambda x, y: x + jnp.abs(y), base, expert)
    for name, expert in experts.items()
  }
  assert_equal_merges(
    merging.ties(1.0), merging.average(), (base, agreeing), 3e-7
  )


def test_ties_is_the_chain_it_says():
  one = merging.ties(0.3, 0.7)
  other = merging.chain(
    merging.trim(0.3),
    merging.elect_sign(),
    merging.disjoint_mean(),
    merging.scale(0.7),
  )
  assert one.update == other.update
  assert_equal_merges(one, other)


def test_negation_and_analogy():
  assert_equal_merges(merging.negate(0.3), merging.task_arithmetic(-0.3))
  analogy = merging.analogy('a', 'b', 'c', 0.5)
  assert merge(analogy, a=[1], b=[10], c=[100]) == [54.5]
  with pytest.raises(ValueError, match='expected three experts'):
    merging.analogy('a', 'a', 'c')
  with pytest.raises(ValueError, match=r"no value for 'd'; use 0 to leave"):
    merge(analogy, a=[1], b=[10], c=[100], d=[1])


def test_what_a_sum_of_zero_elects():
  # Two positive entries against one negative, and one that cancels.
  a, b = [1, 2, -1, 4], [1, 0, -1, -4]

  def elected(zero, a=a, b=b):
    transform = merging.chain(merging.elect_sign(zero=zero), merging.total())
    return merge(transform, a=a, b=b)

  assert elected('keep') == [2, 2, -2, 0]
  assert elected('positive') == [2, 2, -2, 4]
  assert elected('majority') == [2, 2, -2, 4]
  flipped = elected('majority', [-x for x in a], [-x for x in b])
  assert flipped == [-2, -2, 2, -4]
  assert elected('majority', [1, -1, 4], [1, -1, -4]) == [2, -2, 0]
  with pytest.raises(ValueError, match="zero is 'plus', expected one of"):
    merging.elect_sign(zero='plus')


def test_disjoint_mean_counts_those_present():
  assert merge(merging.disjoint_mean(), a=[1, 0, 0], b=[3, 5, 0]) == [2, 5, 0]


def test_ties_sums_if_told():
  a, b = [1, -1], [3, 3]
  assert merge(merging.ties(1.0, combine='sum'), a=a, b=b) == [4, 3]
  assert merge(merging.ties(1.0), a=a, b=b) == [2, 3]
  with pytest.raises(ValueError, match="combine is 'max', expected one of"):
    merging.ties(combine='max')


def test_weights_are_checked():
  with pytest.raises(
    ValueError,
    match=r"no expert is named 'mth'; .* 'math'; did you mean 'math'",
  ):
    merge(merging.task_arithmetic({'mth': 1.0}), math=[1])
  with pytest.raises(ValueError, match=r'shape \(2,\), expected \(1,\)'):
    merge(merging.weigh([1.0, 2.0]), math=[1])
  with pytest.raises(ValueError, match='add up to 0; use task_arithmetic'):
    merging.weighted_average({'a': 1.0, 'b': -1.0})
  late = merging.chain(merging.mean(), merging.weigh([1.0, 2.0]))
  with pytest.raises(ValueError, match='weigh the experts before'):
    merge(late, a=[1], b=[1])
