"""Selecting from one leaf on a host, where a processor partitions numbers.

Counterparts of what `merging.select` and `merging.ranks` do on a device, with
the same result: the same entries, of equal ones the first.
"""

from collections.abc import Iterator

import numpy as np

NOWHERE = 2**31 - 1  # More than any place in a leaf, or bits of a number.


def kth(bits: np.ndarray, scratch: np.ndarray, rank: int) -> tuple[int, int]:
  """Finds the magnitude of a rank, and its place among equals.

  Args:
    bits: Magnitudes as bits (see `select.magnitude_bits`), `u32[size]`.
    scratch: Room for a copy, `u32[size]`.
    rank: Place in ascending order, from 1 to `size`.

  Returns:
    The bits, and the place among the entries equal to it, from 1.

  Examples:
    >>> bits = np.array([3, 1, 2, 1], np.uint32)
    >>> kth(bits, np.empty_like(bits), 2)
    (1, 2)
  """
  ordered = scratch.view(np.int32)  # Partitioned twice as fast as u32.
  ordered[...] = bits.view(np.int32)
  ordered.partition(rank - 1)
  value = int(ordered[rank - 1])
  equal = sum(
    int(np.count_nonzero(part == value)) for part in parts(ordered[:rank])
  )
  return value, equal


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
  passed = 0
  for part in parts(bits):
    places = np.flatnonzero(part == value)
    if len(places) >= number:
      return passed + int(places[number - 1]) + 1 if number else 0
    number -= len(places)
    passed += part.size
  return NOWHERE


def parts(values: np.ndarray) -> Iterator[np.ndarray]:
  """Yields an array in pieces, for which temporaries are small."""
  size = 1 << 20
  return (values[i : i + size] for i in range(0, values.size, size))
