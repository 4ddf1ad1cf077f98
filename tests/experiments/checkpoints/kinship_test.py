"""Kinship agrees with sums over whole models in float64."""

import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from experiments.checkpoints import kinship as kinship_lib
from experiments.checkpoints import kinship_page
from experiments.checkpoints import sums
from merging import report
from merging import streams
from tests.experiments.checkpoints import tiny
from third_party import problems

EXPERTS = ('code', 'math', 'prose')


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  monkeypatch.setattr(sums, '_PIECE', 16)
  monkeypatch.setattr(sums, '_PIECES', 3)


def _models():
  base = tiny.tensors()
  experts = {
    name: tiny.nudged(base, 0.05 * (i + 1), i + 1)
    for i, name in enumerate(EXPERTS)
  }
  experts['code']['lm_head.weight'] = base['lm_head.weight']
  return base, experts


def _kinship(base, experts, **options):
  sources = {name: streams.InMemory(each) for name, each in experts.items()}
  return kinship_lib.kinship(streams.InMemory(base), sources, **options)


def _flat(model, paths):
  return np.concatenate([model[p].astype(np.float64).ravel() for p in paths])


def _oracle(base, experts, paths):
  """The measures of a set of tensors, from the formulas."""
  b = _flat(base, paths)
  rows = [_flat(experts[name], paths) for name in EXPERTS]
  deltas = [row - b for row in rows]
  norm = np.linalg.norm
  cosines, conflicts = np.eye(3), np.zeros((3, 3))
  for i, j in itertools.permutations(range(3), 2):
    x, y = deltas[i], deltas[j]
    if norm(x) and norm(y):
      cosines[i, j] = x @ y / norm(x) / norm(y)
    moved = (x != 0) & (y != 0)
    if moved.any():
      conflicts[i, j] = np.mean(np.sign(x[moved]) != np.sign(y[moved]))
  for i, x in enumerate(deltas):
    cosines[i, i] = float(norm(x) > 0)
  return {
    'relative_norms': np.array([norm(x) / norm(b) for x in deltas]),
    'cosines': cosines,
    'sign_conflicts': conflicts,
    'unchanged': np.array([np.mean(x == 0) for x in deltas]),
    'base_cosines': np.array([r @ b / norm(r) / norm(b) for r in rows]),
  }


def test_kinship_against_float64():
  base, experts = _models()
  found = _kinship(base, experts)
  want = _oracle(base, experts, list(base))
  assert found.diagnosis.experts == EXPERTS
  for name in ('relative_norms', 'cosines', 'sign_conflicts', 'unchanged'):
    got = getattr(found.diagnosis, name)
    np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(
    found.base_cosines, want['base_cosines'], rtol=1e-5
  )
  vocabulary = ['model.embed_tokens.weight', 'lm_head.weight']
  for got, paths in (
    (found.vocabulary_norms, vocabulary),
    (found.body_norms, [p for p in base if p not in vocabulary]),
  ):
    want = _oracle(base, experts, paths)['relative_norms']
    np.testing.assert_allclose(got, want, rtol=1e-5)
  for path, got in found.leaf_norms.items():
    want = _oracle(base, experts, [path])['relative_norms']
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_kinship_blocks_against_float64():
  base, experts = _models()
  found = _kinship(base, experts).diagnosis
  assert sorted(found.blocks) == [
    'lm_head',
    'model.embed_tokens',
    'model.layers.0',
    'model.layers.1',
    'model.layers.2',
    'model.layers.3',
    'model.norm',
  ]
  for i, block in enumerate(found.blocks):
    paths = [path for path in base if path.startswith(f'{block}.')]
    want = _oracle(base, experts, paths)
    for name, got in (
      ('relative_norms', found.block_norms[i]),
      ('cosines', found.block_cosines[i]),
      ('sign_conflicts', found.block_sign_conflicts[i]),
    ):
      np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=1e-7)


def test_kinship_says_what_diagnose_says_in_memory():
  base, experts = _models()
  whole = report.diagnose(base, experts, max_side=0)
  found = _kinship(base, experts).diagnosis
  for name in ('relative_norms', 'cosines', 'sign_conflicts', 'unchanged'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-6
    )
  assert found.warnings == whole.warnings


def test_kinship_any_number_of_threads():
  base, experts = _models()
  first, second = (_kinship(base, experts, workers=n) for n in (1, 3))
  assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())


def test_kinship_keeps_layers_in_their_order():
  base = {f'layers.{i}.w': np.ones(2, 'f4') for i in (10, 9, 100, 0)}
  found = _kinship(base, {'tuned': base})
  want = ('layers.0', 'layers.9', 'layers.10', 'layers.100')
  assert found.diagnosis.blocks == want


def test_kinship_of_a_sample():
  rng = np.random.default_rng(0)
  base = {'w': rng.normal(size=16 * 40 + 5).astype('f4'), 'v': np.ones(3, 'f4')}
  tuned = {path: x * np.float32(1.25) for path, x in base.items()}
  seen = []
  found = _kinship(
    base,
    {'tuned': tuned},
    sample=0.1,
    progress=lambda *args: seen.append(args),
  )
  # 5 of the 41 runs of w, the last of which has 5 entries; all of v.
  assert found.entries == 5 * 16 + 3
  assert found.fraction == found.entries / (16 * 40 + 5 + 3)
  assert found.read == found.entries * 4 * 2
  assert seen[-1] == (found.read, found.read)
  np.testing.assert_allclose(found.diagnosis.relative_norms, 0.25, rtol=1e-6)
  whole = _kinship(base, {'tuned': tuned}, sample=1.0)
  assert whole.to_dict() == _kinship(base, {'tuned': tuned}).to_dict()


