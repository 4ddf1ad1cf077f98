"""Whole files or nothing: writes that survive a kill at any moment."""

import os
from pathlib import Path
import tempfile


def write(path: str | os.PathLike[str], content: str | bytes) -> Path:
  """Writes a file so that a reader sees the old content or all of the new.

  The content goes to a temporary sibling, is flushed to the disk, and takes
  the name in one rename.

  Args:
    path: Where to write; missing folders are made.
    content: Text, written as UTF-8, or bytes.

  Returns:
    The path written.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  data = content.encode() if isinstance(content, str) else content
  descriptor, temporary = tempfile.mkstemp(
    dir=path.parent, prefix=f'.{path.name}.', suffix='.tmp'
  )
  try:
    with os.fdopen(descriptor, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    # mkstemp makes private files; results are meant to be read by others.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    os.replace(temporary, path)
  except BaseException:
    Path(temporary).unlink(missing_ok=True)
    raise
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)
  return path
