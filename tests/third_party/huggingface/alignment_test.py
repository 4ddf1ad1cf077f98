"""Rows for each model, against mergekit's rules written out token by token."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from merging import streams
from third_party import problems
from third_party.huggingface import alignment
from third_party.huggingface import remapped
from third_party.huggingface import tokenizer

WIDTH = 2
NAMES = ('base', 'x', 'y', 'z')


def _vocabulary(name, tokens, rows):
  return alignment.Vocabulary(name, tokenizer.Tokenizer(tokens, {}), rows)


def _literal(vocabularies, weights, tokens, base, rules):
  """What each model's embedding becomes, where every row has a token."""

  def own(each, token):
    row = each.tokenizer.tokens.get(token)
    return weights[each.name][row] if row is not None else None

  result = {}
  for each in vocabularies:
    rows = {}
    for token, i in tokens.items():
      having = {
        v.name: own(v, token) for v in vocabularies if own(v, token) is not None
      }
      rule = rules.get(token)
      if rule is not None:
        if rule.model is None:
          default = np.zeros(WIDTH, np.float32)
        else:
          default = having[rule.model]
      elif not having:
        default = np.zeros(WIDTH, np.float32)
      elif base in having:
        default = having[base]
      else:
        default = sum(having.values()) / np.float32(len(having))
      forced = rule is not None and rule.force
      rows[i] = default if forced else having.get(each.name, default)
    result[each.name] = np.stack([rows[i] for i in range(len(tokens))])
  return result


@st.composite
def _cases(draw):
  letters = 'abcdefgh'
  vocabularies = []
  for name in NAMES:
    some = draw(st.lists(st.sampled_from(letters), unique=True, min_size=2))
    tokens = {token: i for i, token in enumerate(some)}
    vocabularies.append(_vocabulary(name, tokens, len(some)))
  extra = draw(st.sampled_from(['', 'k']))
  union = draw(st.booleans())
  base = draw(st.sampled_from([None, *NAMES]))
  donor = vocabularies[draw(st.integers(0, 3))]
  output = alignment.unite(
    donor.tokenizer, vocabularies if union else [], tuple(extra)
  )
  rules = {}
  for token in draw(
    st.lists(st.sampled_from(list(output.tokens)), unique=True, max_size=3)
  ):
    having = [v.name for v in vocabularies if token in v.tokenizer.tokens]
    model = draw(st.sampled_from([None, *having]))
    rules[token] = alignment.Rule(model, force=draw(st.booleans()))
  return vocabularies, donor.name, base, output.tokens, rules


@hypothesis.settings(max_examples=60)
@hypothesis.given(_cases())
def test_rows_are_those_of_the_rules(case):
  vocabularies, donor, base, tokens, rules = case
  rng = np.random.default_rng(0)
  weights = {
    v.name: rng.normal(size=(v.rows, WIDTH)).astype(np.float32)
    for v in vocabularies
  }
  assert sorted(tokens.values()) == list(range(len(tokens)))
  maps, _ = alignment.align(
    vocabularies,
    tokens,
    len(tokens),
    donor=donor,
    base=base,
    rules=rules,
    averaged=len(tokens),
  )
  expected = _literal(vocabularies, weights, tokens, base, rules)
  donors = {n: streams.InMemory({'wte': w}) for n, w in weights.items()}
  for name, source in donors.items():
    mapped = remapped.Remapped(source, ['wte'], maps[name], donors)
    out = np.empty(len(tokens) * WIDTH, np.float32)
    mapped.read('wte', 0, out)
    np.testing.assert_allclose(
      out.reshape(-1, WIDTH), expected[name], rtol=1e-6
    )


