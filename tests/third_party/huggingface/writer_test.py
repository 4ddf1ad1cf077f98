"""Checkpoints written in pieces are those of the safetensors library."""

import itertools
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
import zlib

import hypothesis
from hypothesis import strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from merging import transform
from third_party import problems
from third_party import storage
from third_party.huggingface import checksums
from third_party.huggingface import safetensors as reader
from third_party.huggingface import shards
from third_party.huggingface import writer as writer_lib

_NUMPY = ('float64', 'float32', 'float16', 'int64', 'uint8', 'bool')


def _arrays(shapes, dtypes=('float32',), seed=0):
  generator = np.random.default_rng(seed)
  arrays = {}
  for number, shape in enumerate(shapes):
    dtype = np.dtype(dtypes[number % len(dtypes)])
    size = int(np.prod(shape)) * dtype.itemsize
    raw = generator.integers(0, 2, size, np.uint8)
    arrays[f'layers.{number}.weight'] = raw.view(dtype).reshape(shape)
  return arrays


def _specs(arrays):
  return {
    name: transform.LeafSpec(name, array.shape, array.dtype)
    for name, array in arrays.items()
  }


def _write(writer, arrays, names=None):
  for name in names if names is not None else arrays:
    writer.write(name, 0, arrays[name].reshape(-1))


def _whole(directory, arrays, **options):
  with writer_lib.CheckpointWriter(
    directory, _specs(arrays), **options
  ) as writer:
    _write(writer, arrays)
    writer.finish()
  return writer


def _load(directory):
  """What the safetensors library reads, all files together."""
  loaded = {}
  for path in sorted(directory.glob('*.safetensors')):
    tensors = safetensors.numpy.load_file(path)
    assert not loaded.keys() & tensors.keys()
    loaded |= tensors
  return loaded


def _assert_equal(loaded, arrays):
  assert loaded.keys() == arrays.keys()
  for name, array in arrays.items():
    assert loaded[name].shape == array.shape
    assert loaded[name].dtype == array.dtype
    assert loaded[name].tobytes() == array.tobytes()


# --- Layout.


def test_one_file_reads_as_the_library_wrote_it(tmp_path):
  arrays = _arrays([(3, 5), (), (0, 4), (7,)], _NUMPY)
  _whole(tmp_path, arrays, metadata={'recipe': 'ties: é'})
  assert os.listdir(tmp_path) == ['model.safetensors']
  _assert_equal(_load(tmp_path), arrays)
  with safetensors.safe_open(tmp_path / 'model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt', 'recipe': 'ties: é'}


def test_bytes_are_those_of_the_library(tmp_path):
  # The library orders by width, then by name, as these are.
  arrays = {
    'a': np.arange(3, dtype=np.float64),
    'b': np.arange(5, dtype=np.float32),
    'c': np.arange(7, dtype=np.uint8),
  }
  _whole(tmp_path, arrays)
  expected = safetensors.numpy.save(arrays, metadata={'format': 'pt'})
  assert (tmp_path / 'model.safetensors').read_bytes() == expected


@pytest.mark.parametrize('name', sorted(reader.DTYPES))
def test_every_type_round_trips_through_both_readers(tmp_path, name):
  array = np.arange(6).astype(reader.DTYPES[name]).reshape(2, 3)
  _whole(tmp_path, {'w': array})
  header = reader.read_header(tmp_path / 'model.safetensors')
  assert header.tensors['w'].dtype == array.dtype
  raw = (tmp_path / 'model.safetensors').read_bytes()
  assert raw[header.data_start :] == array.tobytes()
  with safetensors.safe_open(tmp_path / 'model.safetensors', 'np') as file:
    piece = file.get_slice('w')
    assert piece.get_dtype() == name
    assert piece.get_shape() == [2, 3]


