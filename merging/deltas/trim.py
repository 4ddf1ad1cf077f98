"""Keeping the largest changes of each expert."""

import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import host
from merging import patterns
from merging import references
from merging import select
from merging import selections
from merging import transform


class _State(NamedTuple):
  rank: select.Array  # a count, or one per leaf in tensor scope
  kth: select.Kth | None = None  # [models], of the whole model, once swept
  earlier: select.Array | None = None  # ties in leaves before, [models, leaves]


@references.cited
def trim(
  density: float | jax.Array,
  *,
  scope: Literal['global', 'tensor'] = 'global',
  ties: Literal['threshold', 'index'] = 'threshold',
) -> transform.MergeTransform:
  """Keeps the fraction of entries of largest magnitude, and zeroes the others.

  Most of what fine-tuning changes does not matter, and hides what does when
  experts are combined. For each expert, with `n` entries (of the model or of
  the leaf), the entries kept are those with

      |delta| >= the (n - int(density n))-th smallest |delta|

  The selection is exact, in two sweeps that count (see `merging.select`).

  Args:
    density: Fraction to keep, in [0, 1]. A Python or NumPy number gives the
      `int(density * n)` of the reference codes; a `jax.Array` (or a tracer) is
      multiplied in float32, which for a large `n` may differ by a few entries.
    scope: Select among all entries of the model, as TIES does, or within each
      `'tensor'`, as mergekit and most re-implementations do.
    ties: `'threshold'` follows the authors' code: it keeps one entry more than
      `int(density * n)`, and all that equal it; in bfloat16 models, where many
      magnitudes are equal, that can be far more. `'index'` keeps exactly
      `int(density * n)`, and of equal ones the first, in the order of the
      sorted paths and then of the entries (mergekit leaves it to the sort, and
      keeps at least one entry of each tensor).

  Returns:
    The transform.

  Raises:
    ValueError: `density` is not a fraction, or an option is unknown.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.trim(0.5), merging.total())
    >>> base, expert = {'w': jnp.zeros(4)}, {'w': jnp.array([1.0, -4, 2, 3])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, -4.0, 2.0, 3.0]
    >>> transform = merging.chain(
    ...   merging.trim(0.5, ties='index'), merging.total()
    ... )
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, -4.0, 0.0, 3.0]

  References:
    Prateek Yadav, Derek Tam, Leshem Choshen, Colin Raffel, Mohit Bansal.
    "TIES-Merging: Resolving Interference When Merging Models". NeurIPS 2023.
    arXiv:2306.01708.
  """
  patterns.check_option('trim', 'scope', scope, ('global', 'tensor'))
  patterns.check_option('trim', 'ties', ties, ('threshold', 'index'))
  if not checks.within(density, least=0, most=1):
    raise ValueError(
      f'trim: density is {density}, expected a fraction in [0, 1]; 20 % is 0.2'
    )

  def init(specs, models):
    sizes = [math.prod(spec.shape) for spec in specs]
    if scope == 'global':
      sizes = [sum(sizes)]
    kept = select.kept(density, sizes)
    above = select.count_of_ints([size + (ties == 'index') for size in sizes])
    rank = select.subtract(above, kept)
    if scope == 'tensor':
      return _State(rank)
    earlier = np.zeros((2, len(models), len(specs)), np.uint32)
    return _State(rank[:, 0], earlier=earlier)

  if scope == 'tensor':
    found = selections.Numbers(_values, transform.bind(_find, ties))
    return transform.MergeTransform(
      init,
      (),
      transform.bind(_update_tensor, ties),
      selection=lambda spec: found,
    )
  sweeps = (
    transform.Observer(_observe_upper, _finish_upper),
    transform.Observer(_observe_lower, _finish_lower),
    transform.Observer(_observe_ties, _finish_ties),
  )
  return transform.MergeTransform(
    init,
    sweeps if ties == 'index' else sweeps[:2],
    transform.bind(_update_global, ties),
    entrywise=transform.always if ties == 'threshold' else transform.never,
  )


def _bits(leaf):
  return [select.magnitude_bits(delta) for delta in leaf.deltas]


def _observe_upper(leaf, state, **extra):
  return select.upper_histogram(_bits(leaf))


