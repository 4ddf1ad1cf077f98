"""Constants of many programs at once, by least squares of relative errors."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numerics.functions import straight_line

CONSTANT = -1  # As an operand: the constant of the step itself.


class Batch(NamedTuple):
  """Programs of at most `steps` steps each, as arrays.

  Attributes:
    operations: Which of `straight_line.OPERATIONS`, `i32[programs, steps]`.
    left: Places as in a `Step`, or `CONSTANT`; likewise.
    right: Likewise.
    last: The place of each result, `i32[programs]`.
    constants: One for each step, of no effect where no operand is one;
      `f64[programs, steps]`.
  """

  operations: np.ndarray
  left: np.ndarray
  right: np.ndarray
  last: np.ndarray
  constants: np.ndarray


def batch_of(programs: Sequence[straight_line.Program], steps: int) -> Batch:
  """Puts programs into arrays.

  Args:
    programs: Of at most one constant in a step.
    steps: The width of the arrays.

  Returns:
    The arrays.
  """
  shape = len(programs), steps
  batch = Batch(
    *(np.zeros(shape, np.int32) for _ in range(3)),
    last=np.array([program.operations for program in programs], np.int32),
    constants=np.zeros(shape, np.float64),
  )
  for row, program in enumerate(programs):
    for place, step in enumerate(program.steps):
      batch.operations[row, place] = straight_line.OPERATIONS.index(
        step.operation
      )
      for operands, each in zip(
        (batch.left, batch.right), step[1:], strict=True
      ):
        if isinstance(each, float):
          operands[row, place] = CONSTANT
          batch.constants[row, place] = each
        else:
          operands[row, place] = each
  return batch


def fit(
  programs: Sequence[straight_line.Program],
  steps: int,
  x: np.ndarray,
  exact: np.ndarray,
  *,
  turns: int,
  weights: np.ndarray | None = None,
) -> tuple[list[straight_line.Program], np.ndarray]:
  """Fits constants by the method of Levenberg and Marquardt, in float64.

  Args:
    programs: With the constants that it begins with.
    steps: The most steps of one; what it is compiled for.
    x: Arguments, `f64[n]`.
    exact: What they should give, `f64[n]`, not 0.
    turns: How many steps of the method.
    weights: Of the squares of errors, `f64[programs, n]`; ones by default.

  Returns:
    The programs, and the largest relative error of each, `f64[programs]`,
    infinite where a value is not finite.
  """
  batch = batch_of(programs, steps)
  with jax.enable_x64(True):
    shape = len(programs), x.size
    root = np.sqrt(np.ones(shape) if weights is None else weights)
    constants, errors = jax.device_get(
      _fit(batch, x, 1 / np.asarray(exact), root, turns)
    )
  fitted = []
  for program, row in zip(programs, constants, strict=True):
    own = [
      row[place]
      for place, step in enumerate(program.steps)
      if any(isinstance(each, float) for each in step[1:])
    ]
    fitted.append(program.with_constants(tuple(own)))
  return fitted, errors


@functools.partial(jax.jit, static_argnames='turns')
def _fit(batch, x, inverse, root, turns):
  one = functools.partial(_fit_one, x, inverse, turns)
  return jax.vmap(one)(batch, root)


def _fit_one(x, inverse, turns, program, root):
  def errors(constants):
    return (_value(program._replace(constants=constants), x) * inverse) - 1

  def cost(constants):
    error = errors(constants) * root
    finite = jnp.all(jnp.isfinite(error))
    return jnp.where(finite, jnp.sum(error * error), jnp.inf)

  directions = jnp.eye(len(program.constants))

  def turn(carry, _):
    constants, damping, best = carry

    def pushed(direction):
      return jax.jvp(errors, (constants,), (direction,))[1] * root

    jacobian = jax.vmap(pushed)(directions)
    normal = jacobian @ jacobian.T
    # What has no effect has a row of zeros, which must not be singular.
    damped = normal + jnp.diag(damping * jnp.diagonal(normal) + 1e-30)
    step = jnp.linalg.solve(damped, jacobian @ (errors(constants) * root))
    moved = constants - jnp.where(jnp.isfinite(step), step, 0)
    found = cost(moved)
    better = found < best
    return (
      jnp.where(better, moved, constants),
      jnp.clip(jnp.where(better, damping / 10, damping * 10), 1e-15, 1e6),
      jnp.where(better, found, best),
    ), None

  start = program.constants, jnp.asarray(1e-2), cost(program.constants)
  (constants, _, _), _ = jax.lax.scan(turn, start, None, length=turns)
  largest = jnp.max(jnp.abs(errors(constants)))
  return constants, jnp.where(jnp.isfinite(largest), largest, jnp.inf)


def _value(program, x):
  """Runs a program that is given as arrays."""
  count = len(program.operations)
  memory = jnp.zeros((count + 1, *x.shape)).at[0].set(x)

  def step(memory, place):
    def operand(at):
      value = memory[jnp.maximum(at[place], 0)]
      return jnp.where(at[place] < 0, program.constants[place], value)

    left, right = operand(program.left), operand(program.right)
    results = jnp.stack(
      # Derivatives of what is not chosen have to be finite too.
      [
        left + right,
        left - right,
        left * right,
        left / jnp.where(right == 0, 1.0, right),
      ]
    )
    return memory.at[place + 1].set(results[program.operations[place]]), None

  memory, _ = jax.lax.scan(step, memory, jnp.arange(count))
  return memory[program.last]


def nodes(low: float, high: float, count: int) -> np.ndarray:
  """Points of Chebyshev, denser toward both ends, which are not among them."""
  t = np.cos(np.pi * (np.arange(count)[::-1] + 0.5) / count)
  return low + (high - low) * (1 + t) / 2
