"""Merges in which experts compete for entries or columns."""

from collections.abc import Mapping
from typing import Literal

import jax

from merging import matrices
from merging import patterns
from merging import references
from merging import transform
from merging.combine import columns
from merging.combine import competition
from merging.combine import mean as means
from merging.combine import shared
from merging.deltas import outlying
from merging.deltas import scale as scaling


@references.cited
def pcb(
  density: float | jax.Array = 0.05,
  scale: float | jax.Array = 1.2,
  *,
  variant: competition.Variant = 'paper',
) -> transform.MergeTransform:
  """Averages task vectors with weights for which parameters compete (PCB).

      chain(balanced_mean(density), scale(scale))

  The weights balance the importance of an entry within its task and its
  agreement with the other tasks. The default is the paper's formula, for which
  `Norm` was taken as the min-max normalisation of the authors' code; what they
  published as code differs (see `balanced_mean`), and their results on vision
  are those of `variant='signed'`. Density and scale are of these.

  Args:
    density: Fraction of entries of each expert that may have a weight; the
      authors' 5 % for vision, 5 to 20 % for language.
    scale: Scaling coefficient; the authors' 1.2 for vision, 0.8 to 2.2 for
      language.
    variant: See `balanced_mean`.

  Returns:
    The merge.

  Raises:
    ValueError: `density` is not a fraction, or `variant` is unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([4.0, 0.1, -0.2, 1.0])},
    ...   'code': {'w': jnp.array([0.1, -3.0, 0.1, 1.0])},
    ... }
    >>> transform = pcb(0.25, 1.0)
    >>> merging.merge(transform, {'w': jnp.zeros(4)}, experts)['w'].tolist()
    [4.0, -3.0, 0.0, 0.0]

  References:
    Guodong Du, Junlin Lee, Jing Li, Runhua Jiang, Yifei Guo, Shuyang Yu,
    Hanting Liu, Sim Kuan Goh, Ho-Kin Tang, Daojing He, Min Zhang. "Parameter
    Competition Balancing for Model Merging". NeurIPS 2024. arXiv:2410.02396.
  """
  return transform.chain(
    competition.balanced_mean(density, variant=variant), scaling.scale(scale)
  )


@references.cited
def widen(
  ratio: float | jax.Array = 1.0,
  score: float | jax.Array = 1.0,
  *,
  layout: matrices.Layout | Mapping[str, matrices.Layout] = 'in_out',
) -> transform.MergeTransform:
  """Weights experts by how far each column moved or turned (WIDEN).

      on_matrices(disentangled_sum(ratio, score),
                  otherwise=significant_sum(ratio, score))

  For experts whose changes differ in size by orders of magnitude, as those of
  continued pre-training and of instruction tuning: columns are ranked within
  each expert, so that size does not matter. Weights are not normalised: what is
  important to several experts is added.

  The paper treats matrices and vectors; any other leaf is treated as a vector
  here. A column is an input of the layer, and a token in embeddings that are
  stored as `[tokens, features]`, if these have the layout `'in_out'`.

  Args:
    ratio: What counts as important, relative to the average.
    score: Weight of what is important.
    layout: How the model stores matrices (see `on_matrices`).

  Returns:
    The merge. Its `init` raises `ValueError` if no leaf is a matrix.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'w': jnp.ones((3, 2))}
    >>> expert = {'w': jnp.array([[1.0, 1], [2, 2], [3, 3]])}
    >>> merging.merge(widen(), base, {'expert': expert})['w'].tolist()
    [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]

  References:
    Le Yu, Bowen Yu, Haiyang Yu, Fei Huang, Yongbin Li. "Extend Model Merging
    from Fine-Tuned to Pre-Trained Large Language Models via Weight
    Disentanglement". 2024. arXiv:2408.03092.
  """
  return matrices.on_matrices(
    columns.disentangled_sum(ratio, score),
    otherwise=columns.significant_sum(ratio, score),
    layout=layout,
  )


