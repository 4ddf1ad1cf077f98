"""Work written between prompt and answer, step by step.

Each scratchpad has its steps twice, as arrays on the device and, by another
way, in Python integers on the host; how they are written is listed once.
"""

from collections.abc import Sequence

from arithmetic import names
from arithmetic.pieces import Piece
from arithmetic.pieces import Value
from arithmetic.scratchpads import columns
from arithmetic.scratchpads import products as products_lib
from arithmetic.scratchpads import subsequences
from arithmetic.scratchpads.base import Scratchpad as Scratchpad


def _detailed(operator: str, operands: Sequence[Value]) -> list[Piece]:
  by = products_lib.detailed if operator == '*' else columns.detailed
  return by(operator, operands)


simplified = Scratchpad(
  name='simplified',
  operators='+-',
  opening='Input:\n',
  closing='\nTarget:\n',
  answer_mark='\n',
  characters='AC->., +=\n',
  pieces=columns.simplified,
)

detailed = Scratchpad(
  name='detailed',
  operators='+-*',
  opening='Input:\n',
  closing='\nTarget:\n<scratch>\n',
  answer_mark='\n</scratch>\n',
  characters='[], has digits.\nABCkEND->=+-*',
  pieces=_detailed,
  spaced=True,
)

products = Scratchpad(
  name='products',
  operators='*',
  opening='',
  closing='||',
  answer_mark='####',
  characters='+()',
  pieces=products_lib.partial_products,
)

lengths = Scratchpad(
  name='lengths',
  operators='I',
  operands=1,
  opening='',
  closing='=',
  answer_mark='|',
  characters='',
  pieces=subsequences.lengths,
)

ALL: dict[str, Scratchpad] = {
  pad.name: pad for pad in (simplified, detailed, products, lengths)
}


def get(name: str) -> Scratchpad:
  r"""Looks a scratchpad up by name.

  Args:
    name: A key of `ALL`.

  Returns:
    The scratchpad.

  Raises:
    KeyError: If there is none of that name; the nearest is suggested.

  Examples:
    >>> get('detailed').answer_mark
    '\n</scratch>\n'
  """
  return names.look_up('scratchpad', name, ALL)
