"""Kronecker products: against a literal rearrangement, and as an adapter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import adapters
from tests.merging.adapters import models


def rearranged(matrix, p, q):
  """Rows are the blocks, laid out one number at a time, in float64."""
  m, n = matrix.shape[0] // p, matrix.shape[1] // q
  out = np.zeros((m * n, p * q))
  for i in range(m):
    for j in range(n):
      for k in range(p):
        for l in range(q):
          out[i * n + j, k * q + l] = matrix[i * p + k, j * q + l]
  return out


def summed(found):
  left, right = (np.asarray(x, np.float64) for x in (found.left, found.right))
  return sum(
    s * np.kron(u, v)
    for s, u, v in zip(np.asarray(found.values), left, right, strict=True)
  )


@pytest.mark.parametrize('block_shape', [(2, 2), (3, 4), (1, 1), (6, 8)])
def test_all_terms_give_the_matrix_back(block_shape):
  matrix = models.draw(0, 6, 8)
  found = adapters.kronecker_factors(matrix, block_shape)
  p, q = block_shape
  assert len(found.values) == min(48 // (p * q), p * q)
  np.testing.assert_allclose(summed(found), matrix, atol=1e-5)
  assert found.discarded == 0


@pytest.mark.parametrize('rank', [1, 3])
def test_truncated_it_is_the_nearest_sum(rank):
  matrix = models.draw(0, 6, 8)
  found = adapters.kronecker_factors(matrix, (3, 2), rank=rank)
  u, s, vh = np.linalg.svd(rearranged(matrix, 3, 2), full_matrices=False)
  np.testing.assert_allclose(found.values, s[:rank], rtol=1e-5)
  for k in range(rank):
    expected = np.kron(u[:, k].reshape(2, 4), vh[k].reshape(3, 2))
    product = np.kron(found.left[k], found.right[k])
    np.testing.assert_allclose(product, expected, atol=1e-5)
  error = np.sum((summed(found) - matrix) ** 2) / np.sum(matrix**2)
  np.testing.assert_allclose(found.discarded, error, rtol=1e-4)
  gram = np.einsum('kmn,lmn->kl', found.left, found.left)
  np.testing.assert_allclose(gram, np.eye(rank), atol=1e-5)


def test_blocks_of_one_row_are_the_plain_decomposition():
  matrix = models.draw(1, 6, 8)
  found = adapters.kronecker_factors(matrix, (1, 8))
  s = np.linalg.svd(matrix, compute_uv=False)
  np.testing.assert_allclose(found.values, s, rtol=1e-5)
  rows = np.einsum(
    'k,ki,kj->ij', found.values, found.left[..., 0], found.right[:, 0]
  )
  np.testing.assert_allclose(rows, matrix, atol=1e-5)


def test_a_kronecker_product_has_one_term():
  u, v = models.draw(1, 2, 4), models.draw(2, 3, 2)
  found = adapters.kronecker_factors(np.kron(u, v), (3, 2), energy=0.999)
  assert found.left.shape == (1, 2, 4)
  np.testing.assert_allclose(summed(found), np.kron(u, v), atol=1e-5)


def test_sum_is_that_of_numpy():
  left, right = models.draw(1, 3, 2, 4), models.draw(2, 3, 3, 2)
  expected = sum(np.kron(u, v) for u, v in zip(left, right, strict=True))
  found = adapters.kronecker_sum(left, right)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ranks_worth_keeping():
  rank = adapters.kronecker_rank
  values = np.array([3.0, 2.0, 1.0, 0.1])
  total = np.sum(values**2)
  assert [
    rank(values, e) for e in (9 / total, 12.9 / total, 13.1 / total, 1)
  ] == [
    1,
    2,
    3,
    4,
  ]
  knee = np.array([10.0, 9.5, 1.0, 0.9, 0.8, 0.7])
  assert rank(knee, 0.1, rule='elbow') == 2
  assert rank(knee, 0.999, rule='both') == rank(knee, 0.999) > 2
  assert rank(knee, 0.1, rule='both') == 2
  assert rank(np.ones(5), 0.5, rule='elbow') == 5  # No elbow.
  assert rank(np.zeros(3), rule='both') == 1
  with pytest.raises(ValueError, match='energy is 0'):
    rank(values, 0)
  with pytest.raises(ValueError, match="did you mean 'elbow'"):
    rank(values, rule='elbo')


def test_zeros_are_defined():
  found = adapters.kronecker_factors(jnp.zeros((4, 4)), (2, 2), energy=0.9)
  assert found.discarded == 0
  assert np.isfinite(summed(found)).all()


def test_soka_begins_at_the_base_and_can_be_trained():
  base = models.base()
  residual, adapter = adapters.init_kronecker(base, rank=2, leaves='kernel')
  assert residual['embedding'] is base['embedding']
  again = adapters.apply(residual, adapter)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), again, base
  )
  for i in range(models.BLOCKS):
    weight = models.draw(i, models.IN, models.OUT)
    s = np.linalg.svd(rearranged(weight, 2, 2), compute_uv=False)
    rest = np.sum(np.square(residual['blocks'][i]['kernel']))
    np.testing.assert_allclose(rest, np.sum(s[2:] ** 2), rtol=1e-4)
  slope = jax.jit(
    jax.grad(
      lambda each: adapters.apply(residual, each)['blocks'][0]['kernel'].sum()
    )
  )(adapter)
  first = adapter['blocks/0/kernel']
  expected = np.asarray(first.right).sum((1, 2))[:, None, None]
  np.testing.assert_allclose(
    slope['blocks/0/kernel'].left,
    np.broadcast_to(expected, first.left.shape),
    rtol=1e-4,
    atol=1e-5,
  )


def test_fewer_terms_where_energy_is_concentrated():
  kernel = np.kron(models.draw(1, 2, 2), models.draw(2, 2, 2))
  base = {'simple': jnp.asarray(kernel), 'noise': models.draw(3, 4, 4)}
  _, adapter = adapters.init_kronecker(base, energy=0.99, rule='energy')
  assert len(adapter['simple'].left) == 1
  assert len(adapter['noise'].left) > 1


def test_kronecker_adapters_merge_as_any_other():
  base = {'w': models.draw(0, 4, 6)}
  given = {
    name: {
      'w': adapters.Kronecker(
        models.draw(s, 2, 2, 3), models.draw(s + 1, 2, 2, 2)
      )
    }
    for name, s in (('code', 1), ('math', 5))
  }
  merged = adapters.merge_adapters(merging.average(), base, given)
  changes = [
    sum(
      np.kron(u, v)
      for u, v in zip(each['w'].left, each['w'].right, strict=True)
    )
    for each in given.values()
  ]
  expected = base['w'] + sum(changes) / 2
  np.testing.assert_allclose(merged['w'], expected, atol=1e-5)


def test_what_is_refused():
  matrix = jnp.ones((6, 8))
  with pytest.raises(ValueError, match='do not tile'):
    adapters.kronecker_factors(matrix, (4, 2))
  with pytest.raises(ValueError, match='not both'):
    adapters.kronecker_factors(matrix, (3, 2), rank=1, energy=0.5)
  with pytest.raises(ValueError, match='while tracing; give rank='):
    jax.jit(lambda x: adapters.kronecker_factors(x, (3, 2), energy=0.5))(matrix)
  with pytest.raises(ValueError, match='do not tile') as error:
    adapters.init_kronecker({'w': matrix}, block_shape=(4, 4))
  assert "'w'" in error.value.__notes__[0]
  wrong = adapters.Kronecker(jnp.ones((1, 2, 2)), jnp.ones((2, 3, 4)))
  with pytest.raises(ValueError, match=r'expected \[terms, m, n\]'):
    adapters.apply({'w': matrix}, {'w': wrong})
