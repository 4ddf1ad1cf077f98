"""LoRA, rsLoRA, DoRA, LayRA: what an adapter is, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from merging import adapters
from merging import references
from merging import tree
from tests.merging.adapters import models

KEY = jax.random.key(0)
KERNELS = [models.KERNEL.format(i) for i in range(models.BLOCKS)]


@pytest.mark.parametrize('dora', [False, True])
@pytest.mark.parametrize('layout', ['in_out', 'out_in'])
def test_delta_is_the_formula_in_both_layouts(layout, dora):
  base = models.base(layout=layout)
  adapter = models.expert(1, layout=layout, dora=dora, alpha=3.0)
  found = adapters.delta(adapter, base)
  assert sorted(found) == KERNELS
  for i, path in enumerate(KERNELS):
    turn = np.transpose if layout == 'out_in' else np.asarray
    weight = models.draw(i, models.IN, models.OUT)
    expected = turn(models.dense(adapter[path], weight))
    np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dora', [False, True])
def test_a_new_adapter_changes_nothing(dora):
  base = models.base()
  adapter = adapters.init_lora(KEY, base, rank=2, dora=dora)
  assert 'embedding' in adapter
  assert not any('bias' in path for path in adapter)
  params = adapters.apply(base, adapter)
  assert jax.tree.structure(params) == jax.tree.structure(base)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(base), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6 if dora else 0)


def test_initial_factors_are_uniform_and_do_not_depend_on_other_leaves():
  base = models.base()
  wide = {'kernel': jnp.zeros((100, 40))}
  a = adapters.init_lora(KEY, wide, rank=30)['kernel'].a
  assert np.abs(a).max() <= 0.1
  np.testing.assert_allclose(np.std(a), 0.1 / np.sqrt(3), rtol=0.05)
  every = adapters.init_lora(KEY, base, rank=2)
  one = adapters.init_lora(KEY, base, rank=2, leaves='1/kernel')
  np.testing.assert_array_equal(every[KERNELS[1]].a, one[KERNELS[1]].a)
  assert not np.array_equal(every[KERNELS[0]].a, every[KERNELS[1]].a)


def test_scales_ranks_and_alphas_by_pattern():
  options = {
    'rank': 2,
    'alpha': 6.0,
    'rank_pattern': {'0/kernel': 4, 'blocks/[01]': 3},
    'alpha_pattern': {'embedding': 1.0, '3/': 9.0},
  }
  base = models.base()
  made = adapters.init_lora(KEY, base, **options)
  assert [made[path].rank for path in KERNELS] == [4, 3, 2, 2]
  assert [made[path].scale for path in KERNELS] == [1.5, 2.0, 3.0, 4.5]
  assert made['embedding'].scale == 0.5
  made = adapters.init_lora(KEY, base, scaling='rslora', **options)
  np.testing.assert_allclose(
    [made[path].scale for path in KERNELS],
    [6 / 2, 6 / 3**0.5, 6 / 2**0.5, 9 / 2**0.5],
  )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_apply_accumulates_in_float32_and_rounds_once(dtype):
  base = models.base(dtype)
  adapter = models.expert(1)
  params = adapters.apply(base, adapter)
  for i, path in enumerate(KERNELS):
    start = np.asarray(base['blocks'][i]['kernel'], np.float64)
    exact = start + models.dense(adapter[path], start)
    found = params['blocks'][i]['kernel']
    assert found.dtype == dtype
    half = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(
      np.asarray(found, np.float64), exact, rtol=half + 1e-6, atol=1e-6
    )
  assert params['embedding'] is base['embedding']


@pytest.mark.parametrize('dora', [False, True])
def test_an_adapter_can_be_trained_through(dora):
  base = models.base()
  target = adapters.apply(base, models.expert(2, alpha=1.0))
  adapter = adapters.init_lora(KEY, base, rank=2, leaves='kernel', dora=dora)

  def loss(adapter):
    params = adapters.apply(base, adapter)
    return sum(
      jnp.mean((x['kernel'] - y['kernel']) ** 2)
      for x, y in zip(params['blocks'], target['blocks'], strict=True)
    )

  @jax.jit
  def train(adapter):
    def step(adapter, _):
      value, slope = jax.value_and_grad(loss)(adapter)
      return jax.tree.map(lambda x, g: x - 0.1 * g, adapter, slope), value

    return jax.lax.scan(step, adapter, length=300)

  trained, values = train(adapter)
  assert values[-1] < 0.1 * values[0]
  # Scales are not trained: they are no leaves.
  assert len(jax.tree.leaves(trained)) == (3 if dora else 2) * len(KERNELS)
  assert trained[KERNELS[0]].scale == adapter[KERNELS[0]].scale


def test_the_norm_of_dora_takes_no_part_in_the_gradient():
  weight = models.draw(0, 3, 2)
  lora = adapters.Lora(
    models.draw(1, 3, 1), models.draw(2, 1, 2), jnp.ones(2), scale=1.0
  )
  slope = jax.grad(lambda each: each.delta(weight).sum())(lora)
  norm = np.linalg.norm(weight + lora.a @ lora.b, axis=0)
  expected = lora.a.T @ np.broadcast_to(1 / norm, (3, 2))
  np.testing.assert_allclose(slope.b, expected, rtol=1e-5)


def test_dora_of_nothing_is_defined():
  lora = adapters.Lora(jnp.zeros((3, 1)), jnp.zeros((1, 2)), jnp.ones(2))
  value, slope = jax.value_and_grad(
    lambda each: each.delta(jnp.zeros((3, 2))).sum()
  )(lora)
  assert value == 0
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize('dora', [False, True])
def test_stacked_layers_are_layers(dora):
  stack = jnp.stack([block['kernel'] for block in models.base()['blocks']])
  base = {'kernel': stack}
  made = adapters.init_lora(KEY, base, rank=2, stacked='kernel', dora=dora)
  lora = jax.tree.map(lambda x: x + models.draw(1, *x.shape), made['kernel'])
  found = adapters.delta({'kernel': lora}, base)['kernel']
  for i in range(models.BLOCKS):
    each = jax.tree.map(lambda x, i=i: x[i], lora)
    np.testing.assert_allclose(
      found[i], models.dense(each, stack[i]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
  'name', ['blocks/{}', 'layers_{}', 'Decoder/TransformerBlock_{}', 'h/{}']
)
def test_layra_adapts_the_ends_only(name):
  base = tree.unflatten(
    {f'{name.format(i)}/Dense_0/kernel': jnp.ones((3, 2)) for i in range(12)}
    | {'embedding': jnp.ones((4, 3))}
  )
  made = adapters.init_lora(KEY, base, rank=1, layers=(2, 1))
  assert sorted(made) == sorted(
    f'{name.format(i)}/Dense_0/kernel' for i in (0, 1, 11)
  )


def test_layra_counts_the_blocks_of_each_stack():
  base = tree.unflatten(
    {f'encoder/layers/{i}/w': jnp.ones((3, 2)) for i in range(3)}
    | {f'decoder/layers/{i}/w': jnp.ones((3, 2)) for i in range(5)}
  )
  made = adapters.init_lora(KEY, base, layers=(0, 1))
  assert sorted(made) == ['decoder/layers/4/w', 'encoder/layers/2/w']


def test_layouts_by_pattern():
  base = models.base(layout='out_in')
  layout = {'embedding': 'in_out', '.': 'out_in'}
  made = adapters.init_lora(KEY, base, rank=2, layout=layout)
  assert made['embedding'].a.shape == (5, 2)
  assert made[KERNELS[0]].a.shape == (models.IN, 2)
  assert made['embedding'].shape == (5, models.IN)


def test_extract_is_the_best_of_its_rank():
  base = models.base()
  adapter = models.expert(1, rank=2)
  params = adapters.apply(base, adapter)
  params['blocks'][1]['bias'] += 1
  for rank in (1, 2, 9):
    found, discarded = adapters.extract(base, params, rank=rank)
    for path in KERNELS:
      exact = models.dense(adapter[path], np.zeros((models.IN, models.OUT)))
      s = np.linalg.svd(exact, compute_uv=False)
      lost = np.sum(s[rank:] ** 2) / np.sum(s**2)
      np.testing.assert_allclose(discarded[path], lost, atol=1e-5)
      again = adapters.delta(found, base)[path]
      error = np.sum((again - exact) ** 2) / np.sum(exact**2)
      np.testing.assert_allclose(error, lost, atol=1e-5)
      assert found[path].rank == min(rank, models.OUT)
    assert discarded['embedding'] == 0  # Not changed.
    assert discarded['blocks/1/bias'] == 1
    assert discarded['blocks/0/bias'] == discarded['step'] == 0


def test_extract_knows_the_layout():
  base, end = models.base(), adapters.apply(models.base(), models.expert(1))
  turned = [
    [jax.tree.map(jnp.transpose, block['kernel']) for block in params['blocks']]
    for params in (base, end)
  ]
  plain, _ = adapters.extract(base, end, rank=1, leaves='kernel')
  other, _ = adapters.extract(*turned, rank=1, layout='out_in')
  assert other['0'].a.shape == (models.IN, 1)
  for i, path in enumerate(KERNELS):
    x = adapters.delta(plain, base)[path]
    y = adapters.delta(other, turned[0])[str(i)]
    np.testing.assert_allclose(x, y.T, atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'leaves': 'kernle'}, "matches 'kernle'.*did you mean 'kernel'"),
    ({'leaves': 'bias'}, 'no floating-point leaf with two axes'),
    ({'rank': 0}, 'rank for leaf .* is 0, expected a positive integer'),
    ({'rank_pattern': {'hea': 2}}, "rank_pattern: no leaf matches 'hea'"),
    ({'scaling': 'rslor'}, "did you mean 'rslora'"),
    ({'layout': 'inout'}, "did you mean 'in_out'"),
    ({'layout': {'kernel': 'in_out'}}, "matches 'embedding'"),
    ({'layers': (3, 2)}, 'there are 4 blocks'),
    ({'layers': (0, 0)}, 'not both zero'),
    ({'layers': (1, 1), 'leaves': 'embedding'}, r'blocks layers=\(1, 1\)'),
    ({'layers': (1, 1), 'block': r'stage_(\d+)'}, 'no path names a numbered'),
    ({'layers': (1, 1), 'block': 'blocks'}, 'no group'),
  ],
)
def test_init_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    adapters.init_lora(KEY, models.base(), **options)


def test_leaves_that_are_no_matrix_are_refused():
  heads = {'blocks': {'query': jnp.ones((4, 2, 3))}}
  with pytest.raises(ValueError, match=r"'blocks/query' .* is not a matrix"):
    adapters.init_lora(KEY, heads)
  with pytest.raises(ValueError, match='not a stack of matrices'):
    adapters.init_lora(KEY, models.base(), stacked='kernel')
  with pytest.raises(ValueError, match='stacks all blocks'):
    adapters.init_lora(
      KEY,
      {**heads, 'h': [{'w': jnp.ones((3, 2))}], 'layers_0': heads['blocks']},
      stacked='query',
      layers=(1, 0),
    )


def test_an_adapter_of_another_model_is_refused():
  base = models.base()
  with pytest.raises(ValueError, match='layout may be the other one'):
    adapters.apply(models.base(layout='out_in'), models.expert(1))
  lora = models.expert(1)[KERNELS[0]]
  with pytest.raises(ValueError, match="did you mean 'blocks/0/kernel'"):
    adapters.apply(base, {'block/0/kernel': lora})
  with pytest.raises(ValueError, match='int32, not floating-point'):
    adapters.apply(base, {'step': lora})
  with pytest.raises(ValueError, match='do not multiply'):
    adapters.apply(base, {KERNELS[0]: adapters.Lora(lora.a, lora.b[:1])})
  with pytest.raises(ValueError, match=r'magnitude \(1,\), expected \(4,\)'):
    adapters.apply(
      base, {KERNELS[0]: adapters.Lora(lora.a, lora.b, jnp.ones(1))}
    )
  with pytest.raises(TypeError, match='is a list'):
    adapters.delta([lora], base)
  with pytest.raises(TypeError, match='expected one such as Lora'):
    adapters.delta({KERNELS[0]: base}, base)


@pytest.mark.parametrize(
  ('function', 'count'),
  [
    (adapters.init_lora, 4),
    (adapters.init_shards, 1),
    (adapters.init_kronecker, 1),
    (adapters.kronecker_factors, 2),
    (adapters.compress, 1),
  ],
)
def test_papers_can_be_cited(function, count):
  assert len(references.references_of(function)) == count
