"""How task vectors disturb one another on their own inputs."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import tree
from merging.tangent import linear as linear_lib

Distance = Callable[[Any, Any], jax.Array]

_MOST_POINTS = 1_000_000


def argmax_differs(a: jax.Array, b: jax.Array) -> jax.Array:
  """Tells where two models predict different classes.

  Args:
    a: Outputs, `f32[inputs, ..., classes]`.
    b: Outputs of the other model.

  Returns:
    1 where the largest outputs differ and 0 elsewhere, `f32[inputs, ...]`.

  Examples:
    >>> argmax_differs(jnp.eye(2), jnp.ones((2, 2))).tolist()
    [0.0, 1.0]
  """
  differs = jnp.argmax(a, axis=-1) != jnp.argmax(b, axis=-1)
  return differs.astype(jnp.float32)


def disentanglement_error(
  apply: linear_lib.Apply,
  base: linear_lib.Params,
  experts: Mapping[str, linear_lib.Params],
  inputs: Mapping[str, Any],
  alphas: jax.Array | np.ndarray | Sequence[float],
  *,
  distance: Distance = argmax_differs,
  linear: bool = False,
  batch_size: int = 64,
) -> jax.Array:
  """Measures how task vectors disturb one another on their own inputs.

      xi(a_1, ..., a_T) = sum_t E_{x of task t} dist(
          f(x; theta_0 + a_t tau_t), f(x; theta_0 + sum_s a_s tau_s))

  It is zero where adding the other task vectors changes nothing on the inputs
  of each task, and at most T for a distance of at most 1. Where only `a_t`
  differs from zero, the term of task t vanishes and the others need not.

  Of a grid of two experts with `a` coefficients it makes `a**2 + a` passes over
  the inputs of each task; of a linear model three tangents.

  Args:
    apply: `(params, inputs) -> outputs`, arrays whose first axis is that of the
      inputs. One compiled program serves calls with the same function object.
    base: Parameters that the experts were fine-tuned from.
    experts: Fine-tuned parameters by the name of the expert.
    inputs: By the same names, inputs of the expert's task: pytrees of arrays
      whose first axis is that of the inputs.
    alphas: Coefficients, `f32[a]`, tried in all combinations; or combinations,
      `f32[points, experts]`, for experts sorted by name.
    distance: `(outputs, outputs) -> f32[inputs, ...]`, averaged over all axes
      and inputs. By default whether predictions differ, as in the paper.
    linear: Whether the model is linearised at the base. The same as
      `apply=linearize(apply, base)`, at the cost of a tangent for each expert
      instead of a pass for each combination.
    batch_size: Inputs that are evaluated at once. Outputs of a batch are held
      for each of `alphas`.

  Returns:
    `f32[a, ..., a]`, an axis for each expert in the order of their names; or
    `f32[points]`.

  Raises:
    ValueError: `inputs` are not named as the experts, or are not arrays with
      one first axis; the trees differ in structure; the combinations are more
      than a million; `distance` does not return a number for each input.
    TypeError: `experts` is not a mapping, or a leaf of the base is complex.

  Examples:
    Experts that share no parameter disturb nothing:

    >>> def apply(params, x):
    ...   return jnp.stack([params['w'] * x, params['v'] * (1 - x)], axis=-1)
    >>> base = {'w': jnp.float32(1), 'v': jnp.float32(1)}
    >>> experts = {
    ...   'ones': {**base, 'w': jnp.float32(2)},
    ...   'zeros': {**base, 'v': jnp.float32(2)},
    ... }
    >>> inputs = {'ones': jnp.ones(3), 'zeros': jnp.zeros(5)}
    >>> disentanglement_error(apply, base, experts, inputs, [-2.0, 2.0])
    Array([[0., 0.],
           [0., 0.]], dtype=float32)

  References:
    Guillermo Ortiz-Jimenez, Alessandro Favero, Pascal Frossard. "Task
    Arithmetic in the Tangent Space: Improved Editing of Pre-Trained Models".
    NeurIPS 2023. arXiv:2305.12827.
  """
  caller = 'disentanglement_error'
  names = checks.check_experts(caller, experts)
  if set(inputs) != set(names):
    raise ValueError(
      f'{caller}: inputs are for {patterns.listing(sorted(inputs))}, expected '
      f'the experts {patterns.listing(names)}'
    )
  for name in names:
    linear_lib.num_inputs(caller, f'inputs of {name!r}', inputs[name])
  grid = jnp.asarray(alphas, jnp.float32)
  count = len(names)
  if grid.ndim == 1:
    shape = grid.shape * count
    if len(grid) ** count > _MOST_POINTS:
      raise ValueError(
        f'{caller}: {len(grid)} coefficients of {count} experts combine in '
        f'{len(grid) ** count} ways; pass f32[points, {count}], or the experts '
        'two by two'
      )
    places = np.array(list(itertools.product(range(len(grid)), repeat=count)))
    singles = jnp.tile(grid, (count, 1))
  elif grid.ndim == 2 and grid.shape[1] == count:
    shape = grid.shape[:1]
    places = np.tile(np.arange(len(grid))[:, None], count)
    singles = grid.T
  else:
    raise ValueError(
      f'{caller}: alphas have shape {grid.shape}, expected (a,) or '
      f'(points, {count}) for {count} experts'
    )
  taus = [
    linear_lib.change_of(caller, experts[name], base, jnp.float32)
    for name in names
  ]
  total = jnp.zeros(len(places), jnp.float32)
  for place, name in enumerate(names):
    total += _mean_distance(
      apply,
      distance,
      linear,
      batch_size,
      base,
      tree.stack(taus),
      inputs[name],
      jnp.asarray(place, jnp.int32),
      singles,
      jnp.asarray(places, jnp.int32),
    )
  return total.reshape(shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _mean_distance(
  apply, distance, linear, batch_size, base, taus, inputs, task, singles, places
):
  """The term of one task, at every combination.

  Args:
    apply: The model.
    distance: Between outputs.
    linear: Whether to linearise at the base.
    batch_size: Inputs at once.
    base: Parameters.
    taus: Task vectors of the floating leaves, with a leading axis of experts.
    inputs: Of the task.
    task: Its place among the experts, `i32[]`.
    singles: Coefficients of each expert, `f32[experts, a]`.
    places: For each combination and expert, which of them it takes,
      `i32[points, experts]`.

  Returns:
    `f32[points]`.
  """
  run, floats = linear_lib.of_floats('disentanglement_error', apply, base)
  experts = len(singles)
  coefficients = jnp.take_along_axis(singles, places.T, axis=1).T

  def outputs_of(batch):
    """Outputs for a batch, as a function of the coefficients."""
    at_inputs = functools.partial(run, args=(batch,), kwargs={})
    if not linear:
      return lambda alpha: at_inputs(
        [
          (
            x.astype(jnp.float32)
            + jnp.tensordot(
              alpha, tau, axes=1, precision=jax.lax.Precision.HIGHEST
            )
          ).astype(x.dtype)
          for x, tau in zip(floats, taus, strict=True)
        ]
      )
    outputs, slope = jax.linearize(at_inputs, floats)
    narrow = [tau.astype(x.dtype) for x, tau in zip(floats, taus, strict=True)]
    return linear_lib.Responses(outputs, jax.lax.map(slope, narrow)).at

  def distances(batch):
    at = outputs_of(batch)
    alone = jax.nn.one_hot(task, experts, dtype=jnp.float32)
    own = jax.lax.map(lambda alpha: at(alpha * alone), singles[task])
    size = len(jax.tree.leaves(batch)[0])

    def point(place_and_alpha):
      place, alpha = place_and_alpha
      reference = jax.tree.map(lambda x: x[place], own)
      found = jnp.asarray(distance(reference, at(alpha)))
      if found.ndim < 1 or len(found) != size:
        raise ValueError(
          f'disentanglement_error: distance returned shape {found.shape} for '
          f'{size} inputs, expected ({size}, ...)'
        )
      return jnp.mean(found.astype(jnp.float32)) * size

    return jax.lax.map(point, (places[:, task], coefficients))

  return _sum_over_batches(distances, inputs, batch_size) / len(
    jax.tree.leaves(inputs)[0]
  )


def _sum_over_batches(function, inputs, batch_size):
  """Adds up a function of batches, all of one size but the last."""
  count = len(jax.tree.leaves(inputs)[0])
  whole = count // batch_size * batch_size
  total = 0.0
  if whole:
    batches = jax.tree.map(
      lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), inputs
    )
    total += jnp.sum(jax.lax.map(function, batches), axis=0)
  if whole < count:
    total += function(jax.tree.map(lambda x: x[whole:], inputs))
  return total
