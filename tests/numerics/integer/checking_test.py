"""Functions are proved to be integers only, and others are found out."""

import functools

import jax
from jax.experimental import pallas
import jax.numpy as jnp
import numpy as np
import pytest

import numerics
from numerics import integer

X = np.arange(12, dtype=np.int32).reshape(3, 4)
SHAPE = jax.ShapeDtypeStruct((3, 4), jnp.int32)
HALF = integer.dyadic(np.float64(0.3))


@pytest.mark.parametrize(
  'function',
  [
    lambda x: integer.rescale(x, HALF),
    lambda x: integer.rescale(x, HALF, rounding='gemmlowp'),
    lambda x: integer.add_rescaled(x, HALF, x, HALF),
    lambda x: integer.shift_exp(x, 8),
    lambda x: integer.shiftmax(x, 8, where=x > 2),
    lambda x: integer.shift_gelu(x, 8),
    integer.layer_norm,
    functools.partial(integer.layer_norm, root='newton'),
    lambda x: numerics.TMac().dot(x, x.T),
    lambda x: numerics.LutTensorCore().dot(x, x.T),
    lambda x: numerics.ShiftAdd('float4_e2m1fn').dot(x, x.T),
    lambda x: numerics.BitWeight().dot(x, x.T),
    lambda x: numerics.BitPlanes().dot(x, x.T),
    lambda x: numerics.ModularDot(97).dot(x, x.T),
  ],
)
def test_all_of_it_is_integers_only(function):
  found = integer.check_integer_only(function, SHAPE)
  assert sum(found.values()) > 3


def in_a_loop(x):
  return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y).astype(jnp.int32), x)


def in_a_branch(x):
  return jax.lax.cond(
    x[0, 0] > 0, lambda x: x, lambda x: jnp.sqrt(x).astype(jnp.int32), x
  )


def in_a_reduction(x):
  def larger(a, b):
    return jnp.where(jnp.float32(2) > a.astype(jnp.float32), a, b)

  return jax.lax.reduce(x, np.int32(0), larger, (0,))


def in_a_kernel(x):
  def kernel(x_ref, y_ref):
    y_ref[...] = jnp.sin(x_ref[...].astype(jnp.float32)).astype(jnp.int32)

  return pallas.pallas_call(
    kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
  )(x)


@pytest.mark.parametrize(
  ('function', 'message'),
  [
    (
      lambda x: jnp.sqrt(x) + 1,
      'convert_element_type at .*checking_test.* gives float32',
    ),
    (jax.jit(jnp.mean), 'gives float32'),
    (in_a_loop, r'checking_test.py:\d+ \(.*gives float32'),
    (in_a_branch, 'gives float32'),
    (in_a_reduction, 'gives float32'),
    (in_a_kernel, 'gives float32'),
    (lambda x: (x, np.float32(1)), 'a result is float32'),
  ],
)
def test_a_floating_number_is_found_wherever_it_is(function, message):
  with pytest.raises(TypeError, match=message):
    integer.check_integer_only(function, X)


def test_arguments_and_constants_count():
  with pytest.raises(TypeError, match=r'an argument is float32\[3\]'):
    integer.check_integer_only(lambda x, y: x, X, np.ones(3, np.float32))
  table = jnp.ones(3)
  with pytest.raises(TypeError, match='float32'):
    integer.check_integer_only(lambda x: x + table.astype(jnp.int32).sum(), X)


def test_what_does_not_matter_to_the_result_does_not_count():
  def wasteful(x):
    jnp.sqrt(x)
    return x + 1

  assert integer.check_integer_only(wasteful, X) == {'add': 1}


def test_statics_are_not_looked_at():
  def power(x, how):
    return x * x if how == 'square' else x

  assert integer.check_integer_only(power, X, how='square') == {'mul': 1}
