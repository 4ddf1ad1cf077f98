"""Merges that drop most of each task vector before they combine them."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal

import jax

from merging import matrices
from merging import patterns
from merging import references
from merging import transform
from merging.combine import energy
from merging.combine import mean as means
from merging.combine import sign
from merging.deltas import band
from merging.deltas import magprune as pruning
from merging.deltas import scale as scaling

Weights = Mapping[str, float | jax.Array] | Sequence[float] | jax.Array


def della(
  density: float | jax.Array = 0.7,
  scale: float | jax.Array = 1.1,
  *,
  key: jax.Array,
  window: float | jax.Array = 0.14,
  rescale: Literal['expectation', 'l1', 'l2', 'linf', 'none'] = 'expectation',
  weights: Weights | None = None,
  combine: Literal['mean', 'sum'] = 'mean',
  layout: matrices.Layout | Mapping[str, matrices.Layout] = 'in_out',
) -> transform.MergeTransform:
  """Drops small changes more often, elects signs, averages what agrees (DELLA).

      chain(magprune(density, window), weigh(weights),
            elect_sign(zero='positive'), disjoint_mean(weights), scale(scale))

  The defaults are those of the authors' example. mergekit restores the norm of
  a tensor instead of dividing by probabilities: `rescale='l1'`, with `window=
  0.3, scale=1.0` and a density of 1 unless told otherwise. Its `della_linear`
  elects no signs: `chain(on_matrices(magprune(...), magprune(...)),
  weigh(weights), total())`.

  Ranks cost a sort of every row for each expert: on two cores half a second for
  an expert's 768 x 3072 matrix; less than a tenth of that out of core, where a
  host sorts.

  Args:
    density: Average fraction to keep, one minus the paper's drop rate.
    scale: Scaling coefficient.
    key: Random key, as of `jax.random.key(0)`.
    window: See `magprune`.
    rescale: See `magprune`.
    weights: Coefficients of the experts, by name or in the order of the sorted
      names; all 1 by default.
    combine: `'mean'` over the experts that agree, by their weights, or their
      `'sum'`.
    layout: How the model stores matrices (see `on_matrices`). Entries compete
      within a row of `[out, in]`; in embeddings of tokens, which are commonly
      stored as `[tokens, features]` with any library, a row is a token for
      `{'embedding': 'out_in', '.': 'in_out'}`.

  Returns:
    The merge.

  Raises:
    ValueError: A probability is not in (0, 1], or an option is unknown.
    TypeError: `key` is not a random key.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> transform = della(0.5, 1.0, window=0.2, key=jax.random.key(0))
    >>> base, expert = {'w': jnp.zeros((2, 3))}, {'w': jnp.ones((2, 3))}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> merged['w'].shape
    (2, 3)
  """
  patterns.check_option('della', 'combine', combine, ('mean', 'sum'))
  prune = pruning.magprune(density, window, key=key, rescale=rescale)
  return transform.chain(
    matrices.on_matrices(prune, otherwise=prune, layout=layout),
    *_weighed(weights),
    sign.elect_sign(zero='positive'),
    means.disjoint_mean(weights) if combine == 'mean' else means.total(),
    scaling.scale(scale),
  )


def breadcrumbs(
  drop_low: float | jax.Array = 0.85,
  drop_high: float | jax.Array = 0.007,
  scale: float | jax.Array = 0.3,
  *,
  scope: Literal['tensor', 'row'] = 'tensor',
  weights: Weights | None = None,
  elect: bool = False,
  layout: matrices.Layout | Mapping[str, matrices.Layout] = 'in_out',
) -> transform.MergeTransform:
  """Adds task vectors without their smallest and largest changes.

      chain(keep_band(drop_low, drop_high), weigh(weights), total(),
            scale(scale))

  The defaults lie where the authors' search begins (keep 15 %, less the largest
  0.6 %, scale 0.2). Their code selects in each row, which is `scope='row'`; the
  paper speaks of layers. mergekit names `drop_high` gamma and gives the
  fraction that is kept, `density = 1 - drop_low - drop_high`; it counts what is
  kept, which may differ by one entry. Its `breadcrumbs_ties` is `elect=True`.

  Args:
    drop_low: Fraction of smallest changes to drop.
    drop_high: Fraction of largest changes to drop.
    scale: Scaling coefficient.
    scope: See `keep_band`.
    weights: Coefficients of the experts, by name or in the order of the sorted
      names; all 1 by default.
    elect: Whether changes against the sign of their sum are zeroed first.
    layout: How the model stores matrices (see `on_matrices`); matters for rows.

  Returns:
    The merge.

  Raises:
    ValueError: The fractions add up to more than 1, or an option is unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> transform = breadcrumbs(0.5, 0.25, scale=1.0)
    >>> base, expert = {'w': jnp.zeros(4)}, {'w': jnp.array([1.0, -9, 2, 3])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, 0.0, 0.0, 3.0]
  """
  keep = band.keep_band(drop_low, drop_high, scope=scope)
  if scope == 'row':
    keep = matrices.on_matrices(keep, otherwise=keep, layout=layout)
  return transform.chain(
    keep,
    *_weighed(weights),
    *([sign.elect_sign(zero='positive')] if elect else []),
    means.total(),
    scaling.scale(scale),
  )


def _weighed(weights):
  return [] if weights is None else [scaling.weigh(weights)]


@references.cited
def sce(density: float | jax.Array = 1.0) -> transform.MergeTransform:
  """Selects what varies, calculates weights, erases minorities (SCE).

      chain(keep_varying(density), energy_mean())

  In each leaf: the entries of largest variance over the experts are selected;
  experts are weighted by the mean square of what is selected; changes against
  the sign of their sum are erased; the rest is averaged by the weights. There
  is no coefficient to search, and merging `c tau_t` gives `c` times the change.
  mergekit 0.1.5 takes equal weights where the mean squares add up to less than
  1e-6, as they do for most language models; here, as in its first version,
  weights are equal only where all changes are zero.

  Args:
    density: Fraction to select (see `keep_varying`). By default all, as in
      mergekit; what the authors use, between 10 % and 30 %, was not verified.

  Returns:
    The merge.

  Raises:
    ValueError: `density` is negative.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, -1.0])},
    ...   'code': {'w': jnp.array([3.0, 3.0])},
    ... }
    >>> merged = merging.merge(sce(), {'w': jnp.zeros(2)}, experts)
    >>> [round(x, 3) for x in merged['w'].tolist()]
    [2.8, 3.0]

  References:
    Fanqi Wan, Longguang Zhong, Ziyi Yang, Ruijun Chen, Xiaojun Quan. "FuseChat:
    Knowledge Fusion of Chat Models". EMNLP 2025. arXiv:2408.07990.
  """
  return transform.chain(energy.keep_varying(density), energy.energy_mean())
