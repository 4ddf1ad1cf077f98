"""Hugging Face model directories as sources of a merge."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from merging import patterns
from merging import transform
from third_party import problems
from third_party.huggingface import descriptors
from third_party.huggingface import layout
from third_party.huggingface import quantised
from third_party.huggingface import safetensors

if TYPE_CHECKING:
  import pathlib


class Checkpoint:
  """A model directory: a `merging.streams.Source` of its tensors, by name.

  Attributes:
    name: Of the model, as problems call it.
    directory: Where it lies.
    config: What `config.json` says; `{}` if there is none.
    specs: Of every tensor, by name, sorted.
    files: Paths of the files of weights.
    file_of: By tensor the name of its file.
    headers: By name of a file of weights what it says of itself.
    problems: What is doubtful but not wrong.
    size: Bytes of all tensors.
    side_files: Names of the files of the tokenizer, of generation and so on.
  """

  def __init__(
    self,
    directory: layout.Directory,
    config: Mapping[str, Any],
    files: Mapping[str, safetensors.File],
    file_of: Mapping[str, str],
    others: Mapping[str, descriptors.Place],
    side_files: tuple[str, ...],
    warnings: tuple[problems.Problem, ...],
    pool: descriptors.Descriptors,
  ):
    """Takes parts that fit together; see `open_checkpoint`."""
    self.name = directory.model
    self.directory: pathlib.Path = directory.path
    self.config = dict(config)
    self.files = tuple(directory.path / name for name in files)
    self.headers = {name: file.header for name, file in files.items()}
    self.file_of = {tensor: file_of[tensor] for tensor in sorted(file_of)}
    self.problems = warnings
    self.side_files = side_files
    self.specs: dict[str, transform.LeafSpec] = {}
    self.size = 0
    for tensor, name in self.file_of.items():
      _, dtype, shape, start, stop = self.headers[name].tensors[tensor]
      self.specs[tensor] = transform.LeafSpec(tensor, shape, dtype)
      self.size += stop - start
    self._files = dict(files)
    self._places = {
      **{name: file.place for name, file in files.items()},
      **others,
    }
    self._pool = pool

  def read(self, path: str, start: int, out: np.ndarray) -> None:
    """Fills `out` with the entries `[start, start + out.size)` of a tensor.

    Threads may call it at the same time.

    Args:
      path: Name of the tensor.
      start: First entry, in the order of a C array.
      out: `[size]`, contiguous, of the dtype of the tensor.

    Raises:
      problems.ProblemError: The file changed or cannot be read.
      ValueError: There is no such tensor, or `out` does not fit.
    """
    if path not in self.file_of:
      raise ValueError(
        f'{self.name}: there is no tensor {path!r}'
        f'{patterns.suggest(path, self.file_of)}'
      )
    self._files[self.file_of[path]].read(path, start, out)

  def fingerprint(self) -> dict[str, dict[str, Any]]:
    """Returns `File.fingerprint` of each file of weights, by name."""
    return {name: file.fingerprint() for name, file in self._files.items()}

  def check_unchanged(self) -> None:
    """Checks that no file has changed since the checkpoint was opened.

    Raises:
      problems.ProblemError: Names all files that have.
    """
    found = problems.Collector()
    for place in self._places.values():
      with found:
        place.check_unchanged()
    found.check()

  def close(self) -> None:
    """Closes the files; reading opens them again."""
    self._pool.close()


def open_checkpoint(
  directory: str | os.PathLike[str], *, name: str = '', strict: bool = False
) -> Checkpoint:
  """Opens a model directory: reads headers and JSON, and checks all of it.

  Args:
    directory: Holds `config.json` and `model.safetensors`, or shards and
      `model.safetensors.index.json`.
    name: Of the model, for problems; by default the path.
    strict: Whether what is doubtful is wrong.

  Returns:
    The checkpoint.

  Raises:
    problems.ProblemError: With everything that is wrong with the directory.

  Examples:
    >>> try:
    ...   open_checkpoint('/nowhere', name='math')
    ... except problems.ProblemError as error:
    ...   print(error)
    math: there is no directory /nowhere; check the path
  """
  where = layout.Directory(directory, name or os.fspath(directory))
  found: list[problems.Problem] = []
  warnings: list[problems.Problem] = []
  config: Mapping[str, Any] = {}
  others: dict[str, descriptors.Place] = {}
  if 'config.json' in where.names:
    with _collecting(found):
      others['config.json'] = where.place('config.json')
      config = where.load_json('config.json')
  else:
    warnings.append(where.problem((), 'there is no config.json', 'fetch it'))
  weights = None
  with _collecting(found):
    weights = layout.find(where)
  if weights is None:
    raise problems.ProblemError(found)
  if weights.index is not None:
    others[weights.index] = where.place(weights.index)
  found += weights.faults
  pool = descriptors.Descriptors()
  files: dict[str, safetensors.File] = {}
  for shard, path in weights.shards.items():
    with _collecting(found):
      files[shard] = safetensors.File(
        path, where=(where.model, shard), pool=pool
      )
  file_of, wrong, doubtful = _match(where, weights, files)
  found += wrong
  warnings += doubtful
  tensors = [
    files[shard].header.tensors[tensor] for tensor, shard in file_of.items()
  ]
  wrong, doubtful = quantised.check(where, config, tensors)
  found += wrong
  warnings += doubtful
  if not found and not file_of:
    found.append(
      where.problem((), 'the model has no tensors', 'fetch it again')
    )
  side_files = layout.side_files(where.names)
  for each in side_files:
    with _collecting(found):
      others[each] = where.place(each)
  if strict:
    found += warnings
  if found:
    raise problems.ProblemError(found)
  return Checkpoint(
    where, config, files, file_of, others, side_files, tuple(warnings), pool
  )


_Problems = list[problems.Problem]


def _match(
  where: layout.Directory,
  weights: layout.Layout,
  files: Mapping[str, safetensors.File],
) -> tuple[dict[str, str], _Problems, _Problems]:
  """Holds what the index says against what is in the shards.

  Args:
    where: The directory.
    weights: Its files of weights.
    files: Those of them that are sound.

  Returns:
    By tensor the name of its file, what is wrong, and what is doubtful.
  """
  wrong: _Problems = []
  doubtful: _Problems = [
    where.problem((name,), 'is no part of the model and is ignored')
    for name in weights.ignored
  ]
  holder: dict[str, str] = {}
  repeated: dict[tuple[str, str], list[str]] = {}
  for shard, file in files.items():
    for tensor in file.header.tensors:
      first = holder.setdefault(tensor, shard)
      if first != shard:
        repeated.setdefault((first, shard), []).append(tensor)
  for (first, shard), names in repeated.items():
    wrong.append(
      where.problem(
        (shard,),
        f'{_tensors(names)} also in {first}',
        'remove the one that is stale',
      )
    )
  if weights.index is None:
    return holder, wrong, doubtful
  lacking: dict[tuple[str, str | None], list[str]] = {}
  file_of = {}
  for tensor, shard in weights.weight_map.items():
    if shard not in files or tensor in files[shard].header.tensors:
      file_of[tensor] = shard
    else:
      lacking.setdefault((shard, holder.get(tensor)), []).append(tensor)
  for (shard, other), names in lacking.items():
    rest = '' if other is None else f', rather in {other}'
    wrong.append(
      where.problem(
        (shard,),
        f'{_tensors(names)} in it by {weights.index}, but not here{rest}',
        'fetch both again',
      )
    )
  for shard, file in files.items():
    names = [each for each in file.header.tensors if each not in file_of]
    names = [each for each in names if each not in weights.weight_map]
    if names:
      doubtful.append(
        where.problem(
          (shard,),
          f'{_tensors(names)} here but not in {weights.index}, and ignored',
          'fetch both again',
        )
      )
  file_of = {
    tensor: shard for tensor, shard in file_of.items() if shard in files
  }
  size = sum(
    file.header.tensors[tensor].stop - file.header.tensors[tensor].start
    for tensor, file in ((t, files[shard]) for t, shard in file_of.items())
  )
  if not wrong and weights.total_size not in (None, size):
    doubtful.append(
      where.problem(
        (weights.index,),
        f'total_size is {weights.total_size}, expected {size}, the bytes of '
        'all tensors',
      )
    )
  return file_of, wrong, doubtful


def _tensors(names: list[str]) -> str:
  """The subject of a sentence about some tensors."""
  shown = patterns.listing(names, limit=5)
  return f'tensor {shown} is' if len(names) == 1 else f'tensors {shown} are'


@contextlib.contextmanager
def _collecting(found: _Problems) -> Iterator[None]:
  """Adds the problems of a block to a list, instead of raising them."""
  try:
    yield
  except problems.ProblemError as error:
    found += error.problems
