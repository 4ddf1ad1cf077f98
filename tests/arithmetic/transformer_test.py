"""Laws of the decoder, and a literal twin."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import positions
from arithmetic import transformer
from tests.arithmetic import literal

CONFIG = transformer.Config(
  vocabulary_size=11, max_length=9, layers=2, heads=2, width=16
)


CLASSES = positions.Classes(digits=tuple(range(1, 8)), equals=9, anchors=(8, 9))


def _case(scheme='learned', **changes):
  return dataclasses.replace(
    CONFIG,
    positions=scheme,
    layers=1,
    width=8,
    classes=CLASSES,
    **changes,
  )


# Every scheme and every option of the decoder, a few at a time.
CASES = {
  'learned': _case(),
  'none': _case('none', loops=3, inject=True),
  'sinusoidal': _case('sinusoidal', norm_place='post', activation='relu'),
  'rotary': _case('rotary', norm_place='both', activation='geglu'),
  'abacus+rotary': _case('learned+abacus+rotary', biases=False),
  'alibi': _case('randomised+learned+alibi', loops=2),
  't5': _case(
    positions.Positions(attention='t5', buckets=4, max_distance=6, shared=False)
  ),
  'kerple_log': _case('kerple_log', norm='layer', activation='swiglu'),
  'kerple_power': _case('kerple_power', tied=True),
  'fire': _case(
    positions.Positions(
      attention='fire', threshold=4, shared=False, attention_ids='randomised'
    )
  ),
  'abacus+fire': _case('abacus+fire', norm='layer', biases=False),
  'multilevel': _case(
    positions.Positions(
      vectors='learned', vector_ids=('coupled', 'numbers'), size=12
    )
  ),
}

# As 12,3=456$ and such: 8 is a comma, 9 equals, 10 the end.
TOKENS = jnp.asarray(
  [
    [1, 2, 8, 9, 4, 5, 6, 10, 0],
    [8, 3, 4, 9, 7, 1, 9, 1, 2],
    [7, 7, 7, 9, 1, 2, 3, 4, 5],
  ]
)
# The same but for one token behind the equals sign.
CHANGED = TOKENS.at[:, 5].set(jnp.where(TOKENS[:, 5] == 1, 2, 1))

INIT = jax.jit(transformer.init, static_argnums=1)
APPLY = jax.jit(transformer.apply, static_argnames=('config', 'loops'))


@functools.cache
def _run(name):
  """Of a case: parameters, logits, and logits of reading token by token."""
  config = CASES[name]
  params = _perturbed(config)
  tokens = jnp.concatenate([TOKENS, CHANGED])

  @jax.jit
  def run(params):
    places = transformer.ids_of(tokens, config)

    def step(cache, i):
      token = jax.lax.dynamic_slice_in_dim(tokens, i, 1, axis=1)
      logits, cache = transformer.extend(
        params, cache, token, i, config=config, places=places
      )
      return cache, logits[:, 0]

    cache = transformer.empty_cache(config, len(tokens))
    _, logits = jax.lax.scan(step, cache, jnp.arange(tokens.shape[1]))
    return transformer.apply(params, tokens, config=config), logits

  whole, by_one = run(params)
  return params, np.asarray(whole), np.moveaxis(np.asarray(by_one), 0, 1)


def _tokens(rows=3, length=9, seed=0):
  tokens = np.random.default_rng(seed).integers(11, size=(rows, length))
  return jnp.asarray(tokens, jnp.int32)


def _perturbed(config):
  """Parameters drawn apart from `init`, with nothing at a zero or a one."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    scale = 1.0 if leaf.ndim < 2 else leaf.shape[0] ** -0.5
    return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

  shapes = jax.eval_shape(
    functools.partial(transformer.init, config=config), jax.random.key(0)
  )
  return jax.tree.map(draw, shapes)


@pytest.mark.parametrize('name', CASES)
def test_equals_a_literal_decoder(name):
  config = CASES[name]
  params, logits, _ = _run(name)
  places = transformer.ids_of(TOKENS, config)
  np.testing.assert_allclose(
    logits[: len(TOKENS)],
    literal.decoder(params, TOKENS, config, places),
    atol=5e-4,
  )


