"""Memory that is used again, and no more of it than is allowed."""

import numpy as np

from merging import buffers


def test_buffers_are_aligned_and_used_again():
  store = buffers.Buffers(1000)
  with store.lease() as lease:
    first = lease.take(100, np.dtype(np.uint8))
    assert first.ctypes.data % 64 == 0
  with store.lease() as lease:
    again = lease.take(25, np.dtype(np.float32))
    other = lease.take(25, np.dtype(np.float32))
    assert again.ctypes.data == first.ctypes.data
    assert other.ctypes.data != first.ctypes.data


def test_what_is_kept_is_bounded_and_of_the_latest_size():
  store = buffers.Buffers(1000)
  for size in (150, 200, 250):
    with store.lease() as lease:
      for _ in range(3):
        lease.take(size, np.dtype(np.uint8))
  kept = {size: len(each) for size, each in store._free.items() if each}
  assert kept == {250: 3}
  store.put(np.empty(600, np.uint8))  # Too large to keep.
  assert kept == {250: 3}


def test_two_leases_never_share_a_buffer():
  store = buffers.Buffers(1000)
  with store.lease() as one, store.lease() as two:
    a, b = (each.take(10, np.dtype(np.uint8)) for each in (one, two))
    a[:], b[:] = 1, 2
    assert a.tolist() == [1] * 10
