"""From tokens to integer positions: i32[batch, length].

Without a key, ids are those of evaluation; with one, those of training, in
which some schemes draw. A scheme that does not look at tokens and does not
draw gives one line for all, i32[1, length].

Schemes that look at tokens find numbers as runs of digit tokens. All of them
are causal in answers, which are written least significant digit first: the id
of a token there depends on what was written up to it, so that they are known
while decoding.
"""

import dataclasses
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic.tasks.base import column

Order = Literal['plain', 'reversed']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
  """Which token ids mean what to the schemes that look at tokens.

  Attributes:
    digits: Tokens that numbers are made of. If hints stand between digits,
      they belong here, too.
    equals: The token after which answers begin; needed by coupled ids.
    anchors: Tokens that take the id before that of a first digit. In position
      coupling they are the operator and the equals sign. Abacus has none, so
      that with a random offset nothing says which id is the first digit's.

  Raises:
    ValueError: If there are no digits, an id is negative, or a digit is also
      a mark.

  Examples:
    >>> from arithmetic import tokenizers
    >>> tokenizer = tokenizers.DigitTokenizer('+')
    >>> Classes(
    ...   digits=tuple(tokenizer.encode('0123456789')),
    ...   equals=tokenizer.encode('=')[0],
    ...   anchors=tuple(tokenizer.encode(',=')),
    ... )
    Classes(digits=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), equals=12, anchors=(11, 12))
  """

  digits: tuple[int, ...]
  equals: int | None = None
  anchors: tuple[int, ...] = ()

  def __post_init__(self):
    if not self.digits:
      raise ValueError('digits is empty: no token is part of a number')
    marks = (*self.anchors, *(() if self.equals is None else (self.equals,)))
    if min(*self.digits, *marks, 0) < 0:
      raise ValueError(f'token ids are not negative, got {self}')
    both = sorted(set(self.digits) & set(marks))
    if both:
      raise ValueError(f'tokens {both} are digits and marks')


class Runs(NamedTuple):
  """Where the tokens of lines stand in their numbers.

  Attributes:
    digit: bool[batch, length], whether a token is part of a number.
    anchor: bool[batch, length].
    from_left: i32[batch, length], the token's place in its number, from 1; 0
      outside of numbers.
    from_right: The same counted from the other end, which looks ahead.
    number: i32[batch, length], how many numbers began up to here.
  """

  digit: jax.Array
  anchor: jax.Array
  from_left: jax.Array
  from_right: jax.Array
  number: jax.Array


def runs(tokens: jax.Array, classes: Classes) -> Runs:
  """Finds the numbers in lines of tokens i32[batch, length].

  Examples:
    >>> import jax.numpy as jnp
    >>> line = jnp.asarray([[11, 3, 4, 5, 11, 6, 7, 12, 0]])
    >>> found = runs(line, Classes(digits=tuple(range(1, 11))))
    >>> found.from_left[0].tolist()
    [0, 1, 2, 3, 0, 1, 2, 0, 0]
    >>> found.from_right[0].tolist()
    [0, 3, 2, 1, 0, 2, 1, 0, 0]
    >>> found.number[0].tolist()
    [0, 1, 1, 1, 1, 2, 2, 2, 2]
  """
  digit = _among(tokens, classes.digits)
  place = column(tokens)
  # The nearest token outside of a number, before and behind.
  before = jax.lax.cummax(jnp.where(digit, -1, place), axis=1)
  behind = jax.lax.cummin(
    jnp.where(digit, tokens.shape[1], place), axis=1, reverse=True
  )
  from_left = place - before
  return Runs(
    digit,
    _among(tokens, classes.anchors),
    from_left,
    behind - place,
    jnp.cumsum((from_left == 1).astype(jnp.int32), axis=1),
  )


def plain(length: int) -> jax.Array:
  """0, 1, 2, ...: i32[1, length]."""
  return jnp.arange(length, dtype=jnp.int32)[None]


def evenly_spaced(length: int, *, of: int, size: int) -> jax.Array:
  """The first `length` of `of` ids, spread over [0, size): i32[1, length].

  Examples:
    >>> evenly_spaced(4, of=6, size=15).tolist()
    [[0, 2, 5, 7]]
  """
  return plain(length) * size // of


def random_start(
  key: jax.Array, batch: int, length: int, *, size: int
) -> jax.Array:
  """I + s, where s is uniform over all that fit into [0, size), by line.

  The usual baseline of length generalisation: all rows of a learned table are
  trained, though lines are short.

  References:
    Kiyono et al., SHAPE: Shifted Absolute Position Embedding for
    Transformers, 2021, arXiv:2109.05644.
  """
  start = jax.random.randint(key, (batch, 1), 0, size - length + 1)
  return start + plain(length)


def randomised(
  key: jax.Array, batch: int, length: int, *, size: int
) -> jax.Array:
  """A sorted sample without replacement from [0, size), by line.

  References:
    Ruoss et al., Randomized Positional Encodings Boost Length Generalization
    of Transformers, 2023, arXiv:2305.16843.
  """
  _, drawn = jax.lax.top_k(jax.random.uniform(key, (batch, size)), length)
  return jnp.sort(drawn, axis=1).astype(jnp.int32)


