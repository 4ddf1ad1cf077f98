"""Combining changes by their singular vectors.

All of it works on one matrix in a frame of `[out, in]`; see `on_matrices`. A
singular vector whose singular value is zero but for rounding has an arbitrary
direction, and methods that whiten or flatten a spectrum would blow it up to
full size. Directions are therefore left out below a relative tolerance,
`rank_tol`; the published codes leave out nothing, as `rank_tol=0` does but for
singular values that are exactly zero.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import transform

RankRule = Callable[[jax.Array, jax.Array], jax.Array]

# Well above what float32 leaves of a zero, well below what training does.
RANK_TOL = 1e-5


class Svd(NamedTuple):
  """Thin factors of a matrix, `x = u diag(s) vt`.

  Attributes:
    u: Left singular vectors, `f32[out, r]`.
    s: Singular values, `f32[r]`, descending.
    vt: Right singular vectors, `f32[r, in]`.
  """

  u: jax.Array
  s: jax.Array
  vt: jax.Array


def svd(x: jax.Array) -> Svd:
  """Returns the thin singular value decomposition of a matrix.

  Args:
    x: `f32[out, in]`.

  Returns:
    The factors, `r = min(out, in)`.

  Examples:
    >>> factors = svd(jnp.diag(jnp.array([1.0, 3.0])))
    >>> factors.s.tolist()
    [3.0, 1.0]
  """
  if x.shape[0] < x.shape[1]:  # LAPACK is quicker on tall matrices.
    u, s, vt = jnp.linalg.svd(x.T, full_matrices=False)
    return Svd(vt.T, s, u.T)
  return Svd(*jnp.linalg.svd(x, full_matrices=False))


def product(*factors: jax.Array) -> jax.Array:
  """Returns a product of matrices, first to last, in full float32.

  Examples:
    >>> product(jnp.eye(2), jnp.ones((2, 1))).tolist()
    [[1.0], [1.0]]
  """
  multiply = functools.partial(jnp.matmul, precision='highest')
  return functools.reduce(multiply, factors)


def significant(
  s: jax.Array, largest: jax.Array, rank_tol: float | jax.Array
) -> jax.Array:
  """Tells which singular values are not zero but for rounding.

  Args:
    s: Singular values, `f32[r]`.
    largest: What they are compared with, `f32[]`.
    rank_tol: Relative tolerance; 0 leaves out exact zeros only.

  Returns:
    `s > rank_tol * largest`, as `f32[r]`.

  Examples:
    >>> s = jnp.array([1.0, 1e-3, 1e-8])
    >>> significant(s, s[0], 1e-5).tolist()
    [1.0, 1.0, 0.0]
  """
  return (s > jnp.asarray(rank_tol, s.dtype) * largest).astype(s.dtype)


def orthonormal(
  x: jax.Array, rank_tol: float | jax.Array = RANK_TOL
) -> jax.Array:
  """Returns the nearest matrix whose columns are orthonormal (polar factor).

      x = p diag(d) q^T,   nearest = p q^T

  Columns that depend on one another have no single nearest frame; over the
  directions that are there (`d > rank_tol max(d)`) there is one, the partial
  isometry returned here, in which equal columns stay equal.

  Args:
    x: `f32[rows, columns]`.
    rank_tol: Relative tolerance; 0 takes all of `p` and `q`, as published codes
      do, and then completes dependent columns arbitrarily.

  Returns:
    `f32[rows, columns]`.

  Examples:
    >>> orthonormal(jnp.array([[2.0, 0.0], [0.0, 0.5]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  p, d, qt = svd(x)
  return product(p * significant(d, d[0], rank_tol)[None], qt)


def join_subspaces(
  rank: RankRule | None = None, *, rank_tol: float | jax.Array = RANK_TOL
) -> transform.MergeTransform:
  """Joins the leading singular vectors of all experts, made orthogonal (TSV-M).

  Singular vectors of different experts that are not orthogonal interfere in a
  sum. With `u_t, s_t, v_t` the first `k` singular triples of expert `t`,

      u = orthonormal([u_1, ..., u_T]),  s = [s_1, ..., s_T],
      v = orthonormal([v_1, ..., v_T]),  delta = u diag(s) v^T

  The cost of a leaf is one thin singular value decomposition for each expert
  and two of `[out, r]` and `[in, r]`, `r = min(out, in)`.

  Args:
    rank: How many directions each expert gets. By default an equal share of
      `r // T`, and where there are more experts than directions one each (for
      which the authors' code has none, and drops the leaf's change). Otherwise
      a function at the top level of a module, `(delta f32[out, in], singular
      values f32[r]) -> i32[]`, for each expert; if the numbers add up to more
      than `r`, all are scaled down in proportion.
    rank_tol: Singular values smaller than this times the largest do not count.

  Returns:
    The transform of matrices.

  Examples:
    >>> a, b = (
    ...   jnp.array([[4.0, 0.0], [0.0, 1.0]]),
    ...   jnp.array([[0.0, 0], [0, 2]]),
    ... )
    >>> leaf = transform.Leaf(jnp.zeros((2, 2)), (a, b), index=0)
    >>> merge = join_subspaces()
    >>> (delta,) = merge.update(leaf, merge.init((), ())).deltas
    >>> delta.round(4).tolist()
    [[4.0, 0.0], [0.0, 2.0]]
  """
  if rank is not None and not callable(rank):
    raise TypeError(
      f'join_subspaces: rank is {rank!r}, expected a function of a '
      'delta and its singular values, or None for an equal share'
    )
  return transform.combine_deltas(
    transform.bind(_join_subspaces, rank), rank_tol
  )


def _join_subspaces(rank, deltas, rank_tol):
  parts = [_there(svd(delta), rank_tol) for delta in deltas]
  if rank is None:
    share = max(1, min(deltas[0].shape) // len(deltas))
    columns = [(u[:, :share], s[:share], vt[:share].T) for u, s, vt in parts]
    u, s, v = _side_by_side(columns)
  else:
    wanted = [
      rank(delta, part.s) for delta, part in zip(deltas, parts, strict=True)
    ]
    u, s, v = _first(parts, jnp.stack(wanted))
  return _joined(u, v, s, rank_tol)


def _there(factors: Svd, rank_tol) -> Svd:
  """Zeroes the directions that are not significant."""
  u, s, vt = factors
  keep = significant(s, s[0], rank_tol)
  return Svd(u * keep[None], s * keep, vt * keep[:, None])


def _side_by_side(columns):
  return tuple(
    jnp.concatenate(each, axis=-1) for each in zip(*columns, strict=True)
  )


def _joined(u, v, s, rank_tol):
  u, v = orthonormal(u, rank_tol), orthonormal(v, rank_tol)
  return product(u * s[None], v.T)


def _first(parts: Sequence[Svd], counts):
  """Takes the first `counts[t]` triples of each expert, side by side.

  The numbers may be traced, so there are always `r` columns, the last ones
  zero, and each looks up which expert's it is.
  """
  u, s, vt = (jnp.stack(each) for each in zip(*parts, strict=True))
  size = s.shape[1]
  counts = jnp.clip(counts.astype(jnp.int32), 0, size)
  ends = jnp.cumsum(counts * size // jnp.maximum(jnp.sum(counts), size))
  column = jnp.arange(size, dtype=jnp.int32)
  expert = jnp.sum(ends[:, None] <= column[None], axis=0)
  used = (expert < len(parts)).astype(s.dtype)
  expert = jnp.minimum(expert, len(parts) - 1)
  place = column - jnp.where(expert > 0, ends[expert - 1], 0)
  place = jnp.minimum(place, size - 1)
  u, v = u[expert, :, place].T, vt[expert, place].T
  return u * used[None], s[expert, place] * used, v * used[None]


def isotropic(
  *, rank_tol: float | jax.Array = RANK_TOL
) -> transform.MergeTransform:
  """Adds changes and gives the sum one singular value for all (Iso-C).

  A sum is dominated by what experts share; with a flat spectrum the directions
  of single experts weigh as much.

      sum_t delta_t = u diag(s) v^T,   delta = mean(s) u v^T

  The mean is over the directions that are there (see `rank_tol`), so that the
  sum of singular values stays the same. The cost of a leaf is one thin singular
  value decomposition.

  Args:
    rank_tol: Singular values smaller than this times the largest are not
      raised to the mean: the sum of a few low-rank adapters has a low rank, and
      its other directions are arbitrary. With 0 they are, as in the authors'
      code.

  Returns:
    The transform of matrices.

  Examples:
    >>> leaf = transform.Leaf(
    ...   jnp.zeros((2, 2)), (jnp.diag(jnp.array([4.0, 2.0])),), index=0
    ... )
    >>> merge = isotropic()
    >>> merge.update(leaf, merge.init((), ())).deltas[0].round(4).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
  """
  return transform.combine_deltas(_isotropic, rank_tol)


def _isotropic(deltas, rank_tol):
  u, s, vt = svd(transform.add_deltas(deltas))
  keep = significant(s, s[0], rank_tol)
  return _flat(s, keep) * product(u * keep[None], vt)


def _flat(s, keep):
  """The mean of the singular values that are kept."""
  return jnp.sum(s * keep) / jnp.maximum(jnp.sum(keep), 1)


def isotropic_split(
  common: float = 0.8, *, rank_tol: float | jax.Array = RANK_TOL
) -> transform.MergeTransform:
  """Like `isotropic`, with directions reserved for each expert (Iso-CTS).

  Of `r = min(out, in)` directions, the sum of the changes gets the first
  `c = common r`, rounded so that the rest is a multiple of `T`. What expert `t`
  changes beyond them, `(1 - u_c u_c^T) delta_t`, gives its first `(r - c) / T`
  directions. All are made orthonormal and get the mean singular value:

      u = orthonormal([u_1, ..., u_T, u_c]),  v likewise,
      delta = mean(s_1, ..., s_T, s_c) u v^T

  The projection is on the output side, so the frame matters. The cost of a leaf
  is one thin singular value decomposition for each expert, one for their sum
  and two of `[out, r]` and `[in, r]`.

  Args:
    common: Fraction of the directions for the sum, in [0, 1]; static. 1 is
      `isotropic`, and so is any fraction that leaves less than half a direction
      to each expert.
    rank_tol: See `isotropic`. What remains of an expert is compared with the
      norm of the expert's whole change.

  Returns:
    The transform of matrices.

  Raises:
    ValueError: `common` is not a fraction.

  Examples:
    >>> leaf = transform.Leaf(
    ...   jnp.zeros((2, 2)), (jnp.diag(jnp.array([4.0, 2.0])),), index=0
    ... )
    >>> merge = isotropic_split(0.5)
    >>> merge.update(leaf, merge.init((), ())).deltas[0].round(4).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
  """
  if not 0 <= common <= 1:
    raise ValueError(
      f'isotropic_split: common is {common}, expected a fraction in [0, 1]'
    )
  return transform.combine_deltas(
    transform.bind(_isotropic_split, float(common)), rank_tol
  )


def _isotropic_split(fraction, deltas, rank_tol):
  size = min(deltas[0].shape)
  own = round((size - int(size * fraction)) / len(deltas))
  # Rounding up can ask for more than there is if nothing is common.
  own = min(own, size // len(deltas))
  shared = size - own * len(deltas)
  u, s, vt = svd(transform.add_deltas(deltas))
  u, s, vt = u[:, :shared], s[:shared], vt[:shared]
  columns = []
  for delta in deltas if own else ():
    rest = svd(delta - product(u, product(u.T, delta)))
    keep = significant(rest.s, jnp.linalg.norm(delta), rank_tol)[:own]
    columns.append((rest.u[:, :own], rest.s[:own], rest.vt[:own].T, keep))
  if shared:
    columns.append((u, s, vt.T, significant(s, s[0], rank_tol)))
  u, s, v, keep = _side_by_side(columns)
  ones = jnp.ones_like(s)
  return _flat(s, keep) * _joined(
    u * keep[None], v * keep[None], ones, rank_tol
  )
