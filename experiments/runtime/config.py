"""Settings: frozen dataclasses, changed on the command line by path.

A configuration is a tree of frozen keyword-only dataclasses whose leaves are
numbers, booleans, strings, `None`, `Literal` choices and tuples of them.
Ranges are checked by each dataclass itself, in `__post_init__`, with a
`ValueError` that begins with the field's name.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import json
import math
import types
import typing
from typing import Any
from typing import TypeVar

from experiments.runtime import errors

C = TypeVar('C')
T = TypeVar('T')


def choose(kind: str, name: str, options: Mapping[str, T]) -> T:
  """Looks a name up.

  Args:
    kind: What is looked up, for the message: `'table'`, `'preset'`.
    name: What the person typed.
    options: What exists.

  Returns:
    `options[name]`.

  Raises:
    UsageError: If there is no such name; suggests one.

  Examples:
    >>> choose('preset', 'cpu', {'smoke': 1, 'cpu': 2})
    2
    >>> choose('preset', 'cup', {'smoke': 1, 'cpu': 2})
    Traceback (most recent call last):
    ...
    experiments.runtime.errors.UsageError: no preset 'cup'; did you mean 'cpu'?
  """
  if name not in options:
    raise errors.UsageError(
      f'no {kind} {name!r}; {errors.suggest(name, options)}'
    )
  return options[name]


def matching(
  kind: str, options: Mapping[str, T], patterns: Sequence[str], always: str
) -> list[T]:
  """Picks what patterns name, in the order of the options.

  Args:
    kind: What is picked, for the message: `'row'`, of the setting `rows`.
    options: What exists.
    patterns: Names, with `*` for anything; all are picked if there are none.
    always: What is picked whatever they say.

  Raises:
    ValueError: If a pattern matches nothing.

  Examples:
    >>> rows = {'plain': 0, 'fp8/a': 1, 'fp8/b': 2, 'fp4': 3}
    >>> matching('row', rows, ['fp8/*'], 'plain')
    [0, 1, 2]
    >>> matching('row', rows, ['fp5'], 'plain')
    Traceback (most recent call last):
    ...
    ValueError: rows: no row 'fp5'; did you mean 'fp4'?
  """
  for pattern in patterns:
    if not fnmatch.filter(options, pattern):
      raise ValueError(
        f'{kind}s: no {kind} {pattern!r}; {errors.suggest(pattern, options)}'
      )
  return [
    option
    for name, option in options.items()
    if not patterns
    or name == always
    or any(fnmatch.fnmatchcase(name, each) for each in patterns)
  ]


def overlay(config: C, assignments: Iterable[str]) -> C:
  """Returns a configuration with some fields set.

  Args:
    config: A frozen dataclass, possibly nested.
    assignments: `path=value` each. A tuple is written `1,2,3` or `(1,2,3)`, an
      empty one `()`, no value `none`, an empty string `''`.

  Returns:
    A configuration of the same class. All assignments to one dataclass take
    effect together, so a check across fields sees the final values.

  Raises:
    UsageError: For an unknown or doubled path, a value of another type, or a
      value that the dataclass refuses.

  Examples:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Optimizer:
    ...   rate: float = 1e-2
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Training:
    ...   steps: int = 100
    ...   optimizer: Optimizer = Optimizer()
    >>> overlay(Training(), ['steps=5', 'optimizer.rate=1e-3'])
    Training(steps=5, optimizer=Optimizer(rate=0.001))
    >>> overlay(Training(), ['optimizer.rat=1'])
    Traceback (most recent call last):
    ...
    experiments.runtime.errors.UsageError: no setting 'optimizer.rat';
        did you mean 'optimizer.rate'?
  """
  changes: dict[str, str] = {}
  for assignment in assignments:
    path, equals, text = assignment.partition('=')
    path = path.strip()
    if not equals or not path or not text.strip():
      raise errors.UsageError(
        f'expected path=value, such as steps=100; got {assignment!r}'
      )
    if path in changes:
      raise errors.UsageError(
        f'{path} is set twice: {changes[path]!r} and {text.strip()!r}'
      )
    changes[path] = text.strip()
  data = to_dict(config)
  for path, text in changes.items():
    _assign(type(config), data, path, path.split('.'), text)
  return from_dict(type(config), data)


def canonical(config: C) -> C:
  """Returns a configuration as JSON would give it back.

  Ints where the settings say floats would make another run of the same one.

  Examples:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Training:
    ...   rate: float = 1e-3
    >>> canonical(Training(rate=1))
    Training(rate=1.0)
  """
  return from_dict(type(config), to_dict(config))


def to_dict(config: Any) -> Any:
  """Turns a configuration into what JSON can hold; tuples become lists.

  Examples:
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Training:
    ...   lengths: tuple[int, ...] = (4, 8)
    >>> to_dict(Training())
    {'lengths': [4, 8]}
  """
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    return {
      field.name: to_dict(getattr(config, field.name))
      for field in dataclasses.fields(config)
      if field.init
    }
  if isinstance(config, Mapping):
    return {str(key): to_dict(value) for key, value in config.items()}
  if isinstance(config, (tuple, list)):
    return [to_dict(value) for value in config]
  if config is None or isinstance(config, (bool, int, float, str)):
    return config
  raise TypeError(f'a setting cannot be a {type(config).__name__}: {config!r}')


def from_dict(kind: type[C], data: Mapping[str, Any]) -> C:
  """Builds a configuration from what `to_dict` gave.

  Args:
    kind: The dataclass.
    data: Field values; those left out keep their default.

  Returns:
    An instance of `kind`.

  Raises:
    UsageError: For an unknown or missing field, or a value of another type.
  """
  return _build(kind, data, '')


def differences(a: Any, b: Any) -> list[str]:
  """Lists where two configurations differ, as `path: x != y`.

  Args:
    a: A configuration, or what `to_dict` gave.
    b: Another one.

  Returns:
    One entry per path, sorted; empty if the two agree.

  Examples:
    >>> differences({'steps': 5, 'seed': 0}, {'steps': 7, 'seed': 0})
    ['steps: 5 != 7']
    >>> differences({'optimizer': {'rate': 1.0}}, {})
    ['optimizer.rate: 1.0 != (absent)']
  """
  left, right = _leaves(to_dict(a)), _leaves(to_dict(b))
  return [
    f'{path}: {left.get(path, "(absent)")} != {right.get(path, "(absent)")}'
    for path in sorted({*left, *right})
    if left.get(path) != right.get(path)
  ]


def _leaves(data: Any, path: str = '') -> dict[str, str]:
  """Maps each path to the JSON text of what is there."""
  if isinstance(data, dict) and data:
    leaves: dict[str, str] = {}
    for key, value in data.items():
      leaves |= _leaves(value, f'{path}.{key}' if path else key)
    return leaves
  return {path: json.dumps(data)} if path else {}


def _assign(
  hint: Any, data: dict[str, Any], path: str, names: Sequence[str], text: str
) -> None:
  """Puts `text`, read as the field's type, where `names` lead in `data`."""
  prefix = path.removesuffix('.'.join(names))
  kind = _dataclass(hint)
  hints = typing.get_type_hints(kind)
  name, *rest = names
  if name not in data:
    options = [prefix + option for option in data]
    raise errors.UsageError(
      f'no setting {prefix + name!r}; {errors.suggest(prefix + name, options)}'
    )
  if rest:
    if not isinstance(data[name], dict):
      value = 'none' if data[name] is None else json.dumps(data[name])
      raise errors.UsageError(
        f'no setting {path!r}; {prefix}{name} is {value}, not a group'
      )
    _assign(hints[name], data[name], path, rest, text)
    return
  if isinstance(data[name], dict) and text.lower() != 'none':
    options = ', '.join(f'{path}.{field}' for field in data[name])
    raise errors.UsageError(f'{path} is a group of settings: {options}')
  data[name] = to_dict(_parse(hints[name], text, path))


