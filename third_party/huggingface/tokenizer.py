"""The vocabulary of a model directory, read as data: nothing is run.

Read are `tokenizer.json`, or else `vocab.json` or a SentencePiece
`tokenizer.model`, and what `added_tokens.json`, `tokenizer_config.json` and
`special_tokens_map.json` add to it.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import hashlib
import json
from typing import Any
from typing import NamedTuple

from third_party import problems
from third_party.huggingface import json_files
from third_party.huggingface import layout
from third_party.huggingface import sentencepiece

WHOLE = 'tokenizer.json'
CONFIG = 'tokenizer_config.json'
SPECIAL = 'special_tokens_map.json'
ADDED = 'added_tokens.json'
PIECES = 'tokenizer.model'
VOCAB = 'vocab.json'
# The first that is there counts; those of the second kind are hashed alone.
_MAIN = (WHOLE, VOCAB, PIECES)
_UNREAD = (
  'spiece.model',
  'sentencepiece.bpe.model',
  'vocab.txt',
  'tekken.json',
)
_ROLES = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)
_LISTS = ('additional_special_tokens', 'extra_special_tokens')
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_MAX_ID = 2**24  # Far above any vocabulary; tables have so many rows.


class Added(NamedTuple):
  """A token that is matched in text before all others.

  Attributes:
    content: Its text.
    single_word: Whether it does not match inside of words.
    lstrip: Whether it takes the white space before it.
    rstrip: Whether it takes the white space after it.
    normalized: Whether it is matched in normalised text.
    special: Whether decoding may skip it.
  """

  content: str
  single_word: bool = False
  lstrip: bool = False
  rstrip: bool = False
  normalized: bool = True
  special: bool = False


class Tokenizer(NamedTuple):
  """A vocabulary.

  Attributes:
    tokens: The row of each token in the embedding.
    added: By content, the tokens that are matched before all others.
  """

  tokens: Mapping[str, int]
  added: Mapping[str, Added]


def fingerprint(directory: layout.Directory) -> str | None:
  """Returns what is equal for directories of equal vocabularies.

  Large files are hashed and not parsed. Vocabularies may be equal although
  this is not.

  Args:
    directory: Of a model.

  Returns:
    A digest, or `None` if there is no tokenizer.

  Raises:
    problems.ProblemError: A file is not sound.
  """
  main = _main(directory)
  if main is None:
    return None
  digest = hashlib.sha256(main.encode())
  digest.update(_bytes(directory, main))
  config = directory.load_json(CONFIG)
  small = [
    directory.load_json(ADDED),
    config.get('added_tokens_decoder'),
    _special(directory, config),
  ]
  digest.update(json.dumps(small, sort_keys=True).encode())
  return digest.hexdigest()


def read(directory: layout.Directory) -> Tokenizer:
  """Reads the vocabulary of a model.

  Args:
    directory: Of a model.

  Returns:
    The vocabulary.

  Raises:
    problems.ProblemError: There is no tokenizer, or a file is not sound or of
      an unknown kind.
  """
  main = _main(directory)
  if main is None:
    raise directory.refuse(
      (),
      f'has no tokenizer: expected {WHOLE}, {VOCAB} or {PIECES}',
      'add its files',
    )
  if main in _UNREAD:
    raise directory.refuse(
      (main,),
      f'is of a kind that is not read, and there is no {WHOLE}',
      f'save the tokenizer as {WHOLE}',
    )
  tokens: dict[str, int] = {}
  added: dict[str, Added] = {}
  if main == PIECES:
    try:
      pieces = sentencepiece.pieces(_bytes(directory, main))
    except ValueError as error:
      raise directory.refuse(
        (main,),
        f'is not a SentencePiece model: {error}',
        f'save the tokenizer as {WHOLE}',
      ) from error
    tokens.update({piece: i for i, piece in reversed([*enumerate(pieces)])})
  elif main == VOCAB:
    tokens.update(_ids(directory, main, directory.load_json(main)))
  else:
    content = directory.load_json(WHOLE)
    tokens.update(_model(directory, WHOLE, content.get('model')))
    _add(directory, WHOLE, content.get('added_tokens'), tokens, added)
  listed = directory.load_json(ADDED)
  for token, number in _ids(directory, ADDED, listed).items():
    if token not in tokens:
      tokens[token] = number
      added[token] = Added(token)
  config = directory.load_json(CONFIG)
  decoder = config.get('added_tokens_decoder') or {}
  if not isinstance(decoder, dict):
    raise directory.refuse(
      (CONFIG, 'added_tokens_decoder'), f'expected an object, got {decoder!r}'
    )
  entries = [
    {**entry, 'id': int(number) if number.isdecimal() else number}
    for number, entry in decoder.items()
    if isinstance(entry, dict)
  ]
  _add(directory, CONFIG, entries, tokens, added)
  for token in _special(directory, config):
    if token not in tokens:  # The libraries append it when they load.
      tokens[token] = max(tokens.values(), default=-1) + 1
      added[token] = Added(token, normalized=False, special=True)
  return Tokenizer(tokens, added)


def extended(
  directory: layout.Directory, numbered: Iterable[tuple[int, Added]]
) -> dict[str, bytes]:
  """Returns the files of a tokenizer with more tokens that are matched first.

  Args:
    directory: Whose tokenizer is extended.
    numbered: The tokens with their rows.

  Returns:
    By name, the files that change.

  Raises:
    problems.ProblemError: A file is not sound.
  """
  numbered = sorted(numbered)
  files = {}
  if WHOLE in directory.names:
    content = directory.load_json(WHOLE)
    entries = list(content.get('added_tokens') or ())
    entries += [{'id': i, **token._asdict()} for i, token in numbered]
    entries.sort(key=lambda entry: entry['id'])
    files[WHOLE] = _dump({**content, 'added_tokens': entries})
  config = directory.load_json(CONFIG)
  if WHOLE not in files or 'added_tokens_decoder' in config:
    decoder = dict(config.get('added_tokens_decoder') or {})
    decoder |= {str(i): token._asdict() for i, token in numbered}
    files[CONFIG] = _dump({**config, 'added_tokens_decoder': decoder})
  if WHOLE not in files or ADDED in directory.names:
    listed = directory.load_json(ADDED)
    new = {token.content: i for i, token in numbered}
    files[ADDED] = _dump({**listed, **new})
  return files


def _main(directory: layout.Directory) -> str | None:
  return next(
    (name for name in (*_MAIN, *_UNREAD) if name in directory.names), None
  )


def _bytes(directory: layout.Directory, name: str) -> bytes:
  where = (directory.model, name)
  fd = json_files.open_file(directory.locate(name), where)
  try:
    with open(fd, 'rb') as file:
      content = file.read(json_files.MAX_BYTES + 1)
  except OSError as error:
    raise json_files.unreadable(error, where) from error
  if len(content) > json_files.MAX_BYTES:
    raise directory.refuse(
      (name,),
      f'has more than the {json_files.MAX_BYTES} bytes that are allowed',
    )
  return content


def _model(
  directory: layout.Directory, name: str, model: Any
) -> Mapping[str, int]:
  """The vocabulary proper of a `tokenizer.json`."""
  vocabulary = model.get('vocab') if isinstance(model, dict) else None
  if isinstance(vocabulary, dict):
    return _ids(directory, name, vocabulary)
  if isinstance(vocabulary, list) and all(
    isinstance(entry, list) and entry and isinstance(entry[0], str)
    for entry in vocabulary
  ):
    return {entry[0]: i for i, entry in reversed([*enumerate(vocabulary)])}
  raise directory.refuse(
    (name,),
    'expected a vocabulary at model.vocab: an object of tokens to numbers, or '
    f'a list of tokens with scores; got {type(vocabulary).__name__}',
    'save the tokenizer again with a current library',
  )


def _ids(
  directory: layout.Directory, name: str, vocabulary: Mapping[str, Any]
) -> Mapping[str, int]:
  for token, number in vocabulary.items():
    if type(number) is not int or not 0 <= number <= _MAX_ID:
      raise _no_id(directory, name, token, number)
  return vocabulary


def _add(
  directory: layout.Directory,
  name: str,
  entries: Any,
  tokens: dict[str, int],
  added: dict[str, Added],
) -> None:
  """Takes what a file lists as added; the first file counts."""
  for entry in entries or ():
    content = entry.get('content') if isinstance(entry, dict) else None
    if not isinstance(content, str):
      raise directory.refuse(
        (name,), f'expected a token that is added, got {entry!r}'
      )
    number = entry.get('id')
    if type(number) is not int or not 0 <= number <= _MAX_ID:
      raise _no_id(directory, name, content, number)
    if content not in added:
      tokens[content] = number
      flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
      added[content] = Added(content, **flags)


def _no_id(
  directory: layout.Directory, name: str, token: str, number: Any
) -> problems.ProblemError:
  return directory.refuse(
    (name, token), f'expected a row of the embedding, got {number!r}'
  )


def _special(
  directory: layout.Directory, config: Mapping[str, Any]
) -> list[str]:
  """Returns the tokens that have a role, each once."""
  found = []
  for source in (config, directory.load_json(SPECIAL)):
    values = [source.get(role) for role in _ROLES]
    for name in _LISTS:
      several = source.get(name) or ()
      if isinstance(several, Mapping):
        several = several.values()
      values += several if not isinstance(several, str) else [several]
    for value in values:
      content = value.get('content') if isinstance(value, dict) else value
      if isinstance(content, str):
        found.append(content)
  return list(dict.fromkeys(found))


def _dump(content: Any) -> bytes:
  return (json.dumps(content, ensure_ascii=False, indent=2) + '\n').encode()
