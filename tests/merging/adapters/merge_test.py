"""Merging adapters: of changes, exactly, and why not of factors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import adapters
from tests.merging.adapters import models

KERNELS = [models.KERNEL.format(i) for i in range(models.BLOCKS)]
ZERO = np.zeros((models.IN, models.OUT))


def experts():
  """Of different ranks, scales, kinds and leaves."""
  some = models.expert(2, rank=3, alpha=5.0, scaling='rslora')
  return {
    'code': models.expert(1),
    'math': {path: some[path] for path in KERNELS[:2]},
    'prose': models.expert(3, dora=True),
  }


def weight(i):
  return models.draw(i, models.IN, models.OUT)


def test_the_average_is_that_of_the_changes():
  found = adapters.merge_adapters(merging.average(), models.base(), experts())
  for i, path in enumerate(KERNELS):
    changes = [
      models.dense(each[path], weight(i)) if path in each else ZERO
      for each in experts().values()
    ]
    np.testing.assert_allclose(
      found['blocks'][i]['kernel'], weight(i) + sum(changes) / 3, atol=1e-5
    )


def test_averaged_factors_are_another_model():
  given = {'code': models.expert(1), 'math': models.expert(2)}
  merged = adapters.merge_adapters(merging.average(), models.base(), given)
  factors = jax.tree.map(lambda x, y: (x + y) / 2, *given.values())
  wrong = adapters.apply(models.base(), factors)
  for i, path in enumerate(KERNELS):
    code, math = (
      models.dense(each[path], weight(i)) for each in given.values()
    )
    exact = weight(i) + (code + math) / 2
    error = np.abs(wrong['blocks'][i]['kernel'] - exact).max()
    assert error > 0.1 * np.abs(exact - weight(i)).max()
    np.testing.assert_allclose(merged['blocks'][i]['kernel'], exact, atol=1e-5)


def test_another_factorisation_of_an_expert_changes_nothing():
  turn = models.draw(5, 2, 2)
  given = {'code': models.expert(1), 'math': models.expert(2)}
  other = {
    path: adapters.Lora(
      each.a @ turn, np.linalg.inv(turn) @ each.b, scale=each.scale
    )
    for path, each in given['math'].items()
  }
  for merge in (merging.average(), merging.task_arithmetic(0.3)):
    x = adapters.merge_adapters(merge, models.base(), given)
    y = adapters.merge_adapters(merge, models.base(), {**given, 'math': other})
    for p, q in zip(x['blocks'], y['blocks'], strict=True):
      np.testing.assert_allclose(p['kernel'], q['kernel'], atol=1e-4)


def lattice(seed, leaves):
  rng = np.random.default_rng(seed)

  def values(*shape):
    return jnp.asarray(rng.integers(-2, 3, size=shape), jnp.float32)

  return {
    path: adapters.Lora(values(models.IN, 2), values(2, models.OUT), scale=0.25)
    for path in leaves
  }


@pytest.mark.parametrize(
  'make',
  [
    lambda: merging.ties(0.3),
    lambda: merging.ties(0.3, scope='tensor', ties='index'),
    lambda: merging.dare(0.5, merging.average(), key=jax.random.key(3)),
    lambda: merging.masked(merging.ties(0.5), '[01]/kernel', 'mean'),
    lambda: merging.weighted_average({'code': 3.0, 'math': 1.0}),
  ],
)
def test_any_transform_sees_what_merge_would_show_it(make):
  # Quarters and small sums of them are exact in float32, added or not.
  base = {
    'blocks': [{'kernel': jnp.round(weight(i) * 4) / 4} for i in range(4)]
  }
  given = {'code': lattice(1, KERNELS), 'math': lattice(2, KERNELS[1:])}
  found = adapters.merge_adapters(make(), base, given)
  full = {name: adapters.apply(base, each) for name, each in given.items()}
  expected = merging.merge(make(), base, full)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_small_changes_of_a_bfloat16_base_are_not_lost():
  base = {'w': jnp.full((4, 4), 1.0, jnp.bfloat16)}
  step = 2.0**-10  # An eighth of the last place.
  given = {
    name: {'w': adapters.Lora(jnp.full((4, 1), step), jnp.ones((1, 4)))}
    for name in 'abcdefgh'
  }
  merged = adapters.merge_adapters(merging.task_arithmetic(1.0), base, given)
  assert merged['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.asarray(merged['w'], np.float32), 1 + 2.0**-7
  )
  # As full checkpoints in bfloat16, all experts equal the base.
  full = {name: adapters.apply(base, each) for name, each in given.items()}
  lost = merging.merge(merging.task_arithmetic(1.0), base, full)
  np.testing.assert_array_equal(np.asarray(lost['w'], np.float32), 1)


def test_extra_data_reaches_the_leaf_it_is_for():
  given = {'code': models.expert(1), 'math': models.expert(2)}
  weights = {'code': 1.0, 'math': 3.0}
  importance = {
    name: {'blocks': {'0': {'kernel': np.full((6, 4), value, np.float32)}}}
    for name, value in weights.items()
  }
  found = adapters.merge_adapters(
    merging.weighted_mean('importance'),
    models.base(),
    given,
    importance=importance,
  )
  for i, path in enumerate(KERNELS[:2]):
    code, math = (
      models.dense(each[path], weight(i)) for each in given.values()
    )
    share = 0.75 if i == 0 else 0.5
    np.testing.assert_allclose(
      found['blocks'][i]['kernel'],
      weight(i) + (1 - share) * code + share * math,
      atol=1e-5,
    )


def test_a_linear_merge_is_exact_at_the_sum_of_ranks():
  given = {'code': models.expert(1, rank=1), 'math': models.expert(2, rank=2)}
  merge = merging.task_arithmetic(0.5)
  for rank in (1, 3):
    made, discarded = adapters.merge_to_adapter(
      merge, models.base(), given, rank=rank
    )
    for i, path in enumerate(KERNELS):
      exact = 0.5 * sum(
        models.dense(each[path], ZERO) for each in given.values()
      )
      s = np.linalg.svd(exact, compute_uv=False)
      np.testing.assert_allclose(
        discarded[path], np.sum(s[rank:] ** 2) / np.sum(s**2), atol=1e-5
      )
      if rank == 3:
        again = adapters.delta(made, models.base())[path]
        np.testing.assert_allclose(again, exact, atol=1e-4)
      assert made[path].a.shape == (models.IN, rank), i


def test_stacked_layers_merge_as_leaves_of_their_own():
  given = {'code': models.expert(1), 'math': models.expert(2)}
  base = models.base()
  merge = merging.ties(0.5, scope='tensor')
  expected = adapters.merge_adapters(merge, base, given)['blocks']
  stack = {'w': jnp.stack([block['kernel'] for block in base['blocks']])}
  stacked = {
    name: {'w': jax.tree.map(lambda *x: jnp.stack(x), *each.values())}
    for name, each in given.items()
  }
  merge = merging.unstacked(merge, 'w')
  found = adapters.merge_adapters(merge, stack, stacked)['w']
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, y['kernel'], atol=1e-6)
  small, _ = adapters.merge_to_adapter(merge, stack, stacked, rank=models.OUT)
  again = adapters.apply(stack, small)['w']
  np.testing.assert_allclose(again, found, atol=1e-4)


def test_layouts_give_transposed_results():
  results = []
  for layout in ('in_out', 'out_in'):
    given = {
      name: {
        path: adapters.Lora(each.a, each.b, scale=each.scale, layout=layout)
        for path, each in models.expert(seed).items()
      }
      for name, seed in (('code', 1), ('math', 2))
    }
    base = models.base(layout=layout)
    dense = adapters.merge_adapters(merging.ties(0.5), base, given)
    small, _ = adapters.merge_to_adapter(merging.ties(0.5), base, given, rank=4)
    results.append((dense, adapters.apply(base, small)))
  (x, small), (y, turned) = results
  for i in range(models.BLOCKS):
    kernel = x['blocks'][i]['kernel']
    np.testing.assert_allclose(kernel, y['blocks'][i]['kernel'].T, atol=1e-6)
    np.testing.assert_allclose(kernel, small['blocks'][i]['kernel'], atol=1e-4)
    np.testing.assert_allclose(
      kernel, turned['blocks'][i]['kernel'].T, atol=1e-4
    )


def test_one_expert_and_no_change_are_defined():
  base = models.base()
  one = {'only': models.expert(1)}
  found = adapters.merge_adapters(merging.average(), base, one)
  expected = adapters.apply(base, one['only'])
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-6)
  new = {
    name: adapters.init_lora(jax.random.key(0), base, rank=2) for name in 'ab'
  }
  found = adapters.merge_adapters(merging.ties(), base, new)
  jax.tree.map(np.testing.assert_array_equal, found, base)
  _, discarded = adapters.merge_to_adapter(merging.ties(), base, new, rank=1)
  assert set(map(float, discarded.values())) == {0.0}


def test_under_jit_vmap_and_grad():
  base = models.base()
  given = {'code': models.expert(1), 'math': models.expert(2)}

  @jax.jit
  def loss(scale, given):
    merged = adapters.merge_adapters(
      merging.task_arithmetic(scale), base, given
    )
    return jnp.sum(merged['blocks'][0]['kernel'])

  changes = sum(models.dense(each[KERNELS[0]], ZERO) for each in given.values())
  values = jax.vmap(loss, (0, None))(jnp.array([0.0, 1.0]), given)
  np.testing.assert_allclose(values[1] - values[0], changes.sum(), rtol=1e-4)
  slope, by_adapter = jax.grad(loss, (0, 1))(1.0, given)
  np.testing.assert_allclose(slope, changes.sum(), rtol=1e-4)
  b = given['code'][KERNELS[0]]
  np.testing.assert_allclose(
    by_adapter['code'][KERNELS[0]].b,
    b.scale * np.repeat(np.sum(b.a, 0)[:, None], models.OUT, axis=1),
    rtol=1e-4,
  )


def test_leaves_of_one_shape_share_a_program():
  given = {'code': models.expert(1), 'math': models.expert(2)}

  def compiled():
    return merging.programs.update_leaf._cache_size()

  merge = adapters.merge_adapters
  merge(merging.task_arithmetic(0.1), models.base(), given)
  before = compiled()
  merge(merging.task_arithmetic(0.7), models.base(), given)
  assert compiled() == before


@pytest.mark.parametrize(
  'kind',
  [
    pytest.param(jax.sharding.AxisType.Auto, marks=pytest.mark.slow),
    jax.sharding.AxisType.Explicit,
  ],
)
def test_on_a_mesh(kind):
  mesh = jax.make_mesh((2,), ('x',), axis_types=(kind,))
  given = {'code': models.expert(1), 'math': models.expert(2)}
  base = models.base()

  def place(leaf):
    halves = leaf.ndim == 2 and leaf.shape[0] % 2 == 0
    spec = jax.P('x') if halves else jax.P()
    return jax.device_put(leaf, jax.NamedSharding(mesh, spec))

  sharded = jax.tree.map(place, base)
  with jax.set_mesh(mesh):
    found = (
      adapters.apply(sharded, given['code']),
      adapters.merge_adapters(merging.ties(0.5), sharded, given),
    )
    small, _ = adapters.merge_to_adapter(
      merging.average(), sharded, given, rank=2
    )
  expected = (
    adapters.apply(base, given['code']),
    adapters.merge_adapters(merging.ties(0.5), base, given),
  )
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, atol=1e-6)
  kernel = found[1]['blocks'][0]['kernel']
  assert kernel.sharding.spec[0] == 'x'
  alone, _ = adapters.merge_to_adapter(merging.average(), base, given, rank=2)
  x, y = (
    adapters.delta(jax.device_get(each), base)[KERNELS[0]]
    for each in (small, alone)
  )
  np.testing.assert_allclose(x, y, atol=1e-5)


def test_what_is_refused():
  base = models.base()
  good = models.expert(1)
  merge = merging.average()
  with pytest.raises(ValueError, match='there are no experts'):
    adapters.merge_adapters(merge, base, {})
  with pytest.raises(ValueError, match='adapt no leaf'):
    adapters.merge_adapters(merge, base, {'a': {}})
  with pytest.raises(TypeError, match='expected a mapping from names'):
    adapters.merge_adapters(merge, base, [good])
  bad = jax.tree.map(lambda x: x * jnp.nan, {KERNELS[1]: good[KERNELS[1]]})
  with pytest.raises(ValueError, match="infinity: 'math' at 'blocks/1/kernel'"):
    adapters.merge_adapters(merge, base, {'code': good, 'math': bad})
  with pytest.raises(
    ValueError, match="'math' at 'blocks/0/kernel': for shape"
  ):
    adapters.merge_adapters(merge, models.base(layout='out_in'), {'math': good})
  with pytest.raises(ValueError, match='leaves 2 deltas') as error:
    adapters.merge_adapters(merging.trim(0.5), base, {'a': good, 'b': good})
  assert any("'blocks/0/kernel'" in note for note in error.value.__notes__)
  square = {'w': adapters.Lora(jnp.ones((3, 1)), jnp.ones((1, 3)))}
  other = {'w': dataclasses.replace(square['w'], layout='out_in')}
  with pytest.raises(ValueError, match="at 'w' do not agree on its layout"):
    adapters.merge_adapters(
      merge, {'w': jnp.ones((3, 3))}, {'a': square, 'b': other}
    )
  with pytest.raises(ValueError, match='rank is 0'):
    adapters.merge_to_adapter(merge, base, {'a': good}, rank=0)
  with pytest.raises(TypeError, match="takes no 'importance'"):
    adapters.merge_adapters(merge, base, {'a': good}, importance={'a': {}})
