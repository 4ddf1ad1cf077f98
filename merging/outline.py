"""What is known of a streamed merge before a value is read."""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import programs
from merging import selections
from merging import streams
from merging import transform as transform_lib

PIECE = 1 << 20  # Entries: small enough for caches, large enough to dispatch.
MAX_BYTES = 3 << 27  # By default, if no leaf needs more.
_LEAST = 1 << 12  # Entries of the smallest piece, with what fills it up.
_LARGE = 1 << 23  # Bytes of a row whose program is asked what it needs.


class MemoryLimitError(ValueError):
  """A leaf needs more memory than is allowed."""


def is_adapter(expert: Any) -> bool:
  """Tells an adapter, a mapping, from a model, a source."""
  return isinstance(expert, Mapping)


class Plan(NamedTuple):
  """What a merge will do, known before any value is read.

  Attributes:
    specs: Of the merged leaves, those that are not floating too.
    sweeps: How often the floating leaves are read for statistics.
    bytes_read: In all sweeps and in the merge.
    bytes_written: Size of the result.
    peak_bytes: An estimate of what jobs will hold at once, beside what the
      process holds before; those that fit in `max_bytes` run together.
    largest: Path of the leaf that needs most.
    largest_bytes: An estimate of what it needs.
  """

  specs: transform_lib.Specs
  sweeps: int
  bytes_read: int
  bytes_written: int
  peak_bytes: int
  largest: str
  largest_bytes: int


class Job(NamedTuple):
  """A leaf, or a piece of one: `size` entries from `start`."""

  place: int
  start: int
  size: int
  whole: bool  # In the shape of the leaf, not in that of a piece.
  row: int = 1  # Entries that stay together, as the second axis of a piece.
  selection: selections.Selection | None = None  # Before it comes in pieces.


