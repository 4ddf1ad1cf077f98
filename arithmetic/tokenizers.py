"""From characters to token ids."""

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses

PAD = ' '
SEPARATOR = ','
EQUALS = '='
END = '$'
_DIGITS = '0123456789'


@dataclasses.dataclass(frozen=True)
class DigitTokenizer:
  """One token a digit, one a mark, one a task symbol.

  Token 0 is padding and tokens 1 to 10 are the digits 0 to 9, so that the
  token of a digit is the digit plus one, also on the device.

  Attributes:
    symbols: The task symbols, each one character, all different.

  Raises:
    ValueError: If a symbol is longer than a character or is already taken.

  Examples:
    >>> tokenizer = DigitTokenizer('+-')
    >>> tokenizer.encode('+12,7=')
    [14, 2, 3, 11, 8, 12]
    >>> tokenizer.decode([3, 10, 13, 0])
    '29$ '
  """

  symbols: str

  def __post_init__(self):
    taken: set[str] = set(PAD + _DIGITS + SEPARATOR + EQUALS + END)
    for symbol in self.symbols:
      if symbol in taken:
        raise ValueError(f'the symbol {symbol!r} stands for two things')
      taken.add(symbol)

  @property
  def characters(self) -> str:
    """Every character, in the order of token ids."""
    return PAD + _DIGITS + SEPARATOR + EQUALS + END + self.symbols

  @property
  def vocabulary_size(self) -> int:
    """How many tokens there are."""
    return len(self.characters)

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; ValueError names a character without a token."""
    ids = []
    for character in text:
      index = self.characters.find(character)
      if index < 0:
        raise ValueError(
          f'no token for {character!r} in {text!r}; the vocabulary is'
          f' {self.characters!r}'
        )
      ids.append(index)
    return ids

  def decode(self, ids: Sequence[int] | Iterable[int]) -> str:
    """The text of token ids."""
    return ''.join(self.characters[int(i)] for i in ids)
