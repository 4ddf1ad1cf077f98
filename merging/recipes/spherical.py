"""Merges on spheres, by angles: slerp and its kin for more experts."""

from collections.abc import Mapping
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from merging import patterns
from merging import references
from merging import transform
from merging.combine import interpolate
from merging.combine import spherical
from merging.deltas import scale as scaling
from merging.recipes import interpolation

Weights = Mapping[str, float | jax.Array] | Sequence[float] | jax.Array


@references.cited
def slerp(
  t: float | jax.Array,
  *,
  toward: str | None = None,
  of: spherical.Of = 'parameters',
  threshold: float | jax.Array = 0.9995,
) -> transform.MergeTransform:
  """Goes from one model to another along a great circle (Shoemake, 1985).

  A straight line between two directions cuts through the sphere and makes
  vectors shorter. With the angle `a` between the vectors x_0 and x_1, and for
  each leaf as one vector,

      theta = (sin((1 - t) a) x_0 + sin(t a) x_1) / sin(a)

  At a cosine beyond `threshold`, either way, and where a vector is zero, the
  path is straight: `(1 - t) x_0 + t x_1`. The default is mergekit's. Between
  fine-tuned models of one base most leaves are beyond it; with 1 only vectors
  that float32 cannot tell from parallel ones are. The angle is taken from the
  lengths of `u_0 - u_1` and `u_0 + u_1` and is accurate however small, where
  the arc cosine of mergekit is not. (mergekit takes a zero vector as orthogonal
  to the other, and so makes it longer.)

  Args:
    t: How far to go: 0 for the beginning, 1 for the end.
    toward: Name of the expert at the end; the other of two is at the beginning.
      With one expert the path begins at the base (mergekit's `base_model`).
    of: `'parameters'`, as mergekit, or the `'deltas'` of two experts.
    threshold: Cosine from which on the path is straight.

  Returns:
    The merge. Its `init` raises `ValueError` if there are more than two
    experts, `toward` is missing or unknown, or one delta has no other.

  Raises:
    ValueError: `of` is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([2.0, 0.0])},
    ...   'code': {'w': jnp.array([0.0, 2.0])},
    ... }
    >>> transform = slerp(0.5, toward='code')
    >>> merged = merging.merge(transform, {'w': jnp.ones(2)}, experts)['w']
    >>> [round(x, 4) for x in merged.tolist()]
    [1.4142, 1.4142]

  References:
    Charles Goddard, Shamane Siriwardhana, Malikeh Ehghaghi, Luke Meyers,
    Vladimir Karpukhin, Brian Benedict, Mark McQuade, Jacob Solawetz. "Arcee's
    MergeKit: A Toolkit for Merging Large Language Models". EMNLP 2024.
    arXiv:2403.13257.
  """
  _check_of('slerp', of)

  def init(specs, models):
    where = interpolate.ends('slerp', toward, models)
    if of == 'deltas' and len(models) == 1:
      raise ValueError(
        f'slerp: the delta of {models[0]!r} has no other to turn to; the base '
        "has none. Use of='parameters', or task_arithmetic(t)"
      )
    return spherical.GreatCircle(where, t, threshold)

  return spherical.great_circle('slerp', of, None, init)


@references.cited
def nuslerp(
  weights: Weights,
  *,
  of: spherical.Of = 'parameters',
  axis: interpolation.Axis = None,
  layout: interpolation.Layout = 'in_out',
) -> transform.MergeTransform:
  """Goes between two experts along great circles, as far as weights say.

  The formula of `slerp` with `t = w_1 / (w_0 + w_1)`, at any angle:
  the path is straight only where float32 finds no angle. Weights that add up
  to less than 1e-6 count equally. mergekit is given a base for `of='deltas'`,
  and none for `'parameters'`.

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names.
    of: What is a vector: `'parameters'`, or `'deltas'`, which are then added to
      the base.
    axis: `None` takes each leaf as one vector. For matrices in a frame
      `[out, in]`, 1 takes the weights of every output as one (mergekit's
      `nuslerp_flatten: false`), 0 those of every input (and
      `nuslerp_row_wise: true`); other leaves stay whole.
    layout: How the model stores its matrices (see `on_matrices`); needed with
      an axis.

  Returns:
    The merge. With one expert it is that expert. Its `init` raises `ValueError`
    if there are more than two, weights and experts differ, or there is an axis
    and no matrix.

  Raises:
    ValueError: An option is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([3.0, 1.0])},
    ...   'code': {'w': jnp.array([1.0, 3.0])},
    ... }
    >>> transform = nuslerp({'math': 1, 'code': 1}, of='deltas')
    >>> merged = merging.merge(transform, {'w': jnp.ones(2)}, experts)['w']
    >>> [round(x, 4) for x in merged.tolist()]
    [2.4142, 2.4142]

  References:
    Charles Goddard, Shamane Siriwardhana, Malikeh Ehghaghi, Luke Meyers,
    Vladimir Karpukhin, Brian Benedict, Mark McQuade, Jacob Solawetz. "Arcee's
    MergeKit: A Toolkit for Merging Large Language Models". EMNLP 2024.
    arXiv:2403.13257.
  """
  _check_of('nuslerp', of)

  def init(specs, models):
    where = interpolate.ends('nuslerp', models[-1], models)
    values = scaling.per_model('nuslerp', weights, models)
    if len(models) == 1:
      return spherical.GreatCircle(where, 1.0, 1.0)
    with jax.ensure_compile_time_eval():
      mass = jnp.sum(values)
      some = jnp.abs(mass) >= 1e-6
      t = jnp.where(some, values[1] / jnp.where(some, mass, 1), 0.5)
    return spherical.GreatCircle(where, t, 1.0)

  def along(axis):
    return spherical.great_circle('nuslerp', of, axis, init)

  return interpolation.along_axis('nuslerp', along, axis, layout)


