"""What holds for every method: in memory, leaf by leaf, and on eight devices.

All tests of a row run in one process, and share its compiled programs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import drive
from tests.merging import oracles
from tests.merging import table


def rows(cases):
  """Parametrizes a test by rows; options of a method are for slow runs."""
  return pytest.mark.parametrize(
    'case',
    [
      pytest.param(
        case,
        id=case.name,
        marks=[pytest.mark.slow] if case.variant else [],
      )
      for case in cases
    ],
  )


every_merge = rows(table.MERGES)
# One shape of leaf compiles one program; all that are awkward, in slow runs.
every_kind_of_leaf = pytest.mark.parametrize(
  'kind', ['alike', pytest.param('small', marks=pytest.mark.slow)]
)
varied = rows([case for case in table.MERGES if case.vary])


def floats(params):
  flat = merging.tree.flatten(params)
  return {path: np.asarray(x) for path, x in flat.items() if path != 'step'}


def assert_near(a, b, tolerance=0.0, atol=0.0):
  """Equal bits without a tolerance; with one, relative to the largest entry."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for path, x in merging.tree.flatten(a).items():
    y = merging.tree.flatten(b)[path]
    assert x.dtype == y.dtype, path
    found, wanted = (np.asarray(each, np.float64) for each in (x, y))
    near = max(atol, tolerance * np.abs(wanted).max())
    np.testing.assert_allclose(
      found, wanted, rtol=tolerance, atol=near, err_msg=path
    )


@functools.cache
def compile_counter():
  counts = {'backend_compile': 0}

  def listen(event, duration, **kwargs):
    del duration, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      counts['backend_compile'] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  return counts


@pytest.mark.parametrize(
  ('case', 'kind'),
  [(case, kind) for case in table.MERGES for kind in case.kinds],
  ids=lambda value: getattr(value, 'name', value),
)
def test_equals_oracle(case, kind):
  base, experts = case.models(kind)
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  reference = floats(base)
  ends = {name: floats(each) for name, each in sorted(experts.items())}
  if case.of_models:
    expected = case.oracle(reference, ends)
  else:
    change = case.oracle(oracles.task_vectors(reference, ends))
    assert set(change) == set(reference)
    expected = {path: reference[path] + change[path] for path in reference}
  assert set(expected) == set(reference)
  for path, x in floats(merged).items():
    np.testing.assert_allclose(
      x, expected[path], rtol=0, atol=case.atol, err_msg=path
    )
  assert merged['step'] == 7


@every_kind_of_leaf
@every_merge
def test_inside_a_jit_it_is_the_same(case, kind):
  base, experts = getattr(case, kind)()
  extra = case.extra(base)
  eager = merging.merge(case.make(), base, experts, **extra)

  @jax.jit
  def jitted(base, experts, extra):
    return merging.merge(case.make(), base, experts, **extra)

  assert_near(jitted(base, experts, extra), eager, case.compiled)


@every_merge
def test_a_second_call_compiles_nothing(case):
  counts = compile_counter()
  base, experts = case.models(seed=0)
  merging.merge(case.make(), base, experts, **case.extra(base))
  before = counts['backend_compile']
  base, experts = case.models(seed=1)
  merging.merge(case.make(), base, experts, **case.extra(base))
  assert counts['backend_compile'] == before


@varied
def test_another_hyper_parameter_compiles_nothing(case):
  counts = compile_counter()
  base, experts = case.alike()
  low, high = case.values
  extra = case.extra(base)
  merging.merge(case.vary(low), base, experts, **extra)
  before = counts['backend_compile']
  merging.merge(case.vary(high), base, experts, **extra)
  assert counts['backend_compile'] == before


@every_merge
def test_the_order_of_experts_changes_nothing(case):
  base, experts = case.models()
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  turned = {name: experts[name] for name in reversed(experts)}
  extra = {
    key: {name: value[name] for name in reversed(value)}
    for key, value in case.extra(base).items()
  }
  assert_near(merging.merge(case.make(), base, turned, **extra), merged)


@every_merge
def test_experts_equal_to_the_base_give_the_base(case):
  base, _ = case.models()
  experts = dict.fromkeys(case.names, base)
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  assert_near(merged, base, atol=case.still)


@every_kind_of_leaf
@every_merge
def test_narrow_models_are_merged_in_float32_and_rounded_once(case, kind):
  narrow = getattr(case, kind)(dtype=jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
  extra = case.extra(narrow[0])
  merged = merging.merge(case.make(), *narrow, **extra)
  expected = merging.merge(case.make(), *wide, **extra)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected)
  # A difference in the last bit of float32 may round to another bfloat16.
  assert_near(merged, rounded, 2**-8 if case.compiled else 0.0)


@varied
def test_vmap_over_a_hyper_parameter_is_a_loop(case):
  base, experts = case.alike()

  def merged(value):
    return merging.merge(case.vary(value), base, experts, **case.extra(base))

  together = jax.vmap(merged)(jnp.asarray(case.values))
  for i, value in enumerate(case.values):
    alone = merged(jnp.float32(value))
    one = jax.tree.map(lambda x: x[i], together)  # noqa: B023
    assert_near(one, alone, max(1e-6, case.compiled))


@every_kind_of_leaf
@every_merge
def test_streamed_in_pieces_it_is_the_same(case, kind):
  base, experts = getattr(case, kind)()
  extra = case.extra(base)
  merged = merging.merge(case.make(), base, experts, **extra)
  # Matrices in three pieces, where the method allows it.
  streamed = drive.stream(case.make(), base, experts, extra, piece=16)
  assert_near(streamed, merged, case.sharded)


@pytest.mark.parametrize(
  'kind', ['alike', pytest.param('sharded_models', marks=pytest.mark.slow)]
)
@every_merge
def test_on_an_explicit_mesh_it_is_the_same(case, kind):
  base, experts = getattr(case, kind)()
  drive.check_sharded(case, base, experts, drive.EXPLICIT, context=True)
