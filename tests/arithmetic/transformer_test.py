"""Laws of the decoder, and a bare NumPy twin."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import positions
from arithmetic import transformer

CONFIG = transformer.Config(
  vocabulary_size=11, max_length=9, layers=2, heads=2, width=16
)


INIT = jax.jit(transformer.init, static_argnums=1)
APPLY = jax.jit(transformer.apply, static_argnames='config')


def _tokens(rows=3, length=9, seed=0):
  return jax.random.randint(jax.random.key(seed), (rows, length), 0, 11)


def _norm(x, scale):
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _numpy_decoder(params, tokens, config):
  """The same decoder in float64, one line and one head at a time."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  lines = []
  for line in np.asarray(tokens):
    x = p['embedding']['embedding'][line]
    n, d = x.shape
    head = d // config.heads
    if config.positions == 'learned':
      x = x + p['positions'][:n]
    if config.positions == 'sinusoidal':
      for i in range(n):
        for k in range(d // 2):
          x[i, 2 * k] += np.sin(i / 10_000 ** (2 * k / d))
          x[i, 2 * k + 1] += np.cos(i / 10_000 ** (2 * k / d))
    for layer in range(config.layers):
      block = p[f'blocks_{layer}']
      y = _norm(x, block['attention_norm']['scale'])
      w = block['attention']['query_key_value']
      q, k, v = np.split(y @ w['kernel'] + w['bias'], 3, axis=-1)
      mixed = np.zeros_like(x)
      for h in range(config.heads):
        part = slice(h * head, (h + 1) * head)
        queries, keys = q[:, part].copy(), k[:, part].copy()
        if config.positions == 'rotary':
          for vectors in (queries, keys):
            for i in range(n):
              for j in range(head // 2):
                angle = i * 10_000 ** (-2 * j / head)
                turn = np.exp(1j * angle) * complex(
                  vectors[i, 2 * j], vectors[i, 2 * j + 1]
                )
                vectors[i, 2 * j : 2 * j + 2] = turn.real, turn.imag
        for i in range(n):
          scores = queries[i] @ keys[: i + 1].T / np.sqrt(head)
          weights = np.exp(scores - scores.max())
          mixed[i, part] = weights / weights.sum() @ v[: i + 1, part]
      w = block['attention']['output']
      x = x + mixed @ w['kernel'] + w['bias']
      y = _norm(x, block['perceptron_norm']['scale'])
      y = y @ block['up']['kernel'] + block['up']['bias']
      y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
      x = x + y @ block['down']['kernel'] + block['down']['bias']
    lines.append(_norm(x, p['norm']['scale']) @ p['unembedding']['kernel'])
  return np.stack(lines)


def _perturbed(config):
  """Parameters with nothing at its initial zero or one."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(np.asarray, INIT(jax.random.key(0), config))
  return jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params
  )


@pytest.mark.parametrize('scheme', positions.SCHEMES)
def test_equals_a_literal_decoder(scheme):
  config = dataclasses.replace(CONFIG, positions=scheme)
  params = _perturbed(config)
  np.testing.assert_allclose(
    APPLY(params, _tokens(), config=config),
    _numpy_decoder(params, _tokens(), config),
    atol=2e-4,
  )


@pytest.mark.parametrize('scheme', positions.SCHEMES)
def test_causality(scheme):
  config = dataclasses.replace(CONFIG, positions=scheme)
  params = INIT(jax.random.key(0), config)
  tokens = _tokens()
  changed = tokens.at[:, 5].add(1) % 11
  before = APPLY(params, tokens, config=config)
  after = APPLY(params, changed, config=config)
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert (jnp.abs(before - after)[:, 5:].max(axis=-1) > 1e-6).all()


def test_a_shorter_line_has_the_same_logits():
  params = INIT(jax.random.key(0), CONFIG)
  whole = APPLY(params, _tokens(), config=CONFIG)
  part = APPLY(params, _tokens()[:, :4], config=CONFIG)
  np.testing.assert_allclose(part, whole[:, :4], atol=1e-5)


def test_rotary_scores_depend_on_differences_only():
  x = jax.random.normal(jax.random.key(0), (1, 2, 1, 8))

  def score(shift):
    places = jnp.asarray([[shift, shift + 3]])
    y = positions.rotate(x, places)
    return jnp.vdot(y[0, 0, 0], y[0, 1, 0])

  np.testing.assert_allclose(score(0), score(17), rtol=1e-4)


def test_without_positions_the_prompt_is_a_bag_for_one_layer():
  config = dataclasses.replace(CONFIG, positions='none', layers=1)
  params = _perturbed(config)
  line = _tokens(rows=1)
  swapped = line.at[:, :8].set(line[:, :8][:, ::-1])
  np.testing.assert_allclose(
    APPLY(params, line, config=config)[:, -1],
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
    ({'positions': 'rotery'}, "got 'rotery'"),
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
