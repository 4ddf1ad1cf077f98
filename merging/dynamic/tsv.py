"""Experts stored as their leading singular vectors, to be restored one by one.

The changes of one matrix are of low rank, nearly enough: a share of the
singular values, one over the number of experts, holds most of what each
learned.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import tree
from merging.dynamic import storage as storage_lib
from merging.dynamic import twin

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bundle:
  """Changes of experts in few numbers, a pytree.

  Attributes:
    changes: By path, floating-point leaves only: the factors of matrices, and
      `[experts, *shape]` of all other leaves and of matrices whose factors
      would be no smaller.
    names: Names of the experts, sorted.
  """

  changes: dict[str, twin.Factors | jax.Array]
  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})

  @property
  def storage(self) -> storage_lib.Storage:
    """What the bundle takes besides the base, which is needed to restore."""
    experts = len(self.names)
    parameters = sum(
      math.prod(each.shape[1:]) for each in self.changes.values()
    )
    stored = storage_lib.num_bytes(jax.tree.leaves(self.changes))
    return storage_lib.Storage(parameters, experts, 0, stored // experts)


def compress(
  base: Tree,
  experts: Mapping[str, Tree],
  *,
  share: float | None = None,
  leaves: Callable[[str], bool] | str = '',
) -> Bundle:
  """Stores experts as the leading singular triples of their changes (TSV-C).

      delta_t = u_t diag(s_t) v_t^T, cut after k = int(share min(out, in))

  for matrices; all other leaves are stored whole. With the share of one over
  the number of experts, a matrix takes `k (out + in)` numbers for each, and
  between one and two times the base for all of them, however many. A matrix
  that its factors would not make smaller (few experts, large shares) is stored
  whole, and restored exactly; the authors factor it all the same. Works under
  `jit`. Costs a thin singular value decomposition of each matrix for each
  expert.

  Args:
    base: Parameters that all experts were fine-tuned from.
    experts: Fine-tuned parameters by the name of the expert.
    share: Fraction of the singular values to keep, of at least one; by default
      one over the number of experts, the authors' choice.
    leaves: Which leaves with two axes are matrices: a regular expression to
      find in the path, or `path -> bool`.

  Returns:
    The bundle, without the base.

  Raises:
    ValueError: As `merging.merge`, or `share` is not a fraction.
    TypeError: As `merging.merge`.

  Examples:
    >>> base = {'w': jnp.zeros((6, 6))}
    >>> experts = {
    ...   'math': {'w': jnp.outer(jnp.arange(6.0), jnp.ones(6))},
    ...   'code': {'w': jnp.zeros((6, 6))},
    ...   'prose': {'w': jnp.ones((6, 6))},
    ... }
    >>> bundle = compress(base, experts)
    >>> error = restore(bundle, base, 'math')['w'] - experts['math']['w']
    >>> bool(jnp.max(jnp.abs(error)) < 1e-5)
    True
    >>> bundle.storage.parameters, bundle.storage.each // 4
    (36, 24)

  References:
    Antonio Andrea Gargiulo, Donato Crisostomi, Maria Sofia Bucarelli, Simone
    Scardapane, Fabrizio Silvestri, Emanuele Rodolà. "Task Singular Vectors:
    Reducing Task Interference in Model Merging". CVPR 2025. arXiv:2412.00081.
  """
  if share is not None and not 0 < share <= 1:
    raise ValueError(
      f'compress: share is {share}, expected a fraction in (0, 1], or None for '
      'one over the number of experts'
    )
  names = checks.check_experts('compress', experts)
  trees = [base, *(experts[name] for name in names)]
  flat = [tree.flatten(each) for each in trees]
  checks.check_types('compress', ('base', *names), flat)
  tree.check_same_structure(*trees, names=('base', *names))
  checks.check_values('compress', ('base', *names), flat)
  selects = patterns.predicate('compress', leaves)
  matrices = [path for path, x in flat[0].items() if np.ndim(x) == 2]
  patterns.check_found('compress', leaves, matrices)
  changes: dict[str, twin.Factors | jax.Array] = {}
  for path, leaf in sorted(flat[0].items()):
    if not tree.is_float(leaf):
      continue
    row = tuple(jnp.asarray(each[path]) for each in flat[1:])
    shape = np.shape(leaf)
    size = min(shape, default=0)
    kept = max(1, size // len(names) if share is None else int(size * share))
    if len(shape) == 2 and selects(path) and kept * sum(shape) < np.size(leaf):
      changes[path] = twin.factor(jnp.asarray(leaf), row, kept)
    else:
      changes[path] = twin.differences(jnp.asarray(leaf), row)
  return Bundle(changes, names)


def restore(bundle: Bundle, base: Tree, name: str) -> Tree:
  """Returns an expert, to within what its factors do not hold.

  It works under `jit`, with a static name.

  Args:
    bundle: What `compress` returned.
    base: The base it was given.
    name: Of the expert.

  Returns:
    The parameters, with the structure and dtypes of the base.

  Raises:
    ValueError: There is no such expert, or the base has other leaves.

  Examples:
    >>> base = {'w': jnp.zeros(2)}
    >>> bundle = compress(base, {'math': {'w': jnp.ones(2)}})
    >>> restore(bundle, base, 'math')['w'].tolist()
    [1.0, 1.0]
  """
  stored = {path: each.shape[1:] for path, each in bundle.changes.items()}
  storage_lib.check_base(tree.flatten(base), stored)
  return twin.restore(twin.Bundle(base, bundle.changes, bundle.names), name)
