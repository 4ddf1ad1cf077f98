"""Model directories: what is read, and what is refused in which words."""

from concurrent import futures
import json
import os
import pickle
import shutil
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library_numpy

from tests.third_party.huggingface import crafted
from third_party import problems
from third_party.huggingface import checkpoint

_INDEX = 'model.safetensors.index.json'
_FIRST = crafted.shard_name(1, 2)
_SECOND = crafted.shard_name(2, 2)


@pytest.fixture
def model(tmp_path):
  """A sound model of two shards."""
  directory = tmp_path / 'model'
  crafted.write_sharded(directory, crafted.tensors())
  return directory


def _open(directory, **kwargs):
  return checkpoint.open_checkpoint(directory, name='math', **kwargs)


def _read(source, path):
  spec = source.specs[path]
  out = np.empty(int(np.prod(spec.shape)), spec.dtype)
  source.read(path, 0, out)
  return out.reshape(spec.shape)


def _reindex(model, change):
  """Changes the content of the index."""
  content = json.loads((model / _INDEX).read_text())
  change(content)
  (model / _INDEX).write_text(json.dumps(content))


def test_a_model_comes_back(model):
  arrays = crafted.tensors()
  opened = _open(model)
  assert opened.problems == ()
  assert opened.name == 'math'
  assert opened.directory == model
  assert opened.config == {'model_type': 'llama'}
  assert opened.files == (model / _FIRST, model / _SECOND)
  assert list(opened.specs) == sorted(arrays)
  assert opened.size == sum(array.nbytes for array in arrays.values())
  for i, path in enumerate(sorted(arrays)):
    assert opened.file_of[path] == (_FIRST, _SECOND)[i % 2]
    assert opened.specs[path].path == path
    got = _read(opened, path)
    assert got.dtype == opened.specs[path].dtype == arrays[path].dtype
    np.testing.assert_array_equal(got, arrays[path])
  opened.close()
  assert _read(opened, 'scale') == 2


