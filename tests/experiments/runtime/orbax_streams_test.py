"""Orbax checkpoints in pieces: Orbax is the oracle, in both directions."""

from concurrent import futures
import itertools
import json
import math
import random
import shutil
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from orbax import checkpoint as ocp
from orbax.checkpoint import v1
import pytest

from experiments.runtime import checkpoints
from experiments.runtime import orbax_layout
from experiments.runtime import orbax_sink
from experiments.runtime import orbax_source
from merging import transform
from third_party import problems

_TREE = {
  'blocks': [
    {'w': np.arange(35, dtype=np.float32).reshape(5, 7)},
    {'w': np.arange(24).reshape(2, 3, 4).astype(ml_dtypes.bfloat16)},
  ],
  'model.layers.0.weight': np.arange(6, dtype=np.float16),
  'mask': np.array([True, False, True]),
  'scale': np.array(3.5, np.float32),
}


def _whole(source, path, piece=4):
  spec = source.specs[path]
  out = np.empty(math.prod(spec.shape), spec.dtype)
  for start in range(0, out.size, piece):
    source.read(path, start, out[start : start + piece])
  return out.reshape(spec.shape)


def _same(found, expected):
  found, expected = np.asarray(found), np.asarray(expected)
  return (
    found.dtype == expected.dtype
    and found.shape == expected.shape
    and found.tobytes() == expected.tobytes()
  )


def _flat(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _plain(path, tree):
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def _without_ocdbt(path, tree):
  with ocp.Checkpointer(
    ocp.PyTreeCheckpointHandler(use_ocdbt=False)
  ) as checkpointer:
    checkpointer.save(path, tree)


def _standard(path, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def _save_v1(path, tree):
  v1.save(path, tree)


_SAVERS = (_plain, _without_ocdbt, _standard, _save_v1)


@pytest.mark.parametrize('save', _SAVERS)
def test_reads_what_orbax_wrote(tmp_path, save):
  save(tmp_path / 'model', _TREE)
  source = orbax_source.OrbaxSource(tmp_path / 'model')
  expected = _flat(_TREE)
  assert set(source.specs) == set(expected)
  assert source.problems == ()
  for path, leaf in expected.items():
    assert _same(_whole(source, path), leaf)


def test_every_range_of_a_leaf_is_read(tmp_path):
  _plain(tmp_path / 'model', _TREE)
  source = orbax_source.OrbaxSource(tmp_path / 'model')
  leaf = _TREE['blocks'][1]['w'].reshape(-1)
  for start, stop in itertools.combinations(range(leaf.size + 1), 2):
    out = np.empty(stop - start, leaf.dtype)
    source.read('blocks/1/w', start, out)
    assert (out == leaf[start:stop]).all()


@pytest.mark.parametrize('shape', [(), (5,), (3, 4), (2, 1, 3), (2, 2, 2, 2)])
def test_boxes_are_the_range_in_order(shape):
  entries = np.arange(math.prod(shape)).reshape(shape)
  for start, stop in itertools.combinations(range(entries.size + 1), 2):
    parts = [
      np.ravel(entries[box]) for box in orbax_layout.boxes(shape, start, stop)
    ]
    assert np.concatenate(parts).tolist() == list(range(start, stop))
    assert len(parts) <= max(1, 2 * len(shape) - 1)


def test_leaves_of_a_sharded_save_are_whole(tmp_path):
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  sharding = jax.sharding.NamedSharding(mesh, jax.P('a', 'b'))
  leaf = np.arange(48, dtype=np.float32).reshape(8, 6)
  _plain(tmp_path / 'model', {'w': jax.device_put(leaf, sharding)})
  source = orbax_source.OrbaxSource(tmp_path / 'model')
  assert _same(_whole(source, 'w', piece=5), leaf)
  assert source.chunk_bytes == leaf.nbytes // 8


def test_reads_what_a_run_keeps_under_the_names_of_its_tree(tmp_path):
  tree = {
    'blocks': [{'qkv/w': jnp.ones((2, 3))}, {"it's": jnp.zeros(2)}],
    'key': jax.random.key(0),
  }
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(3, tree)
  source = orbax_source.OrbaxSource(tmp_path / '3')
  assert {path: spec.shape for path, spec in source.specs.items()} == {
    'blocks/0/qkv/w': (2, 3),
    "blocks/1/it's": (2,),
    'key': (2,),
  }
  with pytest.raises(problems.ProblemError, match='has steps: 3; name one'):
    orbax_source.OrbaxSource(tmp_path)


def test_what_is_no_array_is_listed_apart(tmp_path):
  _plain(tmp_path / 'model', {'w': np.ones(2), 'name': 'x', 'none': None})
  source = orbax_source.OrbaxSource(tmp_path / 'model')
  assert list(source.specs) == ['w']
  assert source.others == {'name': 'string'}


def _write(directory, tree, *, piece, chunk_bytes, keys=None, shuffled=False):
  leaves = {path: np.asarray(leaf) for path, leaf in _flat(tree).items()}
  specs = {
    path: transform.LeafSpec(path, leaf.shape, leaf.dtype)
    for path, leaf in leaves.items()
  }
  sink = orbax_sink.OrbaxSink(
    directory, specs, keys=keys, metadata={'seed': 1}, chunk_bytes=chunk_bytes
  )
  pieces = [
    (path, start, leaf.reshape(-1)[start : start + piece])
    for path, leaf in leaves.items()
    for start in range(0, leaf.size, piece)
  ]
  if shuffled:
    random.Random(0).shuffle(pieces)
  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda each: sink.write(*each), pieces))
  sink.finish()
  assert sink.fingerprints == {
    path: zlib.crc32(leaf.tobytes()) for path, leaf in leaves.items()
  }


