"""What a task is: digits in, digits out, and an exact oracle in Python.

A problem is drawn on the device as arrays of decimal digits, so that operands
may be longer than any machine integer; the answer is computed twice, once on
the device and once, by `Task.solve`, with Python's integers and strings.

A number that is not a plain integer is a string with a sign or a point in it,
and an answer of several numbers has marks between them, so that decimals,
fractions (two numbers and `/`) and scientific notation (`e`) are strings too.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Which of the 64 buckets that problems are hashed to belong to each split.
_SPLIT_BUCKETS = {'validation': (0, 4), 'test': (4, 8), 'train': (8, 64)}
SPLITS = tuple(_SPLIT_BUCKETS)

# What a string may hold, in the order of its codes: a digit is its own code.
ALPHABET = '0123456789-.+*/%()'


class Digits(NamedTuple):
  """Strings of decimal digits of different lengths, as one array.

  Attributes:
    values: i32[..., width], position 0 is the last digit written (the least
      significant one of a number). Entries at or beyond `length` are zero.
      Values from 10 on are the other characters of `ALPHABET`.
    length: i32[...], how many digits are written. A string of none is absent,
      and so is the mark before it.
  """

  values: jax.Array
  length: jax.Array

  def masked(self) -> 'Digits':
    """The same strings with every entry beyond the length set to zero."""
    inside = column(self.values) < self.length[..., None]
    return Digits(jnp.where(inside, self.values, 0), self.length)


def column(values: jax.Array) -> jax.Array:
  """The place of each entry along the last axis: i32, shaped as `values`."""
  return jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)


Operands = tuple[Digits, ...]
# One string, or several with the marks that are written between them.
Answer = Digits | tuple[Digits | str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One exact arithmetic task at any size.

  Attributes:
    name: The field's name for it, as in `'addition'`.
    symbol: The one character that opens every prompt of the task.
    widths: From a level (the size of a problem, at least 1) to the digits of
      each operand; an operand of none is absent.
    answer_width: From a level to the most characters an answer can have; if
      it has several strings, to those of each.
    compute: From the operands to the answer, on the device, as one program for
      each shape of them.
    solve: The oracle: from the written operands to the written answer, in
      Python integers and strings.
    numeric: Whether operands are numbers, whose first written digit is not
      zero, or plain strings of digits.
    prepare: Applied to freshly drawn operands, to put a problem into the
      task's domain (a divisor is not zero, a difference not negative).
    operator: What is written between operands, if not the symbol.
    alphabet: What strings of the task hold beside digits, as `'-'`.
    turns: How many digits of the last operand lead from one string of the
      answer to the next; 0 if all of them are for the answer as a whole.
  """

  name: str
  symbol: str
  widths: Callable[[int], tuple[int, ...]]
  answer_width: Callable[[int], int | tuple[int, ...]]
  compute: Callable[[Operands], Answer]
  solve: Callable[[tuple[str, ...]], str]
  numeric: bool = True
  prepare: Callable[[Operands], Operands] = lambda x: x
  operator: str = ''
  alphabet: str = ''
  turns: int = 0

  def __post_init__(self):
    object.__setattr__(self, 'compute', _compiled(self.compute))

  def answer(
    self, operands: Operands, level: int
  ) -> list[tuple[str, Digits, int]]:
    """The strings of the answer, on the device.

    Args:
      operands: One `Digits` each.
      level: The largest level among the problems.

    Returns:
      For each string: the mark before it, the string, no wider than it can
      be, and that width.
    """
    parts = self.compute(operands)
    parts = (parts,) if isinstance(parts, Digits) else parts
    widths = iter(self.answer_widths(level))
    strings, mark = [], ''
    for part in parts:
      if isinstance(part, str):
        mark = part
        continue
      width = next(widths, None)
      if width is None:
        break
      strings.append(
        (mark, Digits(part.values[..., :width], part.length), width)
      )
    return strings

  def solution(
    self, operands: Sequence[str], level: int
  ) -> list[tuple[str, str, int]]:
    """The same on the host, by `solve`: only strings that are not absent."""
    answer, widths = self.solve(tuple(operands)), self.answer_widths(level)
    if len(widths) == 1:
      return [('', answer, *widths)]
    parts = re.findall('([^-.0-9]*)([-.0-9]+)', answer)
    return [(*part, width) for part, width in zip(parts, widths, strict=False)]

  def answer_widths(self, level: int) -> tuple[int, ...]:
    """The most characters of each string of the answer."""
    widths = self.answer_width(level)
    return (widths,) if isinstance(widths, int) else widths

  def enumerate(self, level: int, limit: int = 100_000) -> Operands:
    """All problems of one level, each once.

    Args:
      level: Digits of an operand, or what the task takes it for.
      limit: The most problems before `prepare`.

    Returns:
      One `Digits` for each operand.

    Raises:
      ValueError: If there are more.

    Examples:
      >>> from arithmetic import tasks
      >>> a, b = tasks.subtraction.enumerate(1)
      >>> len(a.length), to_strings(a)[:4], to_strings(b)[:4]
      (55, ['0', '1', '1', '2'], ['0', '0', '1', '0'])
    """
    ranges = []
    for width in self.widths(level):
      low = 10 ** (width - 1) if self.numeric and width > 1 else 0
      ranges.append([f'{i:0{width}d}' for i in range(low, 10**width)])
    count = math.prod(map(len, ranges))
    if count > limit:
      raise ValueError(
        f'{self.name} has {count} problems at level {level}, more than'
        f' limit={limit}'
      )
    columns = zip(*itertools.product(*ranges), strict=True)
    operands = self.prepare(tuple(from_strings(x) for x in columns))
    written = sorted(set(zip(*map(to_strings, operands), strict=True)))
    return tuple(from_strings(x) for x in zip(*written, strict=True))

  def sample(
    self,
    key: jax.Array,
    batch_size: int,
    *,
    level_weights: Sequence[float],
    independent: bool = False,
  ) -> tuple[Digits, ...]:
    """Draws operands of a randomly drawn level, uniformly.

    Problems then are put into the domain of the task by `prepare`, so that of
    a task with a domain not all are equally likely: nine divides twice as often
    as another digit, and a - a is drawn half as often as another difference.

    Args:
      key: A PRNG key; the same key gives the same problems.
      batch_size: How many problems.
      level_weights: Relative frequency of level 1, 2, ... The last level has
        to have a positive weight.
      independent: Whether every operand has a level of its own, as in sums of
        numbers of different lengths.

    Returns:
      One `Digits` of shape [batch_size] for each operand, as wide as the
      largest level needs.

    Raises:
      ValueError: If the weights are empty, negative, or end in zero.

    Examples:
      >>> import jax
      >>> from arithmetic import tasks
      >>> a, b = tasks.addition.sample(
      ...   jax.random.key(0), 5, level_weights=(0, 1)
      ... )
      >>> a.values.shape, a.length.tolist()
      ((5, 2), [2, 2, 2, 2, 2])
    """
    weights = np.asarray(level_weights, np.float64)
    if weights.ndim != 1 or not weights.size or (weights < 0).any():
      raise ValueError(
        'level_weights holds one non-negative weight for each level from 1,'
        f' got {level_weights!r}'
      )
    if not weights[-1] > 0:
      raise ValueError(
        'level_weights ends with the largest level that is drawn, so its'
        f' last weight is positive; got {level_weights!r}'
      )
    level_key, digit_key, lead_key = jax.random.split(key, 3)
    logits = jnp.log(jnp.asarray(weights / weights.sum(), jnp.float32))
    level = jax.random.categorical(level_key, logits, shape=(batch_size,))
    table = tuple(self.widths(n + 1) for n in range(weights.size))
    levels, digits, leads = [], [], []
    for i, widths in enumerate(zip(*table, strict=True)):
      if independent and i:
        level = jax.random.categorical(
          jax.random.fold_in(level_key, i), logits, shape=(batch_size,)
        )
      levels.append(level)
      digits.append(_drawn(digit_key, i, (batch_size, max(widths)), 0))
      if self.numeric:
        leads.append(_drawn(lead_key, i, (batch_size, 1), 1))
    return _operands(self, table, levels, digits, leads)


