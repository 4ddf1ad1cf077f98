"""Selecting from one leaf on a host, where a processor looks through it fast.

Counterparts of what `merging.select` and `merging.ranks` do on a device, with
the same result: the same entries, of equal ones the first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

NOWHERE = 2**31 - 1  # More than any place in a leaf, or bits of a number.
_FEW = 1 << 16  # Entries that are simply sorted.
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


def parts(values: np.ndarray) -> Iterator[np.ndarray]:
  """Yields an array in pieces, for which temporaries are small."""
  size = 1 << 18
  return (values[i : i + size] for i in range(0, values.size, size))
