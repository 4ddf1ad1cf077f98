"""What a recipe says of the vocabulary of the merged model."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from merging import patterns
from third_party import problems
from third_party.huggingface import alignment

BY_ROW = 'rows'
UNION = 'union'
BASE = 'base'
CHOICES = (
  f"say tokenizer: {{source: {BASE}}}, the name of a model, or '{UNION}'"
)


@dataclasses.dataclass(frozen=True)
class Policy:
  """What a recipe says of the vocabulary.

  Attributes:
    source: `None` if the vocabularies must be equal; `'base'`, `'union'` or the
      name of a model for the vocabulary to merge in; `'rows'` to merge row by
      row, with the tokenizer of the base.
    tokens: By token, where its row comes from. Tokens that are not in the
      vocabulary are appended.
    pad_to_multiple_of: Rounds the number of rows up; rows that pad are the mean
      of the others. Without it, the rows that the model of the vocabulary has
      beyond its tokens are kept; 1 drops them.
    chat_template: `None` for that of the tokenizer; `'auto'`, the name of a
      format, or a Jinja template.
  """

  source: str | None = None
  tokens: Mapping[str, alignment.Rule] = dataclasses.field(default_factory=dict)
  pad_to_multiple_of: int | None = None
  chat_template: str | None = None


def parse(
  tokenizer_source: Any = None, config: Any = None, chat_template: Any = None
) -> Policy:
  """Reads the values that a recipe has for the vocabulary.

  Args:
    tokenizer_source: Value of this key.
    config: Value of `tokenizer`: `source`, `tokens`, `pad_to_multiple_of`.
    chat_template: Value of this key.

  Returns:
    The policy.

  Raises:
    problems.ProblemError: With everything that is wrong.

  Examples:
    >>> parse('union').source
    'union'
    >>> rule = {'source': {'kind': 'zero'}, 'force': True}
    >>> parse(config={'tokens': {'<x>': rule}}).tokens['<x>'].force
    True
  """
  found: list[problems.Problem] = []
  values = _mapping(config, ('source', 'tokens', 'pad_to_multiple_of'), found)
  if tokenizer_source is not None and config is not None:
    found.append(
      _wrong((), 'expected tokenizer_source or tokenizer, got both', 'drop one')
    )
  source = values.get('source', UNION) if config is not None else None
  if tokenizer_source is not None:
    source = tokenizer_source
  for name, value in (('source', source), ('chat_template', chat_template)):
    if value is not None and (not isinstance(value, str) or not value):
      found.append(_wrong((name,), f'expected text, got {value!r}'))
  multiple = values.get('pad_to_multiple_of')
  if multiple is not None and (type(multiple) is not int or multiple < 1):
    found.append(
      _wrong(
        ('pad_to_multiple_of',),
        f'expected a positive integer, got {multiple!r}',
      )
    )
  rules = {}
  tokens = values.get('tokens')
  for token, value in _mapping(tokens, None, found, 'tokens').items():
    rules[str(token)] = _rule(value, ('tokens', str(token)), found)
  for name, value in (('tokens', rules), ('pad_to_multiple_of', multiple)):
    if value and source == BY_ROW:
      found.append(_wrong((name,), f'has no meaning with {BY_ROW!r}', CHOICES))
  if found:
    raise problems.ProblemError(found)
  return Policy(source, rules, multiple, chat_template)


def _rule(
  value: Any, where: tuple[str, ...], found: list[problems.Problem]
) -> alignment.Rule:
  values = _mapping(value, ('source', 'force'), found, *where)
  force = values.get('force', False)
  if not isinstance(force, bool):
    found.append(_wrong((*where, 'force'), f'expected a bool, got {force!r}'))
    force = False
  source = values.get('source')
  if source is None:
    if force:
      found.append(
        _wrong(where, 'force needs a source', 'name a model or kind: zero')
      )
    return alignment.Rule(usual=True)
  if isinstance(source, str):
    return alignment.Rule(source, force=force)
  where = (*where, 'source')
  keys = ('kind', 'model', 'token', 'token_id')
  values = _mapping(source, keys, found, *where)
  kind = values.get('kind')
  if kind == 'zero' and len(values) == 1:
    return alignment.Rule(force=force)
  model = values.get('model')
  token, row = values.get('token'), values.get('token_id')
  good = (
    kind == 'model_token'
    and isinstance(model, str)
    and ('token' in values) != ('token_id' in values)
    and (isinstance(token, str) or type(row) is int)
  )
  if not good and isinstance(source, Mapping):
    found.append(
      _wrong(
        where,
        'expected a model, {kind: zero}, or {kind: model_token, model: ...} '
        f'with a token or an integer token_id, got {source!r}',
      )
    )
  return alignment.Rule(model, token, row, force)


def _mapping(
  value: Any,
  keys: Sequence[str] | None,
  found: list[problems.Problem],
  *where: str,
) -> Mapping[str, Any]:
  """Returns a mapping with no other keys, `{}` for `None` or what is wrong."""
  if value is None:
    return {}
  if not isinstance(value, Mapping):
    found.append(_wrong(where, f'expected a mapping, got {value!r}'))
    return {}
  for key in value:
    if keys is not None and key not in keys:
      hint = patterns.suggest(str(key), keys)
      found.append(
        _wrong(
          (*where, str(key)),
          f'is unknown{hint}',
          f'expected one of {patterns.listing(keys)}',
        )
      )
  return value


def _wrong(
  where: Iterable[str], what: str, remedy: str = ''
) -> problems.Problem:
  where = ('tokenizer', *where)
  return problems.Problem(problems.Kind.CONFIG, where, what, remedy)
