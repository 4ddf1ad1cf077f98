"""Tasks on lists, and on sequences of steps."""

from collections.abc import Sequence
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


def _weights(values: jax.Array) -> jax.Array:
  return 10 ** jnp.arange(values.shape[-1], dtype=jnp.int32)[None]


def _sums(operands: Operands, keys_a_turn: int) -> tuple[jax.Array, jax.Array]:
  """The state after each turn, not reduced, and whether there is a turn."""
  *table, keys = operands
  values = jnp.stack(
    [jnp.sum(x.values * _weights(x.values), axis=-1) for x in table], axis=-1
  )
  read = digitwise.reverse(keys).values
  addends = jnp.take_along_axis(values, read, axis=-1)
  turns = addends.reshape(len(addends), -1, keys_a_turn).sum(axis=-1)
  there = column(turns) * keys_a_turn < keys.length[:, None]
  return jnp.cumsum(turns, axis=-1, dtype=jnp.int32), there


def _states(
  sums: jax.Array, there: jax.Array, digits: int
) -> tuple[Digits, ...]:
  """The last digits of sums, as strings."""
  values = jnp.stack([sums // 10**i % 10 for i in range(digits)], axis=-1)
  lengths = digits * there.astype(jnp.int32)
  return tuple(
    Digits(values[:, turn], lengths[:, turn]) for turn in range(sums.shape[-1])
  )


def straying_sums(
  task: Task, operands: Operands, offsets: jax.Array
) -> tuple[Digits, ...]:
  """The states of one who errs in some turns, and goes on from there.

  Args:
    task: From `running_sums_of`.
    operands: Its problems.
    offsets: i32[batch, turns], what is added to the right sum of a turn and
      the state before it; 0 where the turn is right.

  Returns:
    The states, what `Layout.write` takes as `answer`.

  Examples:
    >>> from arithmetic import tasks
    >>> problem = (*('05', '10') * 5, '0101')
    >>> operands = tuple(tasks.from_strings([x]) for x in problem)
    >>> tasks.to_strings(running_sums.compute(operands))
    ['05,15,20,30']
    >>> offsets = jnp.asarray([[0, 7, 0, -40]])
    >>> states = straying_sums(running_sums, operands, offsets)
    >>> [tasks.to_strings(state)[0] for state in states]
    ['05', '22', '27', '97']
  """
  sums, there = _sums(operands, task.turns)
  sums += jnp.cumsum(offsets, axis=-1, dtype=jnp.int32)
  return _states(sums, there, operands[0].values.shape[-1])


def next_sum(task: Task, problem: Sequence[str], state: str, turn: int) -> str:
  """The right state after a turn, whatever the state before it.

  Args:
    task: From `running_sums_of`.
    problem: The written operands.
    state: The state before the turn.
    turn: Which, from 0.

  Returns:
    The state, computed with Python's integers.

  Examples:
    >>> next_sum(running_sums, (*('05', '10') * 5, '0101'), '95', 1)
    '05'
  """
  *table, keys = problem
  now = keys[turn * task.turns : (turn + 1) * task.turns]
  total = int(state) + sum(int(table[int(key)]) for key in now)
  return str(total).zfill(len(table[0]))[-len(table[0]) :]


def running_sums_of(
  keys_a_turn: int, *, name: str, symbol: str, digits: int = 2
) -> Task:
  """The task of adding up values by their keys, turn after turn.

  Operands are the values of the keys 0 to 9, then the keys that are read one
  after another; the answer is the state after each turn, of which only the last
  digits are kept. The level is half the number of turns.

  Args:
    keys_a_turn: How many keys are read before the next state is told.
    digits: Of values and states: sums are modulo 10 to this power.
    name: The task's name.
    symbol: The task's symbol.

  Returns:
    The task.

  Examples:
    >>> pairs = running_sums_of(2, name='running_sums_of_pairs', symbol='E')
    >>> pairs.solve((*('05', '10') * 5, '0101'))
    '15,30'

  References:
    Sinha et al., The Illusion of Diminishing Returns: Measuring Long Horizon
    Execution in LLMs, 2025, arXiv:2509.09677.
  """

  def compute(operands: Operands) -> tuple[Digits | str, ...]:
    parts: list[Digits | str] = []
    for state in _states(*_sums(operands, keys_a_turn), digits):
      parts += [',', state]
    return tuple(parts[1:])

  def solve(x: tuple[str, ...]) -> str:
    states = ['0']
    for turn in range(len(x[-1]) // keys_a_turn):
      states.append(next_sum(task, x, states[-1], turn))
    return ','.join(states[1:])

  task = Task(
    name=name,
    symbol=symbol,
    operator=',',
    numeric=False,
    widths=lambda level: (digits,) * _KEYS + (2 * level * keys_a_turn,),
    answer_width=lambda level: (digits,) * (2 * level),
    compute=compute,
    solve=solve,
    turns=keys_a_turn,
  )
  return task


running_sums = running_sums_of(1, name='running_sums', symbol='K')
running_sums_modulo_10 = running_sums_of(
  1, name='running_sums_modulo_10', symbol='F', digits=1
)
running_sums_of_pairs = running_sums_of(
  2, name='running_sums_of_pairs', symbol='E'
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
