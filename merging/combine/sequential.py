"""Adding changes one after another, each without what is already there."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import transform
from merging.combine import subspace


def without(
  delta: jax.Array,
  merged: jax.Array,
  threshold: float | jax.Array = 0.5,
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> jax.Array:
  """Returns a change less its part in the main directions of another.

  With `merged = u diag(s) v^T` and `q` the number of leading directions that
  together hold at most `threshold` of the sum of `s`,

      a_ij = u_i^T delta v_j
      result = delta - sum_ij a_ij u_i v_j^T   over i, j < q, and over i = j

  so that the result is orthogonal to `merged`, and the two do not meet in its
  first `q` directions. It does not depend on the scale of `merged`.

  Args:
    delta: `f32[out, in]`.
    merged: `f32[out, in]`.
    threshold: Share of the sum of singular values to keep free, in [0, 1].
    rank_tol: Directions of `merged` whose singular value is smaller than this
      times the largest are arbitrary, and nothing is taken out there.

  Returns:
    `f32[out, in]`.

  Examples:
    >>> merged = jnp.diag(jnp.array([3.0, 1.0]))
    >>> without(jnp.ones((2, 2)), merged).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
  """
  u, s, vt = subspace.svd(merged)
  there = subspace.significant(s, s[0], rank_tol)
  mass = jnp.cumsum(s)
  main = mass <= jnp.asarray(threshold, s.dtype) * mass[-1]
  main = jnp.where(main, there, 0)
  taken = jnp.where(
    jnp.eye(s.size, dtype=bool), there[:, None], jnp.outer(main, main)
  )
  inside = taken * subspace.product(u.T, delta, vt.T)
  return delta - subspace.product(u, inside, vt)


def orthogonal_total(
  threshold: float | jax.Array = 0.5,
  order: Sequence[str] | None = None,
  *,
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> transform.MergeTransform:
  """Adds changes one after another, each without what is already there (OPCM).

      total_1 = delta_1,   total_t = total_{t-1} + without(delta_t, total_{t-1})

  The cost of a leaf is one thin singular value decomposition for each expert
  but the first.

  Args:
    threshold: See `without`.
    order: Names of the experts, all of them, first to last; by default sorted.
    rank_tol: See `without`.

  Returns:
    The transform of matrices. Its `init` raises `ValueError` if `order` is not
    an order of the experts.

  Raises:
    ValueError: `threshold` is not a fraction.

  Examples:
    >>> a, b = jnp.diag(jnp.array([3.0, 1.0])), jnp.ones((2, 2))
    >>> leaf = transform.Leaf(jnp.zeros((2, 2)), (a, b), index=0)
    >>> merge = orthogonal_total()
    >>> (delta,) = merge.update(leaf, merge.init((), ('a', 'b'))).deltas
    >>> delta.tolist()
    [[3.0, 1.0], [1.0, 1.0]]
  """
  check_threshold('orthogonal_total', threshold)

  def init(specs, models):
    return _places(order, models), threshold, rank_tol

  return transform.MergeTransform(init, (), _orthogonal_total)


def check_threshold(caller: str, threshold: float | jax.Array) -> None:
  """Raises `ValueError` unless a threshold is a fraction or traced."""
  if not checks.within(threshold, least=0, most=1):
    raise ValueError(
      f'{caller}: threshold is {threshold}, expected a fraction in [0, 1]'
    )


def _places(order, models):
  if order is None:
    return np.arange(len(models), dtype=np.int32)
  for name in order:
    if name not in models:
      raise ValueError(
        f'orthogonal_total: order names {name!r}; the experts are '
        f'{patterns.listing(models)}{patterns.suggest(name, models)}'
      )
  if sorted(order) != sorted(models):
    raise ValueError(
      f'orthogonal_total: order is {list(order)}, expected each of the experts '
      f'{patterns.listing(models)} once'
    )
  return np.array([models.index(name) for name in order], np.int32)


def _orthogonal_total(leaf, state, **extra):
  places, threshold, rank_tol = state
  if len(leaf.deltas) != len(places):
    raise ValueError(
      f'orthogonal_total: {len(leaf.deltas)} deltas of {len(places)} experts; '
      'use it before the experts are combined'
    )
  # The order is data, so that all orders share a program.
  ordered = jnp.stack(leaf.deltas)[jnp.asarray(places)]

  def step(total, delta):
    return total + without(delta, total, threshold, rank_tol), None

  total, _ = jax.lax.scan(step, ordered[0], ordered[1:])
  return leaf._replace(deltas=(total,))


def at_mean_norm(inner: transform.MergeTransform) -> transform.MergeTransform:
  """Scales a merged change to the mean norm of the experts' changes.

      delta = inner(deltas) mean_t ||delta_t|| / ||inner(deltas)||

  The norms are of the whole model. A merge by sums grows with the number of
  experts, by its square root if they are orthogonal; this one does not. The
  inner merge runs twice, for its norm and for its result.

  Args:
    inner: A merge that combines the experts.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'a': {'w': jnp.array([3.0, 0])},
    ...   'b': {'w': jnp.array([0, 1.0])},
    ... }
    >>> merge = merging.at_mean_norm(merging.total())
    >>> merged = merging.merge(merge, {'w': jnp.zeros(2)}, experts)
    >>> float(jnp.linalg.norm(merged['w']).round(4))
    2.0
  """
  observers = tuple(
    transform.Observer(
      observe=transform.bind(_observe_inner, each.observe),
      finish=transform.bind(transform.finish_at, 0, each.finish),
    )
    for each in inner.observers
  )
  norms = transform.Observer(
    transform.bind(_observe_norms, inner.update), _finish_norms
  )
  return inner._replace(
    init=lambda specs, models: (inner.init(specs, models), 1.0),
    observers=(*observers, norms),
    update=transform.bind(_update_scaled, inner.update),
    **transform.WHOLE,
  )


def _observe_inner(observe, leaf, state, **extra):
  return observe(leaf, state[0], **extra)


def _observe_norms(update, leaf, state, **extra):
  merged = update(leaf, state[0], **extra).deltas
  if len(merged) != 1:
    raise ValueError(
      f'at_mean_norm: the inner merge leaves {len(merged)} deltas, expected '
      'one; end it with mean() or total()'
    )
  return jnp.stack([jnp.sum(x * x) for x in (*leaf.deltas, *merged)])


def _finish_norms(statistic, state):
  norms, merged = jnp.sqrt(statistic[:-1]), jnp.sqrt(statistic[-1])
  return state[0], mean_norm_factor(jnp.sum(norms), norms.size, merged)


def mean_norm_factor(
  norms: jax.Array, count: jax.Array | int, merged: jax.Array
) -> jax.Array:
  """Returns `norms / count / merged`, and 0 where nothing is merged.

  Examples:
    >>> float(mean_norm_factor(jnp.float32(6), 2, jnp.float32(1.5)))
    2.0
  """
  some = merged > 0
  count = jnp.asarray(count, merged.dtype)
  return jnp.where(some, norms / count / jnp.where(some, merged, 1), 0)


def _update_scaled(update, leaf, state, **extra):
  inner, factor = state
  merged = update(leaf, inner, **extra)
  deltas = tuple(jnp.asarray(factor, x.dtype) * x for x in merged.deltas)
  return merged._replace(deltas=deltas)
