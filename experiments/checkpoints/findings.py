"""What was looked at in a model, and what came of it."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import Literal

from experiments.checkpoints import scan
from experiments.checkpoints import text
from third_party import problems as problems_lib

State = Literal['passed', 'warned', 'failed', 'not run']


@dataclasses.dataclass(frozen=True)
class Check:
  """One thing that was looked at.

  Attributes:
    name: What.
    scope: On what it was checked, or why it was not.
    problems: What is wrong.
    warnings: What is suspicious.
    ran: Whether there was anything to check.
  """

  name: str
  scope: str
  problems: tuple[problems_lib.Problem, ...] = ()
  warnings: tuple[problems_lib.Problem, ...] = ()
  ran: bool = True

  @property
  def state(self) -> State:
    """The outcome in a word or two."""
    if self.problems:
      return 'failed'
    if self.warnings:
      return 'warned'
    return 'passed' if self.ran else 'not run'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
  """The checks of a model; `str()` of it is a table and all that is wrong.

  Attributes:
    model: Its name.
    checks: In order.
    tensors: What a pass over the values found, by path; empty without one.
    read: Bytes of tensors that were read.
    seconds: How long it took.
  """

  model: str
  checks: tuple[Check, ...]
  tensors: Mapping[str, scan.LeafScan] = dataclasses.field(default_factory=dict)
  read: int = 0
  seconds: float = 0.0

  @property
  def problems(self) -> tuple[problems_lib.Problem, ...]:
    """What is wrong."""
    return tuple(each for check in self.checks for each in check.problems)

  @property
  def warnings(self) -> tuple[problems_lib.Problem, ...]:
    """What is suspicious."""
    return tuple(each for check in self.checks for each in check.warnings)

  @property
  def status(self) -> int:
    """The exit status: 0, or the kind of the first problem."""
    return int(self.problems[0].kind) if self.problems else 0

  def raise_problems(self) -> None:
    """Raises `ProblemError` if anything is wrong."""
    if self.problems:
      raise problems_lib.ProblemError(self.problems)

  def rows(self) -> list[list[str]]:
    """Returns headings, then a row of text for each check."""
    checks = [[each.name, each.state, each.scope] for each in self.checks]
    return [['check', 'outcome', 'on'], *checks]

  def table(self) -> str:
    """Returns the rows as columns of plain text."""
    return text.aligned(self.rows())

  def __str__(self) -> str:
    """The table, then problems and warnings in one line each."""
    lines = [self.table()]
    for title, found in (
      ('error', self.problems),
      ('warning', self.warnings),
    ):
      lines += [f'{title}: {text.clean(str(each))}' for each in found]
    if self.read and self.seconds > 0:
      rate = text.size_of(self.read / self.seconds)
      lines.append(
        f'read {text.size_of(self.read)} in {self.seconds:.3g} s, {rate}/s'
      )
    return '\n'.join(lines)

  def to_dict(self) -> dict[str, Any]:
    """Returns all of it as JSON can say it; what is not finite is `None`."""
    return {
      'model': self.model,
      'status': self.status,
      'checks': [
        {
          'name': check.name,
          'outcome': check.state,
          'on': check.scope,
          'problems': list(map(_plain_problem, check.problems)),
          'warnings': list(map(_plain_problem, check.warnings)),
        }
        for check in self.checks
      ],
      'tensors': {
        path: dict(_plain_leaf(each)) for path, each in self.tensors.items()
      },
      'bytes_read': self.read,
      'seconds': self.seconds,
    }


def check_finite(
  where: tuple[str, ...],
  found: scan.Scan,
  kind: problems_lib.Kind,
  *,
  allowed: bool = False,
) -> Check:
  """Reports values that are NaN or infinite, and tensors not readable.

  Args:
    where: The model, for messages.
    found: Of a pass over it.
    kind: Of the problems.
    allowed: Whether such values are but a warning.

  Returns:
    The check.
  """
  lines = tuple(
    problems_lib.Problem(
      kind,
      (*where, path),
      f'{each.nonfinite} of {each.size} values are NaN or infinite, the first '
      f'at index {each.first_nonfinite}',
    )
    for path, each in found.leaves.items()
    if each.nonfinite
  )
  unread = tuple(each._replace(kind=kind) for each in found.problems)
  count = sum(each.size for each in found.leaves.values())
  return Check(
    'finite',
    f'{text.plural(count, "value")} read',
    problems=unread if allowed else unread + lines,
    warnings=lines if allowed else (),
  )


def _plain_problem(problem: problems_lib.Problem) -> dict[str, Any]:
  return {
    'kind': problem.kind.name.lower(),
    'where': list(problem.where),
    'what': problem.what,
    'remedy': problem.remedy,
  }


def _plain_leaf(leaf: scan.LeafScan) -> Iterator[tuple[str, Any]]:
  for field in dataclasses.fields(leaf):
    value = getattr(leaf, field.name)
    if field.name == 'dtype':
      yield 'dtype', value.name
    elif field.name == 'crc32':
      yield 'crc32', f'{value:08x}'
    elif isinstance(value, float) and not math.isfinite(value):
      yield field.name, None
    elif field.name != 'path':
      yield field.name, value
