"""Headers and pieces of safetensors files, against the format's own library."""

from concurrent import futures
import json
import os
import pickle
import resource
import socket

import ml_dtypes
import numpy as np
import pytest
import safetensors as library
from safetensors import numpy as library_numpy

from tests.third_party.huggingface import crafted
from third_party import problems
from third_party.huggingface import safetensors

_FOUR = bytes(range(4))
_AGAIN = 'fetch it again'
_OTHER = 'use a version of the model in another type'
_PARTIAL = 'the download is incomplete: fetch it again'
_FIELDS = "['dtype', 'shape', 'data_offsets']"


def _one(**changed):
  """A header of one tensor `w` of four bytes, with fields changed."""
  return {'w': crafted.entry([1], [0, 4]) | changed}


def _two(first, second):
  """A header of two tensors of U8 at these offsets."""
  return {
    name: crafted.entry([end - begin], [begin, end], 'U8')
    for name, (begin, end) in {'a': first, 'b': second}.items()
  }


# What is in the file, and what is said of it after `math / m.safetensors`.
_FAULTS = {
  'empty': (b'', f': is empty (0 bytes); {_PARTIAL}'),
  'seven bytes': (
    b'\x01' * 7,
    f': has 7 bytes, a safetensors file has 8 at least; {_PARTIAL}',
  ),
  'preallocated': (
    bytes(4096),
    f': starts with 64 bytes of zero, no header; {_PARTIAL}',
  ),
  'truncated': (
    crafted.file(_two((0, 2), (2, 6)), bytes(5)),
    ': is truncated: expected 6 bytes of tensors, got 5; b at [2, 6) is the '
    f'first that ends beyond; {_AGAIN}',
  ),
  'trailing': (
    crafted.file(_one(), _FOUR + bytes(3)),
    f': has 3 extra bytes after the last tensor; {_AGAIN}',
  ),
  'trailing without tensors': (
    crafted.file({}, bytes(2)),
    f': has 2 extra bytes after the last tensor; {_AGAIN}',
  ),
  'header beyond the file': (
    crafted.file(_one(), _FOUR, length=1000),
    f': the header claims 1000 bytes, the file has 73; {_PARTIAL}',
  ),
  'header of 2**63': (
    crafted.file(_one(), _FOUR, length=2**63),
    f': the header claims {2**63} bytes, the file has 73; {_PARTIAL}',
  ),
  'LFS pointer': (
    b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n',
    ': is a Git LFS pointer and not the file itself; run `git lfs pull` in '
    'its directory',
  ),
  'Xet pointer': (
    b'# xet version 0\nfilesize = 1\nhash = "ab"\n',
    ': is a Xet pointer and not the file itself; fetch the file with the '
    'Hugging Face client',
  ),
  'HTML page': (
    b'\n<!DOCTYPE html><html><title>403 Forbidden</title></html>',
    ': is an HTML or XML page, perhaps the error of a server; log in where '
    f'access is restricted, and {_AGAIN}',
  ),
  'JSON error': (
    b'{"error":"Repository not found"}',
    f': is JSON text, perhaps the error of a server; {_AGAIN}',
  ),
  'pickle': (
    pickle.dumps({'w': [1.0]}, protocol=2),
    ': is a PyTorch pickle; convert it to safetensors',
  ),
  'zip': (
    b'PK\x03\x04\x14\x00\x00\x00\x08\x00archive/data.pkl',
    ': is a zip archive, such as a PyTorch pickle of a newer kind; convert it '
    'to safetensors',
  ),
  'GGUF': (
    b'GGUF\x03\x00\x00\x00\x01\x00\x00\x00',
    ': is a GGUF file; use the unquantised safetensors',
  ),
  'bad UTF-8': (
    crafted.file(b'{"\xff": 1}'),
    ': the header is not UTF-8 at byte 2',
  ),
  'bad JSON': (
    crafted.file(b'{"a": ]}'),
    ': the header is not valid JSON at byte 6: Expecting value',
  ),
  'bad JSON after a long character': (
    crafted.file('{"é": ]}'.encode()),
    ': the header is not valid JSON at byte 7: Expecting value',
  ),
  'deep JSON': (
    crafted.file(b'{"a": ' + b'[' * 100_000 + b']' * 100_000 + b'}'),
    ': the header is JSON nested too deeply',
  ),
  'a number of many digits': (
    crafted.file(b'{"a": ' + b'9' * 5000 + b'}'),
    ': the header is not valid JSON: Exceeds the limit (4300 digits) for '
    'integer string conversion: value has 5000 digits; use '
    'sys.set_int_max_str_digits() to increase the limit',
  ),
  'bytes after the JSON': (
    crafted.file(json.dumps(_one()).encode() + b'\0', _FOUR),
    ': the header is not valid JSON at byte 61: Extra data',
  ),
  'overlap': (
    crafted.file(_two((0, 4), (2, 6)), bytes(6)),
    f' / b: at [2, 6) overlaps a at [0, 4); {_AGAIN}',
  ),
  'hole': (
    crafted.file(_two((0, 2), (3, 6)), bytes(6)),
    f' / b: at [3, 6) leaves a gap after a at [0, 2); {_AGAIN}',
  ),
  'hole at the start': (
    crafted.file(_one(data_offsets=[2, 6]), bytes(6)),
    f' / w: is at [2, 6), expected 0 as the first begin; {_AGAIN}',
  ),
  'begin after end': (
    crafted.file(_one(data_offsets=[4, 0]), _FOUR),
    f' / w: expected data_offsets [begin, end], got [4, 0]; {_AGAIN}',
  ),
  'negative offset': (
    crafted.file(_one(data_offsets=[-4, 0]), _FOUR),
    f" / w: expected data_offsets [begin, end], got ['-4', 0]; {_AGAIN}",
  ),
  'one offset': (
    crafted.file(_one(data_offsets=[4]), _FOUR),
    f' / w: expected data_offsets [begin, end], got [4]; {_AGAIN}',
  ),
  'past the end': (
    crafted.file(_one(shape=[2], data_offsets=[0, 8]), _FOUR),
    ': is truncated: expected 8 bytes of tensors, got 4; w at [0, 8) is the '
    f'first that ends beyond; {_AGAIN}',
  ),
  'shape and bytes': (
    crafted.file(_one(shape=[3]), _FOUR),
    ' / w: shape [3] of F32 needs 12 bytes, its data_offsets [0, 4] span 4; '
    + _AGAIN,
  ),
  'overflow': (
    crafted.file(_one(shape=[2**62, 8]), _FOUR),
    f' / w: shape [{2**62}, 8] of F32 is beyond 2**63 bytes; {_AGAIN}',
  ),
  'overflow of no entries': (
    crafted.file(_one(shape=[2**40, 2**40, 0], data_offsets=[0, 0])),
    f' / w: shape [{2**40}, {2**40}, 0] of F32 is beyond 2**63 bytes; {_AGAIN}',
  ),
  'negative dimension': (
    crafted.file(_one(shape=[-1]), _FOUR),
    f" / w: expected a shape of natural numbers, got ['-1']; {_AGAIN}",
  ),
  'minus zero': (
    crafted.file(
      b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', _FOUR
    ),
    f" / w: expected data_offsets [begin, end], got ['-0', 4]; {_AGAIN}",
  ),
  'fraction': (
    crafted.file(_one(shape=[1.0]), _FOUR),
    f' / w: expected a shape of natural numbers, got [1.0]; {_AGAIN}',
  ),
  'true': (
    crafted.file(_one(shape=[True]), _FOUR),
    f' / w: expected a shape of natural numbers, got [True]; {_AGAIN}',
  ),
  'many dimensions': (
    crafted.file(_one(shape=[2**62] * 10_000), _FOUR),
    ' / w: expected a shape of natural numbers, got '
    f'{str([2**62] * 20)[:200]}...; {_AGAIN}',
  ),
  'unknown dtype': (
    crafted.file(_one(dtype='F31'), _FOUR),
    f' / w: dtype F31 is unknown; {_AGAIN}',
  ),
  'no dtype': (
    crafted.file(_one(dtype=None), _FOUR),
    f' / w: dtype None is unknown; {_AGAIN}',
  ),
  'complex': (
    crafted.file(_one(dtype='C64', data_offsets=[0, 8]), bytes(8)),
    f' / w: dtype C64 (complex numbers) is not supported; {_OTHER}',
  ),
  '4 bits': (
    crafted.file(_one(dtype='F4', shape=[8]), _FOUR),
    f' / w: dtype F4 (packed 4-bit numbers) is not supported; {_OTHER}',
  ),
  '6 bits': (
    crafted.file(_one(dtype='F6_E2M3', shape=[16], data_offsets=[0, 12])),
    f' / w: dtype F6_E2M3 (packed 6-bit numbers) is not supported; {_OTHER}',
  ),
  'tensor twice': (
    crafted.file(
      b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
      b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      _FOUR,
    ),
    ": the header has the key 'w' twice",
  ),
  'field twice': (
    crafted.file(
      b'{"w":{"dtype":"I32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      _FOUR,
    ),
    ": the header has the key 'dtype' twice",
  ),
  'leading space': (
    crafted.file(b' ' + json.dumps(_one()).encode(), _FOUR),
    f": the header starts with b' ', expected b'{{'; {_AGAIN}",
  ),
  'unknown field': (
    crafted.file(_one(scale=2), _FOUR),
    f' / w: expected the fields {_FIELDS}, got '
    f"['dtype', 'shape', 'data_offsets', 'scale']; {_AGAIN}",
  ),
  'missing field': (
    crafted.file({'w': {'dtype': 'F32', 'shape': [1]}}, _FOUR),
    f" / w: expected the fields {_FIELDS}, got ['dtype', 'shape']; {_AGAIN}",
  ),
  'not an object': (
    crafted.file({'w': [1]}, _FOUR),
    f' / w: expected the fields {_FIELDS}, got list; {_AGAIN}',
  ),
  'no name': (
    crafted.file({'': crafted.entry([1], [0, 4])}, _FOUR),
    " / '': expected a name that is not empty, and valid Unicode; " + _AGAIN,
  ),
  'half a surrogate pair': (
    crafted.file({'\ud800': crafted.entry([1], [0, 4])}, _FOUR),
    " / '\\ud800': expected a name that is not empty, and valid Unicode; "
    + _AGAIN,
  ),
  'escapes in a name': (
    crafted.file({'\x1b[2J': crafted.entry([2], [0, 4])}, _FOUR),
    " / '\\x1b[2J': shape [2] of F32 needs 8 bytes, its data_offsets [0, 4] "
    f'span 4; {_AGAIN}',
  ),
  'metadata of numbers': (
    crafted.file({'__metadata__': {'format': 1}} | _one(), _FOUR),
    f' / __metadata__: expected text for format, got a int; {_AGAIN}',
  ),
  'metadata a list': (
    crafted.file({'__metadata__': []} | _one(), _FOUR),
    f' / __metadata__: expected an object, got a list; {_AGAIN}',
  ),
}


