"""YAML of unknown origin: plain data, with the line that every value is on.

Only the tree of the text is read, by PyYAML; no tag builds an object. Anchors,
aliases and `<<` work. What YAML does silently is refused: two equal keys, of
which the last wins; aliases that multiply; values that look like text and are
not.
"""

import dataclasses

import yaml

from third_party import problems
from third_party import yaml_nodes

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

Node = yaml_nodes.Node


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
  sizes = _Sizes(file)
  sizes.check(root)
  return _node(root, file, '', sizes.shared)


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
    return node.error(
      'a second document begins',
      'write one recipe for a file; of several steps, name the output of one as'
      ' a model of the next',
    )
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
    self.shared: set[int] = set()  # Nodes that aliases stand for.
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
      self.shared.add(id(node))
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


def _node(node: yaml.Node, file: str, path: str, shared: set[int]) -> Node:
  here = dataclasses.replace(
    _of(node, file), path=path, shared=id(node) in shared
  )
  if node.tag not in _PLAIN_TAGS:
    raise here.error(
      f'has the tag {node.tag!r}, and tags are not read', 'write plain values'
    )
  kind = node.tag.removeprefix(_TAG)
  if isinstance(node, yaml.MappingNode):
    value, keys = _mapping(node, here, shared)
    return dataclasses.replace(here, value=value, kind=kind, keys=keys)
  if isinstance(node, yaml.SequenceNode):
    several = [
      _node(child, file, f'{path}[{place}]', shared)
      for place, child in enumerate(node.value)
    ]
    return dataclasses.replace(here, value=several, kind=kind)
  quoted = getattr(node, 'style', None) is not None
  return dataclasses.replace(here, value=node.value, kind=kind, quoted=quoted)


def _mapping(node, here, shared):
  value: dict[str, Node] = {}
  keys: dict[str, int] = {}
  others: list[Node] = []  # Mappings that `<<` names.
  found = problems.Collector()
  for key, child in node.value:
    with found:
      line = key.start_mark.line + 1
      name = _key(key, here)
      if name is None:
        read = _node(child, here.file, here.path, shared)
        others += read.value if isinstance(read.value, list) else [read]
      elif name in keys:
        raise problems.ProblemError(
          [
            here.problem(
              f'the key {name!r} is here again, after line {keys[name]}',
              'keep one of them',
              line=line,
            )
          ]
        )
      else:
        keys[name] = line
        path = f'{here.path}.{name}' if here.path else name
        value[name] = _node(child, here.file, path, shared)
  for other in others:  # The first counts, and before it what is written here.
    with found:
      value = {**other.mapping(of='what `<<` names', nothing=True), **value}
      keys = {**other.keys, **keys}
  found.check()
  return value, keys


def _key(key, here) -> str | None:
  """Returns a key, or `None` for `<<`."""
  if isinstance(key, yaml.ScalarNode) and key.tag == _TAG + 'merge':
    return key.value if key.style is not None else None
  if isinstance(key, yaml.ScalarNode) and key.tag == _TAG + 'str':
    return key.value
  is_text = isinstance(key, yaml.ScalarNode)
  shown = repr(key.value) if is_text else 'a collection'
  raise problems.ProblemError(
    [
      here.problem(
        f'expected a key that is text, got {shown}',
        'put it in quotes',
        line=key.start_mark.line + 1,
      )
    ]
  )