def _finish_upper(statistic, state):
  rank = jnp.broadcast_to(state.rank[:, None], statistic.shape[:2])
  return state._replace(kth=select.pick_upper(statistic, rank))


def _observe_lower(leaf, state, **extra):
  return select.lower_histogram(_bits(leaf), state.kth)


def _finish_lower(statistic, state):
  return state._replace(kth=select.pick_lower(statistic, state.kth))


def _observe_ties(leaf, state, **extra):
  ties = [
    jnp.sum(bits == threshold, dtype=jnp.uint32)
    for bits, threshold in zip(_bits(leaf), state.kth.bits, strict=True)
  ]
  empty = jnp.zeros_like(state.earlier)
  return empty.at[:, :, leaf.index].set(select.count(jnp.stack(ties)))


def _finish_ties(statistic, state):
  ties = select.carry(statistic)
  running = select.cumulative(ties)
  return state._replace(earlier=select.subtract(running, ties))


def _values(leaf, state, model):
  (bits,) = _bits(leaf)
  return bits, select.saturate(jnp.asarray(state.rank)[:, leaf.index])


def _find(ties, bits, rank):
  """Finds the threshold of an expert, and the place of its last tie to keep."""
  rank = int(rank)
  if not 1 <= rank <= bits.size:
    return (0 if rank < 1 else host.NOWHERE), host.NOWHERE
  found = host.kth(bits, rank)
  if ties == 'threshold':
    return found.bits, host.NOWHERE
  # As many ties are kept as there are from the rank on, but the first ones.
  kept = found.equal - found.place + 1
  return found.bits, host.place(bits, found.bits, kept)


def _update_tensor(ties, leaf, state, selected=None, **extra):
  bits = _bits(leaf)
  if selected is not None:
    return _keep_up_to(ties, leaf, bits, *zip(*selected, strict=True))
  rank = select.saturate(jnp.asarray(state.rank)[:, leaf.index])
  thresholds = select.kth_smallest(bits, rank)
  kept = bits[0].size + 1 - rank
  larger = [
    jnp.sum(row > threshold, dtype=jnp.uint32)
    for row, threshold in zip(bits, thresholds, strict=True)
  ]
  return _keep(ties, leaf, bits, thresholds, kept - jnp.stack(larger))


def _update_global(ties, leaf, state, **extra):
  kth = state.kth
  # The entries that equal the k-th are kept from its place on, less those that
  # earlier leaves keep.
  before = select.subtract(kth.place, select.count(1)[:, None])
  earlier = jnp.asarray(state.earlier)[:, :, leaf.index]
  wanted = select.subtract(select.subtract(kth.equal, before), earlier)
  return _keep(ties, leaf, _bits(leaf), kth.bits, select.saturate(wanted))


def _keep(ties, leaf, bits, thresholds, wanted):
  last = None
  if ties == 'index':
    # The place of the last tie to keep is the k-th smallest of their places.
    places = jnp.arange(1, bits[0].size + 1, dtype=jnp.uint32)
    of_ties = [
      jnp.where(row == each, places, jnp.uint32(host.NOWHERE))
      for row, each in zip(bits, thresholds, strict=True)
    ]
    last = select.kth_smallest(of_ties, wanted)
  return _keep_up_to(ties, leaf, bits, thresholds, last)


def _keep_up_to(ties, leaf, bits, thresholds, last):
  """Keeps what is above a threshold, and ties up to a place in the leaf."""
  if ties == 'threshold':
    keeps = [row >= each for row, each in zip(bits, thresholds, strict=True)]
  else:
    first = jnp.asarray(leaf.start, jnp.uint32) + 1
    places = first + jnp.arange(bits[0].size, dtype=jnp.uint32)
    keeps = [
      (row > threshold) | ((row == threshold) & (places <= end))
      for row, threshold, end in zip(bits, thresholds, last, strict=True)
    ]
  deltas = [
    jnp.where(keep.reshape(delta.shape), delta, jnp.zeros_like(delta))
    for keep, delta in zip(keeps, leaf.deltas, strict=True)
  ]
  return leaf._replace(deltas=tuple(deltas))
