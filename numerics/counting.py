"""What a function costs: operations, bytes and energy, without running it."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import typing
from typing import Any

import numpy as np

from numerics import blocks
from numerics import emulation
from numerics import policies
from numerics import primitives
from numerics import programs
from numerics import reports
from numerics.multiply import linear_complexity

Work = typing.Literal['add', 'multiply', 'other']
Price = Mapping[tuple[Work, str, int], float]

# Picojoules, by work, kind of number and bits: 45 nm, 0.9 V. Floats of 16 bits
# are float16 there; others of that width count as if they cost the same.
HOROWITZ_45NM: Price = {
  ('add', 'float', 16): 0.4,
  ('add', 'float', 32): 0.9,
  ('multiply', 'float', 16): 1.1,
  ('multiply', 'float', 32): 3.7,
  ('add', 'int', 8): 0.03,
  ('add', 'int', 32): 0.1,
  ('multiply', 'int', 8): 0.2,
  ('multiply', 'int', 32): 3.1,
}

# Reductions take as many of them as there are terms.
_ADDS = frozenset(['add', 'add_any', 'sub', 'reduce_sum', 'cumsum', 'psum']) | {
  'reduce_window_sum',
  'scatter-add',
}
_MULTIPLIES = frozenset(['mul', 'square', 'reduce_prod', 'cumprod']) | {
  'scatter-mul',
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one operation costs, all of its runs together.

  Attributes:
    operation: Which operation.
    kind: `'float'` or `'int'`, what it adds or multiplies.
    bits: Width of its operands.
    adds: Additions and subtractions.
    multiplies: Multiplications.
    others: Anything else that gives a number: divisions, exponentials, maxima.
    bytes: Read and written if no result were kept near: operands and results.
    integer_adds: Additions of integers as wide as the operands, in the place of
      multiplications (`LMul`).
  """

  operation: reports.Operation
  kind: str
  bits: int
  adds: int
  multiplies: int
  others: int
  bytes: int
  integer_adds: int = 0

  @property
  def work(self) -> int:
    """All operations."""
    return self.adds + self.multiplies + self.others + self.integer_adds

  def energy(self, prices: Price) -> float | None:
    """Picojoules of the arithmetic, None if a price is missing."""
    work: list[tuple[Work, str, int]] = [
      ('add', self.kind, self.adds),
      ('multiply', self.kind, self.multiplies),
      ('other', self.kind, self.others),
      ('add', 'int', self.integer_adds),
    ]
    parts = [
      prices.get((name, kind, self.bits), math.nan) * count
      for name, kind, count in work
      if count
    ]
    total = sum(parts)
    return None if math.isnan(total) else total


@dataclasses.dataclass(frozen=True)
class Costs:
  """What a function costs.

  Attributes:
    rows: Of every operation, in the order of the program.
  """

  rows: Sequence[Cost]

  @property
  def adds(self) -> int:
    """Additions and subtractions."""
    return sum(row.adds for row in self.rows)

  @property
  def multiplies(self) -> int:
    """Multiplications."""
    return sum(row.multiplies for row in self.rows)

  @property
  def integer_adds(self) -> int:
    """Additions of integers in the place of multiplications."""
    return sum(row.integer_adds for row in self.rows)

  @property
  def others(self) -> int:
    """Everything else that gives a number."""
    return sum(row.others for row in self.rows)

  @property
  def bytes(self) -> int:
    """Bytes that all operations read and write."""
    return sum(row.bytes for row in self.rows)

  @property
  def intensity(self) -> float:
    """Operations per byte."""
    work = sum(row.work for row in self.rows)
    return work / self.bytes if self.bytes else 0.0

  def energy(self, prices: Price = HOROWITZ_45NM) -> tuple[float, int]:
    """The energy of the arithmetic.

    Args:
      prices: Picojoules of an operation.

    Returns:
      Picojoules of all that has a price, and how many operations have none.
    """
    total, missing = 0.0, 0
    for row in self.rows:
      energy = row.energy(prices)
      if energy is None:
        missing += row.work
      else:
        total += energy
    return total, missing

  def __str__(self) -> str:
    """The rows as a table, the most work first."""
    rows = sorted(self.rows, key=lambda row: -row.work)
    return reports.table(
      rows,
      {
        'kind': lambda row: f'{row.kind}{row.bits}',
        'adds': lambda row: row.adds,
        'multiplies': lambda row: row.multiplies,
        'integer adds': lambda row: row.integer_adds,
        'others': lambda row: row.others,
        'bytes': lambda row: row.bytes,
      },
    )


