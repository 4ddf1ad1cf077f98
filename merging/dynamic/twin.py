"""Merged parameters, and a few singular vectors of what each expert lacks.

Twin-Merging parts the experts' knowledge into what they share, a merge, and
what is exclusive to each, compressed by singular value decomposition. Which
expert's part to add, and how much of it, a router decides for each input.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import drivers
from merging import patterns
from merging import programs
from merging import transform
from merging import tree
from merging.deltas import low_rank
from merging.dynamic import storage as storage_lib
from merging.recipes import task_vectors

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factors:
  """Changes of one matrix by all experts, `left @ right`.

  Attributes:
    left: `[experts, rows, rank]`.
    right: `[experts, rank, columns]`.
  """

  left: jax.Array
  right: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """What an array of the changes would have, `[experts, *shape]`."""
    return (*self.left.shape[:2], self.right.shape[2])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bundle:
  """Experts as small additions to shared parameters, a pytree.

  Attributes:
    shared: The merged parameters, a tree like the base.
    exclusive: By path, floating-point leaves only, what each expert adds: the
      factors of matrices of which not all is kept, and `[experts, *shape]`.
    names: Names of the experts, sorted.
  """

  shared: Tree
  exclusive: dict[str, Factors | jax.Array]
  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})

  @property
  def storage(self) -> storage_lib.Storage:
    """What the bundle takes; the base is not needed beside it."""
    leaves = [x for x in jax.tree.leaves(self.shared) if tree.is_float(x)]
    own = storage_lib.num_bytes(jax.tree.leaves(self.exclusive))
    return storage_lib.Storage(
      parameters=sum(np.size(x) for x in leaves),
      experts=len(self.names),
      shared=storage_lib.num_bytes(leaves),
      each=own // len(self.names),
    )


def compress(
  base: Tree,
  experts: Mapping[str, Tree],
  *,
  density: float | None = 0.1,
  rank: int | None = None,
  inner: transform.MergeTransform | None = None,
  leaves: Callable[[str], bool] | str = '',
  **extra: Any,
) -> Bundle:
  """Stores experts as low-rank additions to merged parameters (Twin-Merging).

      theta_s = merge of the experts
      v_t = the leading k singular triples of theta_t - theta_s, in matrices
      v_t = theta_t - theta_s, elsewhere

  with `k = int(density min(rows, columns))` or `rank`. It works under `jit`. It
  takes a thin SVD of each matrix for each expert.

  Args:
    base: Parameters that all experts were fine-tuned from.
    experts: Fine-tuned parameters by the name of the expert.
    density: Fraction of the singular values to keep; 0.1 in the authors'
      scripts, which leave classifiers and biases out. `None` if `rank` is set.
    rank: How many to keep of every matrix.
    inner: The merge; by default `task_arithmetic(0.29)`, as in those scripts.
    leaves: Which leaves with two axes are matrices: a regular expression to
      find in the path, or `path -> bool`. All others are stored whole. (The
      authors' code would factor each kernel of a convolution by itself.)
    **extra: See `merging.merge`.

  Returns:
    The bundle.

  Raises:
    ValueError: As `merging.merge`, or neither or both of `density` and `rank`
      are given, or one is out of range.

  Examples:
    >>> base = {'w': jnp.zeros((4, 6))}
    >>> experts = {
    ...   'math': {'w': jnp.outer(jnp.arange(4.0), jnp.ones(6))},
    ...   'code': {'w': jnp.zeros((4, 6))},
    ... }
    >>> bundle = compress(base, experts, density=None, rank=1)
    >>> error = restore(bundle, 'math')['w'] - experts['math']['w']
    >>> bool(jnp.max(jnp.abs(error)) < 1e-6)
    True
    >>> bundle.exclusive['w'].left.shape, bundle.exclusive['w'].right.shape
    ((2, 4, 1), (2, 1, 6))

  References:
    Zhenyi Lu, Chenghao Fan, Wei Wei, Xiaoye Qu, Dangyang Chen, Yu Cheng.
    "Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging".
    NeurIPS 2024. arXiv:2406.15479.
  """
  low_rank.check_amount('compress', density, rank)
  selects = patterns.predicate('compress', leaves)
  inner = task_vectors.task_arithmetic(0.29) if inner is None else inner
  shared = drivers.merge(inner, base, experts, **extra)
  flat = tree.flatten(shared)
  matrices = [path for path, x in flat.items() if np.ndim(x) == 2]
  patterns.check_found('compress', leaves, matrices)
  names = tuple(sorted(experts))
  ends = [tree.flatten(experts[name]) for name in names]
  exclusive: dict[str, Factors | jax.Array] = {}
  for path, leaf in sorted(flat.items()):
    if not tree.is_float(leaf):
      continue
    row = tuple(jnp.asarray(end[path]) for end in ends)
    matrix = np.ndim(leaf) == 2 and bool(selects(path))
    size = min(np.shape(leaf), default=0)
    kept = int(low_rank.kept(density, rank, [size])[0])
    if matrix and kept < size:
      exclusive[path] = factor(leaf, row, kept)
    else:
      exclusive[path] = differences(leaf, row)
  return Bundle(shared, exclusive, names)


@jax.jit
def differences(shared: jax.Array, experts: tuple[jax.Array, ...]) -> jax.Array:
  """Returns what each expert has beyond the shared leaf.

  Args:
    shared: The merged leaf, `[*shape]`.
    experts: The leaf of each expert.

  Returns:
    `f32[experts, *shape]`.
  """
  shared = storage_lib.widened(shared)
  return jnp.stack([storage_lib.widened(x) - shared for x in experts])


@functools.partial(jax.jit, static_argnums=2)
def factor(
  shared: jax.Array, experts: tuple[jax.Array, ...], rank: int
) -> Factors:
  """Returns the leading singular triples of what each expert has beyond.

  Args:
    shared: The merged matrix, `[rows, columns]`.
    experts: The matrix of each expert.
    rank: How many triples, static.

  Returns:
    The factors; the singular values are in the left one.

  Examples:
    >>> parts = factor(jnp.zeros((2, 3)), (jnp.ones((2, 3)),), 1)
    >>> jnp.round(parts.left @ parts.right, 3).tolist()
    [[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]
  """
  run = programs.in_automatic_mesh(_factor, (shared, *experts))
  left, right = run(differences(shared, experts))
  return Factors(left[:, :, :rank], right[:, :rank, :])


def _factor(changes):
  u, s, vh = jnp.linalg.svd(changes, full_matrices=False)
  return u * s[:, None, :], vh


def restore(bundle: Bundle, name: str) -> Tree:
  """Returns an expert, to within what its factors do not hold.

      theta = theta_s + v_t

  It works under `jit`, with a static name.

  Args:
    bundle: What `compress` returned.
    name: Of the expert.

  Returns:
    The parameters, with the structure and dtypes of the base.

  Raises:
    ValueError: There is no such expert.
  """
  index = storage_lib.index_of('restore', name, bundle.names)
  one = slice(index, index + 1)
  exclusive = jax.tree.map(lambda x: x[one], bundle.exclusive)
  return _add(bundle.shared, exclusive, jnp.ones(1, jnp.float32))


def mix(bundle: Bundle, weights: jax.Array | Sequence[float]) -> Tree:
  """Returns shared parameters with a weighted part of each expert.

      theta = theta_s + sum_t w_t v_t

  The authors' weights are a softmax over the experts, of what a router trained
  on data says of an input; with `vmap` over weights, each input has its own.

  Args:
    bundle: What `compress` returned.
    weights: `f32[experts]`, in the order of `bundle.names`.

  Returns:
    The parameters, with the structure and dtypes of the base.

  Raises:
    ValueError: The weights are not one for each expert.

  Examples:
    >>> base = {'w': jnp.zeros(2)}
    >>> experts = {'a': {'w': jnp.ones(2)}, 'b': {'w': 3 * jnp.ones(2)}}
    >>> bundle = compress(base, experts)
    >>> jnp.round(mix(bundle, [0.5, 0.5])['w'], 3).tolist()
    [2.0, 2.0]
  """
  array = jnp.asarray(weights, jnp.float32)
  if array.shape != (len(bundle.names),):
    raise ValueError(
      f'mix: weights of shape {array.shape}, expected ({len(bundle.names)},) '
      f'for the experts {patterns.listing(bundle.names)}'
    )
  return _add(bundle.shared, bundle.exclusive, array)


def _add(shared, exclusive, weights):
  flat = dict(tree.flatten(shared))
  for path, parts in exclusive.items():
    flat[path] = _add_leaf(jnp.asarray(flat[path]), parts, weights)
  return tree.unflatten(flat, like=shared)


@jax.jit
def _add_leaf(shared, parts, weights):
  sharding = jax.typeof(shared).sharding
  run = programs.in_automatic_mesh(_add_parts, (shared,), sharding)
  return run(shared, parts, weights)


def _add_parts(shared, parts, weights):
  if isinstance(parts, Factors):
    terms = (parts.left * weights[:, None, None], parts.right)
    change = jnp.einsum('tik,tkj->ij', *terms, precision='highest')
  else:
    change = jnp.tensordot(weights, parts, axes=1, precision='highest')
  return (storage_lib.widened(shared) + change).astype(shared.dtype)
