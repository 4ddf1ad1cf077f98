"""What a table of comparisons knows of each, and the models they are of."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any
import zlib

import jax
import numpy as np

import merging

KEY = jax.random.key(5)
NAMES = ('code', 'law', 'math', 'prose')

# In torch's layout, [out, in]. Sizes are multiples of 4: quarters are exact.
_SHAPES = {
  'embedding.weight': (20, 8),
  'encoder.layer_norm.weight': (8,),
  'encoder.wide.bias': (8,),
  'encoder.wide.weight': (8, 20),
  'encoder.tall.weight': (20, 8),
  'head.weight': (12, 12),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A comparison.

  Attributes:
    name: Of the test.
    ours: Returns our transform.
    method: The peer's name of the method.
    parameters: The peer's settings.
    experts: How many are merged.
    size: Standard deviation of the changes; that of the base is 1.
    atol: Difference allowed between merged parameters.
    draws: Whether the method is random; the peer then gets our numbers.
    explained: For what is known to differ: our function, and the words of its
      docstring that say so.
  """

  name: str
  ours: Callable[[], merging.MergeTransform]
  method: str
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  experts: int = 3
  size: float = 0.1
  atol: float = 1e-6
  draws: bool = False
  explained: tuple[Callable[..., Any], str] | None = None


def models(row):
  """Returns a base and the experts of a row, by path."""
  rng = np.random.default_rng(row.experts)

  def draw(size):
    return {
      path: rng.normal(scale=size, size=shape).astype(np.float32)
      for path, shape in _SHAPES.items()
    }

  base = draw(1)
  changes = {name: draw(row.size) for name in NAMES[: row.experts]}
  experts = {
    name: {path: base[path] + x for path, x in change.items()}
    for name, change in changes.items()
  }
  return base, experts


def uniforms(experts):
  """Returns the numbers that our masks come from (see `drop_and_rescale`)."""

  def draw(name, path, shape):
    key = jax.random.fold_in(KEY, zlib.crc32(path.encode()))
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return np.asarray(jax.random.uniform(key, shape))

  return {
    name: {path: draw(name, path, x.shape) for path, x in expert.items()}
    for name, expert in experts.items()
  }


def largest_difference(row, peer):
  """Returns by how much our merge and the peer's differ at most."""
  base, experts = models(row)
  peer.load(base, experts, uniforms(experts) if row.draws else None)
  theirs = peer.merge(row.method, row.parameters).params
  ours = merging.merge(row.ours(), base, experts)
  assert sorted(theirs) == sorted(ours)
  differences = [np.abs(theirs[path] - ours[path]).max() for path in ours]
  return np.max(differences)  # Which is NaN if one is.


def check(row, peer):
  """Asserts that the two are equal, or differ if a row explains why."""
  difference = largest_difference(row, peer)
  if row.explained:
    assert difference > 10 * row.atol
  else:
    assert difference <= row.atol


def check_explained(row):
  """Asserts that the docstring has the words that a row quotes."""
  function, words = row.explained
  assert words in ' '.join(function.__doc__.split())
