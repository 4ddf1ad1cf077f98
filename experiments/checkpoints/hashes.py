"""SHA-256 of the files that a merge reads, by which a person proves them.

They are what the page of a file on the Hugging Face Hub shows, and what
`sha256sum` prints. By default nothing is read for them: what the Hub gave with
a download is taken at its word.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from concurrent import futures
import hashlib
from pathlib import Path
import threading

from experiments.checkpoints import opening
from experiments.checkpoints import scan
from third_party import problems
from third_party.huggingface import hub

_PIECE = 1 << 20  # Bytes hashed at once: small enough for caches.


def known(models: Iterable[opening.Model]) -> dict[Path, str]:
  """Returns what the Hub gave with files of models, by path."""
  paths = {path for model in models for path in model.weights.values()}
  found = {path: hub.sha256(path) for path in paths}
  return {path: digest for path, digest in found.items() if digest is not None}


def taken(
  models: Iterable[opening.Model],
  *,
  workers: int = 2,
  progress: scan.Progress | None = None,
) -> dict[Path, str]:
  """Reads all files of weights, and of adapters, and hashes them.

  Args:
    models: The models.
    workers: Threads; each hashes a file at a time.
    progress: Called with the bytes hashed so far and in all.

  Returns:
    By path, the SHA-256 in hexadecimal digits.

  Raises:
    problems.ProblemError: Files cannot be read, or are not those that the Hub
      gave; all of them are named.
  """
  models = list(models)
  where = {}
  sizes = {}
  for model in models:
    for name, identity in model.fingerprint().items():
      where[model.weights[name]] = model.name, name
      sizes[model.weights[name]] = identity['size']
  count = _Count(sum(sizes.values()), progress)
  with futures.ThreadPoolExecutor(workers, 'hash') as pool:
    digests = pool.map(lambda path: _sha256(path, where[path], count), where)
    found = dict(zip(where, digests, strict=True))
  claimed = known(models)
  wrong = [
    problems.Problem(
      problems.Kind.INPUT,
      where[path],
      f'is not the file that the Hub gave: its SHA-256 is {found[path]}, '
      f'expected {digest}',
      'fetch it again',
    )
    for path, digest in claimed.items()
    if found[path] != digest
  ]
  if wrong:
    raise problems.ProblemError(wrong)
  return found


class _Count:
  """Adds up what threads have read."""

  def __init__(self, total: int, progress: scan.Progress | None):
    self._total = total
    self._progress = progress
    self._done = 0
    self._lock = threading.Lock()

  def add(self, count: int) -> None:
    with self._lock:
      self._done += count
      if self._progress is not None:
        self._progress(self._done, self._total)


def _sha256(path: Path, where: tuple[str, str], count: _Count) -> str:
  digest = hashlib.sha256()
  buffer = bytearray(_PIECE)
  try:
    with open(path, 'rb', buffering=0) as file:
      while size := file.readinto(buffer):
        digest.update(memoryview(buffer)[:size])
        count.add(size)
  except OSError as error:
    raise problems.refuse(
      problems.Kind.INPUT,
      where,
      f'cannot be read: {error.strerror}',
      'leave inputs alone; start again',
    ) from error
  return digest.hexdigest()


def described(
  model: opening.Model,
  computed: Mapping[Path, str],
  claimed: Mapping[Path, str],
) -> dict[str, dict[str, object]]:
  """Returns the files of a model with what tells them from others.

  Args:
    model: The model.
    computed: By path, hashes that were taken.
    claimed: By path, those that the Hub gave.

  Returns:
    By name of a file its `size`, when it was `modified` in nanoseconds, the
    `header_sha256` of what says which tensors are in it, and as far as known
    the `sha256` of all of it, or the `hub_sha256` that the Hub gave.
  """
  found: dict[str, dict[str, object]] = {}
  for name, identity in model.fingerprint().items():
    found[name] = dict(identity)
    path = model.weights[name]
    if path in computed:
      found[name]['sha256'] = computed[path]
    elif path in claimed:
      found[name]['hub_sha256'] = claimed[path]
  return found
