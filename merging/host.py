"""Selecting from one leaf on a host, where a processor looks through it fast.

Counterparts of what `merging.select` and `merging.ranks` do on a device, with
the same result: the same entries, of equal ones the first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NOWHERE = 2**31 - 1  # More than any place in a leaf, or bits of a number.
_FEW = 1 << 16  # Entries that are simply sorted.
_ROWS = 1 << 15  # Entries of rows that fit a cache, in several copies.
_SAMPLE = 1 << 13


class Kth(NamedTuple):
  """The magnitude of a rank.

  Attributes:
    bits: Its bits.
    place: Its place among the entries equal to it, from 1.
    equal: How many entries are equal to it.
  """

  bits: int
  place: int
  equal: int


def kth(bits: np.ndarray, rank: int) -> Kth:
  """Finds the magnitude of a rank.

  A sample says between which two magnitudes it lies, most likely; a pass counts
  what is below, and what equals the two, and takes out the few in between. All
  is counted, so the result is exact, whatever the sample. Partitioning all
  entries would take long where many are equal, as in experts that left most
  weights as they were.

  Args:
    bits: Magnitudes as bits (see `select.magnitude_bits`), `u32[size]`.
    rank: Place in ascending order, from 1 to `size`.

  Returns:
    The magnitude.

  Examples:
    >>> kth(np.array([3, 1, 2, 1], np.uint32), 2)
    Kth(bits=1, place=2, equal=2)
  """
  while bits.size > _FEW:
    low, high = _bracket(bits, rank)
    below = at_low = at_high = 0
    between = []
    for part in parts(bits):
      below += int(np.count_nonzero(part < low))
      at_low += int(np.count_nonzero(part == low))
      if low < high:
        at_high += int(np.count_nonzero(part == high))
        between.append(part[(part > low) & (part < high)])
    inside = sum(part.size for part in between)
    if rank <= below:
      bits = np.concatenate([part[part < low] for part in parts(bits)])
      continue
    rank -= below
    if rank <= at_low:
      return Kth(low, rank, at_low)
    rank -= at_low
    if rank <= inside:
      bits = np.concatenate(between)
      continue
    rank -= inside
    if rank <= at_high:
      return Kth(high, rank, at_high)
    rank -= at_high
    bits = np.concatenate([part[part > high] for part in parts(bits)])
  ordered = np.sort(bits)
  value = ordered[rank - 1]
  first, end = (
    int(np.searchsorted(ordered, value, side)) for side in ('left', 'right')
  )
  return Kth(int(value), rank - first, end - first)


def _bracket(bits: np.ndarray, rank: int) -> tuple[int, int]:
  """Returns two entries between which one of a rank most likely lies."""
  sample = np.sort(bits[:: -(-bits.size // _SAMPLE)])
  middle = rank / bits.size * sample.size
  apart = 4 * np.sqrt(sample.size) / 2 + 1  # Standard deviations of the place.
  last = sample.size - 1
  low = sample[int(np.clip(middle - apart, 0, last))]
  high = sample[int(np.clip(middle + apart, 0, last))]
  return int(low), int(high)


def place(bits: np.ndarray, value: int, number: int) -> int:
  """Returns the place, from 1, of an entry among those that equal a value.

  Args:
    bits: `u32[size]`.
    value: What entries equal.
    number: Which of them, from 1; 0 is before all.

  Returns:
    The place in `bits`.

  Examples:
    >>> place(np.array([3, 1, 2, 1], np.uint32), 1, 2)
    4
  """
  if not number:
    return 0
  passed = 0
  for part in parts(bits):
    equal = part == value
    count = int(np.count_nonzero(equal))
    if count >= number:
      return passed + int(np.flatnonzero(equal)[number - 1]) + 1
    number -= count
    passed += part.size
  return NOWHERE


def above(magnitudes: np.ndarray, least: np.ndarray) -> np.ndarray:
  """Tells which entries have at least some place in the order of their row.

  Args:
    magnitudes: Not negative, `f32[rows, width]`.
    least: For each entry, a place in ascending order, from 0 to `width`, which
      none has; `u32[rows, width]`.

  Returns:
    `bool[rows, width]`; of equal entries the first has the smaller place.

  Examples:
    >>> magnitudes = np.array([[3, 1, 2, 1]], np.float32)
    >>> above(magnitudes, np.array([[4, 0, 2, 2]], np.uint32)).tolist()
    [[False, True, True, False]]
  """
  marked = np.empty(magnitudes.shape, bool)
  for part in _some_rows(magnitudes):
    keys = _keys(magnitudes[part])
    count, width = keys.shape
    ordered = np.empty((count, width + 1), np.uint64)
    ordered[:, :-1], ordered[:, -1] = keys, 2**64 - 1
    ordered[:, :-1].sort(axis=1)
    # An entry is at a place or beyond if its key reaches the one there.
    place = least[part] + np.arange(0, ordered.size, width + 1)[:, None]
    np.greater_equal(keys, ordered.ravel().take(place), out=marked[part])
  return marked


def places(magnitudes: np.ndarray) -> np.ndarray:
  """Returns the place of each entry in the order of its row, from 0.

  Args:
    magnitudes: Not negative, `f32[rows, width]`.

  Returns:
    `u32[rows, width]`; of equal entries the first has the smaller place.

  Examples:
    >>> places(np.array([[3, 1, 2, 1]], np.float32)).tolist()
    [[3, 0, 2, 1]]
  """
  found = np.empty(magnitudes.shape, np.uint32)
  order = np.arange(magnitudes.shape[1], dtype=np.uint32)
  for part in _some_rows(magnitudes):
    keys = _keys(magnitudes[part])
    keys.sort(axis=1)
    columns = (keys & np.uint64(2**32 - 1)).astype(np.intp)
    np.put_along_axis(found[part], columns, order[None], axis=1)
  return found


def _some_rows(values):
  """Yields slices of as many rows as a cache holds in several copies."""
  count, width = values.shape
  step = max(_ROWS // width, 1)
  return (slice(i, min(i + step, count)) for i in range(0, count, step))


def _keys(magnitudes):
  """Numbers that sort like entries and, where these are equal, their places."""
  keys = magnitudes.view(np.uint32).astype(np.uint64)
  keys <<= np.uint64(32)
  keys |= np.arange(keys.shape[1], dtype=np.uint64)
  return keys


def parts(values: np.ndarray) -> Iterator[np.ndarray]:
  """Yields an array in pieces, for which temporaries are small."""
  size = 1 << 18
  return (values[i : i + size] for i in range(0, values.size, size))
