"""Settings of a merge: numbers, gradients over layers, and filters by name."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import enum
from typing import Literal
from typing import NamedTuple

from merging import patterns
from third_party import problems
from third_party import strict_yaml

Value = float | int | bool | None


class Scope(enum.Enum):
  """What there is one value for."""

  MERGE = 'the whole merge'
  MODEL = 'every model'
  EXPERT = 'every model but the base'


class Parameter(NamedTuple):
  """A parameter of a method.

  Attributes:
    name: Its name in recipes.
    scope: What there is one value for.
    default: Its value where a recipe has none.
    required: Whether a recipe must have one; then there is no default.
    kind: What its values are.
    least: Smallest value allowed.
    most: Largest value allowed.
    inert: Why it changes nothing, if it does not.
  """

  name: str
  scope: Scope
  default: Value = None
  required: bool = False
  kind: Literal['number', 'integer', 'switch'] = 'number'
  least: float | None = None
  most: float | None = None
  inert: str = ''


class Rule(NamedTuple):
  """A value, or a gradient of values, for some tensors.

  Attributes:
    filter: Text that their names contain; `None` for all.
    values: One value, or several that lie at equal distances over the layers.
    node: Where it stands.
  """

  filter: str | None
  values: tuple[Value, ...]
  node: strict_yaml.Node

  def takes(self, name: str) -> bool:
    """Whether it is for the tensor of this name."""
    return self.filter in (None, '*') or str(self.filter) in name

  def at(self, t: float) -> Value:
    """Returns the value at a depth from 0, the first layer, to 1, the last.

    Examples:
      >>> node = strict_yaml.load('0')
      >>> Rule(None, (0.0, 1.0, 0.5), node).at(0.75)
      0.75
      >>> Rule(None, (True, False), node).at(0.75)
      True
    """
    place = t * (len(self.values) - 1)
    left = int(place)
    first = self.values[left]
    if isinstance(first, bool) or first is None:
      return first
    last = self.values[min(left + 1, len(self.values) - 1)] or 0
    part = place - left
    return (1 - part) * first + part * last


Setting = tuple[Rule, ...]
Settings = Mapping[str, Setting]


def read_settings(
  node: strict_yaml.Node | None,
  method: str,
  known: Sequence[Parameter],
  *,
  of_model: bool,
  ignored: Iterable[str] = (),
) -> dict[str, Setting]:
  """Reads a `parameters:` mapping.

  Args:
    node: The mapping, if there is one.
    method: Name of the method, for messages.
    known: Its parameters.
    of_model: Whether it belongs to one model of a merge.
    ignored: Names that recipes have here and that mergekit takes no notice of.

  Returns:
    The settings by name.

  Raises:
    problems.ProblemError: With everything that is wrong.
  """
  if node is None:
    return {}
  found = problems.Collector()
  by_name = {parameter.name: parameter for parameter in known}
  settings = {}
  hint = f'keys of {method} are {patterns.listing(by_name) or "none"}'
  hint += '; mergekit takes no notice of others: remove it'
  with found:
    node.mapping(by_name, of=method, hints=dict.fromkeys(ignored, hint))
  for name, value in node.value.items() if isinstance(node.value, dict) else ():
    parameter = by_name.get(name)
    if parameter is None or value.is_null:
      continue
    with found:
      if of_model and parameter.scope is Scope.MERGE:
        raise value.error(
          f'{name} is a setting of the whole merge, not of one model',
          'move it to the parameters at the top',
        )
      settings[name] = _setting(value, parameter)
  found.check()
  return settings


def nested(inner: Settings, outer: Settings) -> dict[str, Setting]:
  """Returns settings of which the inner ones come before the outer ones."""
  return {
    name: (*inner.get(name, ()), *outer.get(name, ()))
    for name in (*inner, *outer)
  }


def _setting(node: strict_yaml.Node, parameter: Parameter) -> Setting:
  several = node.items() if isinstance(node.value, list) else [node]
  if not any(isinstance(each.value, dict) for each in several):
    return (Rule(None, _values(node, parameter), node),)
  found = problems.Collector()
  rules: list[Rule] = []
  for each in several:
    with found:
      fields = each.mapping(('filter', 'value'), of='a filter')
      if 'value' not in fields:
        raise each.error('expected the key value, and it is missing')
      pattern = fields['filter'].string() if 'filter' in fields else None
      rule = Rule(pattern, _values(fields['value'], parameter), each)
      if rules and rules[-1].filter in (None, '*'):
        raise each.error(
          'is never used, for the one before it takes every tensor',
          'put the one without a filter last',
        )
      rules.append(rule)
  found.check()
  return tuple(rules)


def _values(node, parameter):
  if not isinstance(node.value, list):
    return (_value(node, parameter),)
  found = problems.Collector()
  values = []
  for each in node.items():
    with found:
      values.append(_value(each, parameter))
  found.check()
  return tuple(values)


def _value(node, parameter):
  if parameter.kind == 'switch':
    return node.boolean()
  hint = '20 % is 0.2' if parameter.most == 1 else ''
  value = node.number(parameter.least, parameter.most, hint)
  if parameter.kind == 'integer':
    return node.integer()
  return value


class MissingError(LookupError):
  """A required parameter has no value."""


def resolve(
  parameter: Parameter, scopes: Sequence[Settings], name: str, t: float
) -> Value:
  """Returns the value of a parameter for one tensor.

  Args:
    parameter: The parameter.
    scopes: Settings that may have it, the first that takes the tensor counts.
    name: Of the tensor.
    t: Depth of its layer, see `Rule.at`.

  Returns:
    The value.

  Raises:
    MissingError: It is required, and there is none.
  """
  for settings in scopes:
    for rule in settings.get(parameter.name, ()):
      if rule.takes(name):
        value = rule.at(t)
        if parameter.kind == 'integer' and value is not None:
          value = round(value)
        return value
  if parameter.required:
    raise MissingError(parameter.name)
  return parameter.default


def unmatched(
  settings: Settings, names: Sequence[str]
) -> list[problems.Problem]:
  """Returns a problem for each filter that takes none of the tensors."""
  words = {word for name in names for word in (name, *name.split('.'))}
  return [
    rule.node.problem(
      f'filter {rule.filter!r} matched 0 of {len(names)} tensors'
      f'{patterns.suggest(str(rule.filter), words)}',
      'correct it, or remove it',
    )
    for setting in settings.values()
    for rule in setting
    if not any(map(rule.takes, names))
  ]