class Outline:
  """What is known of a merge before a value is read."""

  def __init__(
    self,
    transform,
    base,
    experts,
    dtype,
    out_dtype,
    extra,
    piece=PIECE,
    max_bytes=None,
  ):
    checks.check_transform('merge_stream', transform)
    self.models = checks.check_experts('merge_stream', experts)
    self.transform = transform
    self.dtype = jnp.dtype(dtype)
    self.out_dtype = out_dtype
    self.piece = piece  # Entries, at most.
    # Bytes of a leaf that are held rather than read again, at most.
    self.hold = (max_bytes or MAX_BYTES) // 3
    self.experts = tuple(experts[name] for name in self.models)
    dense = [each for each in self.experts if not is_adapter(each)]
    if base is None:
      if len(dense) < len(self.experts):
        raise ValueError('merge_stream: adapters need the base they change')
      base = streams.Zeros(dense[0].specs)
    self.base = base
    self.sources = (base, *dense)
    self.specs = dict(sorted(base.specs.items()))
    self._check_alike()
    self.extra = self._check_extra(extra)
    self.floating = tuple(
      spec
      for spec in self.specs.values()
      if jnp.issubdtype(spec.dtype, jnp.floating) and math.prod(spec.shape)
    )
    if not self.specs:
      raise ValueError('merge_stream: base has no leaf')
    self._compiled: dict[Any, tuple[jax.stages.Compiled, ...]] = {}
    for spec in self.floating:
      self._check_size(spec)
    self.state = ()
    if self.floating:
      self.state = transform.init(self.floating, self.models)
    self.routes = [transform.route(spec) for spec in self.floating]

  def _check_alike(self):
    problems = []
    for name, expert in zip(self.models, self.experts, strict=True):
      if is_adapter(expert):
        problems += [
          f'{name!r} adapts {path!r}, which base has not'
          for path in sorted(set(expert) - set(self.specs))
        ]
        continue
      specs = expert.specs
      for path in sorted(specs.keys() | self.specs.keys()):
        if path not in specs:
          problems.append(f'{name!r} has no leaf {path!r}')
        elif path not in self.specs:
          problems.append(f'{name!r} has a leaf {path!r}, which base has not')
        elif specs[path].shape != self.specs[path].shape:
          problems.append(
            f'{name!r} at {path!r}: shape {specs[path].shape}, expected that '
            f'of base, {self.specs[path].shape}'
          )
    if problems:
      raise ValueError('merge_stream: models differ:\n' + '\n'.join(problems))

  def _check_extra(self, extra):
    names = self.transform.extra
    for name in extra:
      if name not in names:
        raise TypeError(
          f'merge_stream: the transform takes no {name!r}; it takes '
          f'[{patterns.listing(names)}]{patterns.suggest(name, names)}'
        )
    for name in names:
      if set(extra.get(name, ())) != set(self.models):
        raise TypeError(
          f'merge_stream: the transform takes {name!r}: pass {name}= a mapping '
          'from the names of the experts to sources'
        )
    return {
      name: [extra[name][model] for model in self.models] for name in names
    }

  def _check_size(self, spec):
    """Refuses a leaf so large that places in it are not what they seem."""
    size = math.prod(spec.shape)
    if size < 1 << 31:
      return
    in_pieces = (
      self._is_dense(spec)
      and not self.transform.observers
      and self.transform.entrywise(spec)
      and self.transform.selection(spec) is None
    )
    bits = 32 if in_pieces else 31
    if size >= 1 << bits:
      how = 'come in pieces' if in_pieces else 'are ranked or merged as a whole'
      raise ValueError(
        f'merge_stream: leaf {spec.path!r} of shape {spec.shape} has '
        f'{size:,} entries, and places are counted in {bits} bits where leaves '
        f'{how}; take it apart'
      )

  def _is_dense(self, spec):
    """Whether all that is read for a leaf is a row of each model."""
    return not self.extra and not any(
      is_adapter(x) and spec.path in x for x in self.experts
    )

  def plan(self, max_bytes: int, workers: int) -> Plan:
    """Says what would be done.

    Raises:
      ValueError: The transform does not leave one delta of the leaf's shape.
    """
    self._trace()
    sweeps = len(self.transform.observers)
    floating = {spec.path for spec in self.floating}
    specs = tuple(
      spec._replace(dtype=self.out_type(spec)) for spec in self.specs.values()
    )
    read = sum(
      self.read_bytes(spec, math.prod(spec.shape))
      * (1 + sweeps * (spec.path in floating))
      for spec in specs
    )
    jobs = self.jobs(PIECE)
    read += sum(map(self.selected_bytes, jobs))
    costs: dict[str, int] = {}
    for job in jobs:
      spec = self.floating[job.place]
      if job.selection is not None:
        own = self.cost(job)
      else:
        # A whole leaf's program is taken to hold its deltas and two more.
        held = 4 * (len(self.models) + 2 if job.whole else 1)
        own = job.size * (held + self.out_type(spec).itemsize)
        own += self.read_bytes(spec, job.size)
      costs[spec.path] = max(own, costs.get(spec.path, 0))
    most = max(costs.values(), default=0)
    return Plan(
      specs,
      sweeps,
      read,
      sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs),
      max(most, min(max_bytes, workers * most)),
      max(costs, key=lambda path: costs[path], default=''),
      most,
    )

  def _trace(self) -> None:
    """Follows the merge of one leaf without values, for what only it tells."""
    if self.floating:
      spec = min(self.floating, key=lambda each: math.prod(each.shape))
      programs.update_leaf.eval_shape(
        self.transform.update,
        self.routes[self.floating.index(spec)],
        self.dtype,
        self.program_type(spec),
        self._abstract(spec),
        self._states[-1],
      )

  def out_type(self, spec: transform_lib.LeafSpec) -> np.dtype:
    """Type of a merged leaf."""
    wanted = self.out_dtype
    if isinstance(wanted, Mapping):
      wanted = wanted.get(spec.path)
    floating = jnp.issubdtype(spec.dtype, jnp.floating)
    return spec.dtype if wanted is None or not floating else jnp.dtype(wanted)

  def program_type(self, spec: transform_lib.LeafSpec) -> np.dtype | None:
    """The same for a program: `None`, as in memory, if it is the base's."""
    out = self.out_type(spec)
    return None if out == spec.dtype else out

  def read_bytes(self, spec: transform_lib.LeafSpec, entries: int) -> int:
    """Bytes read for so many entries of a leaf."""
    return entries * sum(
      each.specs[spec.path].dtype.itemsize
      for each in self.sources
      if not isinstance(each, streams.Zeros)
    )

  def selected_bytes(self, job: Job) -> int:
    """Bytes read to select from, before what is read to merge."""
    if job.selection is None or self.held(job):
      return 0
    path = self.floating[job.place].path
    base, *experts = (
      0 if isinstance(each, streams.Zeros) else each.specs[path].dtype.itemsize
      for each in self.sources
    )
    return job.size * job.selection.reads(base, experts)

  def held(self, job: Job) -> bool:
    """Whether all models' leaf is held from a look at it to the merge."""
    read = self.read_bytes(self.floating[job.place], job.size)
    if job.selection is None:
      return False
    return read <= min(self.hold, job.selection.hold)

  def jobs(self, piece: int) -> list[Job]:
    """All floating leaves, in pieces where that is allowed."""
    found = []
    if self.transform.observers:
      # Counts of so many pieces add up without a carry (see `select`).
      total = sum(math.prod(spec.shape) for spec in self.floating)
      piece = max(piece, -(-total // (1 << 15)))
    for place, spec in enumerate(self.floating):
      size = math.prod(spec.shape)
      dense = self._is_dense(spec)
      selection = self._selection(spec, piece) if dense else None
      row = self._row(spec, selection)
      alone = size <= piece and bool(self.transform.observers)
      whole = row == size or alone or not dense
      job = Job(place, 0, size, whole, row, selection)
      of_leaf = selection is not None and selection.of_leaf
      found += [job] if of_leaf else self.pieces(job, piece)
    return found

  def _selection(self, spec, piece):
    """What is found out of a leaf before it comes in pieces."""
    found = self.transform.selection(spec)
    wide = max(self.dtype.itemsize, spec.dtype.itemsize) > 4
    if found is None or wide or self.transform.observers:
      return None
    small = math.prod(spec.shape) <= min(piece, found.least)
    return None if small else found

  def _row(self, spec, selection):
    """How many entries of a leaf have to stay together."""
    if selection is not None:
      return selection.row(spec.shape)
    if self.transform.entrywise(spec):
      return 1
    matrix = len(spec.shape) == 2 and not self.transform.observers
    if matrix and self.transform.rowwise(spec):
      return spec.shape[1]
    return math.prod(spec.shape)

  def pieces(self, job: Job, piece: int) -> list[Job]:
    """Takes a job apart."""
    step = job.size if job.whole else self._rows(job, piece) * job.row
    end = job.start + job.size
    return [
      job._replace(start=start, size=min(step, end - start))
      for start in range(job.start, end, step)
    ]

  def shape(self, job: Job) -> tuple[int, ...]:
    """The shape in which programs get a job."""
    size = self.padded(job)
    if job.whole:
      return self.floating[job.place].shape
    return (size // job.row, job.row) if job.row > 1 else (size,)

  def padded(self, job: Job) -> int:
    """Entries that the programs of a job get.

    Pieces are filled up with zeros to a few sizes, so that a few programs serve
    all leaves; but not where statistics are of every entry.
    """
    if job.whole or self.transform.observers:
      return job.size
    rows, least = job.size // job.row, -(-_LEAST // job.row)
    filled = max(least, 1 << (rows - 1).bit_length())
    return max(rows, min(self._rows(job, self.piece), filled)) * job.row

  def _rows(self, job, piece):
    """How many rows, or entries, a piece has at most."""
    if job.selection is not None:
      piece = min(piece, job.selection.piece)
    return max(piece // job.row, 1)

  def limit(self, jobs: Sequence[Job], allowed: int | None) -> int:
    """Bytes that jobs may hold at once.

    Args:
      jobs: All of them.
      allowed: What a person allows; by default what the largest job needs, and
        400 MB at least.

    Returns:
      The number.

    Raises:
      MemoryLimitError: A leaf needs more than is allowed.
    """
    limit = allowed or MAX_BYTES
    for job in jobs:
      spec = self.floating[job.place]
      # The programs of most merges need a few times what they read.
      if self.read_bytes(spec, job.size) * 8 < limit:
        continue
      needed = self.cost(job)
      if allowed is None:
        limit = max(limit, needed)
      elif needed > limit:
        raise MemoryLimitError(
          f'merge_stream: leaf {spec.path!r} of shape {spec.shape} needs '
          f'{needed / 1e6:.0f} MB at once, and {limit / 1e6:.0f} MB are allowed'
        )
    return limit

  def cost(self, job: Job) -> int:
    """Bytes that a job holds: what it reads, and what its programs need."""
    spec = self.floating[job.place]
    read = self.read_bytes(spec, job.size)
    if job.selection is not None:
      piece = self.padded(self.pieces(job, self.piece)[0])
      held = job.selection.holds(job.size, piece, len(self.models))
      held += self.read_bytes(spec, job.size if self.held(job) else piece)
      return held + piece * (4 + self.out_type(spec).itemsize)
    compiled = self.compiled(job)
    if not compiled:
      padded = self.padded(job)
      read = self.read_bytes(spec, padded)
      return read + padded * (4 + self.out_type(spec).itemsize)
    return read + max(map(_bytes_of, compiled))

  def compiled(self, job: Job) -> tuple[jax.stages.Compiled, ...]:
    """The programs of a large whole leaf: of each sweep, and of the merge.

    Compiled ahead of time they say what memory they need; those of smaller jobs
    need little, and none are returned.
    """
    spec, route = self.floating[job.place], self.routes[job.place]
    small = self.read_bytes(spec, job.size) < _LARGE
    if small or not job.whole or job.selection is not None:
      return ()
    inputs = self._abstract(spec)
    key = route, jax.tree.structure(inputs), *jax.tree.leaves(inputs)[1:]
    if key not in self._compiled:
      *before, last = self._states
      sweeps = [
        programs.observe_leaf.lower(
          observer.observe, route, self.dtype, inputs, state
        )
        for observer, state in zip(
          self.transform.observers, before, strict=True
        )
      ]
      merge = programs.update_leaf.lower(
        self.transform.update,
        route,
        self.dtype,
        self.program_type(spec),
        inputs,
        last,
      )
      self._compiled[key] = tuple(each.compile() for each in (*sweeps, merge))
    return self._compiled[key]

  @functools.cached_property
  def _states(self):
    """The state before each sweep and before the merge, without its values."""
    states = [self.state]
    for observer in self.transform.observers:
      total = None
      for spec, route in zip(self.floating, self.routes, strict=True):
        if total is None:
          total = jax.eval_shape(
            functools.partial(
              programs.observe_leaf, observer.observe, route, self.dtype
            ),
            self._abstract(spec),
            states[-1],
          )
      states.append(
        jax.eval_shape(
          functools.partial(programs.finish, observer.finish), total, states[-1]
        )
      )
    return states

  def _abstract(self, spec):
    """The inputs of a whole leaf, without values."""
    base, *dense = (
      jax.ShapeDtypeStruct(spec.shape, each.specs[spec.path].dtype)
      for each in self.sources
    )
    rest = iter(dense)
    row = (
      jax.tree.map(_shaped, each.get(spec.path))
      if is_adapter(each)
      else next(rest)
      for each in self.experts
    )
    extra: dict[str, Any] = {
      name: None
      if spec.path not in columns[0].specs
      else tuple(
        jax.ShapeDtypeStruct(own.shape, own.dtype)
        for own in (each.specs[spec.path] for each in columns)
      )
      for name, columns in self.extra.items()
    }
    return programs.Inputs(np.int32(0), (base, *row), extra, np.uint32(0))


def _shaped(value):
  return jax.ShapeDtypeStruct(np.shape(value), jnp.result_type(value))


def _bytes_of(compiled):
  analysis = compiled.memory_analysis()
  if analysis is None:  # Not every backend tells.
    return 0
  return analysis.temp_size_in_bytes + analysis.output_size_in_bytes
