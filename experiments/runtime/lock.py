"""One process at a time, by a file that names who holds it."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import socket

from third_party import problems
from third_party import storage


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
  """Holds a lock while the block runs.

  The lock is the kernel's (flock) and ends with the process, however that
  ends; the file that stays after a kill means nothing. It is removed by who
  still holds it, so nobody can lock a file that is no longer there.

  Args:
    path: The file to lock; made if missing.
    what: What is locked, for messages.

  Raises:
    ProblemError: Another process holds it, or the file cannot be made.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with held(Path(directory, '.lock'), 'the model'):
    ...     os.listdir(directory)
    ...   os.listdir(directory)
    ['.lock']
    []
  """
  descriptor = _acquire(path, what)
  try:
    os.ftruncate(descriptor, 0)
    holder = {'pid': os.getpid(), 'host': socket.gethostname()}
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    yield
  finally:
    try:
      if _same(path, descriptor):
        path.unlink()
    finally:
      os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
  """Locks the file that has the name at the end, as it may be removed."""
  while True:
    with storage.reported(path):
      descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if _same(path, descriptor):
        return descriptor
      os.close(descriptor)
    except OSError as error:
      holder = _holder(descriptor)
      os.close(descriptor)
      if error.errno not in (errno.EAGAIN, errno.EACCES):
        raise storage.problem(error, path) from error
      raise problems.refuse(
        problems.Kind.CONFIG,
        (what,),
        f'is being written by {holder}',
        'wait for it to end, or write to another place',
      ) from None


def _same(path: Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except FileNotFoundError:
    return False


def _holder(descriptor: int) -> str:
  """Says who holds a lock; it may not have written that yet."""
  try:
    holder = json.loads(os.pread(descriptor, 4096, 0))
    return f'process {int(holder["pid"])} on {str(holder["host"])!r}'
  except (OSError, ValueError, TypeError, KeyError):
    return 'another process'
