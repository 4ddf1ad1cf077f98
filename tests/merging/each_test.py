"""Merging every leaf as a model of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import drive
from tests.merging import fixtures
from tests.merging import table
from tests.merging.merges_test import compile_counter

KEY = jax.random.key(3)
PER_TENSOR = [
  'average',
  'dare_task_arithmetic',
  'task_arithmetic',
  'ties_mergekit',
]


# These order or select leaves: of one leaf alone they refuse to.
NEED_SEVERAL = (
  'layer_swap',
  'lines',
  'lines_alpha',
  'lines_signs',
  'masked',
  'partition',
  'reasoning_vector',
  'robust_signature',
)


def models():
  return fixtures.part(*fixtures.models('lattice'), 'bias', 'wide')


def many(leaves=20):
  rng = np.random.default_rng(0)

  def one():
    return {
      f'l{i:02d}': rng.normal(size=(2, 3)).astype(np.float32)
      for i in range(leaves)
    }

  return one(), {'x': one(), 'y': one()}


def number(spec):
  return int(spec.path[1:])


def assert_equal(a, b):
  a, b = merging.tree.flatten(a), merging.tree.flatten(b)
  assert set(a) == set(b)
  for path, x in a.items():
    np.testing.assert_array_equal(x, b[path], err_msg=path)


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(
      case,
      id=case.name,
      marks=[] if case.name == 'ties' else [pytest.mark.slow],
    )
    for case in table.MERGES
    if case.name not in NEED_SEVERAL and not case.extra({'w': np.zeros(1)})
  ],
)
def test_each_leaf_is_a_model(case):
  base, experts = case.alike()
  transform = merging.each(lambda spec: case.make())
  merged = merging.merge(transform, base, experts)
  for path in base:
    alone = merging.merge(
      case.make(),
      {path: base[path]},
      {name: {path: each[path]} for name, each in experts.items()},
    )
    near(merged[path], alone[path], case.compiled)
  found = drive.stream(transform, base, experts, piece=16)
  for path in base:
    near(found[path], merged[path], case.sharded)


def near(found, wanted, tolerance):
  scale = tolerance * np.abs(wanted).max()
  np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=scale)


@pytest.mark.parametrize('name', PER_TENSOR)
def test_methods_of_tensors_give_the_same_without(name):
  # Random numbers too, which depend on the path and not on the place.
  case = table.named(name)
  base, experts = models()
  transform = merging.each(lambda spec: case.make())
  assert_equal(
    merging.merge(transform, base, experts),
    merging.merge(case.make(), base, experts),
  )


def test_every_leaf_has_settings_of_its_own():
  base, experts = many()
  scales = np.linspace(0.1, 0.9, 20).astype(np.float32)
  transform = merging.each(
    lambda spec: merging.task_arithmetic(scales[number(spec)])
  )
  merged = merging.merge(transform, base, experts)
  for i, path in enumerate(base):
    change = sum(each[path] - base[path] for each in experts.values())
    np.testing.assert_allclose(
      merged[path], base[path] + scales[i] * change, rtol=1e-5, atol=1e-6
    )
  assert_equal(drive.stream(transform, base, experts), merged)


def test_numbers_share_a_program_and_other_functions_do_not():
  counts = compile_counter()
  base, experts = many()

  def ties(low):
    return merging.each(
      lambda spec: merging.ties(
        low + 0.01 * number(spec), 0.5 + 0.01 * number(spec), scope='tensor'
      )
    )

  merging.merge(ties(0.1), base, experts)
  before = counts['backend_compile']
  merging.merge(ties(0.3), base, experts)
  assert counts['backend_compile'] == before

  one = {'l00': base['l00']}, {k: {'l00': x['l00']} for k, x in experts.items()}
  fresh = merging.each(lambda spec: merging.task_arithmetic(0.3))
  merging.merge(fresh, *one)
  before = counts['backend_compile']
  merging.merge(
    merging.each(lambda spec: merging.task_arithmetic(0.01 * number(spec))),
    base,
    experts,
  )
  # One for 20 coefficients, whose state has a place for each; none per leaf.
  assert counts['backend_compile'] - before <= 1


def test_merges_of_several_kinds():
  base, experts = many(6)

  def make(spec):
    kinds = (
      merging.average(),
      merging.ties(0.2 + 0.1 * number(spec)),
      merging.dare(0.5, merging.average(), key=KEY),
    )
    return kinds[number(spec) % 3]

  transform = merging.each(make)
  merged = merging.merge(transform, base, experts)
  for path in base:
    [spec] = (merging.LeafSpec(path, (2, 3), np.dtype(np.float32)),)
    alone = merging.merge(
      make(spec),
      {path: base[path]},
      {name: {path: each[path]} for name, each in experts.items()},
    )
    np.testing.assert_array_equal(merged[path], alone[path], err_msg=path)
  assert_equal(drive.stream(transform, base, experts), merged)


def test_coefficients_may_be_tracers():
  base, experts = many(3)

  def merged(scale):
    return merging.merge(
      merging.each(
        lambda spec: merging.task_arithmetic(scale * (1 + number(spec)))
      ),
      base,
      experts,
    )

  grid = jnp.array([0.1, 0.3], jnp.float32)
  together = jax.vmap(merged)(grid)
  for i, scale in enumerate(grid):
    for path, x in merged(scale).items():
      np.testing.assert_allclose(together[path][i], x, rtol=1e-5, atol=1e-6)


def test_keys_of_leaves_may_differ():
  base, experts = many(3)
  keys = jax.random.split(KEY, 3)
  transform = merging.each(
    lambda spec: merging.dare(0.5, merging.average(), key=keys[number(spec)])
  )
  merged = merging.merge(transform, base, experts)
  for i, path in enumerate(base):
    alone = merging.merge(
      merging.dare(0.5, merging.average(), key=keys[i]),
      {path: base[path]},
      {name: {path: each[path]} for name, each in experts.items()},
    )
    np.testing.assert_array_equal(merged[path], alone[path], err_msg=path)


def test_data_of_experts_is_refused():
  base, experts = many(2)
  transform = merging.each(lambda spec: merging.weighted_mean('importance'))
  with pytest.raises(
    ValueError, match=r"the merge of leaf 'l00' needs \('importance',\)"
  ):
    merging.merge(transform, base, experts)