def test_shards_have_an_index_and_at_most_their_size(tmp_path):
  arrays = _arrays([(10,), (10,), (40,), (10,), (10,), (10,)])
  writer = _whole(tmp_path, arrays, shard_size=80)
  names = [list(shard.offsets) for shard in writer.shards]
  numbers = [[int(name.split('.')[1]) for name in shard] for shard in names]
  assert numbers == [[0, 1], [2], [3, 4], [5]]  # 2 alone: it is too large.
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  assert index['metadata'] == {'total_size': 4 * 90}
  assert index['weight_map'] == {
    f'layers.{number}.weight': f'model-{place:05}-of-00004.safetensors'
    for place, group in enumerate(numbers, start=1)
    for number in group
  }
  _assert_equal(_load(tmp_path), arrays)


def test_entries_start_at_multiples_of_their_size():
  arrays = _arrays([(3,), (3,), (3,), (1,)], ('uint8', 'float16', 'float64'))
  [shard] = shards.lay_out(_specs(arrays))
  for name, offset in shard.offsets.items():
    assert offset % arrays[name].dtype.itemsize == 0
  assert len(shard.header) % 8 == 0


@pytest.mark.parametrize(
  ('arrays', 'options', 'message'),
  [
    ({}, {}, 'no tensors'),
    ({'w': np.zeros(1, np.complex128)}, {}, 'w: .* no type complex128'),
    ({'w': np.zeros(1, ml_dtypes.int4)}, {}, 'w: .* no type int4'),
    ({'__metadata__': np.zeros(1)}, {}, 'cannot be the name'),
    ({'w': np.zeros(1)}, {'shard_size': 0}, 'shard_size is 0'),
    ({'w': np.zeros(1)}, {'shard_size': float('nan')}, 'shard_size is nan'),
  ],
)
def test_what_the_format_cannot_say_is_refused(arrays, options, message):
  with pytest.raises(ValueError, match=message):
    shards.lay_out(_specs(arrays), **options)


def test_metadata_must_be_strings():
  with pytest.raises(TypeError, match="'seed': 1 is not a string"):
    shards.lay_out(
      _specs({'w': np.zeros(1)}),
      metadata={'seed': 1},  # pyrefly: ignore
    )


# --- Pieces.


@hypothesis.given(st.binary(max_size=60), st.data())
@hypothesis.settings(max_examples=60)
def test_checksums_of_pieces_are_those_of_the_whole(data, draw):
  count = len(data)
  cuts = sorted(draw.draw(st.lists(st.integers(0, count), max_size=8)))
  spans = list(itertools.pairwise([0, *cuts, count]))
  pieces = checksums.Pieces(count)
  for start, stop in draw.draw(st.permutations(spans)):
    pieces.add(start, stop, zlib.crc32(data[start:stop]))
  assert pieces.missing == 0
  assert pieces.crc == zlib.crc32(data)


def test_checksums_combine_over_lengths_of_files():
  first, second = b'merge', bytes(3_000_017)
  combined = checksums.combine(
    zlib.crc32(first), zlib.crc32(second), len(second)
  )
  assert combined == zlib.crc32(first + second)


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8)
)
@hypothesis.settings(max_examples=200)
def test_a_byte_that_comes_twice_is_refused(spans):
  pieces, seen = checksums.Pieces(12), set()
  for a, b in spans:
    span = set(range(min(a, b), max(a, b)))
    if span & seen:
      with pytest.raises(ValueError, match='twice'):
        pieces.add(min(a, b), max(a, b), 0)
    else:
      pieces.add(min(a, b), max(a, b), 0)
      seen |= span
    assert pieces.missing == 12 - len(seen)


