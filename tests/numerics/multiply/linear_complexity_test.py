import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics.multiply import multiplier
from tests.numerics import oracles
from tests.numerics import written

F32 = np.float32
VARIANTS = pytest.mark.parametrize('variant', ['bits', 'value'])


def literal(x, y, bits, variant, delta=None, overflow='inf'):
  """One product by the formulas, in float64, which holds all of it."""
  sign = math.copysign(1, x) * math.copysign(1, y)
  x, y = abs(x), abs(y)
  zero = x < 2.0**-126 or y < 2.0**-126
  if math.isnan(x) or math.isnan(y) or (zero and math.inf in (x, y)):
    return math.nan
  if zero or math.inf in (x, y):
    return sign * (0.0 if zero else math.inf)
  if delta is None:
    delta = 0.5 ** {1: 1, 2: 2, 3: 3, 4: 3}.get(bits, 4)
  total = delta
  exponent = 0
  for v in (x, y):
    significand, power = math.frexp(v)  # In [1/2, 1).
    total += math.floor((2 * significand - 1) * 2**bits) / 2**bits
    exponent += power - 1
  if variant == 'value':
    value = 1 + total
    if value >= 2:  # Rounded to 24 significant bits, on a tie to even.
      value = round(value * 2**22) / 2**22
  else:  # What is whole of the sum is a carry, which doubles.
    carry = math.floor(total)
    value = (1 + total - carry) * 2**carry
  value = math.ldexp(value, exponent)
  if value < 2.0**-126:
    return sign * 0.0
  if value >= 2.0**128:
    end = math.inf if overflow == 'inf' else float(np.finfo(F32).max)
    return sign * end
  return sign * float(value)


@VARIANTS
@pytest.mark.parametrize(
  ('fmt', 'bits'), [(numerics.float8_e4m3fn, 3), (numerics.float8_e5m2, 2)]
)
def test_all_pairs_of_codes_of_eight_bits(fmt, bits, variant):
  values = fmt.values()
  specials = F32([-0.0, np.inf, -np.inf, np.nan])
  x = np.concatenate([values, specials])
  found = numerics.lmul(
    x[:, None], x[None], mantissa_bits=bits, variant=variant
  )
  half = [[literal(float(a), float(b), bits, variant) for b in x] for a in x]
  oracles.assert_same(found, F32(half))


@VARIANTS
def test_any_numbers_and_the_ends_of_float32(variant):
  random = np.random.default_rng(0)
  x, y = random.integers(0, 2**32, (2, 6000), np.uint32)
  edge = random.integers(0, 2**23, (2, 4000), np.uint32)
  fields = random.integers(60, 70, (2, 2000), np.uint32)
  fields = np.concatenate([fields, random.integers(186, 196, (2, 2000))], 1)
  edge = edge | (fields.astype(np.uint32) << np.uint32(23))
  pairs = zip((x, y), edge, strict=True)
  x, y = (np.concatenate([a, b]).view(F32) for a, b in pairs)
  for settings in (
    {'mantissa_bits': 23},
    {'mantissa_bits': 7, 'overflow': 'saturate'},
    {'mantissa_bits': 23, 'delta': 0},
  ):
    found = numerics.LMul(variant=variant, **settings)(x, y)
    bits = settings['mantissa_bits']
    expected = [
      literal(
        float(a),
        float(b),
        bits,
        variant,
        settings.get('delta'),
        settings.get('overflow', 'inf'),
      )
      for a, b in zip(x, y, strict=True)
    ]
    oracles.assert_same(found, F32(expected))


def test_laws():
  random = np.random.default_rng(1)
  x, y = random.normal(size=(2, 999)).astype(F32)
  multiply = numerics.LMul(mantissa_bits=6)
  product = np.asarray(multiply(x, y))
  np.testing.assert_array_equal(multiply(y, x), product)
  np.testing.assert_array_equal(multiply(-x, y), -product)
  np.testing.assert_array_equal(multiply(8 * x, y / 4), 2 * product)
  mapped = jax.jit(jax.vmap(multiply))(x, y)
  np.testing.assert_array_equal(mapped, product)
  # By Mitchell's, powers of two are exact, and no product is too large.
  mitchell = numerics.LMul(mantissa_bits=23, delta=0)
  np.testing.assert_array_equal(mitchell(x, jnp.float32(-4)), -4 * x)
  ratio = np.asarray(mitchell(x, y), np.float64) / (x.astype(np.float64) * y)
  assert (ratio <= 1).all()
  assert (ratio >= 8 / 9 - 1e-6).all()


@pytest.mark.parametrize(
  ('bits', 'variant', 'mean', 'largest'),
  [
    (2, 'bits', 6.9, 24.9),
    (3, 'bits', 4.83, 17.9),
    (4, 'bits', 2.96, 12.4),
    (7, 'bits', 2.57, 8.2),
    (23, 'bits', 2.65, 7.3),
    (23, 'value', 7.57, None),
  ],
)
def test_the_error_of_uniform_mantissas(bits, variant, mean, largest):
  x, y = (1 + np.random.default_rng(2).random((2, 2**19))).astype(F32)
  multiply = numerics.LMul(mantissa_bits=bits, variant=variant)
  exact = x.astype(np.float64) * y
  error = np.asarray(multiply(x, y), np.float64) - exact
  relative = 100 * np.abs(error / exact)
  np.testing.assert_allclose(relative.mean(), mean, rtol=0.01)
  if largest is not None:
    np.testing.assert_allclose(relative.max(), largest, rtol=0.02)
  bound = 4.5 * error.std() / math.sqrt(error.size)
  assert abs(error.mean() - multiply.expected_error) < bound


