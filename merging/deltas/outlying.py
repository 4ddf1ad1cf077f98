"""Keeping the changes that stand out by a divergence between softmaxes."""

import jax
import jax.numpy as jnp

from merging import select
from merging import transform


def keep_outlying() -> transform.MergeTransform:
  """Zeroes the changes that are not outliers in importance.

  For a row `a` of the base and `b = a + delta` of the expert,

      importance = |delta| KL(softmax(b) || softmax(a))

  and what is kept in a leaf is `importance >= median + 1.5 (Q3 - Q1)`, with the
  quartiles of the importances of the leaf: the entries at `int(q (n - 1))` in
  ascending order.

  Rows are along the last axis of a leaf: wrap it in `on_matrices` for kernels
  that are not stored as `[out, in]`, as `arcee_fusion` does.

  The divergence is summed from terms that are never negative, so that it is
  accurate also for rows that hardly differ, where the difference of logarithms
  cancels. mergekit adds 1e-8 to the softmaxes, and takes the quartiles of
  leaves of more than a million entries from a random sample; here they are
  exact.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.keep_outlying(), merging.total())
    >>> base = {'w': jnp.zeros(4)}
    >>> expert = {'w': jnp.array([0.1, -0.1, 0.2, 3.0])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, 0.0, 0.0, 3.0]
  """
  return transform.stateless(_keep_outlying)


def _keep_outlying(leaf):
  shape = leaf.base.shape
  base = jnp.atleast_1d(leaf.base)
  importances = [
    jnp.abs(delta)
    * softmax_divergence(base, jnp.atleast_1d(delta)).reshape(
      (*shape[:-1], 1) if shape else ()
    )
    for delta in leaf.deltas
  ]
  rows = [select.magnitude_bits(each) for each in importances]
  q1, median, q3 = (
    jax.lax.bitcast_convert_type(
      select.kth_smallest(rows, int(q * (leaf.base.size - 1)) + 1), jnp.float32
    )
    for q in (0.25, 0.5, 0.75)
  )
  thresholds = median + 1.5 * (q3 - q1)
  deltas = tuple(
    jnp.where(importance >= threshold, delta, jnp.zeros_like(delta))
    for importance, threshold, delta in zip(
      importances, thresholds, leaf.deltas, strict=True
    )
  )
  return leaf._replace(deltas=deltas)


def softmax_divergence(base: jax.Array, delta: jax.Array) -> jax.Array:
  """Returns `KL(softmax(base + delta) || softmax(base))` over the last axis.

  With `q = softmax(base)` and `u = log(p / q)` it is the mean under `q` of
  `u exp(u) - exp(u) + 1`, for the other terms of `p log(p / q)` add up to zero.

  Args:
    base: Logits, `f32[..., n]`.
    delta: Their change, `f32[..., n]`.

  Returns:
    `f32[...]`, not negative.

  Examples:
    >>> divergence = softmax_divergence(jnp.zeros(2), jnp.array([1e-4, -1e-4]))
    >>> print(f'{divergence:.4e}')
    5.0000e-09
  """
  log_q = jax.nn.log_softmax(base, axis=-1)
  q = jnp.exp(log_q)
  # log(sum(q exp(delta))): for small changes, the plain sum would cancel.
  near = jnp.max(jnp.abs(delta), axis=-1, keepdims=True) < 0.5
  growth = jnp.sum(
    q * jnp.expm1(jnp.where(near, delta, 0)), axis=-1, keepdims=True
  )
  plain = jax.nn.logsumexp(log_q + delta, axis=-1, keepdims=True)
  u = delta - jnp.where(near, jnp.log1p(growth), plain)
  small = jnp.abs(u) < 0.1
  v = jnp.where(small, u, 0)
  series = v * v * (1 / 2 + v * (1 / 3 + v * (1 / 8 + v * (1 / 30 + v / 144))))
  p = jnp.exp(log_q + u)
  direct = p * u - (p - q)
  return jnp.sum(jnp.where(small, q * series, direct), axis=-1)
