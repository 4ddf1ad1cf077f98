"""Models that are not in memory: what the streaming driver reads and writes.

A path is read or written piece by piece, in the order of a C array, from any
thread. Who implements a source says where the model lies; here are the ones
that need no file.
"""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

import numpy as np

from merging import patterns
from merging import transform
from merging import tree

Specs = Mapping[str, transform.LeafSpec]  # By path.


class Source(Protocol):
  """A model whose leaves can be read in pieces."""

  @property
  def specs(self) -> Specs:
    """What is known of every leaf without reading it, by path."""
    ...

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a leaf.

    Threads call it at the same time.

    Args:
      path: Name of the leaf.
      start: First entry, in the order of a C array.
      out: `[size]`, of the dtype of the leaf.
    """
    ...


class Sink(Protocol):
  """Where a merged model goes, in pieces."""

  def write(self, path: str, start: int, values: np.ndarray) -> None:
    """Takes the entries `[start, start + values.size)` of a leaf.

    Threads call it at the same time; each entry comes once, in any order.

    Args:
      path: Name of the leaf.
      start: First entry, in the order of a C array.
      values: `[size]`, of the dtype of the merged leaf. Valid only during the
        call.
    """
    ...


class InMemory:
  """A tree as a source.

  Examples:
    >>> source = InMemory({'w': np.arange(4.0)})
    >>> out = np.empty(2)
    >>> source.read('w', 1, out)
    >>> out.tolist()
    [1.0, 2.0]
  """

  def __init__(self, model: Any):
    """Takes a tree of arrays."""
    self._leaves = {
      path: np.asarray(leaf) for path, leaf in tree.flatten(model).items()
    }
    self.specs: Specs = {
      path: transform.LeafSpec(path, leaf.shape, leaf.dtype)
      for path, leaf in self._leaves.items()
    }

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` from a leaf."""
    out[...] = self._leaves[path].reshape(-1)[start : start + out.size]


class Collected:
  """A sink that keeps what it gets, as a flat mapping `leaves`.

  Examples:
    >>> sink = Collected({'w': transform.LeafSpec('w', (2,), np.dtype('f4'))})
    >>> sink.write('w', 1, np.ones(1, np.float32))
    >>> sink.write('w', 0, np.zeros(1, np.float32))
    >>> sink.leaves['w'].tolist()
    [0.0, 1.0]
  """

  def __init__(self, specs: Specs):
    """Makes room for leaves."""
    self.leaves = {
      path: np.empty(spec.shape, spec.dtype) for path, spec in specs.items()
    }

  def write(self, path: str, start: int, values: np.ndarray) -> None:
    """Keeps a piece."""
    self.leaves[path].reshape(-1)[start : start + values.size] = values


class Renamed:
  """Some leaves of a source under other names.

  Examples:
    >>> source = Renamed(InMemory({'old': np.ones(1)}), {'new': 'old'})
    >>> source.specs['new'].shape
    (1,)
  """

  def __init__(self, source: Source, names: Mapping[str, str]):
    """Takes a source and, by new name, the name there.

    Raises:
      ValueError: The source has no such leaf.
    """
    known = source.specs
    for name in names.values():
      if name not in known:
        raise ValueError(
          f'there is no leaf {name!r}{patterns.suggest(name, known)}'
        )
    self._source = source
    self._names = dict(names)
    self.specs: Specs = {
      new: known[old]._replace(path=new) for new, old in names.items()
    }

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` from the leaf that has the name there."""
    self._source.read(self._names[path], start, out)


class Zeros:
  """A model of zeros: the base of a merge that has none.

  Examples:
    >>> spec = transform.LeafSpec('w', (2,), np.dtype('f4'))
    >>> out = np.ones(2, np.float32)
    >>> Zeros({'w': spec}).read('w', 0, out)
    >>> out.tolist()
    [0.0, 0.0]
  """

  def __init__(self, specs: Specs):
    """Takes the specs that it has."""
    self.specs: Specs = dict(specs)

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with zeros."""
    out[...] = 0
