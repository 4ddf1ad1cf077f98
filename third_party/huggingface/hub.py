"""What the clients of the Hugging Face Hub leave on a disk; no network here.

Its cache has a folder for each model, with `blobs` that are named by what the
Hub says of their contents, and `snapshots` of links to them. A download to a
directory of its own notes the same beside the files. Files of weights are named
by their SHA-256, which is what the Hub shows on the page of a file.
"""

import os
import pathlib
import re

_SHA256 = re.compile(r'[0-9a-f]{64}')
_NOTES = ('.cache', 'huggingface', 'download')  # In a downloaded directory.
_NOTE = 4096  # Bytes of a note, at most.


def snapshot(name: str, revision: str | None) -> pathlib.Path | None:
  """Returns where the cache has a model.

  Args:
    name: Such as `org/model`.
    revision: A branch, a tag or a commit; `main` by default.

  Returns:
    The directory, or `None`.

  Examples:
    >>> snapshot('org/no-such-model', None)
  """
  home = os.environ.get('HF_HOME', '~/.cache/huggingface')
  cache = os.environ.get('HF_HUB_CACHE', os.path.join(home, 'hub'))
  if name.count('/') != 1 or '..' in name:
    return None
  folder = pathlib.Path(cache).expanduser()
  folder /= f'models--{name.replace("/", "--")}'
  wanted = revision or 'main'
  reference = folder / 'refs' / wanted
  if reference.is_file():
    wanted = reference.read_text(encoding='utf-8').strip()
  found = folder / 'snapshots' / wanted
  return found if '/' not in wanted and found.is_dir() else None


def sha256(path: pathlib.Path) -> str | None:
  """Returns the SHA-256 that the Hub gave with a file; nothing is computed.

  Args:
    path: The file.

  Returns:
    Hexadecimal digits, or `None` where the Hub said none, as of small files, or
    where the file was changed after it was downloaded to a directory.
  """
  blob = pathlib.Path(os.path.realpath(path))
  if blob.parent.name == 'blobs' and _SHA256.fullmatch(blob.name):
    return blob.name
  note = path.parent.joinpath(*_NOTES, f'{path.name}.metadata')
  try:
    with note.open(encoding='utf-8') as file:
      _, tag, when, *_ = file.read(_NOTE).split('\n')
    # As their client does: a file system may round times.
    unchanged = path.stat().st_mtime - 1 <= float(when)
  except (OSError, ValueError):
    return None
  return tag if unchanged and _SHA256.fullmatch(tag) else None
