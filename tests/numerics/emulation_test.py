import functools

import flax.linen as nn
import gfloat
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import numerics
from numerics import contractions
from numerics import sums
from tests.numerics import oracles
from tests.numerics import written

X, W = written.X, written.W
FP8 = numerics.float8_e4m3fn
BF16 = numerics.bfloat16
FLOAT32 = numerics.Format(8, 23)
KEY = jax.random.key(0)
FORMATS = pytest.mark.parametrize(
  'fmt', [FP8, BF16, numerics.float16], ids=lambda fmt: fmt.name
)


def cast(x, fmt):
  """Rounds to nearest by ml_dtypes."""
  dtype = np.dtype(getattr(ml_dtypes, fmt.name, fmt.name))
  with np.errstate(over='ignore'):
    return np.asarray(x, np.float32).astype(dtype).astype(np.float32)


def exactly(x, fmt, mode='nearest_even'):
  """Rounds float64 once, by gfloat."""
  info = oracles.gfloat_info(oracles.spec_of(fmt))
  rounding = oracles._GFLOAT_MODES[mode]
  return gfloat.round_ndarray(info, np.asarray(x, np.float64), rounding)


# What is computed.


@FORMATS
def test_every_operation_is_rounded_once(fmt):
  def f(x, y, sqrt=jnp.sqrt):
    return (x * y + 0.1) / sqrt(y) - x

  def literal(x, y):
    r = functools.partial(cast, fmt=fmt)
    x, y = r(x), r(y)
    return r(r(r(r(x * y) + r(0.1)) / r(np.sqrt(y))) - x)

  x, y = X.ravel(), np.abs(W.ravel()[: X.size]) + np.float32(0.1)
  oracles.assert_same(numerics.emulate(f, fmt)(x, y), literal(x, y))


def test_a_function_in_bfloat16_is_rounded_as_it_says():
  """XLA itself may keep float32 within a compiled function."""

  def f(x, y):
    return x * y + x

  x, y = (v.astype(ml_dtypes.bfloat16) for v in (X, W[:4]))
  expected = x * y + x  # NumPy rounds after each.
  result = numerics.emulate(f, BF16)(x, y)
  assert result.dtype == jnp.bfloat16
  np.testing.assert_array_equal(result, expected)
  wider = numerics.emulate(f, FLOAT32)(x, y)
  np.testing.assert_array_equal(wider, expected)
  narrower = numerics.emulate(f, FP8)(x, y)
  x, y = cast(x, FP8), cast(y, FP8)
  np.testing.assert_array_equal(
    narrower.astype(np.float32), cast(cast(x * y, FP8) + x, FP8)
  )


@pytest.mark.parametrize(
  'function',
  [written.softmax, written.checkpointed, written.own_vjp],
  ids=lambda f: f.__name__,
)
def test_float32_changes_nothing(function):
  expected = jax.jit(function)(X, W)
  found = numerics.emulate(function, FLOAT32)(X, W)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_it_commutes_with_vmap_and_jit():
  def f(x, w):
    return jnp.tanh(x @ w)

  g = numerics.emulate(f, FP8)
  batch = jnp.stack([X, X + 1])
  inside = numerics.emulate(jax.vmap(f, (0, None)), FP8)(batch, W)
  outside = jax.vmap(g, (0, None))(batch, W)
  oracles.assert_same(inside, outside)
  oracles.assert_same(numerics.emulate(jax.jit(f), FP8)(X, W), g(X, W))
  oracles.assert_same(jax.jit(g)(X, W), g(X, W))


def test_what_nothing_computes_is_kept():
  def f(x):
    return x, jnp.maximum(x.T, 0.1), jax.random.uniform(KEY, (3,))

  x = jnp.array([[0.33, -1.7]])
  same, larger, draws = numerics.emulate(f, FP8)(x)
  oracles.assert_same(same, x)
  np.testing.assert_array_equal(larger.ravel(), np.float32([0.33, 0.1]))
  oracles.assert_same(draws, jax.random.uniform(KEY, (3,)))
  policy = numerics.Policy(
    overrides=(numerics.Override(FP8, scope='jax.random'),)
  )
  coarse = numerics.emulate(f, policy)(x)[2]
  oracles.assert_same(coarse, cast(coarse, FP8))


