"""Faults A and B: files and directories that are not what they should be."""

import json
import os

import ml_dtypes
import numpy as np

from tests.faults import table
from tests.faults import workspace
from tests.third_party.huggingface import crafted

TABLE = table.Table()
_row = TABLE.row
_FILE = f'math / {workspace.FILE}'
_INDEX = f'math / {workspace.INDEX}'
_FIRST = f'math / {workspace.SHARDS[0]}'


def _file(case):
  return case.math / workspace.FILE


def _split(case):
  """The header and the bytes of tensors of the math model."""
  raw = _file(case).read_bytes()
  start = 8 + int.from_bytes(raw[:8], 'little')
  return json.loads(raw[8:start]), raw[start:]


def _reheaded(case, change):
  """Gives the file another header."""
  header, data = _split(case)
  header = change(header) or header
  _file(case).write_bytes(crafted.file(header, data))


def _reindexed(case, change):
  path = case.math / workspace.INDEX
  content = json.loads(path.read_text())
  path.write_text(json.dumps(change(content) or content))


@_row('A1 empty', 3, _FILE, 'is empty (0 bytes)', 'incomplete: fetch it again')
def _(case):
  _file(case).write_bytes(b'')


@_row('A1 7 bytes', 3, _FILE, 'has 7 bytes', '8 at least', 'fetch it again')
def _(case):
  _file(case).write_bytes(b'\7' * 7)


@_row('A2 cut', 3, _FILE, 'is truncated', '13024', '12024', 'fetch it again')
def _(case):
  os.truncate(_file(case), _file(case).stat().st_size - 1000)


@_row(
  'A3 more bytes', 3, _FILE, '5 ', 'after the last tensor', 'fetch it again'
)
def _(case):
  with _file(case).open('ab') as file:
    file.write(b'extra')


@_row('A4 length beyond the file', 3, _FILE, 'claims', 'the file has')
def _(case):
  _file(case).write_bytes(crafted.file({}, length=5000))


@_row('A4 length of 200 MB', 3, _FILE, 'claims 200000000 bytes')
def _(case):
  _file(case).write_bytes(crafted.file({}, length=200_000_000))
  os.truncate(_file(case), 300_000_000)  # Sparse.


@_row('A4 length of 2^63', 3, _FILE, f'claims {2**63} bytes')
def _(case):
  _file(case).write_bytes(crafted.file({}, length=2**63))


@_row('A5 LFS pointer', 3, _FILE, 'Git LFS pointer', 'run `git lfs pull`')
def _(case):
  _file(case).write_text('version https://git-lfs.github.com/spec/v1\noid ')


@_row('A5 HTML', 3, _FILE, 'is an HTML or XML page', 'fetch it again')
def _(case):
  _file(case).write_text('<!doctype html><title>403 Forbidden</title>')


@_row('A5 pickle', 3, _FILE, 'is a PyTorch pickle', 'convert it')
def _(case):
  _file(case).write_bytes(b'\x80\x02}q\x00.' + bytes(100))


@_row('A5 zip', 3, _FILE, 'is a zip archive', 'convert it')
def _(case):
  _file(case).write_bytes(b'PK\x03\x04' + bytes(100))


@_row('A6 not UTF-8', 3, _FILE, 'header is not UTF-8 at byte 2')
def _(case):
  _file(case).write_bytes(crafted.file(b'{"\xff": 1}'))


@_row('A6 not JSON', 3, _FILE, 'header is not valid JSON at byte 5')
def _(case):
  _file(case).write_bytes(crafted.file(b'{"a":]   '))


@_row('A6 deep JSON', 3, _FILE, 'nested too deeply')
def _(case):
  _file(case).write_bytes(crafted.file(b'{"a":' + b'[' * 100_000))


def _moved(start, stop):
  def change(header):
    begin, end = header[workspace.PROJECTION]['data_offsets']
    offsets = [begin + start, end + stop]
    header[workspace.PROJECTION]['data_offsets'] = offsets

  return change


@_row('A7 overlap', 3, _FILE, workspace.PROJECTION, 'overlaps', count=2)
def _(case):
  _reheaded(case, _moved(-16, -16))


@_row('A7 hole', 3, _FILE, 'v_proj', 'leaves a gap after', 'o_proj')
def _(case):
  def change(header):
    del header[workspace.PROJECTION]

  _reheaded(case, change)


@_row('A7 begin beyond end', 3, _FILE, workspace.PROJECTION, 'data_offsets')
def _(case):
  _reheaded(case, _moved(10_000, 0))


