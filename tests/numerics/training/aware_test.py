"""Fake quantisation against the formulas of the whitepaper, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import written

F32 = np.float32
random = np.random.default_rng(0)
PARAMS = {
  'first': random.normal(size=(6, 4)).astype(F32),
  'second': random.normal(size=(3, 4)).astype(F32),
}
BATCHES = [
  (random.normal(size=(5, 6)) * scale).astype(F32) for scale in (1, 3, 0.5)
]


def mlp(params, x, *, slope=0.0):
  x = x @ params['first']
  x = jnp.where(x > 0, x, slope * x)
  return x @ params['second'].T


def weight(w, axis):
  """Codes from −127 to 127, a scale for each channel."""
  scale = np.abs(w).max(axis, keepdims=True) / F32(127)
  return np.rint(w / scale) * scale


def activation(x, low, high):
  """Codes from 0 to 255, one of which is 0."""
  low, high = min(low, 0), max(high, 0)
  scale = (high - low) / 255
  zero = np.rint(-low / scale)
  return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def test_it_is_the_formula_with_a_moving_average():
  decay = 0.75
  aware = numerics.quantization_aware(mlp, decay=decay, delay=2)
  ranges = aware.init(PARAMS, BATCHES[0])
  assert len(ranges.extremes) == 2
  apply = jax.jit(aware.apply, static_argnames='update')
  first = weight(PARAMS['first'], 0)
  second = weight(PARAMS['second'], 1)
  average = np.zeros((2, 2))
  for step, x in enumerate(BATCHES):
    same, kept = apply(ranges, PARAMS, x, update=False)
    found, ranges = apply(ranges, PARAMS, x)
    np.testing.assert_array_equal(same, found)
    assert int(kept.step) == step
    stored = [activation(x, *average[0]) if step > 1 else x]
    hidden = np.maximum(stored[0] @ first, 0)
    stored.append(activation(hidden, *average[1]) if step > 1 else hidden)
    expected = stored[1] @ second.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    seen = np.array([[x.min(), x.max()], [hidden.min(), hidden.max()]])
    average = seen if step == 0 else decay * average + (1 - decay) * seen
    ends = sorted(ranges.extremes.values(), key=lambda e: float(e[0]))
    np.testing.assert_allclose(
      ends, average[np.argsort(average[:, 0])], rtol=1e-4, atol=1e-6
    )
  # Integers do what they stand for: nothing is far from float32.
  plain = mlp(PARAMS, BATCHES[2])
  np.testing.assert_allclose(found, plain, atol=0.2)


def test_the_derivative_is_0_beyond_the_range():
  aware = numerics.quantization_aware(jnp.dot)
  w, x = jnp.float32([1.0, 127.0, -3.2]), jnp.float32([0.5, 1.0, -0.25])
  _, ranges = aware.apply(aware.init(w, x), w, x)
  beyond = jnp.float32([0.3, 1.5, -2.0])
  dw, dx = jax.grad(lambda w, x: aware.apply(ranges, w, x)[0], argnums=(0, 1))(
    w, beyond
  )
  np.testing.assert_array_equal(dx, [1.0, 0.0, 0.0])
  np.testing.assert_allclose(dw, [0.3, 1.0, -0.25], atol=0.005)


def test_loops_checkpoints_and_derivatives_of_others():
  weights = jnp.stack([jnp.asarray(written.W), 2 * jnp.asarray(written.W)])

  def f(params, x):
    def layer(x, w):
      inner = jax.checkpoint(lambda x: jax.nn.relu(x @ w))
      return written.clipped(inner(x)), None

    x, _ = jax.lax.scan(layer, x, params)
    return jax.nn.silu(x).sum(0)

  aware = numerics.quantization_aware(f)

  @jax.jit
  def run(x):
    _, ranges = aware.apply(aware.init(weights, x), weights, x)
    y, pull = jax.vjp(lambda w: aware.apply(ranges, w, x)[0], weights)
    return ranges, y, pull(jnp.ones_like(y))[0]

  ranges, y, gradient = run(written.X)
  [(low, high)] = ranges.extremes.values()  # Weights are known in the loop.
  x, seen = written.X, []
  for w in np.asarray(weights):
    seen.append(x)
    x = np.sin(np.maximum(x @ weight(w, 0), 0))
  np.testing.assert_allclose([low, high], [np.min(seen), np.max(seen)], 1e-5)
  plain, pull = jax.vjp(lambda w: f(w, written.X), weights)
  np.testing.assert_allclose(y, plain, atol=0.1)
  [expected] = pull(jnp.ones_like(plain))  # Clipped, as its author wants it.
  lengths = np.linalg.norm(gradient) * np.linalg.norm(expected)
  assert np.vdot(gradient, expected) > 0.95 * lengths


@pytest.mark.slow
def test_a_module_trains_by_one_line_more():
  apply, params = written.Transformer().apply, written.parameters()
  aware = numerics.quantization_aware(apply)
  ranges = aware.init(params, written.X)

  @jax.jit
  def step(params, ranges):
    def loss(params):
      y, after = aware.apply(ranges, params, written.X)
      return jnp.mean(y**2), after

    (value, ranges), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    return value, moved, ranges

  values = []
  for _ in range(20):
    value, params, ranges = step(params, ranges)
    values.append(float(value))
  assert values[-1] < 0.5 * values[0]
  assert all('Dense' in name or 'Multi' in name for name in ranges.extremes)


def test_other_programs_are_refused():
  aware = numerics.quantization_aware(mlp)
  other = numerics.quantization_aware(lambda w, x: x @ w)
  ranges = other.init(PARAMS['first'], BATCHES[0])
  with pytest.raises(ValueError, match=r'those of another program, without'):
    aware.apply(ranges, PARAMS, BATCHES[0])
  ranges = aware.init(PARAMS, BATCHES[0])
  with pytest.raises(ValueError, match=r'those of another program, without'):
    other.apply(ranges, PARAMS['first'], BATCHES[0])


@pytest.mark.parametrize(
  ('settings', 'error', 'words'),
  [
    ({'apply': 3}, TypeError, 'expected a function'),
    ({'weights': numerics.bfloat16}, TypeError, 'integers such as'),
    ({'weights': numerics.uint8}, ValueError, 'weights are symmetric'),
    ({'decay': 1.0}, ValueError, r'decay must be in \[0, 1\)'),
    ({'delay': 0}, ValueError, 'delay must be an int, at least 1'),
  ],
)
def test_what_it_refuses(settings, error, words):
  with pytest.raises(error, match=words):
    numerics.quantization_aware(**{'apply': mlp, **settings})
