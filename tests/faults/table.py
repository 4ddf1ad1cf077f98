"""Rows of the table of faults: what is broken, and what a person is told."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from tests.faults import workspace


class Fault(NamedTuple):
  """One way to break a merge.

  Attributes:
    name: Its number in the list of faults, and what is broken.
    inject: Breaks a workspace that is sound; may return a check of what was
      merged, where that is the right outcome.
    status: The exit status.
    says: Parts of one line of what is told, an error or, for status 0, a note.
    count: How many lines are told.
  """

  name: str
  inject: Callable[[workspace.Workspace], Any]
  status: int
  says: tuple[str, ...]
  count: int


class Table:
  """Gathers rows from the functions below its decorator."""

  def __init__(self):
    """Begins with none."""
    self.faults: list[Fault] = []

  def row(self, name: str, status: int, *says: str, count: int = 1):
    """Returns a decorator for the function that breaks a workspace."""

    def keep(inject):
      self.faults.append(Fault(name, inject, status, says, count))
      return inject

    return keep

  def named(self, name: str) -> Fault:
    """Returns the row of a name."""
    return next(fault for fault in self.faults if fault.name == name)
