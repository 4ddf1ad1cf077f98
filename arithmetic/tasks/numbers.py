"""Tasks on non-negative integers."""

import jax
import jax.numpy as jnp

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Task

Operands = tuple[Digits, ...]


def _two(level: int) -> tuple[int, int]:
  return level, level


def _same_width(operands: Operands, extra: int = 0) -> tuple[jax.Array, ...]:
  width = max(x.values.shape[-1] for x in operands) + extra
  return tuple(digitwise.pad(x.values, width) for x in operands)


def _larger_first(operands: Operands) -> Operands:
  """Swaps the operands where the first is the smaller number."""
  a, b = operands
  swap = digitwise.less(*_same_width(operands))

  def pick(x: Digits, y: Digits) -> Digits:
    return Digits(
      jnp.where(swap[..., None], y.values, x.values),
      jnp.where(swap, y.length, x.length),
    )

  return pick(a, b), pick(b, a)


def _positive_divisor(operands: Operands) -> Operands:
  """Replaces a divisor of zero by nine, so that all nine are possible."""
  a, b = operands
  return a, Digits(jnp.where(b.values == 0, 9, b.values), b.length)


def _add(operands: Operands) -> Digits:
  a, b = _same_width(operands, extra=1)
  return digitwise.strip(digitwise.carry(a + b))


def _subtract(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  return digitwise.strip(digitwise.carry(a - b))


def _subtract_modular(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  difference = Digits(digitwise.carry(a - b), operands[0].length)
  return digitwise.strip(difference.masked().values)


def _multiply(operands: Operands) -> Digits:
  a, b = operands
  width = a.values.shape[-1] + b.values.shape[-1]
  columns = jnp.zeros((*a.length.shape, width), jnp.int32)
  for i in range(b.values.shape[-1]):
    partial = a.values * b.values[..., i, None]
    columns = columns.at[..., i : i + a.values.shape[-1]].add(partial)
  return digitwise.strip(digitwise.carry(columns))


def _quotient(operands: Operands) -> Digits:
  a, b = operands
  return digitwise.strip(digitwise.divide(a.values, b.values[..., 0])[0])


def _remainder(operands: Operands) -> Digits:
  a, b = operands
  remainder = digitwise.divide(a.values, b.values[..., 0])[1]
  return digitwise.from_integer(remainder, 1)


def _successor(operands: Operands) -> Digits:
  (a,) = _same_width(operands, extra=1)
  return digitwise.strip(digitwise.carry(a.at[..., 0].add(1)))


def _pick_number(larger: bool):
  def compute(operands: Operands) -> Digits:
    a, b = _same_width(operands)
    take_b = (digitwise.less(a, b) == larger)[..., None]
    return digitwise.strip(jnp.where(take_b, b, a))

  return compute


def _compare(operands: Operands) -> Digits:
  a, b = _same_width(operands)
  code = jnp.where(
    digitwise.less(a, b), 0, jnp.where(digitwise.less(b, a), 2, 1)
  )
  return digitwise.from_integer(code, 1)


def _solve_compare(x: tuple[str, ...]) -> str:
  a, b = map(int, x)
  return str((a > b) - (a < b) + 1)


addition = Task(
  name='addition',
  symbol='+',
  widths=_two,
  answer_width=lambda level: level + 1,
  compute=_add,
  solve=lambda x: str(int(x[0]) + int(x[1])),
)

subtraction = Task(
  name='subtraction',
  symbol='-',
  widths=_two,
  answer_width=lambda level: level,
  prepare=_larger_first,
  compute=_subtract,
  solve=lambda x: str(int(x[0]) - int(x[1])),
)

modular_subtraction = Task(
  name='modular_subtraction',
  symbol='M',
  widths=_two,
  answer_width=lambda level: level,
  compute=_subtract_modular,
  solve=lambda x: str((int(x[0]) - int(x[1])) % 10 ** len(x[0])),
)

multiplication = Task(
  name='multiplication',
  symbol='*',
  widths=lambda level: (level, 1),
  answer_width=lambda level: level + 1,
  compute=_multiply,
  solve=lambda x: str(int(x[0]) * int(x[1])),
)

division = Task(
  name='division',
  symbol='/',
  widths=lambda level: (level, 1),
  answer_width=lambda level: level,
  prepare=_positive_divisor,
  compute=_quotient,
  solve=lambda x: str(int(x[0]) // int(x[1])),
)

remainder = Task(
  name='remainder',
  symbol='%',
  widths=lambda level: (level, 1),
  answer_width=lambda level: 1,
  prepare=_positive_divisor,
  compute=_remainder,
  solve=lambda x: str(int(x[0]) % int(x[1])),
)

successor = Task(
  name='successor',
  symbol='!',
  widths=lambda level: (2 * level,),
  answer_width=lambda level: 2 * level + 1,
  compute=_successor,
  solve=lambda x: str(int(x[0]) + 1),
)

maximum = Task(
  name='maximum',
  symbol='>',
  widths=_two,
  answer_width=lambda level: level,
  compute=_pick_number(larger=True),
  solve=lambda x: str(max(map(int, x))),
)

minimum = Task(
  name='minimum',
  symbol='<',
  widths=_two,
  answer_width=lambda level: level,
  compute=_pick_number(larger=False),
  solve=lambda x: str(min(map(int, x))),
)

comparison = Task(
  name='comparison',
  symbol='?',
  widths=_two,
  answer_width=lambda level: 1,
  compute=_compare,
  solve=_solve_compare,
)
