"""Whether the output head of a model is its input embedding.

A tied model stores one matrix for both. Models of which some are tied and
others not have different tensors and mean different things by them, so that
they merge only once all are untied.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import enum
import math
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from merging import streams
from third_party import problems
from third_party.huggingface import embeddings

_PIECE = 1 << 22  # Entries compared at once.
_FLAG = 'tie_word_embeddings'

# Families whose configs are tied when they do not say.
_TIED_FAMILIES = frozenset(
  (
    *('gpt2', 'gpt_neo', 'gpt_bigcode', 'openai-gpt', 'opt', 'bloom', 'falcon'),
    *('mpt', 'gemma', 'gemma2', 'gemma3', 'gemma3_text', 'gemma3n', 'cohere'),
    *('cohere2', 'starcoder2', 'mamba', 'falcon_mamba', 'smollm3', 'ctrl'),
    *('xglm', 'biogpt', 'ernie4_5', 'lfm2', 'jetmoe', 'recurrent_gemma'),
    *('minicpm3', 'zamba', 'zamba2', 'youtu', 'bert', 'roberta', 'camembert'),
    *('xlm-roberta', 'albert', 'distilbert', 'electra', 'deberta-v2', 'esm'),
    *('modernbert', 'modernbert-decoder', 'bart', 'mbart', 'pegasus', 't5'),
    *('umt5', 'longt5', 'm2m_100', 'marian', 'whisper', 'switch_transformers'),
  )
)
# Tied, these scale the output: untied, they would be other functions.
_SCALED_FAMILIES = frozenset(
  ('t5', 'mt5', 'umt5', 'longt5', 'switch_transformers', 'pop2piano', 'udop')
)
_HEAD_OF_FAMILY = {'gpt_neox': 'embed_out.weight', 'internlm2': 'output.weight'}


class Model(Protocol):
  """What is needed of a checkpoint."""

  @property
  def name(self) -> str:
    """What it is called."""
    ...

  @property
  def config(self) -> Mapping[str, Any]:
    """The contents of `config.json`."""
    ...

  @property
  def specs(self) -> streams.Specs:
    """What its tensors are."""
    ...

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Reads a piece of a tensor."""
    ...


class State(enum.Enum):
  """How a model has its head."""

  TIED = 'tied'  # The embedding is the head.
  TWICE = 'tied and stored twice'  # The head is ignored.
  UNTIED = 'untied'
  HEADLESS = 'without an output head'


class Tie(NamedTuple):
  """What is known of a model's head.

  Attributes:
    state: How it is stored.
    embedding: Path of the input embedding, if there is one.
    head: Path of the output head, if it is stored.
  """

  state: State
  embedding: str | None
  head: str | None


class Duplicate(NamedTuple):
  """A head that is stored although it is tied, and has yet to be compared."""

  name: str
  source: streams.Source
  embedding: str
  head: str


class Resolution(NamedTuple):
  """Models that store their heads alike.

  Attributes:
    sources: By name.
    config_changes: What the config of the merged model has to say.
    duplicates: What `differing` has to compare before the merge counts.
    problems: Why they cannot be merged.
    notes: What was done.
  """

  sources: dict[str, streams.Source]
  config_changes: dict[str, Any]
  duplicates: tuple[Duplicate, ...]
  problems: tuple[problems.Problem, ...]
  notes: tuple[str, ...]


def find(model: Model) -> Tie:
  """Says how a model has its head, from its config and its tensors' names.

  Args:
    model: A checkpoint.

  Returns:
    What is known.
  """
  embedding = embeddings.find_input(model.specs, model.config)
  head = embeddings.find_head(model.specs, embedding)
  tied = _flag(model.config)
  if embedding is None:
    state = State.UNTIED if head else State.HEADLESS
  elif head is None:
    state = State.TIED if tied else State.HEADLESS
  else:
    state = State.TWICE if tied else State.UNTIED
  return Tie(state, embedding, head)


