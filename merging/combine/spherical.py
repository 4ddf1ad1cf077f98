"""Means and paths on spheres: directions are averaged apart from lengths.

Each leaf (or each row of a matrix) is a vector `x_t` of a length `n_t` and a
direction `u_t = x_t / n_t`, either the parameters themselves, base and delta,
or the deltas. Every merge here is a sum `sum_t c_t x_t`: what differs is how
the coefficients follow from angles. For parameters, the sum is taken as
`(sum_t c_t - 1) base + sum_t c_t delta_t`, so that small changes of large
parameters keep their digits. Angles follow from lengths of vectors, and then of
sums and differences of their directions: stages of `transform.from_sums`.
"""

from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import transform
from merging.combine import interpolate

Of = Literal['parameters', 'deltas']

_PARALLEL = 1e-6  # Sine of an angle that is no angle in float32.


def _squares(vectors, axis=None):
  """Squares of lengths; an axis they are along is kept with a size of 1."""
  kept = axis is not None
  return jnp.stack([jnp.sum(x * x, axis, keepdims=kept) for x in vectors])


def _lengths(vectors_of, axis, leaf, state, sums):
  """Squares of the lengths of all vectors, the first stage."""
  return _squares(vectors_of(leaf, state), axis)


def _units(vectors, sums):
  """Directions, and zeros for what has none."""
  inverses = _inverse(_root(sums[0]))
  # Not stacked: XLA then fuses what is done with them into few passes.
  return [x * inverse for x, inverse in zip(vectors, inverses, strict=True)]


def _along(axis, made):
  """From a transform of whole leaves to one of vectors along an axis."""
  if axis is None:
    return made
  rowwise = transform.always if axis == 1 else transform.never
  return made._replace(rowwise=rowwise, selection=transform.no_selection)


def _root(x):
  """The square root, with gradient 0 at 0."""
  some = x > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, x, 1)), 0)


def _inverse(x):
  """Returns `1 / x`, and 0 where `x` is."""
  some = x != 0
  return jnp.where(some, 1 / jnp.where(some, x, 1), 0)


def _sum_of(coefficients, vectors):
  pairs = zip(coefficients, vectors, strict=True)
  return transform.add_deltas([c * x for c, x in pairs])


def _vectors(of, base, deltas):
  if of == 'deltas':
    return deltas
  return tuple(base + delta for delta in deltas)


def _combine(of, leaf, coefficients):
  """Returns the leaf with the delta of `sum_t c_t x_t`."""
  delta = _sum_of(coefficients, leaf.deltas)
  if of == 'parameters':
    delta = (transform.add_deltas(coefficients) - 1) * leaf.base + delta
  return leaf._replace(deltas=(delta,))


class GreatCircle(NamedTuple):
  """State of a path along a great circle.

  Attributes:
    where: Which models it leads between.
    t: How far along, 0 at the beginning and 1 at the end; `f32[]`.
    threshold: Cosine from which on the path is straight; `f32[]`.
  """

  where: interpolate.Ends
  t: float | jax.Array
  threshold: float | jax.Array


def great_circle(
  caller: str, of: Of, axis: int | None, init: Callable[..., GreatCircle]
) -> transform.MergeTransform:
  """What `slerp` and `nuslerp` are.

  Args:
    caller: Name for error messages.
    of: What the vectors are.
    axis: The axis along which they lie, or `None` for the whole leaf.
    init: Makes the state.

  Returns:
    The transform, which leaves one delta.
  """
  ends = transform.bind(_ends, caller, of)
  stages = (
    transform.bind(_lengths, ends, axis),
    transform.bind(_chords, ends, axis),
  )
  update = transform.bind(_go, caller, of)
  return _along(axis, transform.from_sums(init, stages, update))


def _ends(caller, of, leaf, state):
  deltas = interpolate.deltas_at(caller, state.where, leaf.deltas)
  return _vectors(of, leaf.base, deltas)


def _chords(ends, axis, leaf, state, sums):
  """Squares of the lengths of the difference of directions and of their sum."""
  u, v = _units(ends(leaf, state), sums)
  return _squares((u - v, u + v), axis)


