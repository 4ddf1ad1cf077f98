"""Exact tasks: samplers on the device, oracles in Python integers."""

from collections.abc import Sequence
import difflib

from arithmetic.tasks.base import Digits as Digits
from arithmetic.tasks.base import from_strings as from_strings
from arithmetic.tasks.base import split_of as split_of
from arithmetic.tasks.base import SPLITS as SPLITS
from arithmetic.tasks.base import Task as Task
from arithmetic.tasks.base import to_strings as to_strings
from arithmetic.tasks.numbers import addition as addition
from arithmetic.tasks.numbers import comparison as comparison
from arithmetic.tasks.numbers import division as division
from arithmetic.tasks.numbers import maximum as maximum
from arithmetic.tasks.numbers import minimum as minimum
from arithmetic.tasks.numbers import modular_subtraction as modular_subtraction
from arithmetic.tasks.numbers import multiplication as multiplication
from arithmetic.tasks.numbers import remainder as remainder
from arithmetic.tasks.numbers import subtraction as subtraction
from arithmetic.tasks.numbers import successor as successor
from arithmetic.tasks.strings import carryless_addition as carryless_addition
from arithmetic.tasks.strings import (
  carryless_subtraction as carryless_subtraction,
)
from arithmetic.tasks.strings import copying as copying
from arithmetic.tasks.strings import counting as counting
from arithmetic.tasks.strings import digit_sum as digit_sum
from arithmetic.tasks.strings import digitwise_maximum as digitwise_maximum
from arithmetic.tasks.strings import parity as parity
from arithmetic.tasks.strings import reversing as reversing
from arithmetic.tasks.strings import rotating as rotating
from arithmetic.tasks.strings import sorting as sorting
from arithmetic.tasks.strings import sorting_descending as sorting_descending

ALL: dict[str, Task] = {
  task.name: task for task in list(globals().values()) if isinstance(task, Task)
}


def get(name: str) -> Task:
  """Looks a task up by name.

  Args:
    name: A key of `arithmetic.tasks.ALL`.

  Returns:
    The task.

  Raises:
    KeyError: If there is none of that name; the nearest names are suggested.

  Examples:
    >>> get('addition').solve(('95', '7'))
    '102'
  """
  if name not in ALL:
    near = difflib.get_close_matches(name, ALL, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise KeyError(f'no task {name!r}{hint} There are {", ".join(sorted(ALL))}')
  return ALL[name]


def get_all(names: Sequence[str]) -> tuple[Task, ...]:
  """Looks several tasks up by name, in the order given."""
  return tuple(get(name) for name in names)
