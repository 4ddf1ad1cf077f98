"""Fixed-point numbers whose binary point is learned, and sparse in ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numerics import blocks
from numerics import fixed_point
from numerics import number_format
from numerics import rounding

_EXPONENT = np.uint32(0x7F800000)


def learned_fixed_point(
  x: jax.typing.ArrayLike,
  integer_bits: jax.typing.ArrayLike,
  *,
  bits: int = 8,
  mode: rounding.Mode = 'nearest_even',
  key: jax.Array | None = None,
) -> jax.Array:
  """Rounds to fixed point, with a binary point that is a parameter.

      y = 2**(i − bits) · clip(round(x · 2**(bits − i)), −2**(bits − 1),
                               2**(bits − 1) − 1),    i = round(integer_bits),

  which are the values of `FixedPoint(bits, bits − i)`, `ap_fixed<bits, i>` of
  high-level synthesis; what is trained runs there bit by bit.

  The derivative for `x` is 1 where it is in range, and 0 beyond. That for
  `integer_bits` takes both roundings for the identity: with the scale
  `s = 2**(i − bits)`, whose derivative is `s · ln 2`,

      ∂y/∂i = ln 2 · (y − x)  in range,    ln 2 · y  beyond,

  so that numbers beyond the range ask for more integer bits, and the errors of
  those in it for fewer. The paper learns the point by gradients through a
  rounding; this derivative is that of learned step sizes.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    integer_bits: float32 that broadcasts against `x`, the sign counted, such as
      a scalar for a layer.
    bits: All bits, 2 to 16.
    mode: The direction of rounding of `x`.
    key: A PRNG key, for the stochastic modes.

  Returns:
    float32 of the shape of `x`.

  Raises:
    TypeError: If an argument has another type.
    ValueError: If `bits` is out of range, or a key is missing or superfluous.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.float32([0.3, -0.9, 1.9, 5.1])
    >>> numerics.learned_fixed_point(x, 2.2, bits=4).tolist()
    [0.25, -1.0, 1.75, 1.75]
    >>> def error(i):
    ...   return ((numerics.learned_fixed_point(x, i, bits=4) - x) ** 2).sum()
    >>> i = jnp.float32(2)
    >>> for _ in range(10):
    ...   i = i - 0.05 * jax.grad(error)(i)
    >>> float(jnp.round(i)), float(error(2.0)) > 2 * float(error(i))
    (4.0, True)

  References:
    Dai et al., Trainable Fixed-Point Quantization for Deep Learning
      Acceleration on FPGAs, 2024, arXiv:2401.17544 (QFX).
    Esser et al., Learned Step Size Quantization, 2019, arXiv:1902.08153.
  """
  name = 'learned_fixed_point'
  x = rounding.checked_array(name, x).astype(jnp.float32)
  number_format.check_int(name, 'bits', bits, 2, 16)
  integer_bits = jnp.broadcast_to(
    jnp.asarray(integer_bits, jnp.float32), x.shape
  )
  point = jnp.round(jax.lax.stop_gradient(integer_bits)).astype(jnp.int32)
  exponent = jnp.clip(point - bits, -126, 126)
  fmt = fixed_point.FixedPoint(bits)
  scaled = blocks.times_power(jax.lax.stop_gradient(x), -exponent)
  codes = rounding.round_to(scaled, fmt, mode=mode, key=key)
  y = blocks.times_power(codes, exponent)
  half = np.float32(0.5)
  inside = (scaled >= fmt.min - half) & (scaled <= fmt.max + half)
  return _attached(x, integer_bits, y, inside)


@jax.custom_jvp
def _attached(
  x: jax.Array, integer_bits: jax.Array, y: jax.Array, inside: jax.Array
) -> jax.Array:
  """Returns `y`, with the derivatives that it has."""
  del x, integer_bits, inside
  return y


@_attached.defjvp
def _attached_jvp(primals, tangents):
  x, integer_bits, y, inside = primals
  error = np.float32(np.log(2)) * jnp.where(inside, y - x, y)
  moved = jnp.where(inside, tangents[0], 0) + error * tangents[1]
  return _attached(x, integer_bits, y, inside), moved


@functools.partial(jax.jit, static_argnames='ones')
def k_hot(x: jax.typing.ArrayLike, ones: int) -> jax.Array:
  """Keeps the highest ones of binary numbers, and drops the others.

  A product with what is left is so many shifts and additions of them: with one,
  numbers are powers of two. The sign is kept, and magnitudes do not grow, so
  that values of a fixed-point format stay in it.

  The derivative is the identity (straight-through).

  Args:
    x: float32, bfloat16 or float16 of any shape.
    ones: How many ones are kept, at least one.

  Returns:
    float32 of the shape of `x`.

  Raises:
    TypeError: If `x` has another dtype, or `ones` is no int.
    ValueError: If `ones` is not from 1 to 24.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.float32([7.0, -0.8125, 0.5])  # 111, 0.1101 and 0.1.
    >>> numerics.k_hot(x, 2).tolist()
    [6.0, -0.75, 0.5]

  References:
    Dai et al., Trainable Fixed-Point Quantization for Deep Learning
      Acceleration on FPGAs, 2024, arXiv:2401.17544 (QFX).
  """
  number_format.check_int('k_hot', 'ones', ones, 1, 24)
  x = rounding.checked_array('k_hot', x).astype(jnp.float32)
  rest = jnp.abs(jax.lax.stop_gradient(x))
  total = jnp.zeros_like(rest)
  for _ in range(ones):
    pattern = jax.lax.bitcast_convert_type(rest, jnp.uint32) & _EXPONENT
    highest = jax.lax.bitcast_convert_type(pattern, jnp.float32)
    total, rest = total + highest, rest - highest
  total = jnp.where(jnp.isfinite(x), jnp.copysign(total, x), x)
  return rounding.straight_through(x, total)
