"""The pieces of a SentencePiece model, which is a protocol buffer.

Only what a vocabulary needs is read: field 1 of the model, repeated, is a
piece, and field 1 of a piece its text. A piece's number is its place.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TEXT = 1, 1


def pieces(content: bytes) -> list[str]:
  """Returns the texts of the pieces, in order.

  Args:
    content: Of a `tokenizer.model`.

  Returns:
    The texts.

  Raises:
    ValueError: It is no SentencePiece model.

  Examples:
    >>> pieces(bytes([10, 3, 10, 1, 65, 10, 3, 10, 1, 66]))
    ['A', 'B']
  """
  found = []
  for field, piece in _messages(content):
    if field != _PIECES:
      continue
    texts = [text for inner, text in _messages(piece) if inner == _TEXT]
    if len(texts) != 1:
      raise ValueError(f'piece {len(found)} has {len(texts)} texts, expected 1')
    found.append(texts[0].decode())
  if not found:
    raise ValueError('there are no pieces')
  return found


def _messages(content: bytes) -> Iterator[tuple[int, bytes]]:
  """Yields the fields that are strings or messages, with their numbers."""
  at = 0
  while at < len(content):
    tag, at = _varint(content, at)
    field, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      _, at = _varint(content, at)
      continue
    if kind == _BYTES:
      size, at = _varint(content, at)
    elif kind in (_FIXED64, _FIXED32):
      size = 8 if kind == _FIXED64 else 4
    else:
      raise ValueError(f'wire type {kind} at byte {at} is unknown')
    if at + size > len(content):
      raise ValueError(f'field {field} ends behind the file')
    if kind == _BYTES:
      yield field, content[at : at + size]
    at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
  """Returns a number of seven bits a byte, and where it ends."""
  value = 0
  for shift in range(0, 70, 7):
    if at >= len(content):
      raise ValueError('the file ends inside a number')
    byte = content[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at
  raise ValueError(f'the number before byte {at} is too long')