def _dataclass(hint: Any) -> Any:
  """The dataclass in a field's type, which may also allow `None`."""
  for member in (hint, *typing.get_args(hint)):
    if dataclasses.is_dataclass(member):
      return member
  raise TypeError(f'{hint} is no dataclass')


def _parse(hint: Any, text: str, path: str) -> Any:
  """Reads `text` as the type that the field declares."""
  try:
    return _read(hint, text)
  except ValueError as error:
    detail = f' ({error})' if error.args else ''
    raise errors.UsageError(
      f'{path} should be {_describe(hint)}; got {text!r}{detail}'
    ) from None


def _read(hint: Any, text: str) -> Any:
  """Reads `text`, or raises a `ValueError`, with a hint or without."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if hint is type(None):
    if text.lower() != 'none':
      raise ValueError
    return None
  if hint is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError
    return text.lower() == 'true'
  if hint is int:
    return _number(int, text)
  if hint is float:
    value = _number(float, text)
    if not math.isfinite(value):
      raise ValueError('a finite number')
    return value
  if hint is str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
    return text[1:-1] if quoted else text
  if origin is typing.Literal:
    options = {str(option): option for option in arguments}
    if text not in options:
      raise ValueError(errors.suggest(text, options))
    return options[text]
  if origin in (typing.Union, types.UnionType):
    # `None` first, so that `none` is never read as a string.
    for member in sorted(arguments, key=lambda a: a is not type(None)):
      if not dataclasses.is_dataclass(member):
        try:
          return _read(member, text)
        except ValueError:
          continue
    raise ValueError
  if origin is tuple:
    return _read_tuple(arguments, text)
  raise TypeError(f'a setting cannot have the type {hint}')


def _number(kind: Callable[[str], T], text: str) -> T:
  try:
    return kind(text)
  except ValueError:
    raise ValueError from None


def _read_tuple(arguments: tuple[Any, ...], text: str) -> tuple[Any, ...]:
  if text[0] + text[-1] in ('()', '[]'):
    text = text[1:-1]
  items = [item.strip() for item in text.split(',')]
  if items[-1] == '':  # An empty tuple, or a comma at the end.
    items.pop()
  kinds = _tuple_kinds(arguments, len(items))
  return tuple(_read(k, i) for k, i in zip(kinds, items, strict=True))


def _tuple_kinds(arguments: tuple[Any, ...], length: int) -> Sequence[Any]:
  if len(arguments) == 2 and arguments[1] is Ellipsis:
    return [arguments[0]] * length
  if length != len(arguments):
    raise ValueError
  return arguments


def _describe(hint: Any) -> str:
  """Says a type in a few words."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  words = {int: 'an integer', float: 'a number', bool: 'true or false'}
  words |= {str: 'a string', type(None): 'none'}
  if hint in words:
    return words[hint]
  if origin is typing.Literal:
    return f'one of {", ".join(map(str, arguments))}'
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(map(_describe, arguments))
  if origin is tuple:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
      return f'a comma-separated list, each {_describe(arguments[0])}'
    return f'{len(arguments)} comma-separated values'
  return getattr(hint, '__name__', str(hint))


