"""All merging methods: the one table that the cross-cutting tests run over.

A module of `cases` holds the rows of a family and their oracles.
"""

import importlib
import pkgutil

from tests.merging import cases
from tests.merging.case import Merge

MERGES: tuple[Merge, ...] = tuple(
  case
  for module in sorted(pkgutil.iter_modules(cases.__path__))
  for case in importlib.import_module(f'{cases.__name__}.{module.name}').MERGES
)


def named(name: str) -> Merge:
  """Returns the method of this name."""
  [found] = [case for case in MERGES if case.name == name]
  return found
