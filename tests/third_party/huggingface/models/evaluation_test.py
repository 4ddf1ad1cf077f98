"""Perplexity and zero-shot accuracy, against sums by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from third_party.huggingface import models

TOKENS = np.array([[0, 3, 1, 2], [2, 2, 0, 1]], np.int32)
LOGITS = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)


def _apply(params, tokens, *, attention_mask=None):
  del tokens, attention_mask
  return params['scale'] * LOGITS


def _by_hand(pairs):
  losses = []
  for line, column in pairs:
    row = np.float64(LOGITS[line, column])
    target = TOKENS[line, column + 1]
    losses.append(math.log(sum(math.exp(x) for x in row)) - row[target])
  return math.exp(sum(losses) / len(losses))


def test_perplexity_is_that_of_all_predicted_tokens():
  ours = jax.jit(lambda p: models.perplexity(_apply, p, TOKENS))
  pairs = [(i, j) for i in range(2) for j in range(3)]
  np.testing.assert_allclose(
    ours({'scale': jnp.float32(1)}), _by_hand(pairs), rtol=1e-5
  )


def test_padding_is_neither_predicted_nor_predicts():
  mask = np.array([[0, 1, 1, 1], [1, 1, 0, 0]])
  params = {'scale': 1}
  ours = models.perplexity(_apply, params, TOKENS, attention_mask=mask)
  theirs = _by_hand([(0, 1), (0, 2), (1, 0)])
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  losses, real = models.token_losses(
    _apply, params, TOKENS, attention_mask=mask
  )
  np.testing.assert_array_equal(real, [[0, 1, 1], [1, 0, 0]])
  np.testing.assert_array_equal(losses != 0, real)


def test_losses_of_batches_add_up():
  params = {'scale': 1}
  losses, real = models.token_losses(_apply, params, TOKENS)
  total = jnp.exp(losses.sum() / real.sum().astype(jnp.float32))
  whole = models.perplexity(_apply, params, TOKENS)
  np.testing.assert_allclose(total, whole, rtol=1e-6)


def test_nothing_but_padding_has_no_perplexity():
  mask = np.zeros((2, 4))
  ours = models.perplexity(_apply, {'scale': 1}, TOKENS, attention_mask=mask)
  assert np.isnan(ours)


def test_one_token_predicts_nothing():
  with pytest.raises(ValueError, match='2 or more'):
    models.perplexity(_apply, {'scale': 1}, TOKENS[:, :1])


def test_zero_shot_counts_the_right_ones():
  def apply(params, images, tokens):
    return params['scale'] * images.sum((2, 3)) @ tokens.T

  images = np.zeros((4, 3, 2, 2), np.float32)
  for i, label in enumerate([2, 0, 1, 1]):
    images[i, label] = 1
  classes = np.eye(3, dtype=np.float32)
  labels = np.array([2, 0, 1, 0], np.int32)
  score = models.zero_shot(apply, {'scale': 1}, images, classes, labels)
  assert score == 0.75
  with pytest.raises(ValueError, match='a label for each of 4 images'):
    models.zero_shot(apply, {'scale': 1}, images, classes, labels[:3])
