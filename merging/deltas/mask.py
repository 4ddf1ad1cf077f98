"""Which entries of a merged task vector an expert needs (TALL masks)."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import references
from merging import transform
from merging.deltas import scale as scaling

Threshold = (
  float | jax.Array | Mapping[str, float | jax.Array] | Sequence[float]
)


def tall_mask(
  delta: jax.Array, merged: jax.Array, threshold: float | jax.Array
) -> jax.Array:
  """Returns where an expert needs the merged task vector, `bool[*shape]`.

  There its change matters more than what the merge does to it:

      |delta| > threshold |merged - delta|

  What the expert did not change, it does not need.

  Args:
    delta: The expert's task vector, `f32[*shape]`.
    merged: The merged one, `f32[*shape]`.
    threshold: The larger, the fewer.

  Returns:
    The mask.

  Examples:
    >>> delta, merged = jnp.array([1.0, 1.0, 0.0]), jnp.array([2.0, 9.0, 0.0])
    >>> tall_mask(delta, merged, 0.5).tolist()
    [True, False, False]
  """
  threshold = jnp.asarray(threshold, delta.dtype)
  return jnp.abs(delta) > threshold * jnp.abs(merged - delta)


def check_threshold(caller: str, threshold: Threshold) -> None:
  """Raises `ValueError` if a threshold is known to be negative."""
  for value in jax.tree.leaves(threshold):
    if not isinstance(value, jax.core.Tracer) and np.any(np.asarray(value) < 0):
      raise ValueError(
        f'{caller}: threshold is {threshold}, expected at least 0; the authors '
        'search 0.2 to 0.6'
      )


def thresholds(
  caller: str, threshold: Threshold, models: transform.Models
) -> jax.Array:
  """Returns the threshold of each expert, `f32[models]`.

  Args:
    caller: Name for error messages.
    threshold: One for all, or by the name of the expert, or `f32[models]`.
    models: Sorted names of the experts.

  Returns:
    The thresholds.

  Raises:
    ValueError: See `weigh`.

  Examples:
    >>> thresholds('consensus', 0.5, ('code', 'math')).tolist()
    [0.5, 0.5]
  """
  if not isinstance(threshold, Mapping | Sequence):
    threshold = jnp.asarray(threshold, jnp.float32)
    if not threshold.ndim:
      return jnp.full(len(models), threshold)
  given = scaling.per_model(caller, threshold, models)
  return jnp.asarray(given, jnp.float32)


@references.cited
def localise(
  inner: transform.MergeTransform, threshold: Threshold = 0.4
) -> transform.MergeTransform:
  """Gives each expert its part of the merged task vector (TALL masks).

      delta_t = merged [ |delta_t| > threshold_t |merged - delta_t| ]

  One delta for each expert is left. `merging.dynamic.tall` stores them in a bit
  for each parameter.

  Args:
    inner: The merge; the paper's is `total()`.
    threshold: One, or one for each expert, by name or in the order of the
      sorted names. The paper takes the best of 0.2, 0.3, ..., 0.6 for each
      expert on validation data; without, 0.4.

  Returns:
    The transform.

  Raises:
    ValueError: A threshold is negative.

  Examples:
    >>> import merging
    >>> transform = merging.chain(
    ...   localise(merging.total(), 0.5), merging.mean()
    ... )
    >>> experts = {
    ...   'a': {'w': jnp.array([1.0, 1.0])},
    ...   'b': {'w': jnp.array([1.0, 4.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(transform, base, experts)['w'].tolist()
    [2.0, 2.5]

  References:
    Ke Wang, Nikolaos Dimitriadis, Guillermo Ortiz-Jimenez, François Fleuret,
    Pascal Frossard. "Localizing Task Information for Improved Model Merging and
    Compression". ICML 2024. arXiv:2405.07813.
  """
  check_threshold('localise', threshold)
  return _with_masks('localise', inner, threshold, _localise)


def _localise(masks, merged):
  zero = jnp.zeros_like(merged)
  return tuple(jnp.where(mask, merged, zero) for mask in masks)


@references.cited
def keep_shared(
  inner: transform.MergeTransform,
  threshold: Threshold = 0.4,
  k: int | jax.Array = 2,
) -> transform.MergeTransform:
  """Keeps the entries of a merged task vector that several experts need.

      merged [ #{t: |delta_t| > threshold_t |merged - delta_t|} >= k ]

  An entry that one expert needs is selfish, one that nobody needs catastrophic.

  Args:
    inner: The merge.
    threshold: See `localise`.
    k: How many experts have to need an entry. 0 keeps all; more than there are
      experts, none.

  Returns:
    The transform.

  Raises:
    ValueError: A threshold or `k` is negative.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'a': {'w': jnp.array([1.0, 1.0])},
    ...   'b': {'w': jnp.array([1.0, 4.0])},
    ... }
    >>> transform = keep_shared(merging.total(), 0.5)
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [2.0, 0.0]

  References:
    Ke Wang, Nikolaos Dimitriadis, Guillermo Ortiz-Jimenez, François Fleuret,
    Pascal Frossard. "Localizing Task Information for Improved Model Merging and
    Compression". ICML 2024. arXiv:2405.07813.
  """
  check_threshold('keep_shared', threshold)
  if not isinstance(k, jax.Array) and k < 0:
    raise ValueError(f'keep_shared: k is {k}, expected at least 0')
  return _with_masks('keep_shared', inner, threshold, _keep_shared, k)


def _keep_shared(masks, merged, k):
  needed = transform.add_deltas([mask.astype(jnp.int32) for mask in masks])
  kept = needed >= jnp.asarray(k, jnp.int32)
  return (jnp.where(kept, merged, jnp.zeros_like(merged)),)


class _State(NamedTuple):
  inner: transform.State
  thresholds: jax.Array  # f32[models]
  parameters: tuple[Any, ...]


def _with_masks(
  caller: str,
  inner: transform.MergeTransform,
  threshold: Threshold,
  function: Callable[..., tuple[jax.Array, ...]],
  *parameters: Any,
) -> transform.MergeTransform:
  """Runs `inner`, then `function(masks, merged, *parameters) -> deltas`."""

  def init(specs, models):
    return _State(
      inner.init(specs, models),
      thresholds(caller, threshold, models),
      parameters,
    )

  observers = tuple(
    transform.Observer(
      transform.bind(_observe_inner, each.observe),
      transform.bind(_finish_inner, each.finish),
    )
    for each in inner.observers
  )
  return inner._replace(
    init=init,
    observers=observers,
    update=transform.bind(_update_masks, caller, inner.update, function),
    **transform.WHOLE,
  )


def _observe_inner(observe, leaf, state, **extra):
  return observe(leaf, state.inner, **extra)


def _finish_inner(finish, statistic, state):
  return state._replace(inner=finish(statistic, state.inner))


def _update_masks(caller, update, function, leaf, state, **extra):
  merged = update(leaf, state.inner, **extra)
  if len(merged.deltas) != 1:
    raise ValueError(
      f'{caller}: the inner merge leaves {len(merged.deltas)} deltas, expected '
      'one; end it with mean() or total()'
    )
  if len(leaf.deltas) != len(state.thresholds):
    raise ValueError(
      f'{caller}: {len(leaf.deltas)} deltas for {len(state.thresholds)} '
      'experts; find the masks before the experts are combined'
    )
  masks = [
    tall_mask(delta, merged.deltas[0], each)
    for delta, each in zip(leaf.deltas, state.thresholds, strict=True)
  ]
  deltas = function(masks, merged.deltas[0], *state.parameters)
  return merged._replace(deltas=deltas)
