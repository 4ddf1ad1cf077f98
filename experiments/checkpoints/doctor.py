"""Is this checkpoint sound? All that can be told from the directory alone."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
import math
import os
from pathlib import Path
import statistics
import time

import ml_dtypes
import numpy as np

from experiments.checkpoints import consistency
from experiments.checkpoints import findings
from experiments.checkpoints import opening
from experiments.checkpoints import scan as scan_lib
from experiments.checkpoints import text
from merging import streams
from third_party import problems as problems_lib
from third_party.huggingface import embeddings

_KIND = problems_lib.Kind.INPUT
# A tensor whose root mean square is that many times off that of its like in
# other layers stands out; trained models keep within a few times.
_OFF = 10.0
_LIKE = 4  # As many tensors of a kind make a median that says something.
_PIECE = 1 << 20  # Entries compared at once.


def doctor(
  directory: str | os.PathLike[str],
  *,
  values: bool = True,
  workers: int = 2,
  progress: scan_lib.Progress | None = None,
) -> findings.Findings:
  """Looks for everything that is wrong or suspicious in a model directory.

  Wrong: what the reader refuses; values that are NaN or infinite; tensors,
  config and tokenizer that contradict one another. Suspicious: no tokenizer;
  several dtypes; matrices of one value; tensors at the end of the range of
  their dtype, or far larger or smaller than their like in other layers; equal
  tensors.

  Args:
    directory: The model, of Hugging Face or of Orbax.
    values: Whether to read values, once; headers and JSON alone otherwise.
    workers: Threads. Each holds 8 MB.
    progress: Called with the bytes read so far and in all.

  Returns:
    The findings; their problems are of the kind `INPUT`, and are not raised.
  """
  began = time.perf_counter()
  name = Path(directory).name
  try:
    model = opening.open_directory(directory, name=name)
  except problems_lib.ProblemError as error:
    check = findings.Check('files', 'not readable', problems=error.problems)
    seconds = time.perf_counter() - began
    return findings.Findings(model=name, checks=(check,), seconds=seconds)
  found = None
  checks = [
    findings.Check(
      'files',
      f'{text.plural(len(model.files), "file")}, '
      f'{text.plural(len(model.specs), "tensor")}, '
      f'{text.size_of(model.size)}',
      warnings=model.problems,
    )
  ]
  if values:
    found = scan_lib.scan(model, workers=workers, progress=progress)
  leaves = found.leaves if found else {}
  checksums = {path: each.crc32 for path, each in leaves.items()}
  checks += [
    *consistency.check_all(model, _KIND, checksums),
    _check_types(name, model.specs),
  ]
  if found is not None:
    checks += [
      findings.check_finite((name,), found, _KIND),
      _check_constant(name, model.specs, leaves),
      _check_range(name, leaves),
      _check_scale(name, model.specs, leaves),
      _check_equal(name, model, leaves),
    ]
  model.close()
  return findings.Findings(
    model=name,
    checks=tuple(checks),
    tensors=leaves,
    read=model.size if found else 0,
    seconds=time.perf_counter() - began,
  )


def _warning(where: tuple[str, ...], what: str) -> problems_lib.Problem:
  return problems_lib.Problem(_KIND, where, what)


def _check_types(name, specs) -> findings.Check:
  """Floating-point tensors have one type."""
  counts = collections.Counter(
    np.dtype(spec.dtype).name for spec in specs.values()
  )
  scope = ', '.join(f'{count} {dtype}' for dtype, count in counts.most_common())
  floating = {
    np.dtype(spec.dtype).name
    for spec in specs.values()
    if scan_lib.is_float(np.dtype(spec.dtype))
  }
  warnings = ()
  if len(floating) > 1:
    rare = [
      path
      for path, spec in specs.items()
      if np.dtype(spec.dtype).name != counts.most_common(1)[0][0]
    ]
    warnings = (
      _warning((name, rare[0]), f'tensors are of several types: {scope}'),
    )
  return findings.Check('types', scope, warnings=warnings)


def _check_constant(name, specs, leaves) -> findings.Check:
  """No matrix has one value only; vectors, such as of norms, often do."""
  warnings = tuple(
    _warning((name, path), f'all {each.size} values are {each.constant:g}')
    for path, each in leaves.items()
    if each.constant is not None and len(specs[path].shape) > 1 < each.size
  )
  return findings.Check('constant', 'matrices', warnings=warnings)


def _check_range(name, leaves) -> findings.Check:
  """No value is the largest of its type, to which overflow may be rounded."""
  warnings = []
  for path, each in leaves.items():
    if each.largest is not None:
      most = float(ml_dtypes.finfo(each.dtype).max)
      if each.largest == most:
        warnings.append(
          _warning(
            (name, path),
            f'has values of {most:g}, the largest of {each.dtype.name}: did '
            'they overflow?',
          )
        )
  return findings.Check('range', 'largest values', warnings=tuple(warnings))


def _check_scale(name, specs, leaves) -> findings.Check:
  """Tensors are about as large as their like in other layers."""
  kinds: dict[str, dict[str, float]] = {}
  for path, each in leaves.items():
    known = each.rms is not None and math.isfinite(each.rms) and each.rms > 0
    if known and each.constant is None and len(specs[path].shape) > 1:
      kinds.setdefault(_kind_of(path), {})[path] = each.rms
  warnings = []
  for kind in kinds.values():
    typical = statistics.median(kind.values())
    for path, rms in kind.items():
      off = max(rms / typical, typical / rms)
      if len(kind) >= _LIKE and off > _OFF:
        warnings.append(
          _warning(
            (name, path),
            f'has a root mean square of {rms:.3g}, but its like in other '
            f'layers {typical:.3g} in the median',
          )
        )
  scope = f'{len(kinds)} kinds of matrices over layers'
  return findings.Check('scale', scope, warnings=tuple(warnings))


def _check_equal(name, model, leaves) -> findings.Check:
  """No two matrices have the same bytes, but those that are tied."""
  groups: dict[tuple, list[str]] = {}
  for path, each in leaves.items():
    if each.constant is None and len(model.specs[path].shape) > 1:
      key = (each.crc32, each.dtype, each.size)
      groups.setdefault(key, []).append(path)
  tied = model.config.get('tie_word_embeddings') is True
  warnings = [
    _warning((name, other), f'has the same bytes as {first}')
    for first, other in _equal_pairs(model, groups)
    if not (tied and all(map(embeddings.is_known, (first, other))))
  ]
  return findings.Check('equal tensors', 'matrices', warnings=tuple(warnings))


def _equal_pairs(
  source: streams.Source, groups: Mapping[tuple, list[str]]
) -> Iterator[tuple[str, str]]:
  """Pairs of a group's first leaf and another with its bytes."""
  for first, *others in groups.values():
    for other in others:
      if _same_bytes(source, first, other):
        yield first, other


def _same_bytes(source: streams.Source, first: str, other: str) -> bool:
  """Compares two leaves of one dtype: equal checksums are no proof."""
  spec = source.specs[first]
  dtype, size = np.dtype(spec.dtype), math.prod(spec.shape)
  buffers = np.empty((2, min(size, _PIECE)), dtype)
  for start in range(0, size, _PIECE):
    a, b = buffers[:, : min(_PIECE, size - start)]
    source.read(first, start, a)
    source.read(other, start, b)
    if not np.array_equal(a.view(np.uint8), b.view(np.uint8)):
      return False
  return True


def _kind_of(path: str) -> str:
  """The path with its numbers left open."""
  return '.'.join('*' if part.isdigit() else part for part in path.split('.'))
