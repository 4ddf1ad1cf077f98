"""A directory that appears whole or not at all, and can be continued.

Everything is written beside the target, into `.<name>.partial/model`, and gets
the target's name in one step at the end. `.<name>.partial/journal.jsonl` says
from what the directory is made and which of its files are finished, so that a
run that was killed can be continued. After a kill at any moment the target is
wholly the old directory or wholly the new one.

On Linux the last step exchanges two names. Where a system cannot do that, an
old target is renamed away first, and a kill between the two renames leaves no
target: the next run to the same target brings it back.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
import os
from pathlib import Path
import shutil
import threading
from typing import Any

from absl import logging

from experiments.runtime import config
from experiments.runtime import exchange
from experiments.runtime import journal
from experiments.runtime import lock
from experiments.runtime import targets
from third_party import problems
from third_party import storage

_VERSION = 1
_JOURNAL = 'journal.jsonl'
_MODEL = 'model'
_OLD = 'old'


class Commit:
  """Writes a directory and publishes it at once.

  Attributes:
    target: The directory to be, absolute, links followed.
    partial: Where to write its files.
    fingerprint: All that decides what is written, JSON-like.
    finished: What was recorded of the finished files by a run that this one
      continues, by name; known once the context is entered.

  Examples:
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   target = Path(directory, 'merged')
    ...   with Commit(target, fingerprint={'recipe': 'average'}) as commit:
    ...     _ = (commit.partial / 'config.json').write_text('{}')
    ...     os.listdir(target.parent) == [target.name]
    ...     commit.publish()
    ...   os.listdir(target.parent), os.listdir(target)
    False
    (['merged'], ['config.json'])
  """

  def __init__(
    self,
    target: str | os.PathLike[str],
    *,
    fingerprint: Mapping[str, Any],
    inputs: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    resume: bool = False,
    notify: Callable[[str], object] = logging.warning,
  ):
    """Prepares a commit; nothing is touched before the context is entered.

    Args:
      target: The directory to be.
      fingerprint: All that decides what is written, JSON-like: the recipe,
        hashes of the inputs, sizes of files. A run is continued only if it is
        equal, else its differences are told by key.
      inputs: Files and directories that are read, which are never replaced.
      overwrite: Whether an old model at the target may be replaced.
      resume: Whether to continue a run that was stopped.
      notify: Called with what a person should know and need not repair.
    """
    self.target = targets.resolve(target)
    self.finished: dict[str, Any] = {}
    self.fingerprint = config.to_dict(fingerprint)
    self._inputs = [Path(path) for path in inputs]
    self._overwrite = overwrite
    self._resume = resume
    self._notify = notify
    name = self.target.name
    self._folder = self.target.parent / f'.{name}.partial'
    self._lock = self.target.parent / f'.{name}.lock'
    self._journal = self._folder / _JOURNAL
    self.partial = self._folder / _MODEL
    self._recording = threading.Lock()
    self._recorded = 0
    self._exit = contextlib.ExitStack()

  def check(self) -> list[problems.Problem]:
    """Finds all that speaks against the target, and touches nothing."""
    return targets.check(
      self.target,
      beside=[self._folder, self._lock],
      inputs=self._inputs,
      overwrite=self._overwrite,
    )

  def __enter__(self) -> 'Commit':
    """Locks the target and makes the partial directory.

    Raises:
      ProblemError: The target is not a place for a model (see `check`),
        another process writes to it, the run to be continued was another one,
        or the disk refuses.
    """
    found = self.check()
    if found:
      if self._published():
        self._notify(f'{self.target} is what a run that was killed has written')
      raise problems.ProblemError(found)
    with contextlib.ExitStack() as stack:
      stack.enter_context(lock.held(self._lock, str(self.target)))
      with storage.reported(self._folder):
        self._repair()
        found = self.check()
        if found:
          raise problems.ProblemError(found)
        self._open()
      self._exit = stack.pop_all()
    return self

  def record(self, name: str, entry: Mapping[str, Any]) -> None:
    """Notes that a file in `partial` is whole and on the disk.

    Any thread may call it.

    Args:
      name: Name of the file.
      entry: What to give back in `finished`, JSON-like.

    Raises:
      ProblemError: The disk refuses.
    """
    with self._recording, storage.reported(self._journal):
      journal.append(self._journal, {'finished': name, 'entry': dict(entry)})
      self._recorded += 1

  def publish(self) -> None:
    """Gives the target's name to what is in `partial`.

    Raises:
      ProblemError: The target has become something that must not be replaced,
        or the system refuses. The old target is where it was.
    """
    found = self.check()
    if found:
      raise problems.ProblemError(found)
    with storage.reported(self.target):
      _sync_all(self.partial)
      journal.append(self._journal, {'publishing': _inode(self.partial)})
      exchange.replace(self.partial, self.target, self._folder / _OLD)
      storage.sync(self.target.parent)

  def __exit__(self, *_: object) -> None:
    """Deletes what is no longer needed; keeps what can be continued."""
    with self._exit:
      if self._published() or not self._recorded:
        self._discard()
      else:
        self._notify(
          f'{self._recorded} finished files are kept in {self._folder};'
          ' --resume continues'
        )

  def _published(self) -> bool:
    """Whether what was in `partial` has the target's name by now."""
    return _publishing(self._entries()) == _inode(self.target)

  def _entries(self) -> list[Any]:
    """What the journal says; one that cannot be read says nothing."""
    try:
      return journal.read(self._journal)
    except OSError:
      return []

  def _repair(self) -> None:
    """Ends what a killed run had begun with the target."""
    self._check_ours()
    if exchange.restore(self.target, self._folder / _OLD):
      self._notify(f'{self.target} was restored after a run that was killed')
    elif self._published():
      # Else what lies in `partial` by now, the old model, could be taken for
      # the finished files of the new one.
      self._notify(f'{self.target} is what the run before this one has written')
      self._discard()

  def _open(self) -> None:
    """Makes the partial directory, or takes over that of another run."""
    entries = self._entries()
    finished = {
      entry['finished']: entry['entry']
      for entry in entries
      if isinstance(entry, dict) and {'finished', 'entry'} <= entry.keys()
    }
    if self._resume and entries:
      self._check_same(entries[0])
      if _publishing(entries) in (None, _inode(self.partial)):
        self.finished = finished
    elif self._folder.exists():
      if finished:
        self._notify(
          f'starting over: {len(finished)} finished files of a run that was'
          ' stopped are deleted (--resume would have continued it)'
        )
      self._discard()
    self.partial.mkdir(parents=True, exist_ok=True)
    for entry in list(os.scandir(self.partial)):
      if entry.name not in self.finished:
        _delete(Path(entry.path))
    header = {'version': _VERSION, 'fingerprint': self.fingerprint}
    journal.start(
      self._journal,
      [
        header,
        *(
          {'finished': name, 'entry': entry}
          for name, entry in self.finished.items()
        ),
      ],
    )
    storage.sync(self.target.parent)
    self._recorded = len(self.finished)

  def _check_same(self, header: Any) -> None:
    there = header.get('fingerprint') if isinstance(header, dict) else None
    if not isinstance(there, dict) or header.get('version') != _VERSION:
      different = ['its journal is of another version']
    else:
      different = config.differences(there, self.fingerprint)
    if different:
      shown = '; '.join(different[:5])
      more = f'; and {len(different) - 5} more' if len(different) > 5 else ''
      raise problems.refuse(
        problems.Kind.CONFIG,
        (str(self._folder),),
        'the run to be continued was another one (there != asked for:'
        f' {shown}{more})',
        'start over without --resume',
      )

  def _check_ours(self) -> None:
    """Refuses to take or delete a folder that no run has made."""
    if not os.path.lexists(self._folder):
      return
    if self._folder.is_symlink() or not self._folder.is_dir():
      strange = [self._folder.name]
    else:
      names = sorted(os.listdir(self._folder))
      strange = [name for name in names if not _is_ours(name)]
    if strange:
      raise problems.refuse(
        problems.Kind.CONFIG,
        (str(self._folder),),
        f'is in the way, and holds {strange[0]!r}, which no run has made',
        'move it away',
      )

  def _discard(self) -> None:
    """Deletes the partial directory, the journal first.

    Without a journal nothing in it can be taken for finished.
    """
    try:
      exchange.restore(self.target, self._folder / _OLD)
      self._journal.unlink(missing_ok=True)
      _delete(self._folder)
    except OSError as error:
      self._notify(f'{self._folder} could not be deleted: {error.strerror}')


def _is_ours(name: str) -> bool:
  # A temporary file of the journal begins like it.
  known = (_JOURNAL, _MODEL, _OLD)
  return name in known or name.startswith(f'.{_JOURNAL}.')


def _publishing(entries: list[Any]) -> int | None:
  """The directory that a journal says was about to be published, if any."""
  for entry in entries:
    if isinstance(entry, dict) and 'publishing' in entry:
      return entry['publishing']
  return None


def _inode(path: Path) -> int:
  """What tells a directory from others, whatever its name; -1 if none."""
  try:
    return os.stat(path).st_ino
  except OSError:
    return -1


def _delete(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
  """Waits until all files and folders below a folder are on the disk."""
  for root, _, names in os.walk(folder):
    for name in names:
      storage.sync(os.path.join(root, name))
    storage.sync(root)