@pytest.mark.parametrize('fault', _FAULTS)
def test_a_fault_is_one_line_that_says_where_and_what(fault, tmp_path):
  content, said = _FAULTS[fault]
  path = tmp_path / 'm.safetensors'
  path.write_bytes(content)
  lines = crafted.lines_of(safetensors.read_header, path, model='math')
  assert lines == ['math / m.safetensors' + said]


# These the library lets pass; each may mean two things to two readers.
_STRICTER = {
  'no name',
  'unknown field',
  'leading space',
  'tensor twice',
  'complex',
  '4 bits',
}


@pytest.mark.parametrize('fault', _FAULTS)
def test_the_library_refuses_the_same_files(fault, tmp_path):
  path = tmp_path / 'm.safetensors'
  path.write_bytes(_FAULTS[fault][0])
  if fault in _STRICTER:
    with library.safe_open(path, 'numpy') as file:
      assert len(list(file.keys())) == 1
  else:
    with pytest.raises((library.SafetensorError, OSError)):
      library.safe_open(path, 'numpy').__enter__()


def test_all_problems_of_a_header_come_at_once(tmp_path):
  path = tmp_path / 'm.safetensors'
  header = {
    'a': crafted.entry([1], [0, 4], 'F31'),
    'b': crafted.entry([3], [4, 8]),
    'c': crafted.entry([1], [8, 12]),
  }
  path.write_bytes(crafted.file(header, bytes(12)))
  lines = crafted.lines_of(safetensors.read_header, path)
  assert lines == [
    f'{path} / a: dtype F31 is unknown; {_AGAIN}',
    f'{path} / b: shape [3] of F32 needs 12 bytes, its data_offsets [4, 8] '
    f'span 4; {_AGAIN}',
  ]


