"""A source whose rows are those of another vocabulary."""

from collections.abc import Iterable
from collections.abc import Mapping
import math
import threading
from typing import NamedTuple

import numpy as np

from merging import streams

_PIECE = 1 << 20  # Entries that a mean reads at once.


class RowMap(NamedTuple):
  """Where each row of a new vocabulary comes from.

  Attributes:
    rows: `i32[new]`, the row of the model itself, or -1.
    fills: By new row that is -1: (model, row) of rows whose mean it is. Rows
      that are not named are zeros.
    averaged: Rows from here on, which pad, are the mean of those before.
  """

  rows: np.ndarray
  fills: Mapping[int, tuple[tuple[str, int], ...]]
  averaged: int

  def is_identity(self, rows: int) -> bool:
    """Whether a model of so many rows stays as it is."""
    return len(self.rows) == self.averaged == rows and bool(
      (self.rows == np.arange(rows)).all()
    )


class Remapped:
  """A source of which some leaves have other rows, read piece by piece.

  Memory is bounded by a row, and by a mebi-entry where rows pad. A mean is
  taken in float32 and rounded once to the dtype of the leaf.

  Examples:
    >>> source = streams.InMemory({'wte': np.arange(6.0).reshape(3, 2)})
    >>> rows = RowMap(np.array([2, -1, 0], np.int32), {}, 3)
    >>> mapped = Remapped(source, ['wte'], rows, {})
    >>> out = np.empty(5)
    >>> mapped.read('wte', 1, out)
    >>> out.tolist()
    [5.0, 0.0, 0.0, 0.0, 1.0]
  """

  def __init__(
    self,
    source: streams.Source,
    paths: Iterable[str],
    row_map: RowMap,
    donors: Mapping[str, streams.Source],
  ):
    """Takes a source and the rows that some of its leaves get.

    Args:
      source: The model.
      paths: Leaves with a row for each token, on their first axis that is not
        of size one.
      row_map: Where the rows come from.
      donors: By name, the models that fill rows of this one.

    Raises:
      ValueError: A row is not there.
    """
    self._source = source
    self._donors = dict(donors)
    self._map = row_map
    self._width: dict[str, int] = {}
    specs = dict(source.specs)
    for path in paths:
      shape = specs[path].shape
      axis = next((i for i, size in enumerate(shape) if size != 1), 0)
      if row_map.rows.size and row_map.rows.max() >= shape[axis]:
        raise ValueError(
          f'{path}: row {row_map.rows.max()} is asked for, there are '
          f'{shape[axis]}'
        )
      new = (*shape[:axis], len(row_map.rows), *shape[axis + 1 :])
      self._width[path] = math.prod(shape[axis + 1 :])
      specs[path] = specs[path]._replace(shape=new)
    self.specs: streams.Specs = specs
    rows = row_map.rows
    after = (rows[1:] == rows[:-1] + 1) & (rows[:-1] >= 0)
    self._starts = np.flatnonzero(np.r_[True, ~after, True])
    self._means: dict[str, np.ndarray] = {}
    self._lock = threading.Lock()

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a leaf."""
    if path not in self._width:
      self._source.read(path, start, out)
      return
    width = self._width[path]
    done = 0
    while done < out.size:
      row, column = divmod(start + done, width)
      last = self._starts[np.searchsorted(self._starts, row, 'right')]
      count = min(out.size - done, int(last - row) * width - column)
      piece = out[done : done + count]
      own = int(self._map.rows[row])
      if own >= 0:
        self._source.read(path, own * width + column, piece)
      elif row >= self._map.averaged:
        piece[...] = self._mean(path)[column : column + count]
      else:
        self._fill(path, row, column, piece)
      done += count

  def _fill(self, path: str, row: int, column: int, out: np.ndarray) -> None:
    """Fills a piece of a row that the model does not have."""
    total = np.zeros(out.size, np.float32)
    givers = self._map.fills.get(row, ())
    for name, other in givers:
      donor = self._donors[name]
      values = np.empty(out.size, donor.specs[path].dtype)
      donor.read(path, other * self._width[path] + column, values)
      if len(givers) == 1 and values.dtype == out.dtype:
        out[...] = values
        return
      total += values.astype(np.float32)
    out[...] = (total / np.float32(max(len(givers), 1))).astype(out.dtype)

  def _mean(self, path: str) -> np.ndarray:
    """The mean of the rows that do not pad."""
    with self._lock:
      if path not in self._means:
        width, rows = self._width[path], self._map.averaged
        dtype = self.specs[path].dtype
        total = np.zeros(width)
        step = max(1, _PIECE // max(width, 1))
        for first in range(0, rows, step):
          piece = np.empty(min(step, rows - first) * width, dtype)
          self.read(path, first * width, piece)
          wide = piece.astype(np.float32).reshape(-1, width)
          total += wide.sum(axis=0, dtype=np.float64)
        mean = total / max(rows, 1)
        self._means[path] = mean.astype(np.float32).astype(dtype)
      return self._means[path]
