"""What robust experts have beyond a clean one (robust weight signatures)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import transform


class _Roles(NamedTuple):
  clean: np.ndarray  # f32[models], 1 for the clean expert
  robust: np.ndarray  # f32[models], adding up to 1 over the others
  parameters: tuple[float | jax.Array, ...]


def add_signature(
  clean: str, scale: float | jax.Array = 1.0
) -> transform.MergeTransform:
  """Adds to a clean expert what robust ones have that it has not.

  With `r` the mean of the robust experts' deltas and `c` that of the clean one,

      delta = c + scale (r - <r, c> / <c, c> c)

  leaf by leaf; where `c` is zero there is nothing to take away from `r`.

  Args:
    clean: Name of the clean expert; all others are robust.
    scale: The scaling coefficient.

  Returns:
    The transform. Its `init` raises `ValueError` if no expert has that name, or
    no other one is there.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'clean': {'w': jnp.array([2.0, 0.0])},
    ...   'fog': {'w': jnp.array([5.0, 1.0])},
    ... }
    >>> transform = add_signature('clean')
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [2.0, 1.0]
  """
  return _by_role(clean, _add_signature, scale)


def keep_clean(clean: str) -> transform.MergeTransform:
  """Takes the delta of the clean expert alone; see `add_signature`."""
  return _by_role(clean, _keep_clean)


def average_robust(clean: str) -> transform.MergeTransform:
  """Averages the deltas of all but the clean expert; see `add_signature`."""
  return _by_role(clean, _average_robust)


def _add_signature(clean, robust, scale):
  size = jnp.sum(clean * clean)
  share = jnp.sum(robust * clean) / jnp.where(size > 0, size, 1)
  return clean + jnp.asarray(scale, clean.dtype) * (robust - share * clean)


def _keep_clean(clean, robust):
  return clean


def _average_robust(clean, robust):
  return robust


def _by_role(
  clean: str, function: Callable[..., jax.Array], *parameters: float | jax.Array
) -> transform.MergeTransform:
  """Combines by `function(clean delta, mean robust delta, *parameters)`."""

  def init(specs, models):
    if clean not in models:
      raise ValueError(
        f'robust_signature: no expert is named {clean!r}; the experts are '
        f'{patterns.listing(models)}{patterns.suggest(clean, models)}'
      )
    if len(models) == 1:
      raise ValueError(
        f'robust_signature: {clean!r} is the only expert, expected one that is '
        'robust beside it'
      )
    is_clean = np.array([name == clean for name in models], np.float32)
    others = (1 - is_clean) / np.float32(len(models) - 1)
    return _Roles(is_clean, others, parameters)

  return transform.MergeTransform(
    init, (), transform.bind(_update_roles, function)
  )


def _update_roles(function, leaf, roles, **extra):
  def weighted(weights):
    return transform.add_deltas(
      [
        weight.astype(delta.dtype) * delta
        for weight, delta in zip(jnp.asarray(weights), leaf.deltas, strict=True)
      ]
    )

  clean, robust = weighted(roles.clean), weighted(roles.robust)
  return leaf._replace(deltas=(function(clean, robust, *roles.parameters),))