def test_a_header_above_the_limit_is_refused_unread(tmp_path):
  path = tmp_path / 'm.safetensors'
  with open(path, 'wb') as file:
    file.write(crafted.file(b'{', length=200_000_000))
    file.truncate(300_000_000)  # Sparse: takes no room.
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  lines = crafted.lines_of(safetensors.read_header, path, model='math')
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert lines == [
    'math / m.safetensors: the header claims 200000000 bytes, more than the '
    f'100000000 of the format; {_AGAIN}'
  ]
  assert (after - before) * 1024 < 20e6


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
  path = tmp_path / 'm.safetensors'
  where = 'math / m.safetensors: '
  read = safetensors.read_header
  lines = crafted.lines_of(read, path, model='math')
  assert lines == [where + 'does not exist; fetch it']
  path.mkdir()
  lines = crafted.lines_of(read, path, model='math')
  assert lines == [where + 'expected a file, this is a directory']
  path.rmdir()
  os.mkfifo(path)
  lines = crafted.lines_of(read, path, model='math')
  assert lines == [where + 'expected a file, this is a pipe, socket or device']
  path.unlink()
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(os.path.relpath(path))
    with pytest.raises(problems.ProblemError, match='cannot be read: ') as info:
      read(path, model='math')
  assert info.value.status == problems.Kind.SPACE