@pytest.mark.parametrize('seed', range(3))
def test_pieces_from_threads_in_any_order(tmp_path, seed):
  dtypes = ('bfloat16', 'float32', 'float8_e4m3fn')
  arrays = _arrays([(37,), (11, 3), (1,), (64,)] * 3, dtypes, seed)
  spans = [
    (name, start, min(start + 7, array.size))
    for name, array in arrays.items()
    for start in range(0, array.size, 7)
  ]
  random.Random(seed).shuffle(spans)
  done = []

  def work(writer, part):
    for name, start, stop in part:
      piece = arrays[name].reshape(-1)[start:stop].copy()
      writer.write(name, start, piece)
      piece.view(np.uint8)[:] = 255  # A buffer is used again after the call.

  with writer_lib.CheckpointWriter(
    tmp_path,
    _specs(arrays),
    shard_size=150,
    on_shard_done=lambda name, entry: done.append((name, entry)),
  ) as writer:
    threads = [
      threading.Thread(target=work, args=(writer, spans[number::4]))
      for number in range(4)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    writer.finish()
  assert writer.fingerprints == {
    name: zlib.crc32(array.tobytes()) for name, array in arrays.items()
  }
  assert sorted(name for name, _ in done) == [s.name for s in writer.shards]
  for name, entry in done:
    assert entry['size'] == (tmp_path / name).stat().st_size
  found = {}
  for shard in writer.shards:
    raw = (tmp_path / shard.name).read_bytes()
    for name, offset in shard.offsets.items():
      array = arrays[name]
      found[name] = np.frombuffer(raw, array.dtype, array.size, offset).reshape(
        array.shape
      )
  _assert_equal(found, arrays)


@pytest.mark.parametrize(
  ('start', 'values', 'message'),
  [
    (0, np.zeros(2, np.float64), 'w: expected float32 values, got float64'),
    (0, np.zeros((1, 2), np.float32), 'w: expected a contiguous array of one'),
    (0, np.zeros(4, np.float32)[::2], 'w: expected a contiguous array of one'),
    (3, np.zeros(2, np.float32), 'w: the entries 3 to 5 are not among its 4'),
    (-1, np.zeros(2, np.float32), 'w: the entries -1 to 1 are not'),
    (1, np.zeros(2, np.float32), 'w: bytes 4 to 12 came twice'),
  ],
)
def test_values_that_do_not_fit_are_refused(tmp_path, start, values, message):
  arrays = {'w': np.arange(4, dtype=np.float32)}
  with writer_lib.CheckpointWriter(tmp_path, _specs(arrays)) as writer:
    writer.write('w', 2, arrays['w'][2:])
    with pytest.raises(ValueError, match=message):
      writer.write('w', start, values)
    with pytest.raises(ValueError, match="no tensor 'v'"):
      writer.write('v', 0, values)
    writer.write('w', 0, arrays['w'][:2])
    writer.finish()
  _assert_equal(_load(tmp_path), arrays)


def test_what_is_not_complete_is_named(tmp_path):
  arrays = _arrays([(4,)] * 8)
  with writer_lib.CheckpointWriter(tmp_path, _specs(arrays)) as writer:
    writer.write('layers.0.weight', 1, np.ones(2, np.float32))
    with pytest.raises(
      ValueError, match=r"'layers.0.weight' \(8 bytes\).* and 3 more"
    ):
      writer.finish()
  # Before its end a file is none that anybody can read.
  with pytest.raises(safetensors.SafetensorError):
    safetensors.numpy.load_file(tmp_path / 'model.safetensors')


def test_outside_of_its_context_a_writer_writes_nothing(tmp_path):
  arrays = _arrays([(4,)])
  writer = writer_lib.CheckpointWriter(tmp_path, _specs(arrays))
  with pytest.raises(ValueError, match='not open'):
    _write(writer, arrays)
  assert os.listdir(tmp_path) == []
  with writer:
    pass
  with pytest.raises(ValueError, match='not open'):
    _write(writer, arrays)


def test_leaving_waits_for_calls_under_way(tmp_path, monkeypatch):
  arrays = _arrays([(4,)])
  writer = writer_lib.CheckpointWriter(tmp_path, _specs(arrays))
  inside, go_on = threading.Event(), threading.Event()
  pwrite = os.pwrite

  def slow(*arguments):
    inside.set()
    assert go_on.wait(10)
    return pwrite(*arguments)

  monkeypatch.setattr(os, 'pwrite', slow)
  with writer:
    thread = threading.Thread(target=_write, args=(writer, arrays))
    thread.start()
    assert inside.wait(10)
    threading.Timer(0.05, go_on.set).start()
  # Else the descriptor might be that of another file by now.
  assert go_on.is_set()
  thread.join()


def test_tensors_are_on_the_disk_before_the_header(tmp_path, monkeypatch):
  arrays = _arrays([(4,), (4,)])
  calls = []
  pwrite, fsync = os.pwrite, os.fsync

  def log_write(descriptor, data, offset):
    calls.append('data' if offset else 'header')
    return pwrite(descriptor, data, offset)

  def log_sync(descriptor):
    name = os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))
    calls.append(f'sync {name.partition("-")[0]}')
    return fsync(descriptor)

  monkeypatch.setattr(os, 'pwrite', log_write)
  with writer_lib.CheckpointWriter(
    tmp_path,
    _specs(arrays),
    on_shard_done=lambda name, _: calls.append(f'done {name}'),
  ) as writer:
    monkeypatch.setattr(os, 'fsync', log_sync)
    _write(writer, arrays)
    writer.finish()
  file = 'model.safetensors'
  assert calls == [
    *('data', 'data', f'sync {file}', 'header', f'sync {file}'),
    *(f'done {file}', f'sync {tmp_path.name}'),
  ]


