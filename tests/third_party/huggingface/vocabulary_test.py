"""Policies for vocabularies, on directories."""

import json
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from third_party import problems
from third_party.huggingface import alignment
from third_party.huggingface import chat_templates
from third_party.huggingface import checkpoint
from third_party.huggingface import layout
from third_party.huggingface import policies
from third_party.huggingface import tokenizer
from third_party.huggingface import vocabulary

WIDTH = 4
EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
CONFIG = {'model_type': 'llama', 'hidden_size': WIDTH, 'bos_token_id': 0}


class Maker:
  """Writes tiny models and opens them."""

  def __init__(self, root):
    self.root = root
    self.weights = {}
    self.opened = []

  def __call__(
    self,
    name,
    tokens,
    rows=None,
    *,
    added=(),
    config=None,
    files=None,
    tied=False,
    extra=None,
  ):
    path = self.root / name
    path.mkdir()
    rows = len(tokens) + len(added) if rows is None else rows
    rng = np.random.default_rng(len(self.weights))
    shapes = {EMBEDDING: (rows, WIDTH), 'model.norm.weight': (WIDTH,)}
    if not tied:
      shapes[HEAD] = (rows, WIDTH)
    weights = {
      key: rng.normal(size=shape).astype(np.float32)
      for key, shape in (shapes | (extra or {})).items()
    }
    self.weights[name] = weights
    safetensors_numpy.save_file(weights, path / 'model.safetensors')
    written = {
      'config.json': CONFIG
      | {'vocab_size': rows, 'tie_word_embeddings': tied}
      | (config or {}),
      'tokenizer_config.json': {'bos_token': tokens[0] if tokens else None},
      **(files or {}),
    }
    if tokens:
      written['tokenizer.json'] = {
        'model': {
          'type': 'BPE',
          'vocab': {token: i for i, token in enumerate(tokens)},
          'merges': [],
        },
        'added_tokens': [
          {'id': len(tokens) + i, 'content': token, 'special': True}
          for i, token in enumerate(added)
        ],
      }
    for key, content in written.items():
      raw = isinstance(content, bytes)
      (path / key).write_bytes(content if raw else json.dumps(content).encode())
    self.opened.append(checkpoint.open_checkpoint(path, name=name))
    return self.opened[-1]


@pytest.fixture
def make(tmp_path):
  maker = Maker(tmp_path)
  yield maker
  for each in maker.opened:
    each.close()


def _read(source, path):
  spec = source.specs[path]
  out = np.empty(spec.shape, spec.dtype)
  source.read(path, 0, out.reshape(-1))
  return out


def _messages(plan):
  return '\n'.join(map(str, plan.problems))


def _written(plan, path):
  """The tokenizer that a plan writes."""
  path.mkdir()
  for name, content in plan.files.items():
    copied = isinstance(content, pathlib.Path)
    (path / name).write_bytes(content.read_bytes() if copied else content)
  return tokenizer.read(layout.Directory(path, 'out'))


def test_equal_vocabularies_stay_as_they_are(make):
  files = {'generation_config.json': {'top_k': 1}, 'modeling.py': b'boom'}
  base = make('base', ['a', 'b'], 5, files=files)
  x = make('x', ['a', 'b'], 5)
  plan = vocabulary.plan(policies.Policy(), base, [x])
  assert not plan.problems
  assert not plan.config_changes
  assert plan.sources == {'base': base, 'x': x}
  assert set(plan.files) == {
    'tokenizer.json',
    'tokenizer_config.json',
    'generation_config.json',
  }
  assert (
    plan.files['tokenizer.json'].read_bytes()
    == (base.directory / 'tokenizer.json').read_bytes()
  )


