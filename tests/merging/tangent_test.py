"""Linearised models, disentanglement and kernels, against literal NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import transformer
import merging
from merging import tangent

RNG = np.random.default_rng(3)
X = RNG.normal(size=(7, 3))
X_OTHER = RNG.normal(size=(5, 3))
CONFIG = transformer.Config(
  vocabulary_size=5, max_length=4, layers=1, heads=2, width=8
)
TOKENS = jnp.asarray(RNG.integers(0, 5, size=(6, 4)), jnp.int32)


def draw(scale=1.0, seed=0, width=4):
  rng = np.random.default_rng(seed)
  return {
    'hidden': scale * rng.normal(size=(3, width)),
    'out': scale * rng.normal(size=(width, 2)),
  }


def on_device(params, dtype=jnp.float32):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def plus(a, b, step=1.0):
  return {name: a[name] + step * b[name] for name in a}


BASE, DELTA = draw(), draw(0.4, seed=1)
OTHER = draw(0.4, seed=2)


def perceptron(params, x):
  return jnp.tanh(x @ params['hidden']) @ params['out']


def perceptron_np(params, x):
  return np.tanh(x @ params['hidden']) @ params['out']


def linear_np(base, delta, x):
  """First-order expansion by central differences, in float64."""
  above = perceptron_np(plus(base, delta, 1e-5), x)
  below = perceptron_np(plus(base, delta, -1e-5), x)
  return perceptron_np(base, x) + (above - below) / 2e-5


def jacobian_np(base, x):
  """Derivative by every parameter, [inputs, outputs, parameters]."""
  columns = []
  for name, leaf in sorted(base.items()):
    for place in np.ndindex(leaf.shape):
      step = {key: np.zeros_like(value) for key, value in base.items()}
      step[name][place] = 1.0
      columns.append(linear_np(base, step, x) - perceptron_np(base, x))
  return np.stack(columns, axis=-1)


def decoder(params, tokens):
  return transformer.apply(params, tokens, config=CONFIG)


@functools.cache
def decoders():
  base = transformer.init(jax.random.key(0), CONFIG)

  def expert(seed):
    return jax.tree.map(
      lambda x: x + 0.1 * np.random.default_rng(seed).normal(size=x.shape),
      jax.tree.map(np.asarray, base),
    )

  return base, {name: on_device(expert(i)) for i, name in enumerate('ab')}


def test_values_are_the_first_order_expansion():
  linear = jax.jit(tangent.linearize(perceptron, on_device(BASE)))
  for step in (0.0, 1.0, -3.0):
    found = linear(on_device(plus(BASE, DELTA, step)), jnp.float32(X))
    delta = jax.tree.map(lambda x, s=step: s * x, DELTA)
    np.testing.assert_allclose(
      found, linear_np(BASE, delta, X), rtol=2e-4, atol=2e-5
    )


def test_it_is_the_model_at_the_base_and_where_that_is_linear():
  base = on_device(BASE)
  linear = tangent.linearize(perceptron, base)
  x = jnp.float32(X)
  np.testing.assert_array_equal(linear(base, x), perceptron(base, x))
  moved = {**base, 'out': base['out'] + 5}
  np.testing.assert_allclose(
    linear(moved, x), perceptron(moved, x), rtol=1e-5, atol=1e-5
  )


def test_the_gradient_is_that_at_the_base_wherever_it_is_taken():
  base, x = on_device(BASE), jnp.float32(X)
  linear = tangent.linearize(perceptron, base)
  weights = RNG.normal(size=(7, 2))

  @jax.jit
  def gradient(params):
    return jax.grad(
      lambda params: jnp.sum(linear(params, x) * jnp.float32(weights))
    )(params)

  here = gradient(base)
  there = gradient(on_device(plus(BASE, DELTA, 10.0)))
  jax.tree.map(np.testing.assert_array_equal, here, there)
  slope = np.einsum('iop,io->p', jacobian_np(BASE, X), weights)
  flat = np.concatenate([np.ravel(here[name]) for name in sorted(here)])
  np.testing.assert_allclose(flat, slope, rtol=1e-4, atol=1e-4)


def test_integers_containers_and_keywords():
  base = {'layers': [jnp.ones(2), (jnp.full(2, 3.0),)], 'power': jnp.int32(2)}

  def apply(params, x, *, shift):
    (a, (b,)) = params['layers']
    value = a ** params['power'] * b * x + shift
    return {'value': value, 'class': jnp.argmax(value), 'power': x * 0}

  linear = jax.jit(tangent.linearize(apply, base))
  moved = [jnp.full(2, 2.0), (jnp.full(2, 4.0),)]
  params = {'layers': moved, 'power': jnp.int32(9)}
  out = linear(params, jnp.float32(10), shift=jnp.float32(1))
  # a^2 b at (1, 3): 3 + 6 da + 1 db.
  np.testing.assert_allclose(out['value'], [101.0, 101.0])
  assert out['class'].dtype == jnp.int32
  assert out['power'] == 0
  at = tangent.linearize_at(apply, base, jnp.float32(10), shift=jnp.float32(1))
  jax.tree.map(np.testing.assert_allclose, at(params), out)


def test_under_jit_with_the_base_an_argument_and_under_vmap():
  x = jnp.float32(X)
  stacked = merging.tree.stack(
    [on_device(plus(BASE, DELTA, step)) for step in (0.5, 1.0)]
  )

  @jax.jit
  def run(base, stacked):
    linear = tangent.linearize(perceptron, base)
    return jax.vmap(lambda params: linear(params, x))(stacked)

  for base in (BASE, plus(BASE, OTHER)):
    for found, step in zip(
      run(on_device(base), stacked), (0.5, 1.0), strict=True
    ):
      delta = plus(plus(BASE, DELTA, step), base, -1.0)
      np.testing.assert_allclose(
        found, linear_np(base, delta, X), rtol=1e-3, atol=1e-4
      )


def test_eight_bits_of_mantissa():
  base = {'w': jnp.ones(1, jnp.bfloat16)}

  def apply(params, x):
    return params['w'] * x

  linear = tangent.linearize(apply, base)
  x = jnp.bfloat16(2)
  # A change that a bfloat16 parameter could not hold: 1 + 2^-10.
  fine = {'w': jnp.full(1, 1 + 2**-10, jnp.float32)}
  slope = jax.grad(lambda params: jnp.sum(linear(params, x)))(fine)
  assert linear(fine, x).dtype == jnp.bfloat16
  assert slope['w'].dtype == jnp.float32
  assert slope['w'] == 2
  assert linear({'w': jnp.full(1, 1.5, jnp.bfloat16)}, x) == 3
  change = jax.jvp(
    lambda params: linear(params, x), (base,), ({'w': base['w']},)
  )[1]
  assert change == 2


def test_many_parameters_on_the_same_inputs():
  steps = (0.5, -1.0)

  @jax.jit
  def many(base, stacked):
    at = tangent.linearize_at(perceptron, base, jnp.float32(X))
    return jax.vmap(at)(stacked)

  stacked = [on_device(plus(BASE, DELTA, step)) for step in steps]
  for found, step in zip(
    many(on_device(BASE), merging.tree.stack(stacked)), steps, strict=True
  ):
    delta = {name: step * x for name, x in DELTA.items()}
    np.testing.assert_allclose(found, linear_np(BASE, delta, X), atol=1e-4)


def test_responses_are_merges_of_all_coefficients():
  base, x = on_device(BASE), jnp.float32(X)
  experts, _ = two_tasks()
  linear = jax.jit(tangent.linearize(perceptron, base))

  @jax.jit
  def grid(base, experts, coefficients):
    answers = tangent.responses(perceptron, base, experts, x)
    return jax.vmap(answers.at)(coefficients)

  coefficients = np.float32([[0.3, 0.3], [1.0, -0.5], [0.0, 0.0]])
  found = grid(base, experts, coefficients)
  for out, (a, b) in zip(found, coefficients, strict=True):
    merged = merging.merge(
      merging.task_arithmetic({'a': a, 'b': b}), base, experts
    )
    np.testing.assert_allclose(out, linear(merged, x), atol=2e-5)


@pytest.mark.slow
def test_a_decoder_learns_in_its_tangent_space():
  base, _ = decoders()
  linear = tangent.linearize(decoder, base)

  def loss(params, apply):
    logs = jax.nn.log_softmax(apply(params, TOKENS[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(logs, TOKENS[:, 1:, None], axis=-1))

  @jax.jit
  def train(params):
    def step(params, _):
      value, slope = jax.value_and_grad(loss)(params, linear)
      return jax.tree.map(lambda p, g: p - 0.1 * g, params, slope), value

    return jax.lax.scan(step, params, None, length=30)

  _, losses = train(base)
  np.testing.assert_allclose(losses[0], loss(base, decoder), rtol=1e-6)
  assert losses[-1] < 0.5 * losses[0]
  assert np.all(np.diff(losses) < 0)  # The loss is convex.


def mean_gap(a, b):
  return jnp.abs(a - b)


def loop_np(apply, base, taus, inputs, points, distance):
  """The error at each point, task by task, in float64."""
  found = []
  for point in points:
    merged = base
    for alpha, tau in zip(point, taus, strict=True):
      merged = plus(merged, tau, alpha)
    total = 0.0
    for alpha, tau, x in zip(point, taus, inputs, strict=True):
      own = apply(plus(base, tau, alpha), x)
      total += np.mean(distance(own, apply(merged, x)))
    found.append(total)
  return np.array(found)


def two_tasks():
  experts = {
    'a': on_device(plus(BASE, DELTA)),
    'b': on_device(plus(BASE, OTHER)),
  }
  return experts, {'a': jnp.float32(X), 'b': jnp.float32(X_OTHER)}


def test_disentanglement_error_is_the_loop_over_its_definition():
  experts, inputs = two_tasks()
  alphas = (-1.5, 0.0, 1.0)
  measure = functools.partial(
    tangent.disentanglement_error,
    perceptron,
    on_device(BASE),
    experts,
    inputs,
    alphas,
  )
  points = list(itertools.product(alphas, alphas))
  expected = functools.partial(
    loop_np, perceptron_np, BASE, (DELTA, OTHER), (X, X_OTHER), points
  )
  differs = expected(lambda a, b: a.argmax(-1) != b.argmax(-1))
  assert 0 < differs.max() < 2
  np.testing.assert_allclose(
    measure(), differs.reshape(3, 3), rtol=1e-6, atol=0
  )
  gap = expected(lambda a, b: np.abs(a - b)).reshape(3, 3)
  for batch_size in (1, 3, 64):
    np.testing.assert_allclose(
      measure(distance=mean_gap, batch_size=batch_size),
      gap,
      rtol=1e-4,
      atol=1e-6,
    )


def test_disentanglement_error_of_linear_models():
  experts, inputs = two_tasks()
  base = on_device(BASE)
  alphas = (-1.0, 0.5)
  linear = tangent.disentanglement_error(
    perceptron, base, experts, inputs, alphas, distance=mean_gap, linear=True
  )
  same = tangent.disentanglement_error(
    tangent.linearize(perceptron, base),
    base,
    experts,
    inputs,
    alphas,
    distance=mean_gap,
  )
  np.testing.assert_allclose(linear, same, rtol=1e-4, atol=1e-6)
  # Of a linear model the term of task a is |b| times what tau_b does there.
  touch = [
    np.mean(np.abs(linear_np(BASE, delta, x) - perceptron_np(BASE, x)))
    for delta, x in ((OTHER, X), (DELTA, X_OTHER))
  ]
  sizes = np.abs(alphas)
  expected = sizes[None, :] * touch[0] + sizes[:, None] * touch[1]
  np.testing.assert_allclose(linear, expected, rtol=1e-3)


def test_combinations_and_three_experts():
  experts, inputs = two_tasks()
  third = draw(0.4, seed=9)
  experts['c'] = on_device(plus(BASE, third))
  inputs['c'] = jnp.float32(X_OTHER)
  base = on_device(BASE)
  points = [(0.5, 1.0, -1.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)]
  expected = loop_np(
    perceptron_np,
    BASE,
    (DELTA, OTHER, third),
    (X, X_OTHER, X_OTHER),
    points,
    lambda a, b: np.abs(a - b),
  )
  measure = functools.partial(
    tangent.disentanglement_error,
    perceptron,
    base,
    experts,
    inputs,
    distance=mean_gap,
  )
  np.testing.assert_allclose(measure(points), expected, rtol=1e-4, atol=1e-6)
  grid = measure([0.0, 1.0])
  assert grid.shape == (2, 2, 2)
  np.testing.assert_allclose(grid[1, 1, 1], expected[2], rtol=1e-4)


def test_what_disentanglement_error_is_zero_for():
  experts, inputs = two_tasks()
  base = on_device(BASE)
  alphas = (0.0, 1.0, 2.0)
  measure = functools.partial(
    tangent.disentanglement_error, perceptron, distance=mean_gap
  )
  error = measure(base, experts, inputs, alphas)
  assert error[0, 0] == 0
  # On an axis the expert that moves agrees with itself; the other sees it.
  x = jnp.float32(X_OTHER)
  seen = np.mean(np.abs(perceptron(experts['a'], x) - perceptron(base, x)))
  np.testing.assert_allclose(error[1, 0], seen, rtol=1e-5)
  # Renaming the experts turns the grid over.
  turned = measure(
    base,
    {'z': experts['a'], 'b': experts['b']},
    {'z': inputs['a'], 'b': inputs['b']},
    alphas,
  )
  np.testing.assert_allclose(error, turned.T, rtol=1e-5, atol=1e-7)
  # One expert, or others that never moved, disturb nothing.
  alone = measure(base, {'a': experts['a']}, {'a': inputs['a']}, alphas)
  np.testing.assert_array_equal(alone, np.zeros(3))
  still = measure(base, {'a': base, 'b': base}, inputs, alphas)
  np.testing.assert_array_equal(still, np.zeros((3, 3)))


def test_disjoint_parameters_are_disentangled():
  def apply(params, x):
    """Each half of the inputs has its own network."""
    first, second = x[:, 3:4], 1 - x[:, 3:4]
    return first * perceptron(params['first'], x[:, :3]) + second * perceptron(
      params['second'], x[:, :3]
    )

  first = np.concatenate([X, np.ones((7, 1))], axis=1)
  second = np.concatenate([X, np.zeros((7, 1))], axis=1)
  base = on_device({'first': BASE, 'second': OTHER})
  experts = {
    'first': {**base, 'first': on_device(plus(BASE, DELTA))},
    'second': {**base, 'second': on_device(plus(OTHER, DELTA))},
  }
  inputs = {'first': jnp.float32(first), 'second': jnp.float32(second)}
  for linear in (False, True):
    error = tangent.disentanglement_error(
      apply,
      base,
      experts,
      inputs,
      [-2.0, 0.0, 1.0],
      distance=mean_gap,
      linear=linear,
    )
    np.testing.assert_array_equal(error, np.zeros((3, 3)))
  pooled = jnp.concatenate([inputs['first'], inputs['second']])
  kernel = tangent.ntk(apply, base, pooled)
  np.testing.assert_array_equal(kernel[:7, 7:], np.zeros((7, 7)))
  for fit in ('pooled', 'own'):
    local = tangent.eigenfunction_localization(
      kernel, [0] * 7 + [1] * 7, fit=fit
    )
    np.testing.assert_allclose(local.by_task, np.eye(2), atol=1e-5)


@pytest.mark.slow
def test_disentanglement_error_of_decoders():
  base, experts = decoders()
  inputs = {'a': TOKENS[:3], 'b': TOKENS[3:]}
  alphas = [0.0, 1.0, 3.0]
  error = tangent.disentanglement_error(decoder, base, experts, inputs, alphas)
  assert error.shape == (3, 3)
  assert error[0, 0] == 0
  shift = jax.tree.map(jnp.subtract, experts['b'], base)
  both = jax.tree.map(jnp.add, experts['a'], shift)
  expected = sum(
    np.mean(
      np.argmax(decoder(experts[name], inputs[name]), -1)
      != np.argmax(decoder(both, inputs[name]), -1)
    )
    for name in 'ab'
  )
  np.testing.assert_allclose(error[1, 1], expected, rtol=1e-6)


def test_the_kernel_is_the_product_of_jacobians():
  base = on_device(BASE)
  left, right = jacobian_np(BASE, X), jacobian_np(BASE, X_OTHER)
  expected = {
    'trace': np.einsum('iop,jop->ij', left, right),
    'sum': left.sum(axis=1) @ right.sum(axis=1).T,
  }
  for (outputs, kernel), batch_size in itertools.product(
    expected.items(), (2, 16)
  ):
    found = tangent.ntk(
      perceptron,
      base,
      jnp.float32(X),
      jnp.float32(X_OTHER),
      outputs=outputs,
      batch_size=batch_size,
    )
    np.testing.assert_allclose(found, kernel, rtol=1e-4, atol=1e-4)
  square = tangent.ntk(perceptron, base, jnp.float32(X))
  np.testing.assert_allclose(
    square, np.einsum('iop,jop->ij', left, left), rtol=1e-4, atol=1e-4
  )


def test_a_step_of_a_linear_model_is_a_step_of_kernel_regression():
  """f_lin after a gradient step is f - lr K (f - y)."""
  base, x = {**on_device(BASE), 'step': jnp.int32(3)}, jnp.float32(X)
  targets = RNG.normal(size=7)

  def apply(params, x):
    return perceptron(params, x)[:, 0]

  @jax.jit
  def step(base):
    def loss(floats):
      out = apply(floats, x)
      return jnp.sum((out - jnp.float32(targets)) ** 2) / 2

    floats = {name: base[name] for name in BASE}
    slope = jax.grad(loss)(floats)
    moved = jax.tree.map(lambda p, g: p - 0.01 * g, floats, slope)
    moved['step'] = base['step']
    return tangent.linearize(apply, base)(moved, x)

  start = perceptron_np(BASE, X)[:, 0]
  kernel = np.asarray(tangent.ntk(apply, base, x), np.float64)
  expected = start - 0.01 * kernel @ (start - targets)
  np.testing.assert_allclose(step(base), expected, rtol=1e-4, atol=1e-4)


def leading_np(kernel, trace):
  """Eigenvalues and eigenvectors that carry the trace, largest first."""
  values, functions = np.linalg.eigh(kernel)
  values, functions = values[::-1], functions[:, ::-1]
  shares = np.cumsum(values) / values.sum()
  count = 1 + np.flatnonzero(shares >= trace)[0]
  assert 1 < count < len(kernel)
  return values[:count], functions[:, :count]


def local_energy_np(kernel, rows, fit, trace):
  """Local energy of one task, literally."""
  total = np.zeros(len(kernel))
  if fit == 'pooled':
    for function in leading_np(kernel, trace)[1].T:
      total += (function[rows] ** 2).sum() * function**2
  else:
    values, functions = leading_np(kernel[np.ix_(rows, rows)], trace)
    for value, function in zip(values, functions.T, strict=True):
      total += (kernel[:, rows] @ function / value) ** 2
  return total / total[rows].mean()


@pytest.mark.parametrize('fit', ['pooled', 'own'])
def test_localization_is_the_sum_over_eigenfunctions(fit):
  tasks = np.array([0, 1, 0, 1, 1, 0, 1])
  rows_of = [np.flatnonzero(tasks == t) for t in range(2)]
  jacobian = jacobian_np(BASE, X)
  kernel = np.einsum('iop,jop->ij', jacobian, jacobian)
  found = tangent.eigenfunction_localization(kernel, tasks, fit=fit, trace=0.97)
  energy = [local_energy_np(kernel, rows, fit, 0.97) for rows in rows_of]
  by_task = [[each[rows].mean() for rows in rows_of] for each in energy]
  np.testing.assert_allclose(found.local_energy, energy, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(found.by_task, by_task, rtol=1e-3, atol=1e-4)


def test_localization_at_its_extremes():
  tasks = [0, 0, 1, 1]
  constant = np.ones((4, 4))
  for fit in ('pooled', 'own'):
    found = tangent.eigenfunction_localization(constant, tasks, fit=fit)
    np.testing.assert_allclose(found.by_task, np.ones((2, 2)), rtol=1e-5)
    nothing = tangent.eigenfunction_localization(
      np.zeros((4, 4)), tasks, fit=fit
    )
    np.testing.assert_array_equal(nothing.by_task, np.zeros((2, 2)))


def test_errors_of_linear_models():
  base = on_device(BASE)
  linear = tangent.linearize(perceptron, base)
  with pytest.raises(ValueError, match="'params' at 'out': missing"):
    linear({'hidden': base['hidden']}, jnp.float32(X))
  with pytest.raises(ValueError, match='no floating-point leaf'):
    tangent.linearize(perceptron, {'step': jnp.int32(1)})
  with pytest.raises(TypeError, match="'w' is complex64"):
    tangent.linearize_at(perceptron, {'w': jnp.ones(1, jnp.complex64)})
  with pytest.raises(ValueError, match='there are no experts'):
    tangent.responses(perceptron, base, {}, jnp.float32(X))


def test_errors_of_disentanglement():
  experts, inputs = two_tasks()
  measure = functools.partial(
    tangent.disentanglement_error, perceptron, on_device(BASE), experts
  )
  with pytest.raises(ValueError, match="inputs are for 'a', expected the ex"):
    measure({'a': inputs['a']}, [1.0])
  with pytest.raises(ValueError, match=r"inputs of 'b' .* \[\(5,\), \(7,\)\]"):
    measure({**inputs, 'b': tuple(inputs.values())}, [1.0])
  with pytest.raises(ValueError, match=r'expected \(a,\) or \(points, 2\)'):
    measure(inputs, np.ones((3, 3)))
  with pytest.raises(ValueError, match='combine in 4000000 ways'):
    measure(inputs, np.ones(2000))
  with pytest.raises(ValueError, match=r'distance returned shape \(\)'):
    measure(inputs, [1.0], distance=_one_number)


def _one_number(a, b):
  return jnp.sum(a - b)


def test_errors_of_kernels():
  base, x = on_device(BASE), jnp.float32(X)
  with pytest.raises(ValueError, match=r"outputs is 'trase'.*'trace'"):
    tangent.ntk(perceptron, base, x, outputs='trase')
  with pytest.raises(ValueError, match=r'inputs_a are arrays of lengths \[\]'):
    tangent.ntk(perceptron, base, ())
  with pytest.raises(ValueError, match=r'inputs_b are arrays of lengths'):
    tangent.ntk(perceptron, base, x, x[:0])
  localize = tangent.eigenfunction_localization
  with pytest.raises(ValueError, match=r'kernel has shape \(2, 2\)'):
    localize(np.eye(2), [0, 1, 1])
  with pytest.raises(ValueError, match=r'tasks are \[0, 2\], expected all of'):
    localize(np.eye(2), [0, 2])
  with pytest.raises(ValueError, match=r'share in \(0, 1\]'):
    localize(np.eye(2), [0, 1], trace=1.5)
  with pytest.raises(ValueError, match="fit is 'owm'"):
    localize(np.eye(2), [0, 1], fit='owm')
