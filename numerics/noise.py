"""Random bits for stochastic rounding."""

import math

import jax
import jax.numpy as jnp
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Uniform random words, one per element.

  The words are those of `jax.random.bits(key, shape, jnp.uint32)` under JAX's
  default generator. They are written out as elementwise operations on the
  element's index, so that the compiler fuses them with the rounding that
  consumes them; JAX's own lowering on CPU loops over the rounds in memory and
  costs several times the rounding. Other generators, and arrays of 2**32
  elements or more, go through JAX.

  Args:
    key: A scalar key of any implementation.
    shape: Of the result.

  Returns:
    uint32[shape].

  References:
    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011,
      doi:10.1145/2063384.2063405 (Threefry-2x32, 20 rounds).
  """
  size = math.prod(shape)
  if jax.random.key_impl(key) != 'threefry2x32' or size >= 2**32:
    return jax.random.bits(key, shape, jnp.uint32)
  words = jax.random.key_data(key)
  schedule = (words[0], words[1], words[0] ^ words[1] ^ _PARITY)
  # The block's 64-bit counter is the element's row-major index.
  index = jax.lax.iota(jnp.uint32, size).reshape(shape)
  a = jnp.zeros_like(index) + schedule[0]
  b = index + schedule[1]
  for i in range(5):
    for distance in _ROTATIONS[i % 2]:
      a = a + b
      b = a ^ _rotate_left(b, distance)
    a = a + schedule[(i + 1) % 3]
    b = b + schedule[(i + 2) % 3] + np.uint32(i + 1)
  return a ^ b


def derive(key: jax.Array, counter: int) -> jax.Array:
  """Makes a key of another and a number, at hardly any cost.

  `jax.random.fold_in` enciphers the number, which takes longer to compile than
  rounding does. Threefry is made for keys that differ in little, so with it the
  number is added to the key.

  Args:
    key: A scalar key of any implementation. Keys from `fold_in` and `split` may
      be mixed with those made here; derive only once from a key.
    counter: Less than 2**32.

  Returns:
    A scalar key.
  """
  if jax.random.key_impl(key) != 'threefry2x32':
    return jax.random.fold_in(key, counter)
  words = jax.random.key_data(key)
  return jax.random.wrap_key_data(words + np.array([0, counter], np.uint32))


def _rotate_left(x: jax.Array, distance: int) -> jax.Array:
  return (x << np.uint32(distance)) | (x >> np.uint32(32 - distance))
