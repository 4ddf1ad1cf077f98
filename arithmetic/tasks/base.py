"""What a task is: digits in, digits out, and an exact oracle in Python.

A problem is drawn on the device as arrays of decimal digits, so that operands
may be longer than any machine integer; the answer is computed twice, once on
the device and once, by `Task.solve`, with Python's integers and strings.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Which of the 64 buckets that problems are hashed to belong to each split.
_SPLIT_BUCKETS = {'validation': (0, 4), 'test': (4, 8), 'train': (8, 64)}
SPLITS = tuple(_SPLIT_BUCKETS)


class Digits(NamedTuple):
  """Strings of decimal digits of different lengths, as one array.

  Attributes:
    values: i32[..., width], position 0 is the last digit written (the least
      significant one of a number). Entries at or beyond `length` are zero.
    length: i32[...], how many digits are written.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One exact arithmetic task at any size.

  Attributes:
    name: The field's name for it, as in `'addition'`.
    symbol: The one character that opens every prompt of the task.
    widths: From a level (the size of a problem, at least 1) to the digits of
      each operand.
    answer_width: From a level to the most digits an answer can have.
    compute: From the operands to the answer, on the device.
    solve: The oracle: from the written operands to the written answer, in
      Python integers and strings.
    numeric: Whether operands are numbers, whose first written digit is not
      zero, or plain strings of digits.
    prepare: Applied to freshly drawn operands, to put a problem into the
      task's domain (a divisor is not zero, a difference not negative).
  """

  name: str
  symbol: str
  widths: Callable[[int], tuple[int, ...]]
  answer_width: Callable[[int], int]
  compute: Callable[[tuple[Digits, ...]], Digits]
  solve: Callable[[tuple[str, ...]], str]
  numeric: bool = True
  prepare: Callable[[tuple[Digits, ...]], tuple[Digits, ...]] = lambda x: x

  def sample(
    self,
    key: jax.Array,
    batch_size: int,
    *,
    level_weights: Sequence[float],
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
    level = jax.random.categorical(
      level_key,
      jnp.log(jnp.asarray(weights / weights.sum(), jnp.float32)),
      shape=(batch_size,),
    )
    table = np.asarray([self.widths(n + 1) for n in range(weights.size)])
    operands = []
    for i, width in enumerate(table.max(axis=0)):
      length = jnp.asarray(table[:, i], jnp.int32)[level]
      values = jax.random.randint(
        jax.random.fold_in(digit_key, i), (batch_size, width), 0, 10
      )
      if self.numeric:
        lead = jax.random.randint(
          jax.random.fold_in(lead_key, i), (batch_size, 1), 1, 10
        )
        place = column(values)
        # A one-digit number may be zero; a longer one does not start with it.
        leading = (place == length[:, None] - 1) & (place > 0)
        values = jnp.where(leading, lead, values)
      operands.append(Digits(values, length).masked())
    return self.prepare(tuple(operands))


def split_of(operands: tuple[Digits, ...], split: str) -> jax.Array:
  """Which problems belong to a split: bool[batch].

  A problem belongs to exactly one of `train` (7/8 of all problems),
  `validation` and `test` (1/16 each), by a hash of its operands, whatever the
  seed that drew it: nothing seen in training is ever scored. The order of the
  operands does not matter, so that 3 + 5 is not trained on to score 5 + 3.

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
  low, high = _SPLIT_BUCKETS[split]
  total = jnp.zeros(operands[0].length.shape, jnp.uint32)
  for operand in operands:
    state = operand.length.astype(jnp.uint32) + 11
    for i in range(operand.values.shape[-1]):
      digit = operand.values[..., i].astype(jnp.uint32)
      # Positions beyond the length leave the state alone, so that a problem
      # keeps its split whatever the width of the array that carries it.
      state = jnp.where(i < operand.length, _mix(state, digit), state)
    total = total + state
  state = _mix(total, total >> np.uint32(16))
  bucket = state % np.uint32(64)
  return (bucket >= low) & (bucket < high)


def _mix(state: jax.Array, value: jax.Array) -> jax.Array:
  """One round of a multiply-xorshift hash on u32."""
  state = (state ^ value) * np.uint32(0x9E3779B1)
  state = (state ^ (state >> np.uint32(15))) * np.uint32(0x85EBCA77)
  return state ^ (state >> np.uint32(13))


def to_strings(digits: Digits) -> list[str]:
  """The written form of a batch of digit strings, most significant first.

  Args:
    digits: Digit strings of shape [batch].

  Returns:
    One Python string each.

  Examples:
    >>> import jax.numpy as jnp
    >>> to_strings(Digits(jnp.asarray([[3, 2, 1]]), jnp.asarray([2])))
    ['23']
  """
  values = np.asarray(digits.values)
  lengths = np.asarray(digits.length)
  return [
    ''.join(str(d) for d in row[:n][::-1])
    for row, n in zip(values, lengths, strict=True)
  ]


def from_strings(strings: Sequence[str], width: int | None = None) -> Digits:
  """The inverse of `to_strings`, on the host.

  Args:
    strings: Strings of decimal digits.
    width: The width of the array; the longest string by default.

  Returns:
    `Digits` of shape [len(strings)].

  Raises:
    ValueError: If a string holds anything but digits or is longer than width.
  """
  width = max(map(len, strings)) if width is None else width
  values = np.zeros((len(strings), width), np.int32)
  for row, text in enumerate(strings):
    if len(text) > width or not (text.isascii() and text.isdigit()):
      raise ValueError(f'expected at most {width} decimal digits, got {text!r}')
    values[row, : len(text)] = [int(c) for c in reversed(text)]
  lengths = np.asarray([len(text) for text in strings], np.int32)
  return Digits(jnp.asarray(values), jnp.asarray(lengths))
