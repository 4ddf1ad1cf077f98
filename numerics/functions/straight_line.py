"""Programs without branches, of additions, products and quotients."""

from collections.abc import Callable
import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

Operation = Literal['+', '-', '*', '/']
OPERATIONS: tuple[Operation, ...] = ('+', '-', '*', '/')


class Step(NamedTuple):
  """An operation on two operands.

  Attributes:
    operation: Which.
    left: An int is a place: 0 that of the argument, k that of the result of the
      k-th step. A float is a constant.
    right: Likewise.
  """

  operation: Operation
  left: int | float
  right: int | float


@dataclasses.dataclass(frozen=True)
class Program:
  """A function as steps, the last of which gives its value.

  It is called with whatever can be added, multiplied and divided: arrays of
  JAX, under `jit` and `numerics.emulate`, or of NumPy, fractions, decimals.

  Attributes:
    steps: The steps.

  Raises:
    ValueError: If a step has an unknown operation, or an operand that is not
      computed before it.

  Examples:
    >>> square = Program((Step('+', 0, 1.0), Step('*', 1, 1)))
    >>> square(2.0), square.operations
    (9.0, 2)
    >>> print(square)
    v1 = x + 1.0
    v2 = v1 * v1
    >>> from fractions import Fraction
    >>> square(Fraction(1, 3), number=Fraction)
    Fraction(16, 9)
  """

  steps: tuple[Step, ...]

  def __post_init__(self) -> None:
    for place, step in enumerate(self.steps, 1):
      if step.operation not in OPERATIONS:
        raise ValueError(
          f'Program: step {place} is {step.operation!r}, expected one of'
          f' {", ".join(OPERATIONS)}'
        )
      for operand in step[1:]:
        if isinstance(operand, int) and not 0 <= operand < place:
          raise ValueError(
            f'Program: step {place} takes the result of step {operand}, which'
            ' is not there yet'
          )

  @property
  def operations(self) -> int:
    """How many operations it takes."""
    return len(self.steps)

  @property
  def constants(self) -> tuple[float, ...]:
    """Its constants, in the order of the steps."""
    return tuple(
      each
      for step in self.steps
      for each in step[1:]
      if isinstance(each, float)
    )

  def with_constants(self, constants: tuple[float, ...]) -> 'Program':
    """Returns the same steps with other constants, in that order."""
    if len(constants) != len(self.constants):
      raise ValueError(
        f'Program: {len(constants)} constants, expected {len(self.constants)}'
      )
    rest = iter(constants)

    def change(operand):
      return float(next(rest)) if isinstance(operand, float) else operand

    return Program(
      tuple(
        Step(step.operation, change(step.left), change(step.right))
        for step in self.steps
      )
    )

  def __call__(self, x: Any, number: Callable[[float], Any] = float) -> Any:
    """Computes it.

    Args:
      x: The argument.
      number: Makes a constant a number of its kind, such as `Fraction`.

    Returns:
      The value.
    """
    values = [x]
    for step in self.steps:
      left, right = (
        number(each) if isinstance(each, float) else values[each]
        for each in step[1:]
      )
      match step.operation:
        case '+':
          values.append(left + right)
        case '-':
          values.append(left - right)
        case '*':
          values.append(left * right)
        case '/':
          values.append(left / right)
    return values[-1]

  def __str__(self) -> str:
    def name(operand):
      if isinstance(operand, float):
        return repr(operand)
      return f'v{operand}' if operand else 'x'

    return '\n'.join(
      f'v{place} = {name(step.left)} {step.operation} {name(step.right)}'
      for place, step in enumerate(self.steps, 1)
    )


def horner(coefficients: tuple[float, ...]) -> Program:
  """A polynomial as a program, of two operations for each degree.

  Args:
    coefficients: From that of 1 upward, at least two.

  Returns:
    The program.

  Raises:
    ValueError: If there are fewer than two coefficients.

  Examples:
    >>> print(horner((1.0, 2.0, 3.0)))
    v1 = x * 3.0
    v2 = v1 + 2.0
    v3 = v2 * x
    v4 = v3 + 1.0
  """
  if len(coefficients) < 2:
    raise ValueError(
      f'horner: {len(coefficients)} coefficients, expected at least 2'
    )
  *rest, first = map(float, coefficients)
  steps = [Step('*', 0, first), Step('+', 1, rest[-1])]
  for coefficient in reversed(rest[:-1]):
    steps.append(Step('*', len(steps), 0))
    steps.append(Step('+', len(steps), coefficient))
  return Program(tuple(steps))
