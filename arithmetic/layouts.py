"""How a problem and its answer are written: one line of tokens.

By default a line is `symbol operand {, operand} = answer $`, as in
`+57,68=521$` with the answer's least significant digit first. Lines of a batch
end at different places; padding fills the rest.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any
from typing import get_args
from typing import Literal

import jax
import jax.numpy as jnp

from arithmetic import lines
from arithmetic import names
from arithmetic import pieces
from arithmetic import scratchpads
from arithmetic import tokenizers
from arithmetic.lines import Batch as Batch
from arithmetic.pieces import Order
from arithmetic.tasks import digitwise
from arithmetic.tasks.base import Digits
from arithmetic.tasks.base import Task

Notation = Literal['prefix', 'infix']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A way to write problems.

  Attributes:
    operand_order: `plain` writes the first digit first; `reversed` the last.
    answer_order: The same for the answer. A sum is far easier to learn when
      its least significant digit comes first. Of an answer of several numbers
      each is reversed in its place.
    pad: Whether every line gives an operand the width of the largest level:
      numbers, and answers that are numbers, with zeros before them, strings
      of digits, in which a zero counts, with blanks behind them.
    notation: `prefix` writes `+57,68=`, `infix` writes `57+68=`; a task of
      one operand has its symbol first in both.
    start: Opens every line, as `$` does in `$57+68=125$`.
    group: How many digits stand between two group marks, as in `1,234`; 0
      writes none.
    group_start: The end of a number, as written, from which groups are
      counted; `right` is the end of least weight, also of a reversed number.
    group_mark: What stands between groups. A comma needs infix notation.
    hints: Of how many marks a run of consecutive ones is drawn, one for each
      weight, to stand before the digits: `a6b7c5+a1b6c3=a7b3c9`; 0 has none.
    spaces: The probability of a blank before each character of a prompt that
      is written with a random key.
    scratchpad: The work between prompt and answer, a name in
      `arithmetic.scratchpads.ALL`; none if empty. It fixes what opens and
      closes the prompt.
    turns: Whether the last operand is told part by part, each before the
      string of the answer that it leads to: `K05,10,0=05,1=15$` and not
      `K05,10,01=05,15$`. For tasks that have turns.

  References:
    Lee et al., Teaching Arithmetic to Small Transformers, 2023,
    arXiv:2307.03381 (orders, delimiters, scratchpads). Zhou et al.,
    Transformers Can Achieve Length Generalization But Not Robustly, 2024,
    arXiv:2402.09371 (hints). Shen et al., Positional Description Matters for
    Transformers Arithmetic, 2023, arXiv:2311.14737 (spaces). Singh and Strouse,
    Tokenization counts, 2024, arXiv:2402.14903 (groups).
  """

  operand_order: Order = 'plain'
  answer_order: Order = 'reversed'
  pad: bool = False
  notation: Notation = 'prefix'
  start: str = ''
  group: int = 0
  group_start: tokenizers.End = 'right'
  group_mark: str = tokenizers.SEPARATOR
  hints: int = 0
  spaces: float = 0.0
  scratchpad: str = ''
  turns: bool = False

  def __post_init__(self):
    for field, options in (
      ('operand_order', get_args(Order)),
      ('answer_order', get_args(Order)),
      ('notation', get_args(Notation)),
      ('group_start', get_args(tokenizers.End)),
    ):
      if getattr(self, field) not in options:
        raise ValueError(
          f'{field} is {" or ".join(map(repr, options))}, got'
          f' {getattr(self, field)!r}'
        )
    if self.group < 0 or not 0 <= self.hints <= len(pieces.HINTS):
      raise ValueError(
        f'group is not negative and hints are at most {len(pieces.HINTS)}, got'
        f' group={self.group}, hints={self.hints}'
      )
    if self.group and self.hints:
      raise ValueError('a digit has a hint before it or a group mark, not both')
    if len(self.group_mark) != 1 or self.group_mark.isdigit():
      raise ValueError(
        f'group_mark is one character, no digit, got {self.group_mark!r}'
      )
    comma = self.group_mark == tokenizers.SEPARATOR
    if self.group and comma and self.notation == 'prefix':
      raise ValueError(
        'commas between operands and between groups cannot be told apart:'
        " give notation='infix' or another group_mark"
      )
    if not 0 <= self.spaces < 1:
      raise ValueError(f'spaces is in [0, 1), got {self.spaces}')
    if self.scratchpad:
      try:
        scratchpads.get(self.scratchpad)
      except KeyError as error:
        raise ValueError(f'scratchpad: {error.args[0]}') from None
    if self.turns and (self.scratchpad or self.group or self.hints):
      raise ValueError(
        'turns go without scratchpad, group and hints: parts are written bare'
      )

  def length(
    self,
    task: Task,
    level: int,
    tokenizer: tokenizers.DigitTokenizer | None = None,
  ) -> int:
    """The longest line of a task up to a level, in tokens.

    Args:
      task: Any task.
      level: The largest level.
      tokenizer: What makes tokens of characters; one a character by default.

    Returns:
      A bound; for lines without scratchpad, groups, hints and spaces the
      length of the longest.
    """
    count = 0

    def measure(operands: tuple[Digits, ...]) -> None:
      nonlocal count
      line = self._line(task, operands, task.answer(operands, level), level, 0)
      prompt = sum(most(piece) for piece in line.prompt)
      count = prompt * (2 if self.spaces else 1)
      count += sum(most(piece) for piece in line.work + line.answer)

    def most(piece: pieces.Piece) -> int:
      width = pieces.width(piece)
      whole = isinstance(piece, pieces.Field) and piece.between is None
      if tokenizer is None or not whole or task.alphabet or self.scratchpad:
        return width
      return tokenizer.most_tokens(width)

    jax.eval_shape(
      measure,
      tuple(
        Digits(
          jax.ShapeDtypeStruct((1, width), jnp.int32),  # pyrefly: ignore
          jax.ShapeDtypeStruct((1,), jnp.int32),  # pyrefly: ignore
        )
        for width in task.widths(level)
      ),
    )
    return count

  def characters(self, tasks: Iterable[Task]) -> str:
    """What lines hold beside digits and marks: a tokenizer's `symbols`.

    Args:
      tasks: Those that share a vocabulary.

    Returns:
      Characters, each once.

    Examples:
      >>> from arithmetic import tasks
      >>> Layout(notation='infix', hints=4).characters([tasks.addition])
      '+abcd'
    """
    found: dict[str, None] = {}
    for task in tasks:
      found |= dict.fromkeys(self._own_characters(task))
    return ''.join(c for c in found if c not in tokenizers.MARKS)

  def write(
    self,
    task: Task,
    operands: tuple[Digits, ...],
    *,
    tokenizer: tokenizers.DigitTokenizer,
    level: int,
    length: int | None = None,
    key: jax.Array | None = None,
    removed: jax.Array | int | None = None,
    answer: tuple[Digits, ...] | None = None,
  ) -> lines.Batch:
    """Writes problems with their answers, on the device.

    Args:
      task: What computes the answers.
      operands: One `Digits` of shape [batch] each.
      tokenizer: Gives the line its tokens.
      level: The largest level among the problems.
      length: Tokens a line, at least `self.length(task, level, tokenizer)`,
        which is the default.
      key: A PRNG key that draws blanks and the first hint; without one there
        are no blanks and the hints begin with the first.
      removed: How many characters of the work are left out, from its first
        on: i32[] or i32[batch]. A schedule that raises it step by step
        internalises a chain of thought.
      answer: The strings of an answer to write in place of the true one.

    Returns:
      A `Batch` of shape [batch, length].

    Raises:
      ValueError: If `length` is too short, or the tokenizer lacks a character.

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

    References:
      Deng et al., From Explicit CoT to Implicit CoT: Learning to Internalize
      CoT Step by Step, 2024, arXiv:2405.14838 (`removed`).
    """
    needed = self.length(task, level, tokenizer)
    length = needed if length is None else length
    if length < needed:
      raise ValueError(
        f'{task.name} at level {level} needs lines of {needed} tokens,'
        f' got length={length}'
      )
    self._check_characters(task, tokenizer)
    return self._write(
      task, operands, tokenizer, level, length, key, removed, answer
    )

  @functools.partial(jax.jit, static_argnums=(0, 1, 3, 4, 5), inline=True)
  def _write(
    self,
    task: Task,
    operands: tuple[Digits, ...],
    tokenizer: tokenizers.DigitTokenizer,
    level: int,
    length: int,
    key: jax.Array | None,
    removed: jax.Array | int | None,
    answer: tuple[Digits, ...] | None,
  ) -> lines.Batch:
    (batch,) = operands[0].length.shape
    offset: Any = 0
    spaces_key = None
    if key is not None:
      spaces_key, hints_key = jax.random.split(key)
      if self.hints:
        last = self.hints - _widest(task, level)
        offset = jax.random.randint(hints_key, (batch, 1), 0, last + 1)
    strings = task.answer(operands, level)
    if answer is not None:
      strings = [
        (mark, Digits(said.values[..., :width], said.length), width)
        for (mark, _, width), said in zip(strings, answer, strict=True)
      ]
    line = self._line(task, operands, strings, level, offset)
    return lines.write(
      line,
      tokenizer,
      batch=batch,
      length=length,
      removed=removed,
      spaces=None if spaces_key is None else (spaces_key, self.spaces),
    )

  def text(
    self, task: Task, operands: Sequence[str], *, level: int, offset: int = 0
  ) -> tuple[str, str]:
    """The same line on the host: prompt, and what follows up to the end mark.

    Args:
      task: Its oracle computes the answer.
      operands: Written numbers or strings of digits.
      level: The largest level, which zero padding fills up to.
      offset: Which hint is the first.

    Returns:
      The prompt and the completion.

    Examples:
      >>> from arithmetic import tasks
      >>> Layout(pad=True).text(tasks.addition, ('57', '8'), level=3)
      ('+057,008=', '5600$')
      >>> LAYOUTS['delimited'].text(tasks.addition, ('57', '68'), level=2)
      ('$57+68=', '125$')
      >>> LAYOUTS['hinted'].text(tasks.addition, ('576', '361'), level=3)
      ('a6b7c5+a1b6c3=', 'a7b3c9$')
      >>> layout = Layout(turns=True)
      >>> layout.text(tasks.running_sums, (*('05', '10') * 5, '01'), level=1)
      ('K05,10,05,10,05,10,05,10,05,10,0=', '50,1=51$')
    """
    solution = task.solution(operands, level)
    line = self._line(task, tuple(operands), solution, level, offset)
    completion = line.work + line.answer
    return pieces.spell(line.prompt), pieces.spell(completion)

  def read(self, task: Task, completion: str) -> str | None:
    """The answer that a written completion gives, in the form of `task.solve`.

    Args:
      task: The task.
      completion: What follows the prompt, from `text` or from a model; what
        follows its first end mark is not read.

    Returns:
      The answer without padding, hints and group marks, most significant digit
      first; None if there is no end mark.

    Examples:
      >>> from arithmetic import tasks
      >>> Layout(pad=True).read(tasks.addition, '5600$43')
      '65'
    """
    text, end, _ = completion.partition(tokenizers.END)
    if not end:
      return None
    if self.turns:  # What is told is not of the answer.
      text = re.sub(f'[0-9]+{tokenizers.EQUALS}', '', text)
    if self.scratchpad:
      text = text.rpartition(scratchpads.get(self.scratchpad).answer_mark)[2]
      text = text.replace(' ', '')
    if self.group:
      text = text.replace(self.group_mark, '')
    if self.hints:
      text = text.translate(dict.fromkeys(map(ord, pieces.HINTS[: self.hints])))
    values = re.split('([-.0-9]+)', text)
    for i in range(1, len(values), 2):
      if self.answer_order == 'reversed':
        values[i] = values[i][::-1]
      if self.pad and task.numeric:
        values[i] = re.sub('^(-?)0+(?=[0-9])', r'\1', values[i])
    return ''.join(values)

  def _line(
    self,
    task: Task,
    operands: Sequence[pieces.Value],
    answer: Sequence[tuple[str, pieces.Value, int]],
    level: int,
    offset: Any,
  ) -> lines.Line:
    """The pieces of a line, of arrays or of strings."""
    if 0 < self.hints < _widest(task, level):
      raise ValueError(
        f'numbers of {_widest(task, level)} digits need as many hints, got'
        f' {self.hints}'
      )
    scratch = scratchpads.get(self.scratchpad) if self.scratchpad else None
    infix = self.notation == 'infix' and len(operands) > 1
    separator = tokenizers.SEPARATOR
    if infix:
      separator = task.operator or task.symbol
    prompt: list[pieces.Piece] = [
      pieces.Mark(scratch.opening if scratch else self.start),
      pieces.Mark('' if infix else task.symbol),
    ]
    parts = self._parts(task, operands[-1], answer) if self.turns else []
    told = operands[:-1] if parts else operands
    for i, width in enumerate(task.widths(level)[: len(told)]):
      if i:
        there = pieces.present(operands[i])
        prompt.append(pieces.Mark(separator, when=there))
      prompt.append(
        self._field(operands[i], self.operand_order, offset)._replace(
          width=width if self.pad else 0, fill='0' if task.numeric else ' '
        )
      )
    closing = pieces.Mark(scratch.closing if scratch else tokenizers.EQUALS)
    if parts:
      prompt += [pieces.Mark(separator), parts[0]]
    prompt.append(closing)
    work, last = [], []
    if scratch:
      work = [*scratch.work(task, operands), pieces.Mark(scratch.answer_mark)]
    for turn, (mark, value, width) in enumerate(answer):
      there = pieces.present(value)
      if turn and parts:
        between = pieces.Mark(separator, when=there, given=True)
        last += [between, parts[turn], between._replace(text=closing.text)]
      else:
        last.append(pieces.Mark(mark, when=there))
      field = self._field(value, self.answer_order, offset)
      if scratch and scratch.spaced:
        field = field._replace(between=pieces.joined(' '))
      filled = self.pad and task.numeric
      last.append(field._replace(width=width if filled else 0))
    last.append(pieces.Mark(tokenizers.END))
    return lines.Line(prompt, work, last)

  def _parts(
    self, task: Task, operand: pieces.Value, answer: Sequence[Any]
  ) -> list[pieces.Field]:
    """The parts of an operand that strings of the answer are told after."""
    size = task.turns
    if not size:
      raise ValueError(f'turns: {task.name} has none, its answer is one')
    places = [slice(i * size, (i + 1) * size) for i in range(len(answer))]
    if isinstance(operand, str):
      values: list[pieces.Value] = [operand[place] for place in places]
    else:
      read = digitwise.reverse(operand).values
      values = [
        Digits(
          read[:, place][:, ::-1],
          jnp.where(place.start < operand.length, size, 0),
        )
        for place in places
      ]
    return [
      pieces.Field(value, order=self.operand_order, given=turn > 0)
      for turn, value in enumerate(values)
    ]

  def _field(
    self, value: pieces.Value, order: Order, offset: Any
  ) -> pieces.Field:
    """A number as this layout writes it."""
    between = None
    if self.group:
      between = pieces.grouped(
        self.group, self.group_start, order, self.group_mark
      )
    elif self.hints:
      between = pieces.hinted(offset)
    return pieces.Field(value, order=order, between=between)

  def _own_characters(self, task: Task) -> str:
    """Everything that can stand in a line of a task, some of it twice."""
    scratch = scratchpads.get(self.scratchpad) if self.scratchpad else None
    operator = task.operator or task.symbol
    several = len(task.widths(1)) > 1
    symbol = operator if self.notation == 'infix' and several else task.symbol
    return ''.join(
      [
        scratch.opening if scratch else self.start,
        symbol,
        scratch.closing + scratch.characters + scratch.answer_mark
        if scratch
        else '',
        task.alphabet,
        self.group_mark if self.group else '',
        pieces.HINTS[: self.hints],
      ]
    )

  def _check_characters(
    self, task: Task, tokenizer: tokenizers.DigitTokenizer
  ) -> None:
    missing = set(self._own_characters(task)) - set(tokenizer.characters)
    if missing:
      raise ValueError(
        f'the tokenizer lacks {"".join(sorted(missing))!r}, which lines of'
        f' {task.name} hold: make it of layout.characters(tasks)'
      )


