import dataclasses
import functools
import math

import gfloat
from gfloat import formats as gfloat_formats
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import numerics
from tests.numerics import oracles
from tests.numerics import written

F32 = np.float32
OCP = {
  'mxfp8_e5m2': gfloat_formats.format_info_mxfp8_e5m2,
  'mxfp8_e4m3': gfloat_formats.format_info_mxfp8_e4m3,
  'mxfp6_e3m2': gfloat_formats.format_info_mxfp6_e3m2,
  'mxfp6_e2m3': gfloat_formats.format_info_mxfp6_e2m3,
  'mxfp4_e2m1': gfloat_formats.format_info_mxfp4_e2m1,
  'mxint8': gfloat_formats.format_info_mxint8,
}
MXFP4 = numerics.mxfp4_e2m1


def numbers(seed=0, shape=(6, 70)):
  """Rows of different magnitudes; the third block of each has six places."""
  random = np.random.default_rng(seed)
  x = random.normal(size=shape) * np.exp(9 * random.normal(size=(shape[0], 1)))
  x[1] = 2.0 ** random.integers(-9, 9, shape[1])
  x[2, :40] = 0
  return x.astype(F32)


def cast(x, element):
  """Rounds to nearest even, saturating, by ml_dtypes or in integers."""
  if isinstance(element, numerics.FixedPoint):
    codes = np.rint(x.astype(np.float64) / element.step)
    low = -(2 ** (element.bits - 1))
    return codes.clip(low, -low - 1) * element.step
  name = element.name.removesuffix('_saturate')
  clipped = np.clip(x, -element.max, element.max).astype(F32)
  return clipped.astype(getattr(ml_dtypes, name)).astype(np.float64)


def exponent_of(amax, element, rule):
  """The exponent of the scale, by the words of the rule, in float64."""
  if amax == 0:
    return -127
  exponent = math.frexp(amax)[1] - 1 - element.emax
  top = amax / 2.0**exponent
  ends = 2.0 ** (element.emax + 1)
  step = 2.0 ** (element.emax - element.significant_bits + 1)
  more = {
    'floor': False,
    'ceil': top > 2.0**element.emax,
    'rceil': top > element.max,
    'even': np.rint(top / step) * step == ends,
    'midmax': ends - top < top - element.max,
  }[rule]
  return min(max(exponent + more, -127), 127)


def literal(x, fmt, rule='floor'):
  """Rows of blocks, one by one."""
  found = np.empty_like(x)
  for row in range(x.shape[0]):
    for start in range(0, x.shape[1], fmt.size):
      block = x[row, start : start + fmt.size].astype(np.float64)
      amax = np.abs(block).max()
      scale = 2.0 ** exponent_of(amax, fmt.element, rule)
      found[row, start : start + fmt.size] = scale * cast(
        block / scale, fmt.element
      )
  return found


@pytest.mark.parametrize('name', OCP)
def test_the_formats_of_ocp_are_those_of_gfloat(name):
  fmt = getattr(numerics, name)
  assert fmt.name == name
  x = numbers()
  found = np.asarray(numerics.fake_quantize(x, fmt, axis=-1))
  np.testing.assert_array_equal(found, literal(x, fmt))
  info = OCP[name]
  assert (info.k, info.element_bits) == (fmt.size, fmt.bits)
  for row in (0, 1, 2):
    expected = gfloat.quantize_block(
      info, x[row, :32].astype(np.float64), gfloat.compute_scale_amax
    )
    np.testing.assert_array_equal(found[row, :32], expected)


@pytest.mark.parametrize('rule', ['ceil', 'rceil', 'even', 'midmax'])
def test_rules_of_the_scale_are_the_literal_ones(rule):
  for element in (numerics.float4_e2m1fn, numerics.float8_e4m3fn):
    fmt = numerics.BlockFormat(element, 4, rule=rule)
    top = np.linspace(1, 2, 65)  # What decides, and the ties among it.
    x = np.stack([top, top / 3, -top / 7, 0 * top], 1).astype(F32)
    found = numerics.fake_quantize(x, fmt, axis=1)
    np.testing.assert_array_equal(found, literal(x, fmt, rule))