def test_unequal_vocabularies_are_refused_by_default(make):
  base = make('base', ['a', 'b', 'c'])
  longer = make('longer', ['a', 'b', 'c'], added=['<pad>'])
  swapped = make('swapped', ['a', 'c', 'b'])
  padded = make('padded', ['a', 'b', 'c'], 8)
  plan = vocabulary.plan(policies.Policy(), base, [longer, swapped, padded])
  assert [p.kind for p in plan.problems] == [problems.Kind.INCOMPATIBLE] * 3
  first, second, third = sorted(map(str, plan.problems))
  assert first == (
    'longer: expected the vocabulary of base (3 tokens and 3 rows), got 4 '
    "tokens and 4 rows, 1 more: '<pad>'; say tokenizer: {source: base}, the "
    "name of a model, or 'union'"
  )
  assert 'got 3 tokens and 8 rows' in second
  assert "2 in other rows: 'c', 'b'" in third
  assert "'rows' to merge row by row" in third


def test_rows_of_equal_number_merge_if_asked(make):
  base = make('base', ['a', 'b', 'c'])
  swapped = make('swapped', ['a', 'c', 'b'])
  padded = make('padded', ['a', 'b', 'c'], 8)
  policy = policies.Policy('rows')
  assert not vocabulary.plan(policy, base, [swapped]).problems
  assert 'padded' in _messages(vocabulary.plan(policy, base, [padded]))


def test_models_without_tokenizers_are_held_to_their_rows(make):
  base = make('base', ['a', 'b', 'c'])
  bare = make('bare', [], 3)
  plan = vocabulary.plan(policies.Policy(), base, [bare])
  assert not plan.problems
  assert 'bare: has no tokenizer' in '\n'.join(plan.notes)
  shorter = make('shorter', [], 2)
  assert 'got 2 rows' in _messages(
    vocabulary.plan(policies.Policy(), base, [shorter])
  )


@pytest.mark.parametrize('tied', [False, True])
def test_union(make, tmp_path, tied):
  base = make('base', ['a', 'b', 'c'], tied=tied)
  x = make('x', ['c', 'a', 'd'], added=['<x>'], tied=tied)
  y = make('y', ['d', 'a', 'b', 'c'], tied=tied)
  plan = vocabulary.plan(policies.Policy('union'), base, [x, y])
  assert not plan.problems
  assert plan.config_changes == {'vocab_size': 5}
  tokens = {'a': 0, 'b': 1, 'c': 2, 'd': 3, '<x>': 4}
  written = _written(plan, tmp_path / 'out')
  assert written.tokens == tokens
  assert written.added['<x>'].special
  assert not written.added['d'].special
  for path in [EMBEDDING] if tied else [EMBEDDING, HEAD]:
    b, x_, y_ = (make.weights[name][path] for name in ('base', 'x', 'y'))
    d = (x_[2] + y_[0]) / 2
    expected = {
      'base': [b[0], b[1], b[2], d, x_[3]],
      'x': [x_[1], b[1], x_[0], x_[2], x_[3]],
      'y': [y_[1], y_[2], y_[3], y_[0], x_[3]],
    }
    for name, rows in expected.items():
      np.testing.assert_allclose(
        _read(plan.sources[name], path), np.stack(rows), rtol=1e-6
      )
  assert any('text is cut differently' in note for note in plan.notes)


def test_the_vocabulary_of_an_expert_brings_its_ids(make):
  base = make('base', ['a', 'b', 'c'], config={'eos_token_id': 1})
  x = make(
    'x',
    ['b', 'a'],
    added=['<x>', '<y>'],
    config={'bos_token_id': 1, 'eos_token_id': 2},
    files={'generation_config.json': {'eos_token_id': 2}},
  )
  plan = vocabulary.plan(policies.Policy('x'), base, [x])
  assert not plan.problems
  assert plan.config_changes == {
    'vocab_size': 4,
    'bos_token_id': 1,
    'eos_token_id': 2,
  }
  assert plan.sources['x'] is x
  b, x_ = make.weights['base'][HEAD], make.weights['x'][HEAD]
  np.testing.assert_array_equal(
    _read(plan.sources['base'], HEAD), [b[1], b[0], x_[2], x_[3]]
  )
  assert plan.files['generation_config.json'].parent.name == 'x'


