"""A scan finds what isfinite, zlib and float64 find."""

import zlib

import ml_dtypes
import numpy as np
import pytest

from experiments.checkpoints import scan
from merging import streams
from third_party import problems

DTYPES = [
  np.float16,
  np.float32,
  np.float64,
  ml_dtypes.bfloat16,
  ml_dtypes.float8_e4m3fn,
  ml_dtypes.float8_e5m2,
]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  monkeypatch.setattr(scan, '_PIECE', 1 << 10)


def _one(values, **options):
  return scan.scan(streams.InMemory({'w': values}), **options).leaves['w']


@pytest.mark.parametrize('dtype', DTYPES)
def test_scan_any_bits_like_isfinite(dtype):
  width = np.dtype(dtype).itemsize
  rng = np.random.default_rng(0)
  raw = rng.integers(0, 256, 5000 * width, np.uint8)
  if width <= 2:  # All there are.
    raw = np.arange(1 << (8 * width), dtype=f'u{width}').view(np.uint8)
  values = raw.view(dtype)
  with np.errstate(all='ignore'):
    wide = values.astype(np.float64)
  bad = np.flatnonzero(~np.isfinite(wide))
  found = _one(values, statistics=False)
  assert found.nonfinite == bad.size
  assert found.first_nonfinite == (bad[0] if bad.size else None)
  assert found.crc32 == zlib.crc32(values.tobytes())
  assert (found.size, found.dtype) == (values.size, values.dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('count', [1, 3, 1025, 3000])
def test_scan_finite_values(dtype, count):
  values = np.random.default_rng(1).normal(size=count).astype(dtype)
  wide = values.astype(np.float64)
  found = _one(values)
  assert (found.nonfinite, found.first_nonfinite) == (0, None)
  assert found.largest == np.abs(wide).max()
  np.testing.assert_allclose(found.rms, np.sqrt(np.mean(wide**2)), rtol=1e-6)


@pytest.mark.parametrize('dtype', DTYPES[:4])
@pytest.mark.parametrize('bad', [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [0, 511, 512, 1299])
def test_scan_single_value(dtype, bad, place):
  values = np.full(1300, -1, dtype)
  values[place] = bad
  found = _one(values)
  assert (found.nonfinite, found.first_nonfinite) == (1, place)
  assert found.largest == np.inf


def test_scan_largest_finite_value_is_finite():
  for dtype in DTYPES:
    most = ml_dtypes.finfo(dtype).max
    found = _one(np.array([0, -most], dtype), statistics=False)
    assert (found.nonfinite, found.largest) == (0, float(most))


@pytest.mark.parametrize('scale', [1e-30, 1e30])
def test_scan_root_mean_square_beyond_squares_in_float32(scale):
  values = np.random.default_rng(3).normal(size=700).astype('f4')
  values *= np.float32(scale)
  want = np.sqrt(np.mean(values.astype(np.float64) ** 2))
  np.testing.assert_allclose(_one(values).rms, want, rtol=1e-6)


def test_scan_constants_empties_and_integers():
  model = {
    'same': np.full((40, 40), -2, np.float32),
    'one off': np.append(np.zeros(1500, np.float32), np.float32(1)),
    'empty': np.zeros((0, 3), np.float32),
    'scalar': np.float32(3),
    'int': np.arange(5, dtype=np.int64),
    'bool': np.ones(4, np.bool_),
  }
  found = scan.scan(streams.InMemory(model)).leaves
  assert {path: each.constant for path, each in found.items()} == {
    'same': -2,
    'one off': None,
    'empty': None,
    'scalar': 3,
    'int': None,
    'bool': 1,
  }
  assert found['int'].largest is found['int'].rms is None
  assert found['empty'] == scan.LeafScan('empty', np.dtype(np.float32), 0, 0)
  assert found['int'].crc32 == zlib.crc32(model['int'].tobytes())


def test_scan_any_number_of_threads_and_progress():
  rng = np.random.default_rng(2)
  model = {f'w{i}': rng.normal(size=(i, 70)).astype('f4') for i in range(20)}
  source = streams.InMemory(model)
  seen = []
  found = [
    scan.scan(source, workers=n, progress=lambda *args: seen.append(args))
    for n in (1, 3)
  ]
  assert found[0] == found[1]
  assert list(found[0].leaves) == list(source.specs)
  total = sum(x.nbytes for x in model.values())
  assert seen[-1] == (total, total)
  assert max(done for done, _ in seen) == total


def test_scan_unreadable_leaves_are_problems():
  class Broken(streams.InMemory):
    def read(self, path, start, out):
      if path == 'gone':
        raise FileNotFoundError(2, 'No such file or directory')
      if path == 'short':
        raise problems.refuse(problems.Kind.INPUT, ('m', path), 'is short')
      super().read(path, start, out)

  names = ('fine', 'gone', 'short')
  found = scan.scan(Broken({name: np.ones(3) for name in names}))
  assert list(found.leaves) == ['fine']
  assert list(map(str, found.problems)) == [
    'gone: could not be read: No such file or directory',
    'm / short: is short',
  ]
