"""The compiled programs of one leaf, which all drivers share.

That a merge gives the same bits in memory, leaf by leaf and inside a caller's
`jit` rests on this: all of them run these programs. They are compiled for the
functions of a transform, the route and the shapes; hyper-parameters, the place
of the leaf and what observers found are arguments.
"""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import transform


class Inputs(NamedTuple):
  """The arrays of one leaf.

  Attributes:
    index: Place of the leaf in the specs, `i32[]`.
    row: The leaf in the base and in each expert, `[*shape]`. In place of an
      expert's values there may be the adapter that makes its change, or `None`
      if it changes nothing.
    extra: By name, the leaf's data for each expert, or `None`.
    start: Place of the first entry, of a piece of a leaf, `u32[]`.
  """

  index: jax.Array | np.ndarray | np.integer
  row: tuple[Any, ...]
  extra: Mapping[str, Any]
  start: jax.Array | np.ndarray | np.integer = np.uint32(0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def observe_leaf(
  observe: Callable[..., transform.Statistic],
  route: Hashable,
  dtype: np.dtype,
  inputs: Inputs,
  state: transform.State,
) -> transform.Statistic:
  """Returns what one leaf adds to a statistic.

  Args:
    observe: Of an observer.
    route: The leaf's.
    dtype: Type in which deltas are taken.
    inputs: The leaf's arrays.
    state: State of the transform.

  Returns:
    The statistic, or `None`.
  """

  def run(inputs, state):
    leaf, extra = _leaf(route, dtype, inputs)
    return observe(leaf, state, **extra)

  return in_automatic_mesh(run, inputs.row)(inputs, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def look(
  function: Callable[..., Any],
  route: Hashable,
  dtype: np.dtype,
  inputs: Inputs,
  state: transform.State,
  *arguments: Any,
) -> Any:
  """Returns what a selection looks at (see `merging.selections`).

  Args:
    function: Of a selection, `(leaf, state, *arguments) -> arrays`.
    route: The leaf's.
    dtype: Type in which deltas are taken.
    inputs: The base, and the experts that it is about.
    state: State of the transform.
    *arguments: What the selection tells the function.

  Returns:
    The arrays.
  """
  leaf, _ = _leaf(route, dtype, inputs)
  return function(leaf, state, *arguments)


def add_statistics(
  total: transform.Statistic, statistic: transform.Statistic
) -> transform.Statistic:
  """Returns the sum of two statistics, of which `None` adds nothing."""
  if total is None or statistic is None:
    return statistic if total is None else total
  return jax.tree.map(jnp.add, total, statistic)


@functools.partial(jax.jit, static_argnums=0)
def finish(
  close: Callable[[transform.Statistic, transform.State], transform.State],
  statistic: transform.Statistic,
  state: transform.State,
) -> transform.State:
  """Returns the state after a sweep."""
  return close(statistic, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def update_leaf(
  update: Callable[..., transform.Leaf],
  route: Hashable,
  dtype: np.dtype,
  out_dtype: np.dtype | None,
  inputs: Inputs,
  state: transform.State,
) -> jax.Array:
  """Returns the merged leaf, `[*shape]`.

  Args:
    update: Of a transform.
    route: The leaf's.
    dtype: Type in which deltas are taken and combined.
    out_dtype: Type of the merged leaf; that of the base by default.
    inputs: The leaf's arrays.
    state: State of the transform after all sweeps.

  Returns:
    The merged leaf.

  Raises:
    ValueError: The transform leaves several deltas, or changes the shape.
  """
  base = inputs.row[0]

  def run(inputs, state):
    leaf, extra = _leaf(route, dtype, inputs)
    leaf = update(leaf, state, **extra)
    if len(leaf.deltas) != 1:
      raise ValueError(
        f'the transform leaves {len(leaf.deltas)} deltas, one for each expert; '
        'end the chain with mean() or total()'
      )
    if leaf.deltas[0].shape != base.shape:
      raise ValueError(
        f'the transform returned a delta of shape {leaf.deltas[0].shape} for a '
        f'leaf of shape {base.shape}'
      )
    return (leaf.base + leaf.deltas[0]).astype(out_dtype or base.dtype)

  sharding = jax.typeof(base).sharding
  return in_automatic_mesh(run, inputs.row, sharding)(inputs, state)


@jax.jit
def all_finite(row: tuple[jax.Array, ...]) -> jax.Array:
  """Returns for each array whether all it holds is finite, `bool[len(row)]`."""
  return jnp.stack([jnp.all(jnp.isfinite(value)) for value in row])


@jax.jit
def equal(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns whether two arrays are equal, `bool[]`."""
  return jnp.all(a == b)


def _leaf(route, dtype, inputs):
  dtype = max(dtype, inputs.row[0].dtype, key=lambda each: each.itemsize)
  base = inputs.row[0].astype(dtype)
  deltas = tuple(_delta(expert, base) for expert in inputs.row[1:])
  leaf = transform.Leaf(base, deltas, inputs.index, route, inputs.start)
  return leaf, inputs.extra


def _delta(expert, base):
  if expert is None:
    return jnp.zeros_like(base)
  if isinstance(expert, jax.Array | np.ndarray):
    return expert.astype(base.dtype) - base
  return expert.delta(base)


def in_automatic_mesh(
  function: Callable[..., Any],
  row: tuple[Any, ...],
  sharding: jax.NamedSharding | None = None,
) -> Callable[..., Any]:
  """Lets the compiler shard a function where the caller's mesh is explicit.

  Scatters and reshapes of sharded leaves have no explicit rule.

  Args:
    function: Of arrays, any number of them.
    row: Arrays, or trees of them, whose mesh it is.
    sharding: Of all that the function returns; replicated by default.

  Returns:
    The function, to be called under `jit`; the same one without such a mesh.

  Examples:
    >>> in_automatic_mesh(jnp.ravel, (jnp.ones((2, 3)),)) is jnp.ravel
    True
  """
  arrays = jax.tree.leaves(row)
  meshes = (jax.typeof(value).sharding.mesh for value in arrays)
  mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
  if mesh is None:
    return function
  if sharding is None or not sharding.mesh.explicit_axes:
    sharding = jax.NamedSharding(mesh, jax.P())
  return jax.sharding.auto_axes(
    function, axes=mesh.explicit_axes, out_sharding=sharding
  )
