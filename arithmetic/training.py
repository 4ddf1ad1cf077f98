"""Training as one scan: no host in the loop, and resumable anywhere.

The data of a step is a function of the step's number, so that a state and a
number are all there is to a run: stopping after any step and going on later
gives the same parameters, bit for bit.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
Variables = Any
# From parameters and a batch to the loss. If the state has variables, from them
# too, `(params, batch, variables) -> (loss, variables)`.
LossFn = Callable[..., Any]


class State(NamedTuple):
  """What a run carries from step to step.

  Attributes:
    params: The parameters.
    optimizer: The optimiser's state.
    step: i32[], steps done.
    key: The PRNG key that, with the step, decides the data of every step.
    variables: What the loss changes itself, such as moving averages, without a
      gradient; None if it changes nothing.
  """

  params: Params
  optimizer: optax.OptState
  step: jax.Array
  key: jax.Array
  variables: Variables = None


def start(
  params: Params,
  optimizer: optax.GradientTransformation,
  key: jax.Array,
  variables: Variables = None,
) -> State:
  """The state before the first step."""
  first = jnp.zeros((), jnp.int32)
  return State(params, optimizer.init(params), first, key, variables)


def train(
  state: State,
  num_steps: int,
  *,
  loss_fn: LossFn,
  draw: Callable[[jax.Array, jax.Array], Any],
  optimizer: optax.GradientTransformation,
) -> tuple[State, jax.Array]:
  """Runs optimiser steps in one `lax.scan`.

  Args:
    state: From `start` or an earlier call.
    num_steps: How many steps to add.
    loss_fn: From parameters and a batch to a scalar; if the state has
      variables, from parameters, a batch and them to a scalar and new ones.
    draw: From a key and the number of the step, from 0, to a batch, on the
      device.
    optimizer: Any optax optimiser.

  Returns:
    The new state, and the loss before each step, f32[num_steps].

  Examples:
    Two calls of five steps are one call of ten:

    >>> import functools
    >>> import jax, jax.numpy as jnp, optax
    >>> optimizer = optax.sgd(0.1)
    >>> run = functools.partial(
    ...   train,
    ...   loss_fn=lambda w, x: jnp.mean((w - x) ** 2),
    ...   draw=lambda key, step: jax.random.normal(key, (8,)),
    ...   optimizer=optimizer,
    ... )
    >>> first = start(jnp.float32(3), optimizer, jax.random.key(0))
    >>> ten, losses = run(first, 10)
    >>> again = run(run(first, 5)[0], 5)[0]
    >>> losses.shape, bool(ten.params == again.params)
    ((10,), True)
  """

  def step(state: State, _) -> tuple[State, jax.Array]:
    key = jax.random.fold_in(state.key, state.step)
    batch = draw(key, state.step)
    variables = state.variables
    if variables is None:
      loss, gradient = jax.value_and_grad(loss_fn)(state.params, batch)
    else:
      (loss, variables), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, batch, variables
      )
    updates, optimizer_state = optimizer.update(
      gradient, state.optimizer, state.params
    )
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    return State(params, optimizer_state, step, state.key, variables), loss

  return jax.lax.scan(step, state, None, length=num_steps)
