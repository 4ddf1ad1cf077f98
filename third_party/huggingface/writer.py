"""A sink that writes a checkpoint directory from any number of threads.

All files get their final size first, so that a full disk is known at the
start. A file gets its header last, once its tensors are on the disk: before
that nobody can take it for a checkpoint. The index comes after all files.

What makes a whole directory appear at once is not here: write into a directory
that nobody reads yet, and rename it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from concurrent import futures
import errno
import math
import os
from pathlib import Path
import threading
from typing import Any
from typing import TYPE_CHECKING
import zlib

import numpy as np

from third_party import storage
from third_party.huggingface import checksums
from third_party.huggingface import shards as shards_lib

if TYPE_CHECKING:
  from merging import streams
  from merging import transform

# What is kept of a finished file: `{'size': bytes, 'crc32': {tensor: CRC}}`.
Finished = Mapping[str, Any]


def _ignore(name: str, finished: Finished) -> None:
  """Takes no note of a finished file."""
  del name, finished


class CheckpointWriter:
  """Writes tensors, piece by piece, into files of the safetensors format.

  Entering the context makes the files, `write` fills them, `finish` ends them.
  Leaving early closes what is open and leaves the files as they are.

  Attributes:
    directory: Where the files go; it must exist.
    specs: The tensors.
    shards: The files, see `shards.Shard`.

  Examples:
    >>> import tempfile
    >>> from merging import transform
    >>> spec = transform.LeafSpec('w', (3,), np.dtype(np.float32))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   with CheckpointWriter(directory, {'w': spec}) as writer:
    ...     writer.write('w', 1, np.ones(2, np.float32))
    ...     writer.write('w', 0, np.zeros(1, np.float32))
    ...     writer.finish()
    ...   print(os.listdir(directory), writer.fingerprints)
    ['model.safetensors'] {'w': 3421587606}
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    specs: 'streams.Specs',
    *,
    shard_size: float = shards_lib.DEFAULT_SIZE,
    metadata: Mapping[str, str] | None = None,
    on_shard_done: Callable[[str, Finished], object] = _ignore,
  ):
    """Lays out the files; nothing is written before the context is entered.

    Args:
      directory: Where the files go.
      specs: The tensors, in the order in which they come, more or less.
      shard_size: Most bytes of tensors in a file.
      metadata: Strings for the header of each file, beside `format`.
      on_shard_done: Called with a file's name and what is to be kept of it,
        JSON-like, when the file is whole and on the disk. One call at a time,
        from a thread of the writer.

    Raises:
      ValueError: Something that the format cannot say, see `shards.lay_out`.
      TypeError: Metadata that is not made of strings.
    """
    self.directory = Path(directory)
    self.specs = dict(specs)
    self.shards = shards_lib.lay_out(
      self.specs, shard_size=shard_size, metadata=metadata
    )
    self._on_shard_done = on_shard_done
    self._files = [_File(shard, self.specs) for shard in self.shards]
    self._file_of = {
      path: file for file in self._files for path in file.shard.offsets
    }
    self._changed = threading.Condition()  # Guards all of what follows.
    self._open = False
    self._in_flight = 0
    self._missing = sum(file.missing for file in self._files)
    self._failure: BaseException | None = None
    # Ends files one after the other: a disk syncs no faster for two at once.
    self._ending: futures.Executor | None = None
    self._ends: list[futures.Future[None]] = []

  @property
  def total_size(self) -> int:
    """Bytes of all files, without the index."""
    return sum(shard.size for shard in self.shards)

  @property
  def fingerprints(self) -> dict[str, int]:
    """CRC-32 of the bytes of each tensor that is whole, by name."""
    with self._changed:
      return {
        path: file.pieces[path].crc
        for path, file in self._file_of.items()
        if not file.pieces[path].missing
      }

  def resume(self, finished: Mapping[str, Finished]) -> frozenset[str]:
    """Keeps files of an earlier writer with equal arguments.

    A file is kept if it has its size and its header, which it gets last; all
    others are written anew. Call it before entering the context.

    Args:
      finished: What `on_shard_done` got from the earlier writer, by name.

    Returns:
      The tensors that must not be written again.
    """
    kept = set()
    for file in self._files:
      entry = finished.get(file.shard.name)
      if entry is not None and file.matches(self.directory, entry):
        self._missing -= file.missing
        file.keep(entry)
        kept.update(file.shard.offsets)
    return frozenset(kept)

  def __enter__(self) -> 'CheckpointWriter':
    """Makes the files, with their final size.

    Raises:
      ProblemError: There is no space, or no permission.
    """
    new = [file for file in self._files if not file.ended]
    for file in new:
      file.path(self.directory).unlink(missing_ok=True)
    needed = sum(file.shard.size for file in new)
    storage.check_space(self.directory, needed)
    for file in new:
      with storage.reported(file.path(self.directory), file.shard.size):
        _allocate(file.path(self.directory), file.shard.size)
    with storage.reported(self.directory):
      storage.sync(self.directory)
    self._ending = futures.ThreadPoolExecutor(1, 'end-of-shard')
    with self._changed:
      self._open = True
      for file in new:
        if not file.missing:  # It has nothing but empty tensors.
          self._end_later(file)
    return self

  def __exit__(self, *_: object) -> None:
    """Closes what is open, after the calls that are under way."""
    with self._changed:
      self._open = False
      self._changed.wait_for(lambda: self._in_flight == 0)
    if self._ending is not None:
      self._ending.shutdown(cancel_futures=True)
    for file in self._files:
      file.close()

  def write(self, path: str, start: int, values: np.ndarray) -> None:
    """Takes the entries `[start, start + values.size)` of a tensor.

    Threads call it at the same time.

    Args:
      path: Name of the tensor.
      start: First entry, in the order of a C array.
      values: `[size]`, contiguous, of the dtype of the tensor.

    Raises:
      ValueError: Entries that are none of the tensor's or came before, values
        that do not fit, or a writer that is not entered.
      ProblemError: The disk refuses.
    """
    file = self._file_of.get(path)
    if file is None:
      raise ValueError(f'there is no tensor {path!r} in the checkpoint')
    spec = self.specs[path]
    _check_values(spec, start, values)
    data = values.view(np.uint8).data
    first = start * np.dtype(spec.dtype).itemsize
    crc = zlib.crc32(data)
    with self._changed:
      self._check_running()
      try:
        file.pieces[path].add(first, first + len(data), crc)
      except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
      self._in_flight += 1
    try:
      with storage.reported(file.path(self.directory), self._missing):
        descriptor = file.open(self.directory)
        _write_at(descriptor, data, file.shard.offsets[path] + first)
    except BaseException as error:
      self._landed(file, 0, error)
      raise
    self._landed(file, len(data))

  def finish(self) -> None:
    """Waits until all files are whole and on the disk; writes the index.

    Raises:
      ValueError: Some tensors are not complete.
      ProblemError: The disk refuses.
    """
    with self._changed:
      self._check_running()
      lacking = [
        f'{path!r} ({file.pieces[path].missing} bytes)'
        for path, file in self._file_of.items()
        if file.pieces[path].missing
      ]
    if lacking:
      more = f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''
      raise ValueError(f'not all was written: {", ".join(lacking[:5])}{more}')
    for end in self._ends:
      end.result()
    if len(self.shards) > 1:
      text = shards_lib.index(self.specs, self.shards)
      path = self.directory / shards_lib.INDEX
      with storage.reported(path, len(text)):
        path.write_text(text, encoding='utf-8')
        storage.sync(path)
    with storage.reported(self.directory):
      storage.sync(self.directory)

  def _check_running(self) -> None:
    if self._failure is not None:
      raise self._failure
    if not self._open:
      raise ValueError('the writer is not open; use it in a with statement')

  def _landed(
    self, file: '_File', size: int, failure: BaseException | None = None
  ) -> None:
    """Takes note of the end of a call of `write`."""
    with self._changed:
      self._in_flight -= 1
      self._failure = self._failure or failure
      self._missing -= size
      file.missing -= size
      if size and not file.missing and self._open:
        self._end_later(file)
      self._changed.notify_all()

  def _end_later(self, file: '_File') -> None:
    assert self._ending is not None
    self._ends.append(self._ending.submit(self._end, file))

  def _end(self, file: '_File') -> None:
    """Puts a file on the disk, then its header, and tells."""
    try:
      with storage.reported(file.path(self.directory), file.shard.size):
        descriptor = file.open(self.directory)
        os.fsync(descriptor)
        _write_at(descriptor, memoryview(file.shard.header), 0)
        os.fsync(descriptor)
        file.close()
      file.ended = True
      self._on_shard_done(file.shard.name, file.finished())
    except BaseException as error:
      with self._changed:
        self._failure = self._failure or error
      raise