def test_odd_names_and_empty_tensors_are_data(tmp_path):
  path = tmp_path / 'm.safetensors'
  header = {
    '../../etc/x': crafted.entry([0, 2**40], [0, 0]),
    'w': crafted.entry([2], [0, 8]),
    'last': crafted.entry([3, 0], [8, 8]),
  }
  path.write_bytes(crafted.file(header, np.float32([1, 2]).tobytes()))
  file = safetensors.File(path)
  assert list(file.header.tensors) == ['../../etc/x', 'w', 'last']
  assert file.array('../../etc/x').shape == (0, 2**40)
  assert file.array('last').shape == (3, 0)
  assert file.array('w').tolist() == [1, 2]


def test_a_model_that_the_library_wrote_comes_back(tmp_path):
  path = tmp_path / 'm.safetensors'
  arrays = crafted.tensors()
  library_numpy.save_file(arrays, path, metadata={'format': 'pt'})
  file = safetensors.File(path)
  assert file.header.metadata == {'format': 'pt'}
  assert file.header.size == path.stat().st_size
  assert set(file.header.tensors) == set(arrays)
  for name, array in arrays.items():
    got = file.array(name)
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize('kind', sorted(safetensors.DTYPES))
def test_every_type_is_read_as_the_bytes_are(kind, tmp_path):
  dtype = safetensors.DTYPES[kind]
  raw = np.arange(8 * dtype.itemsize, dtype=np.uint8)
  raw = raw % 2 if kind == 'BOOL' else raw
  path = tmp_path / 'm.safetensors'
  header = {'w': crafted.entry([4, 2], [0, raw.size], kind)}
  path.write_bytes(crafted.file(header, raw.tobytes()))
  got = safetensors.File(path).array('w')
  assert (got.dtype, got.shape) == (dtype, (4, 2))
  assert got.tobytes() == raw.tobytes()
  with library.safe_open(path, 'numpy') as file:  # Knows the type as well.
    assert file.get_slice('w').get_dtype() == kind


