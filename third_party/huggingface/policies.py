"""What a recipe says of the vocabulary of the merged model."""

from collections.abc import Mapping
import dataclasses

from third_party.huggingface import alignment

BY_ROW = 'rows'
UNION = 'union'
BASE = 'base'
WORDS = (BASE, UNION, BY_ROW)
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

  @property
  def models(self) -> list[str]:
    """Names of models that it has.

    Examples:
      >>> Policy('math').models, Policy('union').models
      (['math'], [])
    """
    rules = [rule.model for rule in self.tokens.values()]
    source = None if self.source in WORDS else self.source
    return list(dict.fromkeys(each for each in (source, *rules) if each))

  def renamed(self, names: Mapping[str, str]) -> 'Policy':
    """Returns the policy with models called otherwise.

    Args:
      names: By name that models may have here, the one they get.

    Returns:
      The policy. What is no name of a model stays.

    Examples:
      >>> Policy('math').renamed({'math': 'org/model'}).source
      'org/model'
    """
    source = self.source
    if source is not None and source not in WORDS:
      source = names.get(source, source)
    tokens = {
      token: rule._replace(model=names.get(rule.model or '', rule.model))
      for token, rule in self.tokens.items()
    }
    return dataclasses.replace(self, source=source, tokens=tokens)
