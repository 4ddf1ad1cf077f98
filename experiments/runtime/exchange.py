"""Giving a finished directory the name of an old one."""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
# The kernel or the file system has no such call.
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def replace(new: Path, target: Path, aside: Path) -> None:
  """Gives `target` to a directory; an old one there goes out of the way.

  Where the system can exchange two names (Linux, on all its usual file
  systems), there is no moment at which `target` is missing, and the old
  directory is at `new` afterwards. Elsewhere two renames follow one another
  and the old one is at `aside`; a kill between them leaves no `target`, and
  `restore` brings the old one back.

  Args:
    new: A directory, on the same file system as `target`.
    target: The name; it may be free, or that of a directory.
    aside: A free name on the same file system.

  Raises:
    OSError: The system refuses; the old directory is where it was.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   new, target, aside = (Path(directory, name) for name in 'nta')
    ...   new.mkdir()
    ...   replace(new, target, aside)
    ...   os.listdir(directory)
    ['t']
  """
  try:
    os.rename(new, target)  # If the name is free, or an empty directory's.
    return
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
  if exchange(new, target):
    return
  os.rename(target, aside)
  try:
    os.rename(new, target)
  except OSError:
    os.rename(aside, target)
    raise


def restore(target: Path, aside: Path) -> bool:
  """Repairs a `replace` that was killed between its two renames.

  Returns:
    Whether there was something to repair.

  Raises:
    OSError: The system refuses.
  """
  if os.path.lexists(target) or not os.path.lexists(aside):
    return False
  os.rename(aside, target)
  return True


def exchange(a: Path, b: Path) -> bool:
  """Exchanges two names at once.

  Returns:
    Whether the system can; if not, nothing has changed.

  Raises:
    OSError: The system can, but refuses.
  """
  library = ctypes.CDLL(None, use_errno=True)
  try:
    renameat2 = library.renameat2
  except AttributeError:
    return False
  names = (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b))
  if renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
    return True
  number = ctypes.get_errno()
  if number in _UNSUPPORTED:
    return False
  raise OSError(number, os.strerror(number), str(a), None, str(b))