def _restored_by(path):
  with ocp.PyTreeCheckpointer() as checkpointer:
    yield checkpointer.restore(path)
  with ocp.StandardCheckpointer() as checkpointer:
    yield checkpointer.restore(path)
  yield v1.load(path)


@pytest.mark.parametrize(
  ('piece', 'chunk_bytes', 'shuffled'),
  [(1000, 2**24, False), (4, 16, False), (3, 20, True), (5, 1, True)],
)
def test_orbax_restores_what_is_written(tmp_path, piece, chunk_bytes, shuffled):
  _plain(tmp_path / 'model', _TREE)
  keys = orbax_source.OrbaxSource(tmp_path / 'model').keys
  _write(
    tmp_path / 'out',
    _TREE,
    piece=piece,
    chunk_bytes=chunk_bytes,
    keys=keys,
    shuffled=shuffled,
  )
  for tree in _restored_by(tmp_path / 'out'):
    assert jax.tree.structure(tree) == jax.tree.structure(_TREE)
    assert jax.tree.all(jax.tree.map(_same, tree, _TREE))
  assert v1.metadata(tmp_path / 'out').custom_metadata == {'seed': 1}


def test_a_path_is_a_dict_of_its_parts(tmp_path):
  _write(tmp_path / 'out', _TREE, piece=9, chunk_bytes=64)
  for tree in _restored_by(tmp_path / 'out'):
    assert _same(tree['blocks']['0']['w'], _TREE['blocks'][0]['w'])
    assert _same(tree['model.layers.0.weight'], _TREE['model.layers.0.weight'])


def test_orbax_restores_it_onto_a_mesh(tmp_path):
  leaf = np.arange(48, dtype=np.float32).reshape(8, 6)
  _write(tmp_path / 'out', {'w': leaf}, piece=7, chunk_bytes=40)
  mesh = jax.make_mesh((4, 2), ('a', 'b'))
  sharding = jax.sharding.NamedSharding(mesh, jax.P('a', 'b'))
  target = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  with ocp.StandardCheckpointer() as checkpointer:
    found = checkpointer.restore(tmp_path / 'out', {'w': target})['w']
  assert found.sharding == sharding
  assert _same(found, leaf)


@pytest.mark.parametrize(
  'dtype',
  ['float64', 'int8', 'uint32', 'float8_e4m3fn', 'float8_e5m2', 'complex64'],
)
def test_types_survive(tmp_path, dtype):
  leaf = np.arange(5).astype(getattr(ml_dtypes, dtype, dtype))
  _write(tmp_path / 'out', {'w': leaf}, piece=2, chunk_bytes=24)
  with ocp.PyTreeCheckpointer() as checkpointer:
    assert _same(checkpointer.restore(tmp_path / 'out')['w'], leaf)
  source = orbax_source.OrbaxSource(tmp_path / 'out')
  assert _same(_whole(source, 'w'), leaf)


def _spec(path, shape=(4,), dtype='float32'):
  return {path: transform.LeafSpec(path, shape, np.dtype(dtype))}


def test_nothing_counts_until_all_of_it_is_written(tmp_path):
  sink = orbax_sink.OrbaxSink(tmp_path / 'out', _spec('w') | _spec('v'))
  sink.write('w', 0, np.zeros(4, np.float32))
  sink.write('v', 1, np.zeros(2, np.float32))
  with pytest.raises(problems.ProblemError, match=r'/ v: 8 bytes were not'):
    sink.finish()
  assert list(sink.fingerprints) == ['w']
  with pytest.raises(problems.ProblemError, match='is no Orbax checkpoint'):
    orbax_source.OrbaxSource(tmp_path / 'out')


def test_entries_come_once(tmp_path):
  sink = orbax_sink.OrbaxSink(tmp_path / 'out', _spec('w'))
  sink.write('w', 0, np.zeros(4, np.float32))
  with pytest.raises(ValueError, match='came twice'):
    sink.write('w', 1, np.zeros(3, np.float32))


