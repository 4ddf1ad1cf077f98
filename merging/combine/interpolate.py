"""Points between two models, and bases that do not stay where they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import transform


def scale_base(factor: float | jax.Array) -> transform.MergeTransform:
  """Multiplies the base, which the deltas are then added to.

      theta = factor theta_0 + delta

  For sums of parameters whose weights do not add up to 1: with weights that add
  up to `factor`, the sum of parameters is `factor` times the base and the sum
  of the weighed deltas.

  Args:
    factor: The factor, a number or `f32[]`.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.total(), merging.scale_base(0.5))
    >>> base, expert = {'w': jnp.array([4.0])}, {'w': jnp.array([5.0])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [3.0]
  """
  return transform.stateless(_scale_base, factor, entrywise=True)


def _scale_base(leaf, factor):
  change = (jnp.asarray(factor, leaf.base.dtype) - 1) * leaf.base
  return leaf._replace(deltas=tuple(delta + change for delta in leaf.deltas))


class Ends(NamedTuple):
  """The two models that a path leads between, as data of a state.

  Attributes:
    last: Whether each expert is the one at the end, `bool[models]`.
  """

  last: np.ndarray


def ends(caller: str, toward: str | None, models: transform.Models) -> Ends:
  """Decides where a path begins and ends.

  With one expert it leads from the base to the expert. With two, it leads from
  the other one to the one that `toward` names: no order of a mapping decides.

  Args:
    caller: Name for error messages.
    toward: Name of the expert at the end.
    models: Sorted names of the experts.

  Returns:
    The ends.

  Raises:
    ValueError: There are more than two experts, `toward` is missing or unknown.

  Examples:
    >>> ends('slerp', 'code', ('code', 'math')).last.tolist()
    [True, False]
  """
  if len(models) > 2:
    raise ValueError(
      f'{caller}: got the {len(models)} experts {patterns.listing(models)}, '
      'expected one, to go from the base to it, or two, to go between them; '
      'average, multislerp and karcher take more'
    )
  if toward is None and len(models) == 2:
    raise ValueError(
      f'{caller}: which of {patterns.listing(models)} is at the end? Say so '
      f'with toward={models[1]!r}'
    )
  if toward is not None and toward not in models:
    raise ValueError(
      f'{caller}: no expert is named {toward!r} to go toward; the experts are '
      f'{patterns.listing(models)}{patterns.suggest(toward, models)}'
    )
  return Ends(np.array([len(models) == 1 or x == toward for x in models]))


def deltas_at(
  caller: str, where: Ends, deltas: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns the deltas at the beginning and at the end of a path.

  Raises:
    ValueError: The experts are already combined.
  """
  if len(deltas) != len(where.last):
    raise ValueError(
      f'{caller}: {len(deltas)} deltas of {len(where.last)} experts; go '
      'between experts before they are combined'
    )
  if len(deltas) == 1:
    return jnp.zeros_like(deltas[0]), deltas[0]
  first, second = deltas
  forward = jnp.asarray(where.last)[1]
  return jnp.where(forward, first, second), jnp.where(forward, second, first)


class Step(NamedTuple):
  """State of a step from one model toward another.

  Attributes:
    where: Which models it leads between.
    t: How far a parameter may move, `f32[]`.
  """

  where: Ends
  t: float | jax.Array


def step_toward(
  caller: str, leaf: transform.Leaf, state: Step, **extra: object
) -> transform.Leaf:
  """Moves every parameter by at most `t`, the update of `nearswap`.

  Args:
    caller: Name for error messages; static.
    leaf: The leaf.
    state: The step.
    **extra: Data of other transforms.

  Returns:
    The leaf, with one delta.
  """
  start, end = deltas_at(caller, state.where, leaf.deltas)
  t = jnp.asarray(state.t, start.dtype)
  return leaf._replace(deltas=(start + jnp.clip(end - start, -t, t),))
