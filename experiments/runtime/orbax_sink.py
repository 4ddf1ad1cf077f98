"""Orbax checkpoints that are written in pieces, through TensorStore."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import math
import os
from pathlib import Path
import threading
from typing import Any
from typing import NamedTuple
import zlib

import numpy as np
import tensorstore

from experiments.runtime import files
from experiments.runtime import orbax_layout
from merging import streams
from third_party import problems
from third_party.huggingface import checksums

_HANDLER = (
  'orbax.checkpoint._src.handlers.pytree_checkpoint_handler'
  '.PyTreeCheckpointHandler'
)


class OrbaxSink:
  """An Orbax checkpoint that is written in pieces.

  Orbax restores what it writes, with or without a target tree and on any mesh.
  Arrays are stored as they are, with checksums: weights hardly compress.

  A piece that does not fill a chunk waits for the rest of it; so memory is what
  arrives at the same time, and at most one chunk for each leaf in progress when
  leaves arrive in order. Files are not flushed until `finish`, before which
  Orbax takes the directory for no checkpoint.

  Examples:
    >>> import tempfile
    >>> from orbax import checkpoint as ocp
    >>> from merging import transform
    >>> spec = transform.LeafSpec('layer/w', (3,), np.dtype(np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   sink = OrbaxSink(folder, {'layer/w': spec})
    ...   sink.write('layer/w', 1, np.ones(2, np.float32))
    ...   sink.write('layer/w', 0, np.zeros(1, np.float32))
    ...   sink.finish()
    ...   with ocp.PyTreeCheckpointer() as checkpointer:
    ...     tree = checkpointer.restore(folder)
    >>> tree['layer']['w'].tolist()
    [0.0, 1.0, 1.0]
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    specs: streams.Specs,
    *,
    keys: Mapping[str, tuple[orbax_layout.Key, ...]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    chunk_bytes: int = 2**24,
  ):
    """Makes an empty checkpoint; room is taken as pieces arrive.

    Args:
      directory: Empty or missing. Renaming it later is allowed.
      specs: Of the leaves, by path.
      keys: Of each leaf, as in `OrbaxSource.keys`, to keep lists lists; by
        default dicts of the parts of a path between slashes.
      metadata: What JSON can hold; Orbax calls it custom metadata.
      chunk_bytes: At most how much of a leaf is stored as one.

    Raises:
      ProblemError: The directory is not empty, or Orbax has no such leaves.
    """
    self._directory = Path(directory)
    self._keys = {
      path: keys[path]
      if keys is not None
      else tuple((part, False) for part in path.split('/'))
      for path in specs
    }
    self._metadata = dict(metadata or {})
    self._refuse(specs)
    context = tensorstore.Context(
      {'file_io_sync': False, 'cache_pool': {'total_bytes_limit': 0}}
    )
    base = {'driver': 'file', 'path': f'{self._directory.absolute()}/'}
    self._chunks = {
      path: _Chunks.of(spec.shape, chunk_bytes // spec.dtype.itemsize)
      for path, spec in specs.items()
    }
    self._stores: dict[str, tensorstore.TensorStore] = {}
    opening = {
      path: tensorstore.open(
        {
          'driver': 'zarr3',
          'kvstore': {
            'driver': 'ocdbt',
            'base': base,
            'path': f'{orbax_layout.stored_as(self._keys[path])}/',
          },
          'metadata': {
            'shape': spec.shape,
            'data_type': tensorstore.dtype(spec.dtype).name,
            'chunk_grid': {
              'name': 'regular',
              'configuration': {'chunk_shape': self._chunks[path].shape},
            },
            'codecs': [
              {'name': 'bytes', 'configuration': {'endian': 'little'}}
              if spec.dtype.itemsize > 1
              else {'name': 'bytes'},
              {'name': 'crc32c'},
            ],
          },
          # Orbax would take what is not there for damage.
          'store_data_equal_to_fill_value': True,
        },
        create=True,
        context=context,
      )
      for path, spec in specs.items()
    }
    for path, future in opening.items():
      with self._saying(path):
        self._stores[path] = future.result()
    # What has been stored of each leaf, in bytes.
    self._pieces = {
      path: checksums.Pieces(math.prod(spec.shape) * spec.dtype.itemsize)
      for path, spec in specs.items()
    }
    self._waiting: dict[tuple[str, int], _Waiting] = {}
    self._lock = threading.Lock()

  def write(self, path: str, start: int, values: np.ndarray) -> None:
    """Takes entries of a leaf, in the order of a C array.

    Args:
      path: Name of the leaf.
      start: First entry.
      values: `[size]`, of the dtype of the leaf.

    Raises:
      ValueError: Some of them came before.
      ProblemError: They cannot be written: the disk is full, for example.
    """
    data = values.view(np.uint8).data
    crc = zlib.crc32(data)
    done = 0
    while done < values.size:
      at = start + done
      begin, end = self._chunks[path].around(at)
      part = values[done : done + end - at]
      whole = part if part.size == end - begin else None
      if whole is None:
        whole = self._add(path, begin, end, at, part)
      if whole is not None:
        self._store(path, begin, whole)
      done += part.size
    first = start * values.itemsize
    with self._lock:
      self._pieces[path].add(first, first + len(data), crc)

  @property
  def fingerprints(self) -> dict[str, int]:
    """CRC-32 of the bytes of each leaf that is whole, by path."""
    with self._lock:
      return {
        path: pieces.crc
        for path, pieces in self._pieces.items()
        if not pieces.missing
      }

  def finish(self) -> None:
    """Makes it a checkpoint, once everything is written and on the disk.

    Raises:
      ProblemError: Parts of leaves are missing, or the disk is full.
    """
    short = [
      problems.Problem(
        problems.Kind.VERIFY,
        (str(self._directory), path),
        f'{pieces.missing} bytes were not written',
      )
      for path, pieces in self._pieces.items()
      if pieces.missing
    ]
    if short:
      raise problems.ProblemError(short)
    self._stores.clear()
    tree = {
      str(tuple(key for key, _ in keys)): {
        'key_metadata': [
          {'key': key, 'key_type': 1 if is_index else 2}
          for key, is_index in keys
        ],
        'value_metadata': {
          'value_type': 'np.ndarray',  # Needs no device that exists later.
          'skip_deserialize': False,
          'write_shape': list(self._chunks[path].shape),
        },
      }
      for path, keys in self._keys.items()
    }
    with self._saying():
      for folder, _, names in os.walk(self._directory, topdown=False):
        for each in (*(Path(folder, name) for name in names), Path(folder)):
          _flush(each)
      for name, content in {
        orbax_layout.TREE: {
          'tree_metadata': tree,
          'use_ocdbt': True,
          'use_zarr3': True,
          'store_array_data_equal_to_fill_value': True,
          'custom_metadata': self._metadata,
        },
        orbax_layout.ABOUT: {
          'item_handlers': _HANDLER,
          'custom_metadata': self._metadata,
        },
      }.items():
        files.write(self._directory / name, json.dumps(content))
      files.write(
        self._directory / orbax_layout.COMMITTED,
        'All leaves are on the disk.\n',
      )

  def _add(
    self, path: str, begin: int, end: int, at: int, part: np.ndarray
  ) -> np.ndarray | None:
    """Puts a part where the rest of its chunk is; returns the chunk if full."""
    with self._lock:
      waiting = self._waiting.get((path, begin))
      if waiting is None:
        waiting = _Waiting(np.empty(end - begin, part.dtype), [end - begin])
        self._waiting[path, begin] = waiting
    waiting.values[at - begin : at - begin + part.size] = part
    with self._lock:
      waiting.missing[0] -= part.size
      if waiting.missing[0]:
        return None
      del self._waiting[path, begin]
    return waiting.values

  def _store(self, path: str, begin: int, values: np.ndarray) -> None:
    """Writes a chunk, and returns when the file system has it."""
    store = self._stores[path]
    (box,) = orbax_layout.boxes(store.shape, begin, begin + values.size)
    target = store[box]
    with self._saying(path):
      target.write(values.reshape(target.shape)).result()

  @contextlib.contextmanager
  def _saying(self, path: str = '') -> Iterator[None]:
    """Turns errors of the file system into problems of a leaf."""
    try:
      yield
    except (ValueError, OSError, RuntimeError) as error:
      raise problems.refuse(
        problems.Kind.SPACE,
        filter(None, (str(self._directory), path)),
        f'cannot be written: {orbax_layout.reason(error)}',
        'free space, or choose another disk',
      ) from error

  def _refuse(self, specs: streams.Specs) -> None:
    """Refuses what cannot be written, before anything is."""
    name = str(self._directory)
    if self._directory.exists() and any(self._directory.iterdir()):
      raise problems.refuse(
        problems.Kind.CONFIG, (name,), 'is not empty', 'choose another name'
      )
    wrong = []
    for path, spec in specs.items():
      if math.prod(spec.shape) == 0:
        what = f'Orbax has no arrays without entries, such as {spec.shape}'
      elif not _is_known(spec.dtype):
        what = f'Orbax cannot store {spec.dtype}'
      else:
        continue
      wrong.append(
        problems.Problem(
          problems.Kind.INCOMPATIBLE, (name, path), what, 'leave it out'
        )
      )
    if wrong:
      raise problems.ProblemError(wrong)
    orbax_layout.refuse_twins(
      map(orbax_layout.stored_as, self._keys.values()), name
    )


class _Waiting(NamedTuple):
  """A chunk that is not full yet, and in a list how much is missing."""

  values: np.ndarray
  missing: list[int]


class _Chunks(NamedTuple):
  """A grid whose chunks are without gaps in the order of a C array.

  Attributes:
    shape: Of a chunk.
    entries: Of a chunk that is not the last one of its line.
    line: Entries after which the grid repeats.
  """

  shape: tuple[int, ...]
  entries: int
  line: int

  @classmethod
  def of(cls, shape: tuple[int, ...], most: int) -> '_Chunks':
    """Returns the grid of the largest chunks with at most `most` entries."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= most:
      axis -= 1
      inner *= shape[axis]
    if not axis:
      return cls(shape, inner, inner)
    rows = max(1, most // inner)
    ones = (1,) * (axis - 1)
    return cls(
      (*ones, rows, *shape[axis:]), rows * inner, inner * shape[axis - 1]
    )

  def around(self, entry: int) -> tuple[int, int]:
    """Returns where the chunk of an entry begins and ends."""
    line = entry // self.line * self.line
    begin = line + (entry - line) // self.entries * self.entries
    return begin, min(begin + self.entries, line + self.line)


def _is_known(dtype: np.dtype) -> bool:
  try:
    tensorstore.dtype(dtype)
  except (TypeError, ValueError):
    return False
  return True


def _flush(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
