"""Merges by which experts need an entry."""

import jax

from merging import references
from merging import transform
from merging.combine import mean as means
from merging.deltas import mask
from merging.deltas import scale as scaling


@references.cited
def consensus(
  scale: float | jax.Array = 0.3,
  threshold: mask.Threshold = 0.4,
  k: int | jax.Array = 2,
  *,
  inner: transform.MergeTransform | None = None,
) -> transform.MergeTransform:
  """Drops what one expert alone needs from a merge (Consensus Merging).

      m_t = |tau_t| > threshold_t |tau - tau_t|,   tau = sum_t tau_t
      theta = theta_0 + scale [sum_t m_t >= k] tau

  Task vectors interfere most in the entries that matter to one expert
  ("selfish") or to none ("catastrophic"). With fewer than `k` experts nothing
  is left: the result is the base.

  Args:
    scale: Scaling coefficient, searched by the authors in 0.1, 0.2, ..., 1 on
      validation data; 0.3, as of task arithmetic, without.
    threshold: One, or one for each expert. The authors take for each expert the
      one among 0.2, 0.3, ..., 0.6 at which the expert restored from the merge
      (see `localise`) is best on its validation data; 0.4 without.
    k: How many experts have to need an entry.
    inner: The merge; `total()` by default, for Consensus TA. Consensus TIES is
      `inner=ties(combine='sum')`.

  Returns:
    The merge, `chain(keep_shared(inner, threshold, k), scale(scale))`.

  Raises:
    ValueError: A threshold or `k` is negative.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, 1.0, 0.0])},
    ...   'code': {'w': jnp.array([1.0, 4.0, 2.0])},
    ... }
    >>> base = {'w': jnp.zeros(3)}
    >>> merging.merge(consensus(0.5), base, experts)['w'].tolist()
    [1.0, 0.0, 0.0]

  References:
    Ke Wang, Nikolaos Dimitriadis, Guillermo Ortiz-Jimenez, François Fleuret,
    Pascal Frossard. "Localizing Task Information for Improved Model Merging and
    Compression". ICML 2024. arXiv:2405.07813.
  """
  inner = means.total() if inner is None else inner
  return transform.chain(
    mask.keep_shared(inner, threshold, k), scaling.scale(scale)
  )
