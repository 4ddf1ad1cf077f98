"""One pass over values of a model: finite, constant, how large, which bytes.

Pieces of a few megabytes are looked at while they lie in the cache, so a scan
costs what reading costs, and its memory is a piece for each thread.
"""

from collections.abc import Callable
from collections.abc import Iterable
from concurrent import futures
import dataclasses
import functools
import math
import threading
import zlib

import ml_dtypes
import numpy as np

from merging import streams
from third_party import problems as problems_lib

Progress = Callable[[int, int], None]  # Bytes looked at, bytes in all.

_PIECE = 8 << 20  # Bytes.
# Entries in one float32 sum of squares; these are added up in float64.
_SUMMED = 1 << 18


@dataclasses.dataclass(frozen=True)
class LeafScan:
  """What one pass over a leaf found.

  Attributes:
    path: Name of the leaf.
    dtype: Its type.
    size: Entries.
    crc32: Of its bytes, little endian, in the order of a C array.
    nonfinite: How many entries are NaN or infinite.
    first_nonfinite: The index of the first of them in that order, if any.
    largest: The largest magnitude; `None` for integers and empty leaves.
    rms: Root of the mean square; `None` where it was not asked for too.
    constant: The value that all entries have, or `None` if they differ.
  """

  path: str
  dtype: np.dtype
  size: int
  crc32: int
  nonfinite: int = 0
  first_nonfinite: int | None = None
  largest: float | None = None
  rms: float | None = None
  constant: float | None = None


@dataclasses.dataclass(frozen=True)
class Scan:
  """What a pass over a model found.

  Attributes:
    leaves: By path, in the order of the source, without those not readable.
    problems: Leaves that could not be read.
  """

  leaves: dict[str, LeafScan]
  problems: tuple[problems_lib.Problem, ...]


def scan(
  source: streams.Source,
  paths: Iterable[str] | None = None,
  *,
  statistics: bool = True,
  workers: int = 2,
  progress: Progress | None = None,
) -> Scan:
  """Reads leaves once, in pieces, and looks at every value.

  A bfloat16 is not finite exactly if its bits, read as a signed integer, are at
  least those of infinity (positive ones), or, read as an unsigned one, at least
  those of minus infinity; and so for all IEEE formats. Two maxima of integers
  are several times as fast as `isfinite`.

  Args:
    source: A model; an open checkpoint is one.
    paths: Leaves to look at; all by default.
    statistics: Whether to compute `rms` as well, which has to convert values.
    workers: Threads. Each looks at one leaf at a time and holds 8 MB of it.
    progress: Called with the bytes looked at so far and in all, by one thread
      at a time.

  Returns:
    The findings; the same for any number of threads.

  Examples:
    >>> model = streams.InMemory({'w': np.array([3.0, -4.0, np.inf], 'f4')})
    >>> found = scan(model).leaves['w']
    >>> found.nonfinite, found.first_nonfinite, found.largest
    (1, 2, inf)
  """
  specs = source.specs
  paths = list(specs if paths is None else paths)
  total = sum(_bytes(specs[path]) for path in paths)
  done = 0
  lock = threading.Lock()

  def report(count: int) -> None:
    nonlocal done
    with lock:
      done += count
      if progress is not None:
        progress(done, total)

  def one(path: str) -> LeafScan | tuple[problems_lib.Problem, ...]:
    try:
      return _scan_leaf(source, path, statistics, report)
    except problems_lib.ProblemError as error:
      return error.problems
    except OSError as error:
      problem = problems_lib.Problem(
        problems_lib.Kind.INPUT,
        (path,),
        f'could not be read: {error.strerror or error}',
      )
      return (problem,)

  # The largest first, so that no thread is left with one at the end.
  order = sorted(paths, key=lambda path: -_bytes(specs[path]))
  with futures.ThreadPoolExecutor(workers) as pool:
    found = dict(zip(order, pool.map(one, order), strict=True))
  leaves, problems = {}, []
  for path in paths:
    each = found[path]
    if isinstance(each, LeafScan):
      leaves[path] = each
    else:
      problems.extend(each)
  return Scan(leaves, tuple(problems))