def test_kinship_verdicts():
  base = tiny.tensors()
  experts = {
    'equal': base,
    'tuned': tiny.nudged(base, 0.1, 1),
    'other': tiny.tensors(7),
    'negated': {path: -x for path, x in base.items()},
    'larger': {path: (2 * x).astype(x.dtype) for path, x in base.items()},
  }
  # All but the vocabulary from another model: nearer than half as a whole.
  heavy = dict(base) | {'lm_head.weight': base['lm_head.weight'] * 16}
  found = _kinship(base, experts)
  assert dict(zip(found.diagnosis.experts, found.verdicts, strict=True)) == {
    'equal': 'equal',
    'larger': 'foreign',
    'negated': 'foreign',
    'other': 'foreign',
    'tuned': 'kin',
  }
  assert found.foreign == ('larger', 'negated', 'other')
  assert any("'other'" in line and 'cosine' in line for line in found.warnings)
  vocabulary = ('lm_head.weight', 'model.embed_tokens.weight')
  replaced = tiny.tensors(7) | {path: heavy[path] for path in vocabulary}
  found = _kinship(heavy, {'body': replaced})
  assert found.diagnosis.relative_norms[0] < 0.5 < found.body_norms[0]
  assert found.foreign == ('body',)


def test_kinship_tensors_that_stand_out():
  base = tiny.tensors()
  tuned = tiny.nudged(base, 0.01, 1)
  path = 'model.layers.2.mlp.up_proj.weight'
  tuned[path] = tiny.tensors(9)[path]
  found = _kinship(base, {'tuned': tuned})
  assert [each[:2] for each in found.outliers] == [('tuned', path)]
  assert path in str(found)


def test_kinship_lists_what_it_cannot_compare():
  base = tiny.tensors(dtype=np.float32) | {'steps': np.arange(3)}
  tuned = tiny.nudged(base, 0.01, 1)
  other = tiny.nudged(base, 0.01, 2) | {'extra': np.ones(2, 'f4')}
  tuned['model.embed_tokens.weight'] = np.ones((18, 8), 'f4')
  tuned['lm_head.weight'] = tuned['lm_head.weight'].copy()
  tuned['lm_head.weight'][3, 2] = np.nan
  del other['model.norm.weight']
  found = _kinship(base, {'tuned': tuned, 'other': other})
  assert found.skipped == {
    'model.embed_tokens.weight': "shapes differ: 'the base' [16, 8], "
    "'other' [16, 8], 'tuned' [18, 8]",
    'lm_head.weight': 'has values that are not finite, or too large',
    'model.norm.weight': "not in 'other'",
    'extra': "not in 'the base', 'tuned'",
  }
  assert found.vocabulary_norms.shape == (2,)
  assert np.isnan(found.vocabulary_norms).all()
  assert any('4 tensors not compared' in line for line in found.warnings)
  assert json.loads(json.dumps(found.to_dict(), allow_nan=False))


def test_kinship_of_mixed_types_and_zeros():
  base = {'a': np.zeros(4, np.float16), 'b': np.ones(4, np.float64)}
  tuned = {'a': np.ones(4, 'f4'), 'b': np.full(4, 1.5, ml_dtypes.bfloat16)}
  found = _kinship(base, {'tuned': tuned, 'zero': base})
  assert found.leaf_norms['a'].tolist() == [np.inf, 0.0]
  assert found.leaf_norms['b'].tolist() == [0.5, 0.0]
  assert found.outliers == ()
  assert json.dumps(found.to_dict(), allow_nan=False)


def test_kinship_refuses():
  base = {'w': np.ones(3)}
  with pytest.raises(ValueError, match='no experts'):
    _kinship(base, {})
  with pytest.raises(ValueError, match=r'in \(0, 1\], got 0'):
    _kinship(base, {'a': base}, sample=0)
  with pytest.raises(problems.ProblemError, match='not in') as error:
    _kinship(base, {'a': {'v': np.ones(3)}})
  assert error.value.status == problems.Kind.INCOMPATIBLE


def test_kinship_writes_files_with_any_name(tmp_path):
  base, experts = _models()
  experts['<b>$\\frac{1}{2}$ \u8bed\u8a00\x1b[2J'] = experts.pop('math')
  found = _kinship(base, experts)
  page = kinship_page.write(found, tmp_path).read_text(encoding='utf-8')
  names = ['changes.png', 'cosines.png', 'kinship.html', 'kinship.json']
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  assert '<b>$' not in page
  assert '\x1b' not in page
  content = json.loads((tmp_path / 'kinship.json').read_text())
  assert content['experts'] == list(found.diagnosis.experts)
  assert (tmp_path / 'changes.png').read_bytes()[:4] == b'\x89PNG'
