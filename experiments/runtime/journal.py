"""A file of JSON lines of which a kill can cost the last one at most."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
from typing import Any

from experiments.runtime import files


def start(path: Path, entries: Sequence[Any]) -> None:
  """Writes a journal anew, wholly or not at all.

  Args:
    path: The file.
    entries: What JSON can say.

  Raises:
    OSError: The disk refuses.
  """
  files.write(path, ''.join(map(_line, entries)))


def append(path: Path, entry: Any) -> None:
  """Adds an entry and waits until it is on the disk.

  Args:
    path: A journal that was started.
    entry: What JSON can say.

  Raises:
    OSError: The disk refuses.
  """
  with open(path, 'a', encoding='utf-8') as file:
    file.write(_line(entry))
    file.flush()
    os.fsync(file.fileno())


def read(path: Path) -> list[Any]:
  r"""Returns the entries up to the first that is not whole.

  Args:
    path: The file; it may be missing.

  Raises:
    OSError: It cannot be read.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   path = Path(directory, 'journal.jsonl')
    ...   _ = path.write_text('{"a": 1}\n{"b": ')
    ...   read(path)
    [{'a': 1}]
  """
  try:
    text = path.read_bytes()
  except FileNotFoundError:
    return []
  entries = []
  for line in text.split(b'\n')[:-1]:
    try:
      entries.append(json.loads(line))
    except ValueError:
      break
  return entries


def _line(entry: Any) -> str:
  return json.dumps(entry) + '\n'