def is_float(dtype: np.dtype) -> bool:
  """Whether a type is floating-point, those of `ml_dtypes` included."""
  try:
    ml_dtypes.finfo(dtype)
  except ValueError:
    return False
  return True


def _scan_leaf(source, path, statistics, report) -> LeafScan:
  """Looks at one leaf, piece after piece."""
  spec = source.specs[path]
  dtype = np.dtype(spec.dtype)
  size = math.prod(spec.shape)
  buffer = np.empty(min(size, max(1, _PIECE // dtype.itemsize)), dtype)
  floating = is_float(dtype)
  crc, nonfinite, first = 0, 0, None
  largest, squares = 0.0, 0.0
  value, constant = None, size > 0
  for start in range(0, size, max(1, buffer.size)):
    piece = buffer[: min(buffer.size, size - start)]
    source.read(path, start, piece)
    crc = zlib.crc32(piece.view(np.uint8).data, crc)
    if value is None:
      value = piece[:1].copy()
    bits = piece.view(f'u{dtype.itemsize}')
    constant = constant and bits.min() == bits.max() == value.view(bits.dtype)
    if floating:
      bad, high = _look(piece)
      if bad.size and first is None:
        first = start + int(bad[0])
      nonfinite += bad.size
      largest = max(largest, high)
      if statistics:
        squares += _sum_of_squares(piece)
    report(piece.nbytes)
  known = floating and size > 0
  return LeafScan(
    path=path,
    dtype=dtype,
    size=size,
    crc32=crc,
    nonfinite=nonfinite,
    first_nonfinite=first,
    largest=largest if known else None,
    rms=math.sqrt(squares / size) if known and statistics else None,
    constant=float(value[0]) if constant and value is not None else None,
  )


def _look(piece: np.ndarray) -> tuple[np.ndarray, float]:
  """Returns where values are not finite, and the largest magnitude."""
  infinity = _infinity(piece.dtype)
  none = np.empty(0, np.int64)
  if infinity is None:  # A format without one: eight bits, seldom large.
    values = np.abs(piece.astype(np.float32))
    bad = np.flatnonzero(~np.isfinite(values))
    return bad, math.inf if bad.size else float(values.max())
  width = piece.dtype.itemsize
  sign = 1 << (8 * width - 1)
  positive = int(piece.view(f'i{width}').max())
  negative = int(piece.view(f'u{width}').max()) - sign
  magnitude = max(positive, negative, 0)
  if magnitude < infinity:
    bits = np.array([magnitude], f'u{width}')
    return none, float(bits.view(piece.dtype)[0])
  bits = piece.view(f'u{width}') & np.array(sign - 1, f'u{width}')
  return np.flatnonzero(bits >= infinity), math.inf


@functools.cache
def _infinity(dtype: np.dtype) -> int | None:
  """The bits of infinity, above which there are only NaN, if there is one."""
  with np.errstate(all='ignore'):  # There may be none to convert to.
    value = np.array([np.inf]).astype(dtype)
  if not np.isinf(value.astype(np.float32))[0]:
    return None
  return int(value.view(f'u{dtype.itemsize}')[0])


def _sum_of_squares(piece: np.ndarray) -> float:
  total = 0.0
  for start in range(0, piece.size, _SUMMED):
    part = piece[start : start + _SUMMED]
    total += _square(part, np.float32) or _square(part, np.float64)
  return total


def _square(values: np.ndarray, wide: type[np.floating]) -> float:
  """The squared length, or 0 where the type is too narrow for it."""
  with np.errstate(all='ignore'):
    values = values.astype(wide)
    square = float(np.dot(values, values))
  return square if math.isfinite(square) else 0.0


def _bytes(spec) -> int:
  return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
