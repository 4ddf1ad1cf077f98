"""Memory for pieces of models: used again, and looked over at full speed."""

import threading
from types import TracebackType

import numpy as np

_ALIGNED = 64  # Bytes; what XLA needs to use a buffer where it lies.


class Buffers:
  """Aligned buffers that are used again: fresh pages cost as much as a read.

  XLA reads such a buffer where it lies, so nobody else may have it until the
  program that reads it is done.

  Examples:
    >>> buffers = Buffers(1 << 20)
    >>> with buffers.lease() as lease:
    ...   lease.take(3, np.dtype(np.float32)).shape
    (3,)
  """

  def __init__(self, keep: int):
    """Takes how many bytes to keep that nobody uses."""
    self._keep = keep
    self._kept = 0
    self._free: dict[int, list[np.ndarray]] = {}
    self._lock = threading.Lock()

  def lease(self) -> 'Lease':
    """Returns a context at the end of which buffers come back."""
    return Lease(self)

  def get(self, size: int) -> np.ndarray:
    """Returns a buffer of so many bytes, `u8[size]`."""
    with self._lock:
      if self._free.get(size):
        self._kept -= size
        return self._free[size].pop()
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size]

  def put(self, buffer: np.ndarray) -> None:
    """Takes a buffer back; those of other sizes make room for it.

    One that would take the room of many is let go.
    """
    if buffer.size > self._keep // 4:
      return
    with self._lock:
      if self._kept + buffer.size > self._keep:
        self._free = {buffer.size: self._free.get(buffer.size, [])}
        self._kept = buffer.size * len(self._free[buffer.size])
      if self._kept + buffer.size <= self._keep:
        self._free.setdefault(buffer.size, []).append(buffer)
        self._kept += buffer.size


class Lease:
  """The buffers of one job."""

  def __init__(self, buffers: Buffers):
    """Takes the store that they come from."""
    self._buffers = buffers
    self._taken: list[np.ndarray] = []

  def take(self, entries: int, dtype: np.dtype) -> np.ndarray:
    """Returns room for so many entries, `[entries]`."""
    buffer = self._buffers.get(entries * dtype.itemsize)
    self._taken.append(buffer)
    return buffer.view(dtype)

  def __enter__(self) -> 'Lease':
    """Begins the lease."""
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Gives the buffers back."""
    for buffer in self._taken:
      self._buffers.put(buffer)


_BITS = {  # By type: its integers, and the bits of infinity.
  'bfloat16': (np.int16, np.uint16, 0x7F80),
  'float16': (np.int16, np.uint16, 0x7C00),
  'float32': (np.int32, np.uint32, 0x7F800000),
  'float64': (np.int64, np.uint64, 0x7FF0000000000000),
}


def all_finite(values: np.ndarray) -> bool:
  """Tells whether all entries are finite.

  As integers, the bits of infinity and NaN are the largest among positive
  numbers, and without a sign the largest of all if they are negative: two
  maxima, which NumPy takes about as fast as memory is read.

  Args:
    values: Floats of any type, one dimension.

  Returns:
    The verdict; an empty array is finite.

  Examples:
    >>> all_finite(np.ones(3, np.float32))
    True
    >>> all_finite(np.array([0, -np.inf], np.float16))
    False
  """
  known = _BITS.get(values.dtype.name)
  if known is None or not values.size:
    return bool(np.all(np.isfinite(values.astype(np.float32))))
  signed, unsigned, infinity = known
  negative = infinity | 1 << (8 * values.itemsize - 1)
  return bool(
    values.view(signed).max() < infinity
    and values.view(unsigned).max() < negative
  )
