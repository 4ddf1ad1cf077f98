"""What a disk refuses, as problems that a person can act on."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path

from third_party import problems

_FULL = {errno.ENOSPC, errno.EDQUOT}


def size_of(count: float) -> str:
  """Returns a number of bytes in decimal units.

  Examples:
    >>> size_of(512), size_of(2.5e6), size_of(1.1e12)
    ('512 B', '2.5 MB', '1.1 TB')
  """
  units = ('B', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB')
  unit = 0
  while count >= 999.5 and unit < len(units) - 1:
    count, unit = count / 1000, unit + 1
  return f'{count:.3g} {units[unit]}'


def free_space(path: Path) -> int | None:
  """Bytes that may still be written where `path` is; `None` if unknown."""
  try:
    state = os.statvfs(path)
  except OSError:
    return None
  # File systems in user space often have no numbers and say 0 of 0.
  return state.f_bavail * state.f_frsize if state.f_blocks else None


def check_space(path: Path, needed: int) -> None:
  """Raises `ProblemError` if fewer bytes are free than are needed."""
  free = free_space(path)
  if free is not None and needed > free:
    raise _full(path, needed)


@contextlib.contextmanager
def reported(path: str | os.PathLike[str], needed: int = 0) -> Iterator[None]:
  """Turns errors of the operating system into problems.

  Args:
    path: What is written, for the message.
    needed: Bytes that are still to be written there, if known.

  Raises:
    ProblemError: For every `OSError` inside, of the kind `SPACE`.
  """
  try:
    yield
  except OSError as error:
    raise problem(error, Path(path), needed) from error


def problem(
  error: OSError, path: Path, needed: int = 0
) -> problems.ProblemError:
  """Returns the problem that an error of the operating system is.

  Examples:
    >>> print(problem(OSError(errno.EROFS, ''), Path('/out')))
    /out: is on a read-only file system; write to another place
  """
  if error.errno in _FULL:
    return _full(path, needed)
  elsewhere = 'write to another place'
  what, remedy = {
    errno.EACCES: ('there is no permission to write', elsewhere),
    errno.EPERM: ('there is no permission to write', elsewhere),
    errno.EROFS: ('is on a read-only file system', elsewhere),
    errno.ENAMETOOLONG: ('the name is too long', 'give a shorter one'),
    errno.EFBIG: (
      f'a file of {size_of(needed)} is larger than this process or the file'
      ' system may write (ulimit -f)',
      'raise the limit, or write smaller shards',
    ),
  }.get(error.errno or 0, (error.strerror or str(error), ''))
  return problems.refuse(problems.Kind.SPACE, (str(path),), what, remedy)


def _full(path: Path, needed: int) -> problems.ProblemError:
  free = free_space(path if path.is_dir() else path.parent)
  parts = [
    f'{size_of(needed)} needed' if needed else '',
    f'{size_of(free)} free' if free is not None else '',
  ]
  numbers = ', '.join(filter(None, parts))
  return problems.refuse(
    problems.Kind.SPACE,
    (str(path),),
    f'there is no space: {numbers}' if numbers else 'there is no space',
    'make room, or write to another disk',
  )


def sync(path: str | os.PathLike[str]) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