@references.cited
def multislerp(
  weights: Weights | None = None,
  *,
  of: spherical.Of = 'parameters',
  normalize: bool = True,
) -> transform.MergeTransform:
  """Averages directions and lengths of any number of experts apart.

      theta = (sum_t w_t n_t) m / |m|,   m = sum_t w_t u_t

  for each leaf as one vector of length `n_t` and direction `u_t`. mergekit
  projects onto the tangent space at `m / |m|`, averages there and comes back;
  as `m` is the weighted mean itself, that average is zero and this is what is
  left. Zero vectors have no direction, and count in the length. Where the
  directions balance out, the result is `sum_t w_t x_t` (mergekit fails for more
  than two experts).

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names; equal by default.
    of: What is a vector: `'parameters'`, or `'deltas'`, as mergekit if given a
      base.
    normalize: Whether the weights are divided by their sum.

  Returns:
    The merge. Its `init` raises `ValueError` if weights and experts differ, or
    weights to normalise add up to zero.

  Raises:
    ValueError: `of` is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([3.0, 0.0])},
    ...   'code': {'w': jnp.array([0.0, 1.0])},
    ... }
    >>> merged = merging.merge(multislerp(), {'w': jnp.zeros(2)}, experts)['w']
    >>> [round(x, 4) for x in merged.tolist()]
    [1.4142, 1.4142]

  References:
    Charles Goddard, Shamane Siriwardhana, Malikeh Ehghaghi, Luke Meyers,
    Vladimir Karpukhin, Brian Benedict, Mark McQuade, Jacob Solawetz. "Arcee's
    MergeKit: A Toolkit for Merging Large Language Models". EMNLP 2024.
    arXiv:2403.13257.
  """
  _check_of('multislerp', of)

  def init(specs, models):
    return _weights('multislerp', weights, models, normalize)

  return spherical.normalised_mean(of, init)


@references.cited
def karcher(
  weights: Weights | None = None,
  *,
  of: spherical.Of = 'parameters',
  max_iter: int = 10,
  tol: float | jax.Array = 1e-5,
) -> transform.MergeTransform:
  """Takes the point of a sphere that is nearest to all experts' directions.

  The Karcher mean `u` of the directions has the least sum of squared angles;
  the result is `sum_t w_t n_t` times it, for each leaf as one vector. From the
  normalised mean `u` of the directions on,

      v = sum_t w_t (a_t / sin a_t) (u_t - cos(a_t) u),   cos a_t = u_t . u
      u = cos|v| u + sin|v| v / |v|

  until `|v| < tol`. Up to where angles reach a few tenths it is very near to
  `multislerp`. Zero vectors have no direction, and count in the length, as in
  mergekit (which also drops the direction of vectors shorter than `tol`).

  The iteration runs on inner products: a leaf costs one product of
  `[models, n]` and `[n, models]` and a few passes, whatever `max_iter` is.

  Args:
    weights: Weights by the name of the expert, or `f32[models]` in the order of
      the sorted names, normalised to add to 1; equal by default, and always so
      in mergekit.
    of: What is a vector: `'parameters'`, as mergekit, or `'deltas'`, which are
      then added to the base.
    max_iter: Steps at most.
    tol: Length of a step at which it stops, and of a mean of directions that
      counts as none; it then begins at the first expert that has a direction.

  Returns:
    The merge. Its `init` raises `ValueError` if weights and experts differ, or
    weights add up to zero.

  Raises:
    ValueError: `of` is unknown, or `max_iter` is negative.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([3.0, 0.0])},
    ...   'code': {'w': jnp.array([0.0, 1.0])},
    ... }
    >>> transform = karcher({'math': 2, 'code': 1})
    >>> merged = merging.merge(transform, {'w': jnp.zeros(2)}, experts)['w']
    >>> angle = jnp.arctan2(merged[1], merged[0])  # A third of the way.
    >>> round(float(jnp.degrees(angle)), 3)
    30.0

  References:
    Jiayu Wang, Zuojun Ye, Wenpeng Yin. "Functionality-Oriented LLM Merging on
    the Fisher-Rao Manifold". 2026. arXiv:2603.04972.
  """
  _check_of('karcher', of)
  if max_iter < 0:
    raise ValueError(f'karcher: max_iter is {max_iter}, expected 0 or more')

  def init(specs, models):
    values = _weights('karcher', weights, models, normalize=True)
    return spherical.Karcher(values, tol)

  return spherical.karcher_mean(of, max_iter, init)


def _check_of(caller, of):
  patterns.check_option(caller, 'of', of, ('parameters', 'deltas'))


def _weights(caller, weights, models, normalize):
  if weights is None:
    weights = [1.0] * len(models)
  # The same numbers inside a jit: rounded weights move the whole base.
  with jax.ensure_compile_time_eval():
    values = scaling.per_model(caller, weights, models)
    if not normalize:
      return values
    mass = jnp.sum(values)
    size = jnp.sum(jnp.abs(values))
    if not isinstance(mass, jax.core.Tracer) and abs(mass) <= 1e-6 * size:
      raise ValueError(
        f'{caller}: the weights {values.tolist()} of '
        f'{patterns.listing(models)} add up to 0'
      )
    return values / mass
