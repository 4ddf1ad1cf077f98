"""Merging arrays spread over devices: kinds of meshes, `jit`, gradients.

That every method gives on an explicit mesh what it gives on one device is a
test of the table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import drive
from tests.merging import table


@pytest.mark.parametrize(
  'name',
  [
    'average',
    pytest.param('ties_index', marks=pytest.mark.slow),
    'ties_tensor_keep',
    'dare_linear_mergekit',
  ],
)
def test_on_an_automatic_mesh(name):
  # What the compiler makes of an explicit mesh is the same: a few will do.
  case = table.named(name)
  drive.check_sharded(case, *case.alike(), drive.AUTO, context=False)


@pytest.mark.parametrize('context', [True, False])
@pytest.mark.parametrize('kinds', [drive.AUTO, drive.EXPLICIT])
def test_under_jit_with_and_without_a_mesh_in_context(kinds, context):
  case = table.named('ties_mergekit')
  drive.check_sharded(
    case,
    *case.alike(),
    kinds,
    context,
    lambda merge, *args: jax.jit(merge)(*args),
  )


def test_models_on_one_device_may_merge_under_a_mesh():
  base, experts = table.named('ties').alike()
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=drive.EXPLICIT)
  expected = merging.merge(merging.ties(0.3), base, experts)
  with jax.set_mesh(mesh):
    merged = merging.merge(merging.ties(0.3), base, experts)
  jax.tree.map(np.testing.assert_array_equal, merged, expected)


def test_gradients_and_vmap_on_an_explicit_mesh():
  base, experts = table.named('task_arithmetic').alike()
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=drive.EXPLICIT)

  def total(scale, base, experts):
    merged = merging.merge(merging.task_arithmetic(scale), base, experts)
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(merged))

  gradient = jax.vmap(jax.grad(total), (0, None, None))
  expected = gradient(jnp.array([0.1, 0.5]), base, experts)
  with jax.set_mesh(mesh):
    scales = jnp.array([0.1, 0.5])
    found = gradient(scales, *drive.shard((base, experts), mesh))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
