"""What lines are made of, and the two ways to write them.

A layout lists the pieces of a line once. The values in them are arrays on the
device and Python strings on the host: `render` writes the former, `spell` the
latter.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import ALPHABET
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits

Order = Literal['plain', 'reversed']
Value = Digits | str
# True, a Python bool on the host, bool[batch] on the device.
Condition = Any

# Marks that tell weights apart: letters, then others that have no other use.
HINTS = 'abcdefghijklmnopqrstuvwxyz' + ''.join(map(chr, range(0x100, 0x14C)))


class Mark(NamedTuple):
  """A text that does not depend on the problem.

  Attributes:
    text: What is written.
    when: Whether it is written.
    given: Whether it is told, where all around it is to be learned.
  """

  text: str
  when: Condition = True
  given: bool = False


class Between(NamedTuple):
  """Marks before the digits of a string.

  Attributes:
    marks: Those there are.
    rule: From the weight of a digit (0 is the least significant), its place in
      the order of writing and whether another digit stands before it, to the
      index of the mark and whether it is written. It is called with integers
      on the host and with arrays on the device.
  """

  marks: str
  rule: Callable[[Any, Any, Any], tuple[Any, Any]]


class Field(NamedTuple):
  """A string that depends on the problem.

  Attributes:
    value: The string; one without digits is not written at all.
    order: Which end comes first.
    width: What the string is filled up to.
    fill: `0` fills with zeros before the string (but behind its sign), a blank
      with blanks behind it.
    between: Marks before its digits.
    when: Whether it is written.
    given: Whether it is told, where all around it is to be learned.
  """

  value: Value
  order: Order = 'plain'
  width: int = 0
  fill: Literal['0', ' '] = '0'
  between: Between | None = None
  when: Condition = True
  given: bool = False


Piece = Mark | Field


def present(value: Value) -> Condition:
  """Whether there is anything to write."""
  return bool(value) if isinstance(value, str) else value.length > 0


def joined(mark: str) -> Between:
  """A mark between digits: `[1,9,9]`."""
  return Between(mark, lambda weight, place, inner: (weight * 0, inner))


def grouped(size: int, start: str, order: Order, mark: str) -> Between:
  """A mark between groups of digits, counted from one end as written."""

  def rule(weight: Any, place: Any, inner: Any) -> tuple[Any, Any]:
    if start == 'left':
      edge = place % size == 0
    else:
      edge = weight % size == (size - 1 if order == 'plain' else 0)
    return weight * 0, edge & inner

  return Between(mark, rule)


def hinted(offset: Any) -> Between:
  """Before each digit the mark of its weight, counted from an offset."""
  return Between(
    HINTS, lambda weight, place, inner: (weight + offset, weight >= 0)
  )


def merged(pieces: Sequence[Piece]) -> list[Piece]:
  """The same pieces with marks that are written together made one.

  Examples:
    >>> merged([Mark(']'), Mark(' + '), Mark('['), Field('12')])[0].text
    '] + ['
  """
  result: list[Piece] = []
  for piece in pieces:
    last = result[-1] if result else None
    if (
      isinstance(piece, Mark)
      and isinstance(last, Mark)
      and piece.when is last.when
      and piece.given is last.given
    ):
      result[-1] = last._replace(text=last.text + piece.text)
    else:
      result.append(piece)
  return result


def spell(pieces: Sequence[Piece]) -> str:
  """Writes pieces on the host.

  Args:
    pieces: Their values are strings.

  Returns:
    The text.

  Examples:
    >>> spell([Mark('A='), Field('123', order='reversed')])
    'A=321'
    >>> spell([Field('-1234567', between=grouped(3, 'right', 'plain', ','))])
    '-1,234,567'
    >>> spell([Field('675', order='reversed', between=hinted(0))])
    'a5b7c6'
  """
  return ''.join(map(_spell, pieces))


def _spell(piece: Piece) -> str:
  if isinstance(piece, Mark):
    return piece.text if piece.when else ''
  text = piece.value
  if not isinstance(text, str):
    raise TypeError(f'on the host a value is a string, got {type(text)}')
  if not (piece.when and text):
    return ''
  if piece.fill == '0':
    text = text.zfill(piece.width)
  if piece.order == 'reversed':
    text = text[::-1]
  if piece.between is not None:
    return _spell_between(text, piece.order, piece.between)
  return text.ljust(piece.width) if piece.fill == ' ' else text


def _spell_between(text: str, order: Order, between: Between) -> str:
  count, place, written, previous = sum(map(str.isdigit, text)), 0, '', ''
  for character in text:
    if character.isdigit():
      weight = count - 1 - place if order == 'plain' else place
      index, here = between.rule(weight, place, previous.isdigit())
      written += between.marks[index] if here else ''
      place += 1
    written += character
    previous = character
  return written


def render(
  piece: Piece, batch: int, characters: str
) -> tuple[jax.Array, jax.Array]:
  """Writes one piece on the device.

  Args:
    piece: Its value is an array.
    batch: How many lines.
    characters: Every character, in the order of ids.

  Returns:
    Ids of characters i32[batch, width], and which of them are written,
    bool[batch, width].
  """
  if isinstance(piece, Mark):
    ids = jnp.asarray([characters.index(c) for c in piece.text], jnp.int32)
    ids = jnp.broadcast_to(ids[None], (batch, len(piece.text)))
    return ids, _keep(jnp.ones(ids.shape, bool), piece.when)
  value = piece.value
  if isinstance(value, str):
    raise TypeError(f'on the device a value is an array, got {value!r}')
  there = value.length > 0
  if piece.fill == '0' and piece.width:
    value = _zero_filled(value, piece.width)
  if piece.order == 'plain':
    value = digitwise.reverse(value)
  ids = _table(ALPHABET, characters)[value.values]
  inside = column(ids) < value.length[:, None]
  if piece.between is not None:
    digit = inside & (value.values < 10)
    ids, inside = _interleaved(
      ids, inside, digit, piece.order, piece.between, characters
    )
  elif piece.fill == ' ' and piece.width:
    missing = max(0, piece.width - ids.shape[-1])
    ids = digitwise.pad(jnp.where(inside, ids, 0), ids.shape[-1] + missing)
    # Blanks, too, are written.
    blank = (column(ids) < piece.width) & there[:, None]
    inside = digitwise.pad(inside, ids.shape[-1]) | blank
  return ids, _keep(inside, piece.when)


def _table(codes: str, characters: str) -> jax.Array:
  """The id of the character of each code, 0 for those that are never used."""
  return jnp.asarray([max(characters.find(c), 0) for c in codes], jnp.int32)


def _keep(inside: jax.Array, when: Condition) -> jax.Array:
  return inside if when is True else inside & when[:, None]


def _zero_filled(value: Digits, width: int) -> Digits:
  """Leading zeros up to a width, behind a minus sign if there is one."""
  values = digitwise.pad(value.values, width)
  minus = ALPHABET.index('-')
  negative = jnp.any(values == minus, axis=-1)
  there = value.length > 0
  length = jnp.where(there, jnp.maximum(value.length, width), 0)
  at_top = column(values) == length[:, None] - 1
  values = jnp.where(values == minus, 0, values)
  values = jnp.where(at_top & negative[:, None], minus, values)
  return Digits(values, length)


def _interleaved(
  ids: jax.Array,
  inside: jax.Array,
  digit: jax.Array,
  order: Order,
  between: Between,
  characters: str,
) -> tuple[jax.Array, jax.Array]:
  """Puts marks before the digits of a written string."""
  place = jnp.cumsum(digit, axis=-1, dtype=jnp.int32) - 1
  count = jnp.sum(digit, axis=-1, keepdims=True, dtype=jnp.int32)
  weight = count - 1 - place if order == 'plain' else place
  inner = digit & jnp.pad(digit, [(0, 0), (1, 0)])[:, :-1]
  index, here = between.rule(weight, place, inner)
  table = _table(between.marks, characters)
  marks = table[jnp.clip(index, 0, len(between.marks) - 1)]
  both = jnp.stack([marks, ids], axis=-1)
  keep = jnp.stack([here & digit, inside], axis=-1)
  shape = (ids.shape[0], 2 * ids.shape[1])
  return both.reshape(shape), keep.reshape(shape)


def width(piece: Piece) -> int:
  """The most characters of a piece whose value is an array."""
  if isinstance(piece, Mark):
    return len(piece.text)
  if isinstance(piece.value, str):
    raise TypeError(f'on the device a value is an array, got {piece.value!r}')
  most = max(piece.value.values.shape[-1], piece.width)
  return most if piece.between is None else 2 * most