def test_nvfp4_is_the_literal_one():
  x = numbers(1, (6, 40)) / 1e3
  x[0, :16] *= F32(1e-9)  # Less than the smallest scale.
  x[3, 5] = np.nan
  found = np.asarray(numerics.fake_quantize(x, numerics.nvfp4, axis=-1))
  fmt = numerics.nvfp4
  padded = np.pad(x, ((0, 0), (0, 8))).reshape(6, 3, 16)
  amax = np.abs(padded).max(-1, keepdims=True) * F32(1 / 6)
  whole = np.nanmax(amax) * F32(1 / 448)
  scale = cast(amax * (F32(1) / whole), numerics.float8_e4m3fn).astype(F32)
  total = scale * whole
  inverse = np.where(total > 0, 1 / np.where(total > 0, total, 1), F32(0))
  stored = cast(padded * inverse, fmt.element).astype(F32)
  expected = (stored * scale * whole).reshape(6, 48)[:, :40]
  expected[3, :16] = np.nan
  oracles.assert_same(found, expected)
  assert (found[0, :16] == 0).all()
  for amax in (np.finfo(F32).max, 1e-33):  # The ends of float32.
    line = F32(amax) * np.linspace(-1, 1, 32, dtype=F32)[None]
    near = numerics.fake_quantize(line, fmt, axis=-1)
    np.testing.assert_allclose(near, line, atol=amax / 5)
  assert np.isfinite(np.delete(found, 3, 0)).all()


def test_dynamic_fixed_point_has_one_exponent_and_integers():
  x = numbers(2, (4, 5)).clip(-3000, 3000)
  found = np.asarray(numerics.fake_quantize(x, numerics.dfp16))
  # 15 bits of magnitude, from the exponent of the largest number down.
  step = 2.0 ** (math.frexp(np.abs(x).max())[1] - 15)
  codes = np.rint(x.astype(np.float64) / step).clip(-(2**15), 2**15 - 1)
  np.testing.assert_array_equal(found, codes * step)
  with pytest.raises(TypeError, match='axis must be an int'):
    numerics.fake_quantize(x, MXFP4)


def test_extremes():
  largest = np.finfo(F32).max
  x = np.zeros((7, 32), F32)
  x[0, :3] = [np.inf, 1, 0]
  x[1, :3] = [np.nan, 1, -np.inf]
  x[2, :3] = [1e-45, -1e-40, 0]
  x[3, :3] = [largest, -largest, 1]
  x[4, :3] = [2.0**-126, -(2.0**-125), 2.0**-124]
  x[5, :3] = [-0.0, 1, 0]
  for fmt in (MXFP4, dataclasses.replace(MXFP4, rule='ceil'), numerics.mxint8):
    found = np.asarray(numerics.fake_quantize(x, fmt, axis=-1))
    assert np.isnan(found[:2]).all()
    np.testing.assert_array_equal(found[[2, 6]], 0)
    assert np.isfinite(found[2:]).all()
    np.testing.assert_allclose(found[3, :2], x[3, :2], rtol=0.26)
    np.testing.assert_array_equal(found[4:6], x[4:6])


def test_blocks_stay_in_their_row_and_on_their_axis():
  x = numbers(3)
  expected = np.asarray(numerics.fake_quantize(x, MXFP4, axis=-1))
  f = functools.partial(numerics.fake_quantize, fmt=MXFP4)
  np.testing.assert_array_equal(f(x.T, axis=0), expected.T)
  np.testing.assert_array_equal(jax.vmap(lambda x: f(x, axis=0))(x), expected)
  compiled = jax.jit(lambda x: f(x[None], axis=2)[0])
  np.testing.assert_array_equal(compiled(x), expected)
  narrow = f(jnp.asarray(x, jnp.bfloat16), axis=-1)
  assert narrow.dtype == jnp.float32
  assert f(jnp.zeros((2, 0)), axis=-1).shape == (2, 0)


def test_the_derivative_is_that_of_clipping():
  x = jnp.float32([7.9, 1.0, -6.0, -7.0, 0.0] + [0] * 30)
  for mask in (True, False):
    y, pull = jax.vjp(
      lambda x, mask=mask: numerics.fake_quantize(x, MXFP4, axis=0, mask=mask),
      x,
    )
    np.testing.assert_array_equal(y[:5], [6, 1, -6, -6, 0])
    [gradient] = pull(jnp.arange(35.0))
    expected = np.arange(35.0)
    if mask:  # 7 is half a step beyond 6, and belongs to it.
      expected[0] = 0
    np.testing.assert_array_equal(gradient, expected)


def test_groups_of_gaussian_numbers_have_the_known_error():
  """Mean squared errors that implementations of others were measured at."""
  x = jax.random.normal(jax.random.key(0), (2**14, 32))
  for rule, mode, expected, bias in (
    ('floor', 'nearest_even', 0.01321, 0),
    ('rceil', 'nearest_even', 0.01331, 0),
    ('floor', 'stochastic', 0.02516, -0.011),
  ):
    key = jax.random.key(1) if mode == 'stochastic' else None
    y = numerics.fake_quantize(
      x, dataclasses.replace(MXFP4, rule=rule), axis=-1, mode=mode, key=key
    )
    error = np.asarray(y, np.float64) - np.asarray(x)
    np.testing.assert_allclose(np.mean(error**2), expected, rtol=0.01)
    if bias:  # What saturates is lost.
      share = np.sum(x * error) / np.sum(x * x)
      np.testing.assert_allclose(share, bias, rtol=0.1)