def arcee_fusion(
  *, layout: matrices.Layout | Mapping[str, matrices.Layout] = 'in_out'
) -> transform.MergeTransform:
  """Takes over from one expert only the changes that stand out (Arcee Fusion).

  A method of mergekit, without a paper. For several experts, let `total()` or
  another merge follow on `keep_outlying()`.

  Args:
    layout: How the model stores matrices (see `on_matrices`).

  Returns:
    The merge. Its `init` raises `ValueError` for more than one expert, or if no
    leaf is a matrix.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'w': jnp.zeros((4, 1))}
    >>> expert = {'w': jnp.array([[0.1], [-0.1], [0.2], [3.0]])}
    >>> merged = merging.merge(arcee_fusion(), base, {'expert': expert})
    >>> merged['w'].ravel().tolist()
    [0.0, 0.0, 0.0, 3.0]
  """
  keep = outlying.keep_outlying()
  fusion = transform.chain(
    matrices.on_matrices(keep, otherwise=keep, layout=layout), means.total()
  )

  def init(specs, models):
    if len(models) != 1:
      raise ValueError(
        f'arcee_fusion: takes one expert, got {patterns.listing(models)}; for '
        'several, chain keep_outlying() with total() or another merge'
      )
    return fusion.init(specs, models)

  return fusion._replace(init=init)


@references.cited
def ram(threshold: float | jax.Array = 1e-5) -> transform.MergeTransform:
  """Averages what experts share and keeps what is one's own (RAM).

  The changes of reinforcement learning are sparse and overlap little; a mean
  over all experts would shrink them.

      delta = sum_t changed_t delta_t / max(1, sum_t changed_t)
      changed_t = |delta_t| > threshold

  Args:
    threshold: Absolute change from which an entry counts as changed.

  Returns:
    The merge.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([2.0, 0.0])},
    ...   'code': {'w': jnp.array([4.0, 3.0])},
    ... }
    >>> merging.merge(ram(), {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [3.0, 3.0]

  References:
    Xiangchi Yuan, Dachuan Shi, Chunhui Zhang, Zheyuan Liu, Shenglong Yao,
    Soroush Vosoughi, Wenke Lee. "Behavior Knowledge Merge in Reinforced Agentic
    Models". 2026. arXiv:2601.13572.
  """
  return shared.mean_of_changed(threshold)


@references.cited
def ramplus(
  rate: float | jax.Array = 0.1,
  cap: float | jax.Array = 0.2,
  threshold: float | jax.Array = 1e-5,
  *,
  scope: Literal['global', 'tensor'] = 'global',
) -> transform.MergeTransform:
  """As `ram`, and scales up what is one's own for what sharing costs (RAM+).

      factor_t = 1 + rate min(cap, shared_t / max(1, unique_t))

  Args:
    rate: How much of the loss to make up for; mergekit's `r`.
    cap: Largest ratio of shared to unique entries that counts; mergekit's
      `alpha`. The authors' code has 1.
    threshold: Absolute change from which an entry counts as changed.
    scope: Count over the whole model, as the authors, or within each
      `'tensor'`, as mergekit's `ramplus_tl`. The defaults are mergekit's.

  Returns:
    The merge.

  Raises:
    ValueError: `scope` is unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'w': jnp.array([2.0, 0.0])},
    ...   'code': {'w': jnp.array([4.0, 3.0])},
    ... }
    >>> transform = ramplus(rate=0.5, cap=1.0)
    >>> merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w'].tolist()
    [3.0, 4.5]

  References:
    Xiangchi Yuan, Dachuan Shi, Chunhui Zhang, Zheyuan Liu, Shenglong Yao,
    Soroush Vosoughi, Wenke Lee. "Behavior Knowledge Merge in Reinforced Agentic
    Models". 2026. arXiv:2601.13572.
  """
  return shared.mean_of_shared(rate, cap, threshold, scope=scope)