def count(
  function: Callable[..., Any],
  policy: policies.Policy | policies.PrecisionLike | None = None,
) -> Callable[..., Costs]:
  """Counts the operations of a function, the bytes they move, their energy.

  Nothing runs. A `scan` counts as often as it turns; a `while` as one turn, for
  how many it makes is not known; of a `cond` all branches count. A product of
  matrices of `k` terms is `k` multiplications and `k` additions for each number
  of the result. Energy is that of arithmetic alone.

  Args:
    function: Any function that JAX can trace.
    policy: In whose formats numbers are counted to be; None: in their dtypes.

  Returns:
    A function of the same arguments that returns `Costs`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> cost = numerics.count(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4)))
    >>> cost.adds, cost.multiplies, cost.bytes
    (24, 24, 104)
    >>> round(cost.energy()[0], 1), cost.energy()[1]  # (0.9 + 3.7) · 24 pJ
    (110.4, 0)

  References:
    Horowitz, Computing's Energy Problem (and What We Can Do About It), 2014,
      doi:10.1109/ISSCC.2014.6757323 (the prices).
  """
  chosen = None if policy is None else policies.as_policy('count', policy)

  def counted(*args: Any, **kwargs: Any) -> Costs:
    traced = programs.trace_call(function, args, kwargs)
    equations = list(programs.walk(traced.program))
    if chosen is not None:
      chosen.check('count', equations)
    return Costs([_cost(each, chosen) for each in equations if each.outputs])

  return counted


def _cost(equation: programs.Equation, policy: policies.Policy | None) -> Cost:
  name, times = equation.primitive, equation.times
  size = sum(_size(output) for output in equation.outputs)
  moved = primitives.kind(name) == 'structural'
  adds = multiplies = others = 0
  if name == 'dot_general':
    (left, _), _ = equation.params['dimension_numbers']
    adds = multiplies = size * math.prod(
      equation.inputs[0].shape[axis] for axis in left
    )
  elif name == 'conv_general_dilated':
    kernel = equation.inputs[1].shape
    features = kernel[equation.params['dimension_numbers'].rhs_spec[0]]
    adds = multiplies = size * math.prod(kernel) // max(1, features)
  elif name in _ADDS or name in _MULTIPLIES:
    work = size
    if primitives.kind(name) == 'reduction':
      work = max(size, _size(equation.inputs[-1]))
    adds, multiplies = (work, 0) if name in _ADDS else (0, work)
  elif name == 'integer_pow':
    exponent = abs(equation.params['y'])
    steps = max(0, exponent.bit_length() + exponent.bit_count() - 2)
    multiplies = size * steps
    others = size if equation.params['y'] < 0 else 0
  elif not moved:
    others = size
  wanted, written, kind, read = _formats(equation, policy)
  integer_adds = 0
  if _adds_instead(equation, policy):
    multiplies, integer_adds = 0, multiplies
  return Cost(
    reports.operation(equation),
    kind,
    max(wanted, default=written),
    adds * times,
    multiplies * times,
    others * times,
    times * -(-(read + size * written) // 8),
    integer_adds * times,
  )


def _adds_instead(
  equation: programs.Equation, policy: policies.Policy | None
) -> bool:
  """Whether integers are added in the place of each multiplication."""
  if policy is None or not emulation.computes(equation):
    return False
  precision = policy.precision(equation)
  return precision is not None and isinstance(
    precision.multiply, linear_complexity.LMul
  )


def _formats(
  equation: programs.Equation, policy: policies.Policy | None
) -> tuple[list[int], int, str, int]:
  """Bits of each operand and of the result, the kind, and all bits read."""
  wanted = [_bits(each) for each in equation.inputs]
  written = max(map(_bits, equation.outputs))
  floating = equation.floating or any(map(programs.is_inexact, equation.inputs))
  kind = 'float' if floating else 'int'
  sizes = [_size(each) for each in equation.inputs]
  read = sum(size * bits for size, bits in zip(sizes, wanted, strict=True))
  if policy is None or not emulation.computes(equation):
    return wanted, written, kind, read
  precision = policy.precision(equation)
  if precision is None:
    return wanted, written, kind, read
  product = precision.product
  inputs = precision.inputs if product is None else product.formats
  each = inputs if isinstance(inputs, tuple) else (inputs,) * len(wanted)
  read = 0
  for place, (operand, fmt) in enumerate(
    zip(equation.inputs, each, strict=True)
  ):
    if fmt is None or not programs.is_inexact(operand):
      read += sizes[place] * wanted[place]
    else:
      wanted[place] = fmt.bits
      read += blocks.size_in_bits(fmt, sizes[place])
  if all(fmt is not None and fmt.uniform for fmt in each):
    kind = 'int'
  if precision.output is not None:
    written = precision.output.bits
  return wanted, written, kind, read


def _size(aval: Any) -> int:
  return math.prod(getattr(aval, 'shape', ()))


def _bits(aval: Any) -> int:
  dtype = getattr(aval, 'dtype', None)
  if dtype is None:
    return 0
  return 1 if dtype == np.bool_ else 8 * dtype.itemsize