@pytest.mark.parametrize('name', CASES)
def test_causality(name):
  before, after = np.split(_run(name)[1], 2)
  np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-6)
  assert (np.abs(before - after)[:, 5:].max(axis=-1) > 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_causality_by_gradient(name):
  """Tokens of the line are all different, so that each has an embedding."""
  config = dataclasses.replace(CASES[name], tied=False)
  line = jnp.asarray([[1, 2, 8, 3, 9, 4, 5, 6, 7]])

  @jax.jit
  @functools.partial(jax.jacobian, argnums=0)
  def jacobian(table, params):
    params = {**params, 'embedding': {'embedding': table}}
    return transformer.apply(params, line, config=config)[0].sum(axis=-1)

  params = _perturbed(config)
  found = jacobian(params['embedding']['embedding'], params)
  reads = np.abs(np.asarray(found)[:, line[0]]).max(axis=-1) > 0
  np.testing.assert_array_equal(reads, np.tril(np.ones((9, 9), bool)))


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_every_parameter_is_trained(name):
  config = dataclasses.replace(CASES[name], dropout=0.1)

  @jax.jit
  @jax.grad
  def gradient(params, key):
    logits = transformer.apply(params, TOKENS, config=config, key=key)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 1])

  found = gradient(_perturbed(config), jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(found):
    assert np.isfinite(leaf).all()
    # All ids that are drawn may lie beyond FIRE's threshold.
    assert np.abs(leaf).max() > 0 or path[-1].key == 'threshold'


@pytest.mark.parametrize('name', CASES)
def test_tokens_read_one_by_one_are_the_line(name):
  _, whole, by_one = _run(name)
  np.testing.assert_allclose(by_one, whole, atol=5e-5)


def test_a_shorter_line_has_the_same_logits():
  params, whole, _ = _run('learned')
  part = APPLY(params, TOKENS[:, :4], config=CASES['learned'])
  np.testing.assert_allclose(part, whole[:3, :4], atol=1e-5)


def test_without_positions_the_prompt_is_a_bag_for_one_layer():
  config = _case('none')
  params = _perturbed(config)
  swapped = TOKENS.at[:, :8].set(TOKENS[:, :8][:, ::-1])
  np.testing.assert_allclose(
    APPLY(params, TOKENS, config=config)[:, -1],
    APPLY(params, swapped, config=config)[:, -1],
    atol=1e-5,
  )


def test_parameters_are_plain_dicts_of_float32():
  params = INIT(jax.random.key(0), CONFIG)
  assert type(params) is dict
  assert all(type(x) is dict for x in params['blocks_0'].values())
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  count = sum(x.size for x in jax.tree.leaves(params))
  d, v = 16, 11
  block = 2 * d + (d + 1) * 3 * d + (d + 1) * d + (d + 1) * 4 * d
  block += (4 * d + 1) * d
  assert count == 2 * block + d + 2 * v * d + 9 * d


def test_bfloat16_activations_stay_near_float32():
  params = INIT(jax.random.key(0), CONFIG)
  half = dataclasses.replace(CONFIG, dtype='bfloat16')
  wide = APPLY(params, _tokens(), config=CONFIG)
  narrow = APPLY(params, _tokens(), config=half)
  assert narrow.dtype == jnp.float32
  assert 0 < float(jnp.abs(wide - narrow).max()) < 0.2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'heads': 3}, 'heads divide the width'),
    ({'layers': 0}, 'layers is at least 1, got 0'),
    ({'positions': 'rotery'}, "got 'rotery'; did you mean 'rotary'"),
    ({'norm': 'batch'}, "norm is one of rms, layer, got 'batch'"),
    ({'dropout': 1.0}, 'dropout is in'),
    ({'loops': 0}, 'loops is at least 1'),
    ({'dtype': 'float8'}, "got 'float8'"),
  ],
)
def test_bad_configurations(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)


def test_lines_that_do_not_fit():
  params = INIT(jax.random.key(0), CONFIG)
  with pytest.raises(ValueError, match='lines of 10 tokens'):
    APPLY(params, _tokens(length=10), config=CONFIG)


def test_loops_can_be_given():
  params, logits, _ = _run('none')
  once = dataclasses.replace(CASES['none'], loops=1)
  np.testing.assert_allclose(
    APPLY(params, TOKENS, config=once, loops=3), logits[:3], atol=1e-5
  )


@pytest.mark.parametrize('name', ['rotary', 't5', 'kerple_log'])
def test_relative_schemes_do_not_feel_a_shift(name):
  params, logits, _ = _run(name)
  places = transformer.ids_of(TOKENS, CASES[name])
  shifted = places._replace(attention=places.attention + 40)
  np.testing.assert_allclose(
    APPLY(params, TOKENS, config=CASES[name], places=shifted),
    logits[:3],
    atol=1e-4,
  )


def test_keys_draw_places_that_can_also_be_given():
  config = CASES['alibi']
  params, logits, _ = _run('alibi')
  key = jax.random.key(4)

  @jax.jit
  def both(params):
    places = transformer.ids_of(TOKENS, config, key=jax.random.split(key)[0])
    run = functools.partial(transformer.apply, params, TOKENS, config=config)
    return run(key=key), run(places=places)

  drawn, given = both(params)
  np.testing.assert_allclose(drawn, given, atol=1e-5)
  assert np.abs(drawn - logits[:3]).max() > 0.1


def test_dropout_needs_a_key():
  config = dataclasses.replace(CASES['learned'], dropout=0.5)
  params, logits, _ = _run('learned')
  kept = APPLY(params, TOKENS, config=config)
  np.testing.assert_allclose(kept, logits[:3], atol=1e-5)
  first, second, again = (
    APPLY(params, TOKENS, config=config, key=jax.random.key(i))
    for i in (0, 1, 0)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - second).max() > 0.1 < np.abs(first - kept).max()


def test_biases_are_shared_or_not():
  for shared, owner in ((True, ()), (False, ('blocks_0', 'attention'))):
    scheme = positions.Positions(attention='kerple_log', shared=shared)
    params: Any = jax.eval_shape(
      functools.partial(transformer.init, config=_case(scheme)),
      jax.random.key(0),
    )
    for name in owner:
      params = params[name]
    assert params['bias'].keys() == {'scale', 'rate'}
