import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics import noise


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg', 'unsafe_rbg'])
@pytest.mark.parametrize('shape', [(), (0,), (7,), (3, 4, 5)])
def test_bits_are_those_of_jax(impl, shape):
  for seed in (0, 1, 2**31):
    key = jax.random.key(seed, impl=impl)
    expected = jax.random.bits(key, shape, jnp.uint32)
    actual = jax.jit(noise.random_bits, static_argnums=1)(key, shape)
    np.testing.assert_array_equal(actual, expected, strict=True)