def test_the_expected_error_is_the_closed_form():
  for bits in (1, 2, 3, 4, 6):
    n = 2**bits
    grid = np.arange(n) / n
    total = grid[:, None] + grid[None]
    for delta in (None, 0, 1 / 2, 1 / n):
      for variant in ('bits', 'value'):
        multiply = numerics.LMul(bits, variant, delta=delta)
        value = 1 + total + multiply.offset
        if variant == 'bits':
          carry = np.floor(value - 1)
          value = (value - carry) * 2**carry
        np.testing.assert_allclose(
          multiply.expected_error, value.mean() - 9 / 4, atol=1e-12
        )
  for delta in (1 / 16, 1 / 8, 0):  # Of long mantissas.
    found = numerics.LMul(23, delta=delta).expected_error
    limit = 2 * delta + (1 - delta) ** 3 / 6 + delta**3 / 3 - 1 / 4
    np.testing.assert_allclose(found, limit, atol=1e-6)
    found = numerics.LMul(23, 'value', delta=delta).expected_error
    np.testing.assert_allclose(found, delta - 1 / 4, atol=1e-6)


# Products of matrices.


def sequential(a, b, multiply):
  """Adds products one after the other in float32."""
  total = np.zeros((a.shape[0], b.shape[1]), F32)
  for k in range(a.shape[1]):
    total = total + np.asarray(multiply.product(a[:, k, None], b[None, k]))
  return total


def test_products_of_matrices_add_in_sequence():
  random = np.random.default_rng(3)
  a = random.normal(size=(3, 19)).astype(F32)
  b = random.normal(size=(19, 4)).astype(F32)
  multiply = numerics.LMul(mantissa_bits=4)
  policy = numerics.Policy(matmul=numerics.Precision(multiply=multiply))
  f = numerics.emulate(jnp.matmul, policy)
  np.testing.assert_array_equal(f(a, b), sequential(a, b, multiply))
  batched = jax.vmap(f, (0, None))(a.reshape(3, 1, 19), b)
  np.testing.assert_array_equal(batched[:, 0], f(a, b))
  # The derivative is that of exact products.
  weights = random.normal(size=(3, 4)).astype(F32)
  da, db = jax.grad(lambda a, b: (f(a, b) * weights).sum(), (0, 1))(a, b)
  np.testing.assert_allclose(da, weights @ b.T, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(db, a.T @ weights, rtol=1e-5, atol=1e-6)
  assert multiplier.dot(a[None, :0], b[None], multiply).shape == (1, 0, 4)


def test_the_error_of_a_product_of_matrices():
  random = np.random.default_rng(4)
  a, b = random.normal(size=(2, 256, 256)).astype(F32)
  multiply = numerics.LMul(mantissa_bits=23)
  found = multiplier.dot(a[None], b[None], multiply)[0]
  exact = a.astype(np.float64) @ b
  error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
  np.testing.assert_allclose(error, 0.032, rtol=0.03)


def test_accumulators_inputs_and_elements_go_together():
  random = np.random.default_rng(5)
  a = random.normal(size=(3, 10)).astype(F32)
  b = random.normal(size=(10, 2)).astype(F32)
  multiply = numerics.LMul(mantissa_bits=3)
  fmt = numerics.float16
  policy = numerics.Policy(
    elementwise=numerics.Precision(multiply=multiply),
    matmul=numerics.Precision(
      inputs=numerics.float8_e4m3fn,
      accumulator=numerics.Accumulator(fmt),
      multiply=multiply,
    ),
  )

  def f(a, b):
    return (a @ b) * 1.5 + jnp.square(a[:, :2]), jnp.exp(a[0]).sum()

  found, other = numerics.emulate(f, policy)(a, b)
  x, y = (numerics.round_to(v, numerics.float8_e4m3fn) for v in (a, b))
  total = np.zeros((3, 2), F32)
  for k in range(10):
    term = multiply.product(x[:, k, None], y[None, k])
    total = np.asarray(numerics.round_to(term + total, fmt))
  total = multiply.product(total, jnp.float32(1.5))
  total = total + multiply.product(a[:, :2], a[:, :2])
  np.testing.assert_array_equal(found, total)
  np.testing.assert_allclose(other, np.exp(a[0]).sum(), rtol=1e-6)


@pytest.mark.slow
def test_a_transformer_multiplies_by_adding():
  apply = written.Transformer().apply
  params = written.parameters()
  policy = numerics.Policy(
    matmul=numerics.Precision(multiply=numerics.LMul(mantissa_bits=4))
  )
  exact = apply(params, written.X)
  found = numerics.emulate(apply, policy)(params, written.X)
  error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
  assert 0.001 < error < 0.1


@pytest.mark.parametrize(
  ('arguments', 'error', 'message'),
  [
    ((0,), ValueError, 'mantissa_bits must be from 1 to 23'),
    ((4.0,), TypeError, 'mantissa_bits must be an int'),
    ((4, 'exact'), ValueError, 'variant must be one of bits, value'),
    ((4, 'bits', 0.7), ValueError, 'delta must be from 0 to 1/2'),
    ((4, 'bits', 0.01), ValueError, r'a multiple of 2\*\*-mantissa_bits'),
    ((4, 'bits', 'a'), TypeError, 'delta must be a number'),
    ((4, 'bits', 0, 'nan'), ValueError, 'overflow must be one of inf, sat'),
  ],
)
def test_arguments_are_checked(arguments, error, message):
  with pytest.raises(error, match=message):
    numerics.LMul(*arguments)
  with pytest.raises(TypeError, match='LMul: x must be an array of float32'):
    numerics.lmul(2.0, jnp.float32(1))
  with pytest.raises(
    TypeError, match=r'multiply must be a numerics\.Multiplier'
  ):
    numerics.Precision(multiply=jnp.multiply)
