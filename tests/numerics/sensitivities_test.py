"""Which layers lose most, against emulating each by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import written

X, W = jnp.asarray(written.X), jnp.asarray(written.W)


def layers(x, w):
  with jax.named_scope('first'):
    x = jnp.tanh(20 * x @ w)
  with jax.named_scope('loop'):
    x, _ = jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, length=3)
  with jax.named_scope('a.b'):
    x = written.clipped(x)
  return {'y': x + 1, 'n': jnp.arange(3)}


def error(policy, key=None):
  more = {} if key is None else {'rounding_key': key}
  found = numerics.emulate(layers, policy)(X, W, **more)['y']
  exact = np.asarray(layers(X, W)['y'], np.float64)
  return np.sqrt(((found - exact) ** 2).sum() / (exact**2).sum())


@pytest.mark.parametrize(
  'policy',
  [
    numerics.Policy(numerics.float8_e4m3fn),
    numerics.Policy(
      matmul=numerics.Precision(
        product=numerics.IntegerProduct(
          numerics.BitPlanes(6, 6),
          x=numerics.FixedPoint(6),
          w=numerics.FixedPoint(6),
        )
      )
    ),
  ],
  ids=['e4m3', 'int6'],
)
def test_scopes_are_under_the_policy_one_by_one(policy):
  found = numerics.sensitivity(layers, policy)(X, W)
  assert len(found.scopes) >= 2
  for scope in found.scopes:
    others = numerics.Override(None, scope=f'^(?!{re.escape(scope.name)}$)')
    alone = policy | numerics.Policy(overrides=(others,))
    np.testing.assert_allclose(scope.error, error(alone), rtol=1e-4)
  errors = [scope.error for scope in found.scopes]
  assert errors == sorted(errors, reverse=True)
  assert found.retained[-1] == 0
  for count, rest in enumerate(found.retained):
    np.testing.assert_allclose(rest, error(found.policy(count)), atol=1e-6)
  assert str(found).count('\n') == len(found.scopes)


def test_a_wider_format_for_what_is_sensitive_and_a_metric():
  found = numerics.sensitivity(
    layers,
    numerics.float8_e5m2,
    metric=lambda exact, run: jnp.abs(run['y'] - exact['y']).max(),
  )(X, W)
  whole = numerics.emulate(layers, numerics.float8_e5m2)(X, W)['y']
  largest = np.abs(whole - layers(X, W)['y']).max()
  np.testing.assert_allclose(found.retained[0], largest, rtol=1e-5)
  careful = found.policy(len(found.scopes), numerics.bfloat16)
  wide = numerics.Policy(numerics.bfloat16)
  np.testing.assert_allclose(error(careful), error(wide), rtol=1e-6)
  assert found.policy(0) == numerics.Policy(numerics.float8_e5m2)
  with pytest.raises(ValueError, match='count must be from 0 to'):
    found.policy(len(found.scopes) + 1)


def test_a_key_is_asked_for_and_nothing_is_told():
  key = jax.random.key(0)
  measure = numerics.sensitivity(
    layers, numerics.float8_e4m3fn, mode='stochastic'
  )
  first, again, other = (
    measure(X, W, rounding_key=each).retained
    for each in (key, key, jax.random.key(1))
  )
  np.testing.assert_array_equal(first, again)
  assert not np.allclose(first, other, rtol=1e-3)
  with pytest.raises(ValueError, match='sensitivity: rounding is stochastic'):
    measure(X, W)
  with pytest.raises(ValueError, match='is for no operation'):
    numerics.sensitivity(layers, numerics.Policy())(X, W)


def test_what_overflows_is_worst():
  def f(x):
    with jax.named_scope('small'):
      x = x / 3
    with jax.named_scope('large'):
      return x * 1e5

  found = numerics.sensitivity(f, numerics.float16)(jnp.ones(2))
  assert found.scopes[0].name == 'large'
  assert not np.isfinite(found.scopes[0].error)
