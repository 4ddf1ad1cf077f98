"""The headers of safetensors files, checked.

A file is 8 bytes that give the length of a header in little-endian order, the
header, which is JSON, and the bytes of the tensors. Tensors lie one after
another without a gap, to the end of the file. A header says nothing that is
not checked here before a byte of a tensor is read, and nothing is allocated
because a header says so.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import hashlib
import itertools
import math
from typing import Any
from typing import NamedTuple

import ml_dtypes
import numpy as np

from third_party import problems
from third_party.huggingface import json_files
from third_party.huggingface import sniff

DTYPES: Mapping[str, np.dtype] = {
  name: np.dtype(kind)
  for name, kind in {
    'BOOL': np.bool_,
    'U8': np.uint8,
    'I8': np.int8,
    'U16': np.uint16,
    'I16': np.int16,
    'U32': np.uint32,
    'I32': np.int32,
    'U64': np.uint64,
    'I64': np.int64,
    'F8_E4M3': ml_dtypes.float8_e4m3fn,
    'F8_E5M2': ml_dtypes.float8_e5m2,
    'F8_E4M3FNUZ': ml_dtypes.float8_e4m3fnuz,
    'F8_E5M2FNUZ': ml_dtypes.float8_e5m2fnuz,
    'F8_E8M0': ml_dtypes.float8_e8m0fnu,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'F32': np.float32,
    'F64': np.float64,
  }.items()
}
_REFUSED = {
  'C64': 'complex numbers',
  'F4': 'packed 4-bit numbers',
  'F6_E2M3': 'packed 6-bit numbers',
  'F6_E3M2': 'packed 6-bit numbers',
}
_FIELDS = ('dtype', 'shape', 'data_offsets')
_PREFIX = 8
_MAX_DIMENSIONS = 64


class Tensor(NamedTuple):
  """A tensor as the header declares it.

  Attributes:
    name: Its name: any text, never part of a path.
    dtype: Type of its entries.
    shape: Its shape.
    start: Its first byte, counted from the header's end (`data_start`).
    stop: The byte after its last one, counted in the same way.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  stop: int

  @property
  def size(self) -> int:
    """Number of entries."""
    return math.prod(self.shape)


class Header(NamedTuple):
  """What a safetensors file says of itself.

  Attributes:
    tensors: By name, in the order of their bytes.
    metadata: Text for text, such as `{'format': 'pt'}`.
    data_start: Where in the file the tensors start.
    size: Bytes of the file.
    sha256: Of the length and the header, in hexadecimal digits.
  """

  tensors: Mapping[str, Tensor]
  metadata: Mapping[str, str]
  data_start: int
  size: int
  sha256: str


def shown(name: str) -> str:
  """Returns a name as a problem prints it: short, on one line, no escapes.

  Examples:
    >>> shown('lm_head.weight'), shown('a' * 300)[-6:], shown('')
    ('lm_head.weight', 'aaa...', "''")
  """
  short = name if len(name) <= 200 else name[:200] + '...'
  return short if short.isprintable() and short else repr(short)


def read(fd: int, size: int, where: tuple[str, ...]) -> Header:
  """Reads and checks the header of an open file.

  Args:
    fd: Descriptor of the file.
    size: Bytes of the file.
    where: What problems name: the model and the file.

  Returns:
    The header.

  Raises:
    problems.ProblemError: With all that is wrong with the file.
  """
  again = 'the download is incomplete: fetch it again'
  start = json_files.read_at(fd, 0, min(size, 64), where)
  length = int.from_bytes(start[:_PREFIX], 'little')
  problem, remedy = None, again
  if size == 0:
    problem = 'is empty (0 bytes)'
  elif not start.strip(b'\0'):
    problem = f'starts with {len(start)} bytes of zero, no header'
  elif size < _PREFIX:
    problem = f'has {size} bytes, a safetensors file has {_PREFIX} at least'
  elif length > size - _PREFIX:
    problem = f'the header claims {length} bytes, the file has {size}'
  elif length > json_files.MAX_BYTES:
    problem = (
      f'the header claims {length} bytes, more than the '
      f'{json_files.MAX_BYTES} of the format'
    )
    remedy = 'fetch it again'
  elif start[_PREFIX : _PREFIX + 1] != b'{':
    problem = f"the header starts with {start[8:9]!r}, expected b'{{'"
    remedy = 'fetch it again'
  if problem is not None:
    known = sniff.name(start)
    if known is not None:
      problem, remedy = f'is {known[0]}', known[1]
    raise problems.refuse(problems.Kind.INPUT, where, problem, remedy)
  raw = json_files.read_at(fd, _PREFIX, length, where)
  header = json_files.parse(
    raw,
    where,
    'the header',
    parse_int=_natural,
    parse_constant=str,  # Not a number of any use here: fails as text.
  )
  data_start = _PREFIX + length
  metadata, faults = _metadata(header.pop('__metadata__', {}))
  tensors, more = _tensors(header)
  faults += more
  if not more:  # Else every hole left by a bad tensor would be one more line.
    faults += _check_layout(tensors, size - data_start)
  if faults:
    raise problems.ProblemError(
      problems.Problem(
        problems.Kind.INPUT,
        (*where, shown(name)) if name is not None else where,
        what,
        'use a version of the model in another type'
        if what.endswith('is not supported')
        else 'fetch it again',
      )
      for name, what in faults
    )
  return Header(
    tensors={each.name: each for each in tensors},
    metadata=metadata,
    data_start=data_start,
    size=size,
    sha256=hashlib.sha256(start[:_PREFIX] + raw).hexdigest(),
  )


