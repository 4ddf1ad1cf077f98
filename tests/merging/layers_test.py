"""Coefficients by depth and by norm, patches and low rank: laws and edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from merging.deltas import depth
from tests.merging import fixtures
from tests.merging.cases import layers

BASE = {
  'embedding': jnp.zeros(2),
  'blocks_0': {'w': jnp.zeros(2)},
  'blocks_1': {'w': jnp.zeros(2)},
  'blocks_2': {'w': jnp.zeros(2)},
  'head': jnp.zeros(2),
}


def experts(**values):
  return {
    name: jax.tree.map(lambda x: x + value, BASE)  # noqa: B023
    for name, value in values.items()
  }


def merge(transform, base=BASE, **values):
  """Merges experts of constant entries; returns one entry of each leaf."""
  merged = merging.merge(transform, base, experts(**values))
  flat = merging.tree.flatten(merged)
  return {path.split('/')[0]: float(x[0]) for path, x in flat.items()}


def assert_equal_merges(one, other, atol=0.0, models=None):
  base, ends = models or fixtures.part(*fixtures.models(), 'bias', 'wide')
  a, b = (merging.merge(each, base, ends) for each in (one, other))
  for path in a:
    np.testing.assert_allclose(a[path], b[path], rtol=0, atol=atol)


@pytest.mark.parametrize(
  ('paths', 'blocks', 'numbers'),
  [
    (['blocks_0/w', 'blocks_1/w', 'head'], depth.BLOCKS, [0, 1, -1]),
    (['model.layers.10.mlp.2.w', 'h.1'], r'layers\.1(\d)|\.(?:1)', None),
    (['a/layers/0/mlp/7/w', 'a/layers/1/w'], depth.BLOCKS, [0, 1]),
    (['model.layers.0.mlp.7.w', 'norm.3'], depth.BLOCKS, [0, -1]),
    (['resblocks/0/w', 'EncoderBlock_1/w'], depth.BLOCKS, [0, 1]),
    (['h/0/w', 'h/1/w', 'h1/w'], depth.BLOCKS, [0, 1, -1]),
    (['blocks/w/1', 'blocks/w/0', 'norm/w'], r'^blocks/.*/(\d+)$', [1, 0, -1]),
  ],
)
def test_the_block_of_a_path(paths, blocks, numbers):
  if numbers is None:
    with pytest.raises(ValueError, match=r'expected 0 to|expected a number'):
      depth.block_numbers('lines', blocks, paths)
  else:
    assert depth.block_numbers('lines', blocks, paths).tolist() == numbers


def test_blocks_are_checked():
  def numbers(blocks, *paths):
    return depth.block_numbers('lines', blocks, paths)

  with pytest.raises(ValueError, match=r"finds no block in the leaves 'w'"):
    numbers(depth.BLOCKS, 'w')
  with pytest.raises(ValueError, match=r'has 0 groups, expected one, for the'):
    numbers(r'blocks/\d+/', 'blocks/0/w')
  with pytest.raises(ValueError, match=r"group .* is 'a', expected a number"):
    numbers(r'blocks/(\w)/', 'blocks/a/w')
  with pytest.raises(
    ValueError, match=r"blocks \[0, 2\], .* 'blocks/2/w'\); missing \[1\]"
  ):
    numbers(depth.BLOCKS, 'blocks/0/w', 'blocks/2/w')
  with pytest.raises(ValueError, match='is not a regular expression'):
    numbers('blocks/(', 'blocks/0/w')


def test_lines_grows_linearly_and_leaves_the_rest_at_alpha():
  merged = merge(merging.lines(merging.total(), 0.5, 0.25), a=1, b=3)
  assert merged == {
    'embedding': 1.0,
    'blocks_0': 1.0,
    'blocks_1': 2.0,
    'blocks_2': 3.0,
    'head': 1.0,
  }


def test_lines_can_take_the_head_for_the_deepest():
  transform = merging.lines(merging.total(), 0.5, 0.25, outputs='head')
  merged = merge(transform, a=4)
  assert (merged['head'], merged['embedding']) == (3.0, 1.0)
  with pytest.raises(ValueError, match=r"no leaf matches 'heat'.*'head'"):
    merge(merging.lines(merging.total(), 1.0, 0.1, outputs='heat'), a=4)
  with pytest.raises(ValueError, match=r"selects 'blocks_2/w' inside blocks"):
    merge(merging.lines(merging.total(), 1.0, 0.1, outputs='_2'), a=4)


def test_lines_without_a_rise_scales_by_alpha():
  flat = merging.lines(merging.total(), 0.0, 0.3, blocks=layers.number)
  assert_equal_merges(flat, merging.task_arithmetic(0.3), 1e-7)


def test_lines_makes_up_for_what_a_merge_drops():
  """A sum begins at the average, whatever is done to its norm."""
  one = merging.lines(merging.total(), 0.0, blocks=layers.number)
  assert_equal_merges(one, merging.average(), 5e-7)
  halved = merging.chain(merging.total(), merging.scale(0.5))
  assert_equal_merges(
    merging.lines(halved, 0.0, blocks=layers.number), merging.average(), 5e-7
  )
  with pytest.raises(ValueError, match='inner merge leaves 2 deltas'):
    merge(merging.lines(merging.identity(), 0.5), a=1, b=2)


def test_lines_of_one_expert_and_of_one_block():
  assert merge(merging.lines(merging.total(), 1.0), a=1)['blocks_2'] == 2.0
  base = {'blocks_0': jnp.zeros(2)}
  ends = {'a': {'blocks_0': jnp.ones(2)}}
  merged = merging.merge(merging.lines(merging.total(), 9.0, 0.5), base, ends)
  assert merged['blocks_0'].tolist() == [0.5, 0.5]
  merged = merging.merge(
    merging.lines(merging.total(), 9.0), base, {'a': base, 'b': base}
  )
  assert merged['blocks_0'].tolist() == [0.0, 0.0]


def test_lines_tells_stacked_layers_apart():
  base = {'blocks': {'w': jnp.zeros((3, 2))}, 'head': jnp.zeros(2)}
  ends = {'a': jax.tree.map(jnp.ones_like, base)}
  transform = merging.unstacked(
    merging.lines(merging.total(), 0.5, blocks=r'^blocks/.*/(\d+)$'), '^blocks/'
  )
  merged = merging.merge(transform, base, ends)
  assert merged['blocks']['w'][:, 0].tolist() == [1.0, 1.25, 1.5]
  assert merged['head'].tolist() == [1.0, 1.0]


def test_lines_can_be_differentiated_in_its_coefficients():
  base, ends = fixtures.part(*fixtures.models(), 'bias', 'wide')

  def entry(alpha, beta):
    transform = merging.lines(
      merging.total(), beta, alpha, blocks=layers.number
    )
    return merging.merge(transform, base, ends)['wide'][1, 2]

  total = sum(
    float(end['wide'][1, 2] - base['wide'][1, 2]) for end in ends.values()
  )
  by_alpha, by_beta = jax.grad(entry, (0, 1))(0.1, 0.5)
  np.testing.assert_allclose([by_alpha, by_beta], total, rtol=1e-5)


def test_layer_swap_has_zones():
  transform = merging.layer_swap('a', 'b', lower=1, upper=0)
  merged = merge(transform, a=10, b=20)
  # One block of each: outer, both transitions.
  assert [merged[f'blocks_{i}'] for i in range(3)] == [10, 15, 15]
  assert merged['embedding'] == merged['head'] == 10
  transform = merging.layer_swap(
    'a', 'b', lower=1, upper=1, lower_transition=0, upper_transition=0,
    others=0.5,
  )  # fmt: skip
  merged = merge(transform, a=10, b=20)
  assert [merged[f'blocks_{i}'] for i in range(3)] == [10, 20, 10]
  assert merged['head'] == 15


def test_layer_swap_with_the_paper_s_counts():
  base = {f'blocks_{i}': jnp.zeros(1) for i in range(32)}
  ends = {
    'language': {path: x + 1 for path, x in base.items()},
    'math': base,
  }
  merged = merging.merge(merging.layer_swap('language', 'math'), base, ends)
  weights = [float(merged[f'blocks_{i}'][0]) for i in range(32)]
  assert weights == [1.0] * 5 + [0.5] + [0.0] * 23 + [0.5] + [1.0] * 2


def test_swapping_an_expert_for_its_like_changes_nothing():
  merged = merge(merging.layer_swap('a', 'b', lower=1, upper=0), a=2, b=2)
  assert set(merged.values()) == {2.0}


def test_layer_swap_is_checked():
  with pytest.raises(ValueError, match="expected two experts, got 'a' twice"):
    merging.layer_swap('a', 'a')
  with pytest.raises(ValueError, match=r'are \(-1, 1, 1, 2\), expected none'):
    merging.layer_swap('a', 'b', lower=-1)
  with pytest.raises(ValueError, match=r'are more than the 3 of the model'):
    merge(merging.layer_swap('a', 'b'), a=1, b=2)
  with pytest.raises(ValueError, match=r"no value for 'c'; use 0"):
    merge(merging.layer_swap('a', 'b', lower=1, upper=0), a=1, b=2, c=3)


def test_weights_of_blocks_are_checked():
  transform = merging.weigh_blocks({'a': [1.0, 2.0]}, {'a': 1.0})
  with pytest.raises(ValueError, match=r"'a' have shape \(2,\), expected \(3"):
    merge(transform, a=1)
  ones = {'a': [1.0] * 3, 'b': [1.0] * 3}
  late = merging.chain(
    merging.total(), merging.weigh_blocks(ones, {'a': 1.0, 'b': 1.0})
  )
  with pytest.raises(ValueError, match='weigh the experts before they are'):
    merge(late, a=1, b=1)


def test_metagpt_of_equal_norms_is_the_average():
  base, ends = fixtures.part(*fixtures.models(), 'bias', 'wide')
  deltas = {name: merging.tree.sub(end, base) for name, end in ends.items()}
  equal = {
    name: merging.tree.add(
      base, merging.tree.scale(1 / merging.tree.norm(delta), delta)
    )
    for name, delta in deltas.items()
  }
  assert_equal_merges(merging.metagpt(), merging.average(), 1e-6, (base, equal))


def test_metagpt_of_one_expert_is_the_expert():
  assert set(merge(merging.metagpt(), a=3).values()) == {3.0}
  assert set(merge(merging.metagpt(), a=0, b=0).values()) == {0.0}


def test_a_reasoning_vector_of_scale_one_is_the_analogy():
  one = merging.reasoning_vector('code', 'math', 'prose')
  assert_equal_merges(one, merging.analogy('prose', 'math', 'code'), 1e-7)
  gone = merging.reasoning_vector('code', 'math', 'prose', 0.0)
  base, ends = fixtures.part(*fixtures.models(), 'bias', 'wide')
  merged = merging.merge(gone, base, ends)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=3e-7),
    merged,
    ends['code'],
  )
  with pytest.raises(ValueError, match='expected three experts'):
    merging.reasoning_vector('code', 'math', 'math')
  with pytest.raises(ValueError, match="no leaf matches 'attention'"):
    merge(
      merging.reasoning_vector('a', 'b', 'c', leaves='attention'), a=1, b=2, c=3
    )


def test_a_signature_is_orthogonal_to_the_clean_expert():
  base, ends = fixtures.part(*fixtures.models(), 'bias', 'wide')
  transform = merging.robust_signature('math', 3.0, leaves='')
  merged = merging.merge(transform, base, ends)
  for path, x in merged.items():
    clean = np.asarray(ends['math'][path] - base[path], np.float64)
    patch = np.asarray(x, np.float64) - np.asarray(ends['math'][path])
    bound = 1e-5 * np.linalg.norm(clean) * np.linalg.norm(patch)
    assert abs(np.sum(clean * patch)) < bound
    assert np.linalg.norm(patch) > 0


def test_a_robust_expert_along_the_clean_one_patches_nothing():
  transform = merging.robust_signature('a', leaves='')
  assert set(merge(transform, a=2, b=6).values()) == {2.0}
  # Where the clean expert did not move, all of the robust one is added.
  assert set(merge(transform, a=0, b=6, c=2).values()) == {4.0}


def test_robust_signatures_are_checked():
  transform = merging.robust_signature('cleen', leaves='')
  with pytest.raises(ValueError, match=r"named 'cleen'; .* mean 'clean'"):
    merge(transform, clean=1, fog=2)
  with pytest.raises(ValueError, match="'a' is the only expert, expected one"):
    merge(merging.robust_signature('a', leaves=''), a=1)
  with pytest.raises(ValueError, match="no leaf matches 'conv'"):
    merge(merging.robust_signature('a', leaves='conv'), a=1, b=2)


def test_low_rank_of_all_is_the_identity():
  for settings in ({'density': 1.0}, {'rank': 4}, {'rank': 99}):
    one = merging.chain(merging.low_rank(**settings), merging.total())
    assert_equal_merges(one, merging.total())


def test_low_rank_of_nothing_leaves_only_what_is_no_matrix():
  base, ends = fixtures.part(*fixtures.models(), 'bias', 'wide')
  for settings in ({'density': 0.1}, {'rank': 0}, {'density': 0.0}):
    transform = merging.chain(merging.low_rank(**settings), merging.total())
    merged = merging.merge(transform, base, ends)
    np.testing.assert_array_equal(merged['wide'], base['wide'])
    assert not np.array_equal(merged['bias'], base['bias'])


def test_low_rank_does_not_depend_on_the_layout():
  base, ends = fixtures.part(*fixtures.models(), 'wide')
  turn = lambda params: {'wide': params['wide'].T}  # noqa: E731
  transform = merging.chain(merging.low_rank(rank=2), merging.total())
  merged = merging.merge(transform, base, ends)
  turned = merging.merge(
    transform, turn(base), {name: turn(end) for name, end in ends.items()}
  )
  np.testing.assert_allclose(merged['wide'], turned['wide'].T, atol=1e-6)


def test_low_rank_keeps_what_has_that_rank():
  rng = np.random.default_rng(0)
  delta = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5))
  base = {'w': jnp.zeros((6, 5)), 'one': jnp.zeros((1, 1))}
  ends = {'a': {'w': jnp.asarray(delta, jnp.float32), 'one': jnp.ones((1, 1))}}
  transform = merging.chain(merging.low_rank(rank=2), merging.total())
  merged = merging.merge(transform, base, ends)
  np.testing.assert_allclose(merged['w'], delta, atol=2e-6)
  assert merged['one'].tolist() == [[1.0]]


def test_a_traced_rank_keeps_the_same():
  base, ends = fixtures.part(*fixtures.models(), 'wide')

  @jax.jit
  def merged(rank):
    transform = merging.chain(merging.low_rank(rank=rank), merging.total())
    return merging.merge(transform, base, ends)['wide']

  for rank in (1, 3):
    fixed = merging.chain(merging.low_rank(rank=rank), merging.total())
    expected = merging.merge(fixed, base, ends)['wide']
    np.testing.assert_allclose(merged(rank), expected, atol=1e-6)


def test_how_much_to_keep_is_checked():
  with pytest.raises(ValueError, match=r'None and rank is None, expected one'):
    merging.low_rank()
  with pytest.raises(ValueError, match=r'0.5 and rank is 2, expected one of'):
    merging.low_rank(density=0.5, rank=2)
  with pytest.raises(ValueError, match=r'expected a fraction in \[0, 1\]'):
    merging.low_rank(density=10)
  with pytest.raises(ValueError, match='rank is -1, expected at least 0'):
    merging.low_rank(rank=-1)


def test_methods_say_what_to_cite():
  found = {
    'wang2025lines': merging.lines(merging.total(), 1.0),
    'bandarkar2025layer': merging.layer_swap('a', 'b'),
    'zhou2024metagpt': merging.metagpt(),
    'zbeeb2025reasoning': merging.reasoning_vector('a', 'b', 'c'),
    'cai2023robust': merging.robust_signature('a', leaves=''),
    'lu2024twin': merging.low_rank(rank=1),
  }
  for key, transform in found.items():
    assert f'{{{key},' in merging.citations(transform)