def test_a_vocabulary_keeps_its_rows_and_others_are_appended_in_order():
  added = tokenizer.Added('<x>', special=True)
  base = tokenizer.Tokenizer({'a': 0, 'b': 1, '<s>': 2}, {})
  x = alignment.Vocabulary(
    'x', tokenizer.Tokenizer({'<x>': 0, 'c': 1, 'b': 2}, {'<x>': added}), 3
  )
  y = _vocabulary('y', {'e': 1, 'd': 0, 'lost': 2}, 2)
  output = alignment.unite(base, [x, y], ['<new>', 'a'])
  assert output.tokens == {
    **base.tokens,
    **{'c': 3, 'd': 4, 'e': 5, '<x>': 6, '<new>': 7},
  }
  assert [row for row, _ in output.additions] == [3, 4, 5, 6, 7]
  assert output.additions[3][1] is added
  assert output.ordinary == 3


def test_an_ordinary_token_that_others_add_keeps_its_row():
  added = tokenizer.Added('b', special=True)
  x = alignment.Vocabulary('x', tokenizer.Tokenizer({'b': 0}, {'b': added}), 1)
  output = alignment.unite(tokenizer.Tokenizer({'a': 0, 'b': 1}, {}), [x])
  assert output.tokens == {'a': 0, 'b': 1}
  assert output.additions == ((1, added),)


def test_different_settings_are_told():
  mine = tokenizer.Tokenizer({'a': 0}, {'a': tokenizer.Added('a')})
  theirs = tokenizer.Tokenizer({'a': 0}, {'a': tokenizer.Added('a', True)})
  output = alignment.unite(mine, [alignment.Vocabulary('x', theirs, 1)])
  assert output.conflicts == ('a',)
  assert not output.additions


def test_rows_without_a_token_stay():
  base = _vocabulary('base', {'a': 0, 'b': 1}, 4)
  # Its rows 2 and 3: a token that is appended in row 2, and no token.
  x = _vocabulary('x', {'a': 0, 'b': 1, 'c': 2}, 4)
  # It has neither.
  y = _vocabulary('y', {'b': 0, 'a': 1}, 2)
  maps, nowhere = alignment.align(
    [base, x, y],
    {'a': 0, 'b': 1, 'c': 2},
    4,
    donor='base',
    base='base',
    rules={},
    averaged=4,
  )
  assert maps['base'].rows.tolist() == [0, 1, -1, 3]
  assert maps['x'].rows.tolist() == [0, 1, 2, 3]
  assert maps['y'].rows.tolist() == [1, 0, -1, -1]
  assert maps['y'].fills == {2: (('x', 2),), 3: (('base', 3),)}
  assert nowhere == 0


def test_the_row_of_another_token():
  base = _vocabulary('base', {'a': 0, 'b': 1}, 2)
  rules = {
    'k': alignment.Rule('base', token='b'),
    'l': alignment.Rule('base', row=0),
    'm': alignment.Rule(usual=True),
  }
  tokens = alignment.unite(base.tokenizer, [], tuple(rules)).tokens
  maps, nowhere = alignment.align(
    [base], tokens, 5, donor='base', base='base', rules=rules, averaged=5
  )
  assert maps['base'].rows.tolist() == [0, 1, -1, -1, -1]
  assert maps['base'].fills == {2: (('base', 1),), 3: (('base', 0),)}
  assert nowhere == 1


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (alignment.Rule('bse'), "no model 'bse'; did you mean 'base'"),
    (alignment.Rule('x'), "row of x for 'b', which has no such token"),
    (alignment.Rule('x', token='?'), "for '?', which has no such token"),
    (alignment.Rule('x', row=1), 'has no row 1 in its embedding of 1 rows'),
    (alignment.Rule('x', row=-1), 'has no row -1'),
  ],
)
def test_rules_that_cannot_be_met(rule, message):
  base = _vocabulary('base', {'a': 0, 'b': 1}, 2)
  x = _vocabulary('x', {'a': 0}, 1)
  with pytest.raises(problems.ProblemError) as caught:
    alignment.align(
      [base, x],
      base.tokenizer.tokens,
      2,
      donor='base',
      base='base',
      rules={'b': rule},
      averaged=2,
    )
  assert message in str(caught.value)
  assert caught.value.status == problems.Kind.CONFIG
