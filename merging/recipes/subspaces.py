"""Merges that take matrices apart by singular value decomposition.

What a matrix costs is said with each piece. With 8 experts on one core, a
kernel of 768 x 3072 took 0.5 s by `iso_c`, 3.5 s by `tsv` and `iso_cts` and 8 s
by `opcm`; `knots(ties())` took 6 s with 768 outputs, and 49 s with 3072. LAPACK
on several threads can be many times slower than on one if other work competes
for the cores; `OPENBLAS_NUM_THREADS=1` avoids that.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import jax

from merging import matrices
from merging import references
from merging import routing
from merging import transform
from merging.combine import joint_basis
from merging.combine import sequential
from merging.combine import subspace
from merging.deltas import scale as scaling

Leaves = Callable[[str], bool] | str
Layout = matrices.Layout | Mapping[str, matrices.Layout]


@references.cited
def tsv(
  scale: float | jax.Array = 1.0,
  *,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'mean',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Joins the leading singular vectors of all experts, made orthogonal (TSV-M).

      delta = scale * on_matrices(join_subspaces(), otherwise='mean')

  Of each matrix, each of `T` experts keeps `min(out, in) // T` singular
  triples; side by side, their vectors are made orthonormal. One expert alone is
  returned, to rounding. See `join_subspaces` for the formula and the cost.
  Equal singular values at the cut leave open which direction is kept.

  Args:
    scale: Scaling coefficient, of all leaves. The paper finds that 1 needs no
      validation; the authors' code tries 0, 0.1, ..., 3.
    leaves: Which leaves with two axes are matrices (see `on_matrices`). The
      authors take all, also embeddings, but for CLIP's `text_projection`:
      `'^((?!text_projection).)*$'`.
    otherwise: What happens to all other leaves.
    rank_tol: Relative tolerance below which a singular value is zero and its
      arbitrary vectors do not take part; the authors' code leaves out none
      (0). It matters for low-rank experts, and for equal ones.

  Returns:
    The merge.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([4.0, 1.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 2.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(tsv(), base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[4.0, 0.0], [0.0, 2.0]]

  References:
    Antonio Andrea Gargiulo, Donato Crisostomi, Maria Sofia Bucarelli, Simone
    Scardapane, Fabrizio Silvestri, Emanuele Rodolà. "Task Singular Vectors:
    Reducing Task Interference in Model Merging". CVPR 2025. arXiv:2412.00081.
  """
  merge = subspace.join_subspaces(rank_tol=rank_tol)
  return transform.chain(
    matrices.on_matrices(merge, otherwise, leaves=leaves), scaling.scale(scale)
  )


