"""Dropping at random: expectation, and what the mask depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import fixtures
from tests.merging import oracles
from tests.merging.cases import basics


def test_the_expectation_is_the_task_vector():
  base, expert = {'w': jnp.zeros(2000)}, {'w': jnp.linspace(-1, 1, 2000)}

  def merged(key):
    transform = merging.dare(0.9, merging.average(), key=key)
    return merging.merge(transform, base, {'a': expert})['w']

  samples = 400
  mean = jax.vmap(merged)(jax.random.split(basics.KEY, samples)).mean(axis=0)
  deviation = np.abs(expert['w']) * np.sqrt(0.9 / 0.1 / samples)
  gap = np.abs(mean - expert['w'])
  assert np.all(gap <= 5 * deviation + 1e-6)
  assert np.mean(gap <= 2 * deviation + 1e-6) > 0.93


def test_a_rate_of_zero_is_the_inner_merge():
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  for inner in (merging.task_arithmetic(0.3), merging.ties(0.3)):
    one, other = (
      merging.merge(each, base, experts)
      for each in (merging.dare(0.0, inner, key=basics.KEY), inner)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def kept(experts, path='w'):
  """Returns where each of these experts keeps its delta."""
  base = {path: jnp.zeros(256)}
  masks = {}
  for name in experts:
    transform = merging.chain(
      merging.drop_and_rescale(0.5, key=basics.KEY),
      merging.weigh({each: float(each == name) for each in experts}),
      merging.total(),
    )
    models = {each: {path: jnp.ones(256)} for each in experts}
    masks[name] = np.asarray(merging.merge(transform, base, models)[path]) != 0
  return masks


def test_a_mask_depends_on_the_key_the_path_and_the_name_alone():
  alone, together = kept(['b']), kept(['a', 'b', 'c'])
  np.testing.assert_array_equal(alone['b'], together['b'])
  different = [*together.values(), kept(['b'], path='v')['b']]
  for i, one in enumerate(different):
    assert 90 < one.sum() < 166
    for other in different[:i]:
      assert 90 < (one == other).sum() < 166


@pytest.mark.parametrize('rescale', ['none', 'l1', 'l2', 'linf'])
def test_rescale_restores_the_norm(rescale):
  rng = np.random.default_rng(0)
  tau = {'e': {'w': rng.normal(size=40).astype(np.float32), 'z': np.zeros(3)}}
  base = {'w': jnp.zeros(40), 'z': jnp.zeros(3)}
  expert = {path: jnp.asarray(x, jnp.float32) for path, x in tau['e'].items()}
  transform = merging.drop_and_rescale(0.5, key=basics.KEY, rescale=rescale)
  merged = merging.merge(transform, base, {'e': expert})
  expected = oracles.drop(tau, 0.5, basics.KEY, rescale)['e']
  for path, x in merged.items():
    np.testing.assert_allclose(x, expected[path], rtol=1e-6)
  if rescale != 'none':
    order = {'l1': 1, 'l2': 2, 'linf': np.inf}[rescale]
    norms = [np.linalg.norm(x, order) for x in (merged['w'], expert['w'])]
    np.testing.assert_allclose(*norms, rtol=1e-6)


@pytest.mark.parametrize('impl', ['rbg', 'unsafe_rbg'])
def test_other_generators_keep_the_mask_of_an_expert_too(impl):
  key = jax.random.key(0, impl=impl)
  transform = merging.chain(
    merging.drop_and_rescale(0.5, key=key),
    merging.weigh({'a': 0.0, 'b': 1.0}),
    merging.total(),
  )
  model = {'w': jnp.ones(64)}
  base = {'w': jnp.zeros(64)}
  both = merging.merge(transform, base, {'a': model, 'b': model})
  alone = merging.merge(
    merging.drop_and_rescale(0.5, key=key), base, {'b': model}
  )
  np.testing.assert_array_equal(both['w'], alone['w'])


def test_legacy_keys_work():
  model = {'w': jnp.ones(8)}
  base = {'w': jnp.zeros(8)}
  one, other = (
    merging.merge(merging.drop_and_rescale(0.5, key=key), base, {'a': model})[
      'w'
    ]
    for key in (jax.random.key(3), jax.random.PRNGKey(3))
  )
  np.testing.assert_array_equal(one, other)


def test_errors():
  with pytest.raises(ValueError, match=r'rate is 1.0, expected 0 <= rate < 1'):
    merging.drop_and_rescale(1.0, key=basics.KEY)
  with pytest.raises(TypeError, match=r'key is 0, expected .* jax.random.key'):
    merging.drop_and_rescale(0.5, key=0)
  with pytest.raises(ValueError, match="rescale is 'l3', expected one of"):
    merging.drop_and_rescale(0.5, key=basics.KEY, rescale='l3')
  late = merging.chain(
    merging.mean(), merging.drop_and_rescale(0.5, key=basics.KEY)
  )
  model = {'w': jnp.ones(2)}
  with pytest.raises(ValueError, match='drop before the experts are combined'):
    merging.merge(late, model, {'a': model, 'b': model})
