"""Sums and means of the experts' changes."""

from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from merging import references
from merging import transform
from merging.deltas import scale


def total() -> transform.MergeTransform:
  """Adds the deltas of all experts.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 2 * jnp.ones(2)}}
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.total(), base, experts)['w'].tolist()
    [3.0, 3.0]
  """
  return transform.combine_deltas(transform.add_deltas, entrywise=True)


def mean() -> transform.MergeTransform:
  """Averages the deltas of all experts.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 2 * jnp.ones(2)}}
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.mean(), base, experts)['w'].tolist()
    [1.5, 1.5]
  """
  return transform.combine_deltas(transform.average_deltas, entrywise=True)


@references.cited
def weighted_mean(weights: str = 'importance') -> transform.MergeTransform:
  r"""Averages the deltas with a weight for every entry of every expert.

  With the diagonal of the Fisher information as weight, this is the mode of the
  product of the experts' Laplace posteriors.

      delta = sum_t w_t delta_t / sum_t w_t

  Where all weights are zero, experts count equally.

  Args:
    weights: Name under which `merge` is given the weights: for each expert, a
      non-negative tree like its parameters. A leaf that no expert has weights
      for is averaged equally.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 2 * jnp.ones(2)}}
    >>> importance = {
    ...   'math': {'w': jnp.array([1.0, 0.0])},
    ...   'code': {'w': jnp.array([3.0, 0.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(
    ...   merging.weighted_mean(), base, experts, importance=importance
    ... )['w'].tolist()
    [1.75, 1.5]

  References:
    Michael Matena, Colin Raffel. "Merging Models with Fisher-Weighted
    Averaging". NeurIPS 2022. arXiv:2111.09832.
  """
  return transform.stateless(
    transform.bind(_weighted_mean, weights), extra=(weights,)
  )


def _weighted_mean(name, leaf, **extra):
  deltas, weights = leaf.deltas, extra[name]
  mean = transform.average_deltas(deltas)
  if weights is not None:
    weights = [weight.astype(mean.dtype) for weight in weights]
    mass = transform.add_deltas(weights)
    some = mass > 0
    # Weights may be so small that their products with deltas are zero.
    shares = [weight / jnp.where(some, mass, 1) for weight in weights]
    weighted = transform.add_deltas(
      [share * delta for share, delta in zip(shares, deltas, strict=True)]
    )
    mean = jnp.where(some, weighted, mean)
  return leaf._replace(deltas=(mean,))


def disjoint_mean(
  weights: Mapping[str, float | jax.Array]
  | Sequence[float]
  | jax.Array
  | None = None,
) -> transform.MergeTransform:
  """Averages, entry by entry, over the experts whose delta is not zero.

  After trimming and sign election an expert that has nothing to say about an
  entry does not water down the others.

      delta = sum_t delta_t / max(1, #{t: delta_t != 0})

  Args:
    weights: Coefficients that the deltas were multiplied with (see `weigh`), by
      the name of the expert or in the order of the sorted names. The mean is
      then theirs: it divides by `sum_t w_t` over the deltas that are not zero,
      or by 1 where that is zero.

  Returns:
    The transform. Its `init` raises `ValueError` if weights and experts differ.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, 0.0])},
    ...   'code': {'w': jnp.array([2.0, 3.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.disjoint_mean(), base, experts)['w'].tolist()
    [1.5, 3.0]
    >>> weights = {'math': 3.0, 'code': 1.0}
    >>> transform = merging.chain(
    ...   merging.weigh(weights), merging.disjoint_mean(weights)
    ... )
    >>> merging.merge(transform, base, experts)['w'].tolist()
    [1.25, 3.0]
  """
  if weights is None:
    return transform.combine_deltas(_disjoint_mean, entrywise=True)
  return transform.MergeTransform(
    init=lambda specs, models: scale.per_model(
      'disjoint_mean', weights, models
    ),
    observers=(),
    update=_weighted_disjoint_mean,
    entrywise=transform.always,
  )


def _disjoint_mean(deltas):
  total = transform.add_deltas(deltas)
  present = transform.add_deltas([(x != 0).astype(x.dtype) for x in deltas])
  return total / jnp.maximum(present, 1)


def _weighted_disjoint_mean(leaf, weights, **extra):
  if len(leaf.deltas) != len(weights):
    raise ValueError(
      f'disjoint_mean: {len(weights)} weights for {len(leaf.deltas)} deltas; '
      'it combines the experts, so nothing before it may'
    )
  mass = transform.add_deltas(
    [
      (x != 0).astype(x.dtype) * jnp.asarray(weight, x.dtype)
      for x, weight in zip(leaf.deltas, weights, strict=True)
    ]
  )
  total = transform.add_deltas(leaf.deltas)
  return leaf._replace(deltas=(total / jnp.where(mass == 0, 1, mass),))
