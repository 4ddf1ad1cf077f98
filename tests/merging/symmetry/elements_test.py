"""Changes of basis: they keep the function, and they form groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import positions as position_schemes
from merging import symmetry
from merging import tree
from merging.symmetry import spec as spec_lib
from tests.merging.symmetry import decoders

HEADS, SIZE = 3, 4


def pair(group, copies=1):
  """A space between a writer and a reader, in the middle of packed leaves."""
  width = HEADS * copies * SIZE
  rng = np.random.default_rng(0)
  params = {
    'write': jnp.asarray(rng.normal(size=(5, HEADS * SIZE + 3)), jnp.float32),
    'read': jnp.asarray(rng.normal(size=(width, 2)), jnp.float32),
  }
  carriers = (
    symmetry.Carrier('write', 1, start=2),
    symmetry.Carrier('read', 0, dual=True, copies=copies),
  )
  return params, {'space': symmetry.Space(group, SIZE, carriers, HEADS)}


def drawn(params, spec):
  """The model in a random basis, in one compiled program."""
  return jax.jit(
    lambda key: symmetry.transform(params, spec, symmetry.random(key, spec))
  )(jax.random.key(2))


def assert_trees_close(a, b, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def matrix_of(element, group):
  """The matrices of an element, from what its docstring says, `[H, C, C]`."""
  if isinstance(element, symmetry.Linear):
    return np.asarray(element.matrix, np.float64)
  matrix = np.zeros((HEADS, SIZE, SIZE))
  for h in range(HEADS):
    if isinstance(element, symmetry.Monomial):
      for c in range(SIZE):
        scale = 1.0 if element.scale is None else element.scale[h, c]
        matrix[h, element.order[h, c], c] = scale
    else:
      for k in range(SIZE // 2):
        i, j = (k, k + SIZE // 2)
        if group == 'rotary':
          i, j = 2 * k, 2 * k + 1
        a, b = np.asarray(element.factor[h, k], np.float64)
        matrix[h, i, i], matrix[h, j, i] = a, -b
        matrix[h, i, j], matrix[h, j, j] = b, a
  return matrix


@pytest.mark.parametrize('copies', [1, 2])
@pytest.mark.parametrize('group', spec_lib.GROUPS)
def test_a_transform_is_what_its_matrix_says(group, copies):
  params, spec = pair(group, copies)
  elements = symmetry.random(jax.random.key(1), spec)
  moved = symmetry.transform(params, spec, elements)
  matrix = matrix_of(elements['space'], group)
  write = np.array(params['write'], np.float64)
  read = np.array(params['read'], np.float64)
  for h in range(HEADS):
    columns = 2 + h * SIZE + np.arange(SIZE)
    write[:, columns] = write[:, columns] @ matrix[h]
    for r in range(copies):
      rows = (h * copies + r) * SIZE + np.arange(SIZE)
      read[rows] = np.linalg.inv(matrix[h]) @ read[rows]
  np.testing.assert_allclose(moved['write'], write, atol=1e-5)
  np.testing.assert_allclose(moved['read'], read, atol=1e-5)


@pytest.mark.parametrize('group', spec_lib.GROUPS)
def test_group_laws(group):
  params, spec = pair(group)
  a, b, c = (symmetry.random(jax.random.key(i), spec) for i in range(3))

  def apply(elements, params=params):
    return symmetry.transform(params, spec, elements)

  one_by_one = apply(b, apply(a))
  assert_trees_close(apply(symmetry.compose(a, b)), one_by_one)
  assert_trees_close(apply(symmetry.invert(a), apply(a)), params)
  assert_trees_close(apply(symmetry.compose(a, symmetry.invert(a))), params)
  left = symmetry.compose(symmetry.compose(a, b), c)
  right = symmetry.compose(a, symmetry.compose(b, c))
  assert_trees_close(apply(left), apply(right))
  assert_trees_close(apply({}), params, atol=0)


def test_a_permutation_moves_bits():
  params, spec = pair('permutation')
  a = symmetry.random(jax.random.key(1), spec)
  back = symmetry.transform(
    symmetry.transform(params, spec, a), spec, symmetry.invert(a)
  )
  assert_trees_close(back, params, atol=0)


def test_kinds_mix_where_the_group_is_larger():
  params, spec = pair('invertible')
  scaling = {'space': spec['space']._replace(group='scaling')}
  matrix = symmetry.random(jax.random.key(1), spec)
  monomial = symmetry.random(jax.random.key(2), scaling)
  for a, b in ((matrix, monomial), (monomial, matrix)):
    one_by_one = symmetry.transform(
      symmetry.transform(params, spec, a), spec, b
    )
    both = symmetry.transform(params, spec, symmetry.compose(a, b))
    assert_trees_close(both, one_by_one)
  merged = symmetry.compose({'x': matrix['space']}, monomial)
  assert set(merged) == {'x', 'space'}
  rotary = symmetry.random(jax.random.key(3), pair('rotary')[1])
  with pytest.raises(TypeError, match="'space' is a Linear first and a Rotary"):
    symmetry.compose(matrix, rotary)


@pytest.mark.parametrize('group', spec_lib.GROUPS)
def test_random_elements_stay_within_the_spread(group):
  _, spec = pair(group)
  [element] = symmetry.random(jax.random.key(0), spec, spread=3.0).values()
  values = np.linalg.svd(matrix_of(element, group), compute_uv=False)
  bound = 1 if group in ('permutation', 'orthogonal') else 3
  assert values.max() <= bound * (1 + 1e-5)
  assert values.min() >= (1 - 1e-5) / bound
  if bound == 3:
    assert values.max() > 1.2 * values.min()
  other = symmetry.random(jax.random.key(1), spec, spread=3.0)['space']
  assert not all(map(np.array_equal, element, other))


def test_the_draw_of_a_space_depends_on_its_name_only():
  _, spec = pair('invertible')
  [space] = spec.values()
  alone = symmetry.random(jax.random.key(0), {'b': space})
  among = symmetry.random(jax.random.key(0), {'a': space, 'b': space})
  np.testing.assert_array_equal(alone['b'].matrix, among['b'].matrix)
  assert not np.array_equal(among['a'].matrix, among['b'].matrix)


def test_rotary_elements_commute_with_positions():
  x = jax.random.normal(jax.random.key(0), (2, 5, HEADS, SIZE))
  places = jnp.broadcast_to(jnp.arange(5)[None], (2, 5))
  _, spec = pair('rotary')
  matrix = matrix_of(
    symmetry.random(jax.random.key(1), spec)['space'], 'rotary'
  )
  matrix = jnp.asarray(matrix, jnp.float32)
  turn = lambda x: position_schemes.rotate(x, places)  # noqa: E731
  change = lambda x: jnp.einsum('blhc,hcd->blhd', x, matrix)  # noqa: E731
  np.testing.assert_allclose(turn(change(x)), change(turn(x)), atol=1e-5)


@pytest.mark.parametrize('scheme', decoders.SCHEMES)
def test_a_decoder_computes_what_it_did(scheme):
  shape = decoders.config(scheme)
  params = decoders.params_of(shape)
  spec = decoders.spec_of(params, scheme)
  spec |= {'residual': decoders.residual(params)}
  moved = drawn(params, spec)
  decoders.assert_close(
    decoders.logits(moved, shape=shape), decoders.logits(params, shape=shape)
  )
  for path, leaf in tree.flatten(moved).items():
    assert not np.allclose(leaf, tree.flatten(params)[path]), path


def gated_attention(params, x, *, heads, groups, rotary):
  """Grouped-query attention and a gated perceptron, one head at a time."""
  p = {path: np.asarray(v, np.float64) for path, v in params.items()}
  length = len(x)
  queries, keys, values = (
    x @ p[f'{n}/weight'].T + p[f'{n}/bias'] for n in ('q', 'k', 'v')
  )
  size = queries.shape[1] // heads
  angle = np.arange(length)[:, None] * 10.0 ** -np.arange(size // 2)

  def turn(v):
    if not rotary:
      return v
    a, b = v[:, : size // 2], v[:, size // 2 :]
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cosine - b * sine, a * sine + b * cosine], 1)

  mixed = []
  for h in range(heads):
    g = h // (heads // groups)
    query = turn(queries[:, h * size : (h + 1) * size])
    key = turn(keys[:, g * size : (g + 1) * size])
    weights = np.exp(query @ key.T)
    weights /= weights.sum(1, keepdims=True)
    mixed.append(weights @ values[:, g * size : (g + 1) * size])
  x = x + np.concatenate(mixed, 1) @ p['o/weight'].T
  gate = x @ p['gate/weight'].T
  return (gate / (1 + np.exp(-gate)) * (x @ p['up/weight'].T)) @ (
    p['down/weight'].T
  )


@pytest.mark.parametrize('scheme', ['none', 'rotary_halves'])
def test_shared_key_heads_and_gated_perceptrons(scheme):
  heads, groups, size, width, hidden = 4, 2, 4, 6, 5
  rng = np.random.default_rng(0)
  shapes = {'gate': (hidden, width), 'up': (hidden, width)}
  shapes |= {'down': (width, hidden), 'o': (width, heads * size)}
  shapes |= dict.fromkeys('kv', (groups * size, width))
  shapes |= {'q': (heads * size, width)}
  params = {f'{n}/weight': 0.5 * rng.normal(size=s) for n, s in shapes.items()}
  for name in 'qkv':
    params[f'{name}/bias'] = rng.normal(size=shapes[name][0])
  params = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
  spec = symmetry.attention(
    params,
    heads=heads,
    key_value_heads=groups,
    query='q',
    key='k',
    value='v',
    output='o',
    positions=scheme,
    layout='out_in',
  )
  spec['hidden'] = symmetry.perceptron(
    params, ['gate', 'up'], ['down'], layout='out_in'
  )
  moved = drawn(params, spec)
  x = rng.normal(size=(7, width))
  run = {
    'heads': heads, 'groups': groups, 'rotary': scheme != 'none'
  }  # fmt: skip
  expected = gated_attention(params, x, **run)
  found = gated_attention(moved, x, **run)
  np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())
  assert all(not np.allclose(moved[path], params[path]) for path in params)


def test_relu_admits_scalings():
  rng = np.random.default_rng(0)
  shapes = {'one/kernel': (3, 8), 'one/bias': (8,), 'two/kernel': (8, 2)}
  params = {n: jnp.asarray(rng.normal(size=s)) for n, s in shapes.items()}
  params = {n: x.astype(jnp.float32) for n, x in params.items()}
  spec = {'h': symmetry.perceptron(params, ['one'], ['two'], group='scaling')}
  moved = drawn(params, spec)
  x = rng.normal(size=(9, 3)).astype(np.float32)

  def run(p):
    hidden = x @ np.asarray(p['one/kernel']) + np.asarray(p['one/bias'])[None]
    return np.maximum(hidden, 0) @ np.asarray(p['two/kernel'])

  np.testing.assert_allclose(run(moved), run(params), atol=1e-5)


def test_under_jit_vmap_and_in_bfloat16():
  params, spec = pair('invertible')

  def move(key, params):
    return symmetry.transform(params, spec, symmetry.random(key, spec))

  keys = jax.random.split(jax.random.key(0), 2)
  many = jax.jit(jax.vmap(move, in_axes=(0, None)))(keys, params)
  for i in range(2):
    assert_trees_close(
      jax.tree.map(lambda x: x[i], many),  # noqa: B023
      move(keys[i], params),
    )
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  moved = move(keys[0], half)
  assert moved['write'].dtype == jnp.bfloat16
  wide = move(keys[0], jax.tree.map(lambda x: x.astype(jnp.float32), half))
  assert_trees_close(
    moved, jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide), atol=0
  )


def test_errors_of_elements():
  params, spec = pair('permutation')
  scaling = pair('scaling')[1]
  scaled = symmetry.random(jax.random.key(0), scaling)
  with pytest.raises(ValueError, match=r"'permutation'; a Monomial with a sc"):
    symmetry.transform(params, spec, scaled)
  matrix = symmetry.random(jax.random.key(0), pair('invertible')[1])
  with pytest.raises(ValueError, match="group 'rotary'; a Linear would change"):
    symmetry.transform(params, pair('rotary')[1], matrix)
  with pytest.raises(ValueError, match=r"named 'spce'.*did you mean 'space'"):
    symmetry.transform(params, spec, {'spce': matrix['space']})
  short = {'space': symmetry.Monomial(jnp.zeros((HEADS, 2), jnp.int32))}
  with pytest.raises(ValueError, match=r'order has shape \(3, 2\), expected'):
    symmetry.transform(params, spec, short)
  with pytest.raises(ValueError, match=r'spread is 0\.5'):
    symmetry.random(jax.random.key(0), spec, spread=0.5)