def test_rows_that_pad_are_kept_unless_a_multiple_is_asked_for(make):
  base = make('base', ['a', 'b', 'c'], 8)
  x = make('x', ['a', 'b', 'c'], added=['<x>'])
  plan = vocabulary.plan(policies.Policy('union'), base, [x])
  assert not plan.config_changes
  b, x_ = make.weights['base'][HEAD], make.weights['x'][HEAD]
  np.testing.assert_array_equal(
    _read(plan.sources['base'], HEAD), [*b[:3], x_[3], *b[4:]]
  )
  np.testing.assert_array_equal(_read(plan.sources['x'], HEAD), [*x_, *b[4:]])
  policy = policies.Policy('union', pad_to_multiple_of=3)
  plan = vocabulary.plan(policy, base, [x])
  assert plan.config_changes == {'vocab_size': 6}
  mean = x_.mean(axis=0)
  np.testing.assert_allclose(
    _read(plan.sources['x'], HEAD), [*x_, mean, mean], rtol=1e-6
  )
  policy = policies.Policy('base', pad_to_multiple_of=1)
  plan = vocabulary.plan(policy, base, [x])
  assert plan.config_changes == {'vocab_size': 3}
  np.testing.assert_array_equal(_read(plan.sources['base'], HEAD), b[:3])


def test_tokens_beyond_the_rows_are_told_and_left_alone(make):
  base = make('base', ['a', 'b', 'c'], 3, added=['[PAD]'])
  x = make('x', ['a', 'b', 'c'], 3)
  plan = vocabulary.plan(policies.Policy('base'), base, [x])
  assert not plan.problems
  assert not plan.config_changes
  assert "tokens without a row in its embedding: '[PAD]'" in ' '.join(
    plan.notes
  )
  # An expert that has a row for it gives it to all, in a union.
  y = make('y', ['a', 'b', 'c'], added=['[PAD]'])
  plan = vocabulary.plan(policies.Policy('union'), base, [x, y])
  assert plan.config_changes == {'vocab_size': 4}
  np.testing.assert_array_equal(
    _read(plan.sources['x'], HEAD)[3], make.weights['y'][HEAD][3]
  )


def test_rules_for_tokens(make, tmp_path):
  base = make('base', ['a', 'b', 'c'])
  x = make('x', ['a', 'b', 'c'])
  policy = policies.Policy(
    'base',
    {
      'b': alignment.Rule('x', force=True),
      '<new>': alignment.Rule('x', row=2),
      '<zero>': alignment.Rule(),
    },
  )
  plan = vocabulary.plan(policy, base, [x])
  assert not plan.problems
  b, x_ = make.weights['base'][HEAD], make.weights['x'][HEAD]
  zero = np.zeros(WIDTH)
  np.testing.assert_array_equal(
    _read(plan.sources['base'], HEAD), [b[0], x_[1], b[2], x_[2], zero]
  )
  assert _written(plan, tmp_path / 'out').tokens['<zero>'] == 4


def test_all_tensors_by_token_follow(make):
  # The bias by name, the other since no other size of the model is 9.
  extra = {'lm_head.bias': (9,), 'odd.logit_scale': (9,), 'odd.proj': (4, 9)}
  base = make('base', list('abcdefghi'), extra=extra)
  shorter = {
    path: tuple(8 if n == 9 else n for n in s) for path, s in extra.items()
  }
  x = make('x', list('abcdefgh'), extra={**shorter, 'odd.proj': (4, 9)})
  plan = vocabulary.plan(policies.Policy('x'), base, [x])
  assert not plan.problems
  specs = plan.sources['base'].specs
  changed = {p for p in specs if specs[p].shape != base.specs[p].shape}
  assert changed == {EMBEDDING, HEAD, 'lm_head.bias', 'odd.logit_scale'}


def test_embeddings_that_do_not_fit_are_refused(make):
  base = make('base', ['a', 'b', 'c'])
  x = make('x', ['a', 'b'], extra={HEAD: (3, WIDTH)})
  y = make('y', ['a', 'b'], extra={EMBEDDING: (2, 5)})
  plan = vocabulary.plan(policies.Policy('base'), base, [x, y])
  text = _messages(plan)
  assert f'x / {HEAD}: expected (2, 4)' in text
  assert f'y / {EMBEDDING}: expected (2, 4)' in text
  assert all(p.kind is problems.Kind.INCOMPATIBLE for p in plan.problems)


