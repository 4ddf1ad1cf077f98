"""Changing all task vectors alike, so that their sum does to each what it did.

Matrices are `[out, in]`; inner products are of rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import references
from merging import transform
from merging.combine import descent
from merging.deltas import trim as trimming


class _State(NamedTuple):
  scale: float | jax.Array
  steps: int | jax.Array
  learning_rate: float | jax.Array
  trim: transform.State


@references.cited
def reconcile(
  scale: float | jax.Array = 0.07,
  density: float | jax.Array = 0.3,
  *,
  steps: int | jax.Array = 400,
  learning_rate: float | jax.Array = 1e-4,
  subspace: int = 6,
) -> transform.MergeTransform:
  """Adds one change to all task vectors that lessens their conflicts.

  What `doge` does to each task vector before they are added, for leaves
  `[out, in]`: with the change it solves for, and among the largest of the
  expert's entries (see `trim`),

      delta_t = lambda_t (tau_t + change)

  Args:
    scale: See `doge`.
    density: See `doge`.
    steps: See `doge`.
    learning_rate: See `doge`.
    subspace: See `doge`.

  Returns:
    The transform, which leaves a delta for each expert.

  Raises:
    ValueError: `density` is not a fraction.

  Examples:
    >>> import merging
    >>> transform = merging.on_matrices(
    ...   merging.chain(merging.reconcile(2.0, 1.0, steps=0), merging.total())
    ... )
    >>> base, expert = {'w': jnp.zeros((2, 2))}, {'w': jnp.full((2, 2), 3.0)}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [[1.0, 1.0], [1.0, 1.0]]

  References:
    Yongxian Wei, Anke Tang, Li Shen, Zixuan Hu, Chun Yuan, Xiaochun Cao.
    "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent".
    ICML 2025. arXiv:2501.01230.
  """
  trim = trimming.trim(density)
  return transform.MergeTransform(
    init=lambda specs, models: _State(
      scale, steps, learning_rate, trim.init(specs, models)
    ),
    observers=tuple(
      transform.Observer(
        observe=transform.bind(_observe_trim, each.observe),
        finish=transform.bind(_finish_trim, each.finish),
      )
      for each in trim.observers
    ),
    update=transform.bind(_reconcile, trim.update, subspace),
    route=trim.route,
    sources=trim.sources,
  )


def _observe_trim(observe, leaf, state, **extra):
  return observe(leaf, state.trim, **extra)


def _finish_trim(finish, statistic, state):
  return state._replace(trim=finish(statistic, state.trim))


def _reconcile(trim, subspace, leaf, state, **extra):
  taus = jnp.stack(leaf.deltas)  # [models, out, in]
  norms = jnp.linalg.norm(taus, axis=(1, 2))
  scale = jnp.asarray(state.scale, taus.dtype)
  weights = jnp.where(norms > 0, scale / jnp.where(norms > 0, norms, 1), 0)
  change = _change(taus, weights, subspace, state.steps, state.learning_rate)
  # Which entries are kept is decided by the task vectors as they were.
  trimmed = trim(leaf, state.trim, **extra).deltas
  deltas = tuple(
    jnp.where(kept != 0, weight * (tau + change), 0)
    for weight, tau, kept in zip(weights, leaf.deltas, trimmed, strict=True)
  )
  return leaf._replace(deltas=deltas)


def _change(taus, weights, subspace, steps, learning_rate):
  """Returns the change that is added to all task vectors, `f32[out, in]`."""
  merged = jnp.einsum('t,toi->oi', weights, taus, precision='highest')
  mass = jnp.sum(weights)
  gaps = jnp.sum(taus * (taus - merged[None]), axis=2)  # [models, out]
  shared = _shared_directions(taus, min(taus.shape[1:]) // subspace)

  def gradient(change):
    errors = gaps - mass * jnp.sum(taus * change[None], axis=2)
    slope = -2 * mass * jnp.sum(errors[:, :, None] * taus, axis=0)
    inside = jnp.matmul(shared.T, slope, precision='highest')
    free = slope - jnp.matmul(shared, inside, precision='highest')
    # Adam would run after the rounding errors that are left of a gradient that
    # is wholly shared.
    left, before = (jnp.linalg.norm(x, axis=0) for x in (free, slope))
    rounding = 16 * jnp.finfo(slope.dtype).eps * before
    return jnp.where((left > rounding)[None], free, 0)

  return descent.adam(gradient, jnp.zeros_like(merged), steps, learning_rate)


def _shared_directions(taus, number):
  """Returns what the outputs of all experts share, `f32[out, number]`.

  Columns are orthonormal or zero: a direction without a singular value, which
  is there when a task vector has a low rank, stands for nothing.
  """
  share = min(taus.shape[1:]) // len(taus)
  own = _left(taus)[:, :, :share]
  joined = jnp.concatenate([*own], axis=1)
  return _left(joined)[:, :number]


def _left(matrices):
  """Returns left singular vectors, those of no singular value as zeros."""
  left, values, _ = jnp.linalg.svd(matrices, full_matrices=False)
  eps = jnp.finfo(values.dtype).eps
  present = values > eps * max(matrices.shape[-2:]) * values[..., :1]
  return jnp.where(present[..., None, :], left, 0)
