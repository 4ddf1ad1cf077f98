"""One vocabulary for the models of a merge, by an explicit policy.

Unless a policy says otherwise, the models must have the same tokens in the same
rows. A policy maps the rows of every model to those of one vocabulary, before
any merging, and says which files of tokenizers and chat templates the merged
model gets. Nothing but headers and JSON is read here.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import alignment
from third_party.huggingface import embeddings
from third_party.huggingface import members as members_lib
from third_party.huggingface import policies
from third_party.huggingface import remapped
from third_party.huggingface import side_files
from third_party.huggingface import tied
from third_party.huggingface import tokenizer


class VocabularyPlan(NamedTuple):
  """How models come to one vocabulary.

  Attributes:
    sources: By name the models, with the rows and the head they get.
    config_changes: What differs from the config of the base; see `changed`.
    files: By name what goes beside the weights: bytes, or a file to copy.
    duplicates: Heads to be compared by `tied.differing` before the merge
      counts; this reads tensors.
    problems: Why the models cannot be merged so.
    notes: What a person should know.
  """

  sources: dict[str, streams.Source]
  config_changes: dict[str, Any]
  files: dict[str, bytes | pathlib.Path]
  duplicates: tuple[tied.Duplicate, ...]
  problems: tuple[problems.Problem, ...]
  notes: tuple[str, ...]


def plan(
  policy: policies.Policy,
  base: members_lib.Checkpoint | None,
  models: Sequence[members_lib.Checkpoint],
  *,
  untie: bool = False,
) -> VocabularyPlan:
  """Brings models to one vocabulary and one way to store their heads.

  Args:
    policy: What is wanted.
    base: Whose config, and by default whose tokenizer, the merged model gets;
      `None` for the first of the models.
    models: The others, by unique names.
    untie: Whether the merged model has an output head of its own.

  Returns:
    The plan; its problems are all that were found.
  """
  everyone = list(models) if base is None else [base, *models]
  heads = tied.resolve(everyone, untie=untie)
  result = VocabularyPlan(
    heads.sources,
    heads.config_changes,
    {},
    heads.duplicates,
    heads.problems,
    heads.notes,
  )
  members = []
  found: list[problems.Problem] = []
  parsed: dict[str | None, tokenizer.Tokenizer] = {}
  for model in everyone:
    try:
      source = heads.sources[model.name]
      members.append(members_lib.Member(model, source, parsed))
    except problems.ProblemError as error:
      found += error.problems
  try:
    if not found:
      result = _plan(policy, base, members, result)
  except problems.ProblemError as error:
    found += error.problems
  return result._replace(problems=(*result.problems, *found))


def _plan(
  policy: policies.Policy,
  base: members_lib.Checkpoint | None,
  members: Sequence[members_lib.Member],
  result: VocabularyPlan,
) -> VocabularyPlan:
  """Adds vocabulary and files to what is known of heads."""
  first = members[0]
  notes = members_lib.assumed(members)
  sources, changes = result.sources, result.config_changes
  if policy.source in (None, policies.BY_ROW):
    by_row = policy.source == policies.BY_ROW
    found = members_lib.unequal(members, by_row=by_row)
    if found:
      raise problems.ProblemError(found)
    donor, additions, tokens = first, (), {}
    if policy.chat_template is not None:
      tokens = donor.tokens()
  else:
    donor = _donor(policy.source, members)
    output, maps, told = _align(policy, base, members, donor)
    notes += told
    additions, tokens = output.additions, output.tokens
    paths = members_lib.shared_paths(members)
    sources = {
      each.name: each.source
      if maps[each.name].is_identity(each.rows)
      else remapped.Remapped(
        each.source, paths, maps[each.name], result.sources
      )
      for each in members
    }
    rows = len(maps[first.name].rows)
    changes = changed(changes, _sizes(first, donor, rows))
  files = side_files.choose(first, donor, additions)
  if policy.chat_template is not None:
    wish = policy.chat_template
    notes += side_files.set_template(files, wish, members, donor, tokens)
  return result._replace(
    sources=sources,
    config_changes=changes,
    files=files,
    notes=(*result.notes, *notes),
  )


def changed(
  config: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a config with other values, those of inner mappings included.

  Examples:
    >>> changed({'a': 1, 'b': {'c': 2, 'd': 3}}, {'b': {'c': 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
  """
  result = dict(config)
  for key, value in changes.items():
    if isinstance(value, Mapping):
      result[key] = changed(config.get(key) or {}, value)
    else:
      result[key] = value
  return result


