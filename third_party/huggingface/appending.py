"""Writing a safetensors file whose shapes are not known beforehand.

The header comes first in the format. Here room is left for it, tensors are
appended as they are made, and the header is written last, padded with spaces.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import json
import os
from pathlib import Path

import numpy as np

from third_party import storage
from third_party.huggingface import safetensors

_NAMES = {dtype: name for name, dtype in safetensors.DTYPES.items()}
_ENTRY = 160  # Bytes of a type, four axes and two offsets, with their names.
_PREFIX = 8


def room_for(names: Iterable[str]) -> int:
  """Returns how many bytes of a header tensors of these names take at most."""
  return sum(len(json.dumps(name)) + _ENTRY for name in names)


class Appending:
  """A file that appears under its name when it is whole.

  Until then it is a hidden sibling, which leaving the context early removes.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = os.path.join(folder, 'x.safetensors')
    ...   with Appending(path, room_for(['a', 'b'])) as file:
    ...     file.append('b', np.ones(2, np.float32))
    ...     size = file.finish({'format': 'pt'})
    ...   header = safetensors.read_header(path)
    >>> list(header.tensors), header.metadata, header.size == size
    (['b'], {'format': 'pt'}, True)
  """

  def __init__(self, path: str | os.PathLike[str], room: int):
    """Says where to write; nothing is before the context is entered.

    Args:
      path: The file.
      room: Bytes of the header, see `room_for`, besides a kilobyte of metadata.
    """
    self._path = Path(path)
    self._hidden = self._path.with_name(f'.{self._path.name}.partial')
    self._room = -(-(room + 1000) // 8) * 8
    self._entries: dict[str, dict[str, object]] = {}
    self._end = 0
    self._fd = -1

  def __enter__(self) -> 'Appending':
    """Makes the file."""
    with storage.reported(self._path):
      flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
      self._fd = os.open(self._hidden, flags, 0o666)
    return self

  def __exit__(self, *exception: object) -> None:
    """Removes what is not finished."""
    if self._fd >= 0:
      os.close(self._fd)
      self._fd = -1
      with contextlib.suppress(OSError):
        self._hidden.unlink()

  @property
  def size(self) -> int:
    """Bytes of the tensors so far."""
    return self._end

  def append(self, name: str, array: np.ndarray) -> None:
    """Writes a tensor.

    Args:
      name: Of the tensor.
      array: The tensor, of a type of the format.

    Raises:
      ValueError: The name comes twice, or the format has no such type.
      problems.ProblemError: The disk is full, and the like.
    """
    if name in self._entries:
      raise ValueError(f'{name!r} comes twice')
    if array.dtype not in _NAMES:
      raise ValueError(f'{name!r}: safetensors files have no {array.dtype}')
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    self._entries[name] = {
      'dtype': _NAMES[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [self._end, self._end + len(data)],
    }
    self._write(data, _PREFIX + self._room + self._end)
    self._end += len(data)

  def finish(self, metadata: Mapping[str, str]) -> int:
    """Writes the header and gives the file its name.

    Args:
      metadata: Strings for the header.

    Returns:
      Bytes of the file.

    Raises:
      ValueError: There is not enough room for the header.
      problems.ProblemError: The disk is full, and the like.
    """
    header = {'__metadata__': dict(metadata), **self._entries}
    text = json.dumps(header, separators=(',', ':')).encode()
    if len(text) > self._room:
      raise ValueError(
        f'the header has {len(text)} bytes, room was left for {self._room}'
      )
    prefix = self._room.to_bytes(_PREFIX, 'little')
    self._write(memoryview(prefix + text.ljust(self._room)), 0)
    with storage.reported(self._path):
      os.fsync(self._fd)
      os.close(self._fd)
      self._fd = -1
      os.replace(self._hidden, self._path)
      folder = os.open(self._path.parent, os.O_RDONLY)
      try:
        os.fsync(folder)
      finally:
        os.close(folder)
    return _PREFIX + self._room + self._end

  def _write(self, data: memoryview, offset: int) -> None:
    with storage.reported(self._path, len(data)):
      while data:
        count = os.pwrite(self._fd, data, offset)
        data = data[count:]
        offset += count