def test_one_file_needs_no_index(tmp_path):
  arrays = crafted.tensors()
  library_numpy.save_file(arrays, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text('{}')
  opened = _open(tmp_path, strict=True)
  assert set(opened.specs) == set(arrays)
  np.testing.assert_array_equal(
    _read(opened, 'embed.weight'), arrays['embed.weight']
  )


def test_one_file_of_another_name_will_do(tmp_path):
  arrays = crafted.tensors()
  library_numpy.save_file(arrays, tmp_path / 'open_clip_model.safetensors')
  (tmp_path / 'pytorch_model.bin').write_bytes(b'')
  opened = _open(tmp_path)
  assert set(opened.specs) == set(arrays)
  assert opened.files == (tmp_path / 'open_clip_model.safetensors',)


def test_the_index_of_the_usual_name_wins(model):
  variant = model / 'model.fp16.safetensors.index.json'
  variant.write_text('{"weight_map": {"w": "model.fp16.safetensors"}}')
  assert set(_open(model, strict=True).specs) == set(crafted.tensors())


def test_an_unknown_tensor_gets_a_suggestion(model):
  with pytest.raises(ValueError, match=r"'scal'; did you mean 'scale'\?"):
    _open(model).read('scal', 0, np.empty(1))


def test_side_files_are_those_of_tokenizer_and_generation(model):
  wanted = [
    'added_tokens.json',
    'chat_template.jinja',
    'generation_config.json',
    'merges.txt',
    'preprocessor_config.json',
    'qwen.tiktoken',
    'special_tokens_map.json',
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'vocab.json',
  ]
  for name in [*wanted, 'README.md', 'trainer_state.json', '.gitattributes']:
    (model / name).write_text('{}')
  assert list(_open(model).side_files) == wanted


def test_a_missing_config_is_a_warning(model):
  (model / 'config.json').unlink()
  opened = _open(model)
  assert opened.config == {}
  said = 'math: there is no config.json; fetch it'
  assert [str(each) for each in opened.problems] == [said]
  assert crafted.lines_of(_open, model, strict=True) == [said]


# Faults of sharded models.


def _two_missing(model):
  arrays = {f't{i}': np.ones(1, np.float32) for i in range(5)}
  shutil.rmtree(model)
  crafted.write_sharded(model, arrays, 5)
  (model / crafted.shard_name(2, 5)).unlink()
  (model / crafted.shard_name(4, 5)).unlink()


def _lacking(model):
  _reindex(model, lambda c: c['weight_map'].update(lost=_FIRST, gone=_FIRST))


def _wrong_shard(model):
  _reindex(model, lambda c: c['weight_map'].update(scale=_FIRST))


def _escapes(name):
  return lambda model: _reindex(
    model, lambda content: content['weight_map'].update(scale=name)
  )


def _link_out(model):
  secret = model.parent / 'secret'
  secret.mkdir()
  (model / _SECOND).rename(secret / _SECOND)
  (model / _SECOND).symlink_to(f'../secret/{_SECOND}')


def _twice(model):
  arrays = library_numpy.load_file(model / _SECOND)
  library_numpy.save_file(
    {'embed.weight': arrays['scale']} | arrays, model / _SECOND
  )


def _huge_index(model):
  with open(model / _INDEX, 'r+b') as file:
    file.truncate(10**9)  # Sparse: takes no room.


def _index_of(content):
  return lambda model: (model / _INDEX).write_text(content)


def _single_too(model):
  arrays = {'scale': np.ones(1, np.float32)}
  library_numpy.save_file(arrays, model / 'model.safetensors')


def _no_index(model):
  (model / _INDEX).unlink()


def _single_and_no_index(model):
  _single_too(model)
  _no_index(model)


def _truncated(model):
  for name in (_FIRST, _SECOND):
    os.truncate(model / name, (model / name).stat().st_size - 1)


def _pointer(model):
  (model / _FIRST).write_text('version https://git-lfs.github.com/spec/v1\n')


def _directory_for_shard(model):
  (model / _FIRST).unlink()
  (model / _FIRST).mkdir()


def _only(name, content=b''):
  def make(model):
    shutil.rmtree(model)
    model.mkdir()
    (model / 'config.json').write_text('{}')
    if name:
      (model / name).write_bytes(content)

  return make


def _bad_config(model):
  (model / 'config.json').write_text('{"a": 1, "a": 2}')


def _two_singles(model):
  _only('a.safetensors')(model)
  (model / 'b.safetensors').write_bytes(b'')


_LEAVES = (
  'math: the file name {!r} leaves the model directory; expected the plain '
  'name of a file in it; do not trust this model'
)
_FETCH = '; fetch both again'
_FAULTS = {
  'shards missing': (
    _two_missing,
    [
      f'math / {_INDEX}: 2 of 5 shards are missing: '
      'model-00002-of-00005.safetensors, model-00004-of-00005.safetensors; '
      'fetch them'
    ],
  ),
  'shard lacks what the index lists': (
    _lacking,
    [
      f"math / {_FIRST}: tensors 'lost', 'gone' are in it by {_INDEX}, but not "
      f'here{_FETCH}'
    ],
  ),
  'index names the wrong shard': (
    _wrong_shard,
    [
      f"math / {_FIRST}: tensor 'scale' is in it by {_INDEX}, but not here, "
      f'rather in {_SECOND}{_FETCH}'
    ],
  ),
  'path upwards': (
    _escapes('../../secret/s.safetensors'),
    [_LEAVES.format('../../secret/s.safetensors')],
  ),
  'path in a folder': (
    _escapes('sub/s.safetensors'),
    [_LEAVES.format('sub/s.safetensors')],
  ),
  'absolute path': (
    _escapes('/etc/s.safetensors'),
    [_LEAVES.format('/etc/s.safetensors')],
  ),
  'no path': (_escapes(''), [_LEAVES.format('')]),
  'parent': (_escapes('..'), [_LEAVES.format('..')]),
  'zero byte': (_escapes('a\0b'), [_LEAVES.format('a\0b')]),
  'same tensor twice': (
    _twice,
    [
      f"math / {_SECOND}: tensor 'embed.weight' is also in {_FIRST}; remove "
      'the one that is stale'
    ],
  ),
  'index of 1 GB': (
    _huge_index,
    [
      f'math / {_INDEX}: has 1000000000 bytes, more than the 100000000 that '
      'are allowed'
    ],
  ),
  'index is a list': (
    _index_of('[]'),
    [f'math / {_INDEX}: expected a JSON object, the file is a list'],
  ),
  'weight_map is a list': (
    _index_of('{"weight_map": []}'),
    [
      f'math / {_INDEX}: expected a weight_map of tensors to files, got list; '
      'fetch it again'
    ],
  ),
  'no weight_map': (
    _index_of('{}'),
    [
      f'math / {_INDEX}: expected a weight_map of tensors to files, got none; '
      'fetch it again'
    ],
  ),
  'weight_map to numbers': (
    _index_of('{"weight_map": {"w": 1}}'),
    [f'math / {_INDEX} / w: expected the name of a file, got 1'],
  ),
  'tensor twice in the index': (
    _index_of('{"weight_map": {"w": "a", "w": "b"}}'),
    [f"math / {_INDEX}: the file has the key 'w' twice"],
  ),
  'deep index': (
    _index_of('[' * 100_000),
    [f'math / {_INDEX}: the file is JSON nested too deeply'],
  ),
  'one file and an index': (
    _single_too,
    [
      'math: there are two checkpoints in one directory: model.safetensors, '
      f'{_INDEX}; remove the one that is stale'
    ],
  ),
  'one file and shards': (
    _single_and_no_index,
    [
      'math: there are two checkpoints in one directory: model.safetensors, '
      f'{_FIRST}, {_SECOND}; remove the one that is stale'
    ],
  ),
  'two other files': (
    _two_singles,
    [
      'math: there are two checkpoints in one directory: a.safetensors, '
      'b.safetensors; remove the one that is stale'
    ],
  ),
  'shards without an index': (
    _no_index,
    [
      f'math: there are 2 shards but no {_INDEX}; the model was not written to '
      'the end: fetch or write it again'
    ],
  ),
  'LFS pointer': (
    _pointer,
    [
      f'math / {_FIRST}: is a Git LFS pointer and not the file itself; run '
      '`git lfs pull` in its directory'
    ],
  ),
  'directory named as a shard': (
    _directory_for_shard,
    [f'math / {_FIRST}: expected a file, this is a directory'],
  ),
  'no weights': (
    _only(''),
    [
      'math: there are no weights: expected model.safetensors, or shards and '
      f'{_INDEX}; check the path'
    ],
  ),
  'pickles': (
    _only('pytorch_model.bin', pickle.dumps([])),
    [
      'math / pytorch_model.bin: expected safetensors, this is a PyTorch '
      'pickle, which is not read because pickles run code; convert it to '
      'safetensors'
    ],
  ),
  'GGUF': (
    _only('model-q4.gguf', b'GGUF'),
    [
      'math / model-q4.gguf: expected safetensors, this is a GGUF file; '
      'convert it to safetensors'
    ],
  ),
  'adapter': (
    _only('adapter_model.safetensors'),
    [
      'math: expected a model, this is a PEFT adapter; name it as an adapter, '
      'with the model it belongs to'
    ],
  ),
  'no tensors': (
    _only('model.safetensors', crafted.file({})),
    ['math: the model has no tensors; fetch it again'],
  ),
  'bad config': (
    _bad_config,
    ["math / config.json: the file has the key 'a' twice"],
  ),
}


@pytest.mark.parametrize('fault', _FAULTS)
def test_a_fault_is_one_line_that_says_where_and_what(fault, model):
  make, said = _FAULTS[fault]
  make(model)
  assert crafted.lines_of(_open, model) == said


def test_problems_of_all_files_come_at_once(model):
  _truncated(model)
  _bad_config(model)
  lines = crafted.lines_of(_open, model)
  assert [line.partition(':')[0] for line in lines] == [
    'math / config.json',
    f'math / {_FIRST}',
    f'math / {_SECOND}',
  ]
  assert all('is truncated' in line for line in lines[1:])


def test_missing_and_damaged_shards_come_at_once(model):
  (model / _SECOND).unlink()
  (model / _FIRST).write_bytes(b'')
  lines = crafted.lines_of(_open, model)
  assert lines[0].startswith(f'math / {_INDEX}: 1 of 2 shards are missing')
  assert lines[1].startswith(f'math / {_FIRST}: is empty (0 bytes)')
  assert len(lines) == 2


# What is doubtful, and an error only where that is asked for.


def _unlisted(model):
  _reindex(model, lambda content: content['weight_map'].pop('scale'))


def _lying_total(model):
  _reindex(model, lambda content: content['metadata'].update(total_size=3))


def _no_part(model):
  shutil.copy(model / _FIRST, model / 'consolidated.safetensors')


def _once_quantised(model):
  config = {'quantization_config': {'quant_method': 'bitsandbytes'}}
  (model / 'config.json').write_text(json.dumps(config))


_DOUBTS = {
  'unlisted tensor': (
    _unlisted,
    [
      f"math / {_SECOND}: tensor 'scale' is here but not in {_INDEX}, and "
      f'ignored{_FETCH}',
      f'math / {_INDEX}: total_size is 183, expected 175, the bytes of all '
      'tensors',
    ],
  ),
  'total_size': (
    _lying_total,
    [
      f'math / {_INDEX}: total_size is 3, expected 183, the bytes of all '
      'tensors'
    ],
  ),
  'other files': (
    _no_part,
    ['math / consolidated.safetensors: is no part of the model and is ignored'],
  ),
  'quantised on loading': (
    _once_quantised,
    [
      'math / config.json: says that the model is quantised by bitsandbytes, '
      'but no tensor is; remove quantization_config'
    ],
  ),
}


@pytest.mark.parametrize('doubt', _DOUBTS)
def test_a_doubt_is_a_warning_and_strictly_an_error(doubt, model):
  make, said = _DOUBTS[doubt]
  make(model)
  assert [str(each) for each in _open(model).problems] == said
  assert crafted.lines_of(_open, model, strict=True) == said


def test_a_tensor_the_index_leaves_out_is_not_there(model):
  _unlisted(model)
  opened = _open(model)
  assert 'scale' not in opened.specs
  assert set(opened.specs) == set(crafted.tensors()) - {'scale'}


# Quantised models.

_GPTQ = {'quantization_config': {'quant_method': 'gptq', 'bits': 4}}


@pytest.mark.parametrize(
  ('name', 'array', 'config', 'said'),
  [
    ('a.qweight', np.ones((2, 2), np.int32), _GPTQ, ' by gptq'),
    ('a.qweight', np.ones((2, 2), np.int32), {}, ''),
    ('a.weight', np.ones((2, 2), np.int8), {}, ''),
    ('a.weight', np.ones((4, 1), np.uint8), {}, ''),
    ('a.weight_packed', np.ones((2, 2), np.int32), {}, ''),
    ('experts.down_proj_blocks', np.ones((2, 2), np.uint8), {}, ''),
    ('a.strange', np.ones((2, 2), np.int16), _GPTQ, ' by gptq'),
  ],
)
def test_codes_are_refused(name, array, config, said, tmp_path):
  path = tmp_path / 'model.safetensors'
  library_numpy.save_file({name: array, 'norm': np.ones(2)}, path)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert crafted.lines_of(_open, tmp_path) == [
    f'math: is quantised{said}: expected numbers, {name!r} of {array.dtype} '
    'are codes; use the unquantised model, or dequantise it first'
  ]


def test_eight_bit_floats_are_refused(tmp_path):
  header = {'w.weight': crafted.entry([2, 2], [0, 4], 'F8_E4M3')}
  path = tmp_path / 'model.safetensors'
  path.write_bytes(crafted.file(header, bytes(4)))
  (tmp_path / 'config.json').write_text('{}')
  assert crafted.lines_of(_open, tmp_path) == [
    "math: is quantised: expected numbers, 'w.weight' of float8_e4m3fn are "
    'codes; use the unquantised model, or dequantise it first'
  ]


def test_buffers_of_integers_are_no_codes(tmp_path):
  arrays = {
    'h.0.attn.bias': np.ones((1, 1, 4, 4), np.uint8),
    'embeddings.position_ids': np.arange(4)[None],
    'bn.num_batches_tracked': np.array(3),
    'w.weight': np.ones((2, 2), np.float16),
  }
  library_numpy.save_file(arrays, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text('{}')
  assert set(_open(tmp_path, strict=True).specs) == set(arrays)


# Where the files may lie.


def test_a_link_out_of_the_directory_is_refused(model):
  _link_out(model)
  real = model.parent / 'secret' / _SECOND
  assert crafted.lines_of(_open, model) == [
    f'math / {_SECOND}: is a link that leaves the model directory, to {real}; '
    'copy the file here if you trust the model'
  ]


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', _INDEX])
def test_no_other_file_is_read_outside_of_the_directory(model, name):
  (model.parent / 'secret').write_text('{}')
  (model / name).unlink(missing_ok=True)
  (model / name).symlink_to('../secret')
  (line,) = crafted.lines_of(_open, model)
  assert line.startswith(f'math / {name}: is a link that leaves the model dir')


@pytest.mark.parametrize(
  'name', ['config.json', 'tokenizer.json', _INDEX, _FIRST]
)
def test_a_link_to_nothing_is_refused(model, name):
  (model / name).unlink(missing_ok=True)
  (model / name).symlink_to('nothing')
  assert crafted.lines_of(_open, model) == [
    f'math / {name}: does not exist; fetch it'
  ]


def test_names_of_files_are_shown_without_escapes(model):
  name = b'a\x1b[2J\xff.safetensors'
  shutil.copy(model / _FIRST, os.fsencode(model) + b'/' + name)
  (warning,) = _open(model).problems
  assert str(warning) == (
    "math / 'a\\x1b[2J\\udcff.safetensors': is no part of the model and is "
    'ignored'
  )


def _cached(model, root, name):
  """The model as the cache of Hugging Face keeps it."""
  snapshot = root / name / 'snapshots' / 'abc'
  blobs = root / name / 'blobs'
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for i, path in enumerate(sorted(model.iterdir())):
    shutil.copy(path, blobs / f'{i:064x}')
    (snapshot / path.name).symlink_to(f'../../blobs/{i:064x}')
  return snapshot


def test_links_of_the_cache_are_followed(model):
  snapshot = _cached(model, model.parent, 'models--org--name')
  opened = _open(snapshot, strict=True)
  assert opened.files == (snapshot / _FIRST, snapshot / _SECOND)
  np.testing.assert_array_equal(
    _read(opened, 'embed.weight'), crafted.tensors()['embed.weight']
  )
  link = model.parent / 'link'
  link.symlink_to(snapshot)
  assert set(_open(link, strict=True).specs) == set(opened.specs)


@pytest.mark.parametrize('name', ['models--org--other', 'elsewhere'])
def test_links_to_another_model_of_the_cache_are_refused(model, name):
  snapshot = _cached(model, model.parent, 'models--org--name')
  other = _cached(model, model.parent, name)
  (snapshot / _FIRST).unlink()
  (snapshot / _FIRST).symlink_to((other / _FIRST).resolve())
  (line,) = crafted.lines_of(_open, snapshot)
  assert line.startswith(f'math / {_FIRST}: is a link that leaves')


def test_what_is_no_directory_says_so(tmp_path):
  path = tmp_path / 'none'
  assert crafted.lines_of(_open, path) == [
    f'math: there is no directory {path}; check the path'
  ]
  path.write_text('')
  assert crafted.lines_of(_open, path) == [
    f'math: expected a directory, {path} is a file; name the directory that '
    'holds it'
  ]
  assert crafted.lines_of(checkpoint.open_checkpoint, path) == [
    f'{path}: expected a directory, {path} is a file; name the directory that '
    'holds it'
  ]


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_no_permission_is_not_bad_input(model):
  (model / _FIRST).chmod(0)
  with pytest.raises(problems.ProblemError, match='Permission') as info:
    _open(model)
  assert info.value.status == problems.Kind.SPACE


# Inputs that change.


def test_a_fingerprint_tells_models_apart(model, tmp_path):
  first = _open(model).fingerprint()
  assert first == _open(model).fingerprint()
  assert set(first) == {_FIRST, _SECOND}
  assert first[_FIRST]['size'] == (model / _FIRST).stat().st_size
  moved = tmp_path / 'moved'
  model.rename(moved)
  assert _open(moved).fingerprint() == first
  stat = (moved / _FIRST).stat()
  os.utime(moved / _FIRST, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  assert _open(moved).fingerprint()[_FIRST] != first[_FIRST]
  assert _open(moved).fingerprint()[_SECOND] == first[_SECOND]


def test_all_files_that_changed_are_named(model):
  opened = _open(model)
  opened.check_unchanged()
  os.utime(model / _FIRST, ns=(0, 0))
  (model / _SECOND).unlink()
  (model / 'config.json').write_text('{}')
  stop = 'leave inputs alone; start again'
  assert sorted(crafted.lines_of(opened.check_unchanged)) == [
    'math / config.json: had 23 bytes when it was opened, and 2 now; ' + stop,
    f'math / {_FIRST}: was replaced or modified since it was opened; {stop}',
    f'math / {_SECOND}: is gone since it was opened; {stop}',
  ]


def test_a_shard_that_shrinks_stops_the_read(model):
  opened = _open(model)
  _read(opened, 'embed.weight')
  os.truncate(model / _FIRST, 30)
  (line,) = crafted.lines_of(_read, opened, 'embed.weight')
  assert 'bytes when it was opened, and 30 now' in line


# Many.


def test_a_hundred_shards_open_fast_and_few_stay_open(tmp_path):
  arrays = {
    f'model.layers.{i}.mlp.up_proj.weight': np.full(2, i, ml_dtypes.bfloat16)
    for i in range(3000)
  }
  crafted.write_sharded(tmp_path, arrays, 100)
  start = time.process_time()
  opened = _open(tmp_path, strict=True)
  assert time.process_time() - start < 0.5
  before = len(os.listdir('/proc/self/fd'))

  def right(path):
    return _read(opened, path).tolist() == arrays[path].tolist()

  with futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(right, list(arrays)[::7]))
  assert len(os.listdir('/proc/self/fd')) <= before + 8
  opened.close()
  assert len(os.listdir('/proc/self/fd')) <= before


def test_opening_takes_memory_for_headers_only(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  size = 10**11
  header = json.dumps({'w': crafted.entry([size], [0, size], 'I8')}).encode()
  with open(tmp_path / 'model.safetensors', 'wb') as file:
    file.write(crafted.file(header))
    file.truncate(8 + len(header) + size)  # Sparse: takes no room.
  tracemalloc.start()
  try:
    opened = _open(tmp_path)
    out = np.ones(4, np.int8)
    opened.read('w', size - 4, out)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert out.tolist() == [0] * 4
  assert peak < 1e6
