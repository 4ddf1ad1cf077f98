"""What is found out of every operation of a function, as a table."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax

from numerics import interpreter
from numerics import programs


@dataclasses.dataclass(frozen=True)
class Operation:
  """Which operation of a function a row is about.

  Attributes:
    primitive: Its name.
    scope: The names around it.
    source: The line of code that made it.
    result: Dtype and shape of its result.
  """

  primitive: str
  scope: str
  source: str
  result: str

  @property
  def place(self) -> str:
    """The line of code, without the folders of its file."""
    return self.source.rpartition('/')[2]


def operation(equation: programs.Equation) -> Operation:
  """Describes an equation."""
  outputs = equation.outputs
  return Operation(
    equation.primitive,
    equation.scope,
    equation.source,
    outputs[0].str_short() if outputs else '',
  )


def observe(
  function: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  interpretation: interpreter.Interpretation,
  key: interpreter.Key = None,
  check: Callable[[list[programs.Equation]], None] = lambda equations: None,
) -> tuple[Any, list[tuple[Operation, Any]]]:
  """Runs a function under an interpretation that keeps records.

  Args:
    function: Any that JAX can trace.
    args: Its arguments.
    kwargs: Its keyword arguments.
    interpretation: Of which the records are dictionaries.
    key: For rules that draw.
    check: Of all operations, before anything runs.

  Returns:
    Its result, and the records of floating operations that ran, as NumPy
    arrays, in the order of the program.
  """
  traced = programs.trace_call(function, args, kwargs)
  equations = list(programs.walk(traced.program))
  check(equations)

  @jax.jit
  def run(consts, inputs, key):
    filled = traced._replace(consts=consts, inputs=inputs)
    return interpreter.interpret(filled, interpretation, key)

  result, records = run(list(traced.consts), list(traced.inputs), key)
  records = jax.device_get(records)
  return result, [
    (operation(equation), records[equation.path])
    for equation in equations
    if equation.floating and records[equation.path]['count']
  ]


def table(
  rows: Sequence[Any], columns: dict[str, Callable[[Any], object]]
) -> str:
  """Lays out a table: where an operation is, and columns about it.

  Args:
    rows: Of which each has an `operation`.
    columns: What they show of it, under a title. Numbers get four digits.

  Returns:
    The table.
  """
  columns = {
    'operation': lambda row: row.operation.primitive,
    'result': lambda row: row.operation.result,
    **columns,
    'line': lambda row: row.operation.place,
    'scope': lambda row: row.operation.scope,
  }
  return lines(
    list(columns), [[show(row) for show in columns.values()] for row in rows]
  )


def lines(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  """Lays out titles and rows of cells. Numbers get four digits."""
  cells = [list(titles), *([_cell(cell) for cell in row] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in cells
  )


def _cell(value: object) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value)
