"""How a problem and its answer are written: one line of tokens.

A line is `symbol operand {, operand} = answer $`, as in `+57,68=521$` with the
answer's least significant digit first. Lines of a batch end at different
places; padding fills the rest.
"""

from collections.abc import Sequence
import dataclasses
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic import tokenizers
from arithmetic.tasks import digitwise
from arithmetic.tasks.base import column
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Task

Order = Literal['plain', 'reversed']


class Batch(NamedTuple):
  """Lines of tokens, and which of them are the answer.

  Attributes:
    tokens: i32[batch, length].
    answer: bool[batch, length], true on the answer and the end mark.
  """

  tokens: jax.Array
  answer: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A way to write problems.

  Attributes:
    operand_order: `plain` writes the first digit first; `reversed` the last.
    answer_order: The same for the answer. A sum is far easier to learn when
      its least significant digit comes first.
    pad: Whether every line gives an operand the width of the largest level:
      numbers, and answers that are numbers, with zeros before them, strings
      of digits, in which a zero counts, with blanks behind them.
  """

  operand_order: Order = 'plain'
  answer_order: Order = 'reversed'
  pad: bool = False

  def __post_init__(self):
    for field in ('operand_order', 'answer_order'):
      if getattr(self, field) not in ('plain', 'reversed'):
        raise ValueError(
          f"{field} is 'plain' or 'reversed', got {getattr(self, field)!r}"
        )

  def length(self, task: Task, level: int) -> int:
    """The longest line of a task up to a level, in tokens."""
    widths = task.widths(level)
    return sum(widths) + len(widths) + 1 + task.answer_width(level) + 1

  def write(
    self,
    task: Task,
    operands: tuple[Digits, ...],
    *,
    tokenizer: tokenizers.DigitTokenizer,
    level: int,
    length: int | None = None,
  ) -> Batch:
    """Writes problems with their answers, on the device.

    Args:
      task: What computes the answers.
      operands: One `Digits` of shape [batch] each.
      tokenizer: Gives every character its token.
      level: The largest level among the problems.
      length: Tokens a line, at least `self.length(task, level)`, which is
        the default.

    Returns:
      A `Batch` of shape [batch, length].

    Raises:
      ValueError: If `length` is too short.

    Examples:
      >>> from arithmetic import tasks
      >>> from arithmetic.tokenizers import DigitTokenizer
      >>> tokenizer = DigitTokenizer('+')
      >>> operands = tasks.from_strings(['57']), tasks.from_strings(['68'])
      >>> batch = Layout().write(
      ...   tasks.addition, operands, tokenizer=tokenizer, level=2
      ... )
      >>> tokenizer.decode(batch.tokens[0])
      '+57,68=521$'
    """
    needed = self.length(task, level)
    length = needed if length is None else length
    if length < needed:
      raise ValueError(
        f'{task.name} at level {level} needs lines of {needed} tokens,'
        f' got length={length}'
      )
    answer = task.compute(operands)
    answer_width = task.answer_width(level)
    answer = Digits(answer.values[..., :answer_width], answer.length)
    if self.pad and task.numeric:
      operands = tuple(
        _fill(x, width)
        for x, width in zip(operands, task.widths(level), strict=True)
      )
      answer = _fill(answer, answer_width)
    batch = answer.length.shape
    (symbol, separator, equals, end) = tokenizer.encode(
      task.symbol + tokenizers.SEPARATOR + tokenizers.EQUALS + tokenizers.END
    )
    pieces = [_mark(symbol, batch)]
    for operand, width in zip(operands, task.widths(level), strict=True):
      piece = _ordered(operand, self.operand_order)
      blank = self.pad and not task.numeric
      pieces.append(_with_blanks(piece, width) if blank else piece)
      pieces.append(_mark(separator, batch))
    pieces[-1] = _mark(equals, batch)
    prompt_length = jnp.sum(jnp.stack([x.length for x in pieces]), axis=0)
    pieces.append(_ordered(answer, self.answer_order))
    pieces.append(_mark(end, batch))
    tokens = _join(pieces, length)
    place = column(tokens)
    # The answer and the end mark; no token but padding follows them.
    answer_length = pieces[-2].length + pieces[-1].length
    after_prompt = place - prompt_length[:, None]
    is_answer = (after_prompt >= 0) & (after_prompt < answer_length[:, None])
    return Batch(tokens, is_answer)

  def text(
    self, task: Task, operands: Sequence[str], *, level: int
  ) -> tuple[str, str]:
    """The same line on the host: prompt, and answer with the end mark.

    Args:
      task: Its oracle computes the answer.
      operands: Written numbers or strings of digits.
      level: The largest level, which zero padding fills up to.

    Returns:
      The prompt and the completion.

    Examples:
      >>> from arithmetic import tasks
      >>> Layout(pad=True).text(tasks.addition, ('57', '8'), level=3)
      ('+057,008=', '5600$')
    """
    answer = task.solve(tuple(operands))
    operands = list(operands)
    if self.pad and task.numeric:
      operands = [
        x.zfill(width)
        for x, width in zip(operands, task.widths(level), strict=True)
      ]
      answer = answer.zfill(task.answer_width(level))
    if self.operand_order == 'reversed':
      operands = [x[::-1] for x in operands]
    if self.pad and not task.numeric:
      operands = [
        x.ljust(width, tokenizers.PAD)
        for x, width in zip(operands, task.widths(level), strict=True)
      ]
    if self.answer_order == 'reversed':
      answer = answer[::-1]
    joined = tokenizers.SEPARATOR.join(operands)
    prompt = f'{task.symbol}{joined}{tokenizers.EQUALS}'
    return prompt, answer + tokenizers.END


def _mark(token: int, batch: tuple[int, ...]) -> Digits:
  return Digits(
    jnp.full((*batch, 1), token, jnp.int32), jnp.ones(batch, jnp.int32)
  )


def _fill(digits: Digits, width: int) -> Digits:
  """Writes a string with leading zeros, `width` digits in all."""
  return Digits(
    digitwise.pad(digits.values, width), jnp.full_like(digits.length, width)
  )


def _with_blanks(tokens: Digits, width: int) -> Digits:
  """Tokens followed by padding, `width` in all."""
  return Digits(
    digitwise.pad(tokens.masked().values, width),
    jnp.full_like(tokens.length, width),
  )


def _ordered(digits: Digits, order: Order) -> Digits:
  """Token ids in the order of writing, first token first."""
  if order == 'plain':
    digits = digitwise.reverse(digits)
  return Digits(digits.values + 1, digits.length)


def _join(pieces: Sequence[Digits], length: int) -> jax.Array:
  """Writes pieces one after another: i32[batch, length]."""
  (batch,) = pieces[0].length.shape
  tokens = jnp.zeros((batch, length), jnp.int32)
  row = jnp.arange(batch)[:, None]
  start = jnp.zeros((batch, 1), jnp.int32)
  for piece in pieces:
    place = column(piece.values)
    # Entries beyond the piece's length are sent outside, where they vanish.
    target = jnp.where(place < piece.length[:, None], start + place, length)
    tokens = tokens.at[row, target].set(piece.values, mode='drop')
    start = start + piece.length[:, None]
  return tokens
