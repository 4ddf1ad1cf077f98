"""Bundles: what comes back, and what is refused."""

import concurrent.futures
import json
import math
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from experiments.checkpoints import bundles
from experiments.checkpoints import changes
from experiments.checkpoints import codecs
from experiments.checkpoints import restore
from merging import dynamic
from merging import streams
import numerics
from third_party import problems

_RANDOM = np.random.default_rng(3)
_KINDS = {
  '4bit': {},
  '8bit': {'group': 32},
  'tall': {'threshold': 0.5},
  'low_rank': {'share': 0.4},
}


def _draw(*shape):
  return _RANDOM.standard_normal(shape).astype(np.float32)


def _models(dtype=np.float32, count=3):
  base = {
    'embed.weight': _draw(13, 7),
    'q.weight': _draw(150, 9),
    'q.bias': _draw(9),
    'same': _draw(5),
    'one': _draw(),
    'none': _draw(0, 4),
    'steps': np.arange(3),
  }
  experts = {}
  for index in range(count):
    experts[f'expert {index}'] = {
      path: leaf + 0.1 * _draw(*leaf.shape)
      if leaf.dtype == np.float32 and path != 'same'
      else leaf
      for path, leaf in base.items()
    }

  def cast(model):
    return {
      path: x.astype(dtype) if x.dtype == np.float32 else x
      for path, x in model.items()
    }

  return cast(base), {name: cast(each) for name, each in experts.items()}


def _bundle(base, experts, path, kind, **settings):
  report = bundles.extract_task_vector(
    streams.InMemory(base),
    {name: streams.InMemory(each) for name, each in experts.items()},
    path,
    kind=kind,
    **settings,
  )
  return report, restore.Bundle(path)


def _restored(base, bundle, name):
  source = restore.restore(streams.InMemory(base), bundle, name)
  return {path: changes.read(source, path) for path in base}


def _wide(x):
  return x.astype(np.float64)


@pytest.mark.parametrize('bits', [4, 8])
def test_narrow_changes_are_those_of_fake_quantize(tmp_path, bits):
  base, experts = _models()
  kind, group = f'{bits}bit', 8
  _, bundle = _bundle(base, experts, tmp_path / 'b', kind, group=group)
  fmt = numerics.float4_e2m1fn if bits == 4 else numerics.float8_e4m3fn
  for name, expert in experts.items():
    restored = _restored(base, bundle, name)
    for path in ('q.weight', 'q.bias', 'one', 'embed.weight'):
      change = (expert[path] - base[path]).reshape(-1)
      groups = np.pad(change, (0, -change.size % group)).reshape(-1, group)
      kept = np.asarray(numerics.fake_quantize(groups, fmt, axis=-1))
      kept = kept.reshape(-1)[: change.size].reshape(base[path].shape)
      np.testing.assert_array_equal(restored[path], base[path] + kept)


def test_tall_masks_are_those_of_the_whole_model(tmp_path):
  base, experts = _models()
  _, bundle = _bundle(base, experts, tmp_path / 'b', 'tall', threshold=0.3)
  merged = {
    path: sum(_wide(each[path]) - base[path] for each in experts.values())
    for path in base
  }
  for name, expert in experts.items():
    restored = _restored(base, bundle, name)
    for path, leaf in base.items():
      change = _wide(expert[path]) - leaf
      mask = np.abs(change) > 0.3 * np.abs(merged[path] - change)
      expected = leaf + np.where(mask, merged[path], 0)
      np.testing.assert_allclose(restored[path], expected, rtol=1e-5, atol=1e-6)


def test_tall_agrees_with_the_library_bit_for_bit(tmp_path):
  base, experts = _models(ml_dtypes.bfloat16)
  for model in (base, *experts.values()):
    del model['none'], model['steps']
  _, bundle = _bundle(base, experts, tmp_path / 'b', 'tall')
  whole = dynamic.tall.compress(base, experts, dtype=jnp.bfloat16)
  for name in experts:
    expected = dynamic.tall.restore(whole, base, name)
    restored = _restored(base, bundle, name)
    for path, leaf in expected.items():
      np.testing.assert_array_equal(
        restored[path].view(np.uint16), np.asarray(leaf).view(np.uint16)
      )


def test_low_rank_is_the_truncated_change(tmp_path):
  base, experts = _models()
  _, bundle = _bundle(base, experts, tmp_path / 'b', 'low_rank', share=0.34)
  for name, expert in experts.items():
    restored = _restored(base, bundle, name)
    u, s, vh = np.linalg.svd(_wide(expert['q.weight']) - base['q.weight'])
    expected = base['q.weight'] + u[:, :3] * s[:3] @ vh[:3]
    np.testing.assert_allclose(restored['q.weight'], expected, atol=1e-5)
    np.testing.assert_allclose(restored['q.bias'], expert['q.bias'], atol=1e-6)


