"""Inner products of models that are not in memory, a piece of a leaf at a time.

One reading gives, for each leaf, all that the measures of kinship are made of:
numbers that add up over pieces, leaves and blocks.
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import math

import numpy as np

from experiments.checkpoints import scan
from merging import streams

_PIECE = 1 << 16  # Entries: what lies in the cache at once, of all models.
_PIECES = 64  # For one thread at a time, of one leaf.


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums over entries, of a base and of what experts changed.

  Attributes:
    gram: Inner products of the base and the changes, the base first,
      `f64[1 + experts, 1 + experts]`.
    both: Entries that both of two experts changed, `f64[experts, experts]`.
    net: Those changed in one direction less those in opposite ones.
    size: Entries.
  """

  gram: np.ndarray
  both: np.ndarray
  net: np.ndarray
  size: int

  def __add__(self, other: 'Sums') -> 'Sums':
    """Sums over the entries of both."""
    return Sums(
      self.gram + other.gram,
      self.both + other.both,
      self.net + other.net,
      self.size + other.size,
    )


def comparable(
  names: Sequence[str], models: Sequence[streams.Source]
) -> tuple[list[str], dict[str, str]]:
  """Returns paths that all models share, and why others are left out.

  Shared is a leaf that has one shape and is floating-point; what is not
  floating-point is never merged either, and not listed.
  """
  specs = [model.specs for model in models]
  paths, skipped = [], {}
  for path in dict.fromkeys(path for each in specs for path in each):
    missing = [
      name for name, each in zip(names, specs, strict=True) if path not in each
    ]
    shapes = {
      name: tuple(each[path].shape)
      for name, each in zip(names, specs, strict=True)
      if path in each
    }
    if missing:
      skipped[path] = f'not in {", ".join(map(repr, missing))}'
    elif len(set(shapes.values())) > 1:
      shown = ', '.join(f'{name!r} {list(s)}' for name, s in shapes.items())
      skipped[path] = f'shapes differ: {shown}'
    elif math.prod(specs[0][path].shape) and all(
      scan.is_float(np.dtype(each[path].dtype)) for each in specs
    ):
      paths.append(path)
  return paths, skipped


def observe(
  models: Sequence[streams.Source],
  paths: Sequence[str],
  *,
  sample: float | None = None,
  workers: int = 2,
  progress: scan.Progress | None = None,
) -> tuple[dict[str, Sums], int]:
  """Reads leaves that models share, once.

  Args:
    models: The base, then the experts.
    paths: Leaves that they share.
    sample: Share of the entries of each leaf to read, in runs of 65,536 spread
      over it evenly; all by default.
    workers: Threads; they change nothing in the result.
    progress: Called with the bytes read so far and in all.

  Returns:
    By path, sums in which values that are not finite show as such; and the
    bytes read.
  """
  specs = [model.specs for model in models]
  sizes = {path: math.prod(specs[0][path].shape) for path in paths}
  tasks = [
    (path, starts) for path in paths for starts in _starts(sizes[path], sample)
  ]

  def cost(path: str, starts: list[int]) -> int:
    entries = sum(min(_PIECE, sizes[path] - start) for start in starts)
    return entries * sum(np.dtype(each[path].dtype).itemsize for each in specs)

  total = sum(cost(*task) for task in tasks)
  sums: dict[str, Sums] = {}
  read = 0
  with futures.ThreadPoolExecutor(workers) as pool:
    observed = pool.map(lambda task: _observe(models, *task), tasks)
    for (path, starts), found in zip(tasks, observed, strict=True):
      sums[path] = sums[path] + found if path in sums else found
      read += cost(path, starts)
      if progress is not None:
        progress(read, total)
  return sums, read


def _starts(size: int, sample: float | None) -> list[list[int]]:
  """First entries of the pieces to read of a leaf, some for each task."""
  pieces = math.ceil(size / _PIECE)
  count = pieces if sample is None else math.ceil(sample * pieces)
  chosen = [int((i + 0.5) * pieces / count) * _PIECE for i in range(count)]
  return [chosen[first : first + _PIECES] for first in range(0, count, _PIECES)]


def _observe(models, path: str, starts: list[int]) -> Sums:
  """Sums over some pieces of one leaf."""
  specs = [model.specs[path] for model in models]
  size = math.prod(specs[0].shape)
  most = min(size, _PIECE)
  raw = [np.empty(most, np.dtype(spec.dtype)) for spec in specs]
  rows = np.empty((len(models), most), np.float32)
  count = len(models) - 1
  both, net = np.zeros((2, count, count))
  total = Sums(np.zeros((count + 1, count + 1)), both, net, 0)
  for start in starts:
    stop = min(most, size - start)
    for model, buffer in zip(models, raw, strict=True):
      model.read(path, start, buffer[:stop])
    with np.errstate(all='ignore'):  # What is not finite shows in the sums.
      for row, buffer in zip(rows, raw, strict=True):
        row[:stop] = buffer[:stop]
      rows[1:, :stop] -= rows[0, :stop]
      total += _sums_of(rows[:, :stop])
  return total


def _sums_of(rows: np.ndarray) -> Sums:
  """Sums over a base and changes, `f32[1 + experts, entries]`.

  Products of few long rows are several times as fast one by one as in one
  product of matrices, and signs one bit each.
  """
  gram = np.empty((len(rows), len(rows)))
  both, apart = np.empty((2, len(rows) - 1, len(rows) - 1))
  moved = np.packbits(rows[1:] != 0, axis=1)
  up = np.packbits(rows[1:] > 0, axis=1)
  for i, row in enumerate(rows):
    gram[i, i:] = gram[i:, i] = [np.dot(row, other) for other in rows[i:]]
  for i in range(len(moved)):
    common = moved[i] & moved[i:]
    opposite = (up[i] ^ up[i:]) & common
    both[i, i:] = both[i:, i] = np.bitwise_count(common).sum(axis=1)
    apart[i, i:] = apart[i:, i] = np.bitwise_count(opposite).sum(axis=1)
  return Sums(gram, both, both - 2 * apart, rows.shape[1])
