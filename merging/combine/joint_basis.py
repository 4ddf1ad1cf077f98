"""Merging in a basis that the changes of all experts share."""

import jax
import jax.numpy as jnp

from merging import transform
from merging.combine import subspace


def in_joint_basis(
  inner: transform.MergeTransform,
  *,
  rank: int | None = None,
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Runs a merge on coordinates in a shared basis of the output side (KnOTS).

  Changes of low-rank adapters seldom move the same entries, and merges entry by
  entry, such as TIES, see little to agree or disagree on. Side by side,

      [delta_1, ..., delta_T] = u diag(s) [v_1, ..., v_T]^T

  they share the basis `u`, and the inner merge gets the coordinates
  `diag(s) v_t^T = u^T delta_t`, of shape `[k, in]`; what it returns is taken
  back by `u`. Its statistics are of the coordinates of all leaves. A linear
  inner merge gives what it would give without a basis. Where singular values
  are equal, the basis, and so any other merge, is not unique.

  Only `u` is needed: for `T in > out` it is found from the triangular factor of
  the wide matrix, which is as accurate and many times quicker. The cost of a
  leaf is one such decomposition of `[out, T in]` for each sweep of the inner
  merge over the leaves, and one for its update.

  Args:
    inner: The merge of coordinates. It sees leaves of shape `[k, in]`, and the
      base in the same basis.
    rank: How many directions `k` to keep at most; static. By default, all
      `min(out, T in)`. For adapters of rank `q`, pass `T q`: the coordinates
      are no more than that, and a density of the inner merge then counts as in
      the authors' code, which drops directions whose singular value is below
      1e-5.
    rank_tol: Coordinates in directions whose singular value is smaller than
      this times the largest are zero.

  Returns:
    The transform of matrices.

  Raises:
    ValueError: `rank` is not positive, or the inner merge needs data for each
      entry of a leaf, which has no coordinates.

  Examples:
    >>> import merging
    >>> basis = in_joint_basis(merging.ties(0.5), rank=2)
    >>> base = {'w': jnp.zeros((3, 3))}
    >>> expert = {'w': jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
    >>> merging.merge(basis, base, {'expert': expert})['w'].round(4).tolist()
    [[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
  """
  if rank is not None and rank < 1:
    raise ValueError(
      f'in_joint_basis: rank is {rank}, expected a positive number of '
      'directions, or None for all'
    )
  if inner.extra:
    raise ValueError(
      f'in_joint_basis: the inner merge needs {inner.extra} for each entry, '
      'and in another basis there are no such entries'
    )

  def reduced(spec, models):
    out, width = spec.shape
    directions = min(out, width * len(models), rank or out)
    return spec._replace(shape=(directions, width))

  def init(specs, models):
    inside = tuple(reduced(spec, models) for spec in specs)
    return rank_tol, inner.init(inside, models)

  return transform.MergeTransform(
    init=init,
    observers=tuple(
      transform.Observer(
        observe=transform.bind(_observe, rank, each.observe),
        finish=transform.bind(transform.finish_at, 1, each.finish),
      )
      for each in inner.observers
    ),
    update=transform.bind(_update, rank, inner.update),
    route=inner.route,
    sources=inner.sources,
  )


def _basis(deltas, rank, rank_tol):
  """Returns orthonormal columns, zero ones where there is no direction."""
  joint = jnp.concatenate(deltas, axis=1)
  if joint.shape[0] < joint.shape[1]:
    joint = jnp.linalg.qr(joint.T, mode='r').T
  u, s, _ = subspace.svd(joint)
  keep = subspace.significant(s, s[0], rank_tol)
  return (u * keep[None])[:, :rank]


def _inside(leaf, rank, rank_tol):
  basis = _basis(leaf.deltas, rank, rank_tol)
  deltas = tuple(subspace.product(basis.T, x) for x in leaf.deltas)
  return basis, leaf._replace(
    base=subspace.product(basis.T, leaf.base), deltas=deltas
  )


def _observe(rank, observe, leaf, state, **extra):
  rank_tol, inner = state
  return observe(_inside(leaf, rank, rank_tol)[1], inner, **extra)


def _update(rank, update, leaf, state, **extra):
  rank_tol, inner = state
  basis, inside = _inside(leaf, rank, rank_tol)
  merged = update(inside, inner, **extra)
  deltas = tuple(subspace.product(basis, x) for x in merged.deltas)
  return leaf._replace(deltas=deltas)
