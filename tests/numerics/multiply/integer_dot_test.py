"""Products of integers by every algorithm are those of integers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import wide
from numerics.multiply import shift_add

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

ALGORITHMS = {
  'T-MAC': numerics.TMac(bits=4),
  'T-MAC of one bit': numerics.TMac(bits=1),
  'T-MAC of groups of 3': numerics.TMac(bits=2, group=3),
  'LUT Tensor Core': numerics.LutTensorCore(bits=4),
  'LUT Tensor Core of one bit': numerics.LutTensorCore(bits=1),
  'shift and add': numerics.ShiftAdd(),
  'shift and add E2M1': numerics.ShiftAdd('float4_e2m1fn'),
  'digits': numerics.BitWeight(bits=8),
  'digits of 4 bits': numerics.BitWeight(bits=4),
  'bit planes': numerics.BitPlanes(x_bits=8, bits=6),
  'bit planes of FlexQ': numerics.BitPlanes(6, 6, 'flexq'),
}


def each(*slow):
  """All algorithms; what those named would say again is slow."""
  return pytest.mark.parametrize(
    'multiply',
    [
      pytest.param(
        multiply, id=name, marks=[pytest.mark.slow] if name in slow else []
      )
      for name, multiply in ALGORITHMS.items()
    ],
  )


SETTINGS = (
  *('T-MAC of groups of 3', 'LUT Tensor Core of one bit', 'digits of 4 bits'),
  'bit planes of FlexQ',
)


def values(multiply, w):
  """What weights mean in the unit of the result."""
  w = np.asarray(w, np.int64)
  if getattr(multiply, 'weights', '') == 'float4_e2m1fn':
    return (2 * np.where(w < 8, 1, -1) * E2M1[w % 8]).astype(np.int64)
  return w


def exact(multiply, x, w):
  found = np.asarray(x, np.int64) @ values(multiply, w)
  assert np.abs(found).max() < 2**31  # Or nothing of 32 bits is right.
  return found


def weights(multiply, random, shape):
  low, high = multiply.w_range
  if isinstance(multiply, numerics.LutTensorCore):
    return 2 * random.integers(0, 2**multiply.bits, shape) + low
  return random.integers(low, high + 1, shape)


@each()
def test_any_and_all_extremes(multiply):
  random = np.random.default_rng(0)
  (low, high), (least, most) = multiply.x_range, multiply.w_range
  x = random.integers(low, high + 1, (6, 37))
  x[1:4] = np.array([low, high, 0])[:, None]
  x[4] = np.where(np.arange(37) % 2, low, high)
  w = weights(multiply, random, (37, 4))
  w[:, 1:3] = least, most
  w[:, 3] = np.where(np.arange(37) % 3, least, most)
  x, w = x.astype(np.int16), w.astype(np.int8)
  found = multiply.dot(x, w)
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, exact(multiply, x, w))


@each(*SETTINGS)
def test_as_many_terms_as_fit(multiply):
  multiply = dataclasses.replace(multiply, x_bits=16)
  count = multiply.longest
  low, high = multiply.terms
  if multiply.w_range != (-1, 0):  # Of one bit, half as many.
    assert max(count * high, -count * low) > 2**31 - 1 - max(high, -low)
  x = np.array(multiply.x_range)[:, None].repeat(count, 1)
  ends = np.array([7, 15] if low == -12 * 2**15 else multiply.w_range)
  w = ends[None].repeat(count, 0)
  found = multiply(jnp.asarray(x, jnp.int32), jnp.asarray(w, jnp.int16))
  np.testing.assert_array_equal(found, exact(multiply, x, w))
  with pytest.raises(ValueError, match=f'sums of {count + 1} terms'):
    multiply.dot(
      np.zeros((1, count + 1), np.int8), np.resize(ends[:1], (count + 1, 1))
    )


@each()
def test_what_is_out_of_range_is_refused(multiply):
  name = type(multiply).__name__
  good, (_, high) = np.ones((3, 2), np.int16), multiply.w_range
  with pytest.raises(ValueError, match=f'{name}: x must be from'):
    multiply.dot(good.T * (multiply.x_range[1] + 1), good)
  with pytest.raises(ValueError, match=f'{name}: w must be from'):
    multiply.dot(good.T, good * (high + 2))
  good = good * multiply.w_range[0]
  with pytest.raises(ValueError, match='expected x'):
    multiply.dot(good, good)
  with pytest.raises(TypeError, match='x must be an array of integers, got f'):
    multiply.dot(good.T.astype(np.float32), good)
  with pytest.raises(TypeError, match='w must be an array of integers, got l'):
    multiply.dot(good.T, [[1]])


def test_what_is_out_of_range_counts_by_its_lowest_bits_under_jit():
  x = jnp.array([[3]], jnp.int8)

  def product(multiply, w):
    return int(jax.jit(multiply.dot)(x, jnp.array([[w]], jnp.int8))[0, 0])

  for multiply in (
    numerics.TMac(bits=4),
    numerics.ShiftAdd(),
    numerics.BitWeight(bits=4),
    numerics.BitPlanes(8, 4),
  ):
    assert product(multiply, 9) == 3 * (9 - 16)
  assert product(numerics.LutTensorCore(bits=4), 6) == 3 * 5
  large = jnp.array([[2**29 + 1]])
  found = jax.jit(numerics.ShiftAdd().dot)(large, jnp.array([[7]]))
  assert int(found[0, 0]) == 7 * (2**29 + 1) - 2**32
  with pytest.raises(ValueError, match='w must be odd, got 6'):
    numerics.LutTensorCore(bits=4).dot(x, np.array([[6]]))


def test_leading_axes_and_vmap():
  random = np.random.default_rng(1)
  x = random.integers(-128, 128, (2, 3, 8)).astype(np.int8)
  w = random.integers(-8, 8, (2, 8, 4)).astype(np.int8)
  multiply = numerics.ShiftAdd()
  found = multiply.dot(x, w[0])
  np.testing.assert_array_equal(found, x.astype(int) @ w[0])
  found = jax.vmap(multiply)(jnp.asarray(x), jnp.asarray(w))
  np.testing.assert_array_equal(found, x.astype(int) @ w)
  assert multiply.dot(x[:, :, :0], w[0, :0]).shape == (2, 3, 4)


# Tables of int8.


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_tables_of_int8_are_within_their_bound(bits):
  random = np.random.default_rng(bits)
  multiply = numerics.TMac(bits=bits)
  x = random.integers(-128, 128, (5, 200))
  x[1:3] = np.array([-128, 127])[:, None]
  x[4] = 0
  w = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (200, 7))
  found, bound = multiply.approximate(x, w)
  error = np.abs(np.asarray(found, np.float64) - exact(multiply, x, w))
  bound = np.asarray(bound, np.float64)
  assert (error <= bound + 1e-3).all()
  assert (error.max(1) > bound[:, 0] / 50)[0]  # It says something.
  assert (error[4] == 0).all()
  # ½ · scale · groups · Σ α, of tables whose largest entry is 512.
  expected = 0.5 * 512 / 127 * 16 * 4 * (2**bits - 1) / 2
  np.testing.assert_allclose(bound[1, 0], expected, rtol=1e-6)
  with pytest.raises(ValueError, match='expected x'):
    multiply.approximate(x, w.T)
  with pytest.raises(ValueError, match='a multiple of group=4'):
    multiply.approximate(x, w, shared=6)


def test_tables_of_int8_are_those_of_the_formula():
  random = np.random.default_rng(9)
  multiply = numerics.TMac(bits=2)
  x, w = random.integers(-128, 128, (2, 8)), random.integers(-2, 2, (8, 3))
  found, _ = multiply.approximate(x, w, shared=8)
  for row in range(2):
    groups = x[row].reshape(2, 4)
    scale = np.abs(groups).sum(1).max() / 127
    for column in range(3):
      total = -0.5 * x[row].sum()
      for plane, weight in ((0, 0.5), (1, 1.0)):
        signs = ((w[:, column] + 2) >> plane & 1) * 2 - 1
        sums = (signs.reshape(2, 4) * groups).sum(1)
        total += weight * scale * np.round(sums / scale).sum()
      np.testing.assert_allclose(found[row, column], total, rtol=1e-5)


# Digits and carries.


def test_digits_of_all_integers_of_eight_bits():
  x = np.arange(-128, 128)
  digits = np.asarray(jax.jit(numerics.booth_digits)(x.astype(np.int8)))
  assert set(digits.ravel().tolist()) == {-2, -1, 0, 1, 2}
  np.testing.assert_array_equal(digits @ 4 ** np.arange(4), x)
  shares = jax.jit(numerics.digit_shares)(x)
  np.testing.assert_array_equal(shares, np.full(4, 0.75))
  x = np.array([-(2**15), 2**15 - 1])
  digits = jax.jit(numerics.booth_digits, static_argnums=1)(x, 16)
  np.testing.assert_array_equal(np.asarray(digits) @ 4 ** np.arange(8), x)
  with pytest.raises(ValueError, match='bits must be even, got 5'):
    numerics.booth_digits(x, 5)


def test_carry_save_keeps_the_sum():
  random = np.random.default_rng(2)
  a, b, c = random.integers(0, 2**32, (3, 500), np.uint32)
  kept, carry = numerics.carry_save(a, b, c)
  total = (a.astype(object) + b + c) % 2**32
  np.testing.assert_array_equal(
    (np.asarray(kept).astype(object) + np.asarray(carry)) % 2**32, total
  )
  assert (np.asarray(carry) % 2 == 0).all()


# Residues.


@pytest.mark.parametrize(
  'q',
  [
    2**31 - 1,
    *(
      pytest.param(q, marks=pytest.mark.slow) for q in (2, 3, 65537, 998244353)
    ),
  ],
)
def test_products_of_residues(q):
  random = np.random.default_rng(3)
  multiply = numerics.ModularDot(q)
  x = random.integers(0, q, (3, 50))
  w = random.integers(0, q, (50, 2))
  x[0], x[1], w[:, 0] = q - 1, 0, q - 1
  truth = x.astype(object) @ w.astype(object) % q
  found = multiply.dot(x, w)
  np.testing.assert_array_equal(np.asarray(found).astype(object), truth)
  count = multiply.longest
  assert count == 16512
  found = multiply.dot(np.full((1, count), q - 1), np.full((count, 1), q - 1))
  assert int(found[0, 0]) == count * (q - 1) ** 2 % q
  with pytest.raises(ValueError, match=f'must be from 0 to {q - 1}, got'):
    multiply.dot(x - 1, w)
  with pytest.raises(ValueError, match='sums of 16513 terms may not fit'):
    multiply.dot(np.zeros((1, 16513), np.int8), np.zeros((16513, 1), np.int8))


def test_as_many_bytes_as_fit_uint32():
  """Bytes of residues are not all 255; here they are."""
  left = np.full((1, 4 * 16512), 255, np.uint8)
  found = jax.lax.dot(left, left.T, preferred_element_type=jnp.uint32)
  assert int(found[0, 0]) == 4 * 16512 * 255**2


def test_remainders_of_62_bits():
  random = np.random.default_rng(4)
  numbers = [2**62 - 1, 0, 1, 2**32, 2**32 - 1]
  numbers += random.integers(0, 2**62, 300).tolist()
  remainder = jax.jit(
    lambda z: [numerics.Barrett(q).remainder(z) for q in moduli]
  )
  moduli = (2, 3, 5, 255, 65537, 998244353, 2**30, 2**31 - 1)
  for q in moduli:
    numbers += [(2**62 // q) * q - 1, (2**62 // q - 1) * q]
  z = wide.Wide(
    jnp.array([n >> 32 for n in numbers], jnp.uint32),
    jnp.array([n & 0xFFFFFFFF for n in numbers], jnp.uint32),
  )
  for q, found in zip(moduli, remainder(z), strict=True):
    assert [int(x) for x in np.asarray(found)] == [n % q for n in numbers]
  # By the published shift, remainders beyond it are wrong.
  q, s = 65537, 34
  wrong = [n - (n * (2**s // q) >> s) * q >= 2 * q for n in numbers[5:305]]
  assert np.mean(wrong) > 0.9


@pytest.mark.parametrize('modulus', [1, 2**31, 2.0, True])
def test_a_modulus_is_checked(modulus):
  with pytest.raises((TypeError, ValueError), match='modulus must be'):
    numerics.ModularDot(modulus)


# With scales.


def dequantised(q):
  return np.asarray(numerics.dequantize(q), np.float64)


SYMMETRIC = {'fmt': numerics.int8, 'axis': -1}
AFFINE = {'fmt': numerics.uint8, 'symmetric': False}


@pytest.mark.parametrize(
  ('multiply', 'x', 'w'),
  [
    (
      numerics.LutTensorCore(bits=4),
      SYMMETRIC,
      {'fmt': numerics.uint4, 'symmetric': False},
    ),
    (
      numerics.ShiftAdd('float4_e2m1fn'),
      AFFINE,
      {'fmt': numerics.float4_e2m1fn},
    ),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (
          numerics.TMac(bits=4),
          AFFINE,
          {'fmt': numerics.uint4, 'symmetric': False},
        ),
        (numerics.TMac(bits=4), SYMMETRIC, {'fmt': numerics.int4}),
        (numerics.LutTensorCore(bits=4), AFFINE, {'fmt': numerics.int4}),
        (
          numerics.BitPlanes(8, 8),
          AFFINE,
          {'fmt': numerics.int8, 'group_size': None},
        ),
      )
    ),
  ],
)
def test_scaled_products_are_those_of_what_is_stored(multiply, x, w):
  random = np.random.default_rng(5)
  left = random.normal(size=(2, 3, 40)).astype(np.float32)
  right = random.normal(size=(40, 5)).astype(np.float32)
  left = numerics.quantize(left, **x)
  right = numerics.quantize(right, axis=0, **{'group_size': 16} | w)
  found = numerics.quantized_dot(left, right, multiply)
  truth = dequantised(left) @ dequantised(right)
  np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5)


def test_one_scale_for_a_column_is_one_rounding():
  random = np.random.default_rng(6)
  x = numerics.quantize(
    random.normal(size=(4, 33)).astype(np.float32), numerics.int8, axis=-1
  )
  w = numerics.quantize(
    random.normal(size=(33, 5)).astype(np.float32), numerics.int4, axis=0
  )
  found = numerics.quantized_dot(x, w, numerics.ShiftAdd())
  sums = np.asarray(x.codes, np.int32) @ np.asarray(w.codes, np.int32)
  scale = np.asarray(x.scale) * np.asarray(w.scale)
  np.testing.assert_array_equal(found, scale * sums.astype(np.float32))


def test_scales_that_do_not_fit_are_refused():

  def stored(shape, scales, fmt=numerics.int8, **groups):
    codes, scale = np.ones(shape, np.int8), np.ones(scales, np.float32)
    return numerics.Quantized(codes, scale, None, fmt, **groups)

  multiply = numerics.BitWeight()
  row, column = stored((2, 8), (2, 1)), stored((8, 3), (1, 3))
  column.codes[0] = 100
  for left, right, message in (
    (stored((2, 8), (1, 8)), column, 'x has scales that differ along'),
    (row, stored((8, 3), (8, 1)), 'w has scales that differ along'),
    (row, stored((8, 3), (8, 2), axis=1, group_size=2), 'lie along axis 1'),
    (
      stored((2, 8), (2, 4), axis=1, group_size=2),
      stored((8, 3), (2, 3), axis=0, group_size=4),
      'differ in size: 2 and 4',
    ),
    (column, row, 'expected x'),
  ):
    with pytest.raises(ValueError, match=message):
      numerics.quantized_dot(left, right, multiply)
  wrong = stored((8, 3), (1, 3), numerics.bfloat16)
  with pytest.raises(TypeError, match='codes must be integers, got bfloat16'):
    numerics.quantized_dot(row, wrong, multiply)
  e2m1 = numerics.ShiftAdd('float4_e2m1fn')
  with pytest.raises(TypeError, match='in float4_e2m1fn, got int8'):
    numerics.quantized_dot(row, column, e2m1)
  unsigned = stored((34_000, 1), (1, 1), numerics.uint8)
  long = stored((1, 34_000), (1, 1), numerics.uint8)
  with pytest.raises(ValueError, match='terms with zero points may not fit'):
    numerics.quantized_dot(long, unsigned, multiply)
  with pytest.raises(ValueError, match='w must be from -8 to 7'):
    numerics.quantized_dot(row, column, numerics.ShiftAdd())
  with pytest.raises(TypeError, match='multiply must be an algorithm'):
    numerics.quantized_dot(row, column, numerics.LMul())


def test_codes_of_e2m1_are_all():
  fmt = numerics.float4_e2m1fn
  codes = np.asarray(shift_add.e2m1_codes(fmt.values()))
  assert codes.tolist() == [15, 14, 13, 12, 11, 10, 9, *range(8)]


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: numerics.TMac(bits=9), 'bits must be from 1 to 8'),
    (lambda: numerics.LutTensorCore(x_bits=17), 'x_bits must be from 2 to 16'),
    (lambda: numerics.ShiftAdd('int3'), 'weights must be one of int4, float4'),
    (lambda: numerics.BitWeight(bits=7), 'bits must be even'),
    (lambda: numerics.BitPlanes(8, 6, 'none'), 'offset must be one of twos'),
  ],
)
def test_settings_are_checked(make, message):
  with pytest.raises(ValueError, match=message):
    make()
