"""Choosing leaves by name, with errors that show the names there are."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import re


def suggest(word: str, candidates: Iterable[str]) -> str:
  """Returns `"; did you mean 'x'?"` for the nearest candidate, if one is near.

  Examples:
    >>> suggest('kernal', ['bias', 'kernel'])
    "; did you mean 'kernel'?"
  """
  near = difflib.get_close_matches(word, sorted(set(candidates)), n=1)
  return f'; did you mean {near[0]!r}?' if near else ''


def listing(items: Iterable[str], limit: int = 10) -> str:
  """Returns the items quoted, and how many more there are beyond `limit`.

  Examples:
    >>> listing(['a', 'b', 'c'], limit=2)
    "'a', 'b' and 1 more"
  """
  items = list(items)
  shown = ', '.join(map(repr, items[:limit]))
  hidden = len(items) - limit
  return f'{shown} and {hidden} more' if hidden > 0 else shown


def check_option(
  caller: str, name: str, value: object, options: Iterable[str]
) -> None:
  """Raises `ValueError` unless `value` is one of the options."""
  options = list(options)
  if value not in options:
    hint = suggest(str(value), options)
    raise ValueError(
      f'{caller}: {name} is {value!r}, expected one of {listing(options)}{hint}'
    )


def compile_pattern(caller: str, pattern: str) -> re.Pattern[str]:
  """Compiles a regular expression, naming it if it is not one."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{caller}: {pattern!r} is not a regular expression: {error}'
    ) from error


def predicate(
  caller: str, selector: Callable[[str], bool] | str
) -> Callable[[str], bool]:
  """Returns `path -> bool` for a predicate or a regular expression."""
  if callable(selector):
    return selector
  pattern = compile_pattern(caller, selector)
  return lambda path: pattern.search(path) is not None


def check_found(
  caller: str, selector: Callable[[str], bool] | str, paths: Iterable[str]
) -> None:
  """Raises `ValueError` if an expression, other than `''`, finds no path."""
  paths = list(paths)
  given = isinstance(selector, str) and selector != ''
  if given and not any(map(predicate(caller, selector), paths)):
    raise no_match(caller, selector, paths)


def no_match(
  caller: str, pattern: Callable[[str], bool] | str, paths: Sequence[str]
) -> ValueError:
  """The error for a pattern that no path matches."""
  words = {word for path in paths for word in (path, *path.split('/'))}
  return ValueError(
    f'{caller}: no leaf matches {pattern!r}; the leaves are {listing(paths)}'
    f'{suggest(str(pattern), words)}'
  )


def labeller(
  caller: str, labels: Callable[[str], str] | Mapping[str, str]
) -> Callable[[str], str]:
  """Returns `path -> label` for a function or for a mapping from patterns.

  Where no pattern of the mapping is found, the label is the empty string.
  """
  if callable(labels):
    return labels
  rules = _rules(caller, labels)
  return lambda path: next(
    (labels[name] for name, rule in rules.items() if rule.search(path)), ''
  )


def check_cover(
  caller: str, labels: Mapping[str, str], paths: Sequence[str]
) -> None:
  """Raises `ValueError` for a path without a pattern, or the reverse."""
  unused = dict.fromkeys(labels)
  bare = []
  rules = _rules(caller, labels)
  for path in paths:
    first = next((name for name in rules if rules[name].search(path)), None)
    if first is None:
      bare.append(path)
    else:
      unused.pop(first, None)
  if bare:
    raise ValueError(
      f'{caller}: no pattern of {listing(labels)} matches {listing(bare)}; '
      "a last pattern '.' takes all that is left"
    )
  for pattern in unused:
    before = [name for name in labels if name != pattern]
    if any(rules[pattern].search(path) for path in paths):
      raise ValueError(
        f'{caller}: the leaves that {pattern!r} matches are all taken by '
        f'patterns before it, among {listing(before)}; put it first'
      )
    raise no_match(caller, pattern, paths)


def _rules(caller, labels):
  return {name: compile_pattern(caller, name) for name in labels}
