"""Merges that solve, leaf by leaf and without data, for the least interference.

They are for linear layers, and by default leave out matrices that are looked up
rather than multiplied: embeddings, positions, and heads over a vocabulary.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Literal

import jax

from merging import matrices
from merging import references
from merging import routing
from merging import transform
from merging.combine import interference
from merging.combine import mean as means
from merging.combine import reconcile as reconciling
from merging.deltas import scale as scaling

# All but embeddings and heads, by a word of the path.
LINEAR_LAYERS = (
  r'(?i)^(?!(.*[/.])?('
  r'\w*embeddings?|\w*embed|embed_\w*|position(s|al\w*)?(_\w*)?|wte|wpe|lm_head'
  r')([/.]|$))'
)

Leaves = Callable[[str], bool] | str
Layout = matrices.Layout | Mapping[str, matrices.Layout]

_STRENGTHS = {'exponential': 1300.0, 'tikhonov': 0.01, 'landweber': 150}
_LEARNING_RATES = {'full': 1e-5, 'lora': 1e-4}


@references.cited
def wudi(
  steps: int | jax.Array = 300,
  learning_rate: float | jax.Array = 1e-5,
  *,
  scale: float | jax.Array = 1.0,
  leaves: Leaves = LINEAR_LAYERS,
  otherwise: routing.Otherwise = 'base',
  layout: Layout = 'in_out',
) -> transform.MergeTransform:
  """Descends from the sum of task vectors to where they interfere less (WUDI).

  Without data, the rows of a task vector stand for the inputs of its expert.
  For each linear layer, from `tau = sum_t tau_t`, Adam minimises

      sum_t |(tau - tau_t) tau_t^T|_F^2 / |tau_t|_F^2

  The minimum itself is worse than a point on the way: steps and learning rate
  are the regulariser. Adam moves an entry by about the learning rate in a step,
  however small the task vectors are, so the result does not scale with them: on
  models whose task vectors are larger or smaller than those of the paper,
  search the learning rate, or take `aswudi`, which has no such setting.

  The gradient is `2 (tau C - D)`, with `C = sum_t tau_t^T tau_t / |tau_t|_F^2`
  and `D = sum_t tau_t tau_t^T tau_t / |tau_t|_F^2` found once; a step costs one
  product `[out, in] x [in, in]`, whatever the number of experts. The loop
  cannot be differentiated in reverse.

  Args:
    steps: Number of steps.
    learning_rate: Of Adam.
    scale: Coefficient of the merged task vector; the method has none.
    leaves: Which matrices are linear layers (see `on_matrices`). The authors
      take those of attention and of the perceptrons.
    otherwise: What happens to all other leaves. The authors leave them at the
      base; FusionBench averages them, and takes every matrix (`leaves=''`).
    layout: How the model stores matrices (see `on_matrices`).

  Returns:
    The merge.

  Raises:
    ValueError: A setting is out of range, or an option unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'kernel': jnp.zeros((2, 1))}
    >>> experts = {
    ...   'math': {'kernel': jnp.array([[1.0], [0.0]])},
    ...   'code': {'kernel': jnp.array([[1.0], [1.0]])},
    ... }
    >>> transform = merging.wudi(steps=20, learning_rate=0.1)
    >>> merged = merging.merge(transform, base, experts)
    >>> merged['kernel'].round(1)
    Array([[1. ],
           [0.8]], dtype=float32)

  References:
    Runxi Cheng, Feng Xiong, Yongxian Wei, Wanyun Zhu, Chun Yuan. "Whoever
    Started the Interference Should End It: Guiding Data-Free Model Merging via
    Task Vectors". ICML 2025. arXiv:2503.08099.
  """
  _check_descent('wudi', steps, learning_rate)
  inner = interference.descend(steps, learning_rate)
  return _on_linear_layers(inner, scale, leaves, otherwise, layout)


@references.cited
def swudi(
  filter: interference.Filter = 'exponential',
  strength: float | jax.Array | None = None,
  *,
  rank: float | jax.Array | Literal['adaptive'] = 0.65,
  start: interference.Start = 'sum',
  scale: float | jax.Array = 1.0,
  leaves: Leaves = LINEAR_LAYERS,
  otherwise: routing.Otherwise = 'mean',
  layout: Layout = 'in_out',
) -> transform.MergeTransform:
  """Solves for the interference of `wudi`, less where it is noise (SWUDI).

  What makes descent better than the minimum is that it hardly moves in
  directions of small eigenvalues. Here that is said, not left to an optimiser.
  With the eigenvalues `l_k`, largest first, and eigenvectors `V` of `C` (see
  `wudi`), the minimum `D C^+` and the start `tau_0`,

      tau = tau_0 + (D C^+ - tau_0) V diag(f(l_k)) V^T,  f = 0 for k > K

  one eigendecomposition of `[in, in]` for each layer. The result is in
  proportion to the task vectors. Settings of the authors:

  * SWUDI: the default. They found time and rank on the benchmark that they
    report: 1800 and 0.65 for ViT-B/16, 300 and 0.85 for Llama-3.2-3B.
  * its soft form, without truncation: `swudi('exponential', 300, rank=1.0)`.
  * SWUDI-A: `aswudi()`, no setting at all.
  * the exact minimum, which is worse: `swudi('exact', rank=1.0)`.

  Eigenvalues below `16 eps` of the largest are rounding errors of zero and no
  directions here; the authors' code raises them to 1e-8.

  Args:
    filter: How far to go, as a function `f` of the eigenvalue `l`.
      `'exponential'`: `1 - exp(-strength l)`, gradient descent in steps that
      are infinitely small. `'landweber'`: `1 - (1 - 0.9 l / l_1)^strength`,
      gradient descent in that many steps. `'tikhonov'`: `l / (l + strength)`,
      a penalty on the way. `'exact'`: 1.
    strength: Parameter of the filter: by default 1300, 150 and 0.01.
    rank: How many directions to keep: a fraction of `in`, rounded up, or
      `'adaptive'`, `K = (sum_k sqrt(l_k))^2 / sum_k l_k`, rounded up.
    start: Where to begin: the `'sum'` of the task vectors; their `'mean'`, if
      their sum is too far for the scale to be 1, as for large language models;
      or `'zero'`, and the directions not kept stay at the base.
    scale: Coefficient of the merged task vector, with the sum as start 0.1 to
      0.2 for multimodal language models.
    leaves: See `wudi`.
    otherwise: See `wudi`; the authors average.
    layout: See `wudi`.

  Returns:
    The merge.

  Raises:
    ValueError: A setting is out of range, or an option unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'kernel': jnp.zeros((2, 1))}
    >>> experts = {
    ...   'math': {'kernel': jnp.array([[1.0], [0.0]])},
    ...   'code': {'kernel': jnp.array([[1.0], [1.0]])},
    ... }
    >>> transform = merging.swudi('exact', rank=1.0)
    >>> merged = merging.merge(transform, base, experts)
    >>> merged['kernel'].round(3).tolist()
    [[1.0], [1.0]]

  References:
    Yongxian Wei, Runxi Cheng, Xingxuan Zhang, Li Shen, Chun Yuan, Peng Cui,
    Dacheng Tao. "Closed-Form Spectral Regularization for Multi-Task Model
    Merging". 2026. arXiv:2606.07289.
    Runxi Cheng, Feng Xiong, Yongxian Wei, Wanyun Zhu, Chun Yuan. "Whoever
    Started the Interference Should End It: Guiding Data-Free Model Merging via
    Task Vectors". ICML 2025. arXiv:2503.08099.
  """
  if filter == 'exact' and strength is not None:
    raise ValueError(
      f"swudi: strength is {strength}, but the filter 'exact' takes none; "
      'leave it out, or choose another filter'
    )
  if strength is None:
    strength = _STRENGTHS.get(filter, 0.0)
  elif not isinstance(strength, jax.core.Tracer) and strength < 0:
    raise ValueError(f'swudi: strength is {strength}, expected at least 0')
  known = not isinstance(rank, str | jax.core.Tracer)
  if known and not 0 < rank <= 1:
    raise ValueError(
      f"swudi: rank is {rank}, expected a fraction in (0, 1], or 'adaptive'"
    )
  inner = interference.filtered(filter, strength, rank, start)
  return _on_linear_layers(inner, scale, leaves, otherwise, layout)


def aswudi(
  *,
  start: interference.Start = 'sum',
  scale: float | jax.Array = 1.0,
  leaves: Leaves = LINEAR_LAYERS,
  otherwise: routing.Otherwise = 'mean',
  layout: Layout = 'in_out',
) -> transform.MergeTransform:
  """Solves for the interference in as many directions as count (SWUDI-A).

  The rank of each layer follows from its spectrum, and there is nothing to
  tune; that this rule is the one was found on the authors' benchmark. For full
  fine-tuning of language models their code recommends another, a threshold on
  eigenvalues, which is not here: its formula differs from file to file.

  Args:
    start: See `swudi`.
    scale: See `swudi`.
    leaves: See `wudi`.
    otherwise: See `wudi`; the authors average.
    layout: See `wudi`.

  Returns:
    The merge, `swudi('exact', rank='adaptive')`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'kernel': jnp.zeros((2, 1))}
    >>> experts = {
    ...   'math': {'kernel': jnp.array([[1.0], [0.0]])},
    ...   'code': {'kernel': jnp.array([[1.0], [1.0]])},
    ... }
    >>> merged = merging.merge(merging.aswudi(), base, experts)
    >>> merged['kernel'].round(3).tolist()
    [[1.0], [1.0]]
  """
  return swudi(
    'exact',
    rank='adaptive',
    start=start,
    scale=scale,
    leaves=leaves,
    otherwise=otherwise,
    layout=layout,
  )


@references.cited
def optmerge(
  tuning: interference.Tuning = 'full',
  steps: int | jax.Array = 300,
  learning_rate: float | jax.Array | None = None,
  *,
  scale: float | jax.Array = 1.0,
  leaves: Leaves = LINEAR_LAYERS,
  otherwise: routing.Otherwise = 'base',
  layout: Layout = 'in_out',
) -> transform.MergeTransform:
  """Minimises the interference of task vectors cleaned of noise (OptMerge).

  As `wudi`, with what singular values below the largest `k` hold taken for
  noise, `k = min(out, in) // T`. With `tau_t = U S V^T`, for each linear layer,

      sum_t |(tau - target_t) (S_k V_k^T)^T|_F^2 / |tau_t|_F^2

  For experts with all weights tuned, a target is the mean of all task vectors
  plus the `k` leading directions of what `tau_t` differs by; Adam descends from
  the sum. For experts with low-rank adapters, it is the `k` leading directions
  of `tau_t`; descent with momentum 0.9 begins at the mean, for Adam would move
  along directions in which there is next to nothing. Both are as in the
  authors' scripts, for InternVL and for Qwen2-VL. Layers with fewer outputs or
  inputs than there are experts have `k = 0` and stay where they start.

  Besides the descent of `wudi`, a layer costs a singular value decomposition
  for each expert, or two if `tuning` is `'full'`.

  Args:
    tuning: How the experts were tuned, `'full'` or with `'lora'`.
    steps: Number of steps.
    learning_rate: Of the optimiser; by default 1e-5 for `'full'`, 1e-4 for
      `'lora'`. For `'full'` see `wudi` on what it means.
    scale: Coefficient of the merged task vector. The authors' script for
      InternVL, `'full'`, has 0.1, that for Qwen2-VL and their later code 1.
    leaves: See `wudi`. The authors take all matrices of the language model but
      embeddings and the head; name those of a vision tower to leave them out.
    otherwise: See `wudi`; the authors leave norms and biases at the base.
    layout: See `wudi`.

  Returns:
    The merge.

  Raises:
    ValueError: A setting is out of range, or an option unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> experts = {
    ...   'math': {'kernel': jnp.array([[2.0, 0.0], [0.0, 0.0]])},
    ...   'code': {'kernel': jnp.array([[0.0, 0.0], [0.0, 4.0]])},
    ... }
    >>> transform = merging.optmerge('lora', learning_rate=0.1)
    >>> merging.merge(transform, base, experts)['kernel'].round(2).tolist()
    [[2.0, 0.0], [0.0, 4.0]]

  References:
    Yongxian Wei, Runxi Cheng, Weike Jin, Enneng Yang, Li Shen, Lu Hou, Sinan
    Du, Chun Yuan, Xiaochun Cao, Dacheng Tao. "OptMerge: Unifying Multimodal LLM
    Capabilities and Modalities via Model Merging". ICLR 2026. arXiv:2505.19892.
  """
  if learning_rate is None:
    learning_rate = _LEARNING_RATES.get(tuning, 0.0)
  _check_descent('optmerge', steps, learning_rate)
  inner = interference.descend_truncated(tuning, steps, learning_rate)
  return _on_linear_layers(inner, scale, leaves, otherwise, layout)


def doge(
  scale: float | jax.Array = 0.07,
  density: float | jax.Array = 0.3,
  *,
  steps: int | jax.Array = 400,
  learning_rate: float | jax.Array = 1e-4,
  subspace: int = 6,
  leaves: Leaves = LINEAR_LAYERS,
  otherwise: routing.Otherwise = 'base',
  layout: Layout = 'in_out',
) -> transform.MergeTransform:
  """Adds task vectors with a change that lessens their conflicts (DOGE).

  Each task vector counts with `lambda_t = scale / |tau_t|_F` in each layer. One
  change of all of them is sought, such that what the merge does to the rows of
  an expert is what the expert did:

      sum_t sum_rows <tau_t, tau_t - sum_s lambda_s (tau_s + change)>^2

  Adam minimises it, with gradients freed of what experts share: of the joined
  `min(out, in) // T` leading left singular vectors of each expert, the
  `min(out, in) // subspace` leading ones. The projection is of the gradient, as
  the authors' code has it; Adam's step then is not exactly free of them. Last,

      tau = sum_t lambda_t (tau_t + change) where |tau_t| is among the largest

  of all selected matrices, as the task vectors were. An entry that an expert
  did not change is never among them; in the authors' code it is, if fewer than
  `density` of all are not zero. Directions of a task vector without a singular
  value, as those of low-rank adapters, are not shared with anything here; there
  they are whatever the decomposition returned.

  A layer costs a singular value decomposition for each expert and one of
  `[out, min(out, in)]`; a step, two passes over the task vectors. As in `wudi`,
  the learning rate is a distance, and is to be searched for models of another
  scale.

  Args:
    scale: Norm of each task vector in the sum of a layer.
    density: Fraction of each task vector to keep (see `trim`).
    steps: Number of steps.
    learning_rate: Of Adam.
    subspace: What part of the directions is shared: 1 in 6.
    leaves: See `wudi`. The authors take all matrices of the encoder.
    otherwise: See `wudi`; the authors leave them at the base.
    layout: See `wudi`.

  Returns:
    The merge, on linear layers `chain(reconcile(...), total())`.

  Raises:
    ValueError: A setting is out of range, or an option unknown.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> experts = {
    ...   'math': {'kernel': jnp.array([[2.0, 0.0], [0.0, 0.0]])},
    ...   'code': {'kernel': jnp.array([[0.0, 0.0], [0.0, 4.0]])},
    ... }
    >>> merged = merging.merge(merging.doge(1.0, steps=0), base, experts)
    >>> merged['kernel'].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  _check_descent('doge', steps, learning_rate)
  if subspace < 1:
    raise ValueError(f'doge: subspace is {subspace}, expected at least 1')
  inner = reconciling.reconcile(
    scale,
    density,
    steps=steps,
    learning_rate=learning_rate,
    subspace=subspace,
  )
  return matrices.on_matrices(
    transform.chain(inner, means.total()),
    otherwise,
    leaves=leaves,
    layout=layout,
  )


def _on_linear_layers(inner, scale, leaves, otherwise, layout):
  return transform.chain(
    matrices.on_matrices(inner, otherwise, leaves=leaves, layout=layout),
    scaling.scale(scale),
  )


def _check_descent(caller, steps, learning_rate):
  if not isinstance(steps, jax.core.Tracer) and (steps < 0 or steps % 1):
    raise ValueError(f'{caller}: steps is {steps}, expected 0, 1, 2, ...')
  if not isinstance(learning_rate, jax.core.Tracer) and learning_rate < 0:
    raise ValueError(
      f'{caller}: learning_rate is {learning_rate}, expected at least 0'
    )
