"""A value of a YAML text and where it stands, read as what it should be.

YAML takes values that look like text for something else, and other tools take
what they do not expect in silence; here each reading is asked for by name, and
what does not fit is a problem with its line.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

from merging import patterns
from third_party import problems

_NUMBER = re.compile(
  r'[-+]?(0|[1-9][0-9]*|(?=\.[0-9]))(\.[0-9]*)?([eE][-+]?[0-9]+)?'
)
_INTEGER = re.compile(r'[-+]?(0|[1-9][0-9]{0,17})')
_BOOLEANS = {
  **dict.fromkeys(('true', 'yes', 'on', '1', '1.0'), True),
  **dict.fromkeys(('false', 'no', 'off', '0', '0.0'), False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
  """A value of a YAML text, and where it stands.

  Attributes:
    value: A mapping or a list of nodes, the text of a scalar as it was written,
      or `None` for nothing.
    file: Name of the file, for messages.
    line: Line it begins on, from 1.
    column: Column it begins in, from 1.
    path: Keys and places that lead to it, such as `models[0].model`.
    kind: The name of its YAML tag: `map`, `seq`, `str`, `int`, `float`, `bool`,
      `null` and so on.
    quoted: Whether it is a scalar in quotes, or a block of text.
    keys: By key of a mapping, the line that it is on.
    shared: Whether an alias stands for it elsewhere.
  """

  value: dict[str, 'Node'] | list['Node'] | str | None
  file: str = ''
  line: int = 1
  column: int = 1
  path: str = ''
  kind: str = 'str'
  quoted: bool = False
  keys: Mapping[str, int] = dataclasses.field(default_factory=dict)
  shared: bool = False

  @property
  def where(self) -> tuple[str, ...]:
    """File, line and path, as problems name them."""
    place = f'{self.file}:{self.line}'
    return (place, self.path) if self.path else (place,)

  def problem(
    self, what: str, remedy: str = '', *, line: int | None = None
  ) -> problems.Problem:
    """Returns a problem of the recipe that is here.

    Examples:
      >>> print(Node('x', 'r.yml', 3, path='dtype').problem('is unknown'))
      r.yml:3 / dtype: is unknown
    """
    here = self if line is None else dataclasses.replace(self, line=line)
    return problems.Problem(problems.Kind.CONFIG, here.where, what, remedy)

  def error(self, what: str, remedy: str = '') -> problems.ProblemError:
    """Returns the error for a single problem here, to be raised."""
    return problems.ProblemError([self.problem(what, remedy)])

  @property
  def is_repeated(self) -> bool:
    """Whether an alias stands for it, or for a part of it, elsewhere."""
    parts = self.value.values() if isinstance(self.value, dict) else self.value
    inner = parts if isinstance(parts, Iterable) else ()
    return self.shared or any(
      part.is_repeated for part in inner if isinstance(part, Node)
    )

  @property
  def is_null(self) -> bool:
    """Whether nothing stands here."""
    return self.kind == 'null' and not self.quoted

  @property
  def shown(self) -> str:
    """The value as a message shows it."""
    if isinstance(self.value, dict):
      return 'a mapping'
    if isinstance(self.value, list):
      return 'a list'
    if self.is_null:
      return 'nothing'
    text = str(self.value)
    return repr(text if len(text) <= 60 else text[:57] + '...')

  def plain(self) -> Any:
    """Returns dicts, lists and scalars as YAML 1.1 reads them.

    Examples:
      >>> from third_party import strict_yaml
      >>> strict_yaml.load('a: [1, 0.5, x, yes]').plain()
      {'a': [1, 0.5, 'x', True]}
    """
    if isinstance(self.value, dict):
      return {key: node.plain() for key, node in self.value.items()}
    if isinstance(self.value, list):
      return [node.plain() for node in self.value]
    if self.is_null:
      return None
    if self.kind == 'bool':
      return self.boolean()
    if self.kind == 'int' and _INTEGER.fullmatch(str(self.value)):
      return self.integer()
    return self.number() if self.kind == 'float' else self.value

  def mapping(
    self,
    known: Iterable[str] | None = None,
    *,
    of: str = '',
    hints: Mapping[str, str] | None = None,
    definitions: bool = False,
    nothing: bool = False,
  ) -> dict[str, 'Node']:
    """Returns the values of a mapping.

    Args:
      known: The keys that there may be; any by default.
      of: What the keys are of, for messages.
      hints: By key that there may not be, what to do about it.
      definitions: Whether there may be others, for what aliases stand for.
      nothing: Whether keys without a value are there, too.

    Raises:
      problems.ProblemError: It is none, or has keys that are not known: one
        problem for each.
    """
    if not isinstance(self.value, dict):
      raise self.error(
        f'expected {of or "a mapping"} as lines of `key: value`, got '
        f'{self.shown}'
      )
    known = list(self.value if known is None else known)
    unknown = [
      key
      for key, node in self.value.items()
      if key not in known and not (definitions and node.is_repeated)
    ]
    if unknown:
      listed = patterns.listing(known, 20) or 'none'
      usual = f'keys{" of " + of if of else ""} are {listed}'
      raise problems.ProblemError(
        self.problem(
          f'unknown key {key!r}{patterns.suggest(key, known)}',
          (hints or {}).get(key, usual),
          line=self.keys[key],
        )
        for key in unknown
      )
    return {
      key: node
      for key, node in self.value.items()
      if key in known and (nothing or not node.is_null)
    }

  def items(self, of: str = '') -> list['Node']:
    """Returns the values of a list that has some; `of` is for messages."""
    if not isinstance(self.value, list):
      raise self.error(
        f'expected {of or "a list"}, each after a dash, got {self.shown}'
      )
    if not self.value:
      raise self.error(f'expected {of or "a list"}, got an empty list')
    return self.value

  def string(self) -> str:
    """Returns text; what YAML 1.1 takes for something else needs quotes.

    Examples:
      >>> from third_party import strict_yaml
      >>> strict_yaml.load('no').string()
      Traceback (most recent call last):
        ...
      third_party.problems.ProblemError: :1: expected text, and YAML reads 'no'
        as a truth value; put it in quotes
    """
    if not isinstance(self.value, str) or self.is_null:
      raise self.error(f'expected text, got {self.shown}')
    names = {'bool': 'a truth value', 'int': 'a number', 'float': 'a number'}
    if self.kind in names and not self.quoted:
      raise self.error(
        f'expected text, and YAML reads {self.shown} as {names[self.kind]}',
        'put it in quotes',
      )
    if not self.value:
      raise self.error('expected text, got an empty text')
    return self.value

  def choice(self, options: Iterable[str], of: str = 'a value') -> str:
    """Returns text that is one of the options."""
    options = list(options)
    value = self.string()
    if value not in options:
      raise self.error(
        f'unknown {of} {self.shown}{patterns.suggest(value, options)}',
        f'expected one of {patterns.listing(options, 40)}',
      )
    return value

  def number(
    self, least: float | None = None, most: float | None = None, hint: str = ''
  ) -> float:
    """Returns a finite number, also in forms that YAML 1.1 takes for text.

    Args:
      least: Smallest that is allowed.
      most: Largest that is allowed.
      hint: What to do about a number beyond them.

    Examples:
      >>> from third_party import strict_yaml
      >>> strict_yaml.load('1e-3').number()
      0.001
    """
    text = self.value if isinstance(self.value, str) else ''
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if text.lower().lstrip('+-') in ('.nan', '.inf', 'nan', 'inf'):
      raise self.error(f'expected a finite number, got {self.shown}')
    if math.isnan(value) or math.isinf(value):
      raise self.error(
        f'expected a number, got {self.shown}',
        'write it in decimal digits, such as 0.5 or 1e-3',
      )
    below = least is not None and value < least
    if below or (most is not None and value > most):
      if most is None:
        wanted = f'{least:g} or more'
      else:
        wanted = f'a number from {least:g} to {most:g}'
      raise self.error(f'expected {wanted}, got {text}', hint)
    return value

  def integer(self, least: int | None = None) -> int:
    """Returns an integer, of at least some size."""
    text = self.value if isinstance(self.value, str) else ''
    if not _INTEGER.fullmatch(text):
      raise self.error(f'expected an integer, got {self.shown}')
    if least is not None and int(text) < least:
      raise self.error(f'expected {least} or more, got {text}')
    return int(text)

  def boolean(self) -> bool:
    """Returns a truth value, in words of YAML 1.1 or as 0 or 1."""
    text = self.value.lower() if isinstance(self.value, str) else ''
    if text not in _BOOLEANS:
      raise self.error(f'expected true or false, got {self.shown}')
    return _BOOLEANS[text]
