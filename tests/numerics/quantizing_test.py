from fractions import Fraction
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import oracles

F32 = np.float32


def numbers(seed=0, shape=(6, 21)):
  random = np.random.default_rng(seed)
  x = random.normal(size=shape) * np.exp(2 * random.normal(size=(shape[0], 1)))
  x += random.normal(size=(shape[0], 1))
  x[2] = 0
  x[3] = np.abs(x[3])
  x[4] = -np.abs(x[4])
  return x.astype(F32)


def literal(x, fmt, scale=None, zero=None, symmetric=True):
  """One group, by the formulas, in Python: codes, scale, zero and values.

  Products of two float32 are exact in float64 and in fractions.
  """
  low = -(2 ** (fmt.bits - 1)) if fmt.signed else 0
  high = low + 2**fmt.bits - 1
  if symmetric:
    low, zero = max(low, -high), 0
  elif scale is None:
    least, most = min(0.0, float(min(x))), max(0.0, float(max(x)))
    half = F32(0.5 * most - 0.5 * least)
    scale = max(half * F32(2 / (high - low)), F32(2.0**-126))
    zero = low - round(float(F32(F32(least) * (F32(1) / scale))))
    zero = min(max(zero, low), high)
  if scale is None:
    magnitude = [abs(v) if fmt.signed else max(v, 0) for v in x]
    inverse = F32(high) / max(magnitude) if max(magnitude) else F32(2.0**126)
    scale = F32(1) / min(inverse, F32(2.0**126))
  codes = []
  for v in x:
    scaled = F32(float(v) * float(F32(1) / scale))
    code = round(Fraction(float(scaled))) + zero
    codes.append(min(max(code, low), high))
  values = [F32(float(scale) * (code - zero)) for code in codes]
  return codes, scale, zero, values


@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('fmt', [numerics.int4, numerics.uint8])
def test_codes_are_the_literal_ones_of_every_group(fmt, symmetric):
  x = numbers()
  size = 8  # The last group of a row has five places.
  q = numerics.quantize(x, fmt, axis=1, group_size=size, symmetric=symmetric)
  assert q.codes.shape == x.shape
  assert q.scale.shape == (6, 3)
  assert q.codes.dtype == (np.int8 if fmt.signed else np.uint8)
  values = numerics.dequantize(q)
  for row in range(6):
    for group in range(3):
      place = (row, slice(group * size, (group + 1) * size))
      codes, scale, zero, wanted = literal(x[place], fmt, symmetric=symmetric)
      np.testing.assert_allclose(q.scale[row, group], scale, rtol=2.0**-22)
      # The rest is exact, for the scale that there is.
      scale = np.asarray(q.scale)[row, group]
      codes, _, _, wanted = literal(x[place], fmt, scale, zero, symmetric)
      np.testing.assert_array_equal(q.codes[place], codes)
      np.testing.assert_array_equal(values[place], wanted)
      if not symmetric:
        assert q.zero_point[row, group] == zero
  settings = {'axis': 1, 'group_size': size, 'symmetric': symmetric}
  faked = numerics.fake_quantize(x, fmt, **settings)
  given = {'scale': q.scale, 'zero_point': q.zero_point}
  again = numerics.quantize(x, fmt, **settings, **given)
  np.testing.assert_array_equal(again.codes, q.codes)
  oracles.assert_same(faked, values)
  # Zero is exact, whatever the range.
  assert (np.asarray(values)[x == 0] == 0).all()


def test_tensors_channels_and_groups_are_the_same_thing():
  x = numbers(1, (6, 16))
  rows = numerics.fake_quantize(x, numerics.int8, axis=-1, symmetric=False)
  groups = numerics.fake_quantize(
    x, numerics.int8, axis=-1, group_size=16, symmetric=False
  )
  np.testing.assert_array_equal(rows, groups)
  columns = numerics.fake_quantize(
    x.T, numerics.int8, axis=0, group_size=99, symmetric=False
  )
  np.testing.assert_array_equal(rows, columns.T)
  mapped = jax.vmap(
    lambda x: numerics.fake_quantize(x, numerics.int8, symmetric=False)
  )(x)
  np.testing.assert_array_equal(rows, mapped)


