"""Merging arrays spread over eight devices gives what one device gives.

Bit for bit, except for methods that add floats across a leaf, where sharding
changes the order; the table says which.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import fixtures
from tests.merging import table

AUTO = (jax.sharding.AxisType.Auto,) * 2
EXPLICIT = (jax.sharding.AxisType.Explicit,) * 2


def models():
  """Two leaves of one shape, for as few compilations as can be."""
  rng = np.random.default_rng(0)

  def draw(scale):
    return {
      path: jnp.asarray(scale * rng.normal(size=(8, 16)).astype(np.float32))
      for path in ('bias', 'wide')
    }

  base = draw(np.float32(1))
  change = np.float32(0.1)
  experts = {
    name: merging.tree.add(base, draw(change)) for name in fixtures.NAMES
  }
  return base, experts


def shard(tree, mesh):
  return jax.device_put(tree, jax.NamedSharding(mesh, jax.P('x', 'y')))


def check(case, kinds, context, run=lambda merge, *args: merge(*args)):
  base, experts = models()
  extra = case.extra(base)
  expected = merging.merge(case.make(), base, experts, **extra)
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=kinds)
  sharded = shard((base, experts, extra), mesh)

  def merge(base, experts, extra):
    return merging.merge(case.make(), base, experts, **extra)

  with jax.set_mesh(mesh) if context else contextlib.nullcontext():
    merged = run(merge, *sharded)
  for path, x in merged.items():
    np.testing.assert_allclose(
      x, expected[path], rtol=case.sharded, atol=case.sharded, err_msg=path
    )
    assert x.sharding.is_equivalent_to(sharded[0][path].sharding, x.ndim)


@pytest.mark.parametrize('case', table.MERGES, ids=lambda case: case.name)
def test_on_an_explicit_mesh(case):
  check(case, EXPLICIT, context=True)


@pytest.mark.parametrize(
  'name', ['average', 'ties_index', 'ties_tensor_keep', 'dare_linear_mergekit']
)
def test_on_an_automatic_mesh(name):
  # What the compiler makes of an explicit mesh is the same: a few will do.
  check(table.named(name), AUTO, context=False)


@pytest.mark.parametrize('context', [True, False])
@pytest.mark.parametrize('kinds', [AUTO, EXPLICIT])
def test_under_jit_with_and_without_a_mesh_in_context(kinds, context):
  case = table.named('ties_mergekit')
  check(case, kinds, context, lambda merge, *args: jax.jit(merge)(*args))


def test_models_on_one_device_may_merge_under_a_mesh():
  base, experts = models()
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=EXPLICIT)
  expected = merging.merge(merging.ties(0.3), base, experts)
  with jax.set_mesh(mesh):
    merged = merging.merge(merging.ties(0.3), base, experts)
  jax.tree.map(np.testing.assert_array_equal, merged, expected)


def test_gradients_and_vmap_on_an_explicit_mesh():
  base, experts = models()
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=EXPLICIT)

  def total(scale, base, experts):
    merged = merging.merge(merging.task_arithmetic(scale), base, experts)
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged))

  gradient = jax.vmap(jax.grad(total), (0, None, None))
  expected = gradient(jnp.array([0.1, 0.5]), base, experts)
  with jax.set_mesh(mesh):
    scales = jnp.array([0.1, 0.5])
    found = gradient(scales, *shard((base, experts), mesh))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