# --- Going on.


def test_finished_files_are_kept_and_others_written_anew(tmp_path):
  arrays = _arrays([(10,)] * 6)
  names = list(arrays)
  done = {}
  with writer_lib.CheckpointWriter(
    tmp_path, _specs(arrays), shard_size=80, on_shard_done=done.__setitem__
  ) as writer:
    _write(writer, arrays, names[:3])
    while not done:
      time.sleep(0.001)
  assert list(done) == ['model-00001-of-00003.safetensors']
  entry = json.loads(json.dumps(done))  # As from a journal.
  before = (tmp_path / next(iter(done))).stat()

  again = {}
  writer = writer_lib.CheckpointWriter(
    tmp_path, _specs(arrays), shard_size=80, on_shard_done=again.__setitem__
  )
  assert writer.resume(entry) == set(names[:2])
  with writer:
    with pytest.raises(ValueError, match='twice'):
      _write(writer, arrays, names[:1])
    _write(writer, arrays, names[2:])
    writer.finish()
  assert (tmp_path / next(iter(done))).stat().st_mtime_ns == before.st_mtime_ns
  assert sorted(again) == [shard.name for shard in writer.shards[1:]]
  assert writer.fingerprints == {
    name: zlib.crc32(array.tobytes()) for name, array in arrays.items()
  }
  _assert_equal(_load(tmp_path), arrays)


def _cut(path):
  os.truncate(path, path.stat().st_size - 1)


def _change_header(path):
  with open(path, 'r+b') as file:
    file.seek(9)
    file.write(b'x')


@pytest.mark.parametrize('damage', [_cut, _change_header, os.unlink])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
  arrays = _arrays([(10,)] * 2)
  done = {}
  _whole(tmp_path, arrays, on_shard_done=done.__setitem__)
  damage(tmp_path / 'model.safetensors')
  writer = writer_lib.CheckpointWriter(tmp_path, _specs(arrays))
  assert writer.resume(done) == frozenset()
  with writer:
    _write(writer, arrays)
    writer.finish()
  _assert_equal(_load(tmp_path), arrays)


@pytest.mark.parametrize('entry', [{}, {'crc32': {'other': 1}}, {'crc32': 3}])
def test_a_journal_of_another_file_keeps_nothing(tmp_path, entry):
  arrays = _arrays([(10,)])
  _whole(tmp_path, arrays)
  writer = writer_lib.CheckpointWriter(tmp_path, _specs(arrays))
  assert writer.resume({'model.safetensors': entry}) == frozenset()


# --- Disks that refuse.


