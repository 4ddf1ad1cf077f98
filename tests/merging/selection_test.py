"""What a host selects is what a device selects, bit for bit."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging import host
from merging import outline
from merging import streams
from tests.merging import drive

SIZE = 36  # Few shapes: each compiles.
KEY = jax.random.key(7)


def leaves(kind, seed):
  """A base of one leaf, and two experts with many equal magnitudes."""
  rng = np.random.default_rng(seed)
  drawn = {
    'generic': lambda: rng.normal(size=SIZE),
    'ties': lambda: rng.integers(-2, 3, size=SIZE) / 4,
    'constant': lambda: np.full(SIZE, rng.integers(-1, 2) / 2),
    'zero': lambda: np.zeros(SIZE),
    'tiny': lambda: rng.integers(-3, 4, size=SIZE) * 1e-44,
  }[kind]
  experts = {
    name: {'w': drawn().astype(np.float32).reshape(4, 9)} for name in 'xy'
  }
  return {'w': np.zeros((4, 9), np.float32)}, experts


def selecting(transform):
  spec = merging.LeafSpec('w', (4, 9), np.dtype(np.float32))
  transform.init((spec,), ('x', 'y'))
  return transform.selection(spec) is not None


def trims(density, ties):
  return merging.chain(
    merging.trim(density, scope='tensor', ties=ties), merging.mean()
  )


def assert_selected(transform, base, experts):
  assert selecting(transform)
  wanted = merging.merge(transform, base, experts)['w']
  for piece in (10, 18):  # Pieces of 10 and 6, and of 18.
    found = drive.stream(transform, base, experts, piece=piece)['w']
    np.testing.assert_array_equal(
      found.view(np.uint32), np.asarray(wanted).view(np.uint32)
    )


@hypothesis.given(
  st.sampled_from(['generic', 'ties', 'constant', 'zero', 'tiny']),
  st.sampled_from([0.0, 1e-9, 1 / SIZE, 0.2, 0.5, 35 / SIZE, 1.0]),
  st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=60)
@pytest.mark.parametrize('ties', ['threshold', 'index'])
def test_trim(ties, kind, density, seed):
  assert_selected(trims(density, ties), *leaves(kind, seed))


@hypothesis.given(
  st.sampled_from(['generic', 'ties', 'constant', 'zero']),
  st.sampled_from([(0.0, 0.0), (0.5, 0.1), (0.9, 0.1), (0.3, 0.7), (0.0, 0.5)]),
  st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=40)
def test_band(kind, ends, seed):
  transform = merging.chain(merging.keep_band(*ends), merging.total())
  assert_selected(transform, *leaves(kind, seed))


@pytest.mark.parametrize('ties', ['threshold', 'index'])
@pytest.mark.parametrize('scope', ['global', 'tensor'])
def test_inside_a_merge_of_each_leaf(scope, ties):
  def make(spec):
    return merging.trim(0.3, scope=scope, ties=ties)

  base, experts = leaves('ties', 3)
  alone = merging.chain(merging.each(make), merging.mean())
  assert_matches(alone, base, experts)

  def whole(spec):
    return merging.chain(make(spec), merging.mean())

  assert_matches(merging.each(whole), base, experts)
  # A leaf is the whole model.
  np.testing.assert_array_equal(
    merging.merge(merging.each(whole), base, experts)['w'],
    merging.merge(whole(None), base, experts)['w'],
  )
  if scope == 'tensor':
    assert selecting(merging.each(whole))


def assert_matches(transform, base, experts):
  wanted = merging.merge(transform, base, experts)['w']
  found = drive.stream(transform, base, experts, piece=10)['w']
  np.testing.assert_array_equal(found, wanted)


def test_steps_that_need_more_than_entries_keep_the_leaf_whole():
  tensor = merging.trim(0.3, scope='tensor')
  drops = merging.chain(tensor, merging.mean())
  assert selecting(drops)
  assert not selecting(merging.chain(tensor, tensor, merging.mean()))
  assert not selecting(merging.chain(merging.scale(2.0), drops))
  assert not selecting(merging.chain(tensor, merging.elect_sign()))
  assert not selecting(merging.average())


def test_a_leaf_selected_from_comes_in_pieces():
  base, experts = leaves('generic', 0)
  run = outline.Outline(
    trims(0.5, 'index'),
    streams.InMemory(base),
    {name: streams.InMemory(each) for name, each in experts.items()},
    jnp.float32,
    None,
    {},
  )
  [job] = run.jobs(10)
  assert job.selection is not None
  sizes = [(each.start, each.size) for each in run.pieces(job, 10)]
  assert sizes == [(0, 10), (10, 10), (20, 10), (30, 6)]
  [job] = run.jobs(SIZE)  # One piece: a program does it.
  assert job.selection is None


def prunes(rescale, window=0.3):
  return merging.chain(
    merging.magprune(0.5, window, key=KEY, rescale=rescale), merging.total()
  )


def drops(rescale):
  return merging.chain(
    merging.drop_and_rescale(0.4, key=KEY, rescale=rescale), merging.total()
  )


@hypothesis.given(
  st.sampled_from(['generic', 'ties', 'constant', 'zero', 'tiny']),
  st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=15)
@pytest.mark.parametrize(
  'transform',
  [
    prunes('expectation'),
    prunes('none'),
    prunes('none', window=0.0),
    merging.chain(merging.keep_band(0.3, 0.2, scope='row'), merging.total()),
    merging.on_matrices(prunes('none'), layout='out_in'),
  ],
  ids=['expectation', 'none', 'flat', 'band of rows', 'matrices'],
)
def test_rows(transform, kind, seed):
  assert_selected(transform, *leaves(kind, seed))


@pytest.mark.parametrize('kind', ['generic', 'ties', 'zero'])
@pytest.mark.parametrize('rescale', ['l1', 'l2', 'linf'])
@pytest.mark.parametrize('make', [prunes, drops])
def test_norms(make, rescale, kind):
  base, experts = leaves(kind, 5)
  transform = make(rescale)
  assert selecting(transform)
  wanted = merging.merge(transform, base, experts)['w']
  for piece in (10, 18):
    found = drive.stream(transform, base, experts, piece=piece)['w']
    # The same entries are left, and the sums are rounded otherwise.
    np.testing.assert_array_equal(found == 0, wanted == 0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  'transform',
  [
    merging.slerp(0.3, toward='x'),
    merging.nuslerp({'x': 1, 'y': 2}),
    merging.nuslerp({'x': 1, 'y': 2}, of='deltas', axis=1, layout='out_in'),
    merging.multislerp(),
    merging.karcher(),
    merging.model_stock(),
    merging.model_stock(axis=1, layout='out_in'),
  ],
  ids=['slerp', 'nuslerp', 'rows', 'multislerp', 'karcher', 'stock', 'filters'],
)
def test_norms_and_angles_are_found_in_pieces(transform):
  base, experts = leaves('generic', 2)
  base = {'w': base['w'] + 1}
  source = streams.InMemory(base)
  models = {name: streams.InMemory(each) for name, each in experts.items()}
  run = outline.Outline(transform, source, models, jnp.float32, None, {}, 18)
  assert not any(job.whole for job in run.jobs(18))
  wanted = merging.merge(transform, base, experts)['w']
  for options in ({'workers': 1}, {'workers': 3, 'max_bytes': 3000}):
    found = drive.stream(transform, base, experts, piece=18, **options)['w']
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
  again = drive.stream(transform, base, experts, piece=18)['w']
  np.testing.assert_array_equal(found, again)


def test_what_a_bound_has_no_room_for_is_read_again():
  transform = merging.model_stock()
  base, experts = leaves('generic', 0)
  models = {name: streams.InMemory(each) for name, each in experts.items()}
  merged = []
  for max_bytes, held in ((None, True), (1290, False)):
    run = outline.Outline(
      transform,
      streams.InMemory(base),
      models,
      jnp.float32,
      None,
      {},
      18,
      max_bytes,
    )
    assert {run.held(job) for job in run.jobs(18)} == {held}
    merged.append(
      drive.stream(transform, base, experts, piece=18, max_bytes=max_bytes)
    )
  np.testing.assert_array_equal(merged[0]['w'], merged[1]['w'])


def test_rows_that_are_turned_stay_whole():
  kernels = merging.on_matrices(prunes('none'), layout='in_out')
  assert not selecting(kernels)
  assert_matches(kernels, *leaves('generic', 0))


@pytest.mark.parametrize('shape', [(30,), (3, 2, 5)])
def test_other_leaves_are_one_row(shape):
  rng = np.random.default_rng(0)
  base = {'w': np.zeros(shape, np.float32)}
  experts = {
    name: {'w': rng.normal(size=shape).astype(np.float32)} for name in 'xy'
  }
  assert_matches(prunes('none'), base, experts)


def test_pieces_are_of_whole_rows():
  base, experts = leaves('generic', 0)
  run = outline.Outline(
    prunes('none'),
    streams.InMemory(base),
    {name: streams.InMemory(each) for name, each in experts.items()},
    jnp.float32,
    None,
    {},
    piece=20,
  )
  jobs = run.jobs(20)
  assert [(job.start, job.size) for job in jobs] == [(0, 18), (18, 18)]
  assert {run.shape(job) for job in jobs} == {(2, 9)}
  # A row that is longer than a piece is one.
  assert [job.size for job in run.jobs(5)] == [9] * 4


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40)
def test_a_host_orders_rows_as_a_stable_sort(data):
  rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
  values = data.draw(
    st.lists(st.integers(0, 3), min_size=rows * width, max_size=rows * width)
  )
  magnitudes = np.array(values, np.float32).reshape(rows, width) / 4
  least = np.array(
    data.draw(
      st.lists(
        st.integers(0, width), min_size=rows * width, max_size=rows * width
      )
    ),
    np.uint32,
  ).reshape(rows, width)
  place = np.empty((rows, width), int)
  for row, own in enumerate(magnitudes):
    order = sorted(range(width), key=lambda at: own[at])
    place[row, order] = np.arange(width)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(host, '_ROWS', data.draw(st.sampled_from([1, 8, 100])))
    np.testing.assert_array_equal(host.places(magnitudes), place)
    np.testing.assert_array_equal(host.above(magnitudes, least), place >= least)


@hypothesis.given(
  st.lists(st.integers(0, 4), min_size=1, max_size=30), st.data()
)
def test_a_host_finds_what_a_stable_sort_finds(values, data):
  rank = data.draw(st.integers(1, len(values)))
  bits = np.array(values, np.uint32)
  order = sorted(range(len(values)), key=lambda at: values[at])
  value, number, equal = host.kth(bits, rank)
  assert equal == np.count_nonzero(bits == value)
  assert value == values[order[rank - 1]]
  assert host.place(bits, value, number) == order[rank - 1] + 1
  assert host.place(bits, value, 0) == 0
  assert host.place(bits, value, len(values) + 1) == host.NOWHERE


@pytest.mark.parametrize('kind', ['all', 'few', 'mostly zero', 'in order'])
def test_a_host_looks_through_many_entries_with_the_same_result(
  kind, monkeypatch
):
  monkeypatch.setattr(host, '_FEW', 8)
  monkeypatch.setattr(host, '_SAMPLE', 4)  # Which often brackets nothing.
  rng = np.random.default_rng(0)
  for size in (9, 50, 1000):
    values = {
      'all': rng.integers(0, 2**31 - 1, size),
      'few': rng.integers(0, 3, size),
      'mostly zero': rng.integers(1, 2**20, size) * (rng.random(size) < 0.2),
      'in order': np.arange(size),
    }[kind].astype(np.uint32)
    ordered = np.sort(values)
    for rank in {1, 2, size // 2, size - 1, size}:
      value = ordered[rank - 1]
      before = int(np.searchsorted(ordered, value))
      equal = int(np.count_nonzero(values == value))
      assert host.kth(values, rank) == (value, rank - before, equal)
