"""Heads that are embeddings."""

import numpy as np
import pytest

from merging import streams
from third_party import problems
from third_party.huggingface import tied

EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'


class Model(streams.InMemory):
  def __init__(self, name, weights, **config):
    super().__init__(weights)
    self.name = name
    self.config = config


def _weights(*paths, seed=0):
  rng = np.random.default_rng(seed)
  return {p: rng.normal(size=(3, 2)).astype(np.float32) for p in paths}


def _model(name, *paths, seed=0, **config):
  return Model(name, _weights(*paths, seed=seed), **config)


@pytest.mark.parametrize(
  ('paths', 'config', 'state'),
  [
    ((EMBEDDING,), {'tie_word_embeddings': True}, tied.State.TIED),
    ((EMBEDDING,), {'model_type': 'gpt2'}, tied.State.TIED),
    ((EMBEDDING,), {'model_type': 'llama'}, tied.State.HEADLESS),
    (
      (EMBEDDING,),
      {'model_type': 'gpt2', 'tie_word_embeddings': False},
      tied.State.HEADLESS,
    ),
    ((EMBEDDING, HEAD), {'tie_word_embeddings': True}, tied.State.TWICE),
    ((EMBEDDING, HEAD), {}, tied.State.UNTIED),
    (
      (EMBEDDING, HEAD),
      {'text_config': {'tie_word_embeddings': True}},
      tied.State.TWICE,
    ),
    (('gpt_neox.embed_in.weight', 'embed_out.weight'), {}, tied.State.UNTIED),
    (('visual.conv',), {'tie_word_embeddings': True}, tied.State.HEADLESS),
    (
      ('transformer.wte.weight', HEAD),
      {'model_type': 'gpt2'},
      tied.State.TWICE,
    ),
    (
      (EMBEDDING, 'model.layers.0.attention.output.weight'),
      {'model_type': 'gemma'},
      tied.State.TIED,
    ),
  ],
)
def test_states(paths, config, state):
  assert tied.find(_model('m', *paths, **config)).state is state


def test_models_that_are_alike_stay():
  first = _model('a', EMBEDDING, tie_word_embeddings=True)
  second = _model('b', EMBEDDING, tie_word_embeddings=True)
  result = tied.resolve([first, second])
  assert result == ({'a': first, 'b': second}, {}, (), (), ())
  first, second = (_model(name, EMBEDDING, HEAD) for name in 'ab')
  assert tied.resolve([first, second]).sources == {'a': first, 'b': second}
  assert tied.resolve([first], untie=True).config_changes == {}


def test_a_head_that_is_tied_is_stored_once():
  first = _model('a', EMBEDDING, tie_word_embeddings=True)
  second = _model('b', EMBEDDING, HEAD, tie_word_embeddings=True)
  result = tied.resolve([first, second])
  assert not result.problems
  assert list(result.sources['b'].specs) == [EMBEDDING]
  assert len(result.duplicates) == len(result.notes) == 1


def test_tied_and_untied_are_refused():
  first = _model('a', EMBEDDING, tie_word_embeddings=True)
  second = _model('b', EMBEDDING, HEAD)
  (problem,) = tied.resolve([first, second]).problems
  assert problem.kind is problems.Kind.INCOMPATIBLE
  assert str(problem) == (
    'the input embedding is the output head in a, but not in b; say --untie to '
    'give each model a head of its own'
  )


def test_untied_models_have_heads():
  first = _model('a', EMBEDDING, seed=1, tie_word_embeddings=True)
  second = _model('b', EMBEDDING, HEAD)
  result = tied.resolve([first, second], untie=True)
  assert not result.problems
  assert result.config_changes == {'tie_word_embeddings': False}
  out = np.empty(6, np.float32)
  result.sources['a'].read(HEAD, 0, out)
  expected = _weights(EMBEDDING, seed=1)[EMBEDDING]
  np.testing.assert_array_equal(out.reshape(3, 2), expected)
  assert result.sources['b'] is second


@pytest.mark.parametrize(
  ('embedding', 'family', 'head'),
  [
    (EMBEDDING, 'qwen2', HEAD),
    ('gpt_neox.embed_in.weight', 'gpt_neox', 'embed_out.weight'),
    (
      'language_model.model.embed_tokens.weight',
      'gemma3',
      'language_model.lm_head.weight',
    ),
  ],
)
def test_the_usual_name_of_a_head(embedding, family, head):
  config = {'tie_word_embeddings': True, 'model_type': family}
  model = _model('a', embedding, text_config=dict(config), **config)
  result = tied.resolve([model], untie=True)
  assert set(result.sources['a'].specs) == {embedding, head}
  assert result.config_changes == {
    'tie_word_embeddings': False,
    'text_config': {'tie_word_embeddings': False},
  }


def test_families_that_scale_stay_tied():
  model = _model('a', 'shared.weight', model_type='t5')
  (problem,) = tied.resolve([model], untie=True).problems
  assert 'a tied t5 model scales its output' in str(problem)


@pytest.mark.parametrize('same', [True, False])
def test_duplicates_are_compared(same, monkeypatch):
  monkeypatch.setattr(tied, '_PIECE', 4)
  weights = _weights(EMBEDDING)
  weights[HEAD] = weights[EMBEDDING].copy()
  if not same:
    weights[HEAD][2, 1] += 1
  model = Model('a', weights, tie_word_embeddings=True)
  found = tied.differing(tied.resolve([model]).duplicates)
  assert bool(found) != same
  if found:
    assert str(found[0]).startswith(f'a / {HEAD}: differs from {EMBEDDING}')


def test_heads_of_another_dtype_differ():
  weights = _weights(EMBEDDING)
  weights[HEAD] = weights[EMBEDDING].astype(np.float16)
  model = Model('a', weights, tie_word_embeddings=True)
  assert len(tied.differing(tied.resolve([model]).duplicates)) == 1
