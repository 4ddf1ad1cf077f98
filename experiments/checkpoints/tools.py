"""What the binary `experiments.checkpoint` does, command by command.

A command returns an outcome, or raises `problems.ProblemError` with all that is
wrong. What it writes appears whole or not at all, and is verified before.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import sys
from typing import Any
from typing import NamedTuple

from experiments.checkpoints import bundles
from experiments.checkpoints import codecs
from experiments.checkpoints import command
from experiments.checkpoints import copying
from experiments.checkpoints import doctor as doctor_lib
from experiments.checkpoints import extract as extract_lib
from experiments.checkpoints import extracted
from experiments.checkpoints import kinship as kinship_lib
from experiments.checkpoints import kinship_page
from experiments.checkpoints import memory
from experiments.checkpoints import opening
from experiments.checkpoints import restore as restore_lib
from experiments.checkpoints import stages
from experiments.checkpoints import text
from experiments.runtime import commit as commit_lib
from experiments.runtime import errors
from experiments.runtime import files
from experiments.runtime import orbax_layout
from merging import streams
from third_party import problems

_RANK = 32
# Which settings a kind of extraction has.
_SETTINGS = {
  'lora': ('rank', 'energy', 'method'),
  '4bit': ('group',),
  '8bit': ('group',),
  'tall': ('threshold',),
  'low_rank': ('share',),
}


class Outcome(NamedTuple):
  """What a command has to say.

  Attributes:
    text: For a person.
    content: The same as JSON can say it.
    status: The exit status.
  """

  text: str
  content: Any
  status: int = 0


def doctor(directory: str, *, values: bool = True) -> Outcome:
  """Looks for everything that is wrong with a model.

  Args:
    directory: The model.
    values: Whether to read all values, and not headers and JSON alone.

  Returns:
    The findings; the status is that of the first problem.

  Raises:
    problems.ProblemError: There is no such directory.
  """
  place = opening.find(directory, None, Path.cwd())
  found = doctor_lib.doctor(
    place, values=values, progress=stages.Stage('reading').bytes
  )
  return Outcome(str(found), found.to_dict(), found.status)


def kinship(
  base: str,
  experts: Sequence[str],
  *,
  sample: float | None = None,
  out: str | None = None,
) -> Outcome:
  """Says whether experts come from a base, and how they lie to each other.

  Args:
    base: The base.
    experts: The experts, as `DIR` or `NAME=DIR`.
    sample: Share of the entries to read; all by default.
    out: Where a table, JSON, pictures and a page go, if anywhere; new or empty.

  Returns:
    The findings; the status is 4 if an expert is foreign.

  Raises:
    problems.ProblemError: A model cannot be read, or the directory not be
      written.
  """
  mine, others = _open(base, experts)
  commit = None
  if out is not None:
    commit = _commit(out, [mine, *others.values()])
    _refuse(commit.check())
  found = kinship_lib.kinship(
    mine, others, sample=sample, progress=stages.Stage('comparing').bytes
  )
  if commit is not None:
    with commit:
      page = kinship_page.write(found, commit.partial)
      files.write(commit.partial / 'kinship.txt', f'{found}\n')
      commit.publish()
    _say(f'{commit.target / page.name} is the page')
  kind = problems.Kind.INCOMPATIBLE
  return Outcome(str(found), found.to_dict(), int(kind) if found.foreign else 0)


def extract(
  base: str,
  experts: Sequence[str],
  out: str,
  *,
  kind: str = 'lora',
  overwrite: bool = False,
  **settings: Any,
) -> Outcome:
  """Stores how experts differ from their base in few bytes.

  A tensor of the base and of each expert is in memory at a time.

  Args:
    base: What they were fine-tuned from.
    experts: The experts, as `DIR` or `NAME=DIR`; one for an adapter.
    out: The directory of the adapter, or the file of the bundle.
    kind: `'lora'` for an adapter that PEFT loads; see
      `bundles.extract_task_vector` for the others, which are bundles.
    overwrite: Whether what is there may be replaced.
    **settings: Of the kind: see `extract.extract_lora` and `codecs.make`. What
      is `None` is the default.

  Returns:
    Sizes and errors.

  Raises:
    UsageError: A setting is none of the kind's, or out of range.
    problems.ProblemError: The models do not fit each other, or the disk
      refuses.
  """
  given = {name: each for name, each in settings.items() if each is not None}
  for name in given:
    if name not in _SETTINGS[kind]:
      known = ', '.join(f'--{each}' for each in _SETTINGS[kind])
      raise errors.UsageError(f'--{name}: --kind={kind} has {known} only')
  if kind == 'lora' and len(experts) > 1:
    raise errors.UsageError(
      f'--kind=lora: expected one expert, got {len(experts)}; a bundle takes'
      ' several, --kind=tall for example'
    )
  if kind == 'lora':
    given = _lora_settings(**given)
  else:
    try:
      codecs.make(kind, **given)
    except ValueError as error:
      raise errors.UsageError(str(error)) from error
  mine, others = _open(base, experts)
  models = [mine, *others.values()]
  commit = _commit(out, models, overwrite)
  stage = stages.Stage('extracting', sum(each.size for each in models))
  if kind != 'lora':
    _check_file(commit.target, commit.check(), overwrite)
    report = bundles.extract_task_vector(
      mine, others, commit.target, kind=kind, progress=stage.share, **given
    )
    return Outcome(*extracted.bundle(report, commit.target))
  ((name, expert),) = others.items()
  with commit:
    made = extract_lib.extract_lora(
      mine,
      expert,
      commit.partial,
      name=name,
      base_name=base,
      in_out=extract_lib.in_out_pattern(mine.config),
      prefix=extract_lib.missing_prefix(mine.config, mine.specs),
      progress=stage.share,
      **given,
    )
    commit.publish()
  return Outcome(*extracted.lora(made, commit.target))


def restore(
  base: str,
  bundle: str,
  expert: str,
  out: str,
  *,
  max_memory: str | None = None,
  shard_size: str = '5GB',
  overwrite: bool = False,
) -> Outcome:
  """Writes an expert out of a bundle as a model of Hugging Face.

  Args:
    base: What it was extracted with.
    bundle: The file.
    expert: Name of the expert in it.
    out: Where the model goes.
    max_memory: Most memory that the process may take.
    shard_size: Most bytes of tensors in a file.
    overwrite: Whether a model there may be replaced.

  Returns:
    What was written, and how it was verified.

  Raises:
    UsageError: A size is none.
    problems.ProblemError: The bundle is damaged or of another base, or what
      `convert` raises.
  """
  mine, _ = _open(base, ())
  source = restore_lib.restore(
    mine, restore_lib.Bundle(bundle), expert, base_name=base
  )
  return _write(
    source,
    mine,
    _commit(out, [mine], overwrite, [bundle]),
    'huggingface',
    max_memory,
    shard_size,
  )


def convert(
  source: str,
  out: str,
  *,
  max_memory: str | None = None,
  shard_size: str = '5GB',
  overwrite: bool = False,
) -> Outcome:
  """Writes a model of Hugging Face as one of Orbax, or the other way round.

  Values stay as they are, bit for bit. So do names: a tensor of Hugging Face
  becomes an entry of a flat dict; a leaf of a tree gets the keys that lead to
  it, joined by dots, as its name. Config and tokenizer are copied beside.

  Args:
    source: The model.
    out: Where it goes.
    max_memory: Most memory that the process may take.
    shard_size: Most bytes of tensors in a file of Hugging Face.
    overwrite: Whether a model there may be replaced.

  Returns:
    What was written, and how it was verified.

  Raises:
    UsageError: A size is none.
    problems.ProblemError: The model cannot be read or be stored in the other
      format, the disk or memory does not suffice, or the output is not what it
      should be.
  """
  model, _ = _open(source, ())
  is_orbax = orbax_layout.is_checkpoint(model.directory)
  return _write(
    model,
    model,
    _commit(out, [model], overwrite),
    'huggingface' if is_orbax else 'orbax',
    max_memory,
    shard_size,
  )


def _write(
  source: streams.Source,
  model: Any,
  commit: commit_lib.Commit,
  format_: copying.Format,
  max_memory: str | None,
  shard_size: str,
) -> Outcome:
  """Writes a source, with what lies beside a model."""
  most = command.size(shard_size, 'shard_size')
  limit = max_memory and command.size(max_memory, 'max_memory')
  room = memory.room(limit or None, [model])
  for each in model.problems:
    _say(f'note: {text.clean(str(each))}')
  found = copying.write(
    source, model, commit, format_=format_, shard_size=most, room=room
  )
  content = {
    'written': str(commit.target),
    'format': format_,
    'tensors': len(source.specs),
    'bytes': copying.bytes_of(source.specs),
    'verification': found.to_dict(),
  }
  lines = [f'{found}', f'{text.clean(str(commit.target))} is ready']
  return Outcome('\n'.join(lines), content)


def _open(base: str, experts: Sequence[str]) -> tuple[Any, dict[str, Any]]:
  """Opens models; raises what is wrong with any of them."""
  found: list[problems.Problem] = []
  opened: dict[str, Any] = {}
  given = {base: base}
  for each in experts:
    name, directory = _named(each)
    if name in given:
      raise errors.UsageError(
        f'{each}: a model is called {name!r} already; say NAME={directory}'
      )
    given[name] = directory
  for name, directory in given.items():
    try:
      place = opening.find(directory, None, Path.cwd())
      opened[name] = opening.open_directory(place, name=name)
    except problems.ProblemError as error:
      found += error.problems
  _refuse(found)
  first = opened.pop(base)
  return first, opened


def _named(given: str) -> tuple[str, str]:
  """Name and directory of an expert."""
  name, equals, directory = given.partition('=')
  if equals and name and '/' not in name and not Path(given).exists():
    return name, directory
  # The last part, also of a path such as `.` or `../math/`.
  return os.path.basename(os.path.realpath(given)), given


def _commit(
  out: str,
  models: Sequence[Any],
  overwrite: bool = False,
  others: Sequence[str] = (),
) -> commit_lib.Commit:
  return commit_lib.Commit(
    out,
    fingerprint={},
    inputs=[*(each.directory for each in models), *map(Path, others)],
    overwrite=overwrite,
    notify=_say,
  )


def _check_file(target: Path, found: list[problems.Problem], overwrite: bool):
  """Refuses what cannot become a file, of what a commit of a directory found.

  Only a bundle is replaced: any other file was named by mistake.
  """
  what, remedy = '', 'name another file'
  if target.is_dir():
    what = 'is a directory, and a bundle is a file'
  elif target.exists():
    found = [each for each in found if each.what != 'is a file']
    if not overwrite:
      what, remedy = 'exists', 'replace it with --overwrite'
    elif not restore_lib.is_bundle(target):
      what = 'is no bundle'
  if what:
    where = (str(target),)
    found = [problems.Problem(problems.Kind.CONFIG, where, what, remedy)]
  _refuse(found)


def _refuse(found: Sequence[problems.Problem]) -> None:
  if found:
    raise problems.ProblemError(found)


def _lora_settings(
  rank: int | None = None,
  energy: float | None = None,
  method: str | None = None,
) -> dict[str, Any]:
  """A sketch of rank 32, but what it takes where only the energy is said."""
  if rank is None and energy is None:
    rank = _RANK
  if rank is None and method == 'sketch':
    raise errors.UsageError('--method=sketch: expected --rank as well')
  return {
    'rank': rank,
    'energy': energy,
    'method': method or ('exact' if rank is None else 'sketch'),
  }


def _say(line: str) -> None:
  print(line, file=sys.stderr)
