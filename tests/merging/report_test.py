"""Diagnoses against literal NumPy, and what they warn of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import transformer
import merging
from merging import report
from tests.merging import fixtures
from tests.merging.symmetry import decoders


def flat_np(params, keep=lambda path: True):
  return {
    path: np.asarray(x, np.float64)
    for path, x in merging.tree.flatten(params).items()
    if path != 'step' and keep(path)
  }


def vector_np(params, keep=lambda path: True):
  return np.concatenate([x.ravel() for x in flat_np(params, keep).values()])


def check_matrices(base, experts, keep, norms, cosines, conflicts):
  theta = vector_np(base, keep)
  taus = [vector_np(experts[name], keep) - theta for name in sorted(experts)]
  for i, a in enumerate(taus):
    length = np.linalg.norm(a)
    np.testing.assert_allclose(
      norms[i], length / np.linalg.norm(theta), rtol=1e-4
    )
    for j, b in enumerate(taus):
      size = length * np.linalg.norm(b)
      cosine = a @ b / size if size else 0.0
      np.testing.assert_allclose(cosines[i, j], cosine, atol=1e-5)
      both = np.count_nonzero(a * b)
      conflict = np.count_nonzero(a * b < 0) / both if both else 0.0
      np.testing.assert_allclose(conflicts[i, j], conflict, rtol=1e-12)


@pytest.mark.parametrize('kind', ['generic', 'lattice'])
def test_norms_cosines_and_conflicts(kind):
  base, experts = fixtures.models(kind)
  found = report.diagnose(base, experts, max_side=0)
  assert found.experts == ('code', 'math', 'prose')
  assert found.blocks == ('block', 'embedding', 'head', 'unchanged')
  check_matrices(
    base,
    experts,
    lambda path: True,
    found.relative_norms,
    found.cosines,
    found.sign_conflicts,
  )
  for place, block in enumerate(found.blocks):
    check_matrices(
      base,
      experts,
      lambda path, block=block: path.startswith(block),
      found.block_norms[place],
      found.block_cosines[place],
      found.block_sign_conflicts[place],
    )
  changes = [
    vector_np(experts[name]) == vector_np(base) for name in found.experts
  ]
  np.testing.assert_allclose(found.unchanged, np.mean(changes, axis=1))


def effective_rank_np(matrix):
  values = np.linalg.svd(matrix, compute_uv=False)
  shares = values[values > 1e-12] / values.sum()
  return np.exp(-np.sum(shares * np.log(shares)))


def test_effective_ranks():
  base, experts = fixtures.models()
  rng = np.random.default_rng(2)
  low = rng.normal(size=(4, 2)) @ rng.normal(size=(2, 12))
  for tree, value in ((base, 0.0), (experts['code'], 0.1)):
    tree['block']['wide'] = jnp.float32(value * low)
    tree['block']['conv'] = jnp.full((2, 3, 5), jnp.float32(value))
  for name in ('math', 'prose'):
    experts[name]['block']['conv'] = base['block']['conv']
  found = report.diagnose(base, experts)
  assert found.skipped == ()
  assert set(found.effective_ranks) == {
    f'block/{name}' for name in ('conv', 'tall', 'wide')
  } | {'embedding', 'head', 'unchanged'}
  assert found.largest_ranks['block/conv'] == 5
  leaves = {name: flat_np(each) for name, each in experts.items()}
  for path, x in flat_np(base).items():
    if x.ndim < 2 or path == 'unchanged':
      continue
    taus = [leaves[name][path] - x for name in found.experts]
    for rank, tau in zip(
      found.effective_ranks[path], [*taus, np.mean(taus, axis=0)], strict=True
    ):
      if not tau.any():
        assert rank == 0
        continue
      expected = effective_rank_np(tau.reshape(-1, tau.shape[-1]))
      np.testing.assert_allclose(rank, expected, rtol=1e-3)
  assert found.effective_ranks['block/wide'][0] <= 2.001
  assert found.effective_ranks['block/conv'][0] == pytest.approx(1, rel=1e-4)
  np.testing.assert_array_equal(found.effective_ranks['unchanged'], np.zeros(4))


def test_large_matrices_are_skipped_and_named():
  base, experts = fixtures.models()
  found = report.diagnose(base, experts, max_side=3)
  assert found.skipped == (
    'block/tall',
    'block/wide',
    'embedding',
    'head',
    'unchanged',
  )
  assert not found.effective_ranks
  page = found.to_markdown()
  assert '5 matrices were not computed' in page
  assert "'block/tall', 'block/wide'" in page
  assert 'effective rank /' not in page


def test_blocks_are_layers_modules_or_what_one_says():
  params = {
    'params': {
      'blocks_0': {'attention': {'kernel': jnp.ones(2)}},
      'layers': [{'kernel': jnp.ones(2)}, {'kernel': jnp.ones(2)}],
      'embedding': {'table': jnp.ones(2), 'scale': jnp.ones(2)},
    },
    'head': jnp.ones(2),
  }
  experts = {'a': merging.tree.scale(2.0, params)}
  assert report.diagnose(params, experts).blocks == (
    'head',
    'params/blocks_0',
    'params/embedding',
    'params/layers/0',
    'params/layers/1',
  )
  found = report.diagnose(params, experts, blocks={'layers': 'l', '.': 'rest'})
  assert found.blocks == ('rest', 'l')
  np.testing.assert_allclose(found.block_norms, np.ones((2, 1)))
  with pytest.raises(ValueError, match="'head' has no block"):
    report.diagnose(params, experts, blocks={'params': 'all'})


def test_fine_tuned_models_are_fine_and_unrelated_ones_are_not():
  config = transformer.Config(
    vocabulary_size=5, max_length=4, layers=1, heads=2, width=8
  )
  base, other = (decoders.params_of(config, seed) for seed in range(2))
  tokens = np.random.default_rng(3).integers(5, size=(8, 4))
  tokens = jnp.asarray(tokens, jnp.int32)

  @jax.jit
  def tune(params, tokens):
    def loss(params):
      logits = transformer.apply(params, tokens[:, :-1], config=config)
      logs = jax.nn.log_softmax(logits)
      return -jnp.mean(jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1))

    def step(params, _):
      slope = jax.grad(loss)(params)
      return jax.tree.map(lambda p, g: p - 0.03 * g, params, slope), None

    return jax.lax.scan(step, params, None, length=20)[0]

  tuned = {'a': tune(base, tokens), 'b': tune(base, tokens[::-1] // 2)}
  found = report.diagnose(base, tuned, max_side=0)
  assert found.warnings == ()
  assert '- No warnings.' in str(found)
  found = report.diagnose(base, {**tuned, 'other': other}, max_side=0)
  [unrelated, far] = found.warnings
  assert "'other' is 1." in unrelated
  assert 'was it fine-tuned from this base?' in unrelated
  assert "'other' moved" in far
  # Experts of one base, held against another.
  found = report.diagnose(other, tuned, max_side=0)
  assert (
    sum('fine-tuned from this base?' in each for each in found.warnings) == 2
  )
  assert 'they share another base than this one' in found.warnings[-1]


def test_what_else_is_warned_of():
  base, experts = fixtures.models()
  assert report.diagnose(base, experts, max_side=0).warnings == ()
  zero, twin, replaced = report.diagnose(
    base,
    {
      **experts,
      'again': experts['code'],
      'base': base,
      'new': {**experts['math'], 'head': -base['head']},
    },
    max_side=0,
    outlier=100.0,
    far=0.9,
  ).warnings
  found = {zero, twin, replaced}
  assert "'base' equals the base: it dilutes a mean and adds nothing" in found
  assert "'again' and 'code' are equal: they count twice" in found
  assert any(
    each.startswith("'new' changed some blocks by more than 0.9")
    and each.endswith('head (2)')
    for each in found
  )
  # One that moved little drowns nobody.
  near = merging.tree.lerp(base, experts['code'], 0.01)
  found = report.diagnose(base, {**experts, 'near': near}, max_side=0)
  assert found.warnings == ()
  loud = merging.tree.lerp(base, experts['code'], 8.0)
  found = report.diagnose(base, {**experts, 'loud': loud}, max_side=0, far=9.0)
  [warning] = found.warnings
  assert warning.startswith("'loud' moved 8")


def test_nothing_is_not_a_number():
  base = {'w': jnp.zeros((3, 3)), 'b': jnp.zeros(())}
  one = {'w': jnp.ones((3, 3)), 'b': jnp.zeros(())}
  found = report.diagnose(base, {'one': one, 'zero': base})
  np.testing.assert_array_equal(found.relative_norms, [np.inf, 0.0])
  np.testing.assert_array_equal(found.cosines, [[1.0, 0.0], [0.0, 0.0]])
  np.testing.assert_array_equal(found.sign_conflicts, np.zeros((2, 2)))
  assert 'nan' not in found.to_markdown()


def test_the_page_has_every_table():
  base, experts = fixtures.models()
  page = report.diagnose(base, experts).to_markdown()
  lines = page.splitlines()
  for title in (
    '# Before merging',
    '## Experts',
    '## Cosine of task vectors',
    '## Share of sign conflicts',
    '## Task vector over base, by block',
    '## Cosine, by block',
    '## Sign conflicts, by block',
    '## Effective rank of changes',
  ):
    assert title in lines
  for i, line in enumerate(lines):
    if line.startswith('| ---'):  # As many cells as there are columns.
      assert lines[i - 1].count('|') == line.count('|')
      assert lines[i + 1].count('|') == line.count('|')
  assert '| block | code, math | code, prose | math, prose |' in lines
  alone = report.diagnose(base, {'code': experts['code']})
  assert 'Cosine' not in alone.to_markdown()


def test_bfloat16_and_numpy_models():
  base, experts = fixtures.models('lattice', dtype=jnp.bfloat16)
  found = report.diagnose(base, experts, max_side=0)
  exact = report.diagnose(
    *jax.tree.map(
      lambda x: np.asarray(x, np.float32) if x.ndim else x, (base, experts)
    ),
    max_side=0,
  )
  np.testing.assert_array_equal(found.cosines, exact.cosines)
  np.testing.assert_array_equal(found.relative_norms, exact.relative_norms)


def test_what_cannot_be_merged_is_refused():
  base, experts = fixtures.models()
  headless = {name: x for name, x in experts['math'].items() if name != 'head'}
  with pytest.raises(ValueError, match="'math' at 'head': missing"):
    report.diagnose(base, {'math': headless})
  broken = {**experts['math'], 'head': jnp.full((12, 4), jnp.nan)}
  with pytest.raises(ValueError, match="'math' at 'head': holds a NaN"):
    report.diagnose(base, {'math': broken})
  with pytest.raises(ValueError, match='no floating-point leaf'):
    report.diagnose({'step': jnp.int32(1)}, {'math': {'step': jnp.int32(1)}})
  with pytest.raises(TypeError, match='is traced; call it outside'):
    jax.jit(lambda base: report.diagnose(base, experts).cosines)(base)
