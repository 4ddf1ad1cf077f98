"""Reading how experts differ from their base, one leaf at a time."""

from collections.abc import Iterator
from collections.abc import Mapping
import math

import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import streams
from third_party import problems

_REMEDY = 'compare models of one base and one vocabulary'


def read(source: streams.Source, path: str) -> np.ndarray:
  """Returns a whole leaf of a source, `[*shape]`.

  Examples:
    >>> read(streams.InMemory({'w': np.eye(2)}), 'w').tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  spec = source.specs[path]
  leaf = np.empty(math.prod(spec.shape), spec.dtype)
  source.read(path, 0, leaf)
  return leaf.reshape(spec.shape)


def is_float(dtype: np.dtype) -> bool:
  """Whether leaves of this type are changed, and not only compared."""
  return jnp.issubdtype(dtype, jnp.floating)


def widened(leaf: np.ndarray) -> np.ndarray:
  """Returns a leaf in float32."""
  return leaf.astype(np.float32)


def check_same(
  base: streams.Source, experts: Mapping[str, streams.Source]
) -> None:
  """Checks that experts have the leaves of their base, before they are read.

  Args:
    base: The base.
    experts: By name.

  Raises:
    problems.ProblemError: With all leaves that are missing, additional, or of
      another shape, and with narrow types that need scales.

  Examples:
    >>> base = streams.InMemory({'w': np.ones(2)})
    >>> try:
    ...   check_same(base, {'math': streams.InMemory({'w': np.ones(3)})})
    ... except problems.ProblemError as error:
    ...   print(error)
    math / w: has shape [3], the base has [2]; compare models of one base and
    one vocabulary
  """
  found = [
    problem
    for name, expert in experts.items()
    for problem in _differences(base.specs, name, expert.specs)
  ]
  if not experts:
    raise problems.refuse(problems.Kind.CONFIG, (), 'there is no expert')
  if found:
    raise problems.ProblemError(found)


def _differences(
  base: streams.Specs, name: str, expert: streams.Specs
) -> Iterator[problems.Problem]:
  kind = problems.Kind.INCOMPATIBLE
  for path, spec in base.items():
    other = expert.get(path)
    if other is None:
      hint = patterns.suggest(path, expert)
      yield problems.Problem(kind, (name, path), f'is missing{hint}', _REMEDY)
    elif tuple(other.shape) != tuple(spec.shape):
      what = f'has shape {list(other.shape)}, the base has {list(spec.shape)}'
      yield problems.Problem(kind, (name, path), what, _REMEDY)
    elif is_float(other.dtype) != is_float(spec.dtype):
      what = f'is {other.dtype}, the base has {spec.dtype}'
      yield problems.Problem(kind, (name, path), what, _REMEDY)
  for path in expert:
    if path not in base:
      what = f'is not in the base{patterns.suggest(path, base)}'
      yield problems.Problem(kind, (name, path), what, _REMEDY)


def check_finite(name: str, path: str, change: np.ndarray) -> None:
  """Checks that a change is one.

  Args:
    name: Of the expert.
    path: Of the leaf.
    change: Of the expert.

  Raises:
    problems.ProblemError: It holds a NaN or an infinity.
  """
  bad = ~np.isfinite(change)
  if bad.any():
    raise problems.refuse(
      problems.Kind.INPUT,
      (name, path),
      f'the change holds {int(bad.sum())} NaN or infinite values, the first at '
      f'entry {int(np.argmax(bad))}',
      'the expert or its base is broken',
    )


def check_equal(
  name: str, path: str, base: np.ndarray, leaf: np.ndarray
) -> None:
  """Checks a leaf of integers or booleans, which has no change.

  Raises:
    problems.ProblemError: The expert has other values than the base.
  """
  if not np.array_equal(base, leaf):
    raise problems.refuse(
      problems.Kind.INCOMPATIBLE,
      (name, path),
      f'differs from the base, and is {leaf.dtype}: there is no change of it '
      'to store',
      _REMEDY,
    )


def relative(error: np.ndarray, change: np.ndarray) -> float:
  """Returns the norm of an error over that of a change; 0 of no error.

  Examples:
    >>> relative(np.array([0.0, 1.0]), np.array([3.0, 4.0]))
    0.2
  """
  norms = [float(np.linalg.norm(x.astype(np.float64))) for x in (error, change)]
  return norms[0] / norms[1] if norms[1] else float(norms[0] > 0)
