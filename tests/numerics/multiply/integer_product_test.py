"""Algorithms for integers inside of emulated written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import written

random = np.random.default_rng(0)
X = random.normal(size=(4, 6, 40)).astype(np.float32)
W = random.normal(size=(40, 5)).astype(np.float32)


def stored(x, fmt, **settings):
  return np.asarray(
    numerics.dequantize(numerics.quantize(x, fmt, **settings)), np.float64
  )


@pytest.mark.parametrize(
  ('multiply', 'w', 'size'),
  [
    (numerics.TMac(bits=4), numerics.int4, 16),
    (numerics.ShiftAdd('float4_e2m1fn'), numerics.float4_e2m1fn, None),
  ],
)
def test_a_dense_layer_is_that_of_what_is_stored(multiply, w, size):
  how = numerics.IntegerProduct(multiply, w=w, group_size=size)
  policy = numerics.Policy(matmul=numerics.Precision(product=how))
  f = numerics.emulate(jnp.matmul, policy)
  truth = stored(X, numerics.int8, axis=-1) @ stored(
    W, w, axis=0, group_size=size
  )
  np.testing.assert_allclose(f(X, W), truth, rtol=1e-5, atol=1e-5)
  gradient = jax.grad(lambda x: f(x, W).sum())(jnp.asarray(X))
  exact = np.broadcast_to(W.sum(1), X.shape)
  np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_all_exact_algorithms_run_a_model_alike():
  apply, params = written.Transformer().apply, written.parameters()
  found = []
  for multiply in (
    numerics.TMac(bits=4),
    numerics.LutTensorCore(bits=4),
    numerics.ShiftAdd(),
    numerics.BitWeight(bits=4),
    numerics.BitPlanes(8, 4),
  ):
    how = numerics.IntegerProduct(multiply, w=numerics.int4)
    policy = numerics.Policy(matmul=numerics.Precision(product=how))
    found.append(numerics.emulate(apply, policy)(params, written.X))
  for each in found[1:]:
    np.testing.assert_allclose(each, found[0], rtol=1e-4, atol=1e-5)


def test_formats_and_lengths_are_checked():
  with pytest.raises(ValueError, match='TMac takes w from -8 to 7, but int8'):
    numerics.IntegerProduct(numerics.TMac(bits=4))
  with pytest.raises(TypeError, match='codes must be integers, got bfloat16'):
    numerics.IntegerProduct(numerics.BitWeight(), x=numerics.bfloat16)
  with pytest.raises(TypeError, match='multiply must be an algorithm'):
    numerics.IntegerProduct(numerics.LMul())
  how = numerics.IntegerProduct(numerics.BitWeight(bits=16, x_bits=16))
  policy = numerics.Policy(matmul=numerics.Precision(product=how))
  with pytest.raises(ValueError, match=r'dot_general at .*sums of 3 terms'):
    numerics.emulate(jnp.dot, policy)(jnp.ones(3), jnp.ones(3))