class _File:
  """A file of the checkpoint, and what is still missing of it."""

  def __init__(self, shard: shards_lib.Shard, specs: 'streams.Specs'):
    self.shard = shard
    self.pieces = {
      path: checksums.Pieces(shards_lib.byte_size(specs[path]))
      for path in shard.offsets
    }
    self.missing = sum(pieces.missing for pieces in self.pieces.values())
    self.ended = False
    self._descriptor: int | None = None
    self._opening = threading.Lock()

  def path(self, directory: Path) -> Path:
    return directory / self.shard.name

  def open(self, directory: Path) -> int:
    """Opens it once: only files in work take a descriptor."""
    with self._opening:
      if self._descriptor is None:
        self._descriptor = os.open(self.path(directory), os.O_WRONLY)
      return self._descriptor

  def close(self) -> None:
    with self._opening:
      if self._descriptor is not None:
        os.close(self._descriptor)
        self._descriptor = None

  def finished(self) -> dict[str, Any]:
    crcs = {path: pieces.crc for path, pieces in self.pieces.items()}
    return {'size': self.shard.size, 'crc32': crcs}

  def matches(self, directory: Path, entry: Finished) -> bool:
    """Whether an entry of a journal and what is on the disk are this file."""
    crcs = entry.get('crc32')
    if not isinstance(crcs, Mapping) or set(crcs) != set(self.pieces):
      return False
    try:
      with open(self.path(directory), 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(len(self.shard.header))
    except OSError:
      return False
    return size == self.shard.size and header == self.shard.header

  def keep(self, entry: Finished) -> None:
    for path, pieces in self.pieces.items():
      pieces.add(0, pieces.missing, entry['crc32'][path])
    self.missing = 0
    self.ended = True


def _check_values(
  spec: 'transform.LeafSpec', start: int, values: np.ndarray
) -> None:
  if values.dtype != spec.dtype:
    raise ValueError(
      f'{spec.path}: expected {np.dtype(spec.dtype)} values, got {values.dtype}'
    )
  if values.ndim != 1 or not values.flags.c_contiguous:
    raise ValueError(
      f'{spec.path}: expected a contiguous array of one dimension, got shape'
      f' {values.shape} and strides {values.strides}'
    )
  count = math.prod(spec.shape)
  if not 0 <= start <= start + values.size <= count:
    raise ValueError(
      f'{spec.path}: the entries {start} to {start + values.size} are not'
      f' among its {count}'
    )


def _allocate(path: Path, size: int) -> None:
  """Makes a file of a size, with its blocks where the file system can."""
  descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
  try:
    try:
      os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
      if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
        raise
      os.ftruncate(descriptor, size)
  finally:
    os.close(descriptor)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
  """Writes all of the data; one call of the system takes 2 GB at most."""
  while data:
    count = os.pwrite(descriptor, data, offset)
    data = data[count:]
    offset += count
