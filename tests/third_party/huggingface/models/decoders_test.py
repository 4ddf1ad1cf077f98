"""GPT-2 and the family of Llama: against literal NumPy, and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import merging
from tests.third_party.huggingface.models import oracles
from third_party.huggingface import models

GPT2 = {
  'model_type': 'gpt2',
  'vocab_size': 11,
  'n_positions': 10,
  'n_embd': 12,
  'n_layer': 2,
  'n_head': 3,
}
QWEN2 = {
  'model_type': 'qwen2',
  'vocab_size': 11,
  'hidden_size': 12,
  'intermediate_size': 10,
  'num_hidden_layers': 2,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 4,
  'rope_theta': 100.0,
  'use_sliding_window': True,
  'sliding_window': 3,
  'max_window_layers': 1,
}
CONFIGS = {'gpt2': GPT2, 'qwen2': QWEN2}
ONE_FAST = [pytest.param('gpt2', marks=pytest.mark.slow), 'qwen2']
TOKENS = np.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]], np.int32)


@functools.cache
def model_of(family):
  config = CONFIGS[family]
  return models.load(oracles.draw(models.expected_specs(config)), config)


@functools.cache
def compiled(family):
  return jax.jit(model_of(family).apply)


def test_gpt2_is_what_numpy_says():
  model = model_of('gpt2')
  logits = compiled('gpt2')(model.params, TOKENS)
  for line, ours in zip(TOKENS, logits, strict=True):
    theirs = oracles.gpt2(model.params, line, layers=2, heads=3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_qwen2_is_what_numpy_says():
  model = model_of('qwen2')
  logits = compiled('qwen2')(model.params, TOKENS)
  for line, ours in zip(TOKENS, logits, strict=True):
    theirs = oracles.llama(
      model.params,
      line,
      layers=2,
      heads=6,
      key_heads=2,
      width=4,
      theta=100.0,
      windows=(None, 3),
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_llama3_frequencies_follow_the_number_of_turns():
  scaling = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
  }
  config = QWEN2 | {'rope_scaling': scaling, 'head_dim': 16}
  specs = models.expected_specs(config)
  frequencies, scale = models.load(
    oracles.draw(specs), config
  ).config.frequencies
  assert scale == 1
  for i, ours in enumerate(frequencies):
    plain = 100.0 ** (-2 * i / 16)
    turns = 64 * plain / (2 * np.pi)
    if turns > 4:
      theirs = plain
    elif turns < 1:
      theirs = plain / 8
    else:
      part = (turns - 1) / 3
      theirs = part * plain + (1 - part) * plain / 8
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize('family', ONE_FAST)
def test_no_logit_depends_on_what_comes_after(family):
  model = model_of(family)

  def shifted(shift, column):
    # The line reads rows of its own, one for each column, whose logits, where
    # the table is also the head, are left out.
    name = next(k for k in model.params if 'embed_tokens' in k or 'wte' in k)
    params = dict(model.params)
    table = params[name]
    params[name] = jnp.concatenate([table, table[TOKENS[0]] + shift])
    line = len(table) + jnp.arange(6)[None]
    return model.apply(params, line)[0, column, : len(table)].sum()

  zeros = jnp.zeros((6, 12))
  grads = jax.jit(jax.vmap(jax.grad(shifted), (None, 0)))(zeros, jnp.arange(6))
  sizes = np.abs(grads).max(-1)  # [logits of, embedding at]
  assert (sizes[np.triu_indices(6, 1)] == 0).all()
  assert (sizes[np.tril_indices(6)] > 0).all()


@pytest.mark.parametrize('family', CONFIGS)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_changes_nothing(family, side):
  model = model_of(family)
  whole = compiled(family)(model.params, TOKENS)
  # Nothing may read what is under the mask, be it no token at all.
  padding = np.array([[7, -100, 10], [0, 11, 1]], np.int32)
  parts = (padding, TOKENS) if side == 'left' else (TOKENS, padding)
  tokens = np.concatenate(parts, axis=1)
  real = np.zeros((2, 9), np.int32)
  real[:, slice(3, 9) if side == 'left' else slice(0, 6)] = 1
  padded = compiled(family)(model.params, tokens, attention_mask=real)
  assert np.isfinite(padded).all()
  ours = np.asarray(padded)[real.astype(bool)].reshape(whole.shape)
  np.testing.assert_allclose(ours, whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize('family', CONFIGS)
def test_cached_decoding_is_the_full_forward_pass_again_and_again(family):
  model = model_of(family)
  tokens = np.array([[0, 0, 3, 1, 4], [2, 6, 5, 3, 5]], np.int32)
  mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], np.int32)
  steps = 4
  line, real = tokens, mask
  for _ in range(steps):
    # Padded on the right to one length, so that one program serves all.
    extra = ((0, 0), (0, 9 - line.shape[1]))
    logits = compiled(family)(
      model.params, np.pad(line, extra), attention_mask=np.pad(real, extra)
    )
    best = np.asarray(logits)[:, line.shape[1] - 1].argmax(-1)
    line = np.concatenate([line, best[:, None].astype(np.int32)], axis=1)
    real = np.pad(real, ((0, 0), (0, 1)), constant_values=1)
  text = models.greedy(
    model.decoder, model.params, tokens, steps, attention_mask=mask
  )
  np.testing.assert_array_equal(text, line[:, 5:])


@pytest.mark.slow
def test_one_step_is_the_forward_pass():
  model = model_of('qwen2')
  text = models.greedy(model.decoder, model.params, TOKENS, 1)
  logits = compiled('qwen2')(model.params, TOKENS)
  np.testing.assert_array_equal(text, logits[:, -1:].argmax(-1))


@pytest.mark.parametrize('family', ONE_FAST)
def test_stacked_models_run_as_one(family):
  model = model_of(family)
  shapes = {name: x.shape for name, x in model.params.items()}
  several = [oracles.draw(shapes, seed) for seed in range(2)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
  together = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, TOKENS)
  for params, ours in zip(several, together, strict=True):
    alone = compiled(family)(params, TOKENS)
    np.testing.assert_allclose(ours, alone, rtol=0, atol=2e-5)


def test_the_average_of_equal_models_says_the_same():
  model = model_of('gpt2')
  experts = {'a': model.params, 'b': dict(model.params)}
  merged = merging.merge(merging.average(), model.params, experts)
  np.testing.assert_array_equal(
    compiled('gpt2')(merged, TOKENS), compiled('gpt2')(model.params, TOKENS)
  )


@pytest.mark.parametrize('family', CONFIGS)
@pytest.mark.parametrize('wrong', [11, -1])
def test_a_token_outside_of_the_vocabulary_shows(family, wrong):
  model = model_of(family)
  tokens = TOKENS.copy()
  tokens[1, 2] = wrong
  logits = compiled(family)(model.params, tokens)
  assert np.isfinite(logits[0]).all()
  assert np.isnan(logits[1, 2:]).all()


@pytest.mark.slow
def test_bfloat16_is_near_float32():
  params = model_of('qwen2').params
  low = models.load(params, QWEN2, dtype='bfloat16')
  ours = jax.jit(low.apply)(low.params, TOKENS)
  exact = compiled('qwen2')(low.params, TOKENS)
  assert ours.dtype == jnp.float32
  error = np.abs(ours - exact).max()
  assert 0 < error < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    ({'tokens': np.zeros(3, np.int32)}, 'tokens are .batch, length.'),
    ({'tokens': np.zeros((1, 0), np.int32)}, 'tokens are .batch, length.'),
    ({'tokens': np.zeros((1, 11), np.int32)}, 'lines of 10 tokens, got 11'),
    ({'attention_mask': np.ones((2, 5))}, 'attention_mask is like tokens'),
    ({'positions': np.ones((1, 6), np.int32)}, 'positions are like tokens'),
  ],
)
def test_wrong_shapes_are_refused(wrong, said):
  model = model_of('gpt2')
  arguments = {'tokens': TOKENS, **wrong}
  with pytest.raises(ValueError, match=said):
    model.apply(model.params, **arguments)


def test_tokens_are_whole_numbers():
  model = model_of('gpt2')
  with pytest.raises(TypeError, match='whole numbers'):
    model.apply(model.params, TOKENS.astype(np.float32))


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    ({'steps': 0}, 'steps is at least 1'),
    ({'steps': 6}, 'lines of 10 tokens, got 11'),
    ({'attention_mask': np.eye(2, 6)}, 'pad on the left'),
  ],
)
def test_what_cannot_be_continued_is_refused(wrong, said):
  model = model_of('gpt2')
  arguments = {'steps': 2, **wrong}
  with pytest.raises(ValueError, match=said):
    models.greedy(model.decoder, model.params, TOKENS, **arguments)
