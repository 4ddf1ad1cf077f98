"""Merging models as they come, in the memory of two."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import checks
from merging import patterns
from merging import tree
from merging.combine import sequential
from merging.combine import subspace

Tree = Any


class ContinualState(NamedTuple):
  """What is remembered of the experts seen so far.

  Attributes:
    base: Parameters that all experts were fine-tuned from.
    total: Their combined change by path, before it is scaled, `f32[*shape]`.
    norms: Sum of the norms of their changes, `f32[]`.
    count: How many there were, `i32[]`.
  """

  base: Tree
  total: dict[str, jax.Array]
  norms: jax.Array
  count: jax.Array


class Continual(NamedTuple):
  """A merge of experts one at a time: pure functions of a state.

  Attributes:
    init: `base -> state`.
    add: `(state, expert) -> state`, of an expert's parameters.
    params: `state -> parameters` of the merge of all experts so far.
  """

  init: Callable[[Tree], ContinualState]
  add: Callable[[ContinualState, Tree], ContinualState]
  params: Callable[[ContinualState], Tree]


def continual_opcm(
  threshold: float | jax.Array = 0.5,
  *,
  leaves: Callable[[str], bool] | str = '',
  rank_tol: float | jax.Array = subspace.RANK_TOL,
) -> Continual:
  """Merges experts one at a time, as they become available (OPCM).

  The merge is that of `opcm`, in the order in which experts are added, but of
  all experts only the combined change is kept, so that memory does not grow
  with their number. Each added expert costs one thin singular value
  decomposition for each matrix.

  Args:
    threshold: See `opcm`.
    leaves: See `opcm`.
    rank_tol: See `opcm`.

  Returns:
    The functions `init`, `add` and `params`. `add` raises `ValueError` if the
    expert is not like the base.

  Examples:
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> merge = continual_opcm()
    >>> state = merge.init(base)
    >>> state = merge.add(state, {'kernel': jnp.diag(jnp.array([3.0, 1.0]))})
    >>> state = merge.add(state, {'kernel': jnp.ones((2, 2))})
    >>> print(merge.params(state)['kernel'].round(2))
    [[2.24 0.75]
     [0.75 0.75]]
  """
  sequential.check_threshold('continual_opcm', threshold)
  selects = patterns.predicate('continual_opcm', leaves)
  return Continual(
    init=functools.partial(_init, leaves),
    add=functools.partial(_add, selects, threshold, rank_tol),
    params=_params,
  )


def _init(leaves, base):
  flat = tree.flatten(base)
  checks.check_types('continual_opcm', ('base',), (flat,))
  matrices = [path for path, x in flat.items() if jnp.ndim(x) == 2]
  patterns.check_found('continual_opcm', leaves, matrices)
  total = {
    path: jnp.zeros(jnp.shape(x), _dtype(x))
    for path, x in flat.items()
    if tree.is_float(x)
  }
  return ContinualState(base, total, jnp.float32(0), jnp.int32(0))


def _dtype(x):
  dtype = jnp.result_type(x)
  return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def _add(selects, threshold, rank_tol, state, expert):
  names = ('base', 'expert')
  flat = tree.flatten(state.base), tree.flatten(expert)
  checks.check_types('continual_opcm', names, flat)
  tree.check_same_structure(state.base, expert, names=names)
  checks.check_values('continual_opcm', names, flat)
  total, squares = {}, jnp.float32(0)
  for path, before in state.total.items():
    projects = before.ndim == 2 and selects(path)
    rows = flat[0][path], flat[1][path], before
    total[path], square = _add_leaf(projects, *rows, threshold, rank_tol)
    squares += square
  return ContinualState(
    state.base, total, state.norms + jnp.sqrt(squares), state.count + 1
  )


@functools.partial(jax.jit, static_argnums=0)
def _add_leaf(projects, base, expert, total, threshold, rank_tol):
  delta = expert.astype(total.dtype) - base.astype(total.dtype)
  new = delta
  if projects:
    new = sequential.without(delta, total, threshold, rank_tol)
  return total + new, _square(delta)


def _square(x):
  return jnp.sum(x * x).astype(jnp.float32)


def _params(state):
  squares = sum(_square(x) for x in state.total.values())
  factor = sequential.mean_norm_factor(
    state.norms, jnp.maximum(state.count, 1), jnp.sqrt(squares)
  )
  merged = tree.flatten(state.base)
  for path, total in state.total.items():
    base = jnp.asarray(merged[path])
    change = factor.astype(total.dtype) * total
    merged[path] = (base.astype(total.dtype) + change).astype(base.dtype)
  return tree.unflatten(merged, like=state.base)
