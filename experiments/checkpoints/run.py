"""Carrying a prepared merge out: stream, verify, publish."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import importlib.metadata
import json
from pathlib import Path
import platform
import shutil
import time
from typing import Any
from typing import Literal

from experiments.checkpoints import card
from experiments.checkpoints import hashes
from experiments.checkpoints import inputs
from experiments.checkpoints import memory
from experiments.checkpoints import prepare
from experiments.checkpoints import stages
from experiments.checkpoints import text
from experiments.checkpoints import verify as verify_lib
from experiments.runtime import commit as commit_lib
from experiments.runtime import files
import merging
from merging import streaming
from third_party import problems
from third_party import storage
from third_party.huggingface import tied
from third_party.huggingface import writer as writer_lib

_PACKAGES = ('arithmerge', 'jax', 'jaxlib', 'ml_dtypes', 'numpy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How to write, which decides nothing of what is written but its shards.

  Attributes:
    format: What to write: files that transformers loads, or an Orbax
      checkpoint, which is a flat dict, but keeps the tree of a base of Orbax.
    shard_size: Most bytes of tensors in a file; Orbax has pieces of its own.
    max_memory: Most bytes of memory that the process may take, mapped files of
      programs left out; `None` for what the largest tensor needs.
    workers: Number of threads.
    overwrite: Whether an old model at the target may be replaced.
    resume: Whether to continue a run that was stopped; Orbax cannot.
    allow_nonfinite: Whether NaN and infinities are merged like numbers.
    full_verify: Whether to read the output again and look at every value.
    hash: Whether the report has the SHA-256 of input files as far as the Hub
      gave them, or of all files, which are read for it.
  """

  format: Literal['huggingface', 'orbax'] = 'huggingface'
  shard_size: int = 5_000_000_000
  max_memory: int | None = None
  workers: int | None = None
  overwrite: bool = False
  resume: bool = False
  allow_nonfinite: bool = False
  full_verify: bool = False
  hash: Literal['known', 'full'] = 'known'


def commit_of(
  prepared: prepare.Prepared,
  target: Path,
  settings: Settings,
  notify: Callable[[str], object],
) -> commit_lib.Commit:
  """Returns the commit that a merge would be."""
  return commit_lib.Commit(
    target,
    fingerprint=inputs.fingerprint(
      prepared, format=settings.format, shard_size=settings.shard_size
    ),
    inputs=prepared.inputs,
    overwrite=settings.overwrite,
    resume=settings.resume,
    notify=notify,
  )


def run(
  prepared: prepare.Prepared,
  commit: commit_lib.Commit,
  settings: Settings,
  *,
  notify: Callable[[str], object] = lambda line: None,
  meter: stages.Meter | None = None,
) -> card.MergeResult:
  """Merges, verifies and publishes.

  Args:
    prepared: The merge.
    commit: Where the model goes, see `commit_of`; it is entered here.
    settings: How it is written.
    notify: Called with what a person should know.
    meter: Shows how far the merge is.

  Returns:
    What was done.

  Raises:
    problems.ProblemError: With what went wrong; nothing is at the target, or
      what was there before.
  """
  timings: dict[str, float] = {}
  limit = memory.room(settings.max_memory, _holding(prepared))
  with commit:
    found = tied.differing(prepared.vocabulary.duplicates)
    if found:
      raise problems.ProblemError(found)
    files_of = _files_of(prepared, settings, timings, meter)
    start = time.perf_counter()
    kept: frozenset[str] = frozenset()
    orbax = settings.format == 'orbax'
    if orbax:
      writer = contextlib.nullcontext(_orbax_sink(commit.partial, prepared))
    else:
      writer = writer_lib.CheckpointWriter(
        commit.partial,
        prepared.specs,
        shard_size=settings.shard_size,
        metadata={'merged_by': 'arithmerge'},
        on_shard_done=commit.record,
      )
      kept = writer.resume(commit.finished)
    if kept:
      notify(f'{len(kept)} of {len(prepared.specs)} tensors are there already')
    with writer as sink:
      for merge in prepared.merges:
        _stream(merge, sink, kept, settings, limit, meter)
      timings['merge'] = time.perf_counter() - start
      sink.finish()
    if meter is not None:
      meter.close()
    timings['write to disk'] = time.perf_counter() - start - timings['merge']
    with storage.reported(commit.partial):
      _write_side_files(commit.partial, prepared)
    inputs.check_beside(prepared, commit.fingerprint)
    start = time.perf_counter()
    findings = verify_lib.verify(
      commit.partial,
      name=commit.target.name,
      inputs=list(prepared.models.values()),
      base=next(iter(prepared.models.values())) if prepared.has_base else None,
      expected=prepared.specs,
      fingerprints=sink.fingerprints,
      # Shards that an earlier run left may hold what it was told to allow.
      nonfinite=None if settings.allow_nonfinite or kept else {},
      allow_nonfinite=settings.allow_nonfinite,
      full=settings.full_verify,
    )
    timings['verify'] = time.perf_counter() - start
    findings.raise_problems()
    result = _result(prepared, commit.target.name, timings, findings, files_of)
    if orbax:
      result = dataclasses.replace(result, library='orbax')
    with storage.reported(commit.partial):
      card.write(commit.partial, result)
    commit.publish()
  return result


