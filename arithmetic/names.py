"""Looking things up by name."""

from collections.abc import Mapping
import difflib
from typing import TypeVar

T = TypeVar('T')


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
  """The entry of a table; KeyError suggests the nearest name.

  Args:
    kind: What the table holds, for the error.
    name: A key of the table.
    table: By name.

  Returns:
    The entry.

  Raises:
    KeyError: If there is none of that name.

  Examples:
    >>> look_up('fruit', 'pear', {'pear': 1})
    1
  """
  if name not in table:
    near = difflib.get_close_matches(name, table, n=1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise KeyError(
      f'no {kind} {name!r}; {hint}there are {", ".join(sorted(table))}'
    )
  return table[name]