def _drawn(
  key: jax.Array, place: int, shape: tuple[int, int], least: int
) -> jax.Array:
  """Digits of the operand at a place."""
  # In one dimension, the same values compile in two thirds of the time.
  flat = jax.random.randint(
    jax.random.fold_in(key, place), (math.prod(shape),), least, 10
  )
  return flat.reshape(shape)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _operands(
  task: Task,
  table: tuple[tuple[int, ...], ...],
  levels: Sequence[jax.Array],
  digits: Sequence[jax.Array],
  leads: Sequence[jax.Array],
) -> Operands:
  """Puts drawn digits together; `table` holds the widths of every level."""
  operands = []
  for i, drawn in enumerate(digits):
    values = drawn
    length = jnp.asarray([widths[i] for widths in table], jnp.int32)[levels[i]]
    if task.numeric:
      place = column(values)
      # A one-digit number may be zero; a longer one does not start with it.
      leading = (place == length[:, None] - 1) & (place > 0)
      values = jnp.where(leading, leads[i], values)
    operands.append(Digits(values, length).masked())
  return task.prepare(tuple(operands))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Mark:
  """What is written between the strings of an answer, for `jax.jit`."""

  text: str


def _compiled(
  compute: Callable[[Operands], Answer],
) -> Callable[[Operands], Answer]:
  """Makes a program of a function, whose answers may hold marks."""

  @functools.partial(jax.jit, inline=True)
  def parts(operands: Operands) -> Any:
    answer = compute(operands)
    if isinstance(answer, Digits):
      return answer
    return tuple(_Mark(x) if isinstance(x, str) else x for x in answer)

  @functools.wraps(compute)
  def call(operands: Operands) -> Answer:
    answer = parts(operands)
    if isinstance(answer, Digits):
      return answer
    return tuple(x.text if isinstance(x, _Mark) else x for x in answer)

  return call


