"""Rows of another vocabulary, against a table that is built literally."""

from concurrent import futures

import ml_dtypes
import numpy as np
import pytest

from merging import streams
from third_party.huggingface import remapped

WIDTH, OLD, NEW = 5, 7, 11
ROWS = np.array([3, 4, 5, -1, 0, 0, -1, 6, -1, -1, -1], np.int32)
FILLS = {3: (('other', 2),), 6: (('other', 1), ('third', 0)), 9: (('self', 1),)}
AVERAGED = 9


def _models(dtype, shape):
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=shape).astype(dtype)
    for name in ('self', 'other', 'third')
  }


def _literal(models, fills):
  """The new rows, one by one."""
  rows = []
  for i in range(AVERAGED):
    if ROWS[i] >= 0:
      rows.append(models['self'][ROWS[i]].astype(np.float32))
    elif i in fills:
      givers = [models[m][r].astype(np.float32) for m, r in fills[i]]
      rows.append(sum(givers) / np.float32(len(givers)))
    else:
      rows.append(np.zeros_like(models['self'][0], np.float32))
  dtype = models['self'].dtype
  rows = [row.astype(dtype) for row in rows]
  mean = np.mean([row.astype(np.float64) for row in rows], axis=0)
  rows += [mean.astype(np.float32).astype(dtype)] * (NEW - AVERAGED)
  return np.stack(rows)


def _mapped(models, averaged=AVERAGED, path='wte'):
  donors = {name: streams.InMemory({path: x}) for name, x in models.items()}
  rows = remapped.RowMap(ROWS, FILLS, averaged)
  return remapped.Remapped(donors['self'], [path], rows, donors)


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16, np.float16])
def test_every_piece_is_that_of_the_whole(dtype):
  models = _models(dtype, (OLD, WIDTH))
  expected = _literal(models, FILLS)
  mapped = _mapped(models)
  assert mapped.specs['wte'].shape == (NEW, WIDTH)
  flat = expected.reshape(-1)
  for start in range(flat.size):
    for stop in range(start, flat.size + 1, 3):
      out = np.full(stop - start, 7, dtype)
      mapped.read('wte', start, out)
      np.testing.assert_array_equal(out, flat[start:stop])


def test_a_bias_has_rows_too():
  models = _models(np.float32, (OLD,))
  out = np.empty(NEW, np.float32)
  _mapped(models).read('wte', 0, out)
  np.testing.assert_array_equal(out, _literal(models, FILLS))


def test_an_axis_of_size_one_comes_first():
  models = {k: v[None] for k, v in _models(np.float32, (OLD,)).items()}
  mapped = _mapped(models)
  assert mapped.specs['wte'].shape == (1, NEW)
  out = np.empty(NEW, np.float32)
  mapped.read('wte', 0, out)
  flat = {name: x[0] for name, x in models.items()}
  np.testing.assert_array_equal(out, _literal(flat, FILLS))


def test_donors_of_another_dtype_are_rounded_once():
  models = _models(np.float32, (OLD, WIDTH))
  models['self'] = models['self'].astype(ml_dtypes.bfloat16)
  out = np.empty(NEW * WIDTH, ml_dtypes.bfloat16)
  _mapped(models).read('wte', 0, out)
  np.testing.assert_array_equal(
    out.reshape(NEW, WIDTH)[:AVERAGED], _literal(models, FILLS)[:AVERAGED]
  )


def test_threads_read_the_same():
  models = _models(np.float32, (OLD, WIDTH))
  expected = _literal(models, FILLS).reshape(-1)
  mapped = _mapped(models)

  def read(start):
    out = np.empty(expected.size - start, np.float32)
    mapped.read('wte', start, out)
    return start, out

  with futures.ThreadPoolExecutor(8) as pool:
    for start, out in pool.map(read, list(range(expected.size)) * 4):
      np.testing.assert_array_equal(out, expected[start:])


def test_a_mean_is_taken_in_pieces(monkeypatch):
  monkeypatch.setattr(remapped, '_PIECE', 2 * WIDTH)
  models = _models(np.float32, (OLD, WIDTH))
  out = np.empty(NEW * WIDTH, np.float32)
  _mapped(models).read('wte', 0, out)
  np.testing.assert_allclose(
    out.reshape(NEW, WIDTH), _literal(models, FILLS), rtol=1e-6
  )


def test_other_leaves_pass():
  source = streams.InMemory({'wte': np.ones((2, 2)), 'w': np.arange(3.0)})
  rows = remapped.RowMap(np.array([1, 0], np.int32), {}, 2)
  mapped = remapped.Remapped(source, ['wte'], rows, {})
  out = np.empty(2)
  mapped.read('w', 1, out)
  assert out.tolist() == [1.0, 2.0]
  assert mapped.specs['w'].shape == (3,)


def test_rows_that_are_not_there_are_refused():
  source = streams.InMemory({'wte': np.ones((2, 2))})
  rows = remapped.RowMap(np.array([2], np.int32), {}, 1)
  with pytest.raises(ValueError, match='wte: row 2 is asked for, there are 2'):
    remapped.Remapped(source, ['wte'], rows, {})


def test_the_identity_is_known():
  same = remapped.RowMap(np.arange(4, dtype=np.int32), {}, 4)
  assert same.is_identity(4)
  assert not same.is_identity(5)
  assert not remapped.RowMap(np.array([1, 0], np.int32), {}, 2).is_identity(2)
