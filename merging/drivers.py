"""Running a transform: over models in memory, on one device or on a mesh."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import programs
from merging import transform as transform_lib
from merging import tree

Tree = Any


def merge(
  transform: transform_lib.MergeTransform,
  base: Tree,
  experts: Mapping[str, Tree],
  *,
  dtype: jax.typing.DTypeLike = jnp.float32,
  **extra: Mapping[str, Tree],
) -> Tree:
  """Merges experts into one model.

  A pure function of pytrees: it works under `jit`, `vmap` and `grad` (of the
  parameters and of the hyper-parameters), and on arrays with any sharding.
  Called outside `jit`, it compiles one program for each shape of leaf, and no
  more when it is called again, also with other hyper-parameters.

      theta = base + update(experts - base)

  Args:
    transform: The merge, such as `ties()` or a `chain` that ends with a
      combining transform.
    base: Parameters that all experts were fine-tuned from, any pytree of NumPy
      or JAX arrays.
    experts: Fine-tuned parameters by the name of the expert. The order of the
      mapping does not matter.
    dtype: Type in which task vectors are taken and combined, unless a leaf is
      wider. The result is rounded once, to the dtype of the leaf of `base`.
    **extra: Data that the transform needs for each expert (see
      `MergeTransform.extra`): trees by the name of the expert, with leaves
      named as those of `base`, or some of them.

  Returns:
    The merged parameters, with the structure, dtypes and shardings of `base`.
    Leaves that are not floating, or have no entries, are those of `base`.

  Raises:
    ValueError: The trees differ in structure; a value is not finite; a leaf
      that is not floating differs between models; the transform does not
      combine the experts. Values are not looked at while tracing.
    TypeError: `experts` is not a mapping, or a leaf cannot be merged.

  Examples:
    >>> import merging
    >>> base = {'w': jnp.zeros(3, jnp.bfloat16)}
    >>> experts = {
    ...   'math': {'w': jnp.ones(3, jnp.bfloat16)},
    ...   'code': {'w': jnp.full(3, 2, jnp.bfloat16)},
    ... }
    >>> merging.merge(merging.task_arithmetic(0.5), base, experts)
    {'w': Array([1.5, 1.5, 1.5], dtype=bfloat16)}

    All coefficients of a grid at once:

    >>> grid = jnp.linspace(0, 1, 5)
    >>> merged = jax.vmap(
    ...   lambda scale: merging.merge(
    ...     merging.task_arithmetic(scale), base, experts
    ...   )
    ... )(grid)
    >>> merged['w'].shape
    (5, 3)
  """
  checks.check_transform('merge', transform)
  models = checks.check_experts('merge', experts)
  dtype = jnp.dtype(dtype)
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(f'merge: dtype is {dtype}, expected a floating-point type')
  names = ('base', *models)
  trees = [base, *(experts[name] for name in models)]
  flat = [tree.flatten(each) for each in trees]
  checks.check_types('merge', names, flat)
  tree.check_same_structure(*trees, names=names)
  data = checks.check_extra(
    'merge', transform.extra, extra, models, list(flat[0])
  )
  paths = sorted(
    path for path, x in flat[0].items() if tree.is_float(x) and np.size(x)
  )
  if not paths:
    raise ValueError('merge: base has no floating-point leaf')

  specs = tuple(
    transform_lib.LeafSpec(path, np.shape(leaf), jnp.result_type(leaf))
    for path in paths
    for leaf in (flat[0][path],)
  )
  state = transform.init(specs, models)
  checks.check_values('merge', names, flat)

  leaves = [
    programs.Inputs(
      index=np.int32(index),
      row=tuple(jnp.asarray(each[path]) for each in flat),
      extra={name: at(path, each) for name, each in data.items()},
    )
    for index, path in enumerate(paths)
  ]
  merged = dict(flat[0])
  for path, leaf, value in each_leaf(transform, specs, leaves, state, dtype):
    merged[path] = _place_like(value, leaf.row[0])
  return tree.unflatten(merged, like=base)


def each_leaf(
  transform: transform_lib.MergeTransform,
  specs: transform_lib.Specs,
  leaves: Sequence[programs.Inputs],
  state: transform_lib.State,
  dtype: np.dtype,
) -> Iterator[tuple[str, programs.Inputs, jax.Array]]:
  """Runs a transform over leaves in memory.

  Args:
    transform: The merge.
    specs: Of the leaves.
    leaves: Their arrays.
    state: As `init` returned it.
    dtype: Type in which deltas are taken and combined.

  Yields:
    The path, the arrays and the merged value of each leaf.
  """
  routes = [transform.route(spec) for spec in specs]

  def sweep(observe):
    for spec, route, leaf in zip(specs, routes, leaves, strict=True):
      with naming(spec.path):
        yield programs.observe_leaf(observe, route, dtype, leaf, state)

  for observer in transform.observers:
    state = gather(observer, sweep(observer.observe), state)
  for spec, route, leaf in zip(specs, routes, leaves, strict=True):
    with naming(spec.path):
      value = programs.update_leaf(
        transform.update, route, dtype, None, leaf, state
      )
    yield spec.path, leaf, value


def gather(
  observer: transform_lib.Observer,
  statistics: Iterable[transform_lib.Statistic],
  state: transform_lib.State,
) -> transform_lib.State:
  """Returns the state after a sweep, from what each leaf adds to it."""
  total = functools.reduce(programs.add_statistics, statistics, None)
  return programs.finish(observer.finish, total, state)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
  """Says of which leaf an error is."""
  try:
    yield
  except Exception as error:
    error.add_note(f'while merging leaf {path!r}')
    raise


def at(
  path: str, columns: Sequence[Mapping[str, jax.Array]]
) -> tuple[jax.Array, ...] | None:
  """Returns the data that each expert has for a leaf, if they have some."""
  if path not in columns[0]:
    return None
  return tuple(leaves[path] for leaves in columns)


def _place_like(value, base):
  if isinstance(base, jax.core.Tracer) or isinstance(value, jax.core.Tracer):
    return value
  if value.sharding.is_equivalent_to(base.sharding, base.ndim):
    return value
  return jax.device_put(value, base.sharding)
