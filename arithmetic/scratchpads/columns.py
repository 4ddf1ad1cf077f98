"""Adding and subtracting by columns, from the right."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from arithmetic.pieces import Condition
from arithmetic.pieces import Field
from arithmetic.pieces import joined
from arithmetic.pieces import Mark
from arithmetic.pieces import Piece
from arithmetic.pieces import present
from arithmetic.pieces import Value
from arithmetic.scratchpads import base
from arithmetic.tasks import digitwise
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits


class _Column(NamedTuple):
  """One step of adding or subtracting by columns, from the right.

  Attributes:
    there: Whether the problem has this column.
    rest: What is left of the operands, this column's digits the last.
    digits: This column's digits.
    partial: The digits of the answer so far.
    carry: What the column before handed over: 0 or 1, 0 or -1.
    owed: Its magnitude.
    borrows: Whether ten is added.
    value: What the column comes to.
    digit: The digit of the answer; that of the last column may be negative.
    carried: What this column hands over.
  """

  there: Condition
  rest: tuple[Value, Value]
  digits: tuple[Value, Value]
  partial: Value
  carry: Value
  owed: Value
  borrows: Condition
  value: Value
  digit: Value
  carried: Value


class _Columns(NamedTuple):
  """All steps, and how a difference is made of the last column and the others.

  Attributes:
    steps: The columns.
    first: The last column's digit, which may be negative, down to -10.
    others: The digits of the others.
    head: The first digit with zeros in place of the others.
    tail: The others, as a number.
    total: The head and the tail together.
  """

  steps: list[_Column]
  first: Value
  others: Value
  head: Value
  tail: Value
  total: Value


def _columns(operator: str, operands: Sequence[Value]) -> _Columns:
  sign = {'+': 1, '-': -1}[operator]
  a, b = operands
  if isinstance(a, str) or isinstance(b, str):
    return _columns_in_python(sign, str(a), str(b))
  return _columns_on_device(sign, a, b)


def _columns_in_python(sign: int, a: str, b: str) -> _Columns:
  count, carry, steps = max(len(a), len(b)), 0, []
  digits: list[int] = []
  for i in range(count):
    x, y = (int(n[-1 - i]) if i < len(n) else 0 for n in (a, b))
    value = x + sign * y + carry
    carried = value // 10
    borrows = sign < 0 and value < 0 and i < count - 1
    value += 10 * borrows
    digit = value % 10 if sign > 0 else value
    steps.append(
      _Column(
        there=True,
        rest=(a[: max(len(a) - i, 0)], b[: max(len(b) - i, 0)]),
        digits=(str(x), str(y)),
        partial=''.join(map(str, digits[::-1])),
        carry=str(carry),
        owed=str(abs(carry)),
        borrows=borrows,
        value=str(value),
        digit=str(digit),
        carried=str(carried),
      )
    )
    digits.append(digit)
    carry = carried
  *others, first = digits
  tail = ''.join(map(str, others[::-1]))
  return _Columns(
    steps,
    first=str(first),
    others=tail,
    head=str(first * 10 ** len(others)),
    tail=str(int(tail or '0')),
    total=str(first * 10 ** len(others) + int(tail or '0')),
  )


def _columns_on_device(sign: int, a: Digits, b: Digits) -> _Columns:
  count = max(a.values.shape[-1], b.values.shape[-1])
  x, y = (digitwise.pad(n.masked().values, count) for n in (a, b))
  length = jnp.maximum(a.length, b.length)
  carry, steps = jnp.zeros_like(length), []
  digits = jnp.zeros((len(length), count + 1), jnp.int32)
  for i in range(count):
    there = i < length
    value = x[:, i] + sign * y[:, i] + carry
    carried = jnp.where(there, value // 10, carry)
    borrows = (sign < 0) & (value < 0) & (i < length - 1)
    value = jnp.where(borrows, value + 10, value)
    digit = value % 10 if sign > 0 else value
    steps.append(
      _Column(
        there=there,
        rest=(
          Digits(x[:, i:], jnp.maximum(a.length - i, 0)),
          Digits(y[:, i:], jnp.maximum(b.length - i, 0)),
        ),
        digits=(base.number(x[:, i], 1), base.number(y[:, i], 1)),
        partial=Digits(digits[:, : max(i, 1)], jnp.full_like(length, i)),
        carry=base.number(carry, 1),
        owed=base.number(jnp.abs(carry), 1),
        borrows=borrows,
        value=base.number(value, 2),
        digit=base.number(digit, 2),
        carried=base.number(carried, 1),
      )
    )
    digits = digits.at[:, i].set(jnp.where(there, digit, 0))
    carry = carried
  at_head = column(digits) == length[:, None] - 1
  head = jnp.where(at_head, digits, 0)
  first = jnp.sum(head, axis=1)
  others = jnp.where(at_head, 0, digits)
  negative = first < 0
  magnitude = jnp.where(negative, -1, 1)[:, None]
  return _Columns(
    steps,
    first=base.number(first, 2),
    others=Digits(others, length - 1),
    head=digitwise.signed(
      digitwise.strip(digitwise.carry(magnitude * head)), negative
    ),
    tail=digitwise.strip(others),
    total=digitwise.signed(
      digitwise.strip(digitwise.carry(magnitude * digits)), negative
    ),
  )


def simplified(operator: str, operands: Sequence[Value]) -> list[Piece]:
  """The digit and the carry of each column: `A->5 , C->1`."""
  columns = _columns(operator, operands)
  written: list[Piece] = []
  for i, step in enumerate(columns.steps):
    there = step.there
    written += [
      Mark('\n', when=there) if i else Mark(''),
      Mark('A->', when=there),
      Field(step.digit, when=there),
      Mark(' , C->', when=there),
      Field(step.carried, when=there),
    ]
  if operator == '-':
    written += [Mark('\n'), *_head_and_tail(columns)]
  return [*written, Mark('.')]


def _head_and_tail(columns: _Columns) -> list[Piece]:
  return [
    Field(columns.head),
    Mark('+'),
    Field(columns.tail),
    Mark('='),
    Field(columns.total),
  ]


def detailed(operator: str, operands: Sequence[Value]) -> list[Piece]:
  """Each column with what is left, what is done and what it comes to."""
  columns = _columns(operator, operands)
  written: list[Piece] = [
    *base.counted(operands[0]),
    *base.counted(operands[1]),
  ]
  for step in columns.steps:
    there = step.there
    written += [
      *base.listed(step.rest[0], there),
      Mark(f' {operator} ', when=there),
      *base.listed(step.rest[1], there),
      Mark(' , A=', when=there),
      *base.listed(step.partial, there),
      Mark(' , C=', when=there),
      Field(step.carry, when=there),
      Mark(' , ', when=there),
      Field(step.digits[0], when=there),
      Mark(operator, when=there),
      Field(step.digits[1], when=there),
      Mark(operator, when=there),
      Field(step.owed, when=there),
      Mark('+10', when=step.borrows),
      Mark('=', when=there),
      Field(step.value, when=there),
      Mark(' , A->', when=there),
      Field(step.digit, when=there),
      Mark(' , C->', when=there),
      Field(step.carried, when=there),
      Mark('\n', when=there),
    ]
  written += [
    Mark(f'[] {operator} [] , A=['),
    Field(columns.first),
    Mark(',', when=present(columns.others)),
    Field(columns.others, between=joined(',')),
    Mark(']'),
  ]
  if operator == '+':
    written += [Mark(' C='), Field(columns.steps[-1].carried)]
  else:
    written += [Mark('\n'), *_head_and_tail(columns)]
  return [*written, Mark(' , END')]