def _donor(
  source: str | None, members: Sequence[members_lib.Member]
) -> members_lib.Member:
  """Returns the model whose vocabulary keeps its rows."""
  if source in (policies.BASE, policies.UNION):
    return members[0]
  for each in members:
    if source == each.name:
      return each
  names = [each.name for each in members]
  words = (*policies.WORDS, *names)
  raise problems.refuse(
    problems.Kind.CONFIG,
    ('tokenizer', 'source'),
    f'there is no model {source!r}{patterns.suggest(str(source), words)}',
    f'expected one of {patterns.listing(words)}',
  )


def _align(
  policy: policies.Policy,
  base: members_lib.Checkpoint | None,
  members: Sequence[members_lib.Member],
  donor: members_lib.Member,
) -> tuple[alignment.Output, dict[str, remapped.RowMap], list[str]]:
  """Returns the vocabulary, the rows of each model, and notes."""
  own = donor.read_tokenizer()
  usual = members[0].read_tokenizer() if members[0].fingerprint else own
  vocabularies = [
    alignment.Vocabulary(
      each.name,
      each.read_tokenizer() if each.fingerprint else usual,
      each.rows,
    )
    for each in members
  ]
  union = policy.source == policies.UNION
  output = alignment.unite(
    own, vocabularies if union else (), tuple(policy.tokens)
  )
  used = [
    row
    for token, row in output.tokens.items()
    if row < donor.rows
    or token not in own.tokens
    or token in policy.tokens
    or (union and _is_held(token, vocabularies))
  ]
  count = max(used, default=-1) + 1
  rows = averaged = max(count, donor.rows)
  if policy.pad_to_multiple_of is not None:
    averaged = count
    rows = -(-count // policy.pad_to_multiple_of) * policy.pad_to_multiple_of
  maps, nowhere = alignment.align(
    vocabularies,
    output.tokens,
    rows,
    donor=donor.name,
    base=base.name if base is not None else None,
    rules=policy.tokens,
    averaged=averaged,
  )
  notes = _told(output, vocabularies, donor, rows, averaged, nowhere)
  return output, maps, notes


def _is_held(token: str, vocabularies: Sequence[alignment.Vocabulary]) -> bool:
  return any(
    each.tokenizer.tokens.get(token, each.rows) < each.rows
    for each in vocabularies
  )


def _told(
  output: alignment.Output,
  vocabularies: Sequence[alignment.Vocabulary],
  donor: members_lib.Member,
  rows: int,
  averaged: int,
  nowhere: int,
) -> list[str]:
  """Says what became of the vocabulary."""
  notes = [
    f'vocabulary: {len(output.tokens)} tokens, {rows} rows '
    f'({donor.name} has {donor.rows})'
  ]
  if output.ordinary:
    notes.append(
      f'{output.ordinary} ordinary tokens of other models are added as whole '
      'words to the tokenizer, whose merges stay as they are: text is cut '
      'differently than by those models'
    )
  if output.conflicts:
    notes.append(
      'tokens that models add with different settings, the first counts: '
      + patterns.listing(output.conflicts)
    )
  if nowhere:
    notes.append(f'{nowhere} tokens are in no model: their rows are zeros')
  if rows > averaged:
    notes.append(f'{rows - averaged} rows pad: the mean of the others')
  for each in vocabularies:
    beyond = [t for t, row in each.tokenizer.tokens.items() if row >= each.rows]
    if beyond:
      notes.append(
        f'{each.name}: tokens without a row in its embedding: '
        + patterns.listing(beyond)
      )
  return notes


def _sizes(
  first: members_lib.Member, donor: members_lib.Member, rows: int
) -> dict[str, Any]:
  """What the config of the base has to say of another vocabulary."""
  config = first.model.config
  values = {
    path: rows
    for path, said in embeddings.vocabulary_sizes(config)
    if said == first.rows
  } or {('vocab_size',): rows}
  if donor is not first:
    values |= {
      path: value
      for path, value in embeddings.walk(donor.model.config)
      if path[-1].endswith(('_token_id', '_token_index'))
    }
  old = dict(embeddings.walk(config))
  changes: dict[str, Any] = {}
  for path, value in values.items():
    if old.get(path) != value:
      inner = changes
      for key in path[:-1]:
        inner = inner.setdefault(key, {})
      inner[path[-1]] = value
  return changes