@references.cited
def r_tsvm(
  reweigh: transform.MergeTransform,
  rank: subspace.RankRule,
  scale: float | jax.Array = 1.0,
  *,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'mean',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Makes `tsv` of weighted changes, with ranks by a rule (frame of R-TSVM).

      chain(reweigh, join_subspaces(rank)), in matrices

  R-TSVM is `tsv` with weights that tell outliers from redundant parameters, and
  with more directions where a matrix is less sparse. This is the frame and not
  the method: its abstract names the two steps, and their formulas could not be
  read, so that both have to be given, and results are not the paper's.

  Args:
    reweigh: What happens to the changes of a matrix first, in a frame of
      `[out, in]`; it has to leave one delta for each expert.
    rank: How many directions an expert gets, from its weighted change and its
      singular values (see `join_subspaces`).
    scale: Scaling coefficient.
    leaves: See `tsv`.
    otherwise: See `tsv`.
    rank_tol: See `tsv`.

  Returns:
    The merge.

  Examples:
    Entries beyond three standard deviations are weighed up, and an expert gets
    its equal share of directions times the fraction of entries it changed:

    >>> import jax.numpy as jnp, merging
    >>> def stress_outliers(delta):
    ...   return jnp.where(jnp.abs(delta) > 3 * jnp.std(delta), 2, 1) * delta
    >>> def by_density(delta, singular_values):
    ...   share = singular_values.size / 2  # Of two experts.
    ...   return jnp.ceil(share * jnp.mean(delta != 0, dtype=jnp.float32))
    >>> transform = r_tsvm(merging.map_deltas(stress_outliers), by_density)
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([4.0, 1.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 2.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(transform, base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[4.0, 0.0], [0.0, 2.0]]

  References:
    Jinluan Yang, Dingnan Jin, Anke Tang, Li Shen, Didi Zhu, Zhengyu Chen,
    Daixin Wang, Qing Cui, Zhiqiang Zhang, Jun Zhou, Fei Wu, Kun Kuang. "Mix
    Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness
    of Large Language Model via Model Merging". 2025. arXiv:2502.06876.
    Antonio Andrea Gargiulo, Donato Crisostomi, Maria Sofia Bucarelli, Simone
    Scardapane, Fabrizio Silvestri, Emanuele Rodolà. "Task Singular Vectors:
    Reducing Task Interference in Model Merging". CVPR 2025. arXiv:2412.00081.
  """
  merge = transform.chain(
    reweigh, subspace.join_subspaces(rank, rank_tol=rank_tol)
  )
  return transform.chain(
    matrices.on_matrices(merge, otherwise, leaves=leaves), scaling.scale(scale)
  )


@references.cited
def iso_c(
  scale: float | jax.Array = 1.0,
  *,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'mean',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Adds changes and gives the sum one singular value for all (Iso-C).

      delta = scale * on_matrices(isotropic(), otherwise='mean')

  See `isotropic` for the formula and the cost.

  Args:
    scale: Scaling coefficient, of all leaves. The authors search 0, 0.1, ..., 3
      on validation data and find, for ViT-B/32, 1.3, 1.0 and 0.9 with 8, 14 and
      20 tasks.
    leaves: See `tsv`.
    otherwise: See `tsv`.
    rank_tol: Relative tolerance below which a singular value is zero, and is
      not raised to the mean of the others; the authors' code raises all (0).

  Returns:
    The merge.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([4.0, 1.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 1.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(iso_c(), base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[3.0, 0.0], [0.0, 3.0]]

  References:
    Daniel Marczak, Simone Magistri, Sebastian Cygert, Bartłomiej Twardowski,
    Andrew D. Bagdanov, Joost van de Weijer. "No Task Left Behind: Isotropic
    Model Merging with Common and Task-Specific Subspaces". ICML 2025.
    arXiv:2502.04959.
  """
  merge = subspace.isotropic(rank_tol=rank_tol)
  return transform.chain(
    matrices.on_matrices(merge, otherwise, leaves=leaves), scaling.scale(scale)
  )


@references.cited
def iso_cts(
  scale: float | jax.Array = 1.0,
  common: float = 0.8,
  *,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'mean',
  layout: Layout = 'in_out',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Flattens the spectrum of common and of each expert's directions (Iso-CTS).

      delta = scale * on_matrices(isotropic_split(common))

  See `isotropic_split` for the formula and the cost.

  Args:
    scale: Scaling coefficient, of all leaves. The authors search 0, 0.1, ..., 3
      on validation data and find, for ViT-B/32, 1.5, 1.2 and 1.1 with 8, 14 and
      20 tasks.
    common: Fraction of the directions for the sum of the changes; static. 1 is
      `iso_c`.
    leaves: See `tsv`.
    otherwise: See `tsv`.
    layout: How the model stores matrices (see `on_matrices`): the projection is
      on their output side.
    rank_tol: See `iso_c`.

  Returns:
    The merge.

  Raises:
    ValueError: `common` is not a fraction.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([4.0, 1.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 1.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(iso_cts(), base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[3.0, 0.0], [0.0, 3.0]]

  References:
    Daniel Marczak, Simone Magistri, Sebastian Cygert, Bartłomiej Twardowski,
    Andrew D. Bagdanov, Joost van de Weijer. "No Task Left Behind: Isotropic
    Model Merging with Common and Task-Specific Subspaces". ICML 2025.
    arXiv:2502.04959.
  """
  merge = subspace.isotropic_split(common, rank_tol=rank_tol)
  return transform.chain(
    matrices.on_matrices(merge, otherwise, leaves=leaves, layout=layout),
    scaling.scale(scale),
  )


@references.cited
def knots(
  inner: transform.MergeTransform,
  *,
  rank: int | None = None,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'mean',
  layout: Layout = 'in_out',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Runs a merge on coordinates in a basis that all experts share (KnOTS).

      on_matrices(in_joint_basis(inner, rank=rank), otherwise='mean')

  Made for low-rank adapters. KnOTS-TIES is `knots(ties(0.2, scale))`, which
  trims over all matrices together, and KnOTS-DARE-TIES `knots(dare_ties(rate,
  0.2, scale, key=key))`; the authors search the scale, from 0.6 in their
  configuration, and densities from 0.1 to 1. `knots(task_arithmetic(scale))` is
  task arithmetic of the matrices. See `in_joint_basis` for the formula, the
  cost, and where the basis is not unique.

  The authors make the bias of a layer one more column of its matrix, and a
  norm's scale a diagonal matrix; here both are other leaves. They leave these
  out or add them, by an option: `otherwise='base'` or `'sum'`.

  Args:
    inner: The merge of coordinates. A scale in it does not reach other leaves.
    rank: The most directions to keep of a matrix; for adapters of rank `q`,
      pass experts times `q` (see `in_joint_basis`).
    leaves: See `tsv`.
    otherwise: See `tsv`.
    layout: How the model stores matrices (see `on_matrices`): the basis is of
      their output side.
    rank_tol: Relative tolerance below which a singular value is zero, and its
      direction dropped. The authors' 1e-5 is absolute.

  Returns:
    The merge.

  Raises:
    ValueError: See `in_joint_basis`.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([4.0, 1.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 2.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(knots(merging.ties(0.2)), base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[4.0, 0.0], [0.0, 2.0]]

  References:
    George Stoica, Pratik Ramesh, Boglarka Ecsedi, Leshem Choshen, Judy Hoffman.
    "Model merging with SVD to tie the Knots". ICLR 2025. arXiv:2410.19735.
  """
  merge = joint_basis.in_joint_basis(inner, rank=rank, rank_tol=rank_tol)
  return matrices.on_matrices(merge, otherwise, leaves=leaves, layout=layout)


@references.cited
def opcm(
  threshold: float | jax.Array = 0.5,
  order: Sequence[str] | None = None,
  *,
  leaves: Leaves = '',
  otherwise: routing.Otherwise = 'sum',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Adds experts one after another, projected off what is merged (OPCM).

      at_mean_norm(on_matrices(orthogonal_total(threshold, order), 'sum'))

  The published algorithm scales the whole model after each expert, and undoes
  it before the next. A projection does not depend on the scale, so these cancel
  but for the last, to the mean norm of the experts' changes. `continual_opcm`
  is the same one expert at a time, in constant memory. The cost is that of
  `orthogonal_total` twice, for the norm and for the result.

  Args:
    threshold: Share of the singular values of the merged change whose
      directions the next expert may not touch, in [0, 1]. The paper's is 0.5.
      At exactly 1 all directions are kept free (the authors' code, which looks
      for the first beyond the threshold, then finds none and frees none).
    order: Names of the experts, first to last; by default sorted. The authors
      average over random orders.
    leaves: Which leaves with two axes are matrices (see `on_matrices`). The
      authors project the weights of linear layers, but not embeddings; name
      what distinguishes them, as in `leaves='kernel$'`.
    otherwise: What happens to all other leaves: they add up. (So they do in the
      authors' code, but for parameters that belong to no submodule, such as
      CLIP's class embedding, which it takes from the first expert alone.)
    rank_tol: Relative tolerance below which a singular value of the merged
      change is zero and its direction arbitrary; the authors' code takes the
      diagonal out there, too (0).

  Returns:
    The merge. Its `init` raises `ValueError` if `order` is not an order of the
    experts.

  Raises:
    ValueError: `threshold` is not a fraction.

  Examples:
    >>> import jax.numpy as jnp, merging
    >>> experts = {
    ...   'math': {'kernel': jnp.diag(jnp.array([15.0, 0.0]))},
    ...   'code': {'kernel': jnp.diag(jnp.array([0.0, 20.0]))},
    ... }
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merged = merging.merge(opcm(), base, experts)
    >>> merged['kernel'].round(4).tolist()
    [[10.5, 0.0], [0.0, 14.0]]

  References:
    Anke Tang, Enneng Yang, Li Shen, Yong Luo, Han Hu, Lefei Zhang, Bo Du,
    Dacheng Tao. "Merging on the Fly Without Retraining: A Sequential Approach
    to Scalable Continual Model Merging". NeurIPS 2025. arXiv:2501.09522.
  """
  sequential.check_threshold('opcm', threshold)
  merge = sequential.orthogonal_total(threshold, order, rank_tol=rank_tol)
  return sequential.at_mean_norm(
    matrices.on_matrices(merge, otherwise, leaves=leaves)
  )
