"""What is watched on the way, and what heads have to hold."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arithmetic import auxiliary
from arithmetic import interpret
from arithmetic import layouts
from arithmetic import tasks
from arithmetic import tokenizers
from arithmetic import transformer
from tests.arithmetic import lines

TASK = tasks.long_multiplication
LAYOUT = layouts.Layout(notation='infix', operand_order='reversed', pad=True)
TOKENIZER = tokenizers.DigitTokenizer('*')
CONFIG = transformer.Config(
  vocabulary_size=TOKENIZER.vocabulary_size,
  max_length=LAYOUT.length(TASK, 3),
  layers=2,
  heads=2,
  width=8,
)


@functools.cache
def watched():
  """Problems, lines, parameters, and what a decoder says of them."""
  operands = lines.problems(TASK, 40)
  batch = LAYOUT.write(TASK, operands, tokenizer=TOKENIZER, level=3)
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config=CONFIG), jax.random.key(0)
  )
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.5).astype(np.float32), shapes
  )
  tokens = batch.tokens[:, :-1]

  @jax.jit
  def run(params):
    return (
      transformer.apply(params, tokens, config=CONFIG),
      *transformer.watch(params, tokens, config=CONFIG),
    )

  return operands, batch, params, run(params)


def _norm(x, p):
  return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p['scale']


def test_what_is_watched_is_what_the_logits_are_made_of():
  _, batch, params, (logits, again, features) = watched()
  np.testing.assert_allclose(logits, again, atol=1e-5)
  tokens = np.asarray(batch.tokens[:, :-1])
  heads, stream = map(np.asarray, features)
  assert heads.shape == (1, 2, *tokens.shape, 2, 4)
  x = params['embedding']['embedding'][tokens]
  x = x + params['positions'][: tokens.shape[1]]
  for i in range(2):
    p = params[f'blocks_{i}']
    output = p['attention']['output']
    x = x + heads[0, i].reshape(x.shape) @ output['kernel'] + output['bias']
    y = _norm(x, p['perceptron_norm']) @ p['up']['kernel'] + p['up']['bias']
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    x = x + y @ p['down']['kernel'] + p['down']['bias']
    np.testing.assert_allclose(stream[0, i], x, atol=1e-3, rtol=1e-4)
  said = _norm(x, params['norm']) @ params['unembedding']['kernel']
  np.testing.assert_allclose(logits, said, atol=1e-3, rtol=1e-4)


def test_columns_are_those_of_long_multiplication():
  operands = watched()[0]
  columns = np.asarray(tasks.running_columns(operands))
  for (a, b), found in zip(
    zip(*map(tasks.to_strings, operands), strict=True), columns, strict=True
  ):
    carry = 0
    for k, total in enumerate(found.tolist()):
      due = carry
      for i, x in enumerate(reversed(a)):
        for j, y in enumerate(reversed(b)):
          due += int(x) * int(y) * (i + j == k)
      assert total == due
      assert due % 10 == int(a) * int(b) // 10**k % 10
      carry = due // 10


def test_the_loss_is_of_tokens_that_are_predicted():
  operands, batch, _, (_, _, features) = watched()
  regression = auxiliary.Regression(weight=3.0, layer=0, heads=(1,), scale=20.0)
  kernel = np.random.default_rng(1).normal(size=4).astype(np.float32)
  weight = np.arange(40) % 3 > 0
  columns = np.asarray(tasks.running_columns(operands))
  found = jax.jit(regression.loss)(
    kernel, features, batch, jnp.asarray(columns), jnp.asarray(weight)
  )
  heads = np.asarray(features.heads)[0, 0, :, :, 1]
  errors = []
  for line in np.flatnonzero(weight):
    places = np.flatnonzero(np.asarray(batch.answer[line]))
    for k, place in enumerate(places[:6]):  # The seventh is the end mark.
      said = heads[line, place - 1] @ kernel
      errors.append((said - columns[line, k] / 20) ** 2)
  np.testing.assert_allclose(found, 3.0 * np.mean(errors), rtol=1e-4)
  np.testing.assert_array_equal(regression.init(CONFIG), np.zeros(4))


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    ({'weight': -1.0}, 'weight is not negative'),
    ({'scale': 0.0}, 'scale is positive'),
    ({'heads': ()}, 'heads are one or more'),
    ({'heads': (1, 1)}, 'each once'),
    ({'heads': (2,)}, 'heads are below 2'),
    ({'layer': 2}, 'one of 2 blocks'),
  ],
)
def test_bad_regressions(fields, match):
  with pytest.raises(ValueError, match=match):
    auxiliary.Regression(**fields).init(CONFIG)


def test_loops_are_watched_one_by_one():
  config = dataclasses.replace(CONFIG, loops=3, layers=1)
  shapes = jax.eval_shape(
    lambda key: transformer.watch(
      transformer.init(key, config), jnp.zeros((2, 5), jnp.int32), config=config
    ),
    jax.random.key(0),
  )
  assert shapes[1].heads.shape == (3, 1, 2, 5, 2, 4)
  assert shapes[1].stream.shape == (3, 1, 2, 5, 8)


def test_waves_explain_waves():
  digits = np.arange(10)
  kinds = [
    np.cos(2 * np.pi * digits / 10 + 0.3),
    3 * np.sin(4 * np.pi * digits / 10),
    (-1.0) ** digits + 7,
    np.cos(6 * np.pi * digits / 10),  # Of a frequency that is not asked for.
    np.cos(2 * np.pi * digits / 10) + np.cos(8 * np.pi * digits / 10),
  ]
  vectors = jnp.asarray(np.stack(kinds, axis=1), jnp.float32)
  found = interpret.fourier.explained(vectors)
  np.testing.assert_allclose(found, [1, 1, 1, 0, 0.5], atol=1e-5)
  every = interpret.fourier.explained(vectors, (0, 1, 2, 3, 4, 5))
  np.testing.assert_allclose(every, 1, atol=1e-5)
  with pytest.raises(ValueError, match='from 0 to half of 10'):
    interpret.fourier.basis(10, (1, 6))
