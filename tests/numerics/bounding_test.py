import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import bounding
from tests.numerics import written

X, W = written.X, written.W

# Of a module (jax.numpy or numpy), of x and of w.
FUNCTIONS = {
  'polynomial': lambda m, x, w: (x * x - 2 * x) * (3 - x) ** 3 + x**2,
  'quotient': lambda m, x, w: x / (1 + m.abs(x)) - 1 / (x - 0.5),
  'attention': lambda m, x, w: softmax(m, x @ w @ x.T) @ x,
  'norm': lambda m, x, w: (
    (x - x.mean(1, keepdims=True)) / m.sqrt(x.var(1, keepdims=True) + 1e-6)
  ),
  'cases': lambda m, x, w: m.where(
    (x < w[:4]) & ~(x >= 1), m.minimum(x, w[:4]), m.maximum(x, 0)
  ),
  'waves': lambda m, x, w: m.sin(20 * x) * m.cos(x @ w),
  'sums': lambda m, x, w: m.cumsum(x, 1) + m.exp(x.sum()) + m.tanh(x),
}
UNARY = {
  'exp': (np.exp, -80, 80),
  'log': (np.log, 1e-30, 1e5),
  'log1p': (np.log1p, -0.99, 50),
  'expm1': (np.expm1, -20, 20),
  'tanh': (np.tanh, -12, 12),
  'logistic': (lambda x: 1 / (1 + np.exp(-x)), -30, 30),
  'erf': (np.vectorize(math.erf), -5, 5),
  'erfc': (np.vectorize(math.erfc), -4, 4),
  'sqrt': (np.sqrt, 0, 1e8),
  'rsqrt': (lambda x: 1 / np.sqrt(x), 1e-8, 1e8),
  'cbrt': (np.cbrt, -1e5, 1e5),
  'exp2': (np.exp2, -50, 50),
  'atan': (np.arctan, -20, 20),
  'sinh': (np.sinh, -20, 20),
  'sin': (np.sin, -100, 100),
  'cos': (np.cos, -100, 100),
}


def softmax(m, x):
  e = m.exp(x - x.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ('attention', 'norm')
    else name
    for name in FUNCTIONS
  ],
)
def test_bounds_hold_for_every_choice_of_arguments_and_are_narrow(name):
  f = FUNCTIONS[name]
  random = np.random.default_rng(1)
  bounds = jax.jit(numerics.interval(lambda x, w: f(jnp, x, w)))
  for width in (0.0, 0.01, 0.3):
    widths = [
      np.float32(width) * random.uniform(size=each.shape).astype(np.float32)
      for each in (X, W)
    ]
    ends = [
      numerics.Interval(each, each + more)
      for each, more in zip((X, W), widths, strict=True)
    ]
    found = bounds(*ends)
    size = found.high - found.low
    assert np.all(size >= 0)
    assert width or np.all(size < 1e-3 * (1 + np.abs(found.low)))
    for weight in (0.0, 1.0, *random.uniform(size=3)):
      inside = [
        end.low + weight * (end.high.astype(np.float64) - end.low)
        for end in ends
      ]
      truth = f(np, *inside)
      assert np.all(found.low <= truth)
      assert np.all(truth <= found.high)


@pytest.mark.slow
def test_functions_are_as_accurate_as_is_assumed():
  def all_of(points):
    names = {name: getattr(jax.lax, name, None) for name in UNARY}
    names['atan'] = jnp.arctan
    return {name: names[name](points[name]) for name in UNARY}

  points = {
    name: np.linspace(low, high, 4_001).astype(np.float32)
    for name, (_, low, high) in UNARY.items()
  }
  found = jax.jit(numerics.interval(all_of))(points)
  for name, (truth, *_) in UNARY.items():
    exact = truth(points[name].astype(np.float64))
    assert np.all(found[name].low <= exact), name
    assert np.all(exact <= found[name].high), name


def test_extremes_are_bounded():
  huge, tiny = np.float32(3e38), np.float32(1e-40)
  f = numerics.interval(lambda x, y: (x * y, x + x, y / 3, 1 / y, jnp.exp(x)))
  product, total, third, inverse, power = f(huge, tiny)
  assert product.low <= float(huge) * float(tiny) <= product.high
  assert total.low <= 6e38 <= total.high
  assert third.low <= float(tiny) / 3 <= third.high
  assert inverse.low <= 1 / float(tiny) <= inverse.high
  assert power.high == np.inf
  assert np.isfinite(power.low)
  nothing = numerics.interval(lambda x: x * 0)(jnp.float32(np.nan))
  assert nothing.low <= 0 <= nothing.high
  big = numerics.interval(lambda n: n.astype(jnp.float32))(np.int32(2**24 + 1))
  assert big.low <= 2**24 + 1 <= big.high


@pytest.mark.slow
def test_loops_and_custom_derivatives_are_followed():
  def f(x, w):
    x, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=3)
    return jax.lax.fori_loop(0, 2, lambda i, c: jax.nn.relu(c) * 0.5, x)

  found = numerics.interval(f)(X, W)
  x = X.astype(np.float64)
  for _ in range(3):
    x = np.tanh(x @ W)
  truth = np.maximum(x, 0) / 4
  assert np.all((found.low <= truth) & (truth <= found.high))
  assert np.all(found.high - found.low < 1e-4)


def test_what_is_not_known_is_refused():
  f = numerics.interval(jnp.argmax)
  with pytest.raises(NotImplementedError, match='bounds are known of argmax'):
    f(X)
  f = numerics.interval(lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x))
  with pytest.raises(NotImplementedError, match=r'bounding_test.py:\d+'):
    f(np.float32(1))
  f = numerics.interval(
    lambda x: jax.lax.while_loop(lambda x: x < 9, lambda x: x * 2, x)
  )
  with pytest.raises(NotImplementedError, match=r'use jnp\.where'):
    f(np.float32(1))
  f = numerics.interval(lambda x: jnp.where(x > 0, 1, 2))
  with pytest.raises(NotImplementedError, match='bounds are known of select_n'):
    f(np.float32(1))
  with pytest.raises(TypeError, match='must be float32, got bfloat16'):
    numerics.interval(jnp.sin)(jnp.bfloat16(1))
  assert bounding.Interval is numerics.Interval
