"""The k-th smallest magnitude, exactly, of leaves or of a whole model.

The bits of a non-negative float32, read as an integer, sort like the float, so
selection is a search over integers and needs no sort. A histogram of the upper
16 bits tells the bin that the k-th smallest falls in, and one of the lower 16
bits of that bin's members tells the rest. Histograms add up: two sweeps over
the leaves, in any order, select from a model that is never in memory as a
whole. Within a small leaf, 31 counts of the entries below a candidate find it
bit by bit.

A count here is a pair of words `u32[2, ...]`, high and low, which stands for
`high * 2**16 + low`: a model has more parameters than 32 bits can count, and
64-bit integers need a global flag. Counts of leaves are added word by word, as
any statistic is; `carry` then restores `low < 2**16`. All is exact up to 2**16
leaves and 2**47 entries.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 1 << 16
_UPPER_BITS = 15  # The sign bit is clear.
_LOWER_BITS = 16
_MANY = 1 << 18  # Entries for which histograms are faster than 31 counts.

Array = jax.Array | np.ndarray


def count(value: Array | int) -> jax.Array:
  """Returns integers below 2**32, `u32[...]`, as counts, `u32[2, ...]`.

  Examples:
    >>> carry(count(65535) + count(2)).tolist()
    [1, 1]
  """
  value = jnp.asarray(value, jnp.uint32)
  return jnp.stack([value >> 16, value & (_WORD - 1)])


def count_of_ints(values: Sequence[int]) -> np.ndarray:
  """Returns Python integers of any size as counts, `u32[2, len(values)]`.

  Examples:
    >>> count_of_ints([2**40 + 1]).tolist()
    [[16777216], [1]]
  """
  return np.array([divmod(value, _WORD) for value in values], np.uint32).T


def carry(value: Array) -> jax.Array:
  """Moves what overflows the low word to the high word."""
  high, low = value
  return jnp.stack([high + (low >> 16), low & (_WORD - 1)])


def less(a: Array, b: Array) -> Array:
  """Returns `a < b`, `bool[...]`, for carried counts."""
  return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))


def subtract(a: Array, b: Array) -> Array:
  """Returns `max(a - b, 0)` for carried counts; NumPy's for those of NumPy."""
  xp = np if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else jnp
  a, b = xp.asarray(a), xp.asarray(b)
  difference = a - b
  high = difference[:1] - (a[1:] < b[1:]).astype(xp.uint32)
  low = difference[1:] & xp.uint32(_WORD - 1)
  whole = xp.concatenate([high, low])
  return xp.where(less(a, b)[None], xp.zeros_like(whole), whole)


def saturate(value: Array) -> Array:
  """Returns carried counts as integers, `u32[...]`, at most 2**32 - 1."""
  high, low = value
  return jnp.where(high < _WORD, (high << 16) | low, jnp.uint32(2**32 - 1))


def cumulative(value: Array) -> jax.Array:
  """Returns running sums over the last axis, of at most 2**16 counts."""
  return carry(jnp.cumsum(value, axis=-1))


def kept(density: float | jax.Array, sizes: Sequence[int]) -> Array:
  """Returns `floor(density * size)` for each size, at most the size.

  A Python or NumPy number is multiplied as the reference codes do, as a Python
  float. A `jax.Array` is multiplied in float32: of more than 2**24 entries, the
  number to keep may be off by a few in 2**24.

  Args:
    density: Fraction, `f32[]`.
    sizes: Numbers of entries.

  Returns:
    Counts, `u32[2, len(sizes)]`.

  Examples:
    >>> kept(0.2, [10, 1_000_000]).tolist()
    [[0, 3], [2, 3392]]
  """
  if not isinstance(density, jax.Array):
    return count_of_ints([int(size * float(density)) for size in sizes])
  whole = count_of_ints(sizes)
  fraction = jnp.clip(density, 0, 1).astype(jnp.float32)
  product = jnp.floor(fraction * np.array(sizes, np.float32))
  high = jnp.floor(product / _WORD)
  value = jnp.stack([high, product - high * _WORD]).astype(jnp.uint32)
  return jnp.where(less(whole, value)[None], whole, value)


def magnitude_bits(x: jax.Array) -> jax.Array:
  """Returns integers that sort like `|x|`, in one dimension.

  Args:
    x: `f32[*shape]`, or a narrower float.

  Returns:
    `u32[size]`, below 2**31.

  Raises:
    TypeError: `x` is wider than 32 bits.
  """
  if x.dtype.itemsize > 4:
    raise TypeError(
      f'magnitudes are compared in float32, got deltas in {x.dtype}; cast the '
      'models to float32'
    )
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  return (bits & jnp.uint32(2**31 - 1)).ravel()


class Kth(NamedTuple):
  """The k-th smallest magnitude of each model, found by histograms.

  Attributes:
    bits: Its bits, `u32[models]`.
    place: Its place among the entries equal to it, from 1; a count per model.
    equal: How many entries are equal to it; a count per model.
  """

  bits: jax.Array
  place: Array
  equal: Array