def test_eight_bit_floats_mean_what_the_format_says(tmp_path):
  path = tmp_path / 'm.safetensors'
  header = {
    'e4m3': crafted.entry([2], [0, 2], 'F8_E4M3'),
    'e5m2': crafted.entry([2], [2, 4], 'F8_E5M2'),
  }
  path.write_bytes(crafted.file(header, bytes([0x38, 0x7E, 0x3C, 0x7B])))
  file = safetensors.File(path)
  assert file.array('e4m3').astype(np.float32).tolist() == [1, 448]
  assert file.array('e5m2').astype(np.float32).tolist() == [1, 57344]


def test_pieces_make_the_whole(tmp_path):
  path = tmp_path / 'm.safetensors'
  w = np.arange(30, dtype=np.float32).reshape(5, 6).astype(ml_dtypes.bfloat16)
  library_numpy.save_file({'a': np.ones(3, np.int8), 'w': w}, path)
  file = safetensors.File(path)
  for start, stop in ((0, 30), (0, 0), (7, 8), (29, 30), (3, 19), (30, 30)):
    buffer = np.zeros(40, w.dtype)
    file.read('w', start, buffer[5 : 5 + stop - start])
    got = buffer.astype(np.float32)
    expected = np.zeros(40, np.float32)
    expected[5 : 5 + stop - start] = range(start, stop)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
  ('start', 'out', 'match'),
  [
    (-1, np.empty(2, np.float32), r'w: expected entries of \[0, 6\), got'),
    (5, np.empty(2, np.float32), r'w: expected entries of \[0, 6\), got'),
    (0, np.empty(2, np.float64), r'w: expected a contiguous float32\[size\]'),
    (0, np.empty((2, 2), np.float32), r'got float32\[2, 2\]'),
    (0, np.empty(4, np.float32)[::2], r'w: expected a contiguous'),
  ],
)
def test_a_buffer_that_does_not_fit_is_refused(start, out, match, tmp_path):
  path = tmp_path / 'm.safetensors'
  library_numpy.save_file({'w': np.ones((2, 3), np.float32)}, path)
  with pytest.raises(ValueError, match=match):
    safetensors.File(path).read('w', start, out)


def test_threads_read_at_the_same_time(tmp_path):
  path = tmp_path / 'm.safetensors'
  w = np.arange(100_000, dtype=np.int32)
  library_numpy.save_file({'w': w}, path)
  file = safetensors.File(path)
  before = len(os.listdir('/proc/self/fd'))

  def read(start):
    out = np.empty(1000, np.int32)
    file.read('w', start, out)
    return np.array_equal(out, w[start : start + 1000])

  with futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(read, range(0, 99_000, 97)))
  assert len(os.listdir('/proc/self/fd')) <= before + 8


def test_a_bool_is_zero_or_one(tmp_path):
  path = tmp_path / 'm.safetensors'
  header = {'mask': crafted.entry([4], [0, 4], 'BOOL')}
  path.write_bytes(crafted.file(header, bytes([0, 1, 7, 1])))
  file = safetensors.File(path)
  out = np.empty(2, np.bool_)
  file.read('mask', 0, out)
  assert out.tolist() == [False, True]
  assert crafted.lines_of(file.read, 'mask', 1, out) == [
    f'{path} / mask: expected a BOOL of 0 or 1 as entry 2, got 7; {_AGAIN}'
  ]


def test_a_file_that_changes_is_noticed(tmp_path):
  path = tmp_path / 'm.safetensors'
  path.write_bytes(crafted.file(_one(), _FOUR))
  file = safetensors.File(path, where=('math', 'm.safetensors'))
  assert file.array('w').tobytes() == _FOUR
  os.truncate(path, 72)
  stop = 'leave inputs alone; start again'
  assert crafted.lines_of(file.array, 'w') == [
    'math / m.safetensors: had 73 bytes when it was opened, and 72 now; ' + stop
  ]
  path.write_bytes(crafted.file(_one(), bytes(4)))
  assert crafted.lines_of(file.array, 'w') == [
    'math / m.safetensors: was replaced or modified since it was opened; '
    + stop
  ]
