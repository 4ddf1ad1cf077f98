"""Keeping changes of middling magnitude."""

import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import host
from merging import patterns
from merging import ranks
from merging import references
from merging import select
from merging import selections
from merging import transform


class _State(NamedTuple):
  low: select.Array  # How many of the smallest to drop, counts, [2, leaves].
  high: select.Array  # How many of the largest.


@references.cited
def keep_band(
  drop_low: float | jax.Array,
  drop_high: float | jax.Array,
  *,
  scope: Literal['tensor', 'row'] = 'tensor',
) -> transform.MergeTransform:
  """Zeroes the smallest changes of a leaf, and the largest ones.

  The smallest are noise, and the largest are outliers that disturb the other
  tasks. Of `n` entries, with ties in the order of the entries, the
  `int(drop_low n)` smallest and the `int(drop_high n)` largest are dropped.

  Args:
    drop_low: Fraction of smallest entries to drop.
    drop_high: Fraction of largest entries to drop, at most `1 - drop_low`.
    scope: Select within each `'tensor'`, as the paper's layer-wise masks and
      mergekit do, or within each `'row'` of a matrix, as the authors' code
      does. Rows are those of matrices `[out, in]` (wrap it in `on_matrices` for
      kernels that are stored otherwise), and any other leaf is one row.

  Returns:
    The transform.

  Raises:
    ValueError: The fractions are not in [0, 1] or add up to more than 1, or
      `scope` is unknown.

  Examples:
    >>> import merging
    >>> transform = merging.chain(merging.keep_band(0.5, 0.25), merging.total())
    >>> base, expert = {'w': jnp.zeros(4)}, {'w': jnp.array([1.0, -9, 2, 3])}
    >>> merging.merge(transform, base, {'expert': expert})['w'].tolist()
    [0.0, 0.0, 0.0, 3.0]

  References:
    MohammadReza Davari, Eugene Belilovsky. "Model Breadcrumbs: Scaling
    Multi-Task Model Merging with Sparse Masks". ECCV 2024. arXiv:2312.06795.
  """
  patterns.check_option('keep_band', 'scope', scope, ('tensor', 'row'))
  if not (
    checks.within(drop_low, least=0)
    and checks.within(drop_high, least=0)
    and checks.within(drop_low + drop_high, most=1 + 1e-6)
  ):
    raise ValueError(
      f'keep_band: drop_low is {drop_low} and drop_high is {drop_high}, '
      'expected fractions that add up to at most 1; to keep the middle 14 % '
      'below the largest 1 %, drop_low is 0.85'
    )

  def init(specs, models):
    sizes = [_row_size(scope, spec.shape) for spec in specs]
    low = select.kept(drop_low, sizes)
    return _State(low, select.kept(drop_high, sizes))

  found = ranks.SELECTION
  if scope == 'tensor':
    found = selections.Numbers(_values, _find)
  return transform.MergeTransform(
    init,
    (),
    transform.bind(_keep, scope),
    rowwise=lambda spec: scope == 'row',
    selection=lambda spec: found,
  )


def _row_size(scope, shape):
  return shape[1] if scope == 'row' and len(shape) == 2 else math.prod(shape)


def _ends(leaf, state):
  """Numbers of entries to drop below the band, and above it."""
  return tuple(
    select.saturate(jnp.asarray(count)[:, leaf.index]) for count in state
  )


def _values(leaf, state, model):
  (delta,) = leaf.deltas
  return select.magnitude_bits(delta), jnp.stack(_ends(leaf, state))


def _find(bits, ends):
  """Finds the ends of the band of an expert, each with the place of a tie."""
  low, high = map(int, ends)
  found = []
  for number in (low, max(bits.size - high, low)):
    if number:
      end = host.kth(bits, number)
      found += [end.bits, host.place(bits, end.bits, end.place)]
    else:
      found += [0, 0]
  return tuple(found)


def _keep_selected(leaf, selected):
  start = jnp.asarray(leaf.start, jnp.uint32) + 1
  places = start + jnp.arange(leaf.base.size, dtype=jnp.uint32)
  deltas = []
  for delta, (low, low_place, end, end_place) in zip(
    leaf.deltas, selected, strict=True
  ):
    bits = select.magnitude_bits(delta)
    dropped = (bits < low) | ((bits == low) & (places <= low_place))
    below = (bits < end) | ((bits == end) & (places <= end_place))
    mask = (below & ~dropped).reshape(delta.shape)
    deltas.append(jnp.where(mask, delta, jnp.zeros_like(delta)))
  return leaf._replace(deltas=tuple(deltas))


def _keep(scope, leaf, state, selected=None, **extra):
  if selected is not None and scope == 'tensor':
    return _keep_selected(leaf, selected)
  low, high = _ends(leaf, state)
  size = _row_size(scope, leaf.base.shape)
  end = jnp.maximum(np.uint32(size) - high, low)
  if scope == 'row':
    masks = [
      (place >= low) & (place < end) for place in ranks.in_rows(leaf, selected)
    ]
  else:
    rows = [select.magnitude_bits(delta) for delta in leaf.deltas]
    masks = [
      below & ~dropped
      for below, dropped in zip(
        ranks.smallest(rows, end), ranks.smallest(rows, low), strict=True
      )
    ]
  deltas = tuple(
    jnp.where(mask.reshape(delta.shape), delta, jnp.zeros_like(delta))
    for mask, delta in zip(masks, leaf.deltas, strict=True)
  )
  return leaf._replace(deltas=deltas)
