"""Weighting experts by how far each column of a matrix moved or turned."""

import jax
import jax.numpy as jnp

from merging import ranks
from merging import transform


def disentangled_sum(
  ratio: float | jax.Array = 1.0, score: float | jax.Array = 1.0
) -> transform.MergeTransform:
  """Adds deltas with weights for the columns of a matrix (WIDEN's core).

  A column `j` of a matrix `[out, in]` is a magnitude `m_j`, its norm, times a
  direction. For each expert `t`,

      magnitude_tj = |m_tj - m_0j|
      direction_tj = 1 - cosine of the columns of expert and base

  are replaced by their places among the columns of the leaf, from 0 to 1 - 1/n.
  Of each, a softmax over the experts weights the column; where the place is
  more than `ratio` times the mean place, `score` takes its stead. Both weights
  are averaged, and

      delta_j = sum_t weight_tj delta_tj

  A column that is zero in the base or in the expert has no direction: it counts
  as not turned (the original code divides zero by zero).

  Matrices are `[out, in]`: wrap it in `on_matrices`, as `widen` does.

  Args:
    ratio: What counts as important, relative to the average place.
    score: Weight of what is important.

  Returns:
    The transform, for leaves with two axes.

  Examples:
    >>> import merging
    >>> base = {'w': jnp.ones((2, 3))}
    >>> expert = {'w': jnp.array([[1.0, 2, 3], [1, 2, 3]])}
    >>> merged = merging.merge(disentangled_sum(), base, {'expert': expert})
    >>> merged['w'].tolist()
    [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
  """
  return transform.stateless(_disentangled_sum, ratio, score)


def _disentangled_sum(leaf, ratio, score):
  if leaf.base.ndim != 2:
    raise ValueError(
      f'disentangled_sum: a leaf of shape {leaf.base.shape} has no columns; '
      'give it matrices only, with on_matrices()'
    )
  moved, turned = zip(
    *(_column_changes(leaf.base, delta) for delta in leaf.deltas), strict=True
  )
  size = leaf.base.shape[1]

  def weights(changes):
    place = ranks.places(jnp.stack(changes)).astype(jnp.float32)
    # The mean of the places 0 to size - 1 is half of the last one.
    important = place > jnp.asarray(ratio, jnp.float32) * (size - 1) / 2
    return _scores(place / size, important, score)

  weight = (weights(moved) + weights(turned)) / 2
  weighted = jnp.stack(leaf.deltas) * weight[:, None].astype(leaf.base.dtype)
  return leaf._replace(deltas=(transform.add_deltas(list(weighted)),))


def _column_changes(base, delta):
  """Returns by how much the norm and the direction of columns changed."""
  expert = base + delta
  before, after = (
    jnp.linalg.norm(x, axis=0, keepdims=True) for x in (base, expert)
  )
  # Half the squared distance of the unit vectors is 1 - cosine, which would
  # cancel for small changes.
  apart = expert / jnp.where(after > 0, after, 1)
  apart -= base / jnp.where(before > 0, before, 1)
  turned = jnp.sum(jnp.square(apart), axis=0, keepdims=True) / 2
  turned = jnp.where((before > 0) & (after > 0), turned, 0)
  # The difference of the norms, without subtracting them.
  both = after + before
  moved = jnp.abs(jnp.sum(delta * (base + expert), axis=0, keepdims=True))
  moved = moved / jnp.where(both > 0, both, 1)
  return moved[0], turned[0]


def _scores(significance, important, score):
  """A softmax over experts, or the score where it is important."""
  shared = jax.nn.softmax(significance, axis=0)
  return jnp.where(important, jnp.asarray(score, shared.dtype), shared)


def significant_sum(
  ratio: float | jax.Array = 1.0, score: float | jax.Array = 1.0
) -> transform.MergeTransform:
  """Adds deltas with weights by their own magnitude, entry by entry.

  What WIDEN does to vectors: a softmax over the experts of `|delta_t|` weights
  each entry; where `|delta_t|` is more than `ratio` times its mean over the
  leaf, `score` takes its stead.

  Args:
    ratio: What counts as important, relative to the average magnitude.
    score: Weight of what is important.

  Returns:
    The transform, for leaves of any shape.

  Examples:
    >>> import merging
    >>> base = {'b': jnp.zeros(2)}
    >>> experts = {'math': {'b': jnp.array([0.0, 4.0])}, 'code': base}
    >>> merged = merging.merge(significant_sum(), base, experts)
    >>> merged['b'].tolist()
    [0.0, 4.0]
  """
  return transform.combine_deltas(_significant_sum, ratio, score)


def _significant_sum(deltas, ratio, score):
  deltas = jnp.stack(deltas)
  sizes = jnp.abs(deltas)
  axes = tuple(range(1, sizes.ndim))
  mean = jnp.mean(sizes, axis=axes, keepdims=True)
  important = sizes > jnp.asarray(ratio, mean.dtype) * mean
  return transform.add_deltas(list(_scores(sizes, important, score) * deltas))
