"""Streaming: pieces, threads and limits change no bit; what is wrong is said.

That every method streams to what it gives in memory is a test of the table.
"""

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import adapters
from merging import outline
from merging import selections
from merging import streaming
from merging import streams
from tests.merging import drive
from tests.merging import fixtures
from tests.merging.adapters import models as adapted


class Watched:
  """A source or sink that counts calls and the bytes that are being moved."""

  def __init__(self, inner: Any, fail: Any = None):
    self.inner = inner
    self.specs: streams.Specs = getattr(inner, 'specs', {})
    self.fail = fail
    self.calls = 0
    self.entries = []
    self._lock = threading.Lock()

  def _count(self, path, size):
    with self._lock:
      self.calls += 1
      self.entries.append(size)
      if self.fail and self.calls >= self.fail[0]:
        raise self.fail[1]

  def read(self, path, start, out):
    self._count(path, out.size)
    self.inner.read(path, start, out)

  def write(self, path, start, values):
    self._count(path, values.size)
    self.inner.write(path, start, values)


def model(value=1.0, dtype=np.float32, **more):
  leaves = {'a': np.full((6, 8), value), 'b': np.full(40, value)}
  return {path: leaf.astype(dtype) for path, leaf in leaves.items()} | more


def source(*args, **more):
  return streams.InMemory(model(*args, **more))


def collected(base):
  return streams.Collected(base.specs)


def assert_same(found, wanted):
  wanted = merging.tree.flatten(wanted)
  assert set(found) == set(wanted)
  for path, x in wanted.items():
    assert found[path].dtype == x.dtype, path
    np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.parametrize(
  'transform',
  [
    merging.ties(0.3),
    merging.ties(0.3, ties='index'),
    merging.ties(0.3, scope='tensor', ties='index'),
    merging.dare(0.5, merging.average(), key=jax.random.key(1)),
    merging.della(key=jax.random.key(1), layout='out_in'),
    merging.sce(),
  ],
  ids=['ties', 'ties_index', 'ties_tensor', 'dare', 'della', 'sce'],
)
def test_pieces_threads_and_limits_change_no_bit(transform):
  base, experts = fixtures.part(*fixtures.models('lattice'), 'bias', 'tall')
  merged = merging.merge(transform, base, experts)
  for options in (  # Pieces of 13, and one of 9.
    {'piece': 13, 'workers': 1},
    {'piece': 13, 'workers': 5, 'max_bytes': 4000},
    {'max_bytes': 1 << 20},
  ):
    assert_same(drive.stream(transform, base, experts, **options), merged)


def test_data_of_experts_is_read_from_sources():
  base, experts = fixtures.models()
  importance = {
    name: {'head': np.abs(np.asarray(each['head'])) + 1}
    for name, each in experts.items()
  }
  transform = merging.weighted_mean('importance')
  extra = {'importance': importance}
  merged = merging.merge(transform, base, experts, **extra)
  assert_same(drive.stream(transform, base, experts, extra, piece=7), merged)


