"""Dynamic programming for the longest increasing subsequence."""

from collections.abc import Sequence

from arithmetic.pieces import Field
from arithmetic.pieces import Mark
from arithmetic.pieces import Piece
from arithmetic.pieces import Value
from arithmetic.scratchpads import base
from arithmetic.tasks import lists


def lengths(operator: str, operands: Sequence[Value]) -> list[Piece]:
  """The length of the best subsequence that ends at each digit: `1,1,2,3`."""
  del operator
  (digits,) = operands
  if isinstance(digits, str):
    best: list[int] = []
    for i, digit in enumerate(digits):
      before = [best[j] for j in range(i) if digits[j] < digit]
      best.append(1 + max(before, default=0))
    return [Mark(','.join(map(str, best)))]
  written: list[Piece] = []
  table = lists.subsequence_lengths(digits)
  for i in range(table.shape[-1]):
    there = i < digits.length
    written += [
      Mark(',' if i else '', when=there),
      Field(base.number(table[:, i], 2), when=there),
    ]
  return written
