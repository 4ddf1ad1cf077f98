"""Dropping changes at random, small ones more often."""

from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import draws
from merging import host
from merging import patterns
from merging import ranks
from merging import references
from merging import transform
from merging.deltas import drop


class _State(NamedTuple):
  density: float | jax.Array
  window: float | jax.Array
  seeds: draws.Seeds


@references.cited
def magprune(
  density: float | jax.Array,
  window: float | jax.Array,
  *,
  key: jax.Array,
  rescale: Literal['expectation', 'l1', 'l2', 'linf', 'none'] = 'expectation',
) -> transform.MergeTransform:
  """Drops small changes with a higher probability than large ones (MagPrune).

  Between keeping the largest changes (TIES) and keeping any (DARE). In a row of
  `n` entries, the one of rank `r = 0, 1, ..., n - 1` in ascending order of
  magnitude is kept with probability

      p = density + window (r / (n - 1) - 1/2)

  and divided by it, which leaves its expectation as it was. A row of one entry
  (for which the original code divides zero by zero) is kept with probability
  `density`. The mask depends on the key, the path and the expert's name only.

  Rows are those of matrices `[out, in]`: wrap it in `on_matrices` for kernels
  that are stored otherwise, as `della` does. Any other leaf is one row. Ranks
  cost one sort of each row for each expert.

  Args:
    density: Average probability of keeping an entry.
    window: Difference between the probabilities of the largest and the smallest
      entry of a row, with 0 < density - window / 2 and
      density + window / 2 <= 1. The paper's epsilon, twice mergekit's. With 0
      this is `drop_and_rescale(1 - density)`.
    key: Random key, as of `jax.random.key(0)`.
    rescale: See `drop_and_rescale`; `'expectation'` is the paper's, `'l1'`
      mergekit's.

  Returns:
    The transform.

  Raises:
    ValueError: A probability is not in (0, 1], or `rescale` is unknown.
    TypeError: `key` is not a random key.

  Examples:
    >>> import merging
    >>> transform = merging.chain(
    ...   merging.magprune(0.5, 0.4, key=jax.random.key(0)), merging.total()
    ... )
    >>> base, expert = {'w': jnp.zeros(3)}, {'w': jnp.array([0.5, -1.0, 2.0])}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> bool(jnp.all((merged['w'] == 0) | (merged['w'] * expert['w'] > 0)))
    True

  References:
    Pala Tej Deep, Rishabh Bhardwaj, Soujanya Poria. "DELLA-Merging: Reducing
    Interference in Model Merging through Magnitude-Based Sampling". 2024.
    arXiv:2406.11617.
  """
  patterns.check_option('magprune', 'rescale', rescale, drop.RESCALES)
  fixed = not any(isinstance(x, jax.core.Tracer) for x in (density, window))
  if fixed and not (
    window >= 0 and density - window / 2 > 0 and density + window / 2 <= 1
  ):
    raise ValueError(
      f'magprune: density {density} and window {window} give probabilities '
      f'from {density - window / 2} to {density + window / 2}, expected '
      '0 < density - window / 2 <= density + window / 2 <= 1; take a narrower '
      'window'
    )
  draws.check_key('magprune', key)

  def init(specs, models):
    return _State(density, window, draws.seeds(key, specs, models))

  found = ranks.SELECTION
  if rescale != 'expectation':
    found = drop.choice(rescale, _drawn, _above, by_row=True)
  by_place = draws.by_place(key)
  return transform.MergeTransform(
    init,
    (),
    transform.bind(_prune, rescale),
    rowwise=lambda spec: by_place and rescale in ('expectation', 'none'),
    selection=lambda spec: found if by_place else None,
  )


def _prune(rescale, leaf, state, selected=None, **extra):
  if selected is not None and rescale != 'expectation':
    return drop.scale_kept(leaf, selected)
  density, window = _numbers(state)
  keeps, rates = [], []
  for place, least in zip(
    ranks.in_rows(leaf, selected), _least(leaf, state), strict=True
  ):
    last = place.shape[1] - 1
    middle = place.astype(jnp.float32) / last if last else jnp.float32(0.5)
    rate = jnp.clip(density + window * (middle - 0.5), 0, 1)
    rates.append(jnp.broadcast_to(rate, place.shape).reshape(leaf.base.shape))
    keeps.append((place >= least).reshape(leaf.base.shape))
  return drop.keep(rescale, leaf, keeps, rates)


def _numbers(state):
  return (
    jnp.asarray(state.density, jnp.float32),
    jnp.asarray(state.window, jnp.float32),
  )


def _least(leaf, state):
  """Draws the smallest place that an entry is kept at, `u32[rows, width]`.

  A number `u` keeps places with `u < density + window (r / last - 1/2)`: those
  beyond `last ((u - density) / window + 1/2)`.
  """
  density, window = _numbers(state)
  found = []
  for numbers in draws.uniforms('magprune', leaf, state.seeds):
    drawn = ranks.as_rows(numbers)
    width = drawn.shape[1]
    flat = (window <= 0) | (width == 1)
    # A factor, not a divisor: see `drop`.
    inverse = 1 / jnp.where(flat, 1, window)
    beyond = (width - 1) * ((drawn - density) * inverse + 0.5)
    same = jnp.where(drawn < density, 0, width)
    place = jnp.where(flat, same, jnp.floor(beyond) + 1)
    found.append(jnp.clip(place, 0, width).astype(jnp.uint32))
  return found


def _drawn(leaf, state, model):
  (row,) = ranks.magnitudes(leaf)
  state = state._replace(seeds=draws.of_model(state.seeds, model))
  (least,) = _least(leaf, state)
  return row.astype(jnp.float32), least


def _above(drawn):
  return host.above(*drawn)
