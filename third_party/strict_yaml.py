"""YAML of unknown origin: plain data, with the line that every value is on.

Only the tree of the text is read, by PyYAML; no tag builds an object. What
YAML does silently is refused: two equal keys, of which the last wins; aliases
that multiply; values that look like text and are not.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import Any

import yaml

from merging import patterns
from third_party import problems

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_NODES = 100_000  # Once every alias is replaced by what it stands for.

_TAG = 'tag:yaml.org,2002:'
_PLAIN_TAGS = frozenset(
  _TAG + name
  for name in (
    *('map', 'seq', 'str', 'int', 'float', 'bool', 'null'),
    *('merge', 'timestamp', 'value'),
  )
)
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
  """

  value: dict[str, 'Node'] | list['Node'] | str | None
  file: str = ''
  line: int = 1
  column: int = 1
  path: str = ''
  kind: str = 'str'
  quoted: bool = False
  keys: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def problem(
    self, what: str, remedy: str = '', *, line: int | None = None
  ) -> problems.Problem:
    """Returns a problem of the recipe that is here.

    Examples:
      >>> print(Node('x', 'r.yml', 3, path='dtype').problem('is unknown'))
      r.yml:3 / dtype: is unknown
    """
    place = f'{self.file}:{line or self.line}'
    where = (place, self.path) if self.path else (place,)
    return problems.Problem(problems.Kind.CONFIG, where, what, remedy)

  def error(self, what: str, remedy: str = '') -> problems.ProblemError:
    """Returns the error for a single problem here, to be raised."""
    return problems.ProblemError([self.problem(what, remedy)])

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
      >>> load('a: [1, 0.5, x, yes]').plain()
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
    nothing: bool = False,
  ) -> dict[str, 'Node']:
    """Returns the values of a mapping.

    Args:
      known: The keys that there may be; any by default.
      of: What the keys are of, for messages.
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
    unknown = [key for key in self.value if key not in known]
    if unknown:
      raise problems.ProblemError(
        self.problem(
          f'unknown key {key!r}{patterns.suggest(key, known)}',
          f'keys{" of " + of if of else ""} are {patterns.listing(known, 20)}',
          line=self.keys[key],
        )
        for key in unknown
      )
    return {
      key: node
      for key, node in self.value.items()
      if nothing or not node.is_null
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
      >>> load('no').string()
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
      >>> load('1e-3').number()
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


class Collector:
  """Gathers problems of several parts, to be told together.

  Examples:
    >>> found = Collector()
    >>> with found:
    ...   _ = load('x', file='r.yml').number()
    >>> with found:
    ...   _ = load('[]', file='r.yml').string()
    >>> [each.what for each in found.problems]
    ["expected a number, got 'x'", 'expected text, got a list']
  """

  def __init__(self):
    """Begins with none."""
    self.problems: list[problems.Problem] = []

  def __enter__(self) -> 'Collector':
    """Returns itself."""
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
    """Keeps the problems of a `ProblemError`, which ends here."""
    if isinstance(error, problems.ProblemError):
      self.problems.extend(error.problems)
      return True
    return False

  def check(self) -> None:
    """Raises what was found, if anything was.

    Raises:
      problems.ProblemError: With everything.
    """
    if self.problems:
      raise problems.ProblemError(self.problems)


def load(text: str | bytes, *, file: str = '') -> Node:
  """Reads one YAML document without building any object.

  Args:
    text: The document, of at most a megabyte; bytes are UTF-8.
    file: Its name, for messages.

  Returns:
    The root.

  Raises:
    problems.ProblemError: It is no YAML, or too large, too deep, has equal
      keys, tags, keys that are not text, several documents, or aliases that
      stand for more than `MAX_NODES` values.

  Examples:
    >>> root = load('merge_method: ties', file='recipe.yml')
    >>> root.mapping()['merge_method'].string()
    'ties'
  """
  top = Node(None, file)
  size = len(text.encode() if isinstance(text, str) else text)
  if size > MAX_BYTES:
    raise top.error(
      f'is {size:,} bytes long, expected at most {MAX_BYTES:,}',
      'this is no recipe',
    )
  if isinstance(text, bytes):
    try:
      text = text.decode('utf-8-sig')
    except UnicodeDecodeError as error:
      line = text[: error.start].count(b'\n') + 1
      raise Node(None, file, line).error('is not UTF-8') from None
  loader = None
  try:
    loader = _Loader(text.removeprefix('\ufeff'))
    root = loader.get_single_node()
  except yaml.MarkedYAMLError as error:
    raise _at(error, file) from None
  except yaml.YAMLError as error:
    raise top.error(f'is not YAML: {error}') from None
  finally:
    if loader is not None:
      loader.dispose()
  if root is None:
    raise top.error('is empty', 'a recipe begins with merge_method: NAME')
  _Sizes(file).check(root)
  return _node(root, file, '')


class _TooDeep(yaml.MarkedYAMLError):
  pass


class _Loader(yaml.SafeLoader):
  """Composes nodes, and stops at a depth."""

  _depth = 0

  def compose_node(self, parent, index):
    self._depth += 1
    if self._depth > MAX_DEPTH:
      raise _TooDeep(
        problem=f'is nested more than {MAX_DEPTH} deep',
        problem_mark=self.peek_event().start_mark,
      )
    node = super().compose_node(parent, index)
    self._depth -= 1
    return node


def _at(error: yaml.MarkedYAMLError, file: str) -> problems.ProblemError:
  mark = error.problem_mark or error.context_mark
  node = Node(None, file, mark.line + 1 if mark else 1)
  told = error.problem or error.context or 'is not YAML'
  if 'expected a single document' in f'{error.context} {error.problem}':
    return node.error('a second document begins', 'write one recipe for a file')
  if isinstance(error, _TooDeep):
    return node.error(told)
  if '\\t' in told:
    return node.error('a tab indents', 'YAML indents by spaces')
  return node.error(f'is not YAML: {told}')


def _of(node: yaml.Node, file: str) -> Node:
  mark = node.start_mark
  return Node(None, file, mark.line + 1, mark.column + 1)


class _Sizes:
  """Counts what a tree is once aliases are replaced, each node once."""

  def __init__(self, file):
    self._file = file
    self._sizes: dict[int, int | None] = {}  # `None` while it is counted.

  def check(self, root: yaml.Node) -> None:
    if self._count(root, 1) > MAX_NODES:
      raise _of(root, self._file).error(
        f'has more than {MAX_NODES:,} values, once every alias is replaced',
        'this is no recipe',
      )

  def _count(self, node, depth):
    known = self._sizes.get(id(node), 0)
    if known is None:
      raise _of(node, self._file).error('an alias is a part of itself')
    if depth > 2 * MAX_DEPTH:
      raise _of(node, self._file).error('aliases nest too deep')
    if known:
      return known
    self._sizes[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
      for pair in node.value:
        size += sum(self._count(child, depth + 1) for child in pair)
    elif isinstance(node, yaml.SequenceNode):
      size += sum(self._count(child, depth + 1) for child in node.value)
    self._sizes[id(node)] = size
    return size


def _node(node: yaml.Node, file: str, path: str) -> Node:
  here = dataclasses.replace(_of(node, file), path=path)
  if node.tag not in _PLAIN_TAGS:
    raise here.error(
      f'has the tag {node.tag!r}, and tags are not read', 'write plain values'
    )
  kind = node.tag.removeprefix(_TAG)
  if isinstance(node, yaml.MappingNode):
    value, keys = _mapping(node, here)
    return dataclasses.replace(here, value=value, kind=kind, keys=keys)
  if isinstance(node, yaml.SequenceNode):
    several = [
      _node(child, file, f'{path}[{place}]')
      for place, child in enumerate(node.value)
    ]
    return dataclasses.replace(here, value=several, kind=kind)
  quoted = getattr(node, 'style', None) is not None
  return dataclasses.replace(here, value=node.value, kind=kind, quoted=quoted)


def _mapping(node, here):
  value: dict[str, Node] = {}
  keys: dict[str, int] = {}
  found = Collector()
  for key, child in node.value:
    with found:
      line = key.start_mark.line + 1
      if not isinstance(key, yaml.ScalarNode) or key.tag not in (
        _TAG + 'str',
        _TAG + 'merge',
      ):
        raise problems.ProblemError(
          [
            here.problem(
              f'expected a key that is text, got {_shown(key)}',
              'put it in quotes',
              line=line,
            )
          ]
        )
      name = key.value
      if key.tag == _TAG + 'merge' and key.style is None:
        raise problems.ProblemError(
          [here.problem('`<<` is not read', 'write the keys out', line=line)]
        )
      if name in keys:
        raise problems.ProblemError(
          [
            here.problem(
              f'the key {name!r} is here again, after line {keys[name]}',
              'keep one of them',
              line=line,
            )
          ]
        )
      keys[name] = line
      path = f'{here.path}.{name}' if here.path else name
      value[name] = _node(child, here.file, path)
  found.check()
  return value, keys


def _shown(key):
  return repr(key.value) if isinstance(key, yaml.ScalarNode) else 'a collection'