# Accumulators.

HARD = np.float32(  # Sums that round otherwise if rounded to float32 first.
  [[1, 2**-11, 2**-30, -1, 3, 2**-24, 5, 2**-12, 2**-35, 2**-9, 1 / 3]]
)


def literal_sum(terms, how, r):
  """Adds terms, float64, along the first axis."""

  def chain(terms, r):
    return functools.reduce(lambda a, b: r(a + b), terms, np.float64(-0.0))

  if how.order == 'pairwise':
    terms = list(terms)
    while len(terms) > 1:
      pairs = zip(terms[::2], terms[1::2], strict=False)
      odd = terms[-1:] if len(terms) % 2 else []
      terms = [r(a + b) for a, b in pairs] + odd
    return terms[0]
  if how.order == 'sequential':
    return chain(terms, r)
  inner = r if how.order == 'chunked' else np.float32
  chunks = [
    chain(terms[i : i + how.chunk], inner)
    for i in range(0, len(terms), how.chunk)
  ]
  return chain(chunks, r)


@pytest.mark.parametrize('order', sums.ORDERS)
@pytest.mark.parametrize(
  ('fmt', 'mode'),
  [
    (numerics.float16, 'nearest_even'),
    pytest.param(BF16, 'up', marks=pytest.mark.slow),
  ],
)
def test_products_of_matrices_add_as_the_accumulator_says(order, fmt, mode):
  how = numerics.Accumulator(fmt, order, chunk=4)
  precision = numerics.Precision(inputs=BF16, accumulator=how, mode=mode)
  a = exactly(np.concatenate([HARD, X[:, [0] * 11] * HARD]), BF16, mode)
  b = exactly(np.concatenate([W[:, :3], W[:3, :3]]), BF16, mode)
  b[:, 0] = 1
  expected = literal_sum(
    (a[:, :, None] * b[None]).transpose(1, 0, 2),
    how,
    lambda x: exactly(x, fmt, mode),
  )
  found = numerics.emulate(jnp.matmul, precision)(
    a.astype(np.float32), b.astype(np.float32)
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize('order', sums.ORDERS)
def test_sums_add_as_the_accumulator_says(order):
  how = numerics.Accumulator(FP8, order, chunk=3)
  policy = numerics.Policy(reduction=numerics.Precision(accumulator=how))

  def f(x):
    return x.sum((0, 2)), jnp.cumsum(x[0, 0, ::-1])[::-1]

  x = np.concatenate([X, W]).reshape(4, 3, 8)
  found, running = numerics.emulate(f, policy)(x)
  r = functools.partial(exactly, fmt=FP8)
  terms = x.transpose(0, 2, 1).reshape(32, 3).astype(np.float64)
  np.testing.assert_array_equal(found, literal_sum(terms, how, r))
  partial = np.float64(0)
  for value, wanted in zip(x[0, 0, ::-1], running[::-1], strict=True):
    partial = r(partial + value)
    assert partial == wanted


@pytest.mark.parametrize(
  'settings',
  [
    {
      'padding': ((1, -1), (2, 0)),
      'lhs_dilation': (2, 1),
      'rhs_dilation': (2, 2),
      'window_strides': (2, 1),
      'feature_group_count': 2,
    },
    {'padding': 'SAME', 'batch_group_count': 2},
  ],
)
def test_convolutions_are_products_of_patches(settings):
  random = np.random.default_rng(0)
  settings = {'window_strides': (1, 1), **settings}
  groups = settings.get('feature_group_count', 1)
  numbers = ('NHWC', 'HWIO', 'HNWC')
  lhs = random.integers(-4, 5, (2, 6, 5, 4)).astype(np.float32)
  rhs = random.integers(-4, 5, (3, 2, 4 // groups, 6)).astype(np.float32)
  seen = []

  def capture(step, inputs):
    seen.append(contractions.of_convolution(*inputs, step.params))
    return step.bind(*inputs)

  with jax.disable_jit():  # To see arrays rather than tracers.
    expected = numerics.transform(
      lambda lhs, rhs: jax.lax.conv_general_dilated(
        lhs, rhs, dimension_numbers=numbers, **settings
      ),
      capture,
    )(lhs, rhs)
  [matrices] = seen
  product = np.einsum('bmk,bkn->bmn', matrices.lhs, matrices.rhs)
  np.testing.assert_array_equal(matrices.restore(product), expected)


@pytest.mark.slow
def test_a_batched_contraction_keeps_its_axes():
  def f(a, b):
    return jnp.einsum('kbxi,jxbk->jbi', a, b)

  how = numerics.Accumulator(numerics.Format(8, 21))
  a = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
  b = np.arange(36, dtype=np.float32).reshape(3, 2, 3, 2)
  found = numerics.emulate(f, numerics.Precision(accumulator=how))(a, b)
  np.testing.assert_array_equal(found, np.einsum('kbxi,jxbk->jbi', a, b))


# Which operation.


def test_a_policy_says_what_by_kind_scope_name_and_dtype():
  def f(x, w):
    with jax.named_scope('first'):
      x = jnp.tanh(x @ w)
    with jax.named_scope('second'):
      x = jnp.tanh(x @ w)
    return x.sum() * 0.1, jnp.float16(x[0, 0]) * 3

  base = numerics.Policy(
    FP8,
    matmul=numerics.Precision(inputs=(FP8, BF16)),
    reduction=numerics.Precision(),
  )
  policy = base | numerics.Policy(
    elementwise=BF16,
    overrides=(
      numerics.Override(None, scope='second', primitive='matmul'),
      numerics.Override(FP8, primitive='tan.', scope='^first$'),
      numerics.Override(FP8, dtype='float16'),
    ),
  )
  found = numerics.emulate(f, policy)(X, W)
  r, wide = (functools.partial(cast, fmt=fmt) for fmt in (FP8, BF16))
  tanh = jax.jit(jnp.tanh)
  x = r(tanh(r(jnp.matmul(r(X), wide(W)))))
  x = wide(tanh(wide(jnp.matmul(x, W))))
  oracles.assert_same(found[0], wide(wide(np.sum(x)) * wide(0.1)))
  assert float(found[1]) == cast(3 * cast(x[0, 0], FP8), FP8)


def test_policies_compose():
  first = numerics.Policy(
    FP8, matmul=BF16, opaque=('a',), overrides=(numerics.Override(FP8),)
  )
  second = numerics.Policy(
    BF16, reduction=FP8, mode='up', overrides=(numerics.Override(BF16),)
  )
  both = first | second
  assert (both.default, both.matmul, both.reduction) == (BF16, BF16, FP8)
  assert both.overrides == first.overrides + second.overrides
  assert (both.mode, both.opaque) == ('up', ('a',))
  assert first | numerics.Policy() == first
  assert hash(both) == hash(first | second)


@pytest.mark.slow
def test_modules_of_flax_are_scopes():
  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Dense(8)(x)
      return nn.Dense(3)(x)

  model = Model()
  params = jax.jit(model.init)(KEY, X)
  policy = numerics.Policy(overrides=(numerics.Override(FP8, scope='Dense_1'),))
  found = numerics.emulate(model.apply, policy)(params, X)
  layers = params['params']
  hidden = nn.Dense(8).apply({'params': layers['Dense_0']}, X)
  kernel, bias = layers['Dense_1']['kernel'], layers['Dense_1']['bias']
  r = functools.partial(cast, fmt=FP8)
  expected = r(r(jnp.matmul(r(hidden), r(kernel))) + r(bias))
  oracles.assert_same(found, expected)


# Gradients.


def test_the_gradient_is_that_of_the_emulated_numbers():
  def f(x, w):
    return jnp.sum(jnp.tanh(x @ w))

  r = functools.partial(cast, fmt=FP8)
  dx, dw = jax.grad(numerics.emulate(f, FP8), (0, 1))(X, W)
  hidden = r(np.matmul(r(X), r(W)))
  slope = 1 - np.tanh(hidden) ** 2
  np.testing.assert_allclose(dx, slope @ r(W).T, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(dw, r(X).T @ slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_an_accumulator_leaves_the_gradient_alone():
  how = numerics.Accumulator(numerics.float16, 'pairwise')
  precision = numerics.Precision(inputs=FP8, accumulator=how)

  def loss(precision):
    f = numerics.emulate(jnp.matmul, precision)
    return jax.grad(lambda x, w: jnp.sum(f(x, w) * X), (0, 1))(X, W)

  plain = loss(numerics.Precision(inputs=FP8))
  jax.tree.map(oracles.assert_same, loss(precision), plain)


def test_the_backward_pass_has_a_policy_of_its_own():
  wide = numerics.float8_e5m2

  def f(x, w):
    return jnp.sum((x @ w) * x)

  dx, dw = jax.grad(numerics.emulate(f, FP8, backward=wide), (0, 1))(X, W)
  r, s = (functools.partial(cast, fmt=fmt) for fmt in (FP8, wide))
  x, w = r(X), r(W)
  product = r(np.matmul(x, w))
  cotangent = s(s(x))  # Of the product, which is multiplied by x.
  first = s(s(product))
  second = s(np.matmul(cotangent, s(w).T))
  oracles.assert_same(dx, s(first + second))
  oracles.assert_same(dw, s(np.matmul(cotangent.T, s(x)).T))


@pytest.mark.slow
def test_a_backward_policy_takes_integers_loops_and_closures():
  scale = jnp.array([2.0, 3.0])

  def f(x, n):
    def g(x):
      y, _ = jax.lax.scan(lambda c, a: (c * a, None), jnp.sum(x), scale)
      return {'y': y, 'n': n + 1}

    return numerics.emulate(g, BF16, backward=FP8, mode='stochastic')(
      x * scale, rounding_key=KEY
    )

  value, gradient = jax.value_and_grad(lambda x: f(x, 3)['y'])(jnp.ones(2))
  assert value == 30
  np.testing.assert_array_equal(gradient, [12, 18])


def test_both_passes_of_a_derivative_can_be_emulated():
  def f(x):
    return jnp.sum(x * x * 0.3)

  r = functools.partial(cast, fmt=FP8)
  x = r(X[0])
  slope = r(r(0.3) * x)
  found = numerics.emulate(jax.grad(f), FP8)(X[0])
  oracles.assert_same(found, r(slope + slope))


# Stochastic rounding.


def test_iterations_elements_and_operations_draw_anew():
  def f(x):
    def step(c, _):
      y = x + 0.3
      return c, (y, y - x)

    return jax.lax.scan(step, 0, length=64)[1]

  f = numerics.emulate(f, FP8, mode='stochastic')
  x = jnp.full(8, 8.0)  # Its neighbour is 9; 0.3 becomes 0.3125 or 0.28125.
  sums_, rests = f(x, rounding_key=KEY)
  assert set(np.unique(sums_)) == {8.0, 9.0}
  assert len(np.unique(sums_, axis=0)) > 32
  assert len(np.unique(sums_, axis=1)) > 4
  assert 0.2 < np.mean(rests) < 0.4
  again, _ = f(x, rounding_key=KEY)
  oracles.assert_same(again, sums_)
  other, _ = f(x, rounding_key=jax.random.key(1))
  assert np.any(other != sums_)


@pytest.mark.slow
def test_a_transformer_runs_in_fp8_by_one_line_more():
  apply = written.Transformer().apply
  emulated = numerics.emulate(apply, FP8, mode='stochastic')

  def loss(params, x):
    return jnp.mean(emulated(params, x, rounding_key=KEY) ** 2)

  params = written.parameters()
  value, gradient = jax.jit(jax.value_and_grad(loss))(params, X)
  exact = jax.grad(lambda params: jnp.mean(apply(params, X) ** 2))(params)
  assert np.isfinite(value)
  flat, exact = (
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (gradient, exact)
  )
  cosine = flat @ exact / np.linalg.norm(flat) / np.linalg.norm(exact)
  assert 0.9 < cosine < 0.9999


# Errors.


def test_what_does_not_fit_is_told():
  with pytest.raises(TypeError, match=r'expected a numerics\.Policy'):
    numerics.emulate(jnp.sin, 'float8')
  with pytest.raises(TypeError, match='expected a function'):
    numerics.emulate(3, FP8)
  with pytest.raises(ValueError, match='pass rounding_key='):
    numerics.emulate(jnp.sin, FP8, mode='stochastic')(1.0)
  with pytest.raises(ValueError, match='drop rounding_key'):
    numerics.emulate(jnp.sin, FP8)(1.0, rounding_key=KEY)
  with pytest.raises(ValueError, match='Policy: mode must be one of'):
    numerics.emulate(jnp.sin, FP8, mode='nearest')
  with pytest.raises(TypeError, match=r'matmul must be a numerics\.Format'):
    numerics.Policy(matmul='bfloat16')
  with pytest.raises(TypeError, match='overrides must be a tuple of Override'):
    numerics.Policy(overrides=[])
  with pytest.raises(ValueError, match=r'scope=.* is no regular expression'):
    numerics.Override(FP8, scope='(')
  with pytest.raises(TypeError, match=r'a format f is numerics.Accumulator'):
    numerics.Precision(accumulator=FP8)
  with pytest.raises(ValueError, match='order must be one of sequential'):
    numerics.Accumulator(FP8, 'random')
  with pytest.raises(ValueError, match='chunk must be a positive int'):
    numerics.Accumulator(FP8, chunk=0)


def test_a_pattern_that_matches_nothing_is_told():
  def f(x):
    with jax.named_scope('attention'):
      return jnp.tanh(x)

  for pattern, wanted in (
    ({'scope': 'atention'}, 'Each scope: .*attention'),
    ({'primitive': 'tan'}, 'Each primitive: .*tanh'),
    ({'dtype': 'bfloat16'}, 'matches no floating operation'),
  ):
    policy = numerics.Policy(overrides=(numerics.Override(FP8, **pattern),))
    with pytest.raises(ValueError, match=wanted):
      numerics.emulate(f, policy)(1.0)


def test_operations_that_cannot_be_emulated_are_named_with_their_line():
  matrix = np.eye(2, dtype=np.float32)
  here = r'emulation_test.py:\d+'
  with pytest.raises(NotImplementedError, match=f"'cholesky' at .*{here}"):
    numerics.emulate(lambda x: 2 * jax.lax.linalg.cholesky(x), FP8)(matrix)
  policy = numerics.Policy(FP8, opaque=('cholesky',))
  found = numerics.emulate(jnp.linalg.cholesky, policy)(matrix)
  np.testing.assert_array_equal(found, matrix)
  with pytest.raises(TypeError, match=f'at .*{here} .*computes in complex64'):
    numerics.emulate(lambda x: x * 1j, FP8)(1.0)
  half = jnp.ones(2, jnp.bfloat16)
  with pytest.raises(TypeError, match='bfloat16, which does not hold float16'):
    numerics.emulate(lambda x: x * x, numerics.float16)(half)
  precision = numerics.Precision(inputs=(FP8,))
  with pytest.raises(ValueError, match='names 1 formats, but mul at'):
    numerics.emulate(lambda x: x * x, precision)(1.0)
  precision = numerics.Precision(accumulator=numerics.Accumulator(FP8))
  with pytest.raises(NotImplementedError, match='inside of cumprod at'):
    numerics.emulate(jnp.cumprod, precision)(X[0])
