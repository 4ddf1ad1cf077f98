"""Where each tensor of a checkpoint will lie: files, headers, offsets.

The format of a file: the length of the header as 8 bytes, little endian; the
header, JSON padded with spaces to a multiple of 8; the tensors without gaps.
"""

from collections.abc import Mapping
import json
import math
from typing import NamedTuple
from typing import TYPE_CHECKING

import numpy as np

from third_party.huggingface import safetensors

if TYPE_CHECKING:
  from merging import streams
  from merging import transform

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DEFAULT_SIZE = 5_000_000_000  # Bytes; what Hugging Face writes by default.

_NAMES = {dtype: name for name, dtype in safetensors.DTYPES.items()}
_MAX_HEADER = 100_000_000  # Bytes; the safetensors library reads no more.


class Shard(NamedTuple):
  """One file of a checkpoint.

  Attributes:
    name: Its name in the directory.
    header: What comes before the tensors.
    offsets: Place in the file of the first byte of each tensor.
    size: Of the file, in bytes.
  """

  name: str
  header: bytes
  offsets: Mapping[str, int]
  size: int


def byte_size(spec: 'transform.LeafSpec') -> int:
  """Returns the number of bytes of a tensor."""
  return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def lay_out(
  specs: 'streams.Specs',
  *,
  shard_size: float = DEFAULT_SIZE,
  metadata: Mapping[str, str] | None = None,
) -> tuple[Shard, ...]:
  """Distributes tensors over files.

  A file is closed when the next tensor would not fit; one that is larger than
  a shard is alone in its file. Inside a file, tensors of wider types come
  first and keep their order otherwise, so that each starts at a multiple of
  the size of its entries: the format allows no gaps.

  Args:
    specs: The tensors, in the order in which they will be written.
    shard_size: Most bytes of tensors in a file.
    metadata: Strings for the header of each file, beside `format`.

  Returns:
    The files: `model.safetensors` if there is one, else
    `model-00001-of-00002.safetensors` and so on.

  Raises:
    ValueError: A type that the format does not have, a header larger than
      readers accept, a size that is not positive, or no tensors.
    TypeError: Metadata that is not made of strings.

  Examples:
    >>> from merging import transform
    >>> spec = transform.LeafSpec('w', (2, 3), np.dtype(np.float32))
    >>> [shard] = lay_out({'w': spec})
    >>> shard.name, shard.size - len(shard.header)
    ('model.safetensors', 24)
  """
  metadata = metadata or {}
  _check(specs, shard_size, metadata)
  groups: list[list[transform.LeafSpec]] = []
  room = 0.0
  for spec in specs.values():
    size = byte_size(spec)
    if not groups or size > room:
      groups.append([])
      room = shard_size
    groups[-1].append(spec)
    room -= size
  return tuple(
    _shard(_file_name(number, len(groups)), group, metadata)
    for number, group in enumerate(groups, start=1)
  )


def index(specs: 'streams.Specs', files: tuple[Shard, ...]) -> str:
  """Returns the text of the index of a checkpoint of several files."""
  content = {
    'metadata': {'total_size': sum(map(byte_size, specs.values()))},
    'weight_map': {path: file.name for file in files for path in file.offsets},
  }
  return json.dumps(content, indent=2, sort_keys=True) + '\n'


def _file_name(number: int, count: int) -> str:
  return (
    SINGLE if count == 1 else f'model-{number:05}-of-{count:05}.safetensors'
  )


def _shard(
  name: str, specs: list['transform.LeafSpec'], metadata: Mapping[str, str]
) -> Shard:
  entries: dict[str, object] = {'__metadata__': {'format': 'pt', **metadata}}
  begins: dict[str, int] = {}
  end = 0
  for spec in sorted(specs, key=lambda spec: -np.dtype(spec.dtype).itemsize):
    begins[spec.path], end = end, end + byte_size(spec)
    entries[spec.path] = {
      'dtype': _NAMES[np.dtype(spec.dtype)],
      'shape': list(spec.shape),
      'data_offsets': [begins[spec.path], end],
    }
  text = json.dumps(entries, separators=(',', ':'), ensure_ascii=False).encode()
  text += b' ' * (-len(text) % 8)
  if len(text) > _MAX_HEADER:
    raise ValueError(
      f'{name}: the header has {len(text)} bytes, readers accept at most'
      f' {_MAX_HEADER}; write smaller shards'
    )
  header = len(text).to_bytes(8, 'little') + text
  offsets = {path: len(header) + begin for path, begin in begins.items()}
  return Shard(name, header, offsets, len(header) + end)


def _check(
  specs: 'streams.Specs', shard_size: float, metadata: Mapping[str, str]
) -> None:
  """Refuses what cannot be said in the format."""
  if not specs:
    raise ValueError('there are no tensors to write')
  if not shard_size > 0:
    raise ValueError(f'shard_size is {shard_size}, expected a positive number')
  for key, value in metadata.items():
    if not isinstance(key, str) or not isinstance(value, str):
      raise TypeError(
        f'the metadata {key!r}: {value!r} is not a string for a string'
      )
  for path, spec in specs.items():
    if path != spec.path:
      raise ValueError(
        f'the tensor {path!r} is called {spec.path!r} in its spec'
      )
    if path == '__metadata__':
      raise ValueError("'__metadata__' cannot be the name of a tensor")
    if np.dtype(spec.dtype) not in _NAMES:
      raise ValueError(
        f'{path}: the safetensors format has no type {spec.dtype}; expected'
        f' one of {", ".join(str(dtype) for dtype in _NAMES)}'
      )