def test_sources_that_are_not_there(make):
  base = make('base', ['a', 'b', 'c'])
  plan = vocabulary.plan(policies.Policy('unoin'), base, [])
  assert "no model 'unoin'; did you mean 'union'?" in _messages(plan)
  bare = make('bare', [], 3)
  plan = vocabulary.plan(policies.Policy('bare'), base, [bare])
  assert 'bare: has no tokenizer' in _messages(plan)


def test_all_problems_are_found_at_once(make):
  base = make('base', ['a', 'b', 'c'], tied=True)
  x = make('x', ['a', 'b', 'c'], files={'special_tokens_map.json': b'{'})
  y = make('y', ['a', 'b', 'c'], files={'added_tokens.json': b'[]'})
  plan = vocabulary.plan(policies.Policy(), base, [x, y])
  text = _messages(plan)
  assert 'say --untie' in text
  assert 'x / special_tokens_map.json' in text
  assert 'y / added_tokens.json' in text


def test_untying_and_mapping_together(make):
  base = make('base', ['a', 'b', 'c'], tied=True)
  x = make('x', ['c', 'b', 'a'])
  plan = vocabulary.plan(policies.Policy('base'), base, [x], untie=True)
  assert not plan.problems
  assert plan.config_changes == {'tie_word_embeddings': False}
  embedding = make.weights['base'][EMBEDDING]
  np.testing.assert_array_equal(_read(plan.sources['base'], HEAD), embedding)
  np.testing.assert_array_equal(
    _read(plan.sources['x'], HEAD), make.weights['x'][HEAD][::-1]
  )


@pytest.mark.parametrize(
  ('wish', 'text'),
  [
    ('auto', '{{ two }}'),
    ('chatml', chat_templates.NAMED['chatml'].text),
    ('{{ messages }} literal', '{{ messages }} literal'),
  ],
)
def test_chat_templates(make, wish, text):
  old = {'chat_template': '{{ one }}', 'bos_token': 'a'}
  base = make(
    'base',
    ['a', 'b'],
    files={
      'tokenizer_config.json': old,
      'chat_template.json': {'chat_template': 'q'},
    },
  )
  x = make('x', ['a', 'b'], files={'chat_template.jinja': b'{{ two }}\n'})
  several = [{'name': 'default', 'template': '{{ two }}'}]
  y = make(
    'y',
    ['a', 'b'],
    files={
      'tokenizer_config.json': {'chat_template': several, 'bos_token': 'a'},
    },
  )
  policy = policies.Policy(chat_template=wish)
  plan = vocabulary.plan(policy, base, [x, y])
  assert not plan.problems
  assert plan.files['chat_template.jinja'].decode() == text
  config = json.loads(plan.files['tokenizer_config.json'])
  assert config == {'chat_template': text, 'bos_token': 'a'}
  assert 'chat_template.json' not in plan.files
  missing = any("'<|im_start|>', '<|im_end|>'" in note for note in plan.notes)
  assert missing == (wish == 'chatml')


def test_the_template_that_is_there_stays(make):
  files = {'chat_template.jinja': b'{{ one }}\n'}
  base = make('base', ['a', 'b'], files=files)
  policy = policies.Policy(chat_template='auto')
  plan = vocabulary.plan(policy, base, [])
  assert isinstance(plan.files['chat_template.jinja'], pathlib.Path)
  bare = make('bare', ['a', 'b'])
  plan = vocabulary.plan(policy, bare, [])
  assert 'chat_template: no model has one' in plan.notes
  wrong = policies.Policy(chat_template='chatlm')
  text = _messages(vocabulary.plan(wrong, base, []))
  assert "did you mean 'chatml'?" in text


def test_a_plan_reads_no_tensors(make, monkeypatch):
  base = make('base', ['a', 'b', 'c'])
  x = make('x', ['a', 'b'], added=['<x>'])
  monkeypatch.setattr(
    checkpoint.Checkpoint, 'read', lambda *_: pytest.fail('read a tensor')
  )
  assert not vocabulary.plan(policies.Policy('union'), base, [x]).problems
