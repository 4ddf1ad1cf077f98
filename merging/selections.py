"""What is found out of a leaf before it is merged in pieces.

A driver that reads from disk looks at the pieces of a leaf, one after the
other, and then merges them with what it found: so little memory serves a leaf
of any size. A device computes what is looked at. What follows from it may be
for a host, where NumPy selects and sorts many times faster than a program of
XLA does on a processor.

There are three kinds: `Numbers` about all entries of an expert, a `Choice` of
entries, and `Sums` over the entries of all experts. `MergeTransform.update`
gets what was found as `selected`, and its result is the same without, but for
the rounding of sums.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import Protocol

import numpy as np

# `(entries of a piece, shape) -> selected`; the shape is that in which a device
# has the piece, filled up with zeros.
Given = Callable[[slice, tuple[int, ...]], Any]
Take = Callable[[int, np.dtype], np.ndarray]  # Room for so many entries.
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _none(sizes: np.ndarray) -> tuple[float, ...]:
  """No numbers."""
  return ()


class Run(Protocol):
  """Calls `function(leaf, state, *arguments)` on a device, for one piece.

  The leaf has the deltas of all experts that were read of the piece, or of the
  one whose place is `model`. What the function returns is on the host.
  """

  def __call__(
    self,
    function: Callable[..., Any],
    *arguments: Any,
    model: int | None = None,
  ) -> Any:
    """Calls it."""


class Look(Protocol):
  """Reads all pieces in order, of all experts or of the one at `model`.

  Yields the entries of each piece, and what runs functions on it.
  """

  def __call__(self, model: int | None = None) -> Iterator[tuple[slice, Run]]:
    """Reads them."""
    ...


class Selection:
  """One of the kinds below.

  Attributes:
    piece: Entries of a piece, at most.
    hold: Bytes that are held, at most, rather than read once more.
    by_expert: Whether what is selected is a tuple, of something for each
      expert, that depends on no other expert.
  """

  piece = 1 << 19
  hold = 1 << 26
  by_expert = True

  @property
  def least(self) -> int:
    """Entries from which on a leaf is selected from: a host is faster.

    A leaf with fewer, and no more than a piece has, is merged by one program.
    """
    return 1 << 16

  @property
  def of_leaf(self) -> bool:
    """Whether what is selected for one piece depends on all."""
    return True

  def row(self, shape: tuple[int, ...]) -> int:
    """How many entries of a leaf of this shape have to stay together."""
    return 1

  def within(self, wrap: Wrap) -> 'Selection':
    """Returns the same for leaves and states that others are made of."""
    raise NotImplementedError

  def reads(self, base: int, experts: Sequence[int]) -> int:
    """Bytes that are read of an entry, given those it has in each model."""
    raise NotImplementedError

  def holds(self, leaf: int, piece: int, models: int) -> int:
    """Bytes that are held for a leaf of so many entries."""
    raise NotImplementedError

  def survey(self, look: Look, size: int, models: int, take: Take) -> Given:
    """Looks at a leaf of so many entries and experts.

    Args:
      look: Reads it.
      size: Number of its entries.
      models: Number of experts.
      take: Gives room that need not be cleared.

    Returns:
      What is selected for its pieces, to be asked for once for each.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Numbers(Selection):
  """Numbers that a host finds among all entries of each expert.

  Selected are for each expert those that `find` returns, `[k]`.

  Attributes:
    values: `(leaf with one delta, state, model) -> (values, rank)`, where
      `model` is the place of the expert, `i32[]`, the values are `u32[size]`,
      one for each entry, and `rank` is what `find` needs besides.
    find: `(values, rank) -> numbers`, for one expert, on NumPy arrays; numbers
      are integers below 2**32.
  """

  values: Callable[..., tuple[Any, Any]]
  find: Callable[[np.ndarray, np.ndarray], tuple[int, ...]]

  piece = 1 << 20

  def within(self, wrap: Wrap) -> 'Numbers':
    """Returns the same for leaves and states that others are made of."""
    return dataclasses.replace(self, values=wrap(self.values))

  def reads(self, base: int, experts: Sequence[int]) -> int:
    """Bytes that are read of an entry, given those it has in each model."""
    return len(experts) * base + sum(experts)

  def holds(self, leaf: int, piece: int, models: int) -> int:
    """Bytes that are held for a leaf of so many entries."""
    # What is selected from, and the part of it that is looked at closely.
    return 6 * leaf + 4 * piece

  def survey(self, look: Look, size: int, models: int, take: Take) -> Given:
    """Looks at a leaf; returns what is selected for its pieces."""
    values = take(size, np.dtype(np.uint32))
    numbers = []
    for model in range(models):
      ranks = []
      for piece, run in look(model):
        found, rank = run(self.values, np.int32(model), model=model)
        values[piece] = found[: piece.stop - piece.start]
        ranks.append(rank)
      numbers.append(np.array(self.find(values, ranks[0]), np.uint32))
    return lambda piece, shape: tuple(numbers)


