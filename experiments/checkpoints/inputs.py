"""What decides the output of a merge: its inputs, and how it is written."""

import contextlib
import importlib.metadata
import os
from typing import Any

from experiments.checkpoints import opening
from experiments.checkpoints import prepare
from third_party import problems


def fingerprint(prepared: prepare.Prepared, **settings: Any) -> dict[str, Any]:
  """Returns all that decides what is written, without reading a weight.

  Args:
    prepared: The merge.
    **settings: How it is written, as far as files depend on it.

  Returns:
    JSON-like; equal where a run that was stopped can be continued.
  """
  return {
    'recipe': prepared.recipe.text,
    'seed': prepared.seed,
    'models': {
      str(ref): model.fingerprint() for ref, model in prepared.models.items()
    },
    'tensors': [
      [spec.path, list(spec.shape), str(spec.dtype)]
      for spec in prepared.specs.values()
    ],
    'beside': _beside(prepared),
    'config': prepared.config,
    **settings,
    'version': importlib.metadata.version('arithmerge'),
  }


def check_beside(prepared: prepare.Prepared, before: Any) -> None:
  """Refuses inputs whose files beside the weights changed meanwhile.

  Args:
    prepared: The merge.
    before: What `fingerprint` returned.

  Raises:
    problems.ProblemError: With all files that did.
  """
  now = _beside(prepared)
  found = [
    problems.Problem(
      problems.Kind.INPUT,
      (name, file),
      'changed while it was read',
      'leave inputs alone; start again',
    )
    for name, files in before['beside'].items()
    for file, identity in files.items()
    if now[name].get(file) != identity
  ]
  if found:
    raise problems.ProblemError(found)


def _beside(prepared) -> dict[str, dict[str, list[int]]]:
  """By model and file, size and time of what lies beside the weights."""
  return {
    str(ref): _identities(model) for ref, model in prepared.models.items()
  }


def _identities(model: opening.Model) -> dict[str, list[int]]:
  paths = [
    os.path.join(model.directory, name)
    for name in ('config.json', *model.side_files)
  ]
  if model.files is not None:
    paths.append(os.path.join(model.files.directory, 'adapter_config.json'))
  found = {}
  for path in paths:
    with contextlib.suppress(OSError):  # There need not be one.
      status = os.stat(path)
      found[os.path.basename(path)] = [status.st_size, status.st_mtime_ns]
  return found
