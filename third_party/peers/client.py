"""Asks peers, in processes of their own environments."""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any
from typing import Self

import numpy as np

Arrays = Mapping[str, np.ndarray]

RUNNERS = {
  'mergekit': 'on_mergekit.py',
  'fusion-bench': 'on_fusion_bench.py',
  'nanogpt': 'on_nanogpt.py',
  'pychop': 'on_pychop.py',
}
_HERE = pathlib.Path(__file__).parent


def python_of(name: str) -> pathlib.Path:
  """Returns where the interpreter of a peer's environment should be."""
  default = _HERE.parents[1] / 'out' / 'peers'
  root = pathlib.Path(os.environ.get('ARITHMERGE_PEERS', default))
  return root / name / 'bin' / 'python'


@dataclasses.dataclass(frozen=True)
class Merged:
  """What a peer answers.

  Attributes:
    params: The merged parameters by path, if asked for.
    cpu: Seconds that all its threads took for the merge alone.
    wall: Seconds that passed.
  """

  params: dict[str, np.ndarray]
  cpu: float
  wall: float


class Peer:
  """A running peer, a context manager.

  Attributes:
    versions: Of its packages, by name.
    methods: Names of the methods it has.
  """

  versions: dict[str, str]
  methods: list[str]

  def __init__(self, name: str, python: pathlib.Path | None = None):
    """Starts it.

    Args:
      name: One of `RUNNERS`.
      python: Its interpreter; by default where `make peers` installs it.
    """
    self._name = name
    self._folder = tempfile.TemporaryDirectory(prefix='peers')
    self._log = pathlib.Path(self._folder.name, 'log')
    environment = {
      key: value
      for key, value in os.environ.items()
      if not key.startswith('PYTHON')
    }
    with self._log.open('w') as log:
      self._process = subprocess.Popen(
        [python or python_of(name), _HERE / RUNNERS[name]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment | {'HF_HUB_OFFLINE': '1'},
      )
    about = self._read()
    self.versions, self.methods = about['versions'], about['methods']

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Ends the process."""
    self._process.communicate()
    self._folder.cleanup()

  def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
    """Sends a request and returns the answer.

    Raises:
      RuntimeError: The peer failed.
    """
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps(request) + '\n')
    self._process.stdin.flush()
    answer = self._read()
    if 'error' in answer:
      raise RuntimeError(f'{self._name}: {request}: {answer["error"]}')
    return answer

  def _read(self):
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      log = self._log.read_text()[-2000:]
      raise RuntimeError(f'{self._name} ended:\n{log}')
    return json.loads(line)


class Merger(Peer):
  """A running peer that merges."""

  @property
  def _models(self) -> pathlib.Path:
    return pathlib.Path(self._folder.name, 'models.npz')

  def load(
    self,
    base: Arrays,
    experts: Mapping[str, Arrays],
    uniforms: Mapping[str, Arrays] | None = None,
  ) -> None:
    """Hands over the models that the next merges are of.

    Args:
      base: Parameters by path, in torch's layout.
      experts: The same by the name of the expert.
      uniforms: For methods that draw, a number in [0, 1) for each entry of each
        expert, which succeeds if it is below the probability.
    """
    owners = {'base': base, **experts}
    owners |= {f'uniform/{k}': v for k, v in (uniforms or {}).items()}
    arrays: dict[str, Any] = {
      f'{owner}:{path}': leaf
      for owner, leaves in owners.items()
      for path, leaf in leaves.items()
    }
    np.savez(self._models, **arrays)

  def merge(
    self, method: str, parameters: Mapping[str, Any], *, keep: bool = True
  ) -> Merged:
    """Merges the models that were loaded last.

    Args:
      method: The peer's name of it.
      parameters: Its settings.
      keep: Whether to return parameters, and not times alone.

    Returns:
      The answer.

    Raises:
      RuntimeError: The peer failed.
    """
    out = pathlib.Path(self._folder.name, 'out.npz') if keep else None
    request = {
      'models': str(self._models),
      'method': method,
      'parameters': parameters,
      'out': out and str(out),
    }
    answer = self.ask(request)
    params = {}
    if out:
      with np.load(out) as arrays:
        params = dict(arrays)
    return Merged(params, answer['cpu'], answer['wall'])
