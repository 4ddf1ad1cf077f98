"""What the files of an Orbax checkpoint of a tree are called and mean."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import math
from pathlib import Path
import re

from third_party import problems

TREE = '_METADATA'
ABOUT = '_CHECKPOINT_METADATA'
COMMITTED = 'commit_success.txt'
UNFINISHED = '.orbax-checkpoint-tmp'

# A database of TensorStore, and those of the processes that wrote it.
_STORE = r'manifest\.ocdbt|d|d/[0-9a-f]{32}'
_OWN = re.compile(
  rf'{TREE}|{ABOUT}|{re.escape(COMMITTED)}|_sharding'
  rf'|{_STORE}|ocdbt\.process_\d+(/({_STORE}))?'
  r'|array_metadatas(/process_\d+)?'
)

Key = tuple[str, bool]  # A key of a tree, and whether it is that of a list.


def is_checkpoint(directory: Path) -> bool:
  """Whether a directory is, or has been, an Orbax checkpoint of a tree.

  Examples:
    >>> is_checkpoint(Path('/nowhere'))
    False
  """
  return any((directory / name).is_file() for name in (TREE, ABOUT))


def belongs(path: str) -> bool:
  """Whether the checkpoint of a tree has such a file or folder.

  Args:
    path: Relative to the directory of the tree, with slashes.

  Examples:
    >>> belongs('ocdbt.process_0/d'), belongs('d/notes.txt')
    (True, False)
  """
  return _OWN.fullmatch(path) is not None


def path_of(keys: tuple[Key, ...]) -> str:
  """Returns what a leaf is called here."""
  return '/'.join(key for key, _ in keys)


def stored_as(keys: tuple[Key, ...]) -> str:
  """Returns the name that Orbax gives to the array of a leaf."""
  return '.'.join(key for key, _ in keys)


def refuse_twins(names: Iterable[str], where: str) -> None:
  """Refuses a model two of whose leaves have one name."""
  counts = collections.Counter(names)
  twins = sorted(name for name, count in counts.items() if count > 1)
  if twins:
    raise problems.ProblemError(
      problems.Problem(
        problems.Kind.INCOMPATIBLE,
        (where, name),
        'two leaves have this name once their keys are joined',
        'rename one of them',
      )
      for name in twins
    )


def boxes(
  shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[int | slice, ...]]:
  """Cuts a range of entries into boxes, at most two per axis.

  Args:
    shape: Of an array.
    start: First entry, in the order of a C array.
    stop: The entry after the last.

  Yields:
    Indices of boxes, whose entries one after the other are those asked for.

  Examples:
    >>> list(boxes((3, 4), 2, 9))
    [(0, slice(2, 4, None)), (slice(1, 2, None),), (2, slice(0, 1, None))]
  """
  if start >= stop:
    return
  if not shape:
    yield ()
    return
  row = math.prod(shape[1:])
  first, last = -(-start // row), stop // row  # The rows that are whole.
  if first > last:
    offset = start // row * row
    for box in boxes(shape[1:], start - offset, stop - offset):
      yield (start // row, *box)
    return
  for box in boxes(shape[1:], start - (first - 1) * row, row):
    yield (first - 1, *box)
  if first < last:
    yield (slice(first, last),)
  for box in boxes(shape[1:], 0, stop - last * row):
    yield (last, *box)


def reason(error: Exception) -> str:
  """Returns what an error says, without the source files TensorStore lists."""
  text, _, _ = str(error).partition(' [')
  return text[:300]
