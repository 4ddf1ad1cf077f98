"""Coefficients from the norms of whole task vectors."""

import jax.numpy as jnp

from merging import transform


def weigh_by_norm() -> transform.MergeTransform:
  """Multiplies each expert's deltas by its share of all squared norms.

      w_t = |delta_t|^2 / sum_k |delta_k|^2

  with norms over all entries of the model, accumulated in float32. The weights
  add up to 1. An expert whose norm is ten times another's gets a hundred times
  its weight. Where nothing has changed, all weights are 0.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> transform = merging.chain(weigh_by_norm(), merging.total())
    >>> experts = {'a': {'w': jnp.array([1.0])}, 'b': {'w': jnp.array([3.0])}}
    >>> merged = merging.merge(transform, {'w': jnp.zeros(1)}, experts)
    >>> round(float(merged['w'][0]), 3)  # (1 * 1 + 9 * 3) / 10
    2.8
  """
  return transform.MergeTransform(
    init=lambda specs, models: jnp.zeros(len(models), jnp.float32),
    observers=(transform.Observer(_observe_norms, _finish_norms),),
    update=_weigh,
  )


def _observe_norms(leaf, weights, **extra):
  return jnp.stack(
    [jnp.sum(jnp.square(x), dtype=jnp.float32) for x in leaf.deltas]
  )


def _finish_norms(norms, weights):
  mass = jnp.sum(norms)
  return norms / jnp.where(mass > 0, mass, 1)


def _weigh(leaf, weights, **extra):
  deltas = (
    weight.astype(delta.dtype) * delta
    for weight, delta in zip(weights, leaf.deltas, strict=True)
  )
  return leaf._replace(deltas=tuple(deltas))
