"""Long multiplication: a product for each digit, and their sums."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from arithmetic.pieces import Condition
from arithmetic.pieces import Field
from arithmetic.pieces import Mark
from arithmetic.pieces import Piece
from arithmetic.pieces import Value
from arithmetic.scratchpads import base
from arithmetic.tasks import digitwise
from arithmetic.tasks.base import Digits


class _Product(NamedTuple):
  """One step of long multiplication, from the right.

  Attributes:
    there: Whether the second operand has this digit.
    final: Whether no step is behind it.
    digit: The digit of the second operand.
    product: The first operand times the digit.
    shifted: That with the zeros of the digit's weight.
    before: The sum of all shifted products so far.
    after: That with this one.
    filled: `shifted` and `after` with zeros up to the most digits that they
      could have.
  """

  there: Condition
  final: Condition
  digit: Value
  product: Value
  shifted: Value
  before: Value
  after: Value
  filled: tuple[Value, Value]


def _products(operands: Sequence[Value]) -> list[_Product]:
  a, b = operands
  if isinstance(a, str) or isinstance(b, str):
    return _products_in_python(str(a), str(b))
  return _products_on_device(a, b)


def _products_in_python(a: str, b: str) -> list[_Product]:
  steps, total = [], 0
  for i, digit in enumerate(reversed(b)):
    product = int(a) * int(digit)
    shifted = product * 10**i
    before, total = total, total + shifted
    width = len(a) + 1 + i
    steps.append(
      _Product(
        there=True,
        final=i == len(b) - 1,
        digit=digit,
        product=str(product),
        shifted=str(shifted),
        before=str(before),
        after=str(total),
        filled=(str(shifted).zfill(width), str(total).zfill(width)),
      )
    )
  return steps


def _products_on_device(a: Digits, b: Digits) -> list[_Product]:
  count = b.values.shape[-1]
  width = a.values.shape[-1] + count
  x = digitwise.pad(a.masked().values, width)
  total, steps = jnp.zeros_like(x), []
  for i in range(count):
    digit = jnp.where(i < b.length, b.values[:, i], 0)
    product = digitwise.carry(x * digit[:, None])
    shifted = jnp.pad(product, [(0, 0), (i, 0)])[:, :width]
    before, total = total, digitwise.carry(total + shifted)
    filled = a.length + 1 + i
    steps.append(
      _Product(
        there=i < b.length,
        final=i == b.length - 1,
        digit=base.number(digit, 1),
        product=digitwise.strip(product[:, : a.values.shape[-1] + 1]),
        shifted=digitwise.strip(shifted),
        before=digitwise.strip(before),
        after=digitwise.strip(total),
        filled=(Digits(shifted, filled), Digits(total, filled)),
      )
    )
  return steps


def detailed(operator: str, operands: Sequence[Value]) -> list[Piece]:
  """Each digit's product, with its zeros and the sum so far."""
  written: list[Piece] = [
    *base.counted(operands[0]),
    *base.counted(operands[1]),
  ]
  for i, step in enumerate(_products(operands)):
    there = step.there
    written += [
      Mark('\n', when=there) if i else Mark(''),
      *base.listed(operands[0], there),
      Mark(f' {operator} ', when=there),
      Field(step.digit, when=there),
      Mark(' , A=', when=there),
      *base.listed(step.product, there),
      Mark(f' , k={10**i} , B=', when=there),
      *base.listed(step.shifted, there),
      Mark(' , C=', when=there),
      Field(step.before, when=there),
      Mark('+', when=there),
      Field(step.shifted, when=there),
      Mark('=', when=there),
      Field(step.after, when=there),
    ]
  return [*written, Mark(' , END')]


def partial_products(operator: str, operands: Sequence[Value]) -> list[Piece]:
  """The products and their running sums, least significant digit first."""
  del operator
  written: list[Piece] = []
  for i, step in enumerate(_products(operands)):
    there = step.there
    shifted, after = step.filled
    written += [
      Mark('+', when=there) if i else Mark(''),
      Field(shifted, order='reversed', when=there),
    ]
    if i:
      sum_there = _and_not(there, step.final)
      written += [
        Mark('(', when=sum_there),
        Field(after, order='reversed', when=sum_there),
        Mark(')', when=sum_there),
      ]
  return written


def _and_not(a: Condition, b: Condition) -> Condition:
  return a and not b if isinstance(b, bool) else a & ~b