_Faults = list[tuple[str | None, str]]  # A tensor's name, and what is wrong.


def _natural(text: str) -> int | str:
  """A number, or the text of one that cannot count anything."""
  return text if text.startswith('-') else int(text)


def _metadata(value: Any) -> tuple[dict[str, str], _Faults]:
  if not isinstance(value, dict):
    kind = type(value).__name__
    return {}, [('__metadata__', f'expected an object, got a {kind}')]
  return value, [
    (
      '__metadata__',
      f'expected text for {shown(key)}, got a {type(entry).__name__}',
    )
    for key, entry in value.items()
    if not (isinstance(entry, str) and _encodes(key + entry))
  ]


def _encodes(text: str) -> bool:
  """Whether no half of a surrogate pair came in by an escape."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _tensors(header: dict[str, Any]) -> tuple[list[Tensor], _Faults]:
  """Returns tensors in the order of their bytes, and what is wrong."""
  tensors, faults = [], []
  for name, entry in header.items():
    parsed = _tensor(name, entry)
    if isinstance(parsed, Tensor):
      tensors.append(parsed)
    else:
      faults.append((name, parsed))
  tensors.sort(key=lambda each: each[3:])
  return tensors, faults


def _tensor(name: str, entry: Any) -> Tensor | str:
  """Returns a tensor, or what is wrong with it."""
  if not name or not _encodes(name):
    return 'expected a name that is not empty, and valid Unicode'
  if not isinstance(entry, dict) or set(entry) != set(_FIELDS):
    got = list(entry) if isinstance(entry, dict) else type(entry).__name__
    return f'expected the fields {list(_FIELDS)}, got {shown(str(got))}'
  kind, shape, offsets = (entry[field] for field in _FIELDS)
  dtype = DTYPES.get(kind) if isinstance(kind, str) else None
  if dtype is None:
    if isinstance(kind, str) and kind in _REFUSED:
      return f'dtype {kind} ({_REFUSED[kind]}) is not supported'
    return f'dtype {shown(str(kind))} is unknown'
  if not _counts(shape):
    return f'expected a shape of natural numbers, got {shown(str(shape))}'
  if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
    return f'expected data_offsets [begin, end], got {shown(str(offsets))}'
  # Even of an empty tensor: NumPy refuses the others' product beyond this.
  if math.prod(filter(None, shape)) * dtype.itemsize >= 2**63:
    return f'shape {shown(str(shape))} of {kind} is beyond 2**63 bytes'
  size = math.prod(shape) * dtype.itemsize
  begin, end = offsets
  if size != end - begin:
    return (
      f'shape {shown(str(shape))} of {kind} needs {size} bytes, its '
      f'data_offsets {offsets} span {end - begin}'
    )
  return Tensor(name, dtype, tuple(shape), begin, end)


def _counts(numbers: Any) -> bool:
  # More dimensions than NumPy has would only make long products.
  return (
    isinstance(numbers, list)
    and len(numbers) <= _MAX_DIMENSIONS
    and all(type(each) is int and each < 2**63 for each in numbers)
  )


def _check_layout(tensors: list[Tensor], size: int) -> _Faults:
  """Says where tensors leave a gap, overlap or miss the end of the data."""
  faults: _Faults = list(_gaps(tensors))
  end = max((each.stop for each in tensors), default=0)
  if end > size:
    lost = next(each for each in tensors if each.stop > size)
    faults.append(
      (
        None,
        f'is truncated: expected {end} bytes of tensors, got {size}; '
        f'{shown(lost.name)} at [{lost.start}, {lost.stop}) is the first that '
        'ends beyond',
      )
    )
  elif end < size:
    faults.append(
      (
        None,
        f'has {size - end} extra bytes after the last tensor',
      )
    )
  return faults


def _gaps(tensors: list[Tensor]) -> Iterator[tuple[str, str]]:
  if tensors and tensors[0].start:
    first = tensors[0]
    yield (
      first.name,
      f'is at [{first.start}, {first.stop}), expected 0 as the first begin',
    )
  for before, after in itertools.pairwise(tensors):
    if before.stop != after.start:
      kind = 'overlaps' if after.start < before.stop else 'leaves a gap after'
      yield (
        after.name,
        f'at [{after.start}, {after.stop}) {kind} {shown(before.name)} at '
        f'[{before.start}, {before.stop})',
      )
