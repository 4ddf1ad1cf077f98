"""What a scratchpad is, and what several of them write."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp

from arithmetic.pieces import Condition
from arithmetic.pieces import Field
from arithmetic.pieces import joined
from arithmetic.pieces import Mark
from arithmetic.pieces import Piece
from arithmetic.pieces import Value
from arithmetic.tasks import digitwise
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratchpad:
  """A way to write the work.

  Attributes:
    name: Its key in `ALL`.
    operators: Which tasks it is for: those with one of these as operator, or
      as symbol if they have no operator.
    operands: How many operands they have.
    opening: What comes before the operands.
    closing: What ends the prompt.
    answer_mark: What ends the work.
    spaced: Whether blanks stand between the digits of the answer.
    characters: What the work holds, beside digits.
    pieces: From the operator and the operands to the pieces of the work.
  """

  name: str
  operators: str
  opening: str
  closing: str
  answer_mark: str
  characters: str
  pieces: Callable[[str, Sequence[Value]], list[Piece]]
  operands: int = 2
  spaced: bool = False

  def work(self, task: Task, operands: Sequence[Value]) -> list[Piece]:
    """The pieces of the work, of arrays or of strings.

    Args:
      task: One that it is for.
      operands: All of them arrays, or all strings.

    Returns:
      The pieces.

    Raises:
      ValueError: If the scratchpad is not for this task.
    """
    operator = task.operator or task.symbol
    if operator not in self.operators or len(operands) != self.operands:
      raise ValueError(
        f'the {self.name} scratchpad is for tasks with the operator'
        f' {" or ".join(self.operators)} and {self.operands} operands, got'
        f' {task.name}'
      )
    return self.pieces(operator, operands)


def number(value: Any, width: int) -> Digits:
  """A number that may be negative."""
  magnitude = digitwise.from_integer(jnp.abs(value), width)
  return digitwise.signed(magnitude, value < 0)


def listed(value: Value, when: Condition = True) -> list[Piece]:
  """A list of digits: `[1,9,9]`, or `[]`."""
  return [
    Mark('[', when=when),
    Field(value, between=joined(','), when=when),
    Mark(']', when=when),
  ]


def counted(value: Value) -> list[Piece]:
  """How many digits a number has: `[1,9,9] has 3 digits.`, and a new line."""
  if isinstance(value, str):
    count: Value = str(len(value))
  else:
    count = number(value.length, len(str(value.values.shape[-1])))
  return [*listed(value), Mark(' has '), Field(count), Mark(' digits.\n')]
