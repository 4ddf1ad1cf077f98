"""Merges of task vectors, entry by entry."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

import jax

from merging import patterns
from merging import references
from merging import transform
from merging.combine import mean as means
from merging.combine import sign
from merging.deltas import drop
from merging.deltas import scale as scaling
from merging.deltas import trim as trimming


@references.cited
def task_arithmetic(
  scale: float | jax.Array | Mapping[str, float | jax.Array] | Sequence[float],
) -> transform.MergeTransform:
  """Adds task vectors to the base.

      theta = theta_0 + scale sum_t tau_t,   tau_t = theta_t - theta_0

  Args:
    scale: One scaling coefficient, by convention found on validation data in
      0, 0.05, ..., 1, and 0.3 to 0.4 without; or one for each expert, by name
      or in the order of the sorted names, negative ones to forget.

  Returns:
    The merge.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {'math': {'w': jnp.ones(2)}, 'toxic': {'w': 3 * jnp.ones(2)}}
    >>> base = {'w': jnp.zeros(2)}
    >>> merging.merge(task_arithmetic(0.5), base, experts)['w'].tolist()
    [2.0, 2.0]
    >>> transform = task_arithmetic({'math': 1.0, 'toxic': -1.0})
    >>> merging.merge(transform, base, experts)['w'].tolist()
    [-2.0, -2.0]

  References:
    Gabriel Ilharco, Marco Tulio Ribeiro, Mitchell Wortsman, Suchin Gururangan,
    Ludwig Schmidt, Hannaneh Hajishirzi, Ali Farhadi. "Editing Models with Task
    Arithmetic". ICLR 2023. arXiv:2212.04089.
  """
  if isinstance(scale, Mapping | Sequence):
    return transform.chain(scaling.weigh(scale), means.total())
  return transform.chain(means.total(), scaling.scale(scale))


def negate(scale: float | jax.Array = 1.0) -> transform.MergeTransform:
  """Takes task vectors away from the base, to forget what they learned.

      theta = theta_0 - scale sum_t tau_t

  Args:
    scale: The scaling coefficient.

  Returns:
    The merge, `task_arithmetic(-scale)`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base, toxic = {'w': jnp.ones(2)}, {'w': 3 * jnp.ones(2)}
    >>> merging.merge(negate(0.5), base, {'toxic': toxic})['w'].tolist()
    [0.0, 0.0]
  """
  return task_arithmetic(-scale)


def analogy(
  a: str, b: str, c: str, scale: float | jax.Array = 1.0
) -> transform.MergeTransform:
  """Makes the expert that is to `c` as `b` is to `a`.

      theta = theta_0 + scale (tau_c + tau_b - tau_a)

  For a domain with no labels for the task: `a` is a language model of the
  domain with data, `b` the task there, `c` a language model of the new domain.

  Args:
    a: Name of the expert to take away.
    b: Name of the expert like `a`, with what `c` lacks.
    c: Name of the expert to begin with.
    scale: The scaling coefficient.

  Returns:
    The merge of exactly these three, a `task_arithmetic`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'king': {'w': jnp.array([1.0, 0.0])},
    ...   'man': {'w': jnp.array([0.0, 0.0])},
    ...   'woman': {'w': jnp.array([0.0, 1.0])},
    ... }
    >>> transform = analogy('man', 'king', 'woman')
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [1.0, 1.0]
  """
  if len({a, b, c}) < 3:
    raise ValueError(f'analogy: expected three experts, got {(a, b, c)}')
  return task_arithmetic({a: -scale, b: scale, c: scale})


@references.cited
def ties(
  density: float | jax.Array = 0.2,
  scale: float | jax.Array = 1.0,
  *,
  scope: Literal['global', 'tensor'] = 'global',
  ties: Literal['threshold', 'index'] = 'threshold',
  zero: Literal['majority', 'positive', 'keep'] = 'majority',
  combine: Literal['mean', 'sum'] = 'mean',
) -> transform.MergeTransform:
  """Trims task vectors, elects signs and averages what agrees (TIES).

      chain(trim(density), elect_sign(), disjoint_mean(), scale(scale))

  The defaults are the paper's. FusionBench adds instead of averaging
  (`combine='sum'`, with `scale=0.3`). mergekit selects in each tensor, breaks
  ties by position and resolves zeros upwards: `scope='tensor', ties='index',
  zero='positive'`, with density 1 unless told otherwise.

  Args:
    density: Fraction of each task vector to keep; the paper's top 20 %.
    scale: Scaling coefficient. 1 without validation data; with it the authors
      try 0.8, 0.9, ..., 2.5.
    scope: See `trim`.
    ties: See `trim`.
    zero: See `elect_sign`.
    combine: `'mean'` over the experts that agree, or their `'sum'`.

  Returns:
    The merge.

  Raises:
    ValueError: `density` is not a fraction, or an option is unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([4.0, 0.1, -2.0])},
    ...   'code': {'w': jnp.array([-1.0, 3.0, -5.0])},
    ... }
    >>> transform = ties(density=0.34)
    >>> merging.merge(transform, {'w': jnp.zeros(3)}, experts)['w'].tolist()
    [4.0, 3.0, -3.5]

  References:
    Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal.
    "TIES-Merging: Resolving Interference When Merging Models". NeurIPS 2023.
    arXiv:2306.01708.
  """
  patterns.check_option('ties', 'combine', combine, ('mean', 'sum'))
  return transform.chain(
    trimming.trim(density, scope=scope, ties=ties),
    sign.elect_sign(zero=zero),
    means.disjoint_mean() if combine == 'mean' else means.total(),
    scaling.scale(scale),
  )


def dare(
  rate: float | jax.Array,
  inner: transform.MergeTransform,
  *,
  key: jax.Array,
) -> transform.MergeTransform:
  """Drops most of every task vector at random before any other merge (DARE).

  Args:
    rate: Probability of dropping an entry. Above 0.5 it harms experts that
      moved far from the base.
    inner: The merge of what is left and scaled up.
    key: Random key, not one that `inner` uses: it would drop the same entries.

  Returns:
    The merge, `chain(drop_and_rescale(rate, key=key), inner)`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> transform = dare(0.5, task_arithmetic(1.0), key=jax.random.key(0))
    >>> base, expert = {'w': jnp.zeros(6)}, {'w': jnp.ones(6)}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> sorted(set(merged['w'].tolist()))
    [0.0, 2.0]
  """
  return transform.chain(drop.drop_and_rescale(rate, key=key), inner)


def dare_ties(
  rate: float | jax.Array,
  density: float | jax.Array = 0.2,
  scale: float | jax.Array = 1.0,
  *,
  key: jax.Array,
) -> transform.MergeTransform:
  """Drops task vectors at random, then merges them by TIES.

  As the authors of DARE do. mergekit's method of this name does not trim:
  `chain(drop_and_rescale(rate, key=key, rescale='l1'),
  elect_sign(zero='positive'), total())`.

  Args:
    rate: See `dare`.
    density: See `ties`.
    scale: See `ties`.
    key: Random key.

  Returns:
    The merge, `dare(rate, ties(density, scale), key=key)`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> transform = dare_ties(0.5, key=jax.random.key(0))
    >>> base, expert = {'w': jnp.zeros(6)}, {'w': jnp.ones(6)}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> sorted(set(merged['w'].tolist()))
    [0.0, 2.0]
  """
  return dare(rate, ties(density, scale), key=key)