def test_a_scale_may_be_given_and_masks_the_gradient():
  x = jnp.float32([-20.0, -12.9, -0.26, 0.0, 12.7, 12.76, 13.0, 50.0])
  scale, zero = jnp.float32(0.1), jnp.int32(-1)

  def f(x, mask):
    y = numerics.fake_quantize(
      x, numerics.int8, scale=scale, zero_point=zero, symmetric=False, mask=mask
    )
    return (y * jnp.arange(8.0)).sum(), y

  (_, y), gradient = jax.value_and_grad(f, has_aux=True)(x, True)
  codes, _, _, values = literal(
    np.asarray(x), numerics.int8, F32(scale), -1, symmetric=False
  )
  np.testing.assert_array_equal(y, values)
  q = numerics.quantize(
    x, numerics.int8, scale=scale, zero_point=zero, symmetric=False
  )
  np.testing.assert_array_equal(q.codes, codes)
  # Codes −128 and 127 are what rounds to −12.7 and 12.8.
  np.testing.assert_array_equal(gradient, [0, 0, 2, 3, 4, 5, 0, 0])
  gradient = jax.grad(lambda x: f(x, False)[0])(x)
  np.testing.assert_array_equal(gradient, np.arange(8))


def test_scales_of_the_array_itself_mask_nothing():
  x = numbers(2)
  for fmt, settings in (
    (numerics.int4, {'symmetric': False}),
    (numerics.float4_e2m1fn, {}),
  ):
    gradient = jax.grad(
      lambda x, fmt=fmt, settings=settings: numerics.fake_quantize(
        x, fmt, axis=-1, group_size=4, **settings
      ).sum()
    )(x)
    np.testing.assert_array_equal(gradient, 1)


def test_extremes():
  largest = float(np.finfo(F32).max)
  x = F32(
    [[largest, -largest], [1e-45, 0], [3.0, np.inf], [np.nan, 1.0], [-2, -1]]
  )
  q = numerics.quantize(x, numerics.uint8, axis=-1, symmetric=False)
  found = np.asarray(numerics.dequantize(q))
  np.testing.assert_allclose(found[0], x[0], rtol=0.01)
  np.testing.assert_array_equal(found[1], 0)
  assert np.isnan(found[2:4]).all()
  np.testing.assert_allclose(found[4], x[4], rtol=0.01)
  assert not np.isfinite(q.scale[2:4]).any()


def test_stochastic_codes_have_the_mean():
  x = jnp.full(40000, 0.3)
  q = numerics.quantize(
    x,
    numerics.uint4,
    scale=jnp.float32(1),
    zero_point=jnp.int32(2),
    symmetric=False,
    mode='stochastic',
    key=jax.random.key(0),
  )
  assert set(np.unique(q.codes)) == {2, 3}
  assert abs(np.mean(q.codes == 3) - 0.3) < 4.5 * math.sqrt(0.21 / 40000)


def test_what_is_quantised_is_a_tree_of_arrays():
  x = jnp.asarray(numbers(3), jnp.bfloat16)
  q = jax.jit(lambda x: numerics.quantize(x, numerics.int16, axis=-1))(x)
  assert q.codes.dtype == np.int16
  back = jax.jit(numerics.dequantize)(jax.tree.map(jnp.asarray, q))
  np.testing.assert_allclose(back, x.astype(F32), rtol=1e-4, atol=1e-3)
  values = numerics.quantize(x, numerics.float8_e4m3fn, axis=0)
  faked = numerics.fake_quantize(x, numerics.float8_e4m3fn, axis=0)
  np.testing.assert_array_equal(numerics.dequantize(values), faked)


def test_arguments_are_checked():
  x = jnp.ones((2, 3))
  fmt = numerics.int8
  for function in (numerics.quantize, numerics.fake_quantize):
    for settings, error, message in (
      ({'axis': None, 'group_size': 2}, TypeError, 'axis must be an int'),
      ({'axis': 2, 'group_size': 2}, ValueError, 'axis 2 is out of bounds'),
      ({'axis': 0, 'group_size': 0}, ValueError, 'group_size must be'),
      (
        {'scale': jnp.float32(1), 'axis': 0, 'group_size': 1},
        ValueError,
        'those given have shapes',
      ),
      ({'zero_point': 3}, ValueError, 'a zero point goes with scale='),
      ({'scale': x, 'power_of_two': True}, ValueError, 'not given'),
      ({'scale': x, 'symmetric': False}, ValueError, 'a zero point goes'),
      ({'power_of_two': True, 'symmetric': False}, ValueError, 'is for symm'),
      ({'mode': 'stochastic'}, ValueError, 'needs key='),
    ):
      with pytest.raises(error, match=message):
        function(x, fmt, **settings)
    with pytest.raises(TypeError, match=r'that of integers such as numerics.u'):
      function(x, numerics.float8_e4m3fn, symmetric=False)
    with pytest.raises(ValueError, match='int20 has 20 bits'):
      function(x, numerics.FixedPoint(20), symmetric=False)
