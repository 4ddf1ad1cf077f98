"""What a recipe says of tokenizers and chat templates."""

from collections.abc import Mapping
import dataclasses

from third_party import problems
from third_party import strict_yaml
from third_party.huggingface import alignment
from third_party.huggingface import policies
from third_party.mergekit import names

KEYS = ('tokenizer_source', 'tokenizer', 'chat_template')


def read_policy(fields: Mapping[str, strict_yaml.Node]) -> policies.Policy:
  """Reads `tokenizer_source`, `tokenizer` and `chat_template`.

  Args:
    fields: The values that a recipe has for some of these keys.

  Returns:
    The policy, which names models as `str(ModelRef)`.

  Raises:
    problems.ProblemError: With everything that is wrong.

  Examples:
    >>> text = '{tokenizer: {source: org/model, pad_to_multiple_of: 64}}'
    >>> policy = read_policy(strict_yaml.load(text).mapping())
    >>> policy.source, policy.pad_to_multiple_of
    ('org/model', 64)
  """
  found = problems.Collector()
  source: str | None = None
  tokens: dict[str, alignment.Rule] = {}
  multiple = template = None
  if 'chat_template' in fields:
    with found:
      template = fields['chat_template'].string()
  if 'tokenizer_source' in fields:
    with found:
      source = _source(fields['tokenizer_source'])
    if 'tokenizer' in fields:
      found.problems.append(
        fields['tokenizer'].problem(
          'expected tokenizer_source or tokenizer, got both', 'drop one'
        )
      )
  elif 'tokenizer' in fields:
    source = policies.UNION
    with found:
      values = fields['tokenizer'].mapping(
        ('source', 'tokens', 'pad_to_multiple_of'), of='tokenizer'
      )
      if 'source' in values:
        with found:
          source = _source(values['source'])
      if 'pad_to_multiple_of' in values:
        with found:
          multiple = values['pad_to_multiple_of'].integer(1)
      if 'tokens' in values:
        for token, node in values['tokens'].mapping(nothing=True).items():
          with found:
            tokens[token] = _rule(node)
      for key in ('tokens', 'pad_to_multiple_of'):
        if key in values and source == policies.BY_ROW:
          raise values[key].error(
            f'has no meaning with {policies.BY_ROW!r}', policies.CHOICES
          )
  found.check()
  return policies.Policy(source, tokens, multiple, template)


def _source(node):
  if isinstance(node.value, str):
    if node.value in policies.WORDS:
      return node.value
    # As mergekit wrote it at first.
    value = node.value.removeprefix('model:')
    node = dataclasses.replace(node, value=value)
  return str(names.read_model(node))


def _rule(node):
  fields = node.mapping(('source', 'force'), of='a token')
  force = fields['force'].boolean() if 'force' in fields else False
  source = fields.get('source')
  if source is None:
    if force:
      raise node.error('force needs a source', 'name a model or kind: zero')
    return alignment.Rule(usual=True)
  if not isinstance(source.value, dict) or 'kind' not in source.value:
    return alignment.Rule(str(names.read_model(source)), force=force)
  kind = source.value['kind'].choice(('zero', 'model_token'), 'kind')
  if kind == 'zero':
    source.mapping(('kind',), of='a source')
    return alignment.Rule(force=force)
  values = source.mapping(('kind', 'model', 'token', 'token_id'), of='a source')
  if 'model' not in values or ('token' in values) == ('token_id' in values):
    raise source.error('expected model, and one of token and token_id')
  return alignment.Rule(
    str(names.read_model(values['model'])),
    values['token'].string() if 'token' in values else None,
    values['token_id'].integer(0) if 'token_id' in values else None,
    force,
  )
