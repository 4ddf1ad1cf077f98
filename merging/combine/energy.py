"""Combining what differs most between experts, weighted by its energy."""

import jax
import jax.numpy as jnp

from merging import checks
from merging import ranks
from merging import select
from merging import transform


def keep_varying(density: float | jax.Array) -> transform.MergeTransform:
  """Keeps the entries of a leaf that vary most over the experts.

  The same entries for all experts: the `int(density n)` of largest variance
  over the experts, where `n` counts the entries of the leaf whose variance is
  not zero; of equal ones the first. A density of 1 or more keeps all entries,
  also those without variance. One expert alone has no variance: with a density
  below 1 nothing of it is kept.

  Args:
    density: Fraction to keep. The product with `n` is taken in float32.

  Returns:
    The transform.

  Raises:
    ValueError: `density` is negative.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, 2.0, 3.0])},
    ...   'code': {'w': jnp.array([1.0, 2.5, -3.0])},
    ... }
    >>> transform = merging.chain(merging.keep_varying(0.5), merging.total())
    >>> merging.merge(transform, {'w': jnp.ones(3)}, experts)['w'].tolist()
    [1.0, 1.0, -1.0]
  """
  if not checks.within(density, least=0):
    raise ValueError(
      f'keep_varying: density is {density}, expected a fraction; 10 % is 0.1'
    )
  return transform.stateless(_keep_varying, density)


def _keep_varying(leaf, density):
  first = leaf.deltas[0]
  # Measured from the first, equal deltas have a variance of exactly zero.
  apart = [delta - first for delta in leaf.deltas]
  mean = transform.average_deltas(apart)
  variance = transform.average_deltas([jnp.square(x - mean) for x in apart])
  varying = jnp.sum(variance > 0, dtype=jnp.uint32)
  density = jnp.asarray(density, jnp.float32)
  number = jnp.floor(jnp.minimum(density, 1) * varying.astype(jnp.float32))
  number = jnp.minimum(number.astype(jnp.uint32), varying)
  [mask] = ranks.largest([select.magnitude_bits(variance)], number)
  keep = mask.reshape(first.shape) | (density >= 1)
  zero = jnp.zeros_like(first)
  deltas = tuple(jnp.where(keep, delta, zero) for delta in leaf.deltas)
  return leaf._replace(deltas=deltas)


def energy_mean() -> transform.MergeTransform:
  """Averages the deltas that agree in sign, weighted by the leaf's energy.

  For a leaf of `n` entries,

      w_t = mean(delta_t^2) / sum_s mean(delta_s^2)
      delta = sum_t w_t keep_t delta_t / sum_t w_t keep_t

  where `keep_t` says that the sign of the entry is that of the unweighted sum
  over experts, or plus where that is zero. All weights are equal if all deltas
  are zero.

  Returns:
    The transform.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([1.0, -1.0])},
    ...   'code': {'w': jnp.array([3.0, 3.0])},
    ... }
    >>> base = {'w': jnp.zeros(2)}
    >>> merged = merging.merge(merging.energy_mean(), base, experts)
    >>> [round(x, 3) for x in merged['w'].tolist()]
    [2.8, 3.0]
  """
  return transform.combine_deltas(_energy_mean)


def _energy_mean(deltas):
  # Relative to the largest entry, squares neither underflow nor overflow.
  top = jnp.max(jnp.stack([jnp.max(jnp.abs(delta)) for delta in deltas]))
  unit = jnp.where(top > 0, top, 1)
  energies = [jnp.mean(jnp.square(delta / unit)) for delta in deltas]
  total = transform.add_deltas(energies)
  elected = transform.add_deltas(deltas) >= 0
  merged = mass = jnp.zeros_like(deltas[0])
  for delta, energy in zip(deltas, energies, strict=True):
    weight = energy / jnp.where(total > 0, total, 1)
    keep = jnp.where(elected, delta > 0, delta < 0)
    merged = merged + jnp.where(keep, weight * delta, 0)
    mass = mass + jnp.where(keep, weight, 0)
  return merged / jnp.where(mass > 0, mass, 1)