def test_leaves_that_orbax_cannot_have_are_named_before_work(tmp_path):
  specs = _spec('none', (0, 3)) | _spec('w') | _spec('f', (2,), 'datetime64[s]')
  with pytest.raises(problems.ProblemError) as caught:
    orbax_sink.OrbaxSink(tmp_path / 'out', specs)
  assert [each.where[1] for each in caught.value.problems] == ['none', 'f']
  with pytest.raises(problems.ProblemError, match=r'a\.b: two leaves'):
    orbax_sink.OrbaxSink(tmp_path / 'out', _spec('a/b') | _spec('a.b'))
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'file').touch()
  with pytest.raises(problems.ProblemError, match='is not empty'):
    orbax_sink.OrbaxSink(tmp_path, _spec('w'))


def test_a_missing_mark_is_said_and_nothing_is_deleted(tmp_path):
  _plain(tmp_path / 'model', _TREE)
  (tmp_path / 'model' / 'commit_success.txt').unlink()
  before = sorted(tmp_path.rglob('*'))
  (problem,) = orbax_source.OrbaxSource(tmp_path / 'model').problems
  assert 'has no commit_success.txt' in str(problem)
  unfinished = tmp_path / 'model.orbax-checkpoint-tmp'
  shutil.copytree(tmp_path / 'model', unfinished)
  with pytest.raises(problems.ProblemError, match='did not finish'):
    orbax_source.OrbaxSource(unfinished)
  shutil.rmtree(unfinished)
  assert sorted(tmp_path.rglob('*')) == before


def test_all_leaves_that_are_lost_are_named(tmp_path):
  _without_ocdbt(tmp_path / 'model', _TREE)
  for name in ('mask', 'blocks.0.w'):
    shutil.rmtree(tmp_path / 'model' / name)
  with pytest.raises(problems.ProblemError) as caught:
    orbax_source.OrbaxSource(tmp_path / 'model', name='math')
  assert {each.where for each in caught.value.problems} == {
    ('math', 'mask'),
    ('math', 'blocks/0/w'),
  }


def test_a_lost_chunk_is_an_error_and_not_zeros(tmp_path):
  _without_ocdbt(tmp_path / 'model', _TREE)
  source = orbax_source.OrbaxSource(tmp_path / 'model')
  (tmp_path / 'model' / 'blocks.0.w' / '0.0').unlink()
  with pytest.raises(problems.ProblemError, match='0/w: cannot be read'):
    _whole(source, 'blocks/0/w')


def test_a_flipped_byte_is_an_error_or_changes_nothing(tmp_path):
  leaf = np.arange(2000, dtype=np.float32)
  _write(tmp_path / 'out', {'w': leaf}, piece=500, chunk_bytes=2000)
  files = [
    each
    for each in sorted((tmp_path / 'out').rglob('*'))
    if each.is_file() and each.parent.name == 'd'
  ]
  draw, refused = random.Random(0), 0
  for _ in range(60):
    file = draw.choice(files)
    whole = file.read_bytes()
    at = draw.randrange(len(whole))
    flipped = whole[at] ^ draw.randrange(1, 256)
    file.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    try:
      source = orbax_source.OrbaxSource(tmp_path / 'out')
      assert _same(_whole(source, 'w', 512), leaf)
    except problems.ProblemError:
      refused += 1
    file.write_bytes(whole)
  assert refused > 10


@pytest.mark.parametrize(
  'content',
  ['', '[]', '{"tree_metadata": {"a": 3}}', '[' * 100_000, '\x00'],
)
def test_a_broken_description_is_one_problem(tmp_path, content):
  (tmp_path / '_METADATA').write_text(content)
  with pytest.raises(problems.ProblemError, match='_METADATA'):
    orbax_source.OrbaxSource(tmp_path)


def test_a_leaf_does_not_leave_the_checkpoint(tmp_path):
  _without_ocdbt(tmp_path / 'secret', {'w': np.ones(2)})
  _without_ocdbt(tmp_path / 'model', {'w': np.ones(2)})
  path = tmp_path / 'model' / '_METADATA'
  content = json.loads(path.read_text())
  (entry,) = content['tree_metadata'].values()
  entry['key_metadata'][0]['key'] = '../secret/w'
  path.write_text(json.dumps(content))
  with pytest.raises(problems.ProblemError, match='leaves the checkpoint'):
    orbax_source.OrbaxSource(tmp_path / 'model')


def test_what_is_there_instead_is_said(tmp_path):
  with pytest.raises(problems.ProblemError, match='no such directory'):
    orbax_source.OrbaxSource(tmp_path / 'none')
  with pytest.raises(problems.ProblemError, match='is no Orbax checkpoint'):
    orbax_source.OrbaxSource(tmp_path)
  for item in ('params', 'optimizer'):
    _plain(tmp_path / 'two' / item, {'w': np.ones(2)})
  with pytest.raises(problems.ProblemError, match='items: optimizer, params'):
    orbax_source.OrbaxSource(tmp_path / 'two')
