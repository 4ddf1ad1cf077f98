"""Tasks on strings of digits, where a leading zero is a digit like any other.

Tasks with one operand take a string of twice the level, so that a problem of
one level is about as long, and its space about as large, in every task.
"""

import jax.numpy as jnp

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Task

Operands = tuple[Digits, ...]


def _two(level: int) -> tuple[int, int]:
  return level, level


def _one(level: int) -> tuple[int]:
  return (2 * level,)


def _digitwise(function):
  """A task answer computed column by column from two strings of a length."""

  def compute(operands: Operands) -> Digits:
    a, b = operands
    return Digits(function(a.values, b.values), a.length).masked()

  return compute


def _solve_digitwise(function):
  def solve(x: tuple[str, ...]) -> str:
    pairs = zip(*x, strict=True)
    return ''.join(str(function(int(a), int(b))) for a, b in pairs)

  return solve


def _sort(descending: bool):
  def compute(operands: Operands) -> Digits:
    (a,) = operands
    outside = column(a.values) >= a.length[..., None]
    # Entries beyond the length sort behind every digit. Position 0 is written
    # last: ascending values along the axis read as descending digits.
    ascending = jnp.sort(jnp.where(outside, 10, a.values), axis=-1)
    result = Digits(jnp.where(ascending == 10, 0, ascending), a.length)
    return result if descending else digitwise.reverse(result)

  return compute


def _reverse(operands: Operands) -> Digits:
  return digitwise.reverse(operands[0])


def _rotate(operands: Operands) -> Digits:
  """Moves the first written digit to the end."""
  (a,) = operands
  width = a.values.shape[-1]
  place = column(a.values)
  source = jnp.where(place == 0, a.length[..., None] - 1, place - 1)
  values = jnp.take_along_axis(
    a.values, jnp.clip(source, 0, width - 1), axis=-1
  )
  return Digits(values, a.length).masked()


def _digit_sum(operands: Operands) -> Digits:
  (a,) = operands
  return digitwise.from_integer(
    jnp.sum(a.values, axis=-1), len(str(9 * a.values.shape[-1]))
  )


def _count(operands: Operands) -> Digits:
  a, b = operands
  inside = column(a.values) < a.length[..., None]
  same = a.values == b.values[..., :1]
  return digitwise.from_integer(
    jnp.sum(inside & same, axis=-1, dtype=jnp.int32),
    len(str(a.values.shape[-1])),
  )


def _parity(operands: Operands) -> Digits:
  (a,) = operands
  return digitwise.from_integer(jnp.sum(a.values, axis=-1) % 2, 1)


carryless_addition = Task(
  name='carryless_addition',
  symbol='#',
  numeric=False,
  widths=_two,
  answer_width=lambda level: level,
  compute=_digitwise(lambda a, b: (a + b) % 10),
  solve=_solve_digitwise(lambda a, b: (a + b) % 10),
)

carryless_subtraction = Task(
  name='carryless_subtraction',
  symbol='~',
  numeric=False,
  widths=_two,
  answer_width=lambda level: level,
  compute=_digitwise(lambda a, b: (a - b) % 10),
  solve=_solve_digitwise(lambda a, b: (a - b) % 10),
)

digitwise_maximum = Task(
  name='digitwise_maximum',
  symbol='|',
  numeric=False,
  widths=_two,
  answer_width=lambda level: level,
  compute=_digitwise(jnp.maximum),
  solve=_solve_digitwise(max),
)

sorting = Task(
  name='sorting',
  symbol='S',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 2 * level,
  compute=_sort(descending=False),
  solve=lambda x: ''.join(sorted(x[0])),
)

sorting_descending = Task(
  name='sorting_descending',
  symbol='D',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 2 * level,
  compute=_sort(descending=True),
  solve=lambda x: ''.join(sorted(x[0], reverse=True)),
)

reversing = Task(
  name='reversing',
  symbol='R',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 2 * level,
  compute=_reverse,
  solve=lambda x: x[0][::-1],
)

rotating = Task(
  name='rotating',
  symbol='O',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 2 * level,
  compute=_rotate,
  solve=lambda x: x[0][1:] + x[0][:1],
)

copying = Task(
  name='copying',
  symbol='C',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 2 * level,
  compute=lambda operands: operands[0],
  solve=lambda x: x[0],
)

digit_sum = Task(
  name='digit_sum',
  symbol='T',
  numeric=False,
  widths=_one,
  answer_width=lambda level: len(str(18 * level)),
  compute=_digit_sum,
  solve=lambda x: str(sum(map(int, x[0]))),
)

counting = Task(
  name='counting',
  symbol='N',
  numeric=False,
  widths=lambda level: (2 * level, 1),
  answer_width=lambda level: len(str(2 * level)),
  compute=_count,
  solve=lambda x: str(x[0].count(x[1])),
)

parity = Task(
  name='parity',
  symbol='P',
  numeric=False,
  widths=_one,
  answer_width=lambda level: 1,
  compute=_parity,
  solve=lambda x: str(sum(map(int, x[0])) % 2),
)
