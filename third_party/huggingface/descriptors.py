"""Open files to read from many threads, few at a time."""

import collections
from collections.abc import Iterator
import contextlib
import os
import threading
from typing import NamedTuple
import weakref

from third_party import problems
from third_party.huggingface import json_files


class Identity(NamedTuple):
  """What tells that a file is the one that was opened before.

  Attributes:
    device: The file system.
    inode: The file in it.
    size: Bytes.
    modified: Nanoseconds.
  """

  device: int
  inode: int
  size: int
  modified: int

  @classmethod
  def of(cls, status: os.stat_result) -> 'Identity':
    """Takes it from what `os.stat` says."""
    return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Place(NamedTuple):
  """A file that was opened once, to be opened again.

  Attributes:
    path: The file.
    where: What a problem names.
    identity: What it was.
  """

  path: str
  where: tuple[str, ...]
  identity: Identity

  def check(self, status: os.stat_result) -> None:
    """Raises `problems.ProblemError` if it is another file now."""
    now = Identity.of(status)
    if now == self.identity:
      return
    was = self.identity
    what = (
      f'had {was.size} bytes when it was opened, and {now.size} now'
      if was.size != now.size
      else 'was replaced or modified since it was opened'
    )
    raise problems.refuse(
      problems.Kind.INPUT, self.where, what, 'leave inputs alone; start again'
    )

  def check_unchanged(self) -> None:
    """Raises `problems.ProblemError` if another file is there, or none."""
    try:
      status = os.stat(self.path)
    except OSError as error:
      raise problems.refuse(
        problems.Kind.INPUT,
        self.where,
        'is gone since it was opened',
        'leave inputs alone; start again',
      ) from error
    self.check(status)


class Descriptors:
  """Lends descriptors of files, and keeps a few of them open.

  A thread has a descriptor for itself while it reads. So no more are open than
  threads that read, and `idle`.
  """

  def __init__(self, idle: int = 8):
    """Takes how many may stay open unused."""
    self._limit = idle
    self._lock = threading.Lock()
    self._idle: collections.OrderedDict[Place, int] = collections.OrderedDict()
    weakref.finalize(self, _close_all, self._idle)

  @contextlib.contextmanager
  def borrow(self, place: Place) -> Iterator[int]:
    """Lends a descriptor of a file.

    Args:
      place: The file.

    Yields:
      The descriptor, open until the block ends.

    Raises:
      problems.ProblemError: The file is gone, unreadable, or another one.
    """
    with self._lock:
      fd = self._idle.pop(place, None)
    if fd is None:
      fd = json_files.open_file(place.path, place.where)
      if hasattr(os, 'posix_fadvise'):  # Reads further ahead.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    try:
      place.check(os.fstat(fd))
      yield fd
    except BaseException:
      os.close(fd)
      raise
    surplus = None
    with self._lock:
      if place in self._idle:
        surplus = fd
      else:
        self._idle[place] = fd
        if len(self._idle) > self._limit:
          _, surplus = self._idle.popitem(last=False)
    if surplus is not None:
      os.close(surplus)

  def close(self) -> None:
    """Closes what is open and unused."""
    with self._lock:
      _close_all(self._idle)


def _close_all(idle: dict[Place, int]) -> None:
  while idle:
    _, fd = idle.popitem()
    os.close(fd)
