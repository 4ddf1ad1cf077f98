"""The files beside the weights: of the tokenizer, of generation and so on.

They are copied as they are. Code is never among them, and what a template says
is not run.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
import re

from merging import patterns
from third_party.huggingface import chat_templates
from third_party.huggingface import json_files
from third_party.huggingface import members as members_lib
from third_party.huggingface import tokenizer

Files = dict[str, bytes | pathlib.Path]

# About inputs and generation, not about tokens.
_NOT_TOKENS = re.compile(
  r'(generation|processor|preprocessor|image_|video_|feature_).*'
)


def choose(
  first: members_lib.Member,
  donor: members_lib.Member,
  additions: Sequence[tuple[int, tokenizer.Added]] = (),
) -> Files:
  """Returns what goes beside the weights of a merged model.

  Args:
    first: The model whose config the merged model gets.
    donor: The model whose tokenizer it gets. Files about tokens are this one's
      alone, and so are others that both have.
    additions: Tokens that its tokenizer is extended by, with their rows.

  Returns:
    By name: bytes, or a file to copy.

  Raises:
    problems.ProblemError: A file is not sound, or leads out of its directory.
  """
  files: Files = {}
  for each in (first, donor):
    for name in each.model.side_files:
      if each is donor or _NOT_TOKENS.fullmatch(name):
        files[name] = pathlib.Path(each.directory.locate(name))
  if additions:
    files |= tokenizer.extended(donor.directory, additions)
  return files


def set_template(
  files: Files,
  wish: str,
  members: Sequence[members_lib.Member],
  donor: members_lib.Member,
  tokens: Mapping[str, int],
) -> list[str]:
  """Gives files the chat template that is wanted.

  Args:
    files: Changed in place.
    wish: See `chat_templates.choose`.
    members: The models.
    donor: The model whose tokenizer is in the files.
    tokens: The vocabulary of the merged model; `{}` if it is not known.

  Returns:
    Notes.

  Raises:
    problems.ProblemError: A file is not sound, or the wish cannot be met.
  """
  automatic = members if wish == 'auto' else ()
  templates = [chat_templates.read(each.directory) for each in automatic]
  chosen = chat_templates.choose(wish, templates)
  if chosen is None:
    return ['chat_template: no model has one']
  notes = []
  missing = [token for token in chosen.tokens if token not in tokens]
  if missing and tokens:
    notes.append(
      f'chat_template: {wish} needs tokens that are not in the vocabulary: '
      + patterns.listing(missing)
    )
  now = chat_templates.read(donor.directory)
  if now is not None and now.strip() == chosen.text.strip():
    return notes
  config = None
  written = files.get(tokenizer.CONFIG)
  if isinstance(written, bytes):
    config = json_files.parse(written, (tokenizer.CONFIG,))
  elif written is not None:
    config = donor.directory.load_json(tokenizer.CONFIG)
  files.pop(chat_templates.OLD_FILE, None)
  files |= chat_templates.files(chosen.text, config)
  return notes
