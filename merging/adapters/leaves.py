"""Choosing the matrices of a model that get an adapter."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import matrices
from merging import patterns
from merging import tree

Tree = Any
Selector = Callable[[str], bool] | str
Layout = matrices.Layout

BLOCK = r'(?i)(?:^|/)(?:\w*(?:blocks?|layers?)|h)[/_]?(\d+)(?=/|$)'


class Matrix(NamedTuple):
  """A leaf to adapt.

  Attributes:
    leaf: The leaf of the base, `[in, out]` or `[out, in]`, or a stack of them.
    layout: Which of the two.
  """

  leaf: jax.Array
  layout: Layout

  @property
  def fan_in(self) -> int:
    """Number of inputs."""
    return self.leaf.shape[-2 if self.layout == 'in_out' else -1]

  @property
  def fan_out(self) -> int:
    """Number of outputs."""
    return self.leaf.shape[-1 if self.layout == 'in_out' else -2]


def choose(
  caller: str,
  base: Tree,
  leaves: Selector,
  *,
  layers: tuple[int, int] | None = None,
  block: str = BLOCK,
  stacked: Selector | None = None,
  layout: Layout | Mapping[str, Layout] = 'in_out',
) -> dict[str, Matrix]:
  """Returns the matrices that a selection names.

  Args:
    caller: Name for error messages.
    base: Parameters.
    leaves: A regular expression to find in the path, or `path -> bool`. Leaves
      with fewer than two axes are passed over.
    layers: `(first, last)`: only leaves in the first and the last so many
      blocks of the model.
    block: Regular expression for the number of a block in a path, as its first
      group. What precedes it tells an encoder's blocks from a decoder's.
    stacked: Leaves that stack the matrices of all layers along a first axis.
    layout: How the model stores matrices, as in `merging.on_matrices`.

  Returns:
    The matrices by path, sorted by it.

  Raises:
    ValueError: Nothing is selected; a selected leaf is no matrix; blocks are
      not numbered, or fewer than `layers` asks for; `layout` is unknown.

  Examples:
    >>> base = {'blocks': [{'kernel': jnp.ones((4, 3))} for _ in range(3)]}
    >>> chosen = choose('example', base, 'kernel', layers=(1, 1))
    >>> {path: (each.fan_in, each.fan_out) for path, each in chosen.items()}
    {'blocks/0/kernel': (4, 3), 'blocks/2/kernel': (4, 3)}
  """
  flat = tree.flatten(base)
  selects = patterns.predicate(caller, leaves)
  stacks = patterns.predicate(caller, stacked) if stacked is not None else None
  inside = None if layers is None else _ends(caller, list(flat), layers, block)
  layout_of = _layout_of(caller, layout)
  chosen = {}
  for path in sorted(flat):
    leaf = flat[path]
    if not tree.is_float(leaf) or np.ndim(leaf) < 2 or not selects(path):
      continue
    if inside is not None and path not in inside:
      continue
    stack = stacks is not None and stacks(path)
    if np.ndim(leaf) != 2 + stack:
      kind = 'a stack of matrices' if stack else 'a matrix'
      raise ValueError(
        f'{caller}: leaf {path!r} of shape {np.shape(leaf)} is not {kind}; '
        'name leaves [layers, rows, columns] in stacked=, and leave others out '
        'of leaves='
      )
    if stack and layers is not None:
      raise ValueError(
        f'{caller}: leaf {path!r} stacks all blocks, so layers={layers} cannot '
        'tell them apart; use a model with a leaf for each block'
      )
    chosen[path] = Matrix(leaf, layout_of(path))
  if not chosen:
    if any(selects(path) for path in flat) or leaves == '':
      where = '' if layers is None else f' in the blocks layers={layers}'
      raise ValueError(
        f'{caller}: leaves={leaves!r} selects no floating-point leaf with two '
        f'axes{where}; the leaves are {patterns.listing(flat)}'
      )
    raise patterns.no_match(caller, leaves, list(flat))
  return chosen


def _layout_of(
  caller: str, layout: Layout | Mapping[str, Layout]
) -> Callable[[str], Any]:
  options = ('in_out', 'out_in')
  if not isinstance(layout, Mapping):
    patterns.check_option(caller, 'layout', layout, options)
    return lambda path: layout
  for each in layout.values():
    patterns.check_option(caller, 'layout', each, options)
  label_of = patterns.labeller(caller, layout)

  def of(path):
    if not label_of(path):
      raise ValueError(
        f'{caller}: no pattern of the layout {dict(layout)} matches {path!r}; '
        "a last pattern '.' takes all that is left"
      )
    return label_of(path)

  return of


def _ends(caller, paths, layers, block):
  """The paths inside the first and last blocks."""
  first, last = layers
  if min(first, last) < 0 or first + last == 0:
    raise ValueError(
      f'{caller}: layers is {layers}, expected (first, last) block counts, not '
      'negative and not both zero'
    )
  pattern = patterns.compile_pattern(caller, block)
  if pattern.groups < 1:
    raise ValueError(
      f'{caller}: block {block!r} has no group for the number, such as (\\d+)'
    )
  places = {}
  for path in paths:
    match = pattern.search(path)
    if match is not None:
      places[path] = (path[: match.start()], int(match[1]))
  if not places:
    raise ValueError(
      f'{caller}: no path names a numbered block as {block!r} does, needed for '
      f'layers={layers}; the leaves are {patterns.listing(paths)}; say with '
      'block= how they are numbered'
    )
  counts = {}
  for prefix, number in places.values():
    counts[prefix] = max(counts.get(prefix, 0), number + 1)
  for prefix, count in counts.items():
    if first + last > count:
      raise ValueError(
        f'{caller}: layers is {layers}, but there are {count} blocks under '
        f'{prefix!r}'
      )
  return {
    path
    for path, (prefix, number) in places.items()
    if number < first or number >= counts[prefix] - last
  }


def widened(leaf: jax.Array) -> jax.Array:
  """Returns a floating leaf in float32, or as it is if it is wider."""
  return leaf if leaf.dtype.itemsize > 4 else jnp.asarray(leaf, jnp.float32)


def whole(matrix: jax.Array) -> jax.Array:
  """Returns a matrix unsharded where the mesh is explicit.

  Decompositions of sharded matrices have no explicit rule.
  """
  mesh = jax.typeof(matrix).sharding.mesh
  if not mesh.explicit_axes:
    return matrix
  return jax.sharding.reshard(matrix, jax.NamedSharding(mesh, jax.P()))
