import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import noise
from tests.numerics import written

X, W = written.X, written.W
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Factors(numerics.Product):
  """Twice the product, and a derivative of three times the product."""

  def product(self, lhs, rhs, key):
    assert key is None
    return numerics.contract(
      lhs,
      rhs,
      key,
      lambda lhs, rhs, key: 2 * (lhs @ rhs),
      lambda lhs, rhs, key: 3 * (lhs @ rhs),
    )


@dataclasses.dataclass(frozen=True)
class Noisy(numerics.Product):
  """The product and noise, which is all there is of zeros."""

  draws = True

  def product(self, lhs, rhs, key):
    def noisy(lhs, rhs, key):
      y = lhs @ rhs
      return y + noise.random_bits(key, y.shape).astype(jnp.float32)

    return numerics.contract(lhs, rhs, key, noisy, noisy)


def policy(product, **more):
  return numerics.Policy(matmul=numerics.Precision(product=product, **more))


def test_products_of_any_shape_have_the_derivative_they_say():
  random = np.random.default_rng(0)
  a = random.integers(-3, 4, (2, 3, 2, 4)).astype(np.float32)
  b = random.integers(-3, 4, (3, 5, 2, 2)).astype(np.float32)
  image = random.integers(-3, 4, (2, 5, 4)).astype(np.float32)
  kernel = random.integers(-3, 4, (3, 4, 2)).astype(np.float32)

  def f(a, b, image, kernel):
    first = jnp.einsum('kbxi,bjxk->bji', a, b)
    second = jax.lax.conv_general_dilated(
      image, kernel, (2,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')
    )
    return first, second

  arguments = (a, b, image, kernel)
  plain, pull = jax.vjp(f, *arguments)
  found, other = jax.vjp(numerics.emulate(f, policy(Factors())), *arguments)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, 2 * y), found, plain
  )
  cotangents = jax.tree.map(lambda y: jnp.round(y / 3), plain)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, 3 * y),
    other(cotangents),
    pull(cotangents),
  )


def test_operands_and_results_are_rounded_around_it():
  precision = policy(
    Factors(), inputs=numerics.bfloat16, output=numerics.float16
  )
  found = numerics.emulate(jnp.matmul, precision)(X, W)
  x, w = (np.asarray(numerics.round_to(v, numerics.bfloat16)) for v in (X, W))
  expected = (2 * (x.astype(np.float64) @ w)).astype(np.float16)
  np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_iterations_operations_and_passes_draw_anew():
  def turn(state, x):
    state = jax.checkpoint(lambda s, w: (s @ w) @ w)(state, x)
    return state, state

  def f(state, xs):
    return jax.lax.scan(turn, state, xs)[1]

  f = numerics.emulate(f, policy(Noisy()))

  @jax.jit
  def run(key):
    state, xs = jnp.zeros((4, 4)), jnp.zeros((3, 4, 4))
    values, pull = jax.vjp(
      lambda state, xs: f(state, xs, rounding_key=key), state, xs
    )
    mapped = jax.vmap(lambda key: f(state, xs, rounding_key=key))(
      jax.random.split(key, 2)
    )
    return values, pull(jnp.zeros_like(values)), mapped

  values, (first, all_), mapped = jax.device_get(run(KEY))
  drawn = np.concatenate([np.ravel(x) for x in (values, first, all_, mapped)])
  assert len(np.unique(drawn)) == drawn.size
  again = jax.device_get(run(KEY))
  np.testing.assert_array_equal(again[0], values)
  np.testing.assert_array_equal(again[1][1], all_)
  other = jax.device_get(run(jax.random.key(1)))
  assert not np.any(other[0] == values)


def test_reports_know_what_a_product_takes():
  costs = numerics.count(jnp.dot, policy(numerics.Quartet()))(
    jnp.ones(64), jnp.ones(64)
  )
  assert (costs.rows[0].bits, costs.bytes) == (4, 2 * 34 + 4)
  found = numerics.shadow(jnp.matmul, policy(numerics.DynamicFixedPoint()))(
    X, W
  )
  assert 0 < found.errors[0].max_relative < 0.01


def test_what_does_not_fit_is_told():
  with pytest.raises(TypeError, match=r'product must be a numerics\.Product'):
    numerics.Precision(product=numerics.LMul(3))  # pyrefly: ignore
  for name, value in (
    ('multiply', numerics.LMul(3)),
    ('accumulator', numerics.Accumulator(numerics.float16)),
  ):
    with pytest.raises(ValueError, match=f'{name} does not go with product'):
      numerics.Precision(product=Factors(), **{name: value})
  everything = numerics.Precision(product=Factors())
  here = r'products_test.py:\d+'
  with pytest.raises(ValueError, match=f'but tanh at .*{here} .*is none'):
    numerics.emulate(lambda x: jnp.tanh(x @ W), everything)(X)
  f = numerics.emulate(jnp.matmul, policy(Noisy()))
  with pytest.raises(ValueError, match='pass rounding_key='):
    f(X, W)
  with pytest.raises(ValueError, match='drop rounding_key'):
    numerics.emulate(jnp.matmul, policy(Factors()))(X, W, rounding_key=KEY)
  assert policy(Noisy()).draws
  assert not policy(Factors()).draws
  with pytest.raises(ValueError, match=f'{here} .*adds up 8 products.*of 32'):
    numerics.emulate(lambda x: x @ W, policy(numerics.Quartet()))(
      X, rounding_key=KEY
    )


@pytest.mark.slow
def test_a_module_trains_by_one_line_more():
  apply = written.Transformer().apply
  params = written.parameters()
  dfp = policy(numerics.DynamicFixedPoint())

  def loss(apply, params):
    return jnp.mean(apply(params, X) ** 2)

  gradient, exact = (
    jax.jit(jax.grad(functools.partial(loss, each)))
    for each in (numerics.emulate(apply, dfp), apply)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0.02, atol=1e-3),
    gradient(params),
    exact(params),
  )
