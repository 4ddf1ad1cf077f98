"""Adapters of fine-tuned models: what they hold, and what is lost."""

import math

import ml_dtypes
import numpy as np
import pytest

from experiments.checkpoints import changes
from experiments.checkpoints import extract
from merging import streams
from third_party import problems
from third_party.peft import adapted
from third_party.peft import adapter as adapter_lib

_RANDOM = np.random.default_rng(2)


def _draw(*shape):
  return _RANDOM.standard_normal(shape).astype(np.float32)


def _models(rank=2):
  """A base, and an expert that moved by matrices of some rank."""
  base = {
    'model.embed_tokens.weight': _draw(9, 6),
    'layers.0.q_proj.weight': _draw(8, 6),
    'layers.0.q_proj.bias': _draw(8),
    'layers.0.k_proj.weight': _draw(8, 6),
    'layers.0.norm.weight': _draw(6),
    'layers.0.norm.bias': _draw(6),
    'lm_head.weight': _draw(9, 6),
    'steps': np.arange(3),
  }
  expert = dict(base)
  for path in ('layers.0.q_proj.weight', 'model.embed_tokens.weight'):
    rows, columns = base[path].shape
    change = 0.1 * _draw(rows, rank) @ _draw(rank, columns)
    expert[path] = base[path] + change
  expert['layers.0.q_proj.bias'] = base['layers.0.q_proj.bias'] + 1
  expert['layers.0.norm.weight'] = base['layers.0.norm.weight'] * 2
  return base, expert


def _applied(base, folder):
  source = streams.InMemory(base)
  adapter = adapter_lib.open_adapter(folder).fit(source.specs)
  full = adapted.Adapted(source, adapter)
  return {path: changes.read(full, path) for path in base}, adapter


def _extract(base, expert, folder, **options):
  return extract.extract_lora(
    streams.InMemory(base), streams.InMemory(expert), folder, **options
  )


def test_a_change_of_low_rank_comes_back(tmp_path):
  base, expert = _models()
  seen = []
  found = _extract(
    base, expert, tmp_path, rank=2, progress=lambda *now: seen.append(now)
  )
  applied, adapter = _applied(base, tmp_path)
  for path, leaf in expert.items():
    np.testing.assert_allclose(applied[path], leaf, atol=1e-6)
  rows = {row.path: row for row in found.rows}
  assert {path: row.kept for path, row in rows.items()} == {
    'model.embed_tokens.weight': 'low rank',
    'layers.0.q_proj.weight': 'low rank',
    'layers.0.q_proj.bias': 'whole',
    'layers.0.k_proj.weight': 'unchanged',
    'layers.0.norm.weight': 'whole',
    'layers.0.norm.bias': 'unchanged',
    'lm_head.weight': 'unchanged',
    'steps': 'unchanged',
  }
  assert all(row.error < 1e-5 for row in found.rows)
  # The bias of the norm did not change; PEFT wants all of a stored module.
  assert set(adapter) == {
    path for path, row in rows.items() if row.kept != 'unchanged'
  } | {'layers.0.norm.bias'}
  assert [path for _, path in seen] == sorted(base)
  assert seen[-1][0] == 1.0
  assert found.notes == ()


def test_errors_are_those_of_the_best_approximation(tmp_path):
  base, expert = _models(rank=6)
  found = _extract(base, expert, tmp_path, rank=3, modules='q_proj')
  (row,) = [row for row in found.rows if row.kept == 'low rank']
  change = expert[row.path].astype(np.float64) - base[row.path]
  s = np.linalg.svd(change, compute_uv=False)
  expected = math.sqrt(np.sum(s[3:] ** 2) / np.sum(s**2))
  assert row.error == pytest.approx(expected, rel=1e-4)
  assert row.rank == 3
  moved = np.linalg.norm(change) / np.linalg.norm(base[row.path])
  assert row.change == pytest.approx(moved, rel=1e-4)
  applied, _ = _applied(base, tmp_path)
  left = np.linalg.norm(applied[row.path] - expert[row.path])
  assert left / np.linalg.norm(change) == pytest.approx(expected, rel=1e-3)
  # The embedding changed and was not chosen: it is there, whole.
  np.testing.assert_array_equal(
    applied['model.embed_tokens.weight'], expert['model.embed_tokens.weight']
  )


@pytest.mark.parametrize('energy', [0.3, 0.9, 0.999])
def test_energy_takes_the_fewest_that_hold_it(tmp_path, energy):
  base, expert = _models(rank=6)
  found = _extract(base, expert, tmp_path, rank=None, energy=energy)
  ranks = {}
  for row in found.rows:
    if row.kept == 'low rank':
      s = np.linalg.svd(
        expert[row.path].astype(np.float64) - base[row.path], compute_uv=False
      )
      held = np.cumsum(s**2) / np.sum(s**2)
      ranks[row.path] = row.rank
      assert row.rank == 1 + np.sum(held < energy)
  again = adapter_lib.open_adapter(tmp_path).fit(streams.InMemory(base).specs)
  assert {path: again[path].rank for path in ranks} == ranks


