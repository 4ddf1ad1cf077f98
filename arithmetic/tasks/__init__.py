"""Exact tasks: samplers on the device, oracles in Python integers."""

from collections.abc import Sequence

from arithmetic import names
from arithmetic.tasks.base import Digits as Digits
from arithmetic.tasks.base import from_strings as from_strings
from arithmetic.tasks.base import split_of as split_of
from arithmetic.tasks.base import SPLITS as SPLITS
from arithmetic.tasks.base import Task as Task
from arithmetic.tasks.base import to_strings as to_strings
from arithmetic.tasks.carrying import balanced_sums as balanced_sums
from arithmetic.tasks.carrying import Carries as Carries
from arithmetic.tasks.carrying import carries as carries
from arithmetic.tasks.carrying import sample_carrying as sample_carrying
from arithmetic.tasks.lists import longest_increasing as longest_increasing
from arithmetic.tasks.lists import next_sum as next_sum
from arithmetic.tasks.lists import running_sums as running_sums
from arithmetic.tasks.lists import (
  running_sums_modulo_10 as running_sums_modulo_10,
)
from arithmetic.tasks.lists import running_sums_of as running_sums_of
from arithmetic.tasks.lists import (
  running_sums_of_pairs as running_sums_of_pairs,
)
from arithmetic.tasks.lists import sorting_numbers as sorting_numbers
from arithmetic.tasks.lists import sorting_of as sorting_of
from arithmetic.tasks.lists import straying_sums as straying_sums
from arithmetic.tasks.numbers import addition as addition
from arithmetic.tasks.numbers import addition_modulo_97 as addition_modulo_97
from arithmetic.tasks.numbers import addition_of as addition_of
from arithmetic.tasks.numbers import addition_of_three as addition_of_three
from arithmetic.tasks.numbers import comparison as comparison
from arithmetic.tasks.numbers import division as division
from arithmetic.tasks.numbers import long_division as long_division
from arithmetic.tasks.numbers import long_multiplication as long_multiplication
from arithmetic.tasks.numbers import maximum as maximum
from arithmetic.tasks.numbers import minimum as minimum
from arithmetic.tasks.numbers import modular as modular
from arithmetic.tasks.numbers import modular_subtraction as modular_subtraction
from arithmetic.tasks.numbers import multiplication as multiplication
from arithmetic.tasks.numbers import (
  multiplication_modulo_97 as multiplication_modulo_97,
)
from arithmetic.tasks.numbers import product_columns as product_columns
from arithmetic.tasks.numbers import remainder as remainder
from arithmetic.tasks.numbers import running_columns as running_columns
from arithmetic.tasks.numbers import signed_subtraction as signed_subtraction
from arithmetic.tasks.numbers import square_root as square_root
from arithmetic.tasks.numbers import (
  square_root_of_decimal as square_root_of_decimal,
)
from arithmetic.tasks.numbers import subtraction as subtraction
from arithmetic.tasks.numbers import successor as successor
from arithmetic.tasks.recursion import binary_successor as binary_successor
from arithmetic.tasks.recursion import (
  binary_successor_of as binary_successor_of,
)
from arithmetic.tasks.recursion import inorder_traversal as inorder_traversal
from arithmetic.tasks.recursion import preorder_traversal as preorder_traversal
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
  return names.look_up('task', name, ALL)


def get_all(names: Sequence[str]) -> tuple[Task, ...]:
  """Looks several tasks up by name, in the order given."""
  return tuple(get(name) for name in names)
