"""Files of unknown origin, read within bounds, and the JSON in them."""

from collections.abc import Iterable
import json
import os
import stat
from typing import Any

from third_party import problems

MAX_BYTES = 100_000_000  # What the safetensors library allows a header.


def open_file(path: str | os.PathLike[str], where: Iterable[str]) -> int:
  """Opens a regular file to read, and nothing else: no pipe, no device.

  Args:
    path: The file.
    where: What a problem names.

  Returns:
    A descriptor, which the caller closes.

  Raises:
    problems.ProblemError: There is no such file, or it cannot be read.
  """
  where = tuple(where)
  try:
    # A pipe would block without O_NONBLOCK; to regular files it means nothing.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
  except FileNotFoundError as error:
    raise problems.refuse(
      problems.Kind.INPUT, where, 'does not exist', 'fetch it'
    ) from error
  except (OSError, ValueError) as error:
    raise unreadable(error, where) from error
  mode = os.fstat(fd).st_mode
  if stat.S_ISREG(mode):
    return fd
  os.close(fd)
  kind = 'a directory' if stat.S_ISDIR(mode) else 'a pipe, socket or device'
  raise problems.refuse(
    problems.Kind.INPUT, where, f'expected a file, this is {kind}'
  )


def unreadable(error: Exception, where: Iterable[str]) -> problems.ProblemError:
  """The error for a file that the system does not let us read."""
  reason = getattr(error, 'strerror', None) or str(error)
  return problems.refuse(
    problems.Kind.SPACE,
    where,
    f'cannot be read: {reason}',
    'check its permissions and the disk',
  )


def fill(fd: int, offset: int, out: memoryview, where: Iterable[str]) -> None:
  """Fills a buffer from a file, however many calls the system makes of it.

  Args:
    fd: Descriptor of the file.
    offset: First byte in the file.
    out: Bytes to fill.
    where: What a problem names.

  Raises:
    problems.ProblemError: The file ends before, or the disk fails.
  """
  while out:
    try:
      count = os.preadv(fd, [out], offset)
    except OSError as error:
      raise unreadable(error, where) from error
    if not count:
      raise problems.refuse(
        problems.Kind.INPUT,
        where,
        f'expected {len(out)} bytes more at byte {offset}, where the file '
        'ends now',
        'it shrank while it was read: fetch it again',
      )
    out = out[count:]
    offset += count


def read_at(fd: int, offset: int, size: int, where: Iterable[str]) -> bytes:
  """Reads bytes that a file is known to have; see `fill`."""
  out = bytearray(size)
  fill(fd, offset, memoryview(out), where)
  return bytes(out)


def read(
  path: str | os.PathLike[str],
  where: Iterable[str],
  max_bytes: int = MAX_BYTES,
) -> bytes:
  """Reads a small file.

  Args:
    path: The file.
    where: What a problem names, such as the model and the name of the file.
    max_bytes: Files above it are refused unread.

  Returns:
    What is in it.

  Raises:
    problems.ProblemError: It cannot be read or is too large.
  """
  where = tuple(where)
  fd = open_file(path, where)
  try:
    size = os.fstat(fd).st_size
    if size > max_bytes:
      raise problems.refuse(
        problems.Kind.INPUT,
        where,
        f'has {size} bytes, more than the {max_bytes} that are allowed',
      )
    return read_at(fd, 0, size, where)
  finally:
    os.close(fd)


def load(
  path: str | os.PathLike[str],
  where: Iterable[str],
  max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Args:
    path: The file.
    where: What a problem names, such as the model and the name of the file.
    max_bytes: Files above it are refused unread.

  Returns:
    The object.

  Raises:
    problems.ProblemError: The file cannot be read or is too large, or it is not
      a JSON object, has a key twice, or is nested too deeply.
  """
  where = tuple(where)
  return parse(read(path, where, max_bytes), where)


def parse(
  text: bytes, where: Iterable[str], what: str = 'the file', **options: Any
) -> dict[str, Any]:
  """Parses one JSON object.

  Args:
    text: UTF-8.
    where: What a problem names.
    what: What the text is, as a problem calls it.
    **options: For `json.loads`.

  Returns:
    The object.

  Raises:
    problems.ProblemError: It is not a JSON object, has a key twice, or is
      nested too deeply.

  Examples:
    >>> parse(b'{"a": 1}', ('config.json',))
    {'a': 1}
    >>> try:
    ...   parse(b'{"a": 1, "a": 2}', ('config.json',))
    ... except problems.ProblemError as error:
    ...   print(error)
    config.json: the file has the key 'a' twice
  """
  problem = None
  value: Any = None
  try:
    decoded = text.decode()
    value = json.loads(decoded, object_pairs_hook=_unique, **options)
    if not isinstance(value, dict):
      problem = f'expected a JSON object, {what} is a {type(value).__name__}'
  except UnicodeDecodeError as error:
    problem = f'{what} is not UTF-8 at byte {error.start}'
  except json.JSONDecodeError as error:
    at = len(error.doc[: error.pos].encode())
    problem = f'{what} is not valid JSON at byte {at}: {error.msg}'
  except RecursionError:
    problem = f'{what} is JSON nested too deeply'
  except _RepeatedError as error:
    problem = f'{what} has the key {error.args[0]!r} twice'
  except ValueError as error:  # A number of thousands of digits.
    problem = f'{what} is not valid JSON: {error}'
  if problem is not None:
    raise problems.refuse(problems.Kind.INPUT, where, problem)
  return value


class _RepeatedError(Exception):
  """A key comes twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) == len(pairs):
    return found
  seen = set()
  for key, _ in pairs:
    if key in seen:
      raise _RepeatedError(key)
    seen.add(key)
  raise AssertionError('unreachable: one of the keys comes twice')
