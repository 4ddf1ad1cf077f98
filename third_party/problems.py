"""What is wrong with a file, a recipe or a set of models, in one line each.

Readers collect problems and raise them together, so that a person repairs all
of them at once. The kind says who has to act, and is the exit status of the
command line.
"""

from collections.abc import Iterable
import enum
from typing import Any
from typing import NamedTuple


class Kind(enum.IntEnum):
  """Kinds of problems; the value is the exit status."""

  CONFIG = 2  # The recipe or a flag.
  INPUT = 3  # A file is not sound.
  INCOMPATIBLE = 4  # Sound inputs that do not fit each other.
  SPACE = 5  # Disk, memory, permissions.
  VERIFY = 6  # The output is not what it should be.


class Problem(NamedTuple):
  """One thing that is wrong.

  Attributes:
    kind: Who has to act.
    where: Model, file, tensor or line, as far as known, outermost first.
    what: What was expected, and what came.
    remedy: What to do about it; may be empty.

  Examples:
    >>> print(Problem(Kind.INPUT, ('math', 'w'), 'is empty', 'fetch it again'))
    math / w: is empty; fetch it again
  """

  kind: Kind
  where: tuple[str, ...]
  what: str
  remedy: str = ''

  def __str__(self) -> str:
    place = ' / '.join(self.where)
    text = f'{place}: {self.what}' if place else self.what
    text = f'{text}; {self.remedy}' if self.remedy else text
    return ' '.join(text.split())


class ProblemError(ValueError):
  """One or more problems, of which the first kind is the exit status.

  Examples:
    >>> error = ProblemError([Problem(Kind.SPACE, (), 'the disk is full')])
    >>> error.status, str(error)
    (5, 'the disk is full')
  """

  def __init__(self, problems: Iterable[Problem]):
    """Takes at least one problem."""
    self.problems = tuple(problems)
    super().__init__('\n'.join(map(str, self.problems)))

  @property
  def status(self) -> int:
    """The exit status: that of the first problem."""
    return int(self.problems[0].kind)


def refuse(kind: Kind, where: Iterable[str], what: str, remedy: str = ''):
  """Returns the error for a single problem, to be raised."""
  return ProblemError([Problem(kind, tuple(where), what, remedy)])


class Collector:
  """Gathers problems of several parts, to be told together.

  Examples:
    >>> found = Collector()
    >>> for name in ('math', 'code'):
    ...   with found:
    ...     raise refuse(Kind.INPUT, (name,), 'is empty')
    >>> [str(each) for each in found.problems]
    ['math: is empty', 'code: is empty']
  """

  def __init__(self):
    """Begins with none."""
    self.problems: list[Problem] = []

  def __enter__(self) -> 'Collector':
    """Returns itself."""
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
    """Keeps the problems of a `ProblemError`, which ends here."""
    if isinstance(error, ProblemError):
      self.problems.extend(error.problems)
      return True
    return False

  def check(self) -> None:
    """Raises what was found, if anything was.

    Raises:
      ProblemError: With everything.
    """
    if self.problems:
      raise ProblemError(self.problems)
