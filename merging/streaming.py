"""Running a transform over models that are not in memory.

Leaves, or pieces of them where a transform allows it (see
`MergeTransform.entrywise`), are jobs for a few threads: each reads the rows of
the models into buffers, runs the compiled program that all drivers share, and
writes what comes out. Reading, computing and writing release Python's lock, so
jobs overlap. A job begins when the memory it needs is free.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import functools
import math
import os
import threading
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import buffers as buffers_lib
from merging import drivers
from merging import outline
from merging import patterns
from merging import programs
from merging import streams
from merging import transform as transform_lib

Expert = streams.Source | Mapping[str, Any]  # A model, or an adapter.


class ValuesError(ValueError):
  """Values that cannot be merged: not finite, or different where they may not.

  The message names the model, the leaf and the first such entry.
  """


class DisagreementError(ValuesError):
  """Leaves that are not merged, and should be equal, differ."""


MemoryLimitError = outline.MemoryLimitError


class Progress(NamedTuple):
  """How far a merge is.

  Attributes:
    stage: `'statistics 1 of 2'` and so on, then `'merge'`.
    path: The leaf of which a piece was just finished.
    done: Bytes read in all stages so far.
    total: Bytes to read in all stages.
  """

  stage: str
  path: str
  done: int
  total: int


def plan(
  transform: transform_lib.MergeTransform,
  base: streams.Source | None,
  experts: Mapping[str, Expert],
  *,
  out_dtype: jax.typing.DTypeLike | Mapping[str, np.dtype] | None = None,
  max_bytes: int | None = None,
  workers: int | None = None,
  **extra: Mapping[str, streams.Source],
) -> outline.Plan:
  """Says what `merge_stream` would do, without reading a value.

  Args:
    transform: The merge.
    base: The base, or `None` for zeros.
    experts: The experts by name.
    out_dtype: Type of the merged floating leaves.
    max_bytes: What jobs may hold at once.
    workers: Number of threads.
    **extra: Data that the transform needs for each expert, as sources.

  Returns:
    The plan.

  Raises:
    ValueError: As `merge_stream`, for all that names, shapes and types tell.
    TypeError: `experts` is not a mapping.

  Examples:
    >>> import merging
    >>> model = streams.InMemory({'w': np.zeros((4, 2), np.float32)})
    >>> plan = merging.plan(merging.ties(), model, {'a': model, 'b': model})
    >>> plan.sweeps, plan.bytes_read, plan.bytes_written
    (3, 384, 32)
  """
  run = outline.Outline(
    transform, base, experts, jnp.float32, out_dtype, extra, max_bytes=max_bytes
  )
  return run.plan(max_bytes or outline.MAX_BYTES, _threads(workers))


def merge_stream(
  transform: transform_lib.MergeTransform,
  base: streams.Source | None,
  experts: Mapping[str, Expert],
  sink: streams.Sink,
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  out_dtype: jax.typing.DTypeLike | Mapping[str, np.dtype] | None = None,
  paths: Iterable[str] | None = None,
  max_bytes: int | None = None,
  workers: int | None = None,
  finite: bool = True,
  progress: Callable[[Progress], None] | None = None,
  piece: int = outline.PIECE,
  **extra: Mapping[str, streams.Source],
) -> None:
  """Merges models that are not in memory, leaf by leaf.

  Any transform of `merge`, with the same result: the same compiled programs
  run, and statistics add up in the order of the leaves, whatever the number of
  threads. Leaves that a transform takes entry by entry come in pieces, so that
  memory does not grow with the largest leaf.

  Args:
    transform: The merge.
    base: What all experts were fine-tuned from; `None` for zeros, where a
      method speaks of the experts' parameters and not of their changes.
    experts: By name, models with the leaves of the base, or adapters: mappings
      from paths to `merging.adapters.Lora` or its like, whose change of a leaf
      is taken exactly; a leaf that an adapter lacks it does not change.
    sink: Where the merged leaves go.
    dtype: Type in which task vectors are taken and combined, unless a leaf is
      wider.
    out_dtype: Type of merged floating leaves, one for all or by path; that of
      the base by default.
    paths: Leaves to write; all by default. Statistics are of all leaves.
    max_bytes: What jobs may hold at once; by default what the largest leaf
      needs, and 400 MB at least. A leaf that has to be whole and needs
      more is refused.
    workers: Number of threads; one more than processors by default.
    finite: Whether to refuse values that are not finite.
    progress: Called, by one thread at a time, when a job is done.
    piece: Number of entries of a piece.
    **extra: Data that the transform needs for each expert, as sources.

  Raises:
    ValuesError: A value is not finite, or beyond the range of `out_dtype`.
    DisagreementError: A leaf that is not floating differs between models.
    MemoryLimitError: A leaf needs more memory than allowed.
    ValueError: Models differ in leaves or shapes. What names, shapes and types
      tell is told before anything is read.
    TypeError: `experts` is not a mapping.

  Examples:
    >>> import merging
    >>> base = streams.InMemory({'w': np.zeros(3, np.float32)})
    >>> expert = streams.InMemory({'w': np.ones(3, np.float32)})
    >>> sink = streams.Collected(base.specs)
    >>> merge_stream(
    ...   merging.task_arithmetic(0.5), base, {'expert': expert}, sink
    ... )
    >>> sink.leaves['w'].tolist()
    [0.5, 0.5, 0.5]
  """
  run = outline.Outline(
    transform, base, experts, dtype, out_dtype, extra, piece, max_bytes
  )
  wanted = set(run.specs if paths is None else paths)
  for path in sorted(wanted - set(run.specs)):
    hint = patterns.suggest(path, run.specs)
    raise ValueError(f'merge_stream: there is no leaf {path!r}{hint}')
  jobs = run.jobs(piece)
  limit = run.limit(jobs, max_bytes)
  work = _Work(run, sink, finite, limit, piece, _threads(workers), progress)
  work.merge(jobs, wanted)
  work.copy(wanted - {spec.path for spec in run.floating})


def _threads(workers):
  return workers or (os.cpu_count() or 1) + 1


class _Work:
  """The loops of one merge."""

  def __init__(self, run, sink, finite, max_bytes, piece, workers, progress):
    self._run = run
    self._sink = sink
    self._finite = finite
    self._limit = max_bytes
    self._piece = piece
    self._workers = workers
    self._progress = progress
    self._buffers = buffers_lib.Buffers(max_bytes // 4)
    self._lock = threading.Lock()
    self._compiling = threading.Lock()
    self._compiled: set[Any] = set()
    self._done = self._total = 0

  def merge(self, jobs: Sequence[outline.Job], wanted: set[str]) -> None:
    """Sweeps for statistics, and merges the leaves that are wanted."""
    run, state = self._run, self._run.state
    observers = run.transform.observers
    mine = [job for job in jobs if run.floating[job.place].path in wanted]
    swept = sum(map(self._bytes, jobs))
    merged = sum(map(self._bytes, mine))
    self._total = len(observers) * swept + merged
    check = self._finite  # Once.
    with futures.ThreadPoolExecutor(self._workers, 'merge') as executor:
      for place, observer in enumerate(observers):
        stage = f'statistics {place + 1} of {len(observers)}'
        function = functools.partial(self._observe, place, observer, state)
        results = self._results(executor, stage, function, check, jobs)
        state = drivers.gather(observer, results, state)
        check = False
      function = functools.partial(self._update, state)
      deque(self._results(executor, 'merge', function, check, mine), maxlen=0)

  def _observe(self, place, observer, state, job, inputs):
    run = self._run
    compiled = run.compiled(job)
    if compiled:
      statistic = compiled[place](inputs, state)
    else:
      route = run.routes[job.place]
      statistic = programs.observe_leaf(
        observer.observe, route, run.dtype, inputs, state
      )
    return jax.block_until_ready(statistic)

  def _update(self, state, job, inputs):
    run = self._run
    spec = run.floating[job.place]
    compiled = run.compiled(job)
    if compiled:
      value = compiled[-1](inputs, state)
    else:
      update, route = run.transform.update, run.routes[job.place]
      value = programs.update_leaf(
        update, route, run.dtype, run.program_type(spec), inputs, state
      )
    flat = np.asarray(value).reshape(-1)[: job.size]
    flat = flat.astype(run.out_type(spec), copy=False)  # float64, without x64.
    if self._finite and not buffers_lib.all_finite(flat):
      raise ValuesError(
        _not_finite('the merge', spec, job, flat)
        + f': results beyond the range of {flat.dtype}; write a wider type'
      )
    self._sink.write(spec.path, job.start, flat)

  def _results(
    self,
    executor: futures.Executor,
    stage: str,
    function: Callable[[outline.Job, programs.Inputs], Any],
    check: bool,
    jobs: Sequence[outline.Job],
  ) -> Iterator[Any]:
    """Yields results in order, of jobs that together fit the limit.

    A few jobs beyond the threads wait, so that none of them idles.
    """

    def work(job):
      spec = self._run.floating[job.place]
      with drivers.naming(spec.path):
        if job.selection is None:
          result = self._one(stage, function, job, check)
        else:
          result = self._select(stage, job, check)
      self._report(stage, spec, job)
      return result

    running: deque[tuple[futures.Future[Any], int]] = deque()
    held = 0
    try:
      for job in jobs:
        needed = self._run.cost(job)
        while running and (
          held + needed > self._limit or len(running) > 2 * self._workers
        ):
          future, freed = running.popleft()
          yield future.result()
          held -= freed
        running.append((executor.submit(work, job), needed))
        held += needed
      while running:
        yield running.popleft()[0].result()
    finally:
      for future, _ in running:
        future.cancel()

  def _one(self, stage, function, job, check, models=None):
    """Reads a leaf or a piece of one, and calls a function of it."""
    with self._buffers.lease() as lease:
      inputs = self._read(job, lease, check, models)
      return self._call(stage, function, job, inputs)

  def _call(self, stage, function, job, inputs):
    """Calls it; of threads that need the same new program, one compiles it."""
    key = stage, self._run.routes[job.place], inputs.row[0].shape
    if key in self._compiled:
      return function(job, inputs)
    with self._compiling:
      result = function(job, inputs)
    self._compiled.add(key)
    return result

  def _select(self, stage, job, check):
    """Merges a leaf in pieces, after a look at all of it."""
    run = self._run
    pieces = run.pieces(job, self._piece)
    update = functools.partial(self._update, run.state)
    seen = set()
    with self._buffers.lease() as lease:
      held = []
      if run.held(job):
        held = [(each, self._read(each, lease, check)) for each in pieces]

      def visit(check, model=None):
        yield from held
        for piece in () if held else pieces:
          with self._buffers.lease() as own:
            models = None if model is None else (model,)
            yield piece, self._read(piece, own, check, models)

      def look(model=None):
        first = model not in seen
        seen.add(model)
        for piece, inputs in visit(check and first, model):
          yield _entries(piece), functools.partial(self._look, piece, inputs)

      given = job.selection.survey(look, job.size, len(run.models), lease.take)
      for piece, inputs in visit(False):
        selected = given(_entries(piece), inputs.row[0].shape)
        extra = {**inputs.extra, 'selected': selected}
        self._call(stage, update, piece, inputs._replace(extra=extra))

  def _look(self, job, inputs, function, *arguments, model=None):
    """Runs a function of a selection on a piece, of all experts or of one."""
    run = self._run
    if model is not None and len(inputs.row) > 2:  # All experts were read.
      inputs = inputs._replace(row=(inputs.row[0], inputs.row[1 + model]))

    def call(job, inputs):
      route = run.routes[job.place]
      found = programs.look(
        function, route, run.dtype, inputs, run.state, *arguments
      )
      return jax.tree.map(np.asarray, found)

    return self._call(function, call, job, inputs)

  def _bytes(self, job):
    """What is read for a job."""
    run = self._run
    read = run.read_bytes(run.floating[job.place], job.size)
    return read + run.selected_bytes(job)

  def _report(self, stage, spec, job):
    with self._lock:
      self._done += self._bytes(job)
      if self._progress is not None:
        self._progress(Progress(stage, spec.path, self._done, self._total))

  def _read(self, job, lease, check, models=None) -> programs.Inputs:
    """Reads the rows of a job, of all experts or of some."""
    run = self._run
    spec = run.floating[job.place]
    shape = run.shape(job)
    size = math.prod(shape)

    def fetch(name, source):
      buffer = lease.take(size, source.specs[spec.path].dtype)
      values = buffer[: job.size]
      source.read(spec.path, job.start, values)
      if check and not buffers_lib.all_finite(values):
        raise ValuesError(_not_finite(repr(name), spec, job, values))
      buffer[job.size :] = 0
      return jax.device_put(buffer.reshape(shape))

    row = [fetch('base', run.base)]
    for place in range(len(run.models)) if models is None else models:
      name, expert = run.models[place], run.experts[place]
      if outline.is_adapter(expert):
        row.append(expert.get(spec.path))
      else:
        row.append(fetch(name, expert))
    extra: dict[str, Any] = {
      name: tuple(_read_whole(each, spec.path) for each in columns)
      if spec.path in columns[0].specs
      else None
      for name, columns in run.extra.items()
    }
    start = np.uint32(job.start)
    return programs.Inputs(np.int32(job.place), tuple(row), extra, start)

  def copy(self, paths: Iterable[str]) -> None:
    """Writes leaves that are not merged, and that all models have to share."""
    run = self._run
    models = [('base', run.base), *zip(run.models, run.experts, strict=True)]
    models = [
      (name, each)
      for name, each in models
      if not isinstance(each, Mapping | streams.Zeros)
    ]
    for path in sorted(paths):
      size = math.prod(run.specs[path].shape)
      for start in range(0, max(size, 1), self._piece):
        count = min(self._piece, size - start)
        first, *others = (
          _read_part(each, path, start, count) for _, each in models
        )
        for (name, _), other in zip(models[1:], others, strict=True):
          if not np.array_equal(first, other):
            raise DisagreementError(
              f'merge_stream: {name!r} at {path!r}: differs from '
              f'{models[0][0]!r}; {first.dtype} leaves are not merged and have '
              'to agree'
            )
        out = run.out_type(run.specs[path])
        self._sink.write(path, start, first.astype(out, copy=False))


def _entries(job):
  """Where the entries of a job are in the leaf."""
  return slice(job.start, job.start + job.size)


def _read_part(source, path, start, count):
  values = np.empty(count, source.specs[path].dtype)
  if count:
    source.read(path, start, values)
  return values


def _read_whole(source, path):
  shape = source.specs[path].shape
  return _read_part(source, path, 0, math.prod(shape)).reshape(shape)


def _not_finite(name, spec, job, values):
  bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)))
  first = np.unravel_index(job.start + int(bad[0]), spec.shape)
  number = 'one value is' if len(bad) == 1 else f'{len(bad)} values are'
  place = ', '.join(map(str, first))
  return f'{name} at {spec.path!r}: {number} not finite, the first at [{place}]'
