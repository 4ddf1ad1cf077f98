"""What the binary `experiments.merge` does with its flags."""

from collections.abc import Sequence
import dataclasses
import json as json_lib
from pathlib import Path
import re
import sys
from typing import Any

from experiments.checkpoints import card
from experiments.checkpoints import memory
from experiments.checkpoints import plan as plan_lib
from experiments.checkpoints import prepare
from experiments.checkpoints import run
from experiments.checkpoints import stages
from experiments.checkpoints import text
from experiments.runtime import errors
from third_party import problems

_UNITS = {'': 1, 'K': 10**3, 'M': 10**6, 'G': 10**9, 'T': 10**12}
_SIZE = re.compile(r'(\d+(?:\.\d*)?)\s*([KMGT]?)(i?)B?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
  """Values of the flags, as they were typed."""

  plan: bool = False
  json: bool = False
  max_memory: str | None = None
  format: Any = 'huggingface'
  shard_size: str = '5GB'
  workers: int | None = None
  resume: bool = False
  overwrite: bool = False
  seed: int | None = None
  extra: Any = 'error'
  untie: bool = False
  strict: bool = False
  allow_nonfinite: bool = False
  model_paths: Sequence[str] = ()
  full_verify: bool = False
  hash: Any = 'known'


def size(value: str, flag: str) -> int:
  """Reads a number of bytes.

  Args:
    value: Such as `5GB`, `500M` or `2GiB`.
    flag: Its name, for the message.

  Returns:
    Bytes.

  Raises:
    UsageError: It is no size.

  Examples:
    >>> size('1.5GB', 'max_memory'), size('2KiB', 'max_memory')
    (1500000000, 2048)
  """
  match = _SIZE.fullmatch(value.strip())
  if match is not None:
    unit = _UNITS[match[2].upper()]
    if match[3] and unit > 1:
      unit = 1024 ** round(len(str(unit)) / 3)
    found = int(float(match[1]) * unit)
    if found:
      return found
  raise errors.UsageError(
    f'--{flag}: expected a size such as 2GB or 500M, got {value!r}'
  )


def merge(recipe: Path, target: Path, flags: Flags) -> None:
  """Plans a merge or carries it out, and prints what a person should know.

  Args:
    recipe: The YAML.
    target: Where the model goes.
    flags: How.

  Raises:
    UsageError: A flag is wrong.
    problems.ProblemError: Anything else is.
  """
  if flags.resume and flags.format == 'orbax':
    raise errors.UsageError(
      '--resume: --format=orbax is written in one go; start over'
    )
  memory.keep_freed()
  settings = run.Settings(
    format=flags.format,
    shard_size=size(flags.shard_size, 'shard_size'),
    max_memory=None
    if flags.max_memory is None
    else size(flags.max_memory, 'max_memory'),
    workers=flags.workers,
    overwrite=flags.overwrite,
    resume=flags.resume,
    allow_nonfinite=flags.allow_nonfinite,
    full_verify=flags.full_verify,
    hash=flags.hash,
  )
  places = {}
  for each in flags.model_paths:
    name, equals, directory = each.partition('=')
    if not (name and equals and directory):
      raise errors.UsageError(f'--model_path: expected NAME=DIR, got {each!r}')
    places[name] = directory
  options = prepare.Options(
    model_paths=places,
    seed=flags.seed,
    extra=flags.extra,
    untie=flags.untie,
    strict=flags.strict,
  )
  try:
    prepared = prepare.prepare(recipe, options)
  except problems.ProblemError as error:
    found = run.target_problems(target, settings.overwrite)
    raise problems.ProblemError([*error.problems, *found]) from error
  for note in prepared.notes:
    _say(f'note: {text.clean(note)}')
  commit = run.commit_of(prepared, target, settings, _say)
  found = commit.check()
  if flags.plan:
    found += run.shortages(prepared, target, settings)
    made = plan_lib.plan(prepared, target, settings)
    if flags.json:
      print(json_lib.dumps(made.to_dict(found), indent=2))
    else:
      print(made)
    if found:
      raise problems.ProblemError(found)
    return
  if found:
    raise problems.ProblemError(found)
  strangers = prepare.strangers(prepared)
  if strangers and flags.strict:
    raise problems.ProblemError(
      problems.Problem(problems.Kind.INCOMPATIBLE, (), each)
      for each in strangers
    )
  for each in strangers:
    _say(f'note: {text.clean(each)}')
  prepared = dataclasses.replace(prepared, notes=(*prepared.notes, *strangers))
  meter = stages.Meter(prepared.bytes_read)
  result = run.run(prepared, commit, settings, notify=_say, meter=meter)
  if flags.json:
    print(json_lib.dumps(card.report(result), indent=2))
  else:
    print(summary(result, target))


def summary(result: card.MergeResult, target: Path) -> str:
  """Says in a few lines what was done."""
  seconds = result.timings['merge'] + result.timings['write to disk']
  lines = [
    f'{result.method} of {text.plural(len(result.models), "model")}:'
    f' read {text.size_of(result.bytes_read)}, wrote'
    f' {text.size_of(result.bytes_written)} in {seconds:.1f} s'
    f' ({text.size_of(result.bytes_read / seconds)}/s),'
    f' peak memory {text.size_of(result.peak_memory)}'
  ]
  if result.verification is not None:
    lines.append(str(result.verification))
  lines.append(f'{target} is ready')
  return '\n'.join(lines)


def _say(line: str) -> None:
  print(line, file=sys.stderr)
