"""Telling changes that several experts share from those of one alone."""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import patterns
from merging import select
from merging import transform


class _State(NamedTuple):
  rate: float | jax.Array
  cap: float | jax.Array
  threshold: float | jax.Array
  factors: jax.Array | None = None  # f32[models], once the model was swept.


def mean_of_changed(
  threshold: float | jax.Array = 1e-5,
) -> transform.MergeTransform:
  """Averages, entry by entry, over the experts that changed it.

      delta = sum_t changed_t delta_t / max(1, sum_t changed_t)
      changed_t = |delta_t| > threshold

  Args:
    threshold: Absolute change from which an entry counts as changed.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([2.0, 0.0])},
    ...   'code': {'w': jnp.array([4.0, 3.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.mean_of_changed(), base, experts)['w'].tolist()
    [3.0, 3.0]
  """
  return transform.combine_deltas(_mean_of_changed, threshold, entrywise=True)


def _changed(deltas, threshold):
  """Returns what each expert changed, and how many changed each entry."""
  limit = jnp.asarray(threshold, deltas[0].dtype)
  changed = [jnp.abs(delta) > limit for delta in deltas]
  number = transform.add_deltas([mask.astype(jnp.int32) for mask in changed])
  return changed, number


def _mean_of_changed(deltas, threshold):
  changed, number = _changed(deltas, threshold)
  return _combine(deltas, changed, number, [1] * len(deltas))


def _combine(deltas, changed, number, factors):
  zero = jnp.zeros_like(deltas[0])
  kept = [
    jnp.where(mask, jnp.where(number == 1, factor * delta, delta), zero)
    for delta, mask, factor in zip(deltas, changed, factors, strict=True)
  ]
  total = transform.add_deltas(kept)
  return total / jnp.maximum(number, 1).astype(total.dtype)


def mean_of_shared(
  rate: float | jax.Array = 0.1,
  cap: float | jax.Array = 0.2,
  threshold: float | jax.Array = 1e-5,
  *,
  scope: Literal['global', 'tensor'] = 'global',
) -> transform.MergeTransform:
  """As `mean_of_changed`, and scales up what one expert changed alone.

  An expert loses by averaging where it shares changes; what is its own makes up
  for it, with the factor

      1 + rate min(cap, shared_t / max(1, unique_t))

  of the numbers of entries that expert `t` changed with others and alone.

  Args:
    rate: How much of the loss to make up for.
    cap: Largest ratio of shared to unique entries that counts.
    threshold: See `mean_of_changed`.
    scope: Count over the whole model, or within each `'tensor'`.

  Returns:
    The transform.

  Raises:
    ValueError: `scope` is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([2.0, 0.0])},
    ...   'code': {'w': jnp.array([4.0, 3.0])},
    ... }
    >>> transform = merging.mean_of_shared(rate=0.5, cap=1.0)
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [3.0, 4.5]
  """
  patterns.check_option('mean_of_shared', 'scope', scope, ('global', 'tensor'))
  state = _State(rate, cap, threshold)
  sweep = transform.Observer(_count_leaf, _finish)
  return transform.MergeTransform(
    lambda specs, models: state,
    (sweep,) if scope == 'global' else (),
    transform.bind(_mean_of_shared, scope),
    entrywise=transform.always if scope == 'global' else transform.never,
  )


def _count(changed, number):
  """Counts what experts share with others and have alone, `[2, 2, models]`."""
  counts = [
    [jnp.sum(mask & other, dtype=jnp.uint32) for mask in changed]
    for other in (number > 1, number == 1)
  ]
  return select.count(jnp.array(counts))


def _count_leaf(leaf, state, **extra):
  return _count(*_changed(leaf.deltas, state.threshold))


def _factors(counts, state):
  high, low = select.carry(counts).astype(jnp.float32)
  shared, unique = high * 2**16 + low
  ratio = shared / jnp.maximum(unique, 1)
  cap = jnp.asarray(state.cap, jnp.float32)
  return 1 + jnp.asarray(state.rate, jnp.float32) * jnp.minimum(ratio, cap)


def _finish(counts, state):
  return state._replace(factors=_factors(counts, state))


def _mean_of_shared(scope, leaf, state, **extra):
  changed, number = _changed(leaf.deltas, state.threshold)
  factors = state.factors
  if scope == 'tensor':
    factors = _factors(_count(changed, number), state)
  factors = factors.astype(leaf.deltas[0].dtype)
  merged = _combine(leaf.deltas, changed, number, list(factors))
  return leaf._replace(deltas=(merged,))
