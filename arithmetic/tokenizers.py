"""From characters to token ids.

A line is written in characters, on the device as ids of characters
(`Layout.write`). A tokenizer says which characters there are and turns lines of
them into lines of tokens: one each, or one for several digits of a number.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic.tasks.base import column

PAD = ' '
SEPARATOR = ','
EQUALS = '='
END = '$'
_DIGITS = '0123456789'
MARKS = PAD + _DIGITS + SEPARATOR + EQUALS + END

End = Literal['left', 'right']


class Classes(NamedTuple):
  """What every token of a vocabulary is: arrays of shape [vocabulary].

  Attributes:
    digits: int, how many digits a token holds; 0 for all that is no number.
    separator: bool, the mark between operands.
    equals: bool, the mark that ends a prompt.
    end: bool, the mark that ends an answer.
    padding: bool, blanks.
  """

  digits: np.ndarray
  separator: np.ndarray
  equals: np.ndarray
  end: np.ndarray
  padding: np.ndarray


@dataclasses.dataclass(frozen=True)
class DigitTokenizer:
  """One token a digit, one a mark, one a task symbol.

  Token 0 is padding and tokens 1 to 10 are the digits 0 to 9, so that the
  token of a digit is the digit plus one, also on the device.

  Attributes:
    symbols: All other characters, all different: symbols of tasks, and what
      `Layout.characters` lists.

  Raises:
    ValueError: If a symbol is already taken.

  Examples:
    >>> tokenizer = DigitTokenizer('+-')
    >>> tokenizer.encode('+12,7=')
    [14, 2, 3, 11, 8, 12]
    >>> tokenizer.decode([3, 10, 13, 0])
    '29$ '
  """

  symbols: str

  def __post_init__(self):
    taken: set[str] = set(MARKS)
    for symbol in self.symbols:
      if symbol in taken:
        raise ValueError(f'the symbol {symbol!r} stands for two things')
      taken.add(symbol)

  @property
  def characters(self) -> str:
    """Every character, in the order of the ids that lines are written in."""
    return MARKS + self.symbols

  @functools.cached_property
  def vocabulary(self) -> tuple[str, ...]:
    """The text of every token, in the order of token ids."""
    return tuple(self.characters)

  @property
  def vocabulary_size(self) -> int:
    """How many tokens there are."""
    return len(self.vocabulary)

  @functools.cached_property
  def classes(self) -> Classes:
    """What every token is, for schemes of positions and for scoring.

    Examples:
      >>> classes = DigitTokenizer('+').classes
      >>> classes.digits.tolist()
      [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
      >>> classes.equals.nonzero()[0].tolist()
      [12]
    """

    def those(text: str) -> np.ndarray:
      return np.asarray([token == text for token in self.vocabulary])

    digits = [len(t) if _is_number(t) else 0 for t in self.vocabulary]
    return Classes(
      digits=np.asarray(digits, np.int32),
      separator=those(SEPARATOR),
      equals=those(EQUALS),
      end=those(END),
      padding=those(PAD),
    )

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; ValueError names a character without a token."""
    ids = []
    for token in self.split(text):
      if token not in self._ids:
        raise ValueError(
          f'no token for {token!r} in {text!r}; the characters are'
          f' {self.characters!r}'
        )
      ids.append(self._ids[token])
    return ids

  def decode(self, ids: Sequence[int] | Iterable[int]) -> str:
    """The text of token ids."""
    if isinstance(ids, jax.Array):  # Fetched at once, not one by one.
      ids = np.asarray(ids)
    return ''.join(self.vocabulary[int(i)] for i in ids)

  def split(self, text: str) -> list[str]:
    """The texts of the tokens that a text is cut into."""
    return list(text)

  def from_characters(
    self, characters: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Turns lines of characters into lines of tokens, on the device.

    Args:
      characters: i32[batch, length], indices of `characters`; lines end in
        padding.

    Returns:
      Tokens i32[batch, length], and where the first character of each stood,
      i32[batch, length], which is `length` for padding behind the last token.
    """
    return characters, column(characters)

  def most_tokens(self, digits: int) -> int:
    """The most tokens that a number of so many digits takes."""
    return digits

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {token: i for i, token in enumerate(self.vocabulary)}


@dataclasses.dataclass(frozen=True)
class ChunkTokenizer(DigitTokenizer):
  """One token for up to `size` digits in a row, one for everything else.

  A number is cut into chunks from its left or its right end as it stands in
  the line; the chunk at the other end takes what is left. Chunks from the right
  of numbers in plain order hold digits of the same weights in every number;
  chunks from the left do so only for numbers whose lengths are equal modulo
  `size`. The least significant end of a reversed number is its left one.

  The first tokens are those of `DigitTokenizer`; strings of two digits, then
  of three, and so on, follow, `00` being another token than `0`.

  Attributes:
    symbols: All characters but digits and marks, as of `DigitTokenizer`.
    size: The most digits of a token.
    start: The end of a number from which chunks are counted.
    answer_start: The same for what follows the first `=` of a line; like
      `start` if it is None.

  Raises:
    ValueError: If the size is not between 1 and 5, or an end is neither.

  Examples:
    >>> tokenizer = ChunkTokenizer('+', size=3, start='right')
    >>> tokenizer.split('+1234567,89=')
    ['+', '1', '234', '567', ',', '89', '=']
    >>> ChunkTokenizer('+', start='left').split('1234567')
    ['123', '456', '7']
    >>> tokenizer.vocabulary_size
    1115
    >>> tokenizer.decode(tokenizer.encode('+1234567,89='))
    '+1234567,89='

  References:
    Singh and Strouse, Tokenization counts: the impact of tokenization on
    arithmetic in frontier LLMs, 2024, arXiv:2402.14903.
  """

  size: int = 3
  start: End = 'right'
  answer_start: End | None = None

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.size <= 5:
      raise ValueError(
        f'a token holds 1 to 5 digits, got size={self.size}; each more makes'
        ' the vocabulary ten times as large'
      )
    for field in ('start', 'answer_start'):
      value = getattr(self, field)
      if value not in ('left', 'right') and (field, value) != (
        'answer_start',
        None,
      ):
        raise ValueError(f"{field} is 'left' or 'right', got {value!r}")

  @functools.cached_property
  def vocabulary(self) -> tuple[str, ...]:
    """The text of every token, in the order of token ids."""
    longer = [
      f'{i:0{n}d}' for n in range(2, self.size + 1) for i in range(10**n)
    ]
    return (*self.characters, *longer)

  def split(self, text: str) -> list[str]:
    """The texts of the tokens that a text is cut into."""
    head, mark, tail = text.partition(EQUALS)
    tokens = _chunks(head, self.size, self.start)
    if mark:
      tokens += [mark, *_chunks(tail, self.size, self._answer_start)]
    return tokens

  def from_characters(
    self, characters: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Turns lines of characters into lines of tokens, on the device.

    Args:
      characters: i32[batch, length], indices of `characters`; lines end in
        padding.

    Returns:
      Tokens i32[batch, length], and where the first character of each stood,
      i32[batch, length], which is `length` for padding behind the last token.
    """
    length = characters.shape[-1]
    number = (characters >= 1) & (characters <= 10)
    first, last = runs(number)
    place = column(characters)
    before, behind = place - first, last - place
    # As if from either end: whether a chunk begins here, and its digits.
    ends = {
      'left': (before % self.size == 0, jnp.minimum(self.size, behind + 1)),
      'right': (
        (before == 0) | ((behind + 1) % self.size == 0),
        behind % self.size + 1,
      ),
    }
    begins, digits = ends[self.start]
    if self._answer_start != self.start:
      equals = characters == self.characters.index(EQUALS)
      in_answer = jnp.cumsum(equals, axis=-1) > 0
      begins, digits = (
        jnp.where(in_answer, y, x)
        for x, y in zip((begins, digits), ends[self._answer_start], strict=True)
      )
    value = jnp.zeros_like(characters)
    following = jnp.pad(characters - 1, [(0, 0), (0, self.size - 1)])
    for i in range(self.size):
      digit = following[:, i : i + length]
      value = jnp.where(i < digits, 10 * value + digit, value)
    starts = [0, 1, len(self.characters)]
    for n in range(2, self.size):
      starts.append(starts[-1] + 10**n)
    starts = jnp.asarray(starts[: self.size + 1], jnp.int32)
    ids = jnp.where(number, starts[digits] + value, characters)
    # A blank that only fills up the line is no token.
    used = jnp.max(jnp.where(characters > 0, place + 1, 0), axis=-1)
    begins = (begins | ~number) & (place < used[:, None])
    sizes = begins.astype(jnp.int32)
    ids = compact(ids, begins, sizes, length)
    return ids, compact(place, begins, sizes, length, fill=length)

  def most_tokens(self, digits: int) -> int:
    """The most tokens that a number of so many digits takes."""
    return -(-digits // self.size)

  @property
  def _answer_start(self) -> End:
    return self.start if self.answer_start is None else self.answer_start


def get(name: str, symbols: str) -> DigitTokenizer:
  """Makes a tokenizer from its name.

  Args:
    name: `digits`; or an end and a size, as `right3` for chunks of three digits
      from the right; or two of these of one size, as `right3-left3`, the second
      for what follows the first `=`.
    symbols: All characters but digits and marks.

  Returns:
    The tokenizer.

  Raises:
    ValueError: If the name is none of these.

  Examples:
    >>> get('right3-left3', '+').split('1234+5678=2196')
    ['1', '234', '+', '5', '678', '=', '219', '6']
  """
  if name == 'digits':
    return DigitTokenizer(symbols)
  match = re.fullmatch('(left|right)([1-5])(?:-(left|right)([1-5]))?', name)
  if match is None or match[4] not in (None, match[2]):
    raise ValueError(
      "a tokenizer is 'digits', or like 'right3' or 'right3-left3' with sizes"
      f' from 1 to 5, the same twice, got {name!r}'
    )
  start, size, answer_start, _ = match.groups()
  return ChunkTokenizer(symbols, int(size), start, answer_start)  # pyrefly: ignore[bad-argument-type]


def runs(inside: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Where the run of true entries around each true entry begins and ends.

  Args:
    inside: bool[batch, length].

  Returns:
    The places of the first and of the last entry of the run, i32[batch,
    length]; entries that are false have no meaning.

  Examples:
    >>> import jax.numpy as jnp
    >>> first, last = runs(jnp.asarray([[False, True, True, False, True]]))
    >>> first[0, 1:3].tolist(), last[0, 1:3].tolist(), int(last[0, 4])
    ([1, 1], [2, 2], 4)
  """
  length = inside.shape[-1]
  place = column(inside)
  edge = jnp.pad(inside, [(0, 0), (1, 1)])
  first = jnp.where(inside & ~edge[:, :-2], place, 0)
  last = jnp.where(inside & ~edge[:, 2:], place, length)
  return (
    jax.lax.cummax(first, axis=1),
    jax.lax.cummin(last, axis=1, reverse=True),
  )


def compact(
  values: jax.Array,
  keep: jax.Array,
  sizes: jax.Array,
  length: int,
  *,
  fill: int = 0,
) -> jax.Array:
  """Moves the kept entries of each row together, to the left.

  Args:
    values: [batch, width].
    keep: bool[batch, width], which entries are kept.
    sizes: i32[batch, width], how many places each entry takes, of which it
      fills the last: 0 for those that are not kept.
    length: The width of the result; what does not fit is dropped.
    fill: What free places hold.

  Returns:
    An array [batch, length].
  """
  target = jnp.cumsum(sizes, axis=-1, dtype=jnp.int32) - 1
  target = jnp.where(keep, target, length)
  row = jnp.arange(keep.shape[0])[:, None]
  free = jnp.full((keep.shape[0], length), fill, values.dtype)
  return free.at[row, target].set(values, mode='drop')


def _is_number(text: str) -> bool:
  return all(character in _DIGITS for character in text)


def _chunks(text: str, size: int, start: End) -> list[str]:
  """Cuts numbers into chunks, and everything else into characters."""
  tokens = []
  for run in re.findall('[0-9]+|[^0-9]', text):
    head = len(run) % size if start == 'right' else 0
    tokens += [run[:head]] if head else []
    tokens += [run[i : i + size] for i in range(head, len(run), size)]
  return tokens