@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_pieces_sizes_and_errors(tmp_path, kind, dtype):
  """Pieces are those of the whole, and the report says what is true."""
  base, experts = _models(dtype)
  path = tmp_path / 'b'
  report, bundle = _bundle(base, experts, path, kind, **_KINDS[kind])
  assert report.size == path.stat().st_size == bundle.size
  assert bundle.experts == tuple(sorted(experts))
  assert report.full_size == 3 * sum(x.nbytes for x in base.values())
  rows = {row.path: row for row in report.rows}
  assert [rows[x].size for x in ('same', 'none', 'steps')] == [0, 0, 0]
  stored = safetensors.load_file(path)
  for leaf, row in rows.items():
    parts = [x for k, x in stored.items() if k.partition('/')[2] == leaf]
    assert row.size == sum(x.nbytes for x in parts)
  name = 'expert 1'
  source = restore.restore(streams.InMemory(base), bundle, name)
  squares = np.zeros(2)
  for leaf, start in base.items():
    whole = changes.read(source, leaf)
    assert whole.dtype == start.dtype
    pieces = np.empty_like(whole).reshape(-1)
    for begin in range(0, whole.size, 101):
      source.read(leaf, begin, pieces[begin : begin + 101])
    np.testing.assert_array_equal(pieces.reshape(whole.shape), whole)
    if start.dtype == np.float32:
      change = _wide(experts[name][leaf]) - start
      lost = _wide(experts[name][leaf]) - whole
      squares += np.sum(lost**2), np.sum(change**2)
      if rows[leaf].size:
        ratio = np.linalg.norm(lost) / np.linalg.norm(change)
        assert rows[leaf].errors[name] == pytest.approx(ratio, abs=1e-4)
  if dtype == np.float32:
    whole = math.sqrt(squares[0] / squares[1])
    assert report.errors[name] == pytest.approx(whole, abs=1e-4)
    assert report.errors[name] < {'8bit': 0.05, '4bit': 0.2}.get(kind, 1)


@pytest.mark.parametrize('kind', _KINDS)
def test_one_expert_and_no_change_are_defined(tmp_path, kind):
  base, experts = _models(count=1)
  ((name, expert),) = experts.items()
  report, bundle = _bundle(base, experts, tmp_path / 'a', kind)
  assert report.errors[name] < 0.2
  if kind == 'tall':
    for path, leaf in _restored(base, bundle, name).items():
      np.testing.assert_allclose(leaf, expert[path], atol=1e-6)
  report, bundle = _bundle(base, {'x': base}, tmp_path / 'b', kind)
  assert report.errors == {'x': 0.0}
  for path, leaf in _restored(base, bundle, 'x').items():
    np.testing.assert_array_equal(leaf, base[path])


def test_threads_read_at_the_same_time(tmp_path):
  base, experts = _models()
  _, bundle = _bundle(base, experts, tmp_path / 'b', '4bit')
  whole = _restored(base, bundle, 'expert 0')['q.weight'].reshape(-1)
  source = restore.restore(streams.InMemory(base), bundle, 'expert 0')

  def piece(start):
    out = np.empty(7, np.float32)
    source.read('q.weight', start, out)
    return np.array_equal(out, whole[start : start + 7])

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(piece, range(100)))


def test_memory_is_that_of_a_leaf(tmp_path):
  class Endless:
    """Many leaves that are made as they are read."""

    def __init__(self, step):
      self.specs = streams.InMemory(
        {f'{i}.weight': np.zeros(2**16, np.float32) for i in range(24)}
      ).specs
      self._step = step

    def read(self, path, start, out):
      place = int(path.partition('.')[0]) + np.arange(start, start + out.size)
      out[...] = np.sin(place, dtype=np.float32) * self._step

  base, experts = Endless(1), {'a': Endless(2), 'b': Endless(3)}
  whole = 24 * 2**18
  tracemalloc.start()
  try:
    bundles.extract_task_vector(base, experts, tmp_path / 'b', kind='4bit')
    assert tracemalloc.get_traced_memory()[1] < whole
    tracemalloc.reset_peak()
    source = restore.restore(base, restore.Bundle(tmp_path / 'b'), 'a')
    out = np.empty(1000, np.float32)
    for path in base.specs:
      source.read(path, 500, out)
    assert tracemalloc.get_traced_memory()[1] < whole / 6  # Four leaves.
  finally:
    tracemalloc.stop()