@_row('A7 negative', 3, _FILE, workspace.PROJECTION, 'data_offsets')
def _(case):
  _reheaded(case, _moved(-1_000_000, 0))


@_row('A7 past the end', 3, _FILE, 'is truncated', '1008832', count=3)
def _(case):
  _reheaded(case, _moved(1_000_000, 1_000_000))


def _shaped(shape, dtype='BF16'):
  def change(header):
    header[workspace.PROJECTION] |= {'shape': shape, 'dtype': dtype}

  return change


@_row('A8 shape', 3, _FILE, workspace.PROJECTION, '[16, 17] of BF16', '512')
def _(case):
  _reheaded(case, _shaped([16, 17]))


@_row('A8 overflow', 3, _FILE, workspace.PROJECTION, str(2**62))
def _(case):
  _reheaded(case, _shaped([2**62, 8]))


@_row('A8 negative', 3, _FILE, workspace.PROJECTION, 'shape')
def _(case):
  _reheaded(case, _shaped([-16, -16]))


@_row('A9 dtype', 3, _FILE, workspace.PROJECTION, 'dtype F31 is unknown')
def _(case):
  _reheaded(case, _shaped([16, 16], 'F31'))


@_row('A10 key twice', 3, _FILE, f'has the key {workspace.PROJECTION!r} twice')
def _(case):
  header, data = _split(case)
  text = json.dumps(header)
  again = json.dumps({workspace.PROJECTION: header[workspace.PROJECTION]})
  text = f'{text[:-1]}, {again[1:]}'
  _file(case).write_bytes(crafted.file(text.encode(), data))


@_row('A11 spaces first', 3, _FILE, "starts with b' '", "expected b'{'")
def _(case):
  header, data = _split(case)
  _file(case).write_bytes(
    crafted.file(b'   ' + json.dumps(header).encode(), data)
  )


@_row('A11 unknown field', 3, _FILE, workspace.PROJECTION, "'stride'")
def _(case):
  def change(header):
    header[workspace.PROJECTION]['stride'] = 1

  _reheaded(case, change)


@_row('A12 names are data', 0, count=0)
def _(case):
  name = '../../etc/x'
  for each in workspace.NAMES:
    case.change(each, **{name: np.ones(4, ml_dtypes.bfloat16)})
  before = set(os.listdir(case.root.parent))

  def check():
    assert name in workspace.weights(case.target)
    assert set(os.listdir(case.root.parent)) == before
    assert {p.name for p in case.target.iterdir()} <= {
      *(workspace.FILE, 'config.json', 'tokenizer.json', 'README.md'),
      *('mergekit_config.yml', 'merge_report.json'),
    }

  return check


@_row('A12 empty name', 3, _FILE, "''", 'name')
def _(case):
  def change(header):
    header[''] = header.pop(workspace.PROJECTION)

  _reheaded(case, change)


@_row('A12 a name moves the cursor', 4, 'is missing', '--extra=base')
def _(case):
  case.change('math', **{'x\n\x1b[2J': np.ones(4, np.float32)})


@_row('A13 0 x 2^40', 0, count=0)
def _(case):
  for each in workspace.NAMES:
    case.change(each, nothing=np.ones((0, 2**40), ml_dtypes.bfloat16))
  return lambda: _same(case.arrays('merged')['nothing'].shape, (0, 2**40))


def _same(found, expected):
  assert found == expected


@_row('A14 BOOL of 7', 3, _FILE, 'mask', 'expected a BOOL of 0 or 1', 'got 7')
def _(case):
  for each in workspace.NAMES:
    case.change(each, mask=np.ones(4, np.bool_))
  header, data = _split(case)
  start, _ = header['mask']['data_offsets']
  data = data[:start] + b'\7' + data[start + 1 :]
  _file(case).write_bytes(crafted.file(header, data))


@_row('A15 BF16', 0, count=0)
def _(case):
  norm = 'model.norm.weight'
  return lambda: _same(case.arrays('merged')[norm].dtype, ml_dtypes.bfloat16)


@_row('A15 FP8', 3, 'math', workspace.PROJECTION, 'is quantised')
def _(case):
  x = case.arrays('math')[workspace.PROJECTION]
  case.change(
    'math', **{workspace.PROJECTION: x.astype(ml_dtypes.float8_e4m3fn)}
  )


@_row('A15 FP4', 3, _FILE, workspace.PROJECTION, 'F4', '4-bit')
def _(case):
  _reheaded(case, _shaped([16, 64], 'F4'))


