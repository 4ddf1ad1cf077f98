"""Reversible merging: what comes back, and what it costs."""

import jax
import numpy as np
import pytest

from merging import adapters
from tests.merging.adapters import models

RANK, COUNT = 4, 3
PATH = models.KERNEL.format(1)


def experts(count=COUNT, **options):
  options = {'rank': RANK} | options
  return {f'task{i}': models.expert(i + 1, **options) for i in range(count)}


def oracle(vectors, p):
  """`[n, rank]` and what comes back of it, from the eigenvectors."""
  x = vectors.astype(np.float64)
  mean = sum(x) / len(x)
  scatter = sum(np.outer(each - mean, each - mean) for each in x)
  _, columns = np.linalg.eigh(scatter)
  phi = columns[:, ::-1][:, :p]
  return np.stack([mean + phi @ (phi.T @ (each - mean)) for each in x])


@pytest.mark.parametrize('p', [0, 1, 2, 3])
def test_each_position_is_the_leading_eigenvectors(p):
  given = experts()
  stored = adapters.compress(given, p)
  back = {name: adapters.restore(stored, name)[PATH] for name in given}
  for position in range(models.IN):
    vectors = np.stack([given[name][PATH].a[position] for name in given])
    found = np.stack([back[name].a[position] for name in given])
    np.testing.assert_allclose(found, oracle(vectors, p), atol=1e-5)
  for position in range(models.OUT):
    vectors = np.stack([given[name][PATH].b[:, position] for name in given])
    found = np.stack([back[name].b[:, position] for name in given])
    np.testing.assert_allclose(found, oracle(vectors, p), atol=1e-5)


@pytest.mark.parametrize('layout', ['in_out', 'out_in'])
def test_exact_from_one_less_than_the_experts(layout):
  given = experts(layout=layout)
  base = models.base(layout=layout)
  stored = adapters.compress(given, COUNT - 1)
  for name, adapter in given.items():
    back = adapters.restore(stored, name)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), back, adapter
    )
    x, y = adapters.apply(base, back), adapters.apply(base, adapter)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), x, y)


def test_errors_fall_with_the_basis():
  given = experts()
  errors = []
  for p in range(COUNT):
    stored = adapters.compress(given, p)
    errors.append(
      sum(
        np.sum(np.square(adapters.restore(stored, name)[PATH].a - each[PATH].a))
        for name, each in given.items()
      )
    )
  assert errors[0] > errors[1] > errors[2] >= 0
  assert errors[2] < 1e-8 * errors[0]


@pytest.mark.parametrize('p', [0, 1, 2])
def test_storage_is_the_formula(p):
  stored = adapters.compress(experts(), p)
  expected = (p * (RANK + COUNT) + RANK) / (RANK * COUNT)
  assert adapters.storage_ratio(stored) == pytest.approx(expected)


def test_one_expert_and_equal_experts_come_back():
  given = experts(count=1)
  for p in (0, 1):
    back = adapters.restore(adapters.compress(given, p), 'task0')
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
      back,
      given['task0'],
    )
  same = dict.fromkeys('abc', given['task0'])
  back = adapters.restore(adapters.compress(same, 1), 'b')
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    back,
    given['task0'],
  )


def test_scales_are_those_of_the_expert():
  given = {
    'code': models.expert(1, alpha=2.0),
    'math': models.expert(2, alpha=6.0),
  }
  stored = jax.jit(adapters.compress, static_argnums=1)(given, 1)
  for name, adapter in given.items():
    assert adapters.restore(stored, name)[PATH].scale == adapter[PATH].scale


def test_what_is_refused():
  given = experts()
  with pytest.raises(ValueError, match='there are no adapters'):
    adapters.compress({}, 1)
  for p in (-1, 4):
    with pytest.raises(ValueError, match='expected 0 <= p <= 3'):
      adapters.compress(given, p)
  part = {PATH: given['task0'][PATH]}
  with pytest.raises(ValueError, match='do not adapt the same leaves'):
    adapters.compress({**given, 'part': part}, 1)
  with pytest.raises(ValueError, match='magnitude'):
    adapters.compress({**given, 'dora': models.expert(9, RANK, dora=True)}, 1)
  with pytest.raises(ValueError, match=r"'tiny' .* factors \(6, 2\)"):
    adapters.compress({**given, 'tiny': models.expert(9, 2)}, 1)
  stored = adapters.compress(given, 1)
  with pytest.raises(ValueError, match="did you mean 'task1'"):
    adapters.restore(stored, 'tsk1')