def _widest(task: Task, level: int) -> int:
  """The most digits of a number of a line."""
  return max(*task.widths(level), *task.answer_widths(level))


_PAPER = Layout(notation='infix', answer_order='plain')

LAYOUTS: dict[str, Layout] = {
  'plain': _PAPER,
  'delimited': dataclasses.replace(_PAPER, start=tokenizers.END),
  'reversed': Layout(notation='infix', start=tokenizers.END),
  'padded': dataclasses.replace(_PAPER, pad=True),
  'grouped': dataclasses.replace(_PAPER, group=3),
  'hinted': Layout(notation='infix', operand_order='reversed', hints=102),
  'simplified': dataclasses.replace(_PAPER, scratchpad='simplified'),
  'detailed': dataclasses.replace(_PAPER, scratchpad='detailed'),
  'products': Layout(
    notation='infix', operand_order='reversed', scratchpad='products'
  ),
  'lengths': dataclasses.replace(_PAPER, scratchpad='lengths'),
}


def get(name: str) -> Layout:
  """Looks up a layout that has a name.

  Args:
    name: A key of `LAYOUTS`.

  Returns:
    The layout.

  Raises:
    KeyError: If there is none of that name; the nearest is suggested.

  Examples:
    >>> from arithmetic import tasks
    >>> get('reversed').text(tasks.addition, ('57', '68'), level=2)
    ('$57+68=', '521$')
  """
  return names.look_up('layout', name, LAYOUTS)
