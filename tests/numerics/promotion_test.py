"""Functions in wider dtypes, against the same functions of wider arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from tests.numerics import written

QUICK = ['own_vjp', 'own_jvp', 'branches', 'loop', 'counted', 'mapped']
SLOW = [
  *('softmax', 'activations', 'layer_norm', 'attention', 'compiled'),
  'gradient',
]
# Which begin in float32, whatever their arguments are.
FLOAT32 = ['checkpointed', 'recurrent', 'linen']


def table(quick, slow):
  slow = [pytest.param(name, marks=pytest.mark.slow) for name in slow]
  return pytest.mark.parametrize('name', [*quick, *slow])


def total(function, x, w):
  leaves = jax.tree.leaves(function(x, w))
  floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, np.floating)]
  return sum(jnp.sum(jnp.sin(leaf)) for leaf in floats)


@jax.numpy_dtype_promotion('standard')  # As constants are float32.
@table(QUICK, [*SLOW, *FLOAT32])
def test_float32_in_float64(name):
  function = getattr(written, name)
  wide = numerics.promote(function, jnp.float64)
  x, w = written.X, written.W
  with jax.enable_x64():
    found = jax.tree.leaves(wide(x, w))
    expected = jax.tree.leaves(function(x.astype('f8'), w.astype('f8')))
    for a, b in zip(found, expected, strict=True):
      assert a.dtype == b.dtype
      # Constants, such as those of the GELU, are as float32 has them.
      np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)
    if name == 'loop':  # Which has no derivative in reverse.
      return
    gradient, plain = (
      jax.grad(functools.partial(total, f))(x.astype('f8'), w.astype('f8'))
      for f in (wide, function)
    )
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(gradient, plain, rtol=1e-6, atol=1e-6)


@jax.numpy_dtype_promotion('standard')
@table(QUICK, SLOW)
def test_bfloat16_in_float32(name):
  function = getattr(written, name)
  x, w = (jnp.asarray(a, jnp.bfloat16) for a in (written.X, written.W))
  found = jax.tree.leaves(numerics.promote(function)(x, w))
  expected = function(x.astype(jnp.float32), w.astype(jnp.float32))
  for a, b in zip(found, jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_what_rounds_on_purpose_still_does():
  x = jnp.linspace(-3, 3, 31, dtype=jnp.bfloat16)
  rounded = numerics.emulate(jnp.sin, numerics.float8_e4m3fn)
  found = numerics.promote(rounded)(x)
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, rounded(x).astype(jnp.float32))
  half = numerics.promote(lambda x: jax.lax.reduce_precision(x, 5, 10))
  np.testing.assert_array_equal(half(x), x.astype(jnp.float32))
  draw = numerics.promote(lambda key: jax.random.uniform(key, (9,), 'bfloat16'))
  key = jax.random.key(0)
  same = jax.random.uniform(key, (9,), 'bfloat16')
  np.testing.assert_array_equal(draw(key), same.astype(jnp.float32))


def test_operations_that_name_dtypes():
  def several(x, i):
    y = x.astype(jnp.float32).astype(jnp.bfloat16) + jax.lax.iota('bfloat16', 4)
    y = jax.lax.dot(y[None], x[:, None], preferred_element_type='bfloat16')
    z = jnp.zeros(6, jnp.bfloat16).at[i].add(x)
    return y, jnp.cumsum(z), jnp.argsort(x), x > 0.3, i

  random = np.random.default_rng(1)
  x = jnp.asarray(random.normal(size=4), jnp.bfloat16)
  i = jnp.array([0, 2, 2, 5])
  y, z, order, sign, same = numerics.promote(several)(x, i)
  exact = np.asarray(x, np.float64)
  np.testing.assert_allclose(y[0, 0], (exact + np.arange(4)) @ exact, rtol=1e-6)
  scattered = np.zeros(6)
  np.add.at(scattered, np.asarray(i), exact)
  np.testing.assert_allclose(z, np.cumsum(scattered), rtol=1e-6)
  np.testing.assert_array_equal(order, np.argsort(exact))
  np.testing.assert_array_equal(sign, exact > 0.3)
  assert [a.dtype for a in (y, z, same)] == [np.float32, np.float32, np.int32]


@jax.numpy_dtype_promotion('standard')
def test_what_is_wider_stays_and_what_cannot_be_is_refused():
  x = jnp.linspace(-1, 1, 5)
  stays = numerics.promote(lambda x: x.astype(jnp.complex64) * jnp.sin(x))
  assert stays(x).dtype == np.complex64
  with jax.enable_x64():
    both = numerics.promote(jnp.multiply)(np.ones(2, 'f8'), np.ones(2, 'f2'))
    assert both.dtype == np.float64
  with pytest.raises(ValueError, match=r'within `with jax.enable_x64'):
    numerics.promote(jnp.sin, jnp.float64)(x)
  with pytest.raises(ValueError, match='float32 or float64, got bfloat16'):
    numerics.promote(jnp.sin, jnp.bfloat16)
  with pytest.raises(TypeError, match='expected a function, got int'):
    numerics.promote(3)


def test_under_vmap_and_jit():
  x = jnp.asarray(written.X, jnp.bfloat16)
  wide = numerics.promote(written.clipped)
  every = jax.jit(jax.vmap(jax.grad(lambda row: wide(row).sum())))(x)
  cosines = np.cos(np.asarray(x, np.float32))
  np.testing.assert_allclose(every, np.clip(cosines, -0.1, 0.1), rtol=4e-3)
