"""Brings models of different vocabularies to one: which row goes where.

A token that a model lacks gets, for this model, the row of a rule if there is
one for the token; else that of the only model that has the token; else that of
the base; else, where the base lacks it too, the mean over the models that have
it; and zeros where none has it. The base gets rows by the same rules, so that
a token of one expert alone changes in no model and keeps that expert's row.

This is what mergekit does, with two differences: the mean is taken in float32,
and rows without a token are kept (see `align`).
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from merging import patterns
from third_party import problems
from third_party.huggingface import remapped
from third_party.huggingface import tokenizer


class Vocabulary(NamedTuple):
  """The vocabulary of one model.

  Attributes:
    name: Of the model.
    tokenizer: Its tokens.
    rows: Of its embedding; tokens beyond have none.
  """

  name: str
  tokenizer: tokenizer.Tokenizer
  rows: int


class Rule(NamedTuple):
  """Where a token's row comes from.

  Attributes:
    model: Whose row it is; `None` for zeros, or if `usual`.
    token: Text of the token there, if it is another one.
    row: Its row there, instead.
    force: Whether models that have the token get the row too.
    usual: Whether the row is found as without a rule; for tokens that are only
      to be there.
  """

  model: str | None = None
  token: str | None = None
  row: int | None = None
  force: bool = False
  usual: bool = False


class Output(NamedTuple):
  """The vocabulary of the merged model.

  Attributes:
    tokens: The row of each token.
    additions: Tokens that the tokenizer it comes from has to be extended by.
    ordinary: How many of them are no added tokens where they come from.
    conflicts: Tokens that models add with different settings; the first counts.
  """

  tokens: dict[str, int]
  additions: tuple[tuple[int, tokenizer.Added], ...]
  ordinary: int
  conflicts: tuple[str, ...]


def unite(
  donor: tokenizer.Tokenizer,
  others: Sequence[Vocabulary],
  wanted: Sequence[str] = (),
) -> Output:
  """Appends to a vocabulary the tokens it lacks.

  They come behind its last token: first the ordinary ones of all models, then
  the added ones, model by model and row by row, then those that are wanted.

  Args:
    donor: The vocabulary that keeps its rows.
    others: Vocabularies with more tokens; none to leave it as it is.
    wanted: Tokens that there must be.

  Returns:
    The vocabulary.

  Examples:
    >>> first = tokenizer.Tokenizer({'a': 0, 'b': 1}, {})
    >>> second = Vocabulary('x', tokenizer.Tokenizer({'b': 0, 'c': 1}, {}), 2)
    >>> unite(first, [second]).tokens
    {'a': 0, 'b': 1, 'c': 2}
  """
  tokens = dict(donor.tokens)
  after = max(tokens.values(), default=-1) + 1
  added: dict[str, tokenizer.Added] = dict(donor.added)
  new: list[tokenizer.Added] = []
  conflicts: dict[str, None] = {}
  ordinary: list[str] = []
  for each in others:
    for token in _by_row(each):
      info = each.tokenizer.added.get(token)
      if info is None:
        ordinary.append(token)
      elif token not in added:
        added[token] = info
        new.append(info)
      elif added[token] != info:
        conflicts[token] = None
  plain = [
    tokenizer.Added(token)
    for token in dict.fromkeys(ordinary)
    if token not in tokens and token not in added
  ]
  known = {*tokens, *added, *(each.content for each in plain)}
  extra = [
    tokenizer.Added(token)
    for token in dict.fromkeys(wanted)
    if token not in known
  ]
  additions = []
  for info in (*plain, *new, *extra):
    if info.content not in tokens:
      tokens[info.content] = after
      after += 1
    additions.append((tokens[info.content], info))
  return Output(tokens, tuple(additions), len(plain), tuple(conflicts))


def _by_row(each: Vocabulary) -> list[str]:
  found = [
    (row, token)
    for token, row in each.tokenizer.tokens.items()
    if row < each.rows
  ]
  return [token for _, token in sorted(found)]


def align(
  models: Sequence[Vocabulary],
  tokens: Mapping[str, int],
  rows: int,
  *,
  donor: str,
  base: str | None,
  rules: Mapping[str, Rule],
  averaged: int,
) -> tuple[dict[str, remapped.RowMap], int]:
  """Says for each model where the rows of a vocabulary come from.

  Rows without a token, such as those that pad an embedding, stay where they
  are in models where they have no token either; in others they are the row of
  the model that the vocabulary comes from.

  Args:
    models: Their vocabularies.
    tokens: The row of each token in the new vocabulary.
    rows: Rows of the new embedding; tokens beyond have none.
    donor: Name of the model that the new vocabulary comes from.
    base: Name of the model whose row stands in for missing ones, if any.
    rules: For tokens that are treated otherwise.
    averaged: Rows from here on are the mean of those before.

  Returns:
    By name the rows of each model, and how many tokens are in no model.

  Raises:
    problems.ProblemError: With everything that is wrong with the rules.
  """
  named = sorted(
    (row, token) for token, row in tokens.items() if row < averaged
  )
  texts = [token for _, token in named]
  ids = np.array([row for row, _ in named], np.int32)
  names = [each.name for each in models]
  own = np.stack([_rows(each, texts) for each in models])
  counts = (own >= 0).sum(axis=0)
  fills: dict[int, tuple[tuple[str, int], ...]] = {}
  found: list[problems.Problem] = []
  forced = np.zeros(len(texts), bool)
  nowhere = 0
  ruled = np.array([token in rules for token in texts], bool)
  for i in np.flatnonzero((counts < len(models)) | ruled):
    rule = rules.get(texts[i])
    having = [(n, int(r)) for n, r in zip(names, own[:, i], strict=True)]
    having = [(name, row) for name, row in having if row >= 0]
    from_base = [(name, row) for name, row in having if name == base]
    if rule is not None and not rule.usual:
      fill, problem = _ruled(texts[i], rule, models)
      found += problem
      forced[i] = rule.force
    else:
      fill = tuple(from_base or having)
      nowhere += not having
    if fill:
      fills[int(ids[i])] = fill
  if found:
    raise problems.ProblemError(found)
  maps = {}
  unnamed = np.ones(averaged, bool)
  unnamed[ids] = False
  known = {each.name: each for each in models}
  for row in np.flatnonzero(unnamed):
    if row < known[donor].rows:
      fills[int(row)] = ((donor, int(row)),)
  for each, mine in zip(models, own, strict=True):
    table = np.full(rows, -1, np.int32)
    table[ids] = np.where(forced, -1, mine)
    free = np.zeros(averaged, bool)
    free[: each.rows] = True
    taken = np.fromiter(each.tokenizer.tokens.values(), np.int64)
    free[taken[taken < averaged]] = False
    kept = np.flatnonzero(free & unnamed)
    table[kept] = kept
    maps[each.name] = remapped.RowMap(table, fills, averaged)
  return maps, nowhere


def _rows(each: Vocabulary, texts: Sequence[str]) -> np.ndarray:
  get = each.tokenizer.tokens.get
  found = np.fromiter((get(token, -1) for token in texts), np.int32, len(texts))
  return np.where(found < each.rows, found, -1)


def _ruled(
  token: str, rule: Rule, models: Sequence[Vocabulary]
) -> tuple[tuple[tuple[str, int], ...], list[problems.Problem]]:
  """Returns the row that a rule gives, or what is wrong with it."""
  if rule.model is None:
    return (), []
  known = {each.name: each for each in models}
  where = ('tokenizer', 'tokens', token)
  if rule.model not in known:
    return (), [
      problems.Problem(
        problems.Kind.CONFIG,
        where,
        f'there is no model {rule.model!r}'
        f'{patterns.suggest(rule.model, known)}',
        f'expected one of {patterns.listing(known)}',
      )
    ]
  model = known[rule.model]
  text = token if rule.token is None else rule.token
  row = rule.row
  if row is None:
    row = model.tokenizer.tokens.get(text)
  if row is None or not 0 <= row < model.rows:
    got = 'has no such token' if row is None else f'has no row {row}'
    return (), [
      problems.Problem(
        problems.Kind.CONFIG,
        where,
        f'expected a row of {rule.model} for {text!r}, which {got} in its '
        f'embedding of {model.rows} rows',
        'name another model or token',
      )
    ]
  return ((rule.model, row),), []