@dataclasses.dataclass(frozen=True)
class Choice(Selection):
  """What a host says of every entry: whether to keep it, or its place.

  Selected are for each expert a tuple of what is said of the entries, in the
  shape of the leaf, and of the numbers that `finish` returns, `[k]`, if any.

  Attributes:
    values: `(leaf with one delta, state, model) -> values`, of the shape of the
      leaf or, if it is `by_row`, `[rows, width]`; `model` is as above.
    choose: `values -> entries`, of that shape, of NumPy arrays.
    by_row: Whether a piece of a matrix has to be some whole rows. Other leaves
      are then not taken apart.
    sizes: `(leaf with one delta, state, model, entries) -> sizes`, `f32[k]`, or
      `None` where every piece may be for itself. With it, entries are booleans,
      eight of which are kept in a byte.
    finish: `[pieces, k] -> numbers`, from the sizes of all pieces.
  """

  values: Callable[..., Any]
  choose: Callable[[Any], np.ndarray]
  by_row: bool = False
  sizes: Callable[..., Any] | None = None
  finish: Callable[[np.ndarray], tuple[float, ...]] = _none

  @property
  def least(self) -> int:
    """Entries from which on a leaf is selected from: a host is faster."""
    return 1 << 12 if self.by_row else super().least  # Programs sort slowly.

  @property
  def of_leaf(self) -> bool:
    """Whether what is selected for one piece depends on all."""
    return self.sizes is not None

  def row(self, shape: tuple[int, ...]) -> int:
    """How many entries of a leaf of this shape have to stay together."""
    if not self.by_row:
      return 1
    return shape[1] if len(shape) == 2 else math.prod(shape)

  def within(self, wrap: Wrap) -> 'Choice':
    """Returns the same for leaves and states that others are made of."""
    sizes = self.sizes and wrap(self.sizes)
    return dataclasses.replace(self, values=wrap(self.values), sizes=sizes)

  def reads(self, base: int, experts: Sequence[int]) -> int:
    """Bytes that are read of an entry, given those it has in each model."""
    return base + sum(experts)

  def holds(self, leaf: int, piece: int, models: int) -> int:
    """Bytes that are held for a leaf of so many entries."""
    # What is said of entries, and two numbers for each that is looked at.
    return models * (-(-leaf // 8) + 4 * piece) + 8 * piece

  def survey(self, look: Look, size: int, models: int, take: Take) -> Given:
    """Looks at a leaf; returns what is selected for its pieces."""
    entries: dict[int, list[np.ndarray]] = {}
    sizes: list[list[np.ndarray]] = [[] for _ in range(models)]
    for piece, run in look():
      entries[piece.start] = []
      for model, own in enumerate(sizes):
        place = np.int32(model)
        chosen = self.choose(run(self.values, place, model=model))
        if self.sizes is not None:
          own.append(run(self.sizes, place, chosen, model=model))
        entries[piece.start].append(_packed(chosen, piece.stop - piece.start))
    numbers: list[tuple[np.ndarray, ...]] = [()] * models
    if self.sizes is not None:
      found = (self.finish(np.stack(own)) for own in sizes)
      numbers = [(np.array(each, np.float32),) for each in found]

    def given(piece, shape):
      count = piece.stop - piece.start
      chosen = zip(entries.pop(piece.start), numbers, strict=True)
      return tuple((_unpacked(x, count, shape), *more) for x, more in chosen)

    return given


@dataclasses.dataclass(frozen=True)
class Sums(Selection):
  """Sums over the entries of a leaf, of all experts at once.

  Selected is a tuple of what the stages return, added up over pieces.

  Attributes:
    stages: `(leaf, state, found) -> sums`, `f32[...]`, where `found` has the
      sums of the stages before. A leaf in memory gets them all in `update`.
  """

  stages: tuple[Callable[..., Any], ...]
  hold = 1 << 27
  by_expert = False

  @property
  def least(self) -> int:
    """Entries from which on a leaf is selected from: it is too large."""
    return 1 << 20

  def within(self, wrap: Wrap) -> 'Sums':
    """Returns the same for leaves and states that others are made of."""
    return dataclasses.replace(self, stages=tuple(map(wrap, self.stages)))

  def reads(self, base: int, experts: Sequence[int]) -> int:
    """Bytes that are read of an entry, given those it has in each model."""
    return len(self.stages) * (base + sum(experts))

  def holds(self, leaf: int, piece: int, models: int) -> int:
    """Bytes that are held for a leaf of so many entries."""
    return 0

  def survey(self, look: Look, size: int, models: int, take: Take) -> Given:
    """Looks at a leaf; returns what is selected for its pieces."""
    found: tuple[np.ndarray, ...] = ()
    for stage in self.stages:
      parts = [run(stage, found) for _, run in look()]
      total = np.sum(parts, axis=0, dtype=np.float64)
      found = (*found, total.astype(parts[0].dtype))
    return lambda piece, shape: found


def _packed(entries, count):
  """The entries of a piece without what fills it up, booleans as bits."""
  own = entries.ravel()[:count]
  return np.packbits(own) if own.dtype == bool else own.copy()


def _unpacked(entries, count, shape):
  """The same in the shape that a device has the piece in."""
  if entries.dtype == np.uint8:
    entries = np.unpackbits(entries, count=count).view(bool)
  filled = np.zeros(math.prod(shape), entries.dtype)
  filled[:count] = entries
  return filled.reshape(shape)