def _go(caller, of, leaf, state, sums):
  start, end = interpolate.deltas_at(caller, state.where, leaf.deltas)
  norms, (apart, together) = map(_root, sums)
  # Unlike the arc cosine of a product, this is accurate at every angle.
  lost = (norms[0] == 0) | (norms[1] == 0)
  angle = 2 * jnp.arctan2(apart, jnp.where(lost, 1, together))
  t = jnp.asarray(state.t, angle.dtype)
  straight = (
    lost
    | (jnp.abs(jnp.cos(angle)) > jnp.asarray(state.threshold, angle.dtype))
    | (jnp.abs(jnp.sin(angle)) < _PARALLEL)
  )
  angle = jnp.where(straight, 1, angle)
  c_start = jnp.where(
    straight, 1 - t, jnp.sin((1 - t) * angle) / jnp.sin(angle)
  )
  c_end = jnp.where(straight, t, jnp.sin(t * angle) / jnp.sin(angle))
  delta = c_start * start + c_end * end
  if of == 'parameters':
    # Both coefficients less 1, without the cancellation of adding them up.
    half = angle / 2
    arc = 2 * jnp.sin((1 - t) * half) * jnp.sin(t * half) / jnp.cos(half)
    delta = jnp.where(straight, 0, arc) * leaf.base + delta
  return leaf._replace(deltas=(delta,))


def normalised_mean(
  of: Of, init: Callable[..., jax.Array | np.ndarray]
) -> transform.MergeTransform:
  """What `multislerp` is.

  Args:
    of: What the vectors are.
    init: Makes the weights, `f32[models]`.

  Returns:
    The transform, which leaves one delta.
  """
  vectors = transform.bind(_weighted, 'multislerp', of)
  stages = (
    transform.bind(_lengths, vectors, None),
    transform.bind(_pulled, vectors),
  )
  return transform.from_sums(init, stages, transform.bind(_mean, of))


def _weighted(caller, of, leaf, weights):
  if len(leaf.deltas) != len(weights):
    raise ValueError(
      f'{caller}: {len(leaf.deltas)} deltas of {len(weights)} experts; take '
      'the mean before the experts are combined'
    )
  return _vectors(of, leaf.base, leaf.deltas)


def _pull(weights, norms):
  """Coefficients of vectors in the weighted sum of their directions."""
  return [w * _inverse(n) for w, n in zip(weights, norms, strict=True)]


def _pulled(vectors, leaf, weights, sums):
  """The square of the length of that sum."""
  pull = _pull(weights, _root(sums[0]))
  return _squares([_sum_of(pull, vectors(leaf, weights))])


def _mean(of, leaf, weights, sums):
  norms, (length,) = map(_root, sums)
  pull = _pull(weights, norms)
  size = _sum_of(weights, norms)
  # Directions that balance out have no mean; the straight one is left.
  balanced = length <= _PARALLEL * jnp.sum(jnp.abs(weights))
  ratio = size / jnp.where(balanced, 1, length)
  coefficients = [
    jnp.where(balanced, w, ratio * p)
    for w, p in zip(weights, pull, strict=True)
  ]
  return _combine(of, leaf, coefficients)


class Karcher(NamedTuple):
  """State of an iteration on the sphere.

  Attributes:
    weights: Weights that add up to 1, `f32[models]`.
    tol: Length of a step at which it stops, `f32[]`.
  """

  weights: jax.Array | np.ndarray
  tol: float | jax.Array


def karcher_mean(
  of: Of, max_iter: int, init: Callable[..., Karcher]
) -> transform.MergeTransform:
  """What `karcher` is.

  All iterates are sums of the directions, so the iteration runs on coefficients
  and one table of inner products, whatever the size of the leaf. The table is
  of differences to a reference in their midst: directions of fine-tuned models
  are so near that their own products would all be 1.

  Args:
    of: What the vectors are.
    max_iter: Steps at most.
    init: Makes the state.

  Returns:
    The transform, which leaves one delta.
  """
  vectors = transform.bind(_of_karcher, of)
  stages = (
    transform.bind(_lengths, vectors, None),
    transform.bind(_resultant, vectors, None),
    transform.bind(_products, vectors),
  )
  return transform.from_sums(
    init, stages, transform.bind(_go_round, of, max_iter)
  )


def _of_karcher(of, leaf, state):
  return _weighted('karcher', of, leaf, state.weights)


def _resultant(vectors, axis, leaf, state, sums):
  """The square of the length of the sum of all directions."""
  units = _units(vectors(leaf, state), sums)
  return _squares([transform.add_deltas(units)], axis)


def _reference(sums):
  """Coefficients of a unit vector in the midst, in directions."""
  norms, (length,) = map(_root, sums[:2])
  alive = norms > 0
  # A sum that nearly cancels is no unit vector once it is made one.
  return jnp.where(
    length > 0.5,
    jnp.where(alive, 1 / jnp.maximum(length, 0.5), 0),
    _first(norms),
  )


def _first(norms):
  """One for the first that has a direction."""
  return (jnp.arange(len(norms)) == jnp.argmax(norms > 0)).astype(norms.dtype)


