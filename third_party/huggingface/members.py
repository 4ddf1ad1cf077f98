"""Models that are to merge, their vocabularies, and where these differ."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Protocol

from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import embeddings
from third_party.huggingface import layout
from third_party.huggingface import policies
from third_party.huggingface import tied
from third_party.huggingface import tokenizer


class Checkpoint(tied.Model, Protocol):
  """What is needed of a model directory."""

  @property
  def directory(self) -> pathlib.Path:
    """Where it lies."""
    ...

  @property
  def side_files(self) -> tuple[str, ...]:
    """Names of the files of its tokenizer, of generation and so on."""
    ...


class Member:
  """A model of a merge and its vocabulary.

  Attributes:
    name: Of the model.
    model: The checkpoint.
    source: Its tensors, with the output head that it gets.
    directory: Where its files lie.
    fingerprint: Equal where vocabularies are; `None` without a tokenizer.
    embedding: Path of the input embedding, if there is one.
    rows: Of the embedding.
  """

  def __init__(
    self,
    model: Checkpoint,
    source: streams.Source,
    parsed: dict[str | None, tokenizer.Tokenizer],
  ):
    """Hashes the tokenizer, but does not parse it yet.

    Args:
      model: The checkpoint.
      source: Its tensors, with the output head that it gets.
      parsed: Vocabularies by fingerprint, each parsed once.

    Raises:
      problems.ProblemError: A file is not sound.
    """
    self.name = model.name
    self.model = model
    self.source = source
    self.directory = layout.Directory(model.directory, model.name)
    self.fingerprint = tokenizer.fingerprint(self.directory)
    self.embedding = embeddings.find_input(model.specs, model.config)
    self.rows = model.specs[self.embedding].shape[0] if self.embedding else 0
    self._parsed = parsed

  def read_tokenizer(self) -> tokenizer.Tokenizer:
    """Returns the vocabulary.

    Raises:
      problems.ProblemError: There is none, or it is not sound or of an unknown
        kind.
    """
    if self.fingerprint not in self._parsed:
      self._parsed[self.fingerprint] = tokenizer.read(self.directory)
    return self._parsed[self.fingerprint]

  def tokens(self) -> Mapping[str, int]:
    """Returns the row of each token, `{}` without a tokenizer."""
    return {} if self.fingerprint is None else self.read_tokenizer().tokens


def unequal(
  members: Sequence[Member], *, by_row: bool
) -> list[problems.Problem]:
  """Says which models have another vocabulary than the first.

  Args:
    members: The models. Those without an embedding or a tokenizer are held to
      nothing that needs it.
    by_row: Whether only the numbers of rows count.

  Returns:
    A problem for each.

  Raises:
    problems.ProblemError: A tokenizer is not sound or of an unknown kind.
  """
  found = []
  whole = [each for each in members if each.embedding]
  told = set()
  for each in whole[1:]:
    if each.rows != whole[0].rows:
      found.append(_differs(each, whole[0], by_row=by_row))
      told.add(each.name)
  speaking = [each for each in members if each.fingerprint is not None]
  for each in speaking[1:]:
    if by_row or each.name in told:
      continue
    if each.fingerprint == speaking[0].fingerprint:
      continue
    if each.tokens() != speaking[0].tokens():
      found.append(_differs(each, speaking[0], by_row=False))
  return found


def assumed(members: Sequence[Member]) -> list[str]:
  """Returns notes on models without tokenizers among others that have one."""
  if all(each.fingerprint is None for each in members):
    return []
  return [
    f'{each.name}: has no tokenizer, its rows are taken to mean the same tokens'
    for each in members
    if each.fingerprint is None
  ]


def shared_paths(members: Iterable[Member]) -> tuple[str, ...]:
  """Returns the tensors with a row for each token, which all models must have.

  Args:
    members: The models.

  Returns:
    Paths.

  Raises:
    problems.ProblemError: With all models that do not fit.
  """
  members = list(members)
  found = []
  of = {}
  for each in members:
    if each.embedding is None:
      found.append(
        problems.Problem(
          problems.Kind.INCOMPATIBLE,
          (each.name,),
          'expected an embedding of tokens, got none under a known name',
          'drop the tokenizer policy',
        )
      )
      continue
    of[each.name] = set(
      embeddings.by_token(each.source.specs, each.rows, each.model.config)
    )
  if found:
    raise problems.ProblemError(found)
  # A size that is equal to the vocabulary's by chance is so in few models.
  paths = sorted(
    path
    for path in set().union(*of.values())
    if embeddings.is_known(path) or all(path in each for each in of.values())
  )
  for path in paths:
    first = next(each for each in members if path in of[each.name])
    width = _without_rows(first, path)
    for each in members:
      spec = each.source.specs.get(path)
      if path in of[each.name] and _without_rows(each, path) == width:
        continue
      shape = (each.rows, *width)
      found.append(
        problems.Problem(
          problems.Kind.INCOMPATIBLE,
          (each.name, path),
          f'expected {shape}, as wide as in {first.name} and with the rows of '
          f'{each.embedding}; got {spec.shape if spec else "no such tensor"}',
          'repair the model, or leave it out',
        )
      )
  if found:
    raise problems.ProblemError(found)
  return tuple(paths)


def _without_rows(member: Member, path: str) -> tuple[int, ...]:
  shape = [size for size in member.source.specs[path].shape if size != 1]
  return tuple(shape[1:])


def _differs(each: Member, other: Member, *, by_row: bool) -> problems.Problem:
  mine, theirs = each.tokens(), other.tokens()
  parts = [
    f'expected the vocabulary of {other.name} ({_size(other)}), '
    f'got {_size(each)}'
  ]
  if mine and theirs:
    more = [token for token in mine if token not in theirs]
    fewer = [token for token in theirs if token not in mine]
    moved = [token for token in mine if mine[token] != theirs.get(token)]
    moved = [token for token in moved if token in theirs]
    kinds = {'more': more, 'fewer': fewer, 'in other rows': moved}
    parts += [
      f'{len(tokens)} {kind}: {patterns.listing(tokens, 5)}'
      for kind, tokens in kinds.items()
      if tokens
    ]
  remedy = policies.CHOICES
  if not by_row and each.rows == other.rows:
    remedy += (
      f"; or '{policies.BY_ROW}' to merge row by row whatever the tokens are"
    )
  return problems.Problem(
    problems.Kind.INCOMPATIBLE, (each.name,), ', '.join(parts), remedy
  )


def _size(member: Member) -> str:
  tokens = member.tokens()
  known = f'{len(tokens)} tokens and ' if tokens else ''
  return f'{known}{member.rows} rows'
