"""Is what was written what should have been written, and can it be loaded?"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from experiments.checkpoints import consistency
from experiments.checkpoints import findings
from experiments.checkpoints import kinship as kinship_lib
from experiments.checkpoints import opening
from experiments.checkpoints import scan as scan_lib
from experiments.checkpoints import text
from merging import streams
from third_party import problems as problems_lib

_KIND = problems_lib.Kind.VERIFY


def verify(
  directory: str | os.PathLike[str],
  *,
  name: str | None = None,
  inputs: Sequence[Any] = (),
  base: streams.Source | None = None,
  expected: streams.Specs | None = None,
  fingerprints: Mapping[str, int] | None = None,
  nonfinite: Mapping[str, int] | None = None,
  allow_nonfinite: bool = False,
  full: bool = False,
  workers: int = 2,
  progress: scan_lib.Progress | None = None,
) -> findings.Findings:
  """Opens a written model as a stranger would, and checks it.

  Headers, index, config and tokenizer are read again and held to each other and
  to what was to be written. By default values are not: they were looked at on
  their way to the disk, and reading a model costs a good part of merging it.
  With `full` every byte is read, its checksum compared with the one taken while
  writing, its values looked at, and the whole compared with the base.

  Args:
    directory: The model.
    name: What to call it in messages; as the directory by default.
    inputs: The models it was made of, which must not have changed meanwhile.
    base: What a sound merge is near to. Compared with if `full`, by
      `kinship.kinship`; a model far from it is warned of.
    expected: Names, shapes and dtypes that were to be written.
    fingerprints: CRC-32 of the bytes of each tensor, taken while writing.
    nonfinite: By tensor how many values were NaN or infinite while writing;
      none left out. `None` if nobody counted.
    allow_nonfinite: Whether such values are but a warning.
    full: Whether to read the values.
    workers: Threads that read.
    progress: Called with the bytes read so far and in all, of each pass.

  Returns:
    The findings; their problems are of the kind `VERIFY`. What is wrong is not
    raised: see `Findings.raise_problems`.
  """
  began = time.perf_counter()
  name = name or Path(directory).name
  try:
    model = opening.open_directory(directory, name=name)
  except problems_lib.ProblemError as error:
    check = findings.Check('reload', 'files', problems=_verify(error.problems))
    return _findings(name, [check], began)
  checks = [
    findings.Check(
      'reload',
      f'{text.plural(len(model.files), "file")}, '
      f'{text.plural(len(model.specs), "tensor")}, '
      f'{text.size_of(model.size)}',
      warnings=_verify(model.problems),
    )
  ]
  found = scan_lib.Scan({}, ())
  if full:
    found = scan_lib.scan(model, workers=workers, progress=progress)
  checksums = {path: each.crc32 for path, each in found.leaves.items()}
  checks += [
    _check_tensors(name, model.specs, expected),
    _check_format(name, model),
    *consistency.check_all(model, _KIND, checksums if full else fingerprints),
    _check_fingerprints(name, model.specs, fingerprints, checksums, full),
    findings.check_finite((name,), found, _KIND, allowed=allow_nonfinite)
    if full
    else _check_counted(name, nonfinite, allow_nonfinite),
    _check_inputs(inputs),
  ]
  read = model.size if full else 0
  if full and base is not None:
    check, more = _check_near(name, model, base, workers, progress)
    checks.append(check)
    read += more
  model.close()
  return _findings(name, checks, began, found, read)


def _findings(name, checks, began, found=None, read=0) -> findings.Findings:
  return findings.Findings(
    model=name,
    checks=tuple(checks),
    tensors=found.leaves if found else {},
    read=read,
    seconds=time.perf_counter() - began,
  )


def _problem(name: str, path: str, what: str) -> problems_lib.Problem:
  return problems_lib.Problem(_KIND, (name, path), what, 'merge again')


def _verify(
  problems: Iterable[problems_lib.Problem],
) -> tuple[problems_lib.Problem, ...]:
  return tuple(each._replace(kind=_KIND) for each in problems)


def _check_tensors(name, specs, expected) -> findings.Check:
  """Names, shapes and dtypes are those that were to be written."""
  title = 'tensors'
  if expected is None:
    return findings.Check(title, 'nothing was expected', ran=False)
  problems = []
  for path in sorted({*specs, *expected}):
    if path not in specs:
      problems.append(_problem(name, path, 'is missing'))
    elif path not in expected:
      problems.append(_problem(name, path, 'was not to be written'))
    else:
      got, wanted = (
        (tuple(each.shape), np.dtype(each.dtype))
        for each in (specs[path], expected[path])
      )
      if got != wanted:
        problems.append(
          _problem(
            name,
            path,
            f'expected {wanted[1]} {list(wanted[0])}, got {got[1]} '
            f'{list(got[0])}',
          )
        )
  return findings.Check(
    title, f'{len(expected)} to be written', tuple(problems)
  )


def _check_format(name, model) -> findings.Check:
  """Files say that they are of the kind that transformers loads."""
  problems = tuple(
    _problem(name, file, f"__metadata__ has {said!r} as format, expected 'pt'")
    for file, header in model.headers.items()
    if (said := header.metadata.get('format')) != 'pt'
  )
  scope = text.plural(len(model.headers), 'header')
  return findings.Check('format', scope, problems)


def _check_fingerprints(
  name, specs, fingerprints, checksums, full
) -> findings.Check:
  """The bytes on the disk are those that were written."""
  title = 'fingerprints'
  if fingerprints is None:
    return findings.Check(title, 'none were taken', ran=False)
  problems = [
    _problem(name, path, 'was never written to its end')
    for path in sorted({*specs} - {*fingerprints})
  ]
  for path, crc in checksums.items():
    wanted = fingerprints.get(path, crc)
    if crc != wanted:
      problems.append(
        _problem(
          name,
          path,
          f'the bytes on the disk are others than were written: CRC-32 '
          f'{crc:08x}, expected {wanted:08x}',
        )
      )
  how = 'read again' if full else 'taken while writing, not read again'
  scope = f'{text.plural(len(fingerprints), "tensor")}, {how}'
  return findings.Check(title, scope, tuple(problems))


def _check_counted(name, nonfinite, allowed) -> findings.Check:
  """Values that are not finite, as they were counted while writing."""
  title = 'finite'
  if nonfinite is None:
    return findings.Check(title, 'values were not read', ran=False)
  lines = tuple(
    problems_lib.Problem(
      _KIND, (name, path), f'{count} values are NaN or infinite'
    )
    for path, count in nonfinite.items()
    if count
  )
  return findings.Check(
    title,
    'counted while writing',
    problems=() if allowed else lines,
    warnings=lines if allowed else (),
  )


def _check_inputs(inputs) -> findings.Check:
  """No file of an input has changed since it was opened."""
  problems = []
  for each in inputs:
    try:
      each.check_unchanged()
    except problems_lib.ProblemError as error:
      problems += error.problems
  scope = text.plural(len(inputs), 'model')
  return findings.Check(
    'inputs unchanged', scope, _verify(problems), ran=bool(inputs)
  )


def _check_near(
  name, model, base, workers, progress
) -> tuple[findings.Check, int]:
  """The model is about where its base is."""
  title = 'near its base'
  try:
    found = kinship_lib.kinship(
      base, {name: model}, workers=workers, progress=progress
    )
  except problems_lib.ProblemError as error:
    check = findings.Check(title, 'no tensor', warnings=_verify(error.problems))
    return check, 0
  far = found.diagnosis.relative_norms[0]
  scope = f'change {far:.3g} of the base, cosine {found.base_cosines[0]:.3g}'
  warnings = ()
  if found.foreign:
    warning = problems_lib.Problem(
      _KIND,
      (name,),
      f'is farther from its base than fine-tuning goes: {scope}',
      'compare the inputs with the base first',
    )
    warnings = (warning,)
  return findings.Check(title, scope, warnings=warnings), found.read
