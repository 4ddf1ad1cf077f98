"""Evolution of programs that compute a function in few operations."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from numerics.functions import fitting
from numerics.functions import straight_line

Function = Callable[[np.ndarray], np.ndarray]
_Step = straight_line.Step


class Found(NamedTuple):
  """A program, and how far it is from its function.

  Attributes:
    program: The program.
    error: Its largest relative error.
  """

  program: straight_line.Program
  error: float

  @property
  def digits(self) -> float:
    """Decimal digits that are right, `-log10(error)`."""
    return -float(np.log10(self.error))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution:
  """How programs are looked for.

  There is a niche for each number of operations, which holds the programs of
  least error that it saw. A generation takes parents from all niches, the
  better ones more often, changes their steps at random, fits the constants of
  all children together (see `fitting.fit`; the paper evolves them too), and
  puts each where its number of operations belongs. So every program is a step
  toward longer and shorter ones, and the niches are the front of operations
  against error that is returned.

  Attributes:
    operations: The most of a program.
    generations: How many.
    children: In each generation.
    kept: Programs in a niche.
    points: Arguments that constants are fitted at.
    turns: Steps of a fit.

  Raises:
    ValueError: If one of them is below 1.

  References:
    Real et al., AutoNumerics-Zero: Automated Discovery of State-of-the-Art
      Mathematical Functions, 2023, arXiv:2312.08472.
  """

  operations: int = 10
  generations: int = 1000
  children: int = 128
  kept: int = 40
  points: int = 48
  turns: int = 12

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ValueError(
          f'Evolution: {field.name} must be 1 or more, got'
          f' {getattr(self, field.name)}'
        )

  def fronts(
    self, function: Function, low: float, high: float, *, seed: int
  ) -> Iterator[list[Found]]:
    """Yields the front after every generation.

    Args:
      function: Takes and returns `f64[n]`, finite and not 0.
      low: Where the interval begins.
      high: Where it ends.
      seed: What changes are drawn from. The same one gives the same programs,
        on one kind of machine.

    Yields:
      For every number of operations at which one was found, the program of the
      least error at the points that constants were fitted at.

    Raises:
      ValueError: If there is no interval, or the function is not finite, or
        zero, somewhere in it.
    """
    if not low < high:
      raise ValueError(f'Evolution: no interval from {low} to {high}')
    x = fitting.nodes(low, high, self.points)
    exact = np.asarray(function(x), np.float64)
    if not np.all(np.isfinite(exact)) or np.min(exact) * np.max(exact) <= 0:
      raise ValueError(
        f'Evolution: the function is not finite, or zero, somewhere from {low}'
        f' to {high}'
      )
    rng = np.random.default_rng(seed)
    niches: dict[int, list[Found]] = {
      0: [Found(straight_line.Program(()), np.inf)]
    }
    for _ in range(self.generations):
      children = self._children(niches, rng)
      fitted, errors = fitting.fit(
        children, self.operations, x, exact, turns=self.turns
      )
      for program, error in zip(fitted, errors, strict=True):
        if np.isfinite(error) and error > 0:
          _put(niches, Found(program, float(error)), self.kept)
      yield [niches[count][0] for count in sorted(niches) if count]

  def _children(self, niches, rng):
    children = []
    counts = sorted(niches)
    while len(children) < self.children:
      niche = niches[counts[rng.integers(len(counts))]]
      place = min(rng.integers(len(niche), size=2))
      program = niche[place].program
      for _ in range(rng.geometric(0.5)):
        program = changed(program, rng)
      program = simplified(program)
      if program and 0 < program.operations <= self.operations:
        children.append(program)
    return children


def evolve(
  function: Function,
  low: float,
  high: float,
  *,
  seed: int = 0,
  settings: Evolution | None = None,
) -> list[Found]:
  """Finds programs that compute a function, for every number of operations.

  Args:
    function: Takes and returns `f64[n]`, finite and not 0.
    low: Where the interval begins.
    high: Where it ends.
    seed: What changes are drawn from.
    settings: How they are looked for; `Evolution()` by default.

  Returns:
    The front: by operations, with constants fitted for the least largest
    relative error, which was measured at points that none was fitted to.

  Raises:
    ValueError: If there is no interval, or the function is not finite, or zero,
      somewhere in it.

  Examples:
    >>> few = Evolution(operations=3, generations=20, children=32)
    >>> front = evolve(np.exp2, 0.0, 1.0, settings=few)
    >>> [found.program.operations for found in front]
    [1, 2, 3]
    >>> front[1].error < 0.04
    True
  """
  settings = settings or Evolution()
  *_, front = settings.fronts(function, low, high, seed=seed)
  return levelled([found.program for found in front], function, low, high)


def levelled(
  programs: Sequence[straight_line.Program],
  function: Function,
  low: float,
  high: float,
  *,
  turns: int = 30,
) -> list[Found]:
  """Fits constants for the least largest relative error, not the least squares.

  Squares are weighted anew in turns by the errors they left, as Lawson has it.

  Args:
    programs: With constants that are near already.
    function: Takes and returns `f64[n]`, finite and not 0.
    low: Where the interval begins.
    high: Where it ends.
    turns: How many times.

  Returns:
    For each, the best that was found, and its largest relative error at points
    that nothing was fitted to.

  Examples:
    >>> line = straight_line.horner((1.0, 1.0))
    >>> [found] = levelled([line], np.exp2, 0.0, 1.0)
    >>> round(found.error, 4)  # Of the best line: see `minimax`.
    0.0298

  References:
    Lawson, Contributions to the Theory of Linear Least Maximum Approximation,
      1961.
  """
  x, seen = fitting.nodes(low, high, 96), fitting.nodes(low, high, 2001)
  exact, right = function(x), function(seen)
  steps = max(program.operations for program in programs)
  weights = np.full((len(programs), x.size), 1 / x.size)
  best = [Found(each, _largest(each, seen, right)) for each in programs]
  for _ in range(turns):
    programs, _ = fitting.fit(
      programs, steps, x, exact, turns=12, weights=weights
    )
    found = [Found(each, _largest(each, seen, right)) for each in programs]
    best = [
      min(pair, key=lambda each: each.error)
      for pair in zip(best, found, strict=True)
    ]
    with np.errstate(all='ignore'):
      errors = [np.abs(each(x) / exact - 1) for each in programs]
    weights = weights * np.nan_to_num(np.stack(errors), posinf=0)
    # What is exact everywhere has no weights any more, and is left as it is.
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
  return best


def _largest(program, x, exact):
  """The largest relative error, infinite if a value is not finite."""
  with np.errstate(all='ignore'):
    error = np.abs(program(x) / exact - 1)
  return float(np.max(error)) if np.all(np.isfinite(error)) else float('inf')


def _put(niches, found, kept):
  """Puts a program where it belongs, unless an equal one is there."""
  niche = niches.setdefault(found.program.operations, [])
  near = 1e-6 * found.error
  if all(abs(other.error - found.error) > near for other in niche):
    niche.append(found)
    niche.sort(key=lambda each: each.error)
    del niche[kept:]


def changed(
  program: straight_line.Program, rng: np.random.Generator
) -> straight_line.Program:
  """Changes the steps of a program at one place, at random.

  Args:
    program: The program, which may have no step.
    rng: What is drawn from.

  Returns:
    Another one. Results that nothing needs may be left in it.
  """
  steps = list(program.steps)
  kinds, chances = zip(*_CHANGES.items(), strict=True)
  # Without a step, there is nothing else to do than to insert one.
  change = rng.choice(len(kinds), p=chances) if steps else kinds.index(_insert)
  return straight_line.Program(tuple(kinds[change](steps, rng)))


def simplified(
  program: straight_line.Program,
) -> straight_line.Program | None:
  """Leaves out results that nothing needs.

  Returns:
    The program, or `None` if a step is a constant whatever the argument is.
  """
  count = program.operations
  needed = {count}
  for place in range(count, 0, -1):
    if place in needed:
      needed.update(
        each for each in program.steps[place - 1][1:] if isinstance(each, int)
      )
  moved, steps = {0: 0}, []
  for place, step in enumerate(program.steps, 1):
    if place not in needed:
      continue
    kind, left, right = step
    if isinstance(left, float) and isinstance(right, float):
      return None
    if left == right and kind in '-/':
      return None
    steps.append(
      _Step(
        kind,
        left if isinstance(left, float) else moved[left],
        right if isinstance(right, float) else moved[right],
      )
    )
    moved[place] = len(steps)
  return straight_line.Program(tuple(steps))


def _operation(rng, count=4):
  """One of the first so many."""
  return straight_line.OPERATIONS[rng.integers(count)]


def _constant(rng, kind):
  """One near which the step does nothing."""
  return float(kind in '*/') + float(rng.normal()) / 2


def _operate(steps, rng):
  """Another operation in a step."""
  place = rng.integers(len(steps))
  steps[place] = steps[place]._replace(operation=_operation(rng))
  return steps


def _rewire(steps, rng):
  """Another operand in a step."""
  place = int(rng.integers(len(steps)))
  kind, left, right = steps[place]
  operand = int(rng.integers(-1, place + 1))
  operand = _constant(rng, kind) if operand < 0 else operand
  # A step has one constant at most.
  kept = left if rng.random() < 0.5 else right
  if isinstance(kept, float) and isinstance(operand, float):
    return steps
  operands = (operand, kept) if rng.random() < 0.5 else (kept, operand)
  steps[place] = _Step(kind, *operands)
  return steps


def _insert(steps, rng):
  """A step more, whose result takes the place of an operand of it."""
  place = int(rng.integers(len(steps) + 1))
  source, other = map(int, rng.integers(place + 1, size=2))
  kind = _operation(rng)
  options = (_constant(rng, kind), source, other)
  operands = [source, options[rng.integers(3)]]
  if rng.random() < 0.5:
    operands.reverse()
  return _spliced(
    steps, place, [_Step(kind, *operands)], source, rng, chance=0.7
  )


def _insert_term(steps, rng):
  """Two steps more: to a result, a small multiple of one, or of its inverse."""
  place = int(rng.integers(1, len(steps) + 1))
  other = int(rng.integers(place + 1))
  small = float(rng.normal()) / 100
  term = (
    _Step('/', small, other) if rng.random() < 0.5 else _Step('*', other, small)
  )
  total = _Step(_operation(rng, 2), place, place + 1)
  return _spliced(steps, place, [term, total], place, rng, chance=1)


def _remove(steps, rng):
  """A step less: what needed it takes an operand of it."""
  place = int(rng.integers(len(steps)))
  operands = [each for each in steps[place][1:] if isinstance(each, int)]
  instead = operands[rng.integers(len(operands))]

  def moved(operand):
    if isinstance(operand, float) or operand <= place:
      return operand
    return instead if operand == place + 1 else operand - 1

  return [
    _Step(kind, moved(left), moved(right))
    for at, (kind, left, right) in enumerate(steps)
    if at != place
  ]


def _disturb(steps, rng):
  """Another constant, from which a fit may lead elsewhere."""
  scale = 10.0 ** rng.uniform(-2, 1) * float(rng.normal())
  place = rng.integers(len(steps))
  kind, left, right = steps[place]
  steps[place] = _Step(
    kind,
    left + scale if isinstance(left, float) else left,
    right + scale if isinstance(right, float) else right,
  )
  return steps


def _square(steps, rng):
  """The square of the result: programs of a part of the argument's range."""
  del rng
  return [*steps, _Step('*', len(steps), len(steps))]


_CHANGES = {
  _operate: 0.13,
  _rewire: 0.17,
  _insert: 0.20,
  _insert_term: 0.15,
  _remove: 0.13,
  _disturb: 0.12,
  _square: 0.10,
}


def _spliced(steps, place, new, source, rng, *, chance):
  """Inserts steps; what needed `source` takes the last one's result, maybe."""
  count = len(new)

  def moved(operand):
    if isinstance(operand, float):
      return operand
    if operand == source and rng.random() < chance:
      return place + count
    return operand + count if operand > place else operand

  rest = [
    _Step(kind, moved(left), moved(right))
    for kind, left, right in steps[place:]
  ]
  return [*steps[:place], *new, *rest]