@_row('A16 directory', 3, _FILE, 'expected a file, this is a directory')
def _(case):
  _file(case).unlink()
  _file(case).mkdir()


@_row('B1 shards missing', 3, _INDEX, '2 of 2 shards', *workspace.SHARDS)
def _(case):
  case.shard('math')
  for name in workspace.SHARDS:
    (case.math / name).unlink()


@_row('B2 tensor not in its shard', 3, _FIRST, workspace.INDEX, 'ghost')
def _(case):
  case.shard('math')

  def change(content):
    content['weight_map']['ghost'] = workspace.SHARDS[0]

  _reindexed(case, change)


@_row('B3 wrong shard', 3, workspace.EMBEDDINGS, 'but not here, rather in')
def _(case):
  where = case.shard('math')[workspace.EMBEDDINGS]
  others = {*workspace.SHARDS} - {where}

  def change(content):
    content['weight_map'][workspace.EMBEDDINGS] = others.pop()

  _reindexed(case, change)


def _unlisted(case):
  case.change('math', ghost=np.ones(4, np.float32))
  case.shard('math')

  def change(content):
    del content['weight_map']['ghost']
    content['metadata']['total_size'] -= 16

  _reindexed(case, change)


@_row('B4 not in the index', 0, "'ghost' is here but not in", 'ignored')
def _(case):
  _unlisted(case)
  return lambda: _lacks(case.arrays('merged'), 'ghost')


def _lacks(arrays, path):
  assert path not in arrays


@_row('B4 strict', 3, "'ghost' is here but not in", 'fetch both again')
def _(case):
  _unlisted(case)
  case.flags['strict'] = True


def _pointing(case, place):
  where = case.shard('math')[workspace.EMBEDDINGS]
  secret = case.root / 'secret'
  secret.mkdir()
  os.rename(case.math / where, secret / where)

  def change(content):
    names = content['weight_map']
    for tensor, name in names.items():
      if name == where:
        names[tensor] = place(secret / where)

  _reindexed(case, change)
  return where


@_row('B5 ../', 3, 'math: the file name', 'leaves the model directory')
def _(case):
  _pointing(case, lambda path: f'../secret/{path.name}')


@_row('B5 absolute', 3, 'math: the file name', 'leaves the model directory')
def _(case):
  _pointing(case, str)


@_row('B5 link', 3, 'is a link that leaves the model directory')
def _(case):
  where = _pointing(case, lambda path: path.name)
  (case.math / where).symlink_to(case.root / 'secret' / where)


@_row('B6 in two shards', 3, workspace.EMBEDDINGS, 'also in', 'stale')
def _(case):
  where = case.shard('math')[workspace.EMBEDDINGS]
  other = ({*workspace.SHARDS} - {where}).pop()
  arrays = workspace.load(case.math / other)
  arrays[workspace.EMBEDDINGS] = workspace.load(case.math / where)[
    workspace.EMBEDDINGS
  ]
  workspace.store(case.math / other, arrays)


@_row('B7 index of 1 GB', 3, _INDEX, '1000000000 bytes, more than')
def _(case):
  case.shard('math')
  os.truncate(case.math / workspace.INDEX, 10**9)


@_row('B7 weight_map is a list', 3, _INDEX, 'expected a weight_map', 'got list')
def _(case):
  case.shard('math')
  _reindexed(case, lambda content: {'weight_map': [1, 2]})


@_row('B7 no weight_map', 3, _INDEX, 'expected a weight_map', 'got none')
def _(case):
  case.shard('math')
  _reindexed(case, lambda content: {'metadata': {}})


@_row('B7 a number for a file', 3, _INDEX, 'expected the name of a file', '7')
def _(case):
  case.shard('math')

  def change(content):
    content['weight_map'][workspace.EMBEDDINGS] = 7

  _reindexed(case, change)


@_row('B8 two checkpoints', 3, 'math: there are two checkpoints', 'stale')
def _(case):
  raw = _file(case).read_bytes()
  case.shard('math')
  _file(case).write_bytes(raw)


@_row('B9 total_size lies', 0, 'total_size is 1, expected')
def _(case):
  case.shard('math')

  def change(content):
    content['metadata']['total_size'] = 1

  _reindexed(case, change)


@_row('B index of FIFOs', 3, _FIRST, 'a pipe, socket or device')
def _(case):
  case.shard('math')
  (case.math / workspace.SHARDS[0]).unlink()
  os.mkfifo(case.math / workspace.SHARDS[0])