def split_of(operands: tuple[Digits, ...], split: str) -> jax.Array:
  """Which problems belong to a split: bool[batch].

  A problem belongs to exactly one of `train` (7/8 of all problems),
  `validation` and `test` (1/16 each), by a hash of its operands, whatever the
  seed that drew it: nothing seen in training is ever scored. The order of the
  operands does not matter, so that 3 + 5 is not trained on to score 5 + 3;
  operands that are absent do not, either.

  Args:
    operands: The operands of a batch of problems.
    split: One of `train`, `validation`, `test`.

  Returns:
    bool[batch].

  Raises:
    KeyError: If there is no such split.
  """
  if split not in _SPLIT_BUCKETS:
    raise KeyError(f'no split {split!r}; there are {", ".join(SPLITS)}')
  low, high = map(np.uint32, _SPLIT_BUCKETS[split])
  return _in_buckets(operands, low, high)


@functools.partial(jax.jit, inline=True)
def _in_buckets(
  operands: Operands, low: jax.Array, high: jax.Array
) -> jax.Array:
  total = jnp.zeros(operands[0].length.shape, jnp.uint32)
  for operand in operands:
    state = hashed(operand)
    total = total + jnp.where(operand.length > 0, state, np.uint32(0))
  state = mix(total, total >> np.uint32(16))
  bucket = state % np.uint32(64)
  return (bucket >= low) & (bucket < high)


def hashed(operand: Digits) -> jax.Array:
  """A hash of each string: u32[batch].

  A loop, as what is written out would be computed anew for every token that is
  masked by it, and takes LLVM forever where all lengths are one constant.
  """

  def step(state: jax.Array, column: tuple[jax.Array, jax.Array]) -> Any:
    place, digit = column
    # Positions beyond the length leave the state alone, so that a problem keeps
    # its split whatever the width of the array that carries it.
    inside = place < operand.length
    return jnp.where(inside, mix(state, digit), state), None

  digits = jnp.moveaxis(operand.values, -1, 0).astype(jnp.uint32)
  places = jnp.arange(len(digits), dtype=jnp.int32)
  start = operand.length.astype(jnp.uint32) + 11
  return jax.lax.scan(step, start, (places, digits))[0]


def mix(state: jax.Array, value: jax.Array) -> jax.Array:
  """One round of a multiply-xorshift hash on u32."""
  state = (state ^ value) * np.uint32(0x9E3779B1)
  state = (state ^ (state >> np.uint32(15))) * np.uint32(0x85EBCA77)
  return state ^ (state >> np.uint32(13))


def to_strings(answer: Answer) -> list[str]:
  """The written form of a batch of strings, most significant digit first.

  Args:
    answer: Strings of shape [batch], or what `Task.compute` returns.

  Returns:
    One Python string each.

  Examples:
    >>> import jax.numpy as jnp
    >>> digits = Digits(jnp.asarray([[3, 2, 1]]), jnp.asarray([2]))
    >>> to_strings(digits)
    ['23']
    >>> to_strings((digits, 'r', digits))
    ['23r23']
  """
  if not isinstance(answer, Digits):
    columns, mark = [], ''
    for part in answer:
      if isinstance(part, str):
        mark = part
        continue
      columns.append([mark + x if x else '' for x in to_strings(part)])
    return [''.join(row) for row in zip(*columns, strict=True)]
  values = np.asarray(answer.values)
  lengths = np.asarray(answer.length)
  return [
    ''.join(ALPHABET[d] for d in row[:n][::-1])
    for row, n in zip(values, lengths, strict=True)
  ]


def from_strings(strings: Sequence[str], width: int | None = None) -> Digits:
  """The inverse of `to_strings`, on the host.

  Args:
    strings: Strings over `ALPHABET`.
    width: The width of the array; the longest string by default.

  Returns:
    `Digits` of shape [len(strings)].

  Raises:
    ValueError: If a string holds anything else or is longer than width.
  """
  width = max(map(len, strings)) if width is None else width
  values = np.zeros((len(strings), width), np.int32)
  for row, text in enumerate(strings):
    codes = [ALPHABET.find(c) for c in reversed(text)]
    if len(text) > width or -1 in codes:
      raise ValueError(
        f'expected at most {width} characters of {ALPHABET!r}, got {text!r}'
      )
    values[row, : len(text)] = codes
  lengths = np.asarray([len(text) for text in strings], np.int32)
  return Digits(jnp.asarray(values), jnp.asarray(lengths))