def abacus(
  tokens: jax.Array,
  classes: Classes,
  *,
  max_offset: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """A digit's place in its number, from 1; other tokens have 0.

  In training a number k, uniform over [0, max_offset], is added to the ids of
  digits, so that ids of longer numbers are trained. Numbers have to be written
  least significant digit first for equal ids to mean equal weights.

  The paper's code draws one k for a batch; here it is one for a line. Anchors
  take the id k: without one, the model cannot tell which id belongs to the
  first digit of an answer, and stays wrong there for thousands of steps.

  Args:
    tokens: i32[batch, length].
    classes: Which tokens are digits and which are anchors.
    max_offset: The largest k.
    key: Draws k; 0 without it.

  Returns:
    i32[batch, length].

  References:
    McLeish et al., Transformers Can Do Arithmetic with the Right Embeddings,
    2024, arXiv:2405.17399.
  """
  found = runs(tokens, classes)
  offset = jnp.zeros((tokens.shape[0], 1), jnp.int32)
  if key is not None:
    offset = jax.random.randint(key, offset.shape, 0, max_offset + 1)
  counted = found.digit | found.anchor
  return jnp.where(counted, found.from_left + offset, 0)


def coupled(
  tokens: jax.Array,
  classes: Classes,
  *,
  operand_order: Order,
  size: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """One id for all digits of one weight, in operands and answer.

  The digit of weight 10^w has the id s + 1 + w, anchors have s, other tokens
  0. In training s is uniform over all that fit into [1, size), by line.
  What comes after the first `classes.equals` is written least significant
  digit first. Ids of operands that are written in plain order look ahead to
  the operand's end, but not beyond the prompt.

  Args:
    tokens: i32[batch, length].
    classes: Which tokens are digits, anchors, and the equals sign.
    operand_order: How operands are written.
    size: Ids are below it.
    key: Draws s; 1 without it.

  Returns:
    i32[batch, length].

  References:
    Cho et al., Position Coupling: Improving Length Generalization of
    Arithmetic Transformers Using Task Structure, 2024, arXiv:2405.20671.
  """
  found = runs(tokens, classes)
  if operand_order == 'plain':
    in_answer = _in_answer(tokens, classes)
    weight = jnp.where(in_answer, found.from_left, found.from_right)
    weight = jnp.where(found.digit, weight, 0)
  else:
    weight = found.from_left
  return _coupled(weight, found.digit | found.anchor, size, key)


def numbers(
  tokens: jax.Array,
  classes: Classes,
  *,
  operand_order: Order,
  size: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """One id for the n-th operand and the n-th number of the answer.

  The second level of position coupling, for answers that are several numbers,
  as the sums of the first, the first two, ... operands. Numbers count from 1
  on each side of the equals sign, which belongs to the number behind it.
  Anchors belong to the number whose lowest digit they touch: behind an operand
  written in plain order, before any other number. To the count is added what
  lets it start anywhere in [1, size), drawn by line in training.

  Args:
    tokens: i32[batch, length].
    classes: Which tokens are digits, anchors, and the equals sign.
    operand_order: How operands are written.
    size: Ids are below it.
    key: Draws the start; 1 without it.

  Returns:
    i32[batch, length]; 0 for tokens that are neither digits nor anchors.

  References:
    Cho et al., Arithmetic Transformers Can Length-Generalize in Both Operand
    Length and Count, 2024, arXiv:2410.15787.
  """
  found = runs(tokens, classes)
  in_answer = _in_answer(tokens, classes)
  operands = jnp.max(
    jnp.where(in_answer, 0, found.number), axis=1, keepdims=True
  )
  number = jnp.where(in_answer, found.number - operands, found.number)
  next_number = ~found.digit
  if operand_order == 'plain':
    next_number &= in_answer
  number = jnp.maximum(number + next_number.astype(jnp.int32), 1)
  return _coupled(number - 1, found.digit | found.anchor, size, key)


def turns(tokens: jax.Array, classes: Classes) -> jax.Array:
  """0, 1, 2, ... up to the first answer, whose ids all later turns repeat.

  Of a line whose questions and answers take turns: behind the first equals
  sign, a token's place is counted from the last anchor, an equals sign aside,
  and that anchor has the id of the last one before the first equals sign. So a
  turn looks the same however many came before it.

  Args:
    tokens: i32[batch, length].
    classes: Which tokens are anchors, and the equals sign.

  Returns:
    i32[batch, length].

  Examples:
    >>> line = jnp.asarray([[1, 2, 11, 3, 12, 4, 5, 11, 6, 12, 7, 8]])
    >>> classes = Classes(
    ...   digits=tuple(range(1, 11)), equals=12, anchors=(11, 12)
    ... )
    >>> turns(line, classes)[0].tolist()
    [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6]
  """
  place = column(tokens)
  anchor = _among(tokens, classes.anchors) & (tokens != classes.equals)
  in_answer = _in_answer(tokens, classes)
  last = jax.lax.cummax(jnp.where(anchor, place, 0), axis=1)
  first = jnp.max(jnp.where(in_answer, 0, last), axis=1, keepdims=True)
  return jnp.where(in_answer, first + place - last, place)


def _coupled(
  count: jax.Array, counted: jax.Array, size: int, key: jax.Array | None
) -> jax.Array:
  """A start, at least 1, plus the count where it counts, and 0 elsewhere."""
  start = jnp.ones((count.shape[0], 1), jnp.int32)
  if key is not None:
    longest = jnp.max(jnp.where(counted, count, 0), axis=1, keepdims=True)
    start = jax.random.randint(key, start.shape, 1, size - longest)
  return jnp.where(counted, start + count, 0)


def _in_answer(tokens: jax.Array, classes: Classes) -> jax.Array:
  """Whether a token is the first equals sign or behind it."""
  seen = jnp.equal(tokens, -1 if classes.equals is None else classes.equals)
  return jax.lax.cummax(seen.astype(jnp.int32), axis=1) > 0


def _among(tokens: jax.Array, members: tuple[int, ...]) -> jax.Array:
  """Whether each token is one of the members, by a table."""
  table = np.zeros(max(members, default=0) + 2, bool)
  table[list(members)] = True
  return jnp.asarray(table)[jnp.minimum(tokens, len(table) - 1)]