@pytest.mark.parametrize('energy', [None, 0.5])
def test_a_sketch_is_nearly_as_good(tmp_path, energy):
  path = 'q_proj.weight'
  base = {path: _draw(60, 80)}
  change = 0.1 * _draw(60, 60) @ np.diag(0.9 ** np.arange(60)) @ _draw(60, 80)
  expert = {path: base[path] + change.astype(np.float32)}
  options = {'rank': 12, 'energy': energy}
  (exact,) = _extract(base, expert, tmp_path / 'a', **options).rows
  found = _extract(base, expert, tmp_path / 'b', method='sketch', **options)
  (sketch,) = found.rows
  assert sketch.rank == exact.rank
  assert 0.99999 * exact.error <= sketch.error < 1.01 * exact.error
  applied, _ = _applied(base, tmp_path / 'b')
  left = np.linalg.norm(applied[path] - expert[path])
  assert left / np.linalg.norm(change) == pytest.approx(sketch.error, rel=1e-3)


def test_rank_bounds_what_energy_asks_for(tmp_path):
  base, expert = _models(rank=6)
  found = _extract(base, expert, tmp_path, rank=2, energy=1.0)
  assert {row.rank for row in found.rows if row.rank} == {2}


def test_transposed_layers(tmp_path):
  pattern = extract.in_out_pattern({'model_type': 'gpt2'})
  base = {'h.0.attn.c_attn.weight': _draw(4, 12)}
  expert = {'h.0.attn.c_attn.weight': _draw(4, 12)}
  _extract(base, expert, tmp_path, rank=4, in_out=pattern)
  applied, adapter = _applied(base, tmp_path)
  assert adapter['h.0.attn.c_attn.weight'].layout == 'in_out'
  path = 'h.0.attn.c_attn.weight'
  np.testing.assert_allclose(applied[path], expert[path], atol=1e-5)


def test_half_precision(tmp_path):
  base, expert = (
    {
      path: x if x.dtype.kind == 'i' else x.astype(ml_dtypes.bfloat16)
      for path, x in each.items()
    }
    for each in _models()
  )
  found = _extract(base, expert, tmp_path, dtype=ml_dtypes.bfloat16, rank=6)
  rows = {row.path: row for row in found.rows}
  # Rounding of the factors is a part of the error that is told.
  assert 1e-4 < rows['layers.0.q_proj.weight'].error < 2e-2
  assert rows['layers.0.norm.weight'].error == 0


def test_others_are_lost_or_refused_by_choice(tmp_path):
  base, expert = _models()
  found = _extract(base, expert, tmp_path / 'a', rank=2, others='drop')
  lost = ['layers.0.norm.weight', 'layers.0.q_proj.bias']
  assert [row.path for row in found.lost] == lost
  assert all(row.error == 1 for row in found.lost)
  assert found.notes[0].startswith('2 changed leaves are lost')
  with pytest.raises(problems.ProblemError, match='gets no factors') as caught:
    _extract(base, expert, tmp_path / 'b', rank=2, others='refuse')
  assert caught.value.status == problems.Kind.INCOMPATIBLE
  assert not list((tmp_path / 'b').iterdir())


def test_parameters_that_peft_cannot_store_are_told(tmp_path):
  base, expert = _models()
  base['layers.0.a_log'], expert['layers.0.a_log'] = _draw(3), _draw(3)
  found = _extract(base, expert, tmp_path, rank=2)
  assert [row.path for row in found.lost] == ['layers.0.a_log']


def test_a_tied_head_is_told(tmp_path):
  base, expert = _models()
  for model in (base, expert):
    del model['lm_head.weight']
  (note,) = _extract(base, expert, tmp_path, rank=2).notes
  assert note.startswith("'model.embed_tokens.weight' changed, and the output")


def test_models_that_do_not_fit(tmp_path):
  base, expert = _models()
  other = dict(expert, extra=_draw(2))
  del other['layers.0.k_proj.weight']
  other['lm_head.weight'] = _draw(10, 6)
  other['steps'] = _draw(3)
  with pytest.raises(problems.ProblemError) as caught:
    _extract(base, other, tmp_path, name='math')
  lines = [str(each).partition(';')[0] for each in caught.value.problems]
  assert lines == [
    'math / layers.0.k_proj.weight: is missing',
    'math / lm_head.weight: has shape [10, 6], the base has [9, 6]',
    'math / steps: is float32, the base has int64',
    'math / extra: is not in the base',
  ]
  assert caught.value.status == problems.Kind.INCOMPATIBLE
  bad = dict(expert)
  bad['layers.0.k_proj.weight'] = np.full((8, 6), np.nan, np.float32)
  with pytest.raises(problems.ProblemError, match='48 NaN') as caught:
    _extract(base, bad, tmp_path)
  assert caught.value.status == problems.Kind.INPUT
  with pytest.raises(problems.ProblemError, match='differs from the base'):
    _extract(base, dict(expert, steps=np.ones(3, np.int64)), tmp_path)
  with pytest.raises(problems.ProblemError, match='no chosen matrix differs'):
    _extract(base, dict(base), tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('options', 'text'),
  [
    ({'rank': None}, 'give rank or energy'),
    ({'rank': 0}, 'positive integer'),
    ({'rank': None, 'energy': 0.9, 'method': 'sketch'}, 'needs a rank'),
    ({'method': 'fast'}, 'method'),
    ({'energy': 1.5}, '0 < energy <= 1'),
    ({'others': 'keep'}, 'others'),
    ({'modules': 'z_proj'}, 'no leaf matches'),
  ],
)
def test_options_are_checked_first(tmp_path, options, text):
  base, expert = _models()
  with pytest.raises(ValueError, match=text):
    _extract(base, expert, tmp_path, **options)
  assert not list(tmp_path.iterdir())
