"""Reads the fields of a config, and keeps all that is wrong with them."""

from collections.abc import Iterable
from collections.abc import Mapping
import difflib
from typing import Any

from third_party import problems

# A config comes from strangers, and these numbers cost time and memory.
MOST_LAYERS = 10_000
MOST_CHANNELS = 2**20
_MOST = 2**31 - 1
# Within these, no formula here leaves the range of floating-point numbers.
_SMALLEST, _GREATEST = 1e-30, 1e30


class Fields:
  """Fields of a config by name, with the defaults that its family has.

  A field that is absent or null has its default. One of the wrong type, or of
  a value that is not supported, is a problem; reading goes on with the default,
  so that all problems are found.

  Attributes:
    problems: What is wrong, so far.

  Examples:
    >>> fields = Fields({'layers': 2.5, 'act': 'gelu'})
    >>> fields.integer('layers', 12), fields.choice('act', 'relu', ['gelu'])
    (12, 'gelu')
    >>> print(*fields.problems)
    config.json / layers: expected a whole number from 1 on, got 2.5; ...
  """

  def __init__(
    self, config: Mapping[str, Any], where: tuple[str, ...] = ('config.json',)
  ):
    """Takes a config and what to call it."""
    self._config = config
    self._where = where
    self.problems: list[problems.Problem] = []

  def has(self, name: str) -> bool:
    """Says whether a field is there, be it null."""
    return name in self._config

  def get(self, name: str, default: Any = None) -> Any:
    """Returns a field as it is."""
    value = self._config.get(name)
    return default if value is None else value

  def integer(
    self, name: str, default: int, *, least: int = 1, most: int = _MOST
  ) -> int:
    """Returns a whole number."""
    value = self.get(name, default)
    if type(value) is int and least <= value <= most:
      return value
    span = f'from {least} on' if most == _MOST else f'from {least} to {most}'
    return self._wrong(name, f'a whole number {span}', value, default)

  def number(self, name: str, default: float) -> float:
    """Returns a number above zero, neither tiny nor huge."""
    value = self.get(name, default)
    if type(value) in (int, float) and _SMALLEST < value < _GREATEST:
      return float(value)
    return self._wrong(name, 'a number from 1e-30 to 1e30', value, default)

  def flag(self, name: str, default: bool) -> bool:
    """Returns true or false."""
    value = self.get(name, default)
    if isinstance(value, bool):
      return value
    return self._wrong(name, 'true or false', value, default)

  def section(self, name: str) -> 'Fields':
    """Returns the fields of a field; its problems are kept here."""
    value = self.get(name, {})
    if not isinstance(value, Mapping):
      value = self._wrong(name, 'a mapping', value, {})
    inner = Fields(value, (*self._where, name))
    inner.problems = self.problems
    return inner

  def choice(self, name: str, default: str, known: Iterable[str]) -> str:
    """Returns one of the known words."""
    value, known = self.get(name, default), list(known)
    if isinstance(value, str) and value in known:
      return value
    near = difflib.get_close_matches(str(value), known, 1)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    self.refuse(name, value, f'{hint}it can be {", ".join(known)}')
    return default

  def only(self, name: str, value: Any, remedy: str) -> None:
    """Refuses a field that is there and has another value."""
    if self.get(name, value) != value:
      self.refuse(name, self.get(name), remedy)

  def refuse(self, name: str, value: Any, remedy: str) -> None:
    """Keeps that a value of a field is not supported."""
    self._keep(
      problems.Kind.INCOMPATIBLE, name, f'{value!r} is not supported', remedy
    )

  def invalid(self, name: str, what: str, remedy: str = '') -> None:
    """Keeps that a field makes no sense."""
    self._keep(problems.Kind.INPUT, name, what, remedy)

  def _wrong(self, name, expected, value, default):
    what = f'expected {expected}, got {value!r}'
    self.invalid(name, what, 'correct the file, or fetch it again')
    return default

  def _keep(self, kind, name, what, remedy):
    place = (*self._where, name)
    self.problems.append(problems.Problem(kind, place, what, remedy))
