"""Tasks on lists, and on sequences of steps."""

import functools

import jax
import jax.numpy as jnp

from arithmetic.tasks import digitwise
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Operands
from arithmetic.tasks.base import Task

_KEYS = 10


def _sort(operands: Operands) -> tuple[Digits | str, ...]:
  width = max(x.values.shape[-1] for x in operands)
  values = [digitwise.pad(x.values, width) for x in operands]
  indices = range(len(values))
  ranks = []
  for i in indices:
    # Of equal numbers the earlier one comes first.
    before = [
      digitwise.less(values[j], values[i])
      if j > i
      else ~digitwise.less(values[i], values[j])
      for j in indices
      if j != i
    ]
    ranks.append(
      functools.reduce(jnp.add, [x.astype(jnp.int32) for x in before])
    )
  parts: list[Digits | str] = []
  for place in indices:
    chosen = [
      jnp.where(jnp.equal(rank, place)[:, None], value, 0)
      for rank, value in zip(ranks, values, strict=True)
    ]
    parts += [',', digitwise.strip(functools.reduce(jnp.add, chosen))]
  return tuple(parts[1:])


def sorting_of(count: int, *, name: str, symbol: str) -> Task:
  """The task of sorting a list of numbers, the smallest first.

  Args:
    count: How many.
    name: The task's name.
    symbol: The task's symbol.

  Returns:
    The task.

  Examples:
    >>> sorting_of(3, name='sorting', symbol='L').solve(('12', '7', '30'))
    '7,12,30'
  """
  return Task(
    name=name,
    symbol=symbol,
    operator=',',
    widths=lambda level: (level,) * count,
    answer_width=lambda level: (level,) * count,
    compute=_sort,
    solve=lambda x: ','.join(map(str, sorted(map(int, x)))),
  )


sorting_numbers = sorting_of(4, name='sorting_numbers', symbol='L')


def _running_sums(operands: Operands) -> tuple[Digits | str, ...]:
  *table, keys = operands
  values = jnp.stack(
    [x.values[:, 0] + 10 * x.values[:, 1] for x in table], axis=-1
  )
  turns = keys.values.shape[-1]
  read = digitwise.reverse(keys).values
  addends = jnp.take_along_axis(values, read, axis=-1)
  sums = jnp.cumsum(addends, axis=-1, dtype=jnp.int32) % 100
  parts: list[Digits | str] = []
  for turn in range(turns):
    state = jnp.stack([sums[:, turn] % 10, sums[:, turn] // 10], axis=-1)
    there = (turn < keys.length).astype(jnp.int32)
    parts += [',', Digits(state, 2 * there)]
  return tuple(parts[1:])


def _solve_running_sums(x: tuple[str, ...]) -> str:
  *table, keys = x
  state, states = 0, []
  for key in keys:
    state = (state + int(table[int(key)])) % 100
    states.append(f'{state:02d}')
  return ','.join(states)


# Values of the keys 0 to 9, then the keys that are read one after another: the
# answer is the state after each. The level is half the number of turns.
running_sums = Task(
  name='running_sums',
  symbol='K',
  operator=',',
  numeric=False,
  widths=lambda level: (2,) * _KEYS + (2 * level,),
  answer_width=lambda level: (2,) * (2 * level),
  compute=_running_sums,
  solve=_solve_running_sums,
)


def subsequence_lengths(digits: Digits) -> jax.Array:
  """The longest increasing subsequence that ends at each digit.

  Args:
    digits: Strings of shape [batch].

  Returns:
    i32[batch, width], in the order of reading.
  """
  read = digitwise.reverse(digits).values
  lengths = jnp.ones_like(read)
  for i in range(1, read.shape[-1]):
    best = jnp.where(read[:, :i] < read[:, i : i + 1], lengths[:, :i], 0)
    lengths = lengths.at[:, i].set(1 + jnp.max(best, axis=-1))
  return lengths


def _longest_increasing(operands: Operands) -> Digits:
  (a,) = operands
  lengths = subsequence_lengths(a)
  inside = column(lengths) < a.length[:, None]
  longest = jnp.max(jnp.where(inside, lengths, 0), axis=-1)
  return digitwise.from_integer(longest, 2)


def _solve_longest_increasing(x: tuple[str, ...]) -> str:
  # The last digits of the best subsequence of every length so far.
  tails: list[str] = []
  for digit in x[0]:
    place = sum(tail < digit for tail in tails)
    tails[place : place + 1] = [digit]
  return str(len(tails))


longest_increasing = Task(
  name='longest_increasing',
  symbol='I',
  numeric=False,
  widths=lambda level: (2 * level,),
  answer_width=lambda level: len(str(min(10, 2 * level))),
  compute=_longest_increasing,
  solve=_solve_longest_increasing,
)
