"""Growth: what becomes of the leaves, and when the function is kept."""

import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import transformer
from merging import growth
from merging import symmetry
from merging import tree
from tests.merging.symmetry import decoders

BLOCKS = r'blocks_(\d+)'
OUTPUTS = r'attention/output|down'
KEY = jax.random.key(3)


def stack_of(layers=3):
  """Numbered blocks in a list, a leaf of its own, and a counter in each."""
  rng = np.random.default_rng(0)

  def block():
    return {
      'in': {'kernel': jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)},
      'out': jnp.asarray(rng.normal(size=(3, 2)), jnp.bfloat16),
      'count': jnp.array(rng.integers(9)),
    }

  return {'blocks': [block() for _ in range(layers)], 'head': jnp.ones(2)}


def scanned(params):
  return {**params, 'blocks': tree.stack(params['blocks'])}


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('factor', [1, 2, 3])
def test_the_order_of_blocks(factor):
  params = stack_of(3)
  for grow, order in (
    (growth.g_stack, [0, 1, 2] * factor),
    (growth.g_interpolate, sorted([0, 1, 2] * factor)),
  ):
    expected = {**params, 'blocks': [params['blocks'][i] for i in order]}
    assert_equal(grow(params, factor, blocks=r'blocks/(\d+)'), expected)
    assert_equal(
      grow(scanned(params), factor, blocks='blocks'), scanned(expected)
    )


def test_containers_are_kept():
  leaf = jnp.zeros(1)
  params = {
    'tuple': ({'w': leaf}, [leaf, leaf]),
    'numbers': {0: {'w': leaf}, 1: {'w': leaf + 1}},
    'frozen': flax.core.freeze({'h_0_x': {'w': leaf}}),
  }
  params['tuple'] = (params['tuple'][0],)
  grown = growth.g_stack(params, 2, blocks=r'tuple/(\d+)')
  assert_equal(grown['tuple'], params['tuple'] * 2)
  grown = growth.g_stack(params, 2, blocks=r'numbers/(\d+)')
  assert list(grown['numbers']) == [0, 1, 2, 3]
  grown = growth.g_stack(params, 2, blocks=r'frozen/h_(\d+)_x')
  assert isinstance(grown['frozen'], flax.core.FrozenDict)
  assert set(grown['frozen']) == {'h_0_x', 'h_1_x'}
  assert_equal(grown['tuple'], params['tuple'])


@functools.cache
def small(positions):
  shape = decoders.config(positions, width=8, layers=2, heads=2)
  return shape, decoders.params_of(shape)


@pytest.mark.parametrize('order', ['stack', 'interpolate'])
def test_new_blocks_that_keep_the_function(order):
  shape, params = small('rotary')
  deep = decoders.config('rotary', width=8, layers=4, heads=2)
  expected = decoders.logits(params, shape=shape)
  keeping = {'blocks': BLOCKS, 'outputs': OUTPUTS, 'order': order}
  zero = growth.g_zero(params, 2, **keeping)
  masked = jax.jit(
    lambda mask: growth.g_random(KEY, params, 2, mask=mask, **keeping)
  )
  random = masked(0.0)
  for grown in (zero, random):
    reference = jax.eval_shape(lambda: transformer.init(KEY, deep))
    tree.check_same_structure(reference, grown, names=('deep', 'grown'))
    logits = decoders.logits(grown, shape=deep)
    decoders.assert_close(logits, expected, 1e-6)
  new = 'blocks_2' if order == 'stack' else 'blocks_1'
  np.testing.assert_array_equal(
    zero[new]['up']['kernel'], params['blocks_0']['up']['kernel']
  )
  kernel = np.asarray(random[new]['up']['kernel'])
  source = np.asarray(params['blocks_0']['up']['kernel'])
  assert not np.isin(kernel, source).any()
  np.testing.assert_allclose(kernel.std(), source.std(), rtol=0.3)

  # New layers get gradients, or they would never do anything.
  loss = jax.jit(
    jax.grad(lambda p: jnp.sum(decoders.logits(p, shape=deep) ** 2))
  )
  gradient = loss(zero)
  assert jnp.abs(gradient[new]['down']['kernel']).max() > 0

  # Without the mask, and as plain copies, it is another function.
  bare = masked(1.0)
  copied = growth.g_stack(params, 2, blocks=BLOCKS)
  for other in (bare, copied):
    logits = decoders.logits(other, shape=deep)
    assert jnp.abs(logits - expected).max() > 0.1


