"""Orbax checkpoints as models that are merged, checked and written."""

from collections.abc import Mapping
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runtime import orbax_layout
from experiments.runtime import orbax_sink
from experiments.runtime import orbax_source
from merging import patterns
from merging import streams
from third_party import problems
from third_party.huggingface import layout

_CONFIG = 'config.json'
# What tells one checkpoint from another: small, and all else hangs on it.
_HASHED = (orbax_layout.TREE, 'manifest.ocdbt')


class OrbaxModel:
  """An Orbax checkpoint as a model, like a directory of Hugging Face.

  A leaf has the keys that lead to it as its name, joined by dots, so that
  `tree['model']['norm']['weight']` and `tree['model.norm.weight']` are what
  Hugging Face calls `model.norm.weight`. A config and a tokenizer count if
  they lie beside the tree.

  Attributes:
    name: Of the model, as problems call it.
    directory: Where it lies.
    config: What `config.json` says; `{}` if there is none.
    specs: Of every array, by name.
    keys: By name, the keys that lead to a leaf.
    files: Paths of all files of the tree.
    headers: Empty: no file of the tree is one of the safetensors format.
    problems: What is doubtful but not wrong.
    size: Bytes of all arrays.
    side_files: Names of the files of the tokenizer, of generation and so on.
    chunk_bytes: Most bytes that a thread decodes at once, and keeps.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    name: str = '',
    strict: bool = False,
  ):
    """Opens a checkpoint: reads what it says of its tree, and no values.

    Args:
      directory: The checkpoint, a step of it, or the directory of an item.
      name: Of the model, for problems; by default the path.
      strict: Whether what is doubtful is wrong.

    Raises:
      problems.ProblemError: With what is wrong with it.
    """
    self.name = name or os.fspath(directory)
    self.directory = Path(directory)
    source = orbax_source.OrbaxSource(directory, name=self.name)
    names = {
      orbax_layout.stored_as(keys): path for path, keys in source.keys.items()
    }
    orbax_layout.refuse_twins(
      map(orbax_layout.stored_as, source.keys.values()), self.name
    )
    self.keys = {new: source.keys[old] for new, old in sorted(names.items())}
    self._source = streams.Renamed(
      source, {new: names[new] for new in self.keys}
    )
    self.specs: streams.Specs = self._source.specs
    self.chunk_bytes = source.chunk_bytes
    self.size = sum(
      int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
      for spec in self.specs.values()
    )
    found = list(source.problems)
    if source.others:
      found.append(
        problems.Problem(
          problems.Kind.INPUT,
          (self.name,),
          'leaves that are no arrays are left out: '
          + patterns.listing(source.others, limit=5),
        )
      )
    if not self.specs:
      raise problems.refuse(
        problems.Kind.INPUT, (self.name,), 'the tree has no arrays'
      )
    if found and strict:
      raise problems.ProblemError(found)
    self.problems = tuple(found)
    beside = layout.Directory(directory, self.name)
    self.config: Mapping[str, Any] = (
      beside.load_json(_CONFIG) if _CONFIG in beside.names else {}
    )
    self.side_files = layout.side_files(beside.names)
    self.headers: Mapping[str, Any] = {}
    self.files = tuple(
      Path(folder, each)
      for folder, _, each_of in os.walk(source.directory)
      for each in sorted(each_of)
    )
    self._opened = self.fingerprint()

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with entries of a leaf; threads may call it."""
    self._source.read(path, start, out)

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """Returns what tells this model from another without reading arrays.

    Returns:
      By file its `size` and when it was `modified`, in nanoseconds, and the
      `header_sha256` of those that say what the others hold.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(self.files, key=lambda path: path.name not in _HASHED):
      name = str(path.relative_to(self.directory))
      found[name] = {}
      with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        found[name] = {
          'size': status.st_size,
          'modified': status.st_mtime_ns,
        }
        if path.name in _HASHED:
          content = path.read_bytes()
          found[name]['header_sha256'] = hashlib.sha256(content).hexdigest()
    return found

  def check_unchanged(self) -> None:
    """Checks that no file has changed since the checkpoint was opened.

    Raises:
      problems.ProblemError: Names all files that have.
    """
    now = self.fingerprint()
    found = [
      problems.Problem(
        problems.Kind.INPUT,
        (self.name, name),
        'changed since it was opened' if now[name] else 'is gone',
        'leave inputs alone; start again',
      )
      for name, before in self._opened.items()
      if now[name] != before
    ]
    if found:
      raise problems.ProblemError(found)

  def close(self) -> None:
    """Does nothing: files are not kept open."""


def sink(
  directory: Path,
  specs: streams.Specs,
  keys: Mapping[str, tuple[orbax_layout.Key, ...]] | None = None,
) -> orbax_sink.OrbaxSink:
  """Begins an Orbax checkpoint of a model.

  Args:
    directory: Empty or missing.
    specs: By name, what is written.
    keys: By name, the keys of a leaf; a name that is not there is a key as a
      whole, so that the tree is a flat dict.

  Returns:
    The sink.

  Raises:
    problems.ProblemError: Orbax cannot store it.
  """
  known = keys or {}
  return orbax_sink.OrbaxSink(
    directory,
    specs,
    keys={path: known.get(path, ((path, False),)) for path in specs},
  )
