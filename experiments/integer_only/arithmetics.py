"""The arithmetics that a trained model is scored in."""

from collections.abc import Mapping
import dataclasses
from typing import Literal
from typing import NamedTuple

Softmax = Literal['float', 'shiftmax']
Gelu = Literal['float', 'row', 'element']
Norm = Literal['float', 'exact', 'newton']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arithmetic:
  """What becomes of a decoder: products of int8, and functions of some kind.

  Attributes:
    bits: Of weights, and of activations between functions.
    softmax: Shiftmax, or float32.
    gelu: ShiftGELU with the maximum of a row or of an element, or float32.
    norm: Integers with the exact root or ten steps of Newton's, or float32.
    stream_bits: Of the residual stream.
    score_bits: Of attention scores.
    share_bits: Of what a softmax gives, and of the sigmoid in ShiftGELU.
    gelu_terms: Halvings of the exponential in ShiftGELU.
    fitting: Whether scales fit exponentials: 1 is a whole number of steps, as
      it is taken to be, and six bits are left to the quotient of shares.
    rounding: Of rescaling; a name of `numerics.integer.rescale`.
  """

  bits: int = 8
  softmax: Softmax = 'shiftmax'
  gelu: Gelu = 'row'
  norm: Norm = 'newton'
  stream_bits: int = 16
  score_bits: int = 8
  share_bits: int = 8
  gelu_terms: int = 23
  fitting: bool = False
  rounding: Literal['nearest_even', 'gemmlowp'] = 'nearest_even'

  @property
  def integer_only(self) -> bool:
    """Whether no function is in float32."""
    return 'float' not in (self.softmax, self.gelu, self.norm)


class Row(NamedTuple):
  """A row of the table.

  Attributes:
    group: A key of `GROUPS`.
    name: What it is called there.
    arithmetic: In which the forward pass is; None: in float32.
    weights: Whether weights alone are rounded to int8.
  """

  group: str
  name: str
  arithmetic: Arithmetic | None = None
  weights: bool = False

  @property
  def key(self) -> str:
    """What settings call it."""
    return f'{self.group}/{self.name}'


GROUPS: Mapping[str, str] = {
  'float': 'Every operation in float32',
  'functions': 'Products of int8, and one function in integers',
  'integer': 'Integers only',
  'narrow': 'Fewer bits for weights and activations',
}

BASELINE = 'float/weights float32'
IN_FLOAT = 'functions/none'
PUBLISHED = 'integer/as published'
# What the functions of rows with fewer bits are.
NARROW = ('functions in float32', 'as published', 'all changes')
BITS = (6, 5, 4)

_FLOAT = Arithmetic(softmax='float', gelu='float', norm='float')
_PUBLISHED = Arithmetic()
_EXACT = dataclasses.replace(_PUBLISHED, norm='exact')
_ELEMENT = dataclasses.replace(_EXACT, gelu='element', gelu_terms=15)
_FITTING = dataclasses.replace(_ELEMENT, fitting=True)
_WIDE = dataclasses.replace(_FITTING, score_bits=16, share_bits=16)


def _rows() -> list[Row]:
  def but(**changes) -> Arithmetic:
    return dataclasses.replace(_FLOAT, **changes)

  rows = [
    Row('float', 'weights float32'),
    Row('float', 'weights int8', weights=True),
    Row('functions', 'none', _FLOAT),
    Row('functions', 'Shiftmax', but(softmax='shiftmax')),
    Row('functions', 'ShiftGELU', but(gelu='row')),
    Row(
      'functions',
      'ShiftGELU by element',
      but(gelu='element', gelu_terms=15),
    ),
    Row('functions', 'norm with exact root', but(norm='exact')),
    Row('functions', 'norm with ten steps', but(norm='newton')),
    Row('integer', 'as published', _PUBLISHED),
    Row('integer', '… exact root', _EXACT),
    Row('integer', '… ShiftGELU by element', _ELEMENT),
    Row('integer', '… scales that fit exponentials', _FITTING),
    Row('integer', '… scores and shares of 16 bits', _WIDE),
    Row(
      'integer',
      '… rounded as gemmlowp does',
      dataclasses.replace(_WIDE, rounding='gemmlowp'),
    ),
  ]
  for norm, name in (('newton', 'ten steps'), ('exact', 'exact root')):
    narrow = dataclasses.replace(_PUBLISHED, norm=norm, stream_bits=8)
    rows.append(Row('integer', f'stream of 8 bits, {name}', narrow))
  for bits in BITS:
    functions = zip(NARROW, (_FLOAT, _PUBLISHED, _WIDE), strict=True)
    rows += [
      Row('narrow', f'{bits} bits, {name}', dataclasses.replace(how, bits=bits))
      for name, how in functions
    ]
  return rows


ROWS: Mapping[str, Row] = {row.key: row for row in _rows()}