def _products(vectors, leaf, state, sums):
  """Inner products of the differences to the reference."""
  units = _units(vectors(leaf, state), sums)
  middle = _sum_of(_reference(sums), units)
  apart = [unit - middle for unit in units]
  rows = [[jnp.sum(a * b) for b in apart[: i + 1]] for i, a in enumerate(apart)]
  count = range(len(rows))
  return jnp.stack(
    [jnp.stack([rows[max(i, j)][min(i, j)] for j in count]) for i in count]
  )


def _go_round(of, max_iter, leaf, state, sums):
  norms, table = _root(sums[0]), sums[2]
  coefficients = _on_sphere(
    max_iter,
    table,
    jnp.where(norms > 0, state.weights, 0),
    _first(norms),
    jnp.asarray(state.tol, norms.dtype),
  )
  # From the reference and differences to it back to directions.
  rest = coefficients[0] - jnp.sum(coefficients[1:])
  coefficients = rest * _reference(sums) + coefficients[1:]
  size = jnp.sum(state.weights * norms)
  return _combine(of, leaf, tuple(size * coefficients * _inverse(norms)))


def _on_sphere(max_iter, table, weights, first, tol):
  """Iterates on coefficients of a reference and of the differences to it.

  Args:
    max_iter: Steps at most.
    table: Inner products of the differences, `f32[models, models]`.
    weights: Weights, 0 for what has no direction; `f32[models]`.
    first: One for the first that has a direction, `f32[models]`.
    tol: Length of a step at which it stops.

  Returns:
    Coefficients, `f32[1 + models]`.
  """
  # Of two unit vectors, one times the difference is half its square, negative.
  cross = -jnp.diagonal(table) / 2
  top = jnp.concatenate([jnp.ones_like(cross[:1]), cross])
  table = jnp.concatenate([cross[:, None], table], axis=1)
  table = jnp.concatenate([top[None], table])
  points = jnp.eye(len(first), len(first) + 1, 1, dtype=first.dtype)
  points = points.at[:, 0].set(1)
  weights = weights * _inverse(jnp.sum(weights))

  def product(a, b):
    return jnp.matmul(a, b, precision='highest')

  def size(x):
    return _root(product(x, product(table, x)))

  def step(_, x):
    cosines = jnp.clip(product(points, product(table, x)), -1, 1)
    square = (1 - cosines) * (1 + cosines)
    # The ratio of small angles is 1. That of opposites has no direction.
    turned = square > _PARALLEL
    cosine = jnp.where(turned, cosines, 0)
    sine = jnp.sqrt(jnp.where(turned, square, 1))
    ratio = jnp.where(turned, jnp.arccos(cosine) / sine, 1)
    pull = weights * ratio
    tangent = product(pull, points) - jnp.sum(pull * cosines) * x
    length = size(tangent)
    moved = jnp.cos(length) * x + jnp.sinc(length / jnp.pi) * tangent
    return jnp.where(length < tol, x, moved * _inverse(size(moved)))

  mean = product(weights, points)
  length = size(mean)
  start = jnp.where(
    length > tol, mean * _inverse(length), product(first, points)
  )
  return jax.lax.fori_loop(0, max_iter, step, start)


def toward_mean(
  clip: bool, axis: int | None, init: Callable[..., tuple[()]]
) -> transform.MergeTransform:
  """What `model_stock` is.

  Args:
    clip: Whether the ratio stays in [0, 1].
    axis: The axis along which the vectors lie, or `None` for the whole leaf.
    init: Makes the state, which is empty.

  Returns:
    The transform, which leaves one delta.
  """
  stages = (
    transform.bind(_lengths, _several, axis),
    transform.bind(_resultant, _several, axis),
  )
  update = transform.bind(_toward_mean, clip)
  return _along(axis, transform.from_sums(init, stages, update))


def _several(leaf, state):
  if len(leaf.deltas) < 2:
    raise ValueError(
      'model_stock: one delta has no angle to another; expected two or more '
      'experts that are not yet combined'
    )
  return leaf.deltas


def _toward_mean(clip, leaf, state, sums):
  count = len(leaf.deltas)
  # The square of a sum holds the cosines of all pairs, each twice.
  squares, (square,) = sums
  present = jnp.sum((squares > 0).astype(square.dtype), axis=0)
  cosine = (square - present) / (count * (count - 1))
  if clip:
    cosine = jnp.clip(cosine, 0, 1)
  ratio = count * cosine * _inverse(1 + (count - 1) * cosine)
  mean = transform.average_deltas(leaf.deltas)
  return leaf._replace(deltas=(ratio * mean,))