@pytest.mark.parametrize('base_type', [jnp.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize('out_dtype', [None, np.float16, np.float32])
def test_types_may_differ_and_results_are_rounded_once(base_type, out_dtype):
  base, experts = fixtures.part(*fixtures.models(), 'wide')
  base = {'wide': base['wide'].astype(base_type)}
  specs = streams.InMemory(base).specs
  if out_dtype is not None:
    specs = {k: s._replace(dtype=np.dtype(out_dtype)) for k, s in specs.items()}
  sink = streams.Collected(specs)
  merging.merge_stream(
    merging.task_arithmetic(0.5),
    streams.InMemory(base),
    {name: streams.InMemory(each) for name, each in experts.items()},
    sink,
    out_dtype=out_dtype,
    piece=16,
  )
  start = np.asarray(base['wide'], np.float32)
  change = sum(np.asarray(each['wide']) - start for each in experts.values())
  exact = start + np.float32(0.5) * change
  ulp = jnp.finfo(out_dtype or base_type).eps
  assert sink.leaves['wide'].dtype == np.dtype(out_dtype or base_type)
  np.testing.assert_allclose(
    sink.leaves['wide'].astype(np.float32),
    exact,
    rtol=0.51 * float(ulp) if ulp > 1e-6 else 2e-6,
    atol=1e-6,
  )


def test_other_kinds_of_leaves():
  more = {
    'scalar': np.float32(2).reshape(()),
    'empty': np.zeros((0, 3), np.float32),
    'steps': np.arange(50),
    'flag': np.array(True),
  }
  base = source(1.0, **more)
  expert = source(2.0, **more | {'scalar': np.float32(4).reshape(())})
  sink = collected(base)
  merging.merge_stream(
    merging.average(), base, {'x': expert, 'y': base}, sink, piece=16
  )
  expected = model(1.5, **more | {'scalar': np.float32(3).reshape(())})
  assert_same(sink.leaves, expected)


def test_leaves_that_are_not_merged_have_to_agree():
  other = np.arange(50)
  other[40] = -1
  base, sink = source(steps=np.arange(50)), collected(source(steps=other))
  with pytest.raises(
    streaming.ValuesError, match="'bad' at 'steps': differs from 'base'; int64"
  ):
    merging.merge_stream(
      merging.average(),
      base,
      {'bad': source(steps=other), 'good': base},
      sink,
      piece=16,
    )


def test_without_a_base_methods_speak_of_parameters():
  sink = collected(source())
  experts = {'x': source(1.0), 'y': source(3.0)}
  merging.merge_stream(merging.average(), None, experts, sink, piece=16)
  assert_same(sink.leaves, model(2.0))


def test_some_leaves_can_be_asked_for_and_statistics_are_of_all():
  base, experts = fixtures.models()
  transform = merging.ties(0.3)
  merged = merging.tree.flatten(merging.merge(transform, base, experts))
  paths = ['head', 'step']
  specs = streams.InMemory(base).specs
  sink = streams.Collected({path: specs[path] for path in paths})
  merging.merge_stream(
    transform,
    streams.InMemory(base),
    {name: streams.InMemory(each) for name, each in experts.items()},
    sink,
    paths=paths,
  )
  assert_same(sink.leaves, {path: merged[path] for path in paths})


@pytest.mark.parametrize('ahead', [False, True])
def test_an_adapter_is_taken_as_the_change_it_makes(ahead, monkeypatch):
  if ahead:  # As the programs of large leaves are compiled.
    monkeypatch.setattr(outline, '_LARGE', 0)
  # Exact products and sums, so that no order of them shows.
  base = {
    'k': np.arange(24, dtype=np.float32).reshape(6, 4),
    'b': np.ones(4, np.float32),
  }
  rng = np.random.default_rng(0)

  def lora():
    a, b = (
      jnp.asarray(rng.integers(-2, 3, shape), jnp.float32)
      for shape in ((6, 2), (2, 4))
    )
    return {'k': adapters.Lora(a, b)}

  loras = {'x': lora(), 'y': lora()}
  sink = streams.Collected(streams.InMemory(base).specs)
  merging.merge_stream(
    merging.average(), streams.InMemory(base), loras, sink, piece=5
  )
  assert_same(
    sink.leaves, adapters.merge_adapters(merging.average(), base, loras)
  )


@pytest.mark.parametrize('first', ['l1', 'expectation'])
def test_what_is_selected_is_for_the_first_step_alone(first):
  base = {'w': np.zeros(40, np.float32)}
  experts = {
    name: {'w': np.arange(1, 41, dtype=np.float32) * sign}
    for name, sign in (('x', 1), ('y', -2))
  }
  keys = jax.random.split(jax.random.key(0))
  transform = merging.chain(
    merging.drop_and_rescale(0.5, key=keys[0], rescale=first),
    merging.drop_and_rescale(0.25, key=keys[1]),
    merging.total(),
  )
  sources = {name: streams.InMemory(each) for name, each in experts.items()}
  sink = streams.Collected(streams.InMemory(base).specs)
  merging.merge_stream(
    transform, streams.InMemory(base), sources, sink, piece=7
  )
  wanted = merging.merge(transform, base, experts)['w']
  np.testing.assert_allclose(sink.leaves['w'], wanted, rtol=1e-6)


def test_pieces_are_few_enough_for_counts_to_add_up():
  entries = 3 * 2**15
  model = streams.InMemory({'w': np.zeros(entries, np.float32)})
  run = outline.Outline(
    merging.ties(), model, {'x': model}, jnp.float32, None, {}
  )
  assert len(run.jobs(1)) <= 2**15


def test_adapters_and_models_mix():
  base = adapted.base()
  lora = adapted.expert(1)
  full = adapters.apply(base, adapted.expert(2))
  changed = adapters.apply(base, lora)
  expected = merging.tree.flatten(
    merging.merge(merging.average(), base, {'l': changed, 'm': full})
  )
  origin = streams.InMemory(base)
  sink = streams.Collected(origin.specs)
  merging.merge_stream(
    merging.average(),
    origin,
    {'l': lora, 'm': streams.InMemory(full)},
    sink,
    piece=24,
  )
  for path, x in expected.items():
    np.testing.assert_allclose(sink.leaves[path], x, atol=1e-5, err_msg=path)


@pytest.mark.parametrize('who', ['base', 'x'])
@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_named(who, value):
  bad = model()
  bad['a'][3, 5], bad['a'][4, 1] = value, value
  models = {'base': source(), 'x': source(), 'y': source()}
  models[who] = streams.InMemory(bad)
  base = models.pop('base')
  sink = Watched(collected(base))
  for transform in (merging.average(), merging.ties(0.3)):
    with pytest.raises(
      streaming.ValuesError,
      match=rf"^'?{who}'? at 'a': 2 values are .* the first at \[3, 5]",
    ):
      merging.merge_stream(transform, base, models, sink)
  merging.merge_stream(
    merging.average(), base, models, collected(base), finite=False
  )


def test_a_result_beyond_the_type_of_the_output_is_refused():
  base = source(0.0)
  specs = {k: s._replace(dtype=np.dtype('f2')) for k, s in base.specs.items()}
  with pytest.raises(
    streaming.ValuesError, match=r"'a': 48 values.*beyond the range of float16"
  ):
    merging.merge_stream(
      merging.task_arithmetic(2.0),
      base,
      {'x': source(6e4)},
      streams.Collected(specs),
      out_dtype=np.float16,
    )


def test_a_leaf_that_needs_more_than_allowed_is_refused_before_a_read():
  shape = (700, 500)
  base = Watched(streams.InMemory({'w': np.zeros(shape, np.float32)}))
  with pytest.raises(
    streaming.MemoryLimitError, match=r"leaf 'w' of shape \(700, 500\) needs \d"
  ):
    merging.merge_stream(
      merging.sce(),
      base,
      {'x': base, 'y': base},
      collected(base),
      max_bytes=1_000_000,
    )
  assert base.calls == 0
  # Entry by entry it fits.
  merging.merge_stream(
    merging.average(),
    base,
    {'x': base, 'y': base},
    collected(base),
    max_bytes=1_000_000,
    piece=10_000,
  )
  assert max(base.entries) == 10_000


def test_what_jobs_hold_stays_below_the_limit(monkeypatch):
  held, most, lock = 0, 0, threading.Lock()
  read = streaming._Work._read

  def reading(self, job, *args):
    nonlocal held, most
    with lock:
      held += self._run.cost(job)
      most = max(most, held)
    return read(self, job, *args)

  report = streaming._Work._report

  def reporting(self, stage, spec, job):
    nonlocal held
    with lock:
      held -= self._run.cost(job)
    report(self, stage, spec, job)

  monkeypatch.setattr(streaming._Work, '_read', reading)
  monkeypatch.setattr(streaming._Work, '_report', reporting)
  base = source()
  merging.merge_stream(
    merging.average(),
    base,
    {'x': source(2.0), 'y': source(3.0)},
    collected(base),
    max_bytes=700,
    piece=8,
    workers=8,
  )
  assert held == 0
  assert 0 < most <= 700


def ended(function):
  """Returns the error of a function that has to end within a minute."""
  errors = []

  def run():
    try:
      function()
    except BaseException as error:
      errors.append(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(60)
  assert not thread.is_alive()
  [error] = errors
  return error


@pytest.mark.parametrize('call', [1, 4])
@pytest.mark.parametrize('where', ['base', 'expert', 'sink'])
@pytest.mark.parametrize('workers', [1, 4])
def test_an_error_of_a_thread_comes_out_once_and_threads_end(
  where, call, workers
):
  error = OSError('disk is gone')
  fail = (call, error)
  base = Watched(source(), fail=fail if where == 'base' else None)
  expert = Watched(source(2.0), fail=fail if where == 'expert' else None)
  sink = Watched(collected(base), fail=fail if where == 'sink' else None)
  caught = ended(
    lambda: merging.merge_stream(
      merging.average(), base, {'x': expert}, sink, piece=8, workers=workers
    )
  )
  assert caught is error
  assert any('while merging leaf' in note for note in error.__notes__)
  left = [x for x in threading.enumerate() if x.name.startswith('merge')]
  assert not left


def test_an_error_of_the_caller_ends_the_merge_too():
  def interrupt(progress):
    raise KeyboardInterrupt

  base = source()
  caught = ended(
    lambda: merging.merge_stream(
      merging.average(), base, {'x': base}, collected(base), progress=interrupt
    )
  )
  assert isinstance(caught, KeyboardInterrupt)
  assert not [x for x in threading.enumerate() if x.name.startswith('merge')]


@pytest.mark.parametrize('sweeps', [0, 2])
def test_progress_adds_up_to_the_plan(sweeps):
  transform = {
    0: merging.average(),
    2: merging.chain(merging.trim(0.3), merging.mean()),
  }[sweeps]
  base = source()
  experts = {'x': source(2.0), 'y': source(3.0, jnp.bfloat16)}
  seen = []
  merging.merge_stream(
    transform, base, experts, collected(base), progress=seen.append, piece=16
  )
  plan = merging.plan(transform, base, experts)
  assert plan.sweeps == sweeps
  assert seen[-1].done == seen[-1].total == plan.bytes_read
  assert [each.done for each in seen] == sorted(each.done for each in seen)
  assert len({each.stage for each in seen}) == sweeps + 1
  assert seen[-1].stage == 'merge'


def test_what_the_plan_says_is_what_is_read_and_written():
  transform = merging.chain(merging.trim(0.3), merging.mean())
  base, expert = Watched(source()), Watched(source(2.0))
  sink = Watched(collected(base))
  experts = {'x': expert, 'y': expert}
  merging.merge_stream(transform, base, experts, sink)
  plan = merging.plan(transform, base, experts)
  assert 4 * (sum(base.entries) + sum(expert.entries)) == plan.bytes_read
  assert 4 * sum(sink.entries) == plan.bytes_written
  assert plan.largest == 'a'


@pytest.mark.parametrize('held', [0, 1 << 20])
@pytest.mark.parametrize(
  'transform',
  [
    merging.chain(merging.trim(0.3, scope='tensor'), merging.mean()),
    merging.chain(
      merging.drop_and_rescale(0.5, key=jax.random.key(0), rescale='l1'),
      merging.mean(),
    ),
    merging.della(key=jax.random.key(0), layout='out_in'),
    merging.model_stock(),
  ],
  ids=['numbers', 'factors', 'rows', 'sums'],
)
def test_the_plan_counts_what_is_read_to_select(transform, held, monkeypatch):
  for kind in (selections.Selection, selections.Sums):
    monkeypatch.setattr(kind, 'hold', held)
  monkeypatch.setattr(outline, 'PIECE', 16)
  base, expert = Watched(source()), Watched(source(2.0))
  experts = {'x': expert, 'y': expert}
  seen = []
  merging.merge_stream(
    transform, base, experts, collected(base), piece=16, progress=seen.append
  )
  plan = merging.plan(transform, base, experts)
  assert 4 * (sum(base.entries) + sum(expert.entries)) == plan.bytes_read
  assert seen[-1].done == seen[-1].total == plan.bytes_read


def refused(match, error=ValueError, transform=None, base=None, **options):
  origin = Watched(base or source())
  experts = options.pop('experts', {'x': source(2.0)})
  sink = Watched(collected(origin))
  with pytest.raises(error, match=match):
    merging.merge_stream(
      transform or merging.average(), origin, experts, sink, **options
    )
  assert origin.calls == sink.calls == 0


def test_models_that_differ_are_refused_with_all_that_differs():
  one = {'a': np.zeros((6, 9), np.float32), 'c': np.zeros(1, np.float32)}
  with pytest.raises(ValueError, match='models differ') as caught:
    merging.merge_stream(
      merging.average(),
      source(),
      {'x': streams.InMemory(one)},
      collected(source()),
    )
  said = str(caught.value)
  for part in (
    "'x' at 'a': shape (6, 9), expected that of base, (6, 8)",
    "'x' has no leaf 'b'",
    "'x' has a leaf 'c', which base has not",
  ):
    assert part in said


def test_arguments_are_checked_before_a_read():
  refused("no leaf 'aa'; did you mean 'a'", paths=['aa'])
  refused("takes no 'importance'", TypeError, importance={'x': source()})
  refused(
    "takes 'importance': pass importance= a mapping",
    TypeError,
    transform=merging.weighted_mean('importance'),
  )
  refused('mapping', TypeError, experts=[source()])
  refused("'x' adapts 'c', which base has not", experts={'x': {'c': None}})
  with pytest.raises(ValueError, match='adapters need the base they change'):
    merging.merge_stream(
      merging.average(), None, {'x': {}}, collected(source())
    )
  with pytest.raises(ValueError, match='base has no leaf'):
    merging.plan(
      merging.average(), streams.InMemory({}), {'x': streams.InMemory({})}
    )


def test_the_plan_bounds_what_a_larger_leaf_needs():
  small, large = (
    streams.InMemory({'w': np.zeros((side, 64), np.float32)})
    for side in (64, 65_536)
  )
  peaks = [
    merging.plan(
      merging.average(), each, {'x': each, 'y': each}, workers=2
    ).peak_bytes
    for each in (small, large)
  ]
  assert peaks[0] < peaks[1] <= 2 * 32 * outline.PIECE
  whole = merging.plan(merging.sce(), large, {'x': large, 'y': large})
  assert whole.peak_bytes > 5 * large.specs['w'].shape[0] * 64 * 4


class Numbered:
  """A leaf of any size whose entries say in which piece they are."""

  def __init__(self, size, scale=1):
    spec = merging.LeafSpec('w', (size,), np.dtype(np.float16))
    self.specs: streams.Specs = {'w': spec}
    self._scale = scale

  def read(self, path, start, out):
    assert path == 'w'
    out.fill(self._scale * (start // outline.PIECE % 512))


class Numbers:
  """A sink of such leaves, which keeps what it needs to be checked."""

  def __init__(self):
    self.found = {}

  def write(self, path, start, values):
    assert path == 'w'
    assert values.min() == values.max()
    self.found[start] = (values.size, float(values[0]))


@pytest.mark.parametrize(
  ('transform', 'size', 'bits'),
  [
    (merging.average(), 2**32, 32),
    (merging.ties(scope='tensor'), 2**31, 31),
    (merging.chain(merging.trim(0.2), merging.total()), 2**31, 31),
    (merging.slerp(0.5), 2**31, 31),
  ],
)
def test_a_leaf_whose_places_cannot_be_counted_is_refused(
  transform, size, bits
):
  with pytest.raises(ValueError, match=f'places are counted in {bits} bits'):
    merging.plan(transform, Numbered(size), {'a': Numbered(size)})
  merging.plan(
    merging.average(), Numbered(2**32 - 1), {'a': Numbered(2**32 - 1)}
  )


@pytest.mark.slow
def test_a_leaf_of_more_than_31_bits_comes_in_pieces():
  size = 2**31 + 3 * outline.PIECE + 5
  sink = Numbers()
  merging.merge_stream(
    merging.task_arithmetic(0.5), Numbered(size), {'a': Numbered(size, 3)}, sink
  )
  starts = range(0, size, outline.PIECE)
  assert sink.found == {
    start: (
      min(outline.PIECE, size - start),
      2 * (start // outline.PIECE % 512),
    )
    for start in starts
  }
