"""The recurrent network against its formulas."""

import functools

import jax
import numpy as np
import pytest

from arithmetic import recurrent


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_equals_a_literal_network():
  config = recurrent.Config(vocabulary_size=7, layers=2, width=5)
  shapes = jax.eval_shape(
    functools.partial(recurrent.init, config=config), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )
  tokens = rng.integers(7, size=(3, 6)).astype(np.int32)
  logits = jax.jit(functools.partial(recurrent.apply, config=config))(
    params, tokens
  )
  p = jax.tree.map(lambda x: x.astype(np.float64), params)
  for line, found in zip(tokens, logits, strict=True):
    states = [(np.zeros(5), np.zeros(5)) for _ in range(2)]
    for token, at_token in zip(line, np.asarray(found), strict=True):
      x = p['embedding']['embedding'][token]
      for layer, (c, h) in enumerate(states):
        lstm = p[f'lstm_{layer}']
        i, f, g, o = (
          x @ lstm[f'i{n}']['kernel']
          + h @ lstm[f'h{n}']['kernel']
          + lstm[f'h{n}']['bias']
          for n in 'ifgo'
        )
        new = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        x = _sigmoid(o) * np.tanh(new)
        states[layer] = new, x
      np.testing.assert_allclose(
        at_token, x @ p['unembedding']['kernel'], atol=1e-5
      )


def test_errors():
  with pytest.raises(ValueError, match='width is at least 1, got 0'):
    recurrent.Config(vocabulary_size=7, width=0)