def shortages(
  prepared: prepare.Prepared, target: Path, settings: Settings
) -> list[problems.Problem]:
  """Returns what is short of disk or memory, as far as headers tell.

  Args:
    prepared: The merge.
    target: Where the model goes.
    settings: How it is written.

  Returns:
    Problems. A run that is continued may have its space already.
  """
  found: list[problems.Problem] = []
  if not settings.resume:
    above = next(each for each in target.absolute().parents if each.is_dir())
    try:
      storage.check_space(above, prepared.bytes_written)
    except problems.ProblemError as error:
      found += error.problems
  try:
    limit = memory.room(settings.max_memory, _holding(prepared))
  except problems.ProblemError as error:
    return [*found, *error.problems]
  most = max(
    (merge.plan for merge in prepared.merges),
    key=lambda plan: plan.largest_bytes,
  )
  if limit is not None and most.largest_bytes > limit:
    found.append(
      problems.Problem(
        problems.Kind.SPACE,
        ('--max_memory', most.largest),
        f'needs about {text.size_of(most.largest_bytes)} at once, and '
        f'{text.size_of(limit)} are left beside the program',
        'raise --max_memory',
      )
    )
  return found


def _stream(merge, sink, kept, settings, limit, meter) -> None:
  paths = [path for path in merge.job.leaves if path not in kept]
  if not paths:
    return
  try:
    merging.merge_stream(
      merge.job.transform,
      merge.base,
      merge.experts,
      sink,
      out_dtype=merge.out_dtype,
      paths=paths,
      max_bytes=limit,
      workers=settings.workers,
      finite=not settings.allow_nonfinite,
      progress=None if meter is None else meter.update,
    )
  except streaming.DisagreementError as error:
    raise problems.refuse(
      problems.Kind.INCOMPATIBLE,
      (),
      _with_refs(str(error), merge.job.experts),
    ) from error
  except streaming.ValuesError as error:
    raise problems.refuse(
      problems.Kind.INPUT,
      (),
      _with_refs(str(error), merge.job.experts),
      '--allow_nonfinite merges it anyway',
    ) from error
  except streaming.MemoryLimitError as error:
    raise problems.refuse(
      problems.Kind.SPACE, (), str(error), 'raise --max_memory'
    ) from error


def _with_refs(message: str, experts: Mapping[str, Any]) -> str:
  """Names models as the recipe does, without what puts them in order."""
  for name, ref in experts.items():
    message = message.replace(repr(name), repr(str(ref)))
  return message


def _orbax_sink(directory, prepared):
  """Begins an Orbax checkpoint, with the tree of the base if it has one."""
  # Here, for it loads TensorStore.
  from experiments.checkpoints import orbax

  base = next(iter(prepared.models.values())).checkpoint
  return orbax.sink(directory, prepared.specs, getattr(base, 'keys', None))


def _holding(prepared) -> list[Any]:
  """What may hold memory beside the merge itself."""
  models = prepared.models.values()
  return [each for m in models for each in (m.checkpoint, m.source)]


def _files_of(prepared, settings, timings, meter) -> dict[str, Any]:
  """By model, the files that hold its tensors and what tells them apart."""
  models = prepared.models.values()
  computed = {}
  if settings.hash == 'full':
    start = time.perf_counter()
    computed = hashes.taken(
      models,
      workers=settings.workers or 2,
      progress=None if meter is None else stages.Stage('hashing').bytes,
    )
    timings['hash'] = time.perf_counter() - start
  claimed = hashes.known(models)
  return {
    model.name: hashes.described(model, computed, claimed) for model in models
  }


def _write_side_files(directory: Path, prepared: prepare.Prepared) -> None:
  """Writes config, tokenizer and what else lies beside the weights."""
  for name, content in prepared.vocabulary.files.items():
    if isinstance(content, bytes):
      files.write(directory / name, content)
    else:
      shutil.copyfile(content, directory / name)
  if prepared.config:
    config = json.dumps(prepared.config, indent=2, ensure_ascii=False)
    files.write(directory / 'config.json', config + '\n')


def _result(prepared, name, timings, findings, files_of) -> card.MergeResult:
  recipe = prepared.recipe
  references = {
    each.key: each
    for merge in prepared.merges
    for each in card.references_in(merge.job.transform)
  }
  base = next(iter(prepared.models))
  return card.MergeResult(
    name=recipe.name or name,
    recipe=recipe.text,
    recipe_file=prepared.recipe_file,
    method=prepared.method,
    references=tuple(references.values()),
    models=[
      card.MergedModel(
        name=text.clean(model.name),
        role='base' if ref == base and prepared.has_base else 'expert',
        hub_id=card.hub_id(ref.path),
        files=files_of[model.name],
        size=model.checkpoint.size,
        tensors=len(model.checkpoint.specs),
      )
      for ref, model in prepared.models.items()
    ],
    seed=prepared.seed,
    dtype=', '.join(sorted({str(s.dtype) for s in prepared.specs.values()})),
    versions={
      'python': platform.python_version(),
      **{each: importlib.metadata.version(each) for each in _PACKAGES},
    },
    timings=timings,
    bytes_read=prepared.bytes_read,
    bytes_written=prepared.bytes_written,
    peak_memory=memory.held('VmHWM'),
    verification=findings,
    notes=prepared.notes,
  )


def target_problems(target: Path, overwrite: bool) -> list[problems.Problem]:
  """Returns what speaks against a target whatever the merge is."""
  return commit_lib.Commit(target, fingerprint={}, overwrite=overwrite).check()
