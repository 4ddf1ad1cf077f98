"""How recipes name models and types."""

import dataclasses

import ml_dtypes
import numpy as np

from merging import patterns
from third_party import strict_yaml

_TYPES = {
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
  'float32': np.dtype(np.float32),
  'float64': np.dtype(np.float64),
}
_ALIASES = {
  **{name: name for name in _TYPES},
  'bf16': 'bfloat16',
  'fp16': 'float16',
  'f16': 'float16',
  'half': 'float16',
  'fp32': 'float32',
  'f32': 'float32',
  'float': 'float32',
  'fp64': 'float64',
  'f64': 'float64',
  'double': 'float64',
}


@dataclasses.dataclass(frozen=True, order=True)
class ModelRef:
  """A model as a recipe names it: `path[@revision][+lora[@revision]]`.

  Attributes:
    path: A directory, or a name of the Hub.
    lora: The adapter that is added to it, if any.
    revision: Of the model on the Hub.
    lora_revision: Of the adapter.

  Examples:
    >>> ModelRef('org/base', lora='org/adapter', revision='main')
    ModelRef('org/base@main+org/adapter')
  """

  path: str
  lora: str | None = None
  revision: str | None = None
  lora_revision: str | None = None

  def __str__(self) -> str:
    text = _joined(self.path, self.revision)
    if self.lora is not None:
      text += '+' + _joined(self.lora, self.lora_revision)
    return text

  def __repr__(self) -> str:
    return f'ModelRef({str(self)!r})'


def _joined(path, revision):
  return path if revision is None else f'{path}@{revision}'


def read_model(node: strict_yaml.Node) -> ModelRef:
  """Reads a model reference, as text or as a mapping.

  Args:
    node: `path+lora`, or `{model: ..., lora: ...}` with each a text or a
      `{path, revision}`.

  Returns:
    The reference.

  Raises:
    problems.ProblemError: It is neither.

  Examples:
    >>> read_model(strict_yaml.load('{model: {path: a, revision: b}, lora: c}'))
    ModelRef('a@b+c')
  """
  if not isinstance(node.value, dict):
    text = node.string()
    path, *adapters = text.split('+')
    if len(adapters) > 1 or not path or not all(adapters):
      raise node.error(
        f'expected a model as path or path+adapter, got {node.shown}'
      )
    adapter = _revised(adapters[0], node) if adapters else (None, None)
    return _reference(_revised(path, node), adapter)
  fields = node.mapping(
    ('model', 'lora', 'override_architecture'), of='a model'
  )
  if 'override_architecture' in fields:
    raise fields['override_architecture'].error(
      'override_architecture is not supported',
      'tensors are merged by name and shape, whatever the architecture',
    )
  if 'model' not in fields:
    raise node.error('expected the key model, and it is missing')
  lora = fields.get('lora')
  adapter = (None, None) if lora is None else _path(lora)
  return _reference(_path(fields['model']), adapter)


def _reference(model, adapter):
  (path, revision), (lora, lora_revision) = model, adapter
  return ModelRef(path, lora, revision, lora_revision)


def _path(node):
  if not isinstance(node.value, dict):
    return _revised(node.string(), node)
  fields = node.mapping(('path', 'revision'), of='a path')
  if 'path' not in fields:
    raise node.error('expected the key path, and it is missing')
  revision = fields.get('revision')
  return fields['path'].string(), revision and revision.string()


def _revised(text, node):
  path, at, revision = text.partition('@')
  if '@' in revision or (at and not (path and revision)):
    raise node.error(f'expected path or path@revision, got {text!r}')
  return path, revision or None


def read_dtype(node: strict_yaml.Node) -> np.dtype:
  """Reads a floating type, by torch's name of it or a common short one.

  Args:
    node: Such as `bfloat16`, `torch.float16` or `bf16`.

  Returns:
    The type.

  Raises:
    problems.ProblemError: There is no such type.

  Examples:
    >>> str(read_dtype(strict_yaml.load('torch.bf16')))
    'bfloat16'
  """
  name = node.string().removeprefix('torch.').lower()
  if name not in _ALIASES:
    raise node.error(
      f'unknown type {node.shown}{patterns.suggest(name, _ALIASES)}',
      f'expected one of {patterns.listing(_TYPES)}',
    )
  return _TYPES[_ALIASES[name]]