def upper_histogram(bits: Sequence[jax.Array]) -> jax.Array:
  """Counts entries by their upper bits, `u32[2, models, 2**15]`.

  Args:
    bits: `u32[size]` for each model.

  Returns:
    Counts, which add up over leaves.
  """
  return count(_histograms([row >> 16 for row in bits], _UPPER_BITS))


def lower_histogram(bits: Sequence[jax.Array], upper: Kth) -> jax.Array:
  """Counts entries in the bin of `upper` by their lower bits.

  Args:
    bits: `u32[size]` for each model.
    upper: What `pick_upper` found.

  Returns:
    Counts, `u32[2, models, 2**16]`, which add up over leaves.
  """
  nowhere = jnp.uint32(1 << _LOWER_BITS)
  lower = [
    jnp.where(row >> 16 == chosen >> 16, row & (_WORD - 1), nowhere)
    for row, chosen in zip(bits, upper.bits, strict=True)
  ]
  return count(_histograms(lower, _LOWER_BITS))


def pick_upper(histogram: jax.Array, rank: Array) -> Kth:
  """Finds the bin that holds the entry of a rank.

  Args:
    histogram: Sum of `upper_histogram`.
    rank: Place in ascending order (see `kth_smallest`), a count for each model.

  Returns:
    The upper half of `bits`; `place` and `equal` are of the bin.
  """
  chosen, place, equal = _pick(histogram, rank, _UPPER_BITS)
  return Kth(chosen << 16, place, equal)


def pick_lower(histogram: jax.Array, upper: Kth) -> Kth:
  """Completes what `pick_upper` began.

  Args:
    histogram: Sum of `lower_histogram`.
    upper: What `pick_upper` found.

  Returns:
    The k-th smallest magnitudes.

  Examples:
    >>> bits = [magnitude_bits(jnp.array([3.0, -1.0, 2.0, -2.0]))]
    >>> upper = pick_upper(upper_histogram(bits), count(jnp.array([3])))
    >>> kth = pick_lower(lower_histogram(bits, upper), upper)
    >>> jax.lax.bitcast_convert_type(kth.bits, jnp.float32).tolist()
    [2.0]
    >>> kth.place[1].tolist(), kth.equal[1].tolist()
    ([2], [2])
  """
  chosen, place, equal = _pick(histogram, upper.place, _LOWER_BITS)
  return Kth(upper.bits | chosen, place, equal)


def kth_smallest(bits: Sequence[jax.Array], rank: Array | int) -> jax.Array:
  """Returns the magnitudes of a rank among the entries of one leaf, as bits.

  Args:
    bits: `u32[size]` for each model, below 2**31.
    rank: Place in ascending order, from 1; `u32[]`, or `u32[models]`. 0 finds
      the smallest magnitude there could be, a rank beyond the size one above
      them all.

  Returns:
    `u32[models]`.

  Examples:
    >>> bits = magnitude_bits(jnp.array([3.0, -1.0, 2.0, -2.0]))
    >>> kth = kth_smallest([bits], 3)
    >>> jax.lax.bitcast_convert_type(kth, jnp.float32).tolist()
    [2.0]
  """
  ranks = jnp.broadcast_to(jnp.asarray(rank, jnp.uint32), len(bits))
  if bits[0].size > _MANY:
    upper = pick_upper(upper_histogram(bits), count(ranks))
    return pick_lower(lower_histogram(bits, upper), upper).bits
  rows = jnp.stack(bits)

  def precedes(candidate):
    below = jnp.sum(rows < candidate[:, None], axis=1, dtype=jnp.uint32)
    return below < ranks

  return _bisect(precedes, len(bits), 31)


def _histograms(rows, num_bits):
  # One scatter for each model: batched, they are two to four times slower on
  # CPU. Bins out of range are not counted.
  empty = jnp.zeros(1 << num_bits, jnp.uint32)
  return jnp.stack([empty.at[row].add(1, mode='drop') for row in rows])


def _pick(histogram, ranks, num_bits):
  """Returns the bin of a rank, the place in it and its size, for each model."""
  histogram = carry(histogram)
  bins = jnp.arange(1 << num_bits, dtype=jnp.uint32)[None]

  def total(which):
    return carry(jnp.sum(jnp.where(which[None], histogram, 0), axis=2))

  def precedes(candidate):
    return less(total(bins < candidate[:, None]), ranks)

  chosen = _bisect(precedes, histogram.shape[1], num_bits)[:, None]
  before, equal = total(bins < chosen), total(bins == chosen)
  return chosen[:, 0], subtract(ranks, before), equal


def _bisect(precedes, models, num_bits):
  """Returns the largest `x < 2**num_bits` with `precedes(x)`, or 0."""

  def step(i, found):
    bit = jnp.uint32(1) << (num_bits - 1 - i).astype(jnp.uint32)
    candidate = found | bit
    return jnp.where(precedes(candidate), candidate, found)

  return jax.lax.fori_loop(0, num_bits, step, jnp.zeros(models, jnp.uint32))
