"""One change that the inputs of every expert see as that expert's own.

The rows of an expert's task vector span, about, the inputs it was trained on:
each step of gradient descent added multiples of inputs to them. So without any
data, `|(x - target_i) rows_i^T|^2` says how much a merged change `x` differs
from what expert `i` wants, on what expert `i` sees. Summed over experts this is
a quadratic in `x` with one small matrix, whatever the number of experts; the
methods here differ in targets and rows, and in how far they go to its minimum.

All functions take matrices `[out, in]`; products are over the inputs.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import patterns
from merging import transform
from merging.combine import descent

Filter = Literal['exact', 'exponential', 'tikhonov', 'landweber']
Start = Literal['sum', 'mean', 'zero']
Tuning = Literal['full', 'lora']

_FILTERS = ('exact', 'exponential', 'tikhonov', 'landweber')
_STARTS = ('sum', 'mean', 'zero')
_TUNINGS = ('full', 'lora')


class Interference(NamedTuple):
  """The quadratic that experts disagree by, around a point.

      sum_i |(start + x - target_i) rows_i^T|_F^2
      = trace(x gram x^T) + 2 trace(slope x^T) + constant

  Written around the start, the slope is exactly zero where there is no
  interference, as for a single expert: an optimiser that divides by the size of
  the gradient has then no rounding errors to run after.

  Attributes:
    start: The point, `f32[out, in]`.
    gram: `sum_i rows_i^T rows_i`, `f32[in, in]`.
    slope: `sum_i (start - target_i) rows_i^T rows_i`, `f32[out, in]`.
  """

  start: jax.Array
  gram: jax.Array
  slope: jax.Array

  def gradient(self, x: jax.Array) -> jax.Array:
    """Returns the gradient at `start + x`, `f32[out, in]`."""
    return 2 * (_dot(x, self.gram) + self.slope)


def interference(
  targets: Sequence[jax.Array], rows: Sequence[jax.Array], start: jax.Array
) -> Interference:
  """Adds up what each expert asks for.

  Args:
    targets: What each expert wants the change to be, `f32[out, in]`.
    rows: What stands for the inputs of each expert, `f32[any, in]`.
    start: The point to write the quadratic around, `f32[out, in]`.

  Returns:
    The quadratic.
  """
  slopes = [
    jnp.linalg.multi_dot([start - target, row.T, row], precision='highest')
    for target, row in zip(targets, rows, strict=True)
  ]
  return Interference(
    start,
    transform.add_deltas([_dot(row.T, row) for row in rows]),
    transform.add_deltas(slopes),
  )


def descend(
  steps: int | jax.Array, learning_rate: float | jax.Array
) -> transform.MergeTransform:
  """Merges matrices by Adam on the interference between task vectors.

  Targets are the task vectors, rows the task vectors over their norms, the
  start is their sum.

  Args:
    steps: Number of steps.
    learning_rate: Of Adam.

  Returns:
    The transform, for leaves `[out, in]`.
  """
  return transform.combine_deltas(_descend, steps, learning_rate)


def _descend(deltas, steps, learning_rate):
  problem = _of_task_vectors(deltas, 'sum')
  return _minimise(descent.adam, problem, steps, learning_rate)


def descend_truncated(
  tuning: Tuning, steps: int | jax.Array, learning_rate: float | jax.Array
) -> transform.MergeTransform:
  """Merges matrices by descent on the interference of truncated task vectors.

  Of `min(out, in)` singular values over the number of experts, rounded down,
  the largest are kept.

  Args:
    tuning: `'full'` truncates a task vector around the mean of all, and takes
      Adam from their sum; `'lora'` truncates it alone, and takes momentum from
      their mean.
    steps: Number of steps.
    learning_rate: Of the optimiser.

  Returns:
    The transform, for leaves `[out, in]`.

  Raises:
    ValueError: `tuning` is unknown.
  """
  patterns.check_option('optmerge', 'tuning', tuning, _TUNINGS)
  return transform.combine_deltas(
    transform.bind(_descend_truncated, tuning), steps, learning_rate
  )


def _descend_truncated(tuning, deltas, steps, learning_rate):
  stacked = jnp.stack(deltas)
  rank = min(deltas[0].shape) // len(deltas)
  left, values, right = _truncated(stacked, rank)
  rows = values[:, :, None] * right * _over_norm(stacked)
  if tuning == 'full':
    mean = transform.average_deltas(deltas)
    left, values, right = _truncated(stacked - mean[None], rank)
    targets = mean[None] + _dot(left * values[:, None, :], right)
    problem = interference([*targets], [*rows], _start('sum', deltas))
    return _minimise(descent.adam, problem, steps, learning_rate)
  targets = _dot(left * values[:, None, :], right)
  problem = interference([*targets], [*rows], _start('mean', deltas))
  return _minimise(descent.momentum, problem, steps, learning_rate)


def _truncated(matrices, rank):
  left, values, right = jnp.linalg.svd(matrices, full_matrices=False)
  return left[:, :, :rank], values[:, :rank], right[:, :rank]


def filtered(
  filter: Filter,
  strength: float | jax.Array,
  rank: float | jax.Array | Literal['adaptive'],
  start: Start,
) -> transform.MergeTransform:
  """Merges matrices by solving for the interference, direction by direction.

  With the eigenvectors `V` and eigenvalues of the Gram matrix, the step from
  the start to the minimum is taken by a fraction `f` of its length in each
  direction, and not at all in directions beyond the rank.

  Args:
    filter: What `f` is of an eigenvalue.
    strength: Its parameter.
    rank: Directions to keep: a fraction of `in`, or `'adaptive'`.
    start: Where to begin.

  Returns:
    The transform, for leaves `[out, in]`.

  Raises:
    ValueError: An option is unknown.
  """
  patterns.check_option('swudi', 'filter', filter, _FILTERS)
  patterns.check_option('swudi', 'start', start, _STARTS)
  adaptive = isinstance(rank, str)
  if adaptive:
    patterns.check_option('swudi', 'rank', rank, ('adaptive',))
  return transform.combine_deltas(
    transform.bind(_filtered, filter, start, adaptive),
    strength,
    1.0 if adaptive else rank,
  )


def _filtered(kind, start, adaptive, deltas, strength, fraction):
  problem = _of_task_vectors(deltas, start)
  values, vectors = jnp.linalg.eigh(problem.gram)  # Ascending.
  largest = values[-1]
  # What is zero but for rounding would be divided by, and counted, as if it
  # were a direction.
  floor = 16 * jnp.finfo(values.dtype).eps * largest
  values = jnp.where(values > floor, values, 0)
  size = values.size
  if adaptive:
    kept = jnp.ceil(_ratio(jnp.sum(jnp.sqrt(values)) ** 2, jnp.sum(values)))
  else:
    # Rounds up, but not for an error in the last digits of the product.
    share = jnp.asarray(fraction, values.dtype)
    kept = jnp.maximum(jnp.floor(share * size + 0.999), 1)
  places = jnp.arange(size, 0, -1, dtype=values.dtype)
  gains = _gains(kind, values, largest, jnp.asarray(strength, values.dtype))
  gains = jnp.where((places <= kept) & (values > 0), gains, 0)
  step = _dot(_dot(problem.slope, vectors) * gains[None], vectors.T)
  return problem.start - step


def _gains(kind, values, largest, strength):
  """Returns the fraction of the step to take, over the eigenvalue."""
  if kind == 'exact':
    return _ratio(jnp.ones_like(values), values)
  if kind == 'exponential':
    return _ratio(-jnp.expm1(-values * strength), values)
  if kind == 'tikhonov':
    return _ratio(jnp.ones_like(values), values + strength)
  remaining = jnp.log1p(-0.9 * _ratio(values, largest))
  return _ratio(-jnp.expm1(strength * remaining), values)


def _of_task_vectors(deltas, start):
  rows = [delta * _over_norm(delta) for delta in deltas]
  return interference(deltas, rows, _start(start, deltas))


def _start(start, deltas):
  if start == 'zero':
    return jnp.zeros_like(deltas[0])
  reduce = transform.add_deltas if start == 'sum' else transform.average_deltas
  return reduce(deltas)


def _minimise(
  optimiser: Callable[..., jax.Array],
  problem: Interference,
  steps: int | jax.Array,
  learning_rate: float | jax.Array,
) -> jax.Array:
  origin = jnp.zeros_like(problem.start)
  moved = optimiser(problem.gradient, origin, steps, learning_rate)
  return problem.start + moved


def _over_norm(matrices):
  """Returns one over the norm of each matrix, and 0 for one of zeros."""
  norm = jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)
  return _ratio(jnp.ones_like(norm), norm)


def _ratio(a, b):
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _dot(a, b):
  # Accelerators multiply float32 in fewer bits unless told otherwise.
  return jnp.matmul(a, b, precision='highest')
