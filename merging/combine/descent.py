"""Gradient descent on one leaf, as merges that are defined by an optimiser use.

The number of steps is the bound of a loop and not of an unrolled program, so
that it may be traced and costs nothing to compile. The price is that nothing
can be differentiated through the loop in reverse.
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

Gradient = Callable[[jax.Array], jax.Array]

_DECAYS = (0.9, 0.999)
_EPSILON = 1e-8


def adam(
  gradient: Gradient,
  start: jax.Array,
  steps: int | jax.Array,
  learning_rate: float | jax.Array,
) -> jax.Array:
  """Descends by Adam with the usual constants (0.9, 0.999, 1e-8).

  Args:
    gradient: `x -> f32[*shape]`, the gradient at `x`.
    start: Where to begin, `f32[*shape]`.
    steps: Number of steps.
    learning_rate: Of every step, about the distance an entry moves in it.

  Returns:
    Where it ends, `f32[*shape]`. An entry whose gradient is zero does not move.

  Examples:
    >>> adam(lambda x: 2 * (x - 3), jnp.zeros(2), 1, 0.5).round(3)
    Array([0.5, 0.5], dtype=float32)
  """
  slow, fast = _DECAYS

  def step(count, carry):
    x, mean, square = carry
    slope = gradient(x)
    mean = slow * mean + (1 - slow) * slope
    square = fast * square + (1 - fast) * slope * slope
    unbiased = mean / _mass(slow, count, x.dtype)
    spread = jnp.sqrt(square / _mass(fast, count, x.dtype))
    return x - rate * unbiased / (spread + _EPSILON), mean, square

  rate = jnp.asarray(learning_rate, start.dtype)
  zero = jnp.zeros_like(start)
  return _repeat(step, steps, (start, zero, zero))[0]


def momentum(
  gradient: Gradient,
  start: jax.Array,
  steps: int | jax.Array,
  learning_rate: float | jax.Array,
) -> jax.Array:
  """Descends along a running sum of gradients that decays by 0.9 in a step.

  Args:
    gradient: See `adam`.
    start: See `adam`.
    steps: See `adam`.
    learning_rate: What the running sum is multiplied with.

  Returns:
    Where it ends, `f32[*shape]`.

  Examples:
    >>> momentum(lambda x: x - 2, jnp.zeros(2), 1, 0.5)
    Array([1., 1.], dtype=float32)
  """

  def step(count, carry):
    del count
    x, running = carry
    running = _DECAYS[0] * running + gradient(x)
    return x - rate * running, running

  rate = jnp.asarray(learning_rate, start.dtype)
  return _repeat(step, steps, (start, jnp.zeros_like(start)))[0]


def _mass(decay, count, dtype):
  """Returns `1 - decay**count` without cancellation."""
  return -jnp.expm1(count.astype(dtype) * math.log(decay))


def _repeat(step, steps, carry):
  last = jnp.asarray(steps).astype(jnp.int32)
  return jax.lax.fori_loop(1, last + 1, step, carry)