def test_the_mask_multiplies_what_is_added():
  params = stack_of()
  more = {'blocks': r'blocks/(\d+)', 'outputs': '^out'}
  whole, half = (
    growth.g_random(KEY, params, 2, mask=mask, **more) for mask in (1.0, 0.5)
  )
  for i in range(6):
    np.testing.assert_array_equal(
      half['blocks'][i]['out'],
      whole['blocks'][i]['out'] * jnp.bfloat16(1 if i < 3 else 0.5),
    )
  np.testing.assert_array_equal(
    half['blocks'][4]['in']['kernel'], whole['blocks'][4]['in']['kernel']
  )
  assert half['blocks'][3]['count'] == params['blocks'][0]['count']


def test_learned_depth_is_a_product():
  params = stack_of()
  rng = np.random.default_rng(1)
  first, second = rng.normal(size=(2, 5, 3)).astype(np.float32)
  grown = growth.learn_depth(
    params, {'kernel$': first, '.': second}, blocks=r'blocks/(\d+)'
  )
  for j in range(5):
    for part, matrix in (('in', first), ('out', second)):
      expected = sum(
        matrix[j, i] * np.asarray(leaf, np.float64)
        for i in range(3)
        for leaf in jax.tree.leaves(params['blocks'][i][part])
      )
      [found] = jax.tree.leaves(grown['blocks'][j][part])
      np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, atol=2e-2 * abs(expected).max()
      )
  start = jnp.tile(jnp.eye(3), (2, 1))
  assert_equal(
    growth.learn_depth(params, start, blocks=r'blocks/(\d+)'),
    growth.g_stack(params, 2, blocks=r'blocks/(\d+)'),
  )
  # It is linear, so a difference is the derivative.
  only = {'blocks': [{'w': jnp.array([2.0])}, {'w': jnp.array([5.0])}]}

  def second_block(matrix):
    grown = growth.learn_depth(only, matrix, blocks=r'blocks/(\d+)')
    return grown['blocks'][1]['w'][0]

  gradient = jax.grad(second_block)(jnp.ones((3, 2)))
  np.testing.assert_array_equal(gradient, [[0, 0], [2, 5], [0, 0]])


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'blocks': r'layers/(\d+)'}, r"matches 'layers/\(.*the leaves are"),
    ({'blocks': r'(blocks)/(\d+)'}, 'has 2 groups'),
    ({'blocks': 'blocks'}, 'one length along the first axis'),
    ({'factor': 0}, 'factor is 0, expected an int from 1'),
    ({'factor': 1.5}, r'factor is 1\.5'),
  ],
)
def test_errors_of_depth(arguments, message):
  given = {'params': stack_of(), 'factor': 2, 'blocks': r'blocks/(\d+)'}
  with pytest.raises(ValueError, match=message):
    growth.g_stack(**given | arguments)


def test_more_errors_of_depth():
  params = stack_of()
  blocks = r'blocks/(\d+)'
  with pytest.raises(ValueError, match="no leaf matches 'down'"):
    growth.g_zero(params, 2, blocks=blocks, outputs='down')
  with pytest.raises(ValueError, match="order is 'mid', expected one of"):
    growth.g_zero(params, 2, blocks=blocks, outputs='out', order='mid')
  with pytest.raises(ValueError, match=r'shape \(4, 2\) for 3 blocks'):
    growth.learn_depth(params, jnp.ones((4, 2)), blocks=blocks)
  with pytest.raises(ValueError, match=r"no pattern of 'kernel' matches 'coun"):
    growth.learn_depth(params, {'kernel': jnp.ones((4, 3))}, blocks=blocks)
  params['blocks'][1] = {'in': params['blocks'][1]['in']}
  with pytest.raises(ValueError, match=r'blocks differ at blocks/\*/count'):
    growth.g_stack(params, 2, blocks=blocks)
  gap = {'b_0': jnp.ones(1), 'b_2': jnp.ones(1)}
  with pytest.raises(ValueError, match=r'numbered \[0, 2\], expected 0 to 1'):
    growth.g_stack(gap, 2, blocks=r'b_(\d+)')


@pytest.mark.parametrize(
  ('parameters', 'tokens', 'published'),
  [
    (8e9, 15e12, 6.58e9),  # Llama 3 8B
    (7e9, 2e12, 11.11e9),  # Llama 2 7B
    (13e9, 2e12, 15.84e9),
    (70e9, 2e12, 42.48e9),
  ],
)
def test_the_published_schedule(parameters, tokens, published):
  found = growth.growth_schedule(parameters, 6 * parameters * tokens)
  assert abs(found / published - 1) < 1e-3


def test_a_schedule_of_nothing():
  for sizes in ((0, 1e20), (1e9, 1.0)):
    with pytest.raises(ValueError, match='expected parameters > 0 and flops'):
      growth.growth_schedule(*sizes)


def spaces(params, positions, heads):
  spec = decoders.spec_of(params, positions, heads=heads)
  return spec | {'residual': decoders.residual(params)}


