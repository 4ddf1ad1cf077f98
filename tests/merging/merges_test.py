"""What holds for every method, in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import fixtures
from tests.merging import oracles
from tests.merging import table

every_merge = pytest.mark.parametrize(
  'case', table.MERGES, ids=lambda case: case.name
)
varied = pytest.mark.parametrize(
  'case',
  [case for case in table.MERGES if case.vary],
  ids=lambda case: case.name,
)


def floats(params):
  flat = merging.tree.flatten(params)
  return {path: np.asarray(x) for path, x in flat.items() if path != 'step'}


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for path, x in merging.tree.flatten(a).items():
    y = merging.tree.flatten(b)[path]
    assert x.dtype == y.dtype, path
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=path)


@functools.cache
def compile_counter():
  counts = {'backend_compile': 0}

  def listen(event, duration, **kwargs):
    del duration, kwargs
    if event == '/jax/core/compile/backend_compile_duration':
      counts['backend_compile'] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  return counts


@pytest.mark.parametrize('kind', ['generic', 'lattice'])
@every_merge
def test_equals_oracle(case, kind):
  base, experts = fixtures.models(kind)
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  reference = floats(base)
  taus = oracles.task_vectors(
    reference, {name: floats(each) for name, each in experts.items()}
  )
  expected = case.oracle(taus)
  assert set(expected) == set(reference)
  for path, x in floats(merged).items():
    np.testing.assert_allclose(
      x, reference[path] + expected[path], rtol=0, atol=2e-6, err_msg=path
    )
  assert merged['step'] == 7


@every_merge
def test_jit_gives_the_bits_of_eager(case):
  base, experts = fixtures.models()
  base, experts = fixtures.part(base, experts, 'bias', 'wide')
  extra = case.extra(base)
  eager = merging.merge(case.make(), base, experts, **extra)

  @jax.jit
  def jitted(base, experts, extra):
    return merging.merge(case.make(), base, experts, **extra)

  assert_same_bits(jitted(base, experts, extra), eager)


@every_merge
def test_a_second_call_compiles_nothing(case):
  counts = compile_counter()
  base, experts = fixtures.models(seed=0)
  merging.merge(case.make(), base, experts, **case.extra(base))
  before = counts['backend_compile']
  base, experts = fixtures.models(seed=1)
  merging.merge(case.make(), base, experts, **case.extra(base))
  assert counts['backend_compile'] == before


@varied
def test_another_hyper_parameter_compiles_nothing(case):
  counts = compile_counter()
  base, experts = fixtures.part(*fixtures.models(), 'bias', 'wide')
  low, high = case.values
  merging.merge(case.vary(low), base, experts)
  before = counts['backend_compile']
  merging.merge(case.vary(high), base, experts)
  assert counts['backend_compile'] == before


@every_merge
def test_the_order_of_experts_changes_nothing(case):
  base, experts = fixtures.models()
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  turned = {name: experts[name] for name in reversed(experts)}
  extra = {
    key: {name: value[name] for name in reversed(value)}
    for key, value in case.extra(base).items()
  }
  assert_same_bits(merging.merge(case.make(), base, turned, **extra), merged)


@every_merge
def test_experts_equal_to_the_base_give_the_base(case):
  base, _ = fixtures.models()
  experts = dict.fromkeys(fixtures.NAMES, base)
  merged = merging.merge(case.make(), base, experts, **case.extra(base))
  assert_same_bits(merged, base)


@varied
def test_vmap_over_a_hyper_parameter_is_a_loop(case):
  base, experts = fixtures.models()
  base, experts = fixtures.part(base, experts, 'bias', 'wide')

  def merged(value):
    return merging.merge(case.vary(value), base, experts, **case.extra(base))

  values = jnp.asarray(case.values)
  together = jax.vmap(merged)(values)
  for i, value in enumerate(values):
    for path, x in floats(merged(value)).items():
      np.testing.assert_allclose(
        floats(together)[path][i], x, rtol=1e-6, atol=1e-7, err_msg=path
      )
