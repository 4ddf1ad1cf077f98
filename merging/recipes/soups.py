"""Averages of parameters, and points between them."""

from collections.abc import Mapping
from collections.abc import Sequence

import jax

from merging import references
from merging import transform
from merging.combine import mean as means
from merging.deltas import scale as scaling


@references.cited
def average() -> transform.MergeTransform:
  """Averages the parameters of all experts (a uniform soup).

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 3 * jnp.ones(2)}}
    >>> merging.merge(average(), {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [2.0, 2.0]

  References:
    Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs,
    Raphael Gontijo-Lopes, Ari S. Morcos, Hongseok Namkoong, Ali Farhadi, Yair
    Carmon, Simon Kornblith, Ludwig Schmidt. "Model soups: averaging weights of
    multiple fine-tuned models improves accuracy without increasing inference
    time". ICML 2022. arXiv:2203.05482.
  """
  return means.mean()


@references.cited
def weighted_average(
  weights: Mapping[str, float | jax.Array] | Sequence[float] | jax.Array,
) -> transform.MergeTransform:
  """Averages the parameters of experts with weights, normalised to add to 1.

      theta = sum_t w_t theta_t / sum_t w_t

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names.

  Returns:
    The merge.

  Raises:
    ValueError: The weights add up to zero.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'code': {'w': 3 * jnp.ones(2)}}
    >>> transform = weighted_average({'math': 3, 'code': 1})
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [1.5, 1.5]

  References:
    Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre, Rebecca Roelofs,
    Raphael Gontijo-Lopes, Ari S. Morcos, Hongseok Namkoong, Ali Farhadi, Yair
    Carmon, Simon Kornblith, Ludwig Schmidt. "Model soups: averaging weights of
    multiple fine-tuned models improves accuracy without increasing inference
    time". ICML 2022. arXiv:2203.05482.
  """
  values = weights.values() if isinstance(weights, Mapping) else weights
  mass = sum(values)
  if not isinstance(mass, jax.core.Tracer) and mass == 0:
    raise ValueError(
      f'weighted_average: the weights {weights} add up to 0; use '
      'task_arithmetic for coefficients that are not to be normalised'
    )
  return transform.chain(
    scaling.weigh(weights), means.total(), scaling.scale(1 / mass)
  )