def resolve(models: Sequence[Model], *, untie: bool = False) -> Resolution:
  """Makes models store their heads alike.

  Models that are all tied lose the copies of the head that some store: it is
  stored once. Models that are tied in part are refused, unless they are to be
  untied: then a tied model's head is read from its embedding.

  Args:
    models: Checkpoints; the first is that whose config the result gets.
    untie: Whether the result has a head of its own.

  Returns:
    The models, or why they cannot be merged.
  """
  ties = {model.name: find(model) for model in models}
  sources: dict[str, streams.Source] = {each.name: each for each in models}
  duplicates = tuple(
    Duplicate(model.name, model, tie.embedding, tie.head)
    for model in models
    for tie in [ties[model.name]]
    if tie.state is State.TWICE and tie.embedding and tie.head
  )
  tied = [
    name for name, tie in ties.items() if tie.state in (State.TIED, State.TWICE)
  ]
  untied = [name for name, tie in ties.items() if tie.state is State.UNTIED]
  if not tied:
    return Resolution(sources, {}, (), (), ())
  if untied and not untie:
    problem = problems.Problem(
      problems.Kind.INCOMPATIBLE,
      (),
      f'the input embedding is the output head in {_names(tied)}, but not in '
      f'{_names(untied)}',
      'say --untie to give each model a head of its own',
    )
    return Resolution(sources, {}, duplicates, (problem,), ())
  if not untie:
    notes = []
    for each in duplicates:
      kept = {path: path for path in each.source.specs if path != each.head}
      sources[each.name] = streams.Renamed(each.source, kept)
      notes.append(
        f'{each.name}: {each.head} is tied to {each.embedding}, stored once'
      )
    return Resolution(sources, {}, duplicates, (), tuple(notes))
  found = []
  notes = []
  stored = next((tie.head for tie in ties.values() if tie.head), None)
  for model in models:
    tie = ties[model.name]
    family = model.config.get('model_type')
    if tie.state in (State.TIED, State.TWICE) and family in _SCALED_FAMILIES:
      found.append(
        problems.Problem(
          problems.Kind.INCOMPATIBLE,
          (model.name,),
          f'a tied {family} model scales its output, an untied one does not',
          'merge without --untie, with models that are all tied',
        )
      )
    elif tie.state is State.TIED and tie.embedding:
      head = stored or _usual_head(tie.embedding, family)
      names = {path: path for path in model.specs} | {head: tie.embedding}
      sources[model.name] = streams.Renamed(model, names)
      notes.append(f'{model.name}: {head} is read from {tie.embedding}')
  changes = _set_flag(models[0].config, False)
  return Resolution(sources, changes, duplicates, tuple(found), tuple(notes))


def differing(duplicates: Sequence[Duplicate]) -> tuple[problems.Problem, ...]:
  """Compares heads that should be their embeddings, byte for byte.

  This reads tensors. Libraries ignore such a head or use it, by their version.

  Args:
    duplicates: What a resolution left to be compared.

  Returns:
    A problem for each that differs.
  """
  return tuple(
    problems.Problem(
      problems.Kind.INPUT,
      (each.name, each.head),
      f'differs from {each.embedding}, though config.json ties them',
      f'set {_FLAG} to false if the head counts, or else remove the tensor',
    )
    for each in duplicates
    if not _equal(each)
  )


def _equal(each: Duplicate) -> bool:
  first, second = (
    each.source.specs[each.embedding],
    each.source.specs[each.head],
  )
  if first.shape != second.shape or first.dtype != second.dtype:
    return False
  size = math.prod(first.shape)
  for start in range(0, size, _PIECE):
    left = np.empty(min(_PIECE, size - start), first.dtype)
    right = np.empty_like(left)
    each.source.read(each.embedding, start, left)
    each.source.read(each.head, start, right)
    if not np.array_equal(left.view(np.uint8), right.view(np.uint8)):
      return False
  return True


def _flag(config: Mapping[str, Any]) -> bool:
  for path, value in embeddings.walk(config):
    if path[-1] == _FLAG and isinstance(value, bool):
      return value
  return config.get('model_type') in _TIED_FAMILIES


def _set_flag(config: Mapping[str, Any], value: bool) -> dict[str, Any]:
  """Sets it in the config and wherever an inner one says otherwise."""
  changes: dict[str, Any] = {_FLAG: value}
  for path, said in embeddings.walk(config):
    if path[-1] == _FLAG and said != value:
      inner = changes
      for key in path[:-1]:
        inner = inner.setdefault(key, {})
      inner[_FLAG] = value
  return changes


def _usual_head(embedding: str, family: Any) -> str:
  prefix = 'language_model.' if embedding.startswith('language_model.') else ''
  return prefix + _HEAD_OF_FAMILY.get(family, 'lm_head.weight')


def _names(names: Sequence[str]) -> str:
  return ', '.join(names)