def wider(positions, *, width=8, heads=2, large_width=16, large_heads=4):
  """A small decoder, its spaces, and the shapes and spaces of a large one."""
  shape = decoders.config(positions, width=width, heads=heads)
  large = decoders.config(positions, width=large_width, heads=large_heads)
  params = decoders.params_of(shape)
  shapes = jax.eval_shape(lambda: transformer.init(KEY, large))
  return (
    (params, spaces(params, positions, heads)),
    (shapes, spaces(shapes, positions, large_heads)),
    (shape, large),
  )


def widened(small, large, how):
  """The wide model, in one compiled program."""
  params, spec = small
  grow = jax.jit(lambda p, key: growth.widen(p, spec, *large, how, key=key))
  return grow(params, KEY)


@pytest.mark.parametrize(
  'positions', ['learned', pytest.param('rotary', marks=pytest.mark.slow)]
)
def test_width_growth_keeps_the_function(positions):
  small, large, (shape, wide) = wider(positions)
  expected = decoders.logits(small[0], shape=shape)
  direct = growth.direct()
  inner = {
    'direct': direct,
    'zeroed': growth.zeroed(),
    'randomised': growth.randomised(),
  }
  for name, way in inner.items():
    how = dict.fromkeys(small[1], way) | {'residual': direct}
    grown = widened(small, large, how)
    tree.check_same_structure(large[0], grown, names=('large', name))
    decoders.assert_close(decoders.logits(grown, shape=wide), expected)
  bare = widened(small, large, growth.randomised(masked=False))
  logits = decoders.logits(bare, shape=wide)
  assert jnp.abs(logits - expected).max() > 0.1


def test_heads_that_grow_in_size():
  small, large, (shape, wide) = wider('learned', large_heads=2)
  expected = decoders.logits(small[0], shape=shape)
  grown = widened(small, large, growth.direct())
  decoders.assert_close(decoders.logits(grown, shape=wide), expected)
  small, large, _ = wider('rotary', large_heads=2)
  with pytest.raises(ValueError, match='Grow the number of heads'):
    growth.widen(*small, *large, growth.direct())


def chain(hidden):
  return {
    'up': {'kernel': jnp.zeros((2, hidden))},
    'down': jnp.zeros((hidden, 2)),
  }


def test_widths_that_are_no_multiple_and_chosen_sources():
  rng = np.random.default_rng(0)
  small = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), chain(3)
  )
  large = chain(7)
  specs = [
    {'hidden': symmetry.perceptron(each, ['up'], ['down'])}
    for each in (small, large)
  ]
  up = np.asarray(small['up']['kernel'], np.float64)
  down = np.asarray(small['down'], np.float64)
  for sources in (None, np.array([2, 2, 0, 1, 2, 1, 2])):
    grown = growth.widen(
      small, specs[0], large, specs[1], growth.direct(sources)
    )
    order = np.arange(7) % 3 if sources is None else sources
    counts = np.bincount(order)
    np.testing.assert_allclose(grown['up']['kernel'], up[:, order], rtol=1e-6)
    np.testing.assert_allclose(
      grown['down'], down[order] / counts[order][:, None], rtol=1e-6
    )
  # The same by matrices, which may be learned.
  matrix = np.zeros((3, 7), np.float32)
  matrix[order, np.arange(7)] = 1

  def learned(matrix):
    way = growth.learned(matrix, matrix / jnp.sum(matrix, 1, keepdims=True))
    return growth.widen(small, specs[0], large, specs[1], way)

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
    learned(jnp.asarray(matrix)),
    grown,
  )
  slope = jax.grad(lambda m: jnp.sum(learned(m)['up']['kernel'] ** 2))(
    jnp.asarray(matrix)
  )
  np.testing.assert_allclose(slope, 2 * up.T @ up @ matrix, rtol=1e-4)

  for how, message in (
    (
      growth.direct(np.array([0, 0, 0, 0, 0, 0, 1])),
      'name 2 units, expected 7',
    ),
    (growth.learned(jnp.ones((7, 3))), r'shape \(7, 3\), expected \(3, 7\)'),
    (growth.randomised(), 'vector is random; pass key='),
    ({'hiden': growth.direct()}, "for 'hiden', expected the spaces 'hidden'"),
    (growth.Widening('half', 'copy'), "vector of 'hidden' is 'half'"),
  ):
    with pytest.raises(ValueError, match=message):
      growth.widen(small, specs[0], large, specs[1], how)
  with pytest.raises(ValueError, match=r'1 heads of 3 channels, expected at l'):
    growth.widen(large, specs[1], small, specs[0], growth.direct())
  half = [
    {'hidden': each['hidden']._replace(carriers=each['hidden'].carriers[:1])}
    for each in specs
  ]
  with pytest.raises(ValueError, match=r'axis 0 of .* the spaces cover 0 of 3'):
    growth.widen(small, half[0], large, half[1], growth.direct())