def _limited(size, function):
  """Calls a function that may write files of that size at most."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    return function()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_more_than_is_free_is_told_before_anything_is_written(tmp_path):
  spec = transform.LeafSpec('w', (10**15,), np.dtype(np.float32))
  writer = writer_lib.CheckpointWriter(tmp_path, {'w': spec})
  with (
    pytest.raises(
      problems.ProblemError, match=r'4 PB needed, .* free; make room'
    ) as error,
    writer,
  ):
    pass
  assert error.value.status == problems.Kind.SPACE
  assert os.listdir(tmp_path) == []


def test_a_small_disk_that_is_full(tmp_path):
  program = """
import sys
import numpy as np
from tests.faults import models
from third_party import problems
from third_party.huggingface import writer
spec = models.Spec('w', (1000, 1000), np.dtype(np.float32))
try:
  with writer.CheckpointWriter(sys.argv[1], {'w': spec}):
    pass
except problems.ProblemError as error:
  print(error)
"""
  mount = ('mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', tmp_path)
  inside = 'shift; "$@" && exec "$PYTHON" -c "$PROGRAM" "$TARGET"'
  done = subprocess.run(
    ['unshare', '-m', 'sh', '-c', inside, 'sh', 'x', *mount],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ
    | {'PYTHON': sys.executable, 'PROGRAM': program, 'TARGET': str(tmp_path)},
  )
  if done.returncode:
    pytest.skip(f'no file system may be mounted here: {done.stderr.strip()}')
  assert 'there is no space: 4 MB needed, 1.05 MB free; make' in done.stdout


def test_a_limit_on_the_size_of_files_is_told_at_the_start(tmp_path):
  arrays = _arrays([(1000,)])
  with pytest.raises(
    problems.ProblemError, match=r'a file of 4\.12 kB is larger .*ulimit'
  ) as error:
    _limited(2000, lambda: _whole(tmp_path, arrays))
  assert '\n' not in str(error.value)
  assert error.value.status == problems.Kind.SPACE


def test_smaller_files_fit_under_the_limit(tmp_path):
  arrays = _arrays([(100,)] * 10)
  _limited(2000, lambda: _whole(tmp_path, arrays, shard_size=1000))
  _assert_equal(_load(tmp_path), arrays)


def test_a_disk_that_fills_up_stops_all_threads(tmp_path, monkeypatch):
  arrays = _arrays([(1000,)] * 2)
  first, second = arrays

  def full(*_):
    raise OSError(28, 'No space left on device')

  with writer_lib.CheckpointWriter(tmp_path, _specs(arrays)) as writer:
    monkeypatch.setattr(os, 'pwrite', full)
    match = r'there is no space: 8 kB needed, .* free'
    with pytest.raises(problems.ProblemError, match=match):
      _write(writer, arrays, [first])
    monkeypatch.undo()
    for action in (
      lambda: _write(writer, arrays, [second]),
      writer.finish,
    ):
      with pytest.raises(problems.ProblemError, match=match):
        action()


def test_a_failed_sync_is_told_at_the_end(tmp_path, monkeypatch):
  arrays = _arrays([(10,)])

  def fail(_):
    raise OSError(5, 'Input/output error')

  with writer_lib.CheckpointWriter(tmp_path, _specs(arrays)) as writer:
    monkeypatch.setattr(os, 'fsync', fail)
    _write(writer, arrays)
    with pytest.raises(problems.ProblemError, match='Input/output error'):
      writer.finish()


def test_file_systems_that_cannot_reserve_space(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(os, 'posix_fallocate', refuse)
  arrays = _arrays([(10,)])
  _whole(tmp_path, arrays)
  _assert_equal(_load(tmp_path), arrays)


@pytest.mark.parametrize(
  ('number', 'message'),
  [(13, 'no permission'), (30, 'read-only'), (36, 'too long'), (5, 'I/O')],
)
def test_refusals_of_the_system_are_one_line(tmp_path, number, message):
  with (
    pytest.raises(problems.ProblemError) as error,
    storage.reported(tmp_path),
  ):
    raise OSError(number, 'I/O')
  assert str(tmp_path) in str(error.value)
  assert message in str(error.value)
