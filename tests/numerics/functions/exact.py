"""Functions in decimals of 50 digits."""

import decimal
from decimal import Decimal

_CONTEXT = decimal.Context(prec=50)


def exp2(x) -> Decimal:
  """`2**x`, of a number that is a decimal fraction exactly."""
  product = _CONTEXT.multiply(Decimal(x), _CONTEXT.ln(Decimal(2)))
  return _CONTEXT.exp(product)


def relative_error(program, x) -> Decimal:
  """The error of a program for `2**x`, itself computed in decimals."""
  with decimal.localcontext(_CONTEXT):
    return abs(program(Decimal(x), number=Decimal) / exp2(x) - 1)
