"""A run's directory: what was asked, by what it was computed, one at a time.

`config.json` is the resolved configuration and never changes. A second start
with the same configuration continues the run; with another one it is refused.
`environment.json` lists every start, since numbers are only promised to agree
between starts of the same versions on the same kind of device.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import datetime
import fcntl
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
from typing import Any

from experiments.runtime import config as config_lib
from experiments.runtime import errors
from experiments.runtime import files

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')

# What may change numbers between two starts.
_DECISIVE = ('packages', 'devices', 'python', 'platform', 'cpus', 'git')

_CONFIG = 'config.json'
_ENVIRONMENT = 'environment.json'
_LOCK = '.lock'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workdir:
  """An open run directory.

  Attributes:
    path: The directory, absolute.
    starts: One record per start of this run, this one last; see `describe`.
  """

  path: Path
  starts: Sequence[Mapping[str, Any]]

  @property
  def is_new(self) -> bool:
    """Whether this is the first start."""
    return len(self.starts) == 1

  def changes(self) -> list[str]:
    """Lists what may change numbers and differs from the first start's."""
    first, now = (
      {name: start[name] for name in _DECISIVE}
      for start in (self.starts[0], self.starts[-1])
    )
    return config_lib.differences(first, now)

  def tell_changes(self, say: Callable[[str], None]) -> None:
    """Says each of them as a warning."""
    for change in self.changes():
      say(f'warning: what this run left before was made otherwise: {change}')


@contextlib.contextmanager
def open_workdir(
  path: str | os.PathLike[str], config: Any
) -> Iterator[Workdir]:
  """Opens a new run's directory, or the one of the same run started before.

  Args:
    path: The directory; made if missing, `~` is the home directory.
    config: The resolved configuration: a dataclass or a JSON-like mapping.

  Yields:
    The directory, locked against other processes until the block ends.

  Raises:
    UsageError: If the directory cannot be written, is in use, holds something
      other than a run, or holds a run with another configuration.
  """
  path = Path(path).expanduser().absolute()
  resolved = config_lib.to_dict(config)
  try:
    path.mkdir(parents=True, exist_ok=True)
    _check_holds_run(path)
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as error:
    raise errors.UsageError(
      f'{path} cannot be used as a directory for results:'
      f' {error.strerror}; give another --workdir'
    ) from error
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise errors.UsageError(
        f'{path} is in use by another process; wait for it to end, or give'
        ' another --workdir'
      ) from None
    _check_same_config(path, resolved)
    starts = _read(path / _ENVIRONMENT, [])
    starts = [*starts, describe()]
    files.write(path / _ENVIRONMENT, _json(starts))
    files.write(path / _CONFIG, _json(resolved))
    yield Workdir(path=path, starts=starts)
  finally:
    os.close(descriptor)  # Gives up the lock, as does any kind of death.


def describe() -> dict[str, Any]:
  """Describes this process: what is needed to know where numbers came from."""
  # Imported here so that a binary can show its flags without waiting.
  import jax

  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'argv': sys.argv,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'packages': {name: metadata.version(name) for name in PACKAGES},
    'devices': [
      f'{device.platform}: {device.device_kind}' for device in jax.devices()
    ],
    'git': git_state(Path(__file__).parents[2]),
  }


def git_state(root: Path) -> dict[str, Any] | None:
  """Returns the commit of a checkout, or `None` if `root` is not one.

  Args:
    root: The top folder of the checkout.

  Returns:
    `{'commit': <hash or None before the first>, 'dirty': <bool>}`.
  """

  def git(*arguments: str) -> str | None:
    try:
      done = subprocess.run(
        ['git', '-C', str(root), *arguments],
        capture_output=True,
        text=True,
        check=False,
      )
    except OSError:  # There is no git.
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  top = git('rev-parse', '--show-toplevel')
  # An installed copy may lie inside somebody else's checkout.
  if top is None or Path(top).resolve() != root.resolve():
    return None
  return {
    'commit': git('rev-parse', '--verify', 'HEAD'),
    'dirty': git('status', '--porcelain') != '',
  }


def _check_holds_run(path: Path) -> None:
  """Refuses a folder with anything but a run, so as not to mix files."""
  if (path / _CONFIG).exists():
    return
  # Killed before `config.json` was there, a first start leaves these.
  ours = (_LOCK, _ENVIRONMENT, f'.{_ENVIRONMENT}.', f'.{_CONFIG}.')
  strange = sorted(
    entry.name for entry in path.iterdir() if not entry.name.startswith(ours)
  )
  if strange:
    raise errors.UsageError(
      f'{path} is not empty and holds no run ({_CONFIG} is missing, there is'
      f' {strange[0]!r}); give another --workdir'
    )


def _check_same_config(path: Path, resolved: Any) -> None:
  found = _read(path / _CONFIG, resolved)
  different = config_lib.differences(found, resolved)
  if different:
    shown = '; '.join(different[:5])
    more = f'; and {len(different) - 5} more' if len(different) > 5 else ''
    raise errors.UsageError(
      f'{path} holds a run with another configuration (there != asked for:'
      f' {shown}{more}); give another --workdir, or delete that one'
    )


def _read(path: Path, default: Any) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    return default
  except ValueError as error:
    raise errors.UsageError(
      f'{path} is not readable as JSON ({error}); give another --workdir'
    ) from error


def _json(data: Any) -> str:
  return json.dumps(data, indent=2) + '\n'
