"""CRC-32 of bytes that come in pieces, in any order.

The CRC of two strings one after the other follows from theirs and the length
of the second, so threads checksum what they hold and nothing is read twice.
"""

import bisect
import functools
import zlib

_POLYNOMIAL = 0xEDB88320  # Bit 31 - k is the coefficient of x ** k.
_ONE = 1 << 31
_X_8 = 1 << 23

EMPTY = zlib.crc32(b'')


def combine(first: int, second: int, length: int) -> int:
  """Returns the CRC-32 of two byte strings, one after the other.

  With strings as polynomials over the field of two elements, modulo that of
  CRC-32: `crc(first + second) = crc(first) * x ** (8 * length) + crc(second)`.

  Args:
    first: CRC-32 of the first.
    second: CRC-32 of the second.
    length: Number of bytes of the second.

  Returns:
    The CRC-32.

  Examples:
    >>> both = combine(zlib.crc32(b'ab'), zlib.crc32(b'cde'), 3)
    >>> both == zlib.crc32(b'abcde')
    True
  """
  return _multiply(first, _shift(length)) ^ second


class Pieces:
  """Which bytes of a string have come, and the CRC-32 of all when all have.

  Not safe to use from several threads at once.

  Examples:
    >>> pieces = Pieces(5)
    >>> pieces.add(2, 5, zlib.crc32(b'cde'))
    >>> pieces.missing
    2
    >>> pieces.add(0, 2, zlib.crc32(b'ab'))
    >>> pieces.missing, pieces.crc == zlib.crc32(b'abcde')
    (0, True)
  """

  def __init__(self, size: int):
    """Expects `size` bytes."""
    self._size = size
    self.missing = size
    # Runs of bytes without a gap, in order; neighbours are joined.
    self._starts: list[int] = []
    self._stops: list[int] = []
    self._crcs: list[int] = []

  def add(self, start: int, stop: int, crc: int) -> None:
    """Takes note of the bytes `[start, stop)`.

    Args:
      start: Place of the first byte.
      stop: Place after the last byte.
      crc: CRC-32 of the bytes.

    Raises:
      ValueError: Some of them are outside, or have come before.
    """
    if not 0 <= start <= stop <= self._size:
      raise ValueError(
        f'bytes {start} to {stop} of {self._size} are out of range'
      )
    if start == stop:
      return
    place = bisect.bisect_right(self._starts, start)
    after = self._starts[place] if place < len(self._starts) else stop
    if after < stop or (place and self._stops[place - 1] > start):
      raise ValueError(f'bytes {start} to {stop} came twice, at least in part')
    self.missing -= stop - start
    self._starts.insert(place, start)
    self._stops.insert(place, stop)
    self._crcs.insert(place, crc)
    self._join(place)  # With the next run, then with the one before.
    self._join(place - 1)

  @property
  def crc(self) -> int:
    """The CRC-32 of all bytes; `ValueError` while some are missing."""
    if self.missing:
      raise ValueError(f'{self.missing} of {self._size} bytes are missing')
    return self._crcs[0] if self._crcs else EMPTY

  def _join(self, place: int) -> None:
    """Joins the run at a place with the next, if they touch."""
    if not 0 <= place < len(self._starts) - 1:
      return
    if self._stops[place] != self._starts[place + 1]:
      return
    length = self._stops[place + 1] - self._starts.pop(place + 1)
    self._crcs[place] = combine(
      self._crcs[place], self._crcs.pop(place + 1), length
    )
    del self._stops[place]


def _multiply(a: int, b: int) -> int:
  """The product of two polynomials modulo that of CRC-32."""
  product = 0
  while a:
    if a & _ONE:
      product ^= b
    a = (a << 1) & 0xFFFFFFFF
    b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
  return product


@functools.lru_cache(maxsize=1024)
def _shift(length: int) -> int:
  """`x ** (8 * length)` modulo the polynomial."""
  power, square = _ONE, _X_8
  while length:
    if length & 1:
      power = _multiply(power, square)
    square = _multiply(square, square)
    length >>= 1
  return power