# In the rest of the package.


def test_products_have_blocks_along_what_they_add_up():
  random = np.random.default_rng(0)
  a = random.normal(size=(2, 3, 40)).astype(F32)
  b = random.normal(size=(40, 5)).astype(F32)

  def f(a, b):
    return jnp.einsum('xik,kj->xij', a, b) + 1

  found = numerics.emulate(f, numerics.Policy(matmul=MXFP4))(a, b)
  rows = literal(a.reshape(6, 40), MXFP4).reshape(a.shape)
  columns = literal(b.T, MXFP4).T
  expected = rows.astype(np.float64) @ columns + 1
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  # Two axes are one, and one operand may stay as it is.
  precision = numerics.Precision(inputs=(MXFP4, None))
  found = numerics.emulate(
    lambda a, b: jax.lax.dot_general(a, b, (((0, 2), (0, 1)), ((), ()))),
    precision,
  )(a, np.ones((2, 40), F32))
  flat = literal(a.transpose(1, 0, 2).reshape(3, 80), MXFP4)
  np.testing.assert_allclose(found, flat.sum(1), rtol=1e-5, atol=1e-5)
  # Of a convolution it is the features.
  image = numbers(4, (6, 33)).reshape(1, 2, 3, 33)
  kernel = np.zeros((1, 1, 33, 1), F32)
  kernel[0, 0, 5] = 1
  found = numerics.emulate(
    functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(1, 1),
      padding='VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    ),
    precision,
  )(image, kernel)
  wanted = literal(image.reshape(6, 33), MXFP4)[:, 5]
  np.testing.assert_array_equal(np.ravel(found), wanted)


def test_what_adds_up_nothing_has_no_blocks():
  with pytest.raises(ValueError, match=r'but mul at .*blocks_test.py:\d+ .*is'):
    numerics.emulate(lambda x: x * x, MXFP4)(1.0)
  with pytest.raises(TypeError, match='Precision: output: fmt must be'):
    numerics.Precision(output=MXFP4)
  with pytest.raises(TypeError, match=r'round_to: .* Blocks lie along an axis'):
    numerics.round_to(jnp.ones(3), MXFP4)
  costs = numerics.count(jnp.dot, numerics.Policy(matmul=MXFP4))(
    jnp.ones(64), jnp.ones(64)
  )
  assert (costs.rows[0].bits, costs.bytes) == (4, 2 * 34 + 4)


@pytest.mark.slow
def test_a_transformer_runs_its_products_in_mxfp4_by_one_line():
  apply = written.Transformer().apply
  params = written.parameters()
  policy = numerics.Policy(matmul=MXFP4)
  emulated = numerics.emulate(apply, policy, mode='stochastic')

  def loss(params):
    y = emulated(params, written.X, rounding_key=jax.random.key(0))
    return jnp.mean(y**2)

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


E2M1 = numerics.float4_e2m1fn
E4M3 = numerics.float8_e4m3fn


@pytest.mark.parametrize(
  ('arguments', 'error', 'message'),
  [
    (('fp4',), TypeError, 'BlockFormat: element: fmt must be'),
    ((numerics.Format(8, 20),), ValueError, 'more than 16 significant'),
    ((E2M1, 0), ValueError, 'size must be from 1'),
    ((E2M1, 32, 'e8m0'), TypeError, 'scale must be a numerics.Format, or N'),
    ((E2M1, 32, None, 'up'), ValueError, 'rule must be one of floor, ceil'),
    ((E2M1, 32, None, 'nearest'), ValueError, 'is for scales in a format'),
    ((E2M1, 32, E4M3), ValueError, "pass rule='nearest' with scale="),
    ((E2M1, 32, None, 'floor', True), ValueError, 'tensor_scale=True is for'),
    ((E2M1, 32, None, 'floor', 1), TypeError, 'tensor_scale must be a bool'),
  ],
)
def test_contradictions_are_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    numerics.BlockFormat(*arguments)


def test_scales_are_its_own():
  x = jnp.ones((2, 32))
  for settings in (
    {'group_size': 3},
    {'symmetric': False},
    {'power_of_two': True},
    {'scale': x},
    {'zero_point': x},
  ):
    [name] = settings
    with pytest.raises(ValueError, match=f'scales of its own; drop {name}='):
      numerics.fake_quantize(x, MXFP4, axis=-1, **settings)
  assert dataclasses.replace(MXFP4, rule='even').name == 'mxfp4_e2m1_even'
  assert dataclasses.replace(MXFP4, size=8).name == 'block8_float4_e2m1fn_e8m0'
