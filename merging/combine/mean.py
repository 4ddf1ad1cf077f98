"""Sums and means of the experts' changes."""

import jax.numpy as jnp

from merging import references
from merging import transform


def total() -> transform.MergeTransform:
  """Adds the deltas of all experts.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 2 * jnp.ones(2)}}
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.total(), base, experts)['w'].tolist()
    [3.0, 3.0]
  """
  return transform.combine_deltas(transform.add_deltas)


def mean() -> transform.MergeTransform:
  """Averages the deltas of all experts.

  Examples:
    >>> import merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 2 * jnp.ones(2)}}
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.mean(), base, experts)['w'].tolist()
    [1.5, 1.5]
  """
  return transform.combine_deltas(transform.average_deltas)


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
    weighted = transform.add_deltas(
      [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    )
    mean = jnp.where(some, weighted / jnp.where(some, mass, 1), mean)
  return leaf._replace(deltas=(mean,))


def disjoint_mean() -> transform.MergeTransform:
  """Averages, entry by entry, over the experts whose delta is not zero.

  After trimming and sign election an expert that has nothing to say about an
  entry does not water down the others.

      delta = sum_t delta_t / max(1, #{t: delta_t != 0})

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, 0.0])},
    ...   'code': {'w': jnp.array([2.0, 3.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(merging.disjoint_mean(), base, experts)['w'].tolist()
    [1.5, 3.0]
  """
  return transform.combine_deltas(_disjoint_mean)


def _disjoint_mean(deltas):
  total = transform.add_deltas(deltas)
  present = transform.add_deltas([(x != 0).astype(x.dtype) for x in deltas])
  return total / jnp.maximum(present, 1)
