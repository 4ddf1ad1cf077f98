"""Columns, sizes and names as people read them, none of which can do harm."""

from collections.abc import Iterable
from collections.abc import Sequence
import re

from third_party import storage

size_of = storage.size_of


def aligned(rows: Sequence[Sequence[str]]) -> str:
  """Returns rows as columns of plain text, the first row as their headings.

  Examples:
    >>> print(aligned([['tensor', 'bytes'], ['w', '12'], ['lm_head', '8']]))
    tensor   bytes
    w        12
    lm_head  8
  """
  rows = [[clean(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def clean(text: str) -> str:
  r"""Returns text in one line, of characters that print.

  A name comes from a file that anybody may have written: control characters
  move the cursor of a terminal, directional ones reorder a line, and half a
  surrogate pair cannot be encoded.

  Examples:
    >>> clean('a\n b\x1b[2J')
    'a b\\x1b[2J'
  """
  spaced = ' '.join(text.split())
  return ''.join(
    each
    if each.isprintable()
    else each.encode('unicode_escape').decode('ascii')
    for each in spaced
  )


def code(text: str) -> str:
  """Returns Markdown for a name or value, in which no mark has a meaning.

  Examples:
    >>> print(code('a`b'), code('plain'))
    ``a`b`` `plain`
  """
  line = clean(text) or ' '
  ticks = '`' * (_longest_run(line) + 1)
  pad = ' ' if line[0] == '`' or line[-1] == '`' else ''
  return f'{ticks}{pad}{line}{pad}{ticks}'


def fence(text: str, language: str = '') -> str:
  """Returns a Markdown block that holds a text as it is.

  The fence is longer than any in the text, so that nothing in it ends it.
  """
  text = text.replace('\r\n', '\n').replace('\r', '\n')
  text = text.encode('utf-8', 'backslashreplace').decode()
  ticks = '`' * max(3, _longest_run(text) + 1)
  return f'{ticks}{language}\n{text.rstrip()}\n{ticks}'


def table(rows: Sequence[Sequence[str]]) -> str:
  """Returns a Markdown table of cells that are Markdown themselves."""
  head, *body = [[cell.replace('|', '\\|') for cell in row] for row in rows]
  lines = [head, ['---'] * len(head), *body]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def plural(count: int, noun: str) -> str:
  """Returns `'1 tensor'`, `'2 tensors'`."""
  return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def bullets(lines: Iterable[object]) -> str:
  """Returns lines, each behind a dash."""
  return '\n'.join(f'- {line}' for line in lines)


def _longest_run(text: str) -> int:
  return max(map(len, re.findall('`+', text)), default=0)
