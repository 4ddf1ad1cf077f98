"""Nearest sums of Kronecker products, and the adapter that begins with them."""

import dataclasses
import functools
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import tree
from merging.adapters import dense
from merging.adapters import leaves as leaves_lib
from merging.adapters import lora

Tree = Any
Rule = Literal['energy', 'elbow', 'both']


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('left', 'right'),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Kronecker:
  """The adapter of one leaf that is a sum of Kronecker products.

      change = Σ_k left[k] ⊗ right[k]

  Attributes:
    left: `[terms, m, n]`.
    right: `[terms, p, q]`; the leaf is `[m p, n q]`, of blocks `[p, q]`.
  """

  left: jax.Array
  right: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the leaf that it adapts.

    Raises:
      ValueError: The factors do not fit each other.
    """
    left, right = self.left.shape, self.right.shape
    if len(left) != 3 or len(right) != 3 or left[0] != right[0]:
      raise ValueError(
        f'left {left} and right {right}, expected [terms, m, n] and '
        '[terms, p, q]'
      )
    return left[1] * right[1], left[2] * right[2]

  def delta(self, base: jax.Array) -> jax.Array:
    """Returns the change of the leaf.

    Args:
      base: The leaf, of which only the dtype is looked at.

    Returns:
      The change, `f32[m p, n q]`.

    Examples:
      >>> each = Kronecker(jnp.ones((1, 1, 2)), jnp.array([[[1.0, 2.0]]]))
      >>> each.delta(jnp.zeros((1, 4))).tolist()
      [[1.0, 2.0, 1.0, 2.0]]
    """
    dtype = leaves_lib.widened(base).dtype
    left, right = (jnp.asarray(x, dtype) for x in (self.left, self.right))
    return kronecker_sum(left, right)


def kronecker_sum(left: jax.Array, right: jax.Array) -> jax.Array:
  """Returns `Σ_k left[k] ⊗ right[k]`.

  Args:
    left: `[terms, m, n]`.
    right: `[terms, p, q]`.

  Returns:
    The sum, `[m p, n q]`.

  Examples:
    >>> kronecker_sum(jnp.eye(2)[None], jnp.ones((1, 1, 2))).tolist()
    [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
  """
  blocks = jnp.einsum(
    'kmn,kpq->mpnq', left, right, precision=jax.lax.Precision.HIGHEST
  )
  m, p, n, q = blocks.shape
  return blocks.reshape(m * p, n * q)


class KroneckerFactors(NamedTuple):
  """A singular value decomposition into Kronecker products.

  Attributes:
    left: `f32[terms, m, n]`, orthonormal in the Frobenius inner product.
    values: Singular values, descending, `f32[terms]`.
    right: `f32[terms, p, q]`, orthonormal likewise.
    discarded: Fraction of the squared norm in the terms left out, `f32[]`.
  """

  left: jax.Array
  values: jax.Array
  right: jax.Array
  discarded: jax.Array


def kronecker_factors(
  matrix: jax.Array,
  block_shape: tuple[int, int],
  *,
  rank: int | None = None,
  energy: float | None = None,
  rule: Rule = 'energy',
) -> KroneckerFactors:
  """Returns the nearest sum of Kronecker products to a matrix (KPSVD).

  The matrix is cut into blocks; each, laid out as a row, is one row of `R`.
  Whatever is a Kronecker product of the matrix is a product of two vectors in
  `R`, so the singular value decomposition `R = u diag(s) v'` gives

      matrix ≈ Σ_k s_k · left_k ⊗ right_k,   left_k = u_k and right_k = v_k

  as matrices. All terms give the matrix back; the first so many are the nearest
  sum of that length. With blocks of one row of the matrix, this is the plain
  singular value decomposition.

  Args:
    matrix: `[m p, n q]`.
    block_shape: `(p, q)`, of `right`.
    rank: Number of terms; by default all, `min(m n, p q)`.
    energy: Instead of `rank`, the fraction of the squared norm to keep at least
      (see `kronecker_rank`). The values have then to be known, so not in `jit`.
    rule: With `energy`, see `kronecker_rank`.

  Returns:
    The factors.

  Raises:
    ValueError: Blocks do not tile the matrix, `rank` is not positive, both
      `rank` and `energy` are given, or `energy` is with a traced matrix.

  Examples:
    >>> u, v = jnp.array([[1.0, 2], [3, 4]]), jnp.array([[1.0, 0, 1]])
    >>> found = kronecker_factors(jnp.kron(u, v), (1, 3), rank=1)
    >>> found.left.shape, found.right.shape, round(float(found.discarded), 3)
    ((1, 2, 2), (1, 1, 3), 0.0)

  References:
    Charles F. Van Loan, Nikos Pitsianis. "Approximation with Kronecker
    Products". Linear Algebra for Large Scale and Real-Time Applications 1993.
    Yee Hin Chong, Peng Qu. "Singular Value Decomposition on Kronecker
    Adaptation for Large Language Model". 2025. arXiv:2506.15251.
  """
  caller = 'kronecker_factors'
  shape = np.shape(matrix)
  tiles = len(shape) == len(block_shape) == 2 and not (
    shape[0] % block_shape[0] or shape[1] % block_shape[1]
  )
  if not tiles:
    raise ValueError(
      f'{caller}: blocks of {block_shape} do not tile a matrix of {shape}'
    )
  if rank is not None and energy is not None:
    raise ValueError(f'{caller}: give rank or energy, not both')
  if rank is not None:
    lora.check_rank(caller, rank)
  if energy is not None and isinstance(matrix, jax.core.Tracer):
    raise ValueError(
      f'{caller}: how many terms keep energy={energy} is not known while '
      'tracing; give rank='
    )
  found = _decompose(leaves_lib.widened(jnp.asarray(matrix)), block_shape)
  if energy is not None:
    rank = kronecker_rank(found.values, energy, rule=rule)
  squares = jnp.square(found.values)
  total = jnp.sum(squares)
  count = len(found.values) if rank is None else rank
  return KroneckerFactors(
    found.left[:count],
    found.values[:count],
    found.right[:count],
    jnp.sum(squares[count:]) / jnp.where(total > 0, total, 1),
  )


@functools.partial(jax.jit, static_argnums=1)
def _decompose(matrix, block_shape):
  matrix = leaves_lib.whole(matrix)
  p, q = block_shape
  m, n = matrix.shape[0] // p, matrix.shape[1] // q
  blocks = matrix.reshape(m, p, n, q).transpose(0, 2, 1, 3)
  u, s, vh = jnp.linalg.svd(blocks.reshape(m * n, p * q), full_matrices=False)
  left = u.T.reshape(-1, m, n)
  return KroneckerFactors(left, s, vh.reshape(-1, p, q), jnp.zeros((), s.dtype))


def kronecker_rank(
  values: jax.Array | np.ndarray, energy: float = 0.9, *, rule: Rule = 'energy'
) -> int:
  """Returns how many singular values are worth keeping.

  Args:
    values: Singular values, descending, `f32[terms]`.
    energy: Fraction of the sum of squares to keep, in (0, 1].
    rule: `'energy'` takes the fewest that keep the fraction; `'elbow'` those
      before the point furthest below the line from the first value to the last
      (all, if none is below); `'both'` the larger of the two. SoKA's abstract
      names the two criteria; the elbow's definition and the larger of the two
      are our reading.

  Returns:
    The number, at least 1.

  Raises:
    ValueError: `energy` is not in (0, 1], or `rule` is unknown.

  Examples:
    >>> values = np.array([4.0, 2.0, 0.5, 0.4, 0.3])
    >>> [kronecker_rank(values, 0.95, rule=r) for r in ('energy', 'elbow')]
    [2, 2]
  """
  patterns.check_option(
    'kronecker_rank', 'rule', rule, ('energy', 'elbow', 'both')
  )
  if not 0 < energy <= 1:
    raise ValueError(
      f'kronecker_rank: energy is {energy}, expected 0 < energy <= 1'
    )
  s = np.asarray(values, np.float64)
  if not s[0] > 0:
    return 1
  kept = np.cumsum(np.square(s))
  by_energy = 1 + int(np.searchsorted(kept, energy * kept[-1]))
  below = np.linspace(s[0], s[-1], len(s)) - s
  bent = np.max(below) > 1e-6 * s[0]
  by_elbow = int(np.argmax(below)) if bent else len(s)
  count = {
    'energy': by_energy,
    'elbow': by_elbow,
    'both': max(by_energy, by_elbow),
  }[rule]
  return min(count, len(s))


class Split(NamedTuple):
  """A model as a frozen part and an adapter.

  Attributes:
    residual: Parameters without what the adapter begins with.
    adapter: The principal part, by path.
  """

  residual: Tree
  adapter: dict[str, Kronecker]


def init_kronecker(
  base: Tree,
  *,
  block_shape: tuple[int, int] | None = None,
  rank: int | None = None,
  energy: float = 0.9,
  rule: Rule = 'both',
  leaves: leaves_lib.Selector = '',
  layers: tuple[int, int] | None = None,
  block: str = leaves_lib.BLOCK,
) -> Split:
  """Splits a model into principal Kronecker products and a residual (SoKA).

  The adapter begins with the directions in which the weights are largest, as
  PiSSA does with plain singular vectors, and the residual is frozen:

      base = residual + Σ_k (√s_k left_k) ⊗ (√s_k right_k)

  so that `apply(residual, adapter)` is the base, up to one rounding to its
  dtype. Read from the paper's abstract and reviews of it, without code: how the
  singular values are shared between the factors, and that the rest of the
  weights is kept as the residual, are our reading.

  Experts begun so are compared after `apply`: their adapters hold a part of the
  base, and `merge_adapters` would merge that part too.

  Args:
    base: Parameters.
    block_shape: Shape of the right factors. By default, for each axis the
      largest divisor not above its square root.
    rank: Number of terms.
    energy: Where there is no `rank`, see `kronecker_rank`.
    rule: Likewise.
    leaves: Which matrices to adapt (see `init_lora`).
    layers: `(first, last)` blocks, likewise.
    block: How blocks are numbered, likewise.

  Returns:
    The residual, in the dtypes of `base`, and the adapter.

  Raises:
    ValueError: Nothing is selected, blocks do not tile a matrix, or an option
      is out of range.

  Examples:
    >>> base = {'kernel': jnp.arange(16.0).reshape(4, 4)}
    >>> residual, adapter = init_kronecker(base, rank=1)
    >>> adapter['kernel'].left.shape, adapter['kernel'].right.shape
    ((1, 2, 2), (1, 2, 2))

  References:
    Yee Hin Chong, Peng Qu. "Singular Value Decomposition on Kronecker
    Adaptation for Large Language Model". 2025. arXiv:2506.15251.
  """
  chosen = leaves_lib.choose(
    'init_kronecker', base, leaves, layers=layers, block=block
  )
  adapter = {}
  rest = {}
  for path, matrix in chosen.items():
    shape = block_shape
    if shape is None:
      rows, columns = matrix.leaf.shape
      shape = _divisor(rows), _divisor(columns)
    try:
      found = kronecker_factors(
        matrix.leaf,
        shape,
        rank=rank,
        energy=energy if rank is None else None,
        rule=rule,
      )
    except ValueError as error:
      error.add_note(f'at leaf {path!r}')
      raise
    root = jnp.sqrt(found.values)[:, None, None]
    adapter[path] = Kronecker(root * found.left, root * found.right)
    rest[path] = dense.moved(matrix.leaf, -adapter[path].delta(matrix.leaf))
  residual = tree.unflatten({**tree.flatten(base), **rest}, like=base)
  return Split(residual, adapter)


def _divisor(size):
  return next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