def test_another_base_is_refused_with_all_that_differs(tmp_path):
  base, experts = _models()
  _, bundle = _bundle(base, experts, tmp_path / 'b', '8bit')
  other = dict(base, extra=_draw(2))
  del other['one']
  other['q.bias'] = base['q.bias'] + 1
  other['q.weight'] = base['q.weight'].T
  other['embed.weight'] = base['embed.weight'].astype(np.float16)
  with pytest.raises(problems.ProblemError) as caught:
    _restored(other, bundle, 'expert 0')
  lines = {
    str(each).partition(';')[0].partition(' / ')[2]
    for each in caught.value.problems
  }
  assert lines == {
    'one: is missing',
    'extra: is not known to the bundle',
    'q.bias: has other values than the base of the bundle',
    'q.weight: is float32[9, 150], the bundle is of float32[150, 9]',
    'embed.weight: is float16[13, 7], the bundle is of float32[13, 7]',
  }
  assert caught.value.status == problems.Kind.INCOMPATIBLE
  with pytest.raises(problems.ProblemError, match='did you mean') as caught:
    _restored(base, bundle, 'expert0')
  assert caught.value.status == problems.Kind.CONFIG


def test_damaged_bundles_are_refused(tmp_path):
  base, experts = _models()
  path = tmp_path / 'b'
  _, bundle = _bundle(base, experts, path, '4bit')
  tensors = safetensors.load_file(path)
  said = json.loads(bundle._file.header.metadata['bundle'])

  def check(text, tensors=tensors, header=('arithmerge.bundle', '1'), **change):
    safetensors.save_file(
      tensors,
      tmp_path / 'bad',
      {
        'format': header[0],
        'version': header[1],
        'bundle': json.dumps(said | change),
      },
    )
    with pytest.raises(problems.ProblemError, match=text) as caught:
      restore.Bundle(tmp_path / 'bad', name='mine')
    assert caught.value.status == problems.Kind.INPUT

  check('expected a bundle', header=('pt', '1'))
  check('expected a bundle', header=('arithmerge.bundle', '2'))
  check('kind is .7bit.', kind='7bit')
  check('no kind', kind=None)
  check('does not have these settings', settings={'grup': 3})
  check('expected an even number', settings={'group': '64'})
  check('parts .* are not those', settings={'group': 2**60})
  check('parts .* are not those', experts=['a'])
  check('names of experts', experts=[])
  check('names of experts', experts=[1])
  check('no leaves', leaves=[])
  check('is a part of no leaf', leaves={})
  check('its shape is not described', leaves=dict(said['leaves'], one=3))
  check(
    'other types',
    dict(tensors, **{'scales/one': tensors['scales/one'].astype(np.int32)}),
  )
  short = dict(tensors)
  del short['codes/one']
  check('are not those of a leaf', short)


@pytest.mark.parametrize(
  ('kind', 'settings', 'text'),
  [
    ('2bit', {}, 'kind'),
    ('4bit', {'group': 5}, 'even number'),
    ('4bit', {'share': 0.5}, 'does not have these settings'),
    ('tall', {'threshold': -1}, 'threshold'),
    ('tall', {'dtype': 'int8'}, 'dtype'),
    ('low_rank', {'share': 2}, 'share'),
  ],
)
def test_settings_are_checked_first(tmp_path, kind, settings, text):
  base, experts = _models()
  with pytest.raises(ValueError, match=text):
    _bundle(base, experts, tmp_path / 'b', kind, **settings)
  assert not list(tmp_path.iterdir())


def test_experts_that_do_not_fit_leave_no_file(tmp_path):
  base, experts = _models()
  experts['expert 1']['q.bias'] = np.full(9, np.inf, np.float32)
  with pytest.raises(problems.ProblemError, match='9 NaN or infinite'):
    _bundle(base, experts, tmp_path / 'b', '4bit')
  experts['expert 1']['q.bias'] = _draw(8)
  with pytest.raises(problems.ProblemError, match=r'has shape \[8\]'):
    _bundle(base, experts, tmp_path / 'b', '4bit')
  with pytest.raises(problems.ProblemError, match='no expert'):
    _bundle(base, {}, tmp_path / 'b', '4bit')
  assert not list(tmp_path.iterdir())


def test_codecs_know_their_parts():
  shapes = {'codes': (2, 64), 'scales': (2, 2)}
  assert codecs.make('4bit').fits(shapes, 2, (70,))
  assert not codecs.make('4bit').fits(shapes, 2, (60,))
  assert not codecs.make('low_rank').fits({'left': (2, 3, 1)}, 2, (3, 3))


def test_a_directory_is_no_bundle(tmp_path):
  with pytest.raises(
    problems.ProblemError, match='expected a bundle'
  ) as caught:
    restore.Bundle(tmp_path, name='math')
  assert str(caught.value).startswith('math: ')
  assert 'the file that `extract` wrote' in str(caught.value)
