"""Trees: names, structure and arithmetic."""

import dataclasses

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import tree
from tests.merging import fixtures


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
  kernel: jax.Array
  bias: jax.Array


def test_names_of_all_containers():
  params = {
    'list': [1.0, 2.0],
    'layer': Layer(kernel=3.0, bias=4.0),
    'frozen': flax.core.freeze({'x': 5.0}),
    3: 6.0,
  }
  params = {str(key): value for key, value in params.items()}
  assert tree.flatten(params) == {
    '3': 6.0,
    'frozen/x': 5.0,
    'layer/kernel': 3.0,
    'layer/bias': 4.0,
    'list/0': 1.0,
    'list/1': 2.0,
  }
  assert tree.paths(1.0) == ['']


def test_two_leaves_of_one_name_are_refused():
  with pytest.raises(ValueError, match="two leaves are named 'a/b'"):
    tree.flatten({'a': {'b': 0.0}, 'a/b': 1.0})


def test_unflatten_inverts_flatten():
  base, _ = fixtures.models()
  flat = tree.flatten(base)
  for like in (None, base):
    again = tree.unflatten(dict(reversed(flat.items())), like=like)
    assert jax.tree.structure(again) == jax.tree.structure(base)
    jax.tree.map(np.testing.assert_array_equal, again, base)


def test_unflatten_errors():
  for names in (['a', 'a/b'], ['a/b', 'a']):
    with pytest.raises(ValueError, match='both a leaf and a branch'):
      tree.unflatten(dict.fromkeys(names, 0.0))
  with pytest.raises(ValueError, match=r"missing \['b'\], unexpected \['c'\]"):
    tree.unflatten({'a': 0.0, 'c': 0.0}, like={'a': 0.0, 'b': 0.0})


def test_select_and_rebuild():
  base, _ = fixtures.models()
  chosen, rebuild = tree.select(base, r'block/(wide|tall)')
  assert list(chosen) == ['block/tall', 'block/wide']
  changed = rebuild({'block/tall': 2 * chosen['block/tall']})
  np.testing.assert_array_equal(
    changed['block']['tall'], 2 * base['block']['tall']
  )
  assert changed['block']['wide'] is base['block']['wide']
  assert list(tree.select(base, lambda path: path == 'head')[0]) == ['head']
  with pytest.raises(ValueError, match="'head' was not selected"):
    rebuild({'head': 0.0})
  with pytest.raises(ValueError, match=r"matches 'blok/wide'; .* 'block/wide'"):
    tree.select(base, 'blok/wide')


def test_arithmetic_is_that_of_vectors():
  base, experts = fixtures.models()
  a, b = experts['math'], experts['code']

  def vector(params):
    leaves = jax.tree.leaves(params)
    return np.concatenate([np.ravel(v) for v in leaves if v.ndim])

  x, y = (vector(each).astype(np.float64) for each in (a, b))
  np.testing.assert_allclose(vector(tree.add(a, b)), x + y, rtol=1e-6)
  np.testing.assert_allclose(vector(tree.sub(a, b)), x - y, rtol=1e-6)
  np.testing.assert_allclose(vector(tree.scale(0.3, a)), 0.3 * x, rtol=1e-6)
  between = tree.lerp(a, b, 0.3)
  np.testing.assert_allclose(vector(between), 0.7 * x + 0.3 * y, atol=1e-6)
  np.testing.assert_allclose(tree.dot(a, b), x @ y, rtol=1e-5)
  np.testing.assert_allclose(tree.norm(a), np.linalg.norm(x), rtol=1e-6)
  cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  np.testing.assert_allclose(tree.cosine(a, b), cosine, rtol=1e-5)
  for each in (tree.scale(0.3, a), between):
    assert each['step'] == base['step']


def test_the_ends_of_an_interpolation_are_exact():
  base, experts = fixtures.models(dtype=jnp.bfloat16)
  expert = experts['math']
  for t, end in ((0.0, base), (1.0, expert)):
    jax.tree.map(np.testing.assert_array_equal, tree.lerp(base, expert, t), end)


def test_the_cosine_of_nothing_is_zero_and_has_a_gradient():
  zero, one = {'w': jnp.zeros(2)}, {'w': jnp.ones(2)}
  assert tree.cosine(zero, one) == 0
  assert np.isfinite(
    jax.grad(lambda w: tree.cosine({'w': w}, one))(one['w'])
  ).all()


def test_stack_and_unstack():
  _, experts = fixtures.models()
  trees = list(experts.values())
  for before, after in zip(trees, tree.unstack(tree.stack(trees)), strict=True):
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_cast_like():
  base, _ = fixtures.models(dtype=jnp.bfloat16)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), base)
  cast = tree.cast_like(wide, base)
  for x, y in zip(jax.tree.leaves(cast), jax.tree.leaves(base), strict=True):
    assert x.dtype == y.dtype


def test_task_vectors_bring_the_expert_back():
  base, experts = fixtures.models('lattice', dtype=jnp.bfloat16)
  tau = tree.task_vector(experts['math'], base)
  assert tau['head'].dtype == jnp.float32
  assert tau['step'] == 0
  wide = jax.tree.map(lambda x, y: x.astype(y.dtype), base, tau)
  again = tree.cast_like(tree.add(wide, tau), base)
  jax.tree.map(np.testing.assert_array_equal, again, experts['math'])
  with pytest.raises(ValueError, match="'expert' at 'head': missing"):
    tree.task_vector({'w': base['head']}, base)