def _build(hint: Any, data: Any, path: str) -> Any:
  """Builds a value of the declared type from JSON data."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if dataclasses.is_dataclass(hint):
    return _build_dataclass(hint, data, path)
  if origin in (typing.Union, types.UnionType):
    for member in arguments:
      if _fits(member, data):
        return _build(member, data, path)
    raise _mismatch(hint, data, path)
  if not _fits(hint, data):
    raise _mismatch(hint, data, path)
  if origin is tuple:
    try:
      kinds = _tuple_kinds(arguments, len(data))
    except ValueError:
      raise _mismatch(hint, data, path) from None
    return tuple(
      _build(kind, value, f'{path}[{i}]')
      for i, (kind, value) in enumerate(zip(kinds, data, strict=True))
    )
  return float(data) if hint is float else data


def _build_dataclass(kind: Any, data: Any, path: str) -> Any:
  """Builds a nested dataclass; a refusal by it names the field's path."""
  if not isinstance(data, Mapping):
    raise _mismatch(kind, data, path)
  prefix = f'{path}.' if path else ''
  fields = {field.name: field for field in dataclasses.fields(kind)}
  names = [name for name, field in fields.items() if field.init]
  for name in data:
    if name not in names:
      options = [prefix + option for option in names]
      raise errors.UsageError(
        f'no setting {prefix + name!r};'
        f' {errors.suggest(prefix + name, options)}'
      )
  for name in names:
    defaults = (fields[name].default, fields[name].default_factory)
    if name not in data and defaults == (dataclasses.MISSING,) * 2:
      raise errors.UsageError(f'{prefix}{name} is missing')
  hints = typing.get_type_hints(kind)
  values = {
    name: _build(hints[name], value, prefix + name)
    for name, value in data.items()
  }
  try:
    return kind(**values)
  except ValueError as error:
    message = str(error)
    if message.replace(':', ' ').split(' ')[0] in names:
      raise errors.UsageError(prefix + message) from error
    raise errors.UsageError(
      f'{path}: {message}' if path else message
    ) from error


def _fits(hint: Any, data: Any) -> bool:
  """Says whether JSON data can be of the declared type, at its top."""
  origin = typing.get_origin(hint)
  if dataclasses.is_dataclass(hint):
    return isinstance(data, Mapping)
  if origin is typing.Literal:
    return any(
      data == option and type(data) is type(option)
      for option in typing.get_args(hint)
    )
  if origin is tuple:
    return isinstance(data, list)
  if hint is type(None):
    return data is None
  if hint is float:
    is_number = isinstance(data, (int, float)) and not isinstance(data, bool)
    return is_number and math.isfinite(data)
  if hint is int:
    return isinstance(data, int) and not isinstance(data, bool)
  return isinstance(data, hint)


def _mismatch(hint: Any, data: Any, path: str) -> errors.UsageError:
  return errors.UsageError(
    f'{path or "the configuration"} should be {_describe(hint)};'
    f' got {json.dumps(data)}'
  )
