"""Where a merged model may go, known before any work."""

from collections.abc import Iterable
from collections.abc import Iterator
import os
from pathlib import Path

from experiments.runtime import orbax_layout
from third_party import problems

# What a directory of a model holds; one with anything else is not deleted.
_ENDINGS = (
  *('.safetensors', '.json', '.model', '.tiktoken'),
  *('.jinja', '.md', '.yml', '.yaml', '.html', '.png'),
)
# Text is a person's, except the files that tokenizers have.
_TEXTS = ('merges.txt', 'vocab.txt')
_OTHERS = ('.gitattributes', 'LICENSE', 'NOTICE', 'USE_POLICY')
_WEIGHTS = '.safetensors'
_LONGEST_NAME = 255  # Bytes, where the file system does not say.


def resolve(target: str | os.PathLike[str]) -> Path:
  """Returns the absolute path of a target, links followed."""
  return Path(os.path.realpath(Path(target).expanduser()))


def check(
  target: Path,
  *,
  beside: Iterable[Path],
  inputs: Iterable[Path],
  overwrite: bool,
) -> list[problems.Problem]:
  """Finds all that speaks against writing a model to a place.

  Args:
    target: The directory to be, resolved.
    beside: What will be written beside it.
    inputs: Files and directories that are read.
    overwrite: Whether an old model there may be replaced.

  Returns:
    The problems: an input that the target is, contains or lies in; a parent
    that is missing or cannot be written; a name that is too long; something
    there that must not be replaced.
  """
  return [
    *_overlaps([target, *beside], inputs),
    *_parent(target, beside),
    *_occupied(target, overwrite),
  ]


def _overlaps(
  ours: list[Path], inputs: Iterable[Path]
) -> Iterator[problems.Problem]:
  for given in inputs:
    source = Path(os.path.realpath(given))
    for path in ours:
      relation = _relation(path, source)
      if relation:
        yield problems.Problem(
          problems.Kind.CONFIG,
          (str(path),),
          f'{relation} an input, {source}, and would overwrite it',
          'write to another place',
        )
        break  # What lies beside the target would say the same.


def _relation(path: Path, source: Path) -> str:
  if path == source:
    return 'is'
  if _is_in(path, source):
    return 'lies in'
  return 'contains' if _is_in(source, path) else ''


def _is_in(path: Path, folder: Path) -> bool:
  """Whether a path is a folder or below it, by whatever names."""
  if path == folder or folder in path.parents:
    return True
  try:
    status = os.stat(folder)
  except OSError:
    return False
  for each in (path, *path.parents):
    try:
      if os.path.samestat(os.stat(each), status):
        return True
    except OSError:
      continue
  return False


def _parent(target: Path, beside: Iterable[Path]) -> Iterator[problems.Problem]:
  parent = target.parent
  if not parent.is_dir():
    what = 'is not a directory' if parent.exists() else 'does not exist'
    yield problems.Problem(
      problems.Kind.CONFIG, (str(parent),), what, 'make it first'
    )
    return
  if not os.access(parent, os.W_OK | os.X_OK):
    yield problems.Problem(
      problems.Kind.SPACE,
      (str(parent),),
      'there is no permission to write, or it is read-only',
      'write to another place',
    )
  longest = _longest_name(parent)
  name = max((path.name for path in (target, *beside)), key=_length)
  if _length(name) > longest:
    extra = _length(name) - _length(target.name)
    yield problems.Problem(
      problems.Kind.CONFIG,
      (str(target),),
      f'the name has {_length(target.name)} bytes, expected at most'
      f' {longest - extra}',
      'give a shorter one',
    )


def _length(name: str) -> int:
  return len(os.fsencode(name))


def _longest_name(folder: Path) -> int:
  try:
    return os.pathconf(folder, 'PC_NAME_MAX')
  except (OSError, ValueError):
    return _LONGEST_NAME


def _occupied(target: Path, overwrite: bool) -> Iterator[problems.Problem]:
  try:
    if not os.path.lexists(target):
      return
    what = _obstacle(target)
  except OSError as error:
    # The name is too long, or a parent says no; those are told elsewhere.
    what = error.strerror or str(error)
    if not target.parent.is_dir():
      return
  if what is None and not overwrite:
    yield problems.Problem(
      problems.Kind.CONFIG,
      (str(target),),
      'exists',
      'replace it with --overwrite, or write to another place',
    )
  elif what:
    yield problems.Problem(
      problems.Kind.CONFIG,
      (str(target),),
      what,
      'delete it yourself, or write to another place',
    )


def _obstacle(target: Path) -> str | None:
  """Why something must not be replaced: `None` if it may, '' if empty."""
  if not target.is_dir():
    return 'is a file'
  if os.path.ismount(target):
    return 'is a mount point, which cannot be replaced as a whole'
  entries = sorted(os.scandir(target), key=lambda entry: entry.name)
  if not entries:
    return ''
  is_tree = any(entry.name == orbax_layout.TREE for entry in entries)
  strange = next(_strange(target, is_tree), None)
  if strange is not None:
    return f'holds {strange!r}, which is no part of a model'
  if not is_tree and not any(e.name.endswith(_WEIGHTS) for e in entries):
    return f'is not empty and holds no model (no *{_WEIGHTS})'
  if not os.access(target, os.W_OK | os.X_OK):
    return 'may not be replaced: there is no permission to delete what it holds'
  return None


def _strange(folder: Path, is_tree: bool, within: str = '') -> Iterator[str]:
  """Yields what is no part of a model, below a directory of one.

  Args:
    folder: The directory, or one in it.
    is_tree: Whether it is an Orbax checkpoint of a tree.
    within: Where the folder is in the directory.
  """
  for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
    path = f'{within}{entry.name}'
    is_folder = entry.is_dir(follow_symlinks=False)
    if is_tree and not entry.is_symlink() and orbax_layout.belongs(path):
      if is_folder:
        yield from _strange(Path(entry.path), is_tree, f'{path}/')
    elif within or is_folder or not _belongs(entry.name):
      yield path


def _belongs(name: str) -> bool:
  """Whether a model has a file of this name beside its weights."""
  path = Path(name)
  return (
    path.suffix.lower() in _ENDINGS or name in _TEXTS or path.stem in _OTHERS
  )
