"""CLIP: against literal NumPy, and laws."""

import functools

import jax
import numpy as np
import pytest

import merging
from tests.third_party.huggingface.models import oracles
from third_party.huggingface import models

_VISION = {
  'hidden_size': 12,
  'intermediate_size': 10,
  'num_hidden_layers': 1,
  'num_attention_heads': 3,
  # Not a multiple: what is left over at the edges is not seen.
  'image_size': 7,
  'patch_size': 3,
}
_TEXT = {
  'vocab_size': 11,
  'hidden_size': 8,
  'intermediate_size': 10,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'max_position_embeddings': 6,
  'eos_token_id': 9,
  'hidden_act': 'gelu',
}
CONFIG = {
  'model_type': 'clip',
  'projection_dim': 5,
  'vision_config': _VISION,
  'text_config': _TEXT,
}
IMAGES = np.random.default_rng(1).standard_normal((3, 3, 7, 7), np.float32)
# The first end token of a line counts; a greater token is no end.
TOKENS = np.array([[1, 9, 2, 9, 4], [3, 10, 2, 9, 0]], np.int32)
ENDS = (1, 3)


@functools.cache
def model_of(legacy=False):
  config = CONFIG
  if legacy:
    config = CONFIG | {'text_config': _TEXT | {'eos_token_id': 2}}
  return models.load(oracles.draw(models.expected_specs(config)), config)


def _logits(params, images, tokens):
  return _compiled()(params, images, tokens)


@functools.cache
def _compiled():
  return jax.jit(model_of().apply)


def _images(params):
  return np.stack(
    [
      oracles.image_features(
        params,
        image,
        patch=3,
        layers=1,
        heads=3,
        activation=oracles.quick_gelu,
      )
      for image in IMAGES
    ]
  )


def _texts(params, ends):
  return np.stack(
    [
      oracles.text_features(
        params, line, end, layers=1, heads=2, activation=oracles.gelu
      )
      for line, end in zip(TOKENS, ends, strict=True)
    ]
  )


def test_features_are_what_numpy_says():
  model = model_of()
  seen = jax.jit(model.image_features)(model.params, IMAGES)
  np.testing.assert_allclose(seen, _images(model.params), rtol=0, atol=2e-5)
  told = jax.jit(model.text_features)(model.params, TOKENS)
  np.testing.assert_allclose(
    told, _texts(model.params, ENDS), rtol=0, atol=2e-5
  )


def test_early_configs_take_the_greatest_token_for_the_end():
  model = model_of(legacy=True)
  told = jax.jit(model.text_features)(model.params, TOKENS)
  theirs = _texts(model.params, (1, 1))
  np.testing.assert_allclose(told, theirs, rtol=0, atol=2e-5)


def test_logits_are_scaled_cosines():
  model = model_of()
  logits = _logits(model.params, IMAGES, TOKENS)
  seen, told = _images(model.params), _texts(model.params, ENDS)
  scale = np.exp(np.float64(model.params['logit_scale']))
  theirs = [
    [scale * (i @ t) / np.linalg.norm(i) / np.linalg.norm(t) for t in told]
    for i in seen
  ]
  np.testing.assert_allclose(logits, theirs, rtol=0, atol=5e-5)


def test_features_of_zeros_have_no_direction():
  np.testing.assert_array_equal(models.normalize(np.zeros((2, 3), 'f4')), 0)


def test_what_follows_the_end_changes_nothing():
  model = model_of()
  features = jax.jit(model.text_features)
  other = TOKENS.copy()
  other[0, 2:], other[1, 4] = 7, 8
  np.testing.assert_allclose(
    features(model.params, other),
    features(model.params, TOKENS),
    rtol=0,
    atol=1e-6,
  )


@pytest.mark.parametrize(
  ('prefix', 'projected'), [('vision_model.', True), ('', False)]
)
def test_a_vision_tower_alone_makes_the_features_it_makes_together(
  prefix, projected
):
  whole = model_of()
  tower = {
    name.replace('vision_model.', prefix): x
    for name, x in whole.params.items()
    if name.startswith('vision_model.')
    or (projected and name == 'visual_projection.weight')
  }
  config = {'model_type': 'clip_vision_model', 'projection_dim': 5, **_VISION}
  model = models.load(tower, config)
  assert model.text_features is None
  features = jax.jit(model.apply)(model.params, IMAGES)
  if not projected:
    features = features @ whole.params['visual_projection.weight'].T
  np.testing.assert_allclose(features, _images(whole.params), rtol=0, atol=2e-5)


def test_a_text_tower_alone_makes_the_features_it_makes_together():
  whole = model_of()
  tower = {k: x for k, x in whole.params.items() if k.startswith('text')}
  config = {'model_type': 'clip_text_model', 'projection_dim': 5, **_TEXT}
  model = models.load(tower, config)
  assert model.image_features is None
  features = jax.jit(model.apply)(model.params, TOKENS)
  theirs = _texts(whole.params, ENDS)
  np.testing.assert_allclose(features, theirs, rtol=0, atol=2e-5)


def test_a_merged_tower_is_put_into_a_whole_model():
  whole = model_of()
  tower = {
    k: x for k, x in whole.params.items() if k.startswith('vision_model')
  }
  experts = {'a': tower, 'b': tower}
  merged = merging.merge(merging.average(), tower, experts)
  labels = np.array([0, 1, 1], np.int32)
  score = models.zero_shot(
    _logits, {**whole.params, **merged}, IMAGES, TOKENS, labels
  )
  best = _logits(whole.params, IMAGES, TOKENS).argmax(1)
  assert score == np.float32((np.asarray(best) == labels).mean())


@pytest.mark.slow
def test_stacked_models_run_as_one_and_have_gradients():
  model = model_of()
  stacked = jax.tree.map(lambda x: np.stack([x, 0.5 * x]), model.params)

  def score(params):
    return model.apply(params, IMAGES, TOKENS).sum()

  grads = jax.jit(jax.vmap(jax.grad(score)))(stacked)
  assert all(np.isfinite(x).all() for x in grads.values())
  used = {name for name, x in grads.items() if np.any(np.asarray(x) != 0)}
  assert used == set(model.params)


def test_wrong_shapes_are_refused():
  model = model_of()
  with pytest.raises(ValueError, match=r'images are \[batch, 3, 7, 7\]'):
    model.image_features(model.params, IMAGES[:, :, :6])
  with pytest.raises(ValueError, match='lines of 6 tokens, got 7'):
    model.text_features(model.params, np.zeros((1, 7), np.int32))
