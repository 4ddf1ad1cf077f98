"""Matrices in the papers' frame, and layers stacked in one leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.merging import drive
from tests.merging import fixtures


def test_a_folded_kernel_merges_like_a_matrix():
  rng = np.random.default_rng(0)

  def draw():
    return {
      'query': jnp.asarray(rng.normal(size=(4, 2, 3)).astype(np.float32)),
      'bias': jnp.asarray(rng.normal(size=(2, 3)).astype(np.float32)),
      'out': jnp.asarray(rng.normal(size=(2, 3, 4)).astype(np.float32)),
    }

  def flat(params):
    shapes = {'query': (4, 6), 'bias': (6,), 'out': (6, 4)}
    return {k: x.reshape(shapes[k]) for k, x in params.items()}

  base, experts = draw(), {'x': draw(), 'y': draw()}
  axes = {'query': (1, 2), 'bias': (2,), 'out': (2, 1)}
  by_place = merging.ties(0.3, scope='tensor', ties='index')
  for inner in (merging.tsv(), by_place):
    merged = merging.merge(merging.folded(inner, axes), base, experts)
    expected = merging.merge(
      inner, flat(base), {k: flat(x) for k, x in experts.items()}
    )
    for path, x in flat(merged).items():
      np.testing.assert_allclose(x, expected[path], rtol=0, atol=1e-5)


def test_both_layouts_show_a_matrix_alike():
  """A merge that treats rows and columns differently commutes with `.T`."""
  base, experts = fixtures.part(*fixtures.models(), 'wide', 'bias')

  def rows(deltas):  # [out, in]: the mean over inputs, for every output.
    return jnp.broadcast_to(
      jnp.mean(deltas[0], axis=1, keepdims=True), deltas[0].shape
    )

  inner = merging.combine_deltas(rows)
  flax = merging.merge(merging.on_matrices(inner), base, experts)
  turn = lambda params: {**params, 'wide': params['wide'].T}  # noqa: E731
  torch = merging.merge(
    merging.on_matrices(inner, layout='out_in'),
    turn(base),
    {name: turn(each) for name, each in experts.items()},
  )
  np.testing.assert_array_equal(flax['wide'], torch['wide'].T)
  by_pattern = merging.merge(
    merging.on_matrices(inner, layout={'bias': 'in_out', '.': 'out_in'}),
    turn(base),
    {name: turn(each) for name, each in experts.items()},
  )
  np.testing.assert_array_equal(by_pattern['wide'], torch['wide'])
  delta = np.asarray(experts['code']['wide'] - base['wide'])
  expected = np.asarray(base['wide']) + delta.mean(axis=0)  # wide is [in, out].
  np.testing.assert_allclose(flax['wide'], expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('otherwise', 'expected'),
  [
    ('base', 0.0),
    ('mean', 1.5),
    ('sum', 3.0),
    (merging.task_arithmetic(0.1), 0.3),
  ],
)
def test_what_is_no_matrix_has_a_policy(otherwise, expected):
  base = {'w': jnp.zeros((2, 2)), 'b': jnp.zeros(2), 'c': jnp.zeros((1, 2, 2))}
  experts = {
    'x': jax.tree.map(jnp.ones_like, base),
    'y': jax.tree.map(lambda x: 2 * jnp.ones_like(x), base),
  }
  transform = merging.on_matrices(merging.total(), otherwise, leaves='w')
  merged = merging.merge(transform, base, experts)
  np.testing.assert_allclose(merged['w'], 3.0)
  for name in ('b', 'c'):
    np.testing.assert_allclose(merged[name], expected, rtol=1e-6)


@pytest.mark.parametrize('shape', [(2, 3), (3, 3)])
def test_data_come_in_the_frame_too(shape):
  rng = np.random.default_rng(0)

  def draw():
    return {'w': jnp.asarray(rng.random(shape).astype(np.float32))}

  base, experts = draw(), {'x': draw(), 'y': draw()}
  weights = {'x': draw(), 'y': draw()}
  for layout in ('in_out', 'out_in'):
    transform = merging.on_matrices(merging.weighted_mean(), layout=layout)
    merged = merging.merge(transform, base, experts, importance=weights)
    mass = weights['x']['w'] + weights['y']['w']
    expected = sum(weights[k]['w'] * experts[k]['w'] for k in 'xy') / mass
    np.testing.assert_allclose(merged['w'], expected, rtol=1e-5)


def test_a_policy_without_leaves_may_need_statistics():
  base, expert = {'w': jnp.zeros((2, 2))}, {'w': jnp.ones((2, 2))}
  transform = merging.on_matrices(merging.total(), merging.ties())
  merged = merging.merge(transform, base, {'e': expert})
  np.testing.assert_array_equal(merged['w'], expert['w'])


def test_observers_see_matrices_only_and_in_the_frame():
  base = {'w': jnp.zeros((2, 3)), 'b': jnp.zeros(7)}
  expert = {'w': jnp.arange(6.0).reshape(2, 3), 'b': 100 * jnp.ones(7)}
  transform = merging.on_matrices(
    merging.chain(merging.trim(0.5), merging.total()), 'base'
  )
  merged = merging.merge(transform, base, {'e': expert})
  # Three of the six entries of w (and, as TIES has it, one more).
  assert merged['w'].tolist() == [[0, 0, 2], [3, 4, 5]]
  assert merged['b'].tolist() == [0] * 7


def test_mistakes_are_named():
  base = {'w': jnp.zeros((2, 2)), 'b': jnp.zeros(2)}

  def run(transform):
    merging.merge(transform, base, {'e': base})

  with pytest.raises(
    ValueError, match=r"no leaf with two axes matches 'b'.*b \(2,\)"
  ):
    run(merging.on_matrices(merging.total(), leaves='b'))
  cube = {'w': jnp.zeros((2, 2)), 'c': jnp.zeros((1, 2, 2))}
  with pytest.raises(ValueError, match=r"'c' of shape .* is no matrix; take"):
    merging.merge(merging.tsv(), cube, {'e': cube})
  two_axes = merging.folded(merging.tsv(), {'c': (1, 1)})
  with pytest.raises(ValueError, match=r"'c' has shape .* expected 2 axes"):
    merging.merge(two_axes, cube, {'e': cube})
  with pytest.raises(ValueError, match='did you mean'):
    merging.on_matrices(merging.total(), layout='in-out')
  with pytest.raises(
    ValueError, match=r"no pattern of the layout.*matches 'w'"
  ):
    run(merging.on_matrices(merging.total(), layout={'b': 'in_out'}))
  with pytest.raises(ValueError, match="no leaf matches 'kernel'"):
    run(
      merging.on_matrices(
        merging.total(), layout={'kernel': 'out_in', '.': 'in_out'}
      )
    )
  with pytest.raises(ValueError, match="no leaf matches 'blocks'"):
    run(merging.unstacked(merging.total(), 'blocks'))
  scalar = {'s': jnp.zeros(())}
  with pytest.raises(ValueError, match=r"'s' is a scalar"):
    merging.merge(
      merging.unstacked(merging.total(), 's'), scalar, {'e': scalar}
    )


def stack_of(rng, dtype=np.float32):
  return {
    'head': jnp.asarray(rng.normal(size=(8, 4)).astype(dtype)),
    'blocks': {
      'bias': jnp.asarray(rng.normal(size=(4, 8)).astype(dtype)),
      'kernel': jnp.asarray(rng.normal(size=(4, 8, 4)).astype(dtype)),
    },
  }


def apart(params):
  """The same model with one leaf for every layer."""
  flat = {'head': params['head']}
  for name, leaf in params['blocks'].items():
    flat |= {f'blocks/{name}/{i}': x for i, x in enumerate(leaf)}
  return flat


STACKED = {
  'ties': lambda: merging.ties(0.3, ties='index'),
  'dare': lambda: merging.dare(
    0.5, merging.task_arithmetic(0.4), key=jax.random.key(0)
  ),
  'matrices': lambda: merging.on_matrices(
    merging.chain(merging.trim(0.5, scope='tensor'), merging.total()), 'mean'
  ),
  'fisher': lambda: merging.weighted_mean('importance'),
}


@pytest.mark.parametrize('name', STACKED)
def test_stacked_layers_merge_like_separate_ones(name):
  rng = np.random.default_rng(0)
  base, *ends = (stack_of(rng) for _ in range(3))
  experts = dict(zip('ab', ends, strict=True))
  extra = {}
  if name == 'fisher':
    weights = {k: jax.tree.map(jnp.square, x) for k, x in experts.items()}
    extra = {'importance': weights}
  transform = merging.unstacked(STACKED[name](), '^blocks/')
  merged = merging.merge(transform, base, experts, **extra)
  separate = merging.merge(
    STACKED[name](),
    apart(base),
    {k: apart(x) for k, x in experts.items()},
    **{k: {n: apart(x) for n, x in v.items()} for k, v in extra.items()},
  )
  for path, x in apart(merged).items():
    # Compiled, a product and a sum are rounded once, or twice.
    np.testing.assert_allclose(x, separate[path], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_stacked_layers_on_a_mesh():
  rng = np.random.default_rng(0)
  base, *ends = (stack_of(rng) for _ in range(3))
  experts = dict(zip('ab', ends, strict=True))
  transform = merging.unstacked(merging.ties(0.3), '^blocks/')
  expected = merging.merge(transform, base, experts)
  mesh = jax.make_mesh((4, 2), ('x', 'y'), axis_types=drive.EXPLICIT)
  with jax.set_mesh(mesh):
    merged = merging.merge(transform, *drive.shard((base, experts), mesh))
  jax.tree.map(np.testing.assert_array_equal, merged, expected)
