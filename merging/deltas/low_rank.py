"""Keeping the leading singular vectors of each expert's change."""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from merging import matrices
from merging import references
from merging import transform


@references.cited
def low_rank(
  *,
  density: float | jax.Array | None = None,
  rank: int | jax.Array | None = None,
  leaves: Callable[[str], bool] | str = '',
) -> transform.MergeTransform:
  """Keeps the leading singular triples of each expert's matrices.

      delta = sum_{i < k} s_i u_i v_i',   k = int(density min(out, in)) or rank

  Most of what fine-tuning changes in a matrix lies in few directions. Leaves
  that are not matrices pass unchanged; a matrix of which all is kept keeps its
  bits. It takes one thin SVD of each matrix for each expert, O(out in min(out,
  in)), whatever is kept.

  Args:
    density: Fraction of the singular values to keep; 0.1 in the authors' code.
    rank: How many to keep, in place of a fraction.
    leaves: Which leaves with two axes are matrices (see `on_matrices`).

  Returns:
    The transform. Its `init` raises `ValueError` if no leaf is a matrix.

  Raises:
    ValueError: Neither or both of `density` and `rank` are given, or one is out
      of range.

  Examples:
    >>> import merging
    >>> transform = merging.chain(low_rank(rank=1), merging.total())
    >>> base = {'w': jnp.zeros((2, 2))}
    >>> expert = {'w': jnp.array([[3.0, 0.0], [0.0, 1.0]])}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> jnp.abs(merged['w']).tolist()
    [[3.0, 0.0], [0.0, 0.0]]

  References:
    Zhenyi Lu, Chenghao Fan, Wei Wei, Xiaoye Qu, Dangyang Chen, Yu Cheng.
    "Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging".
    NeurIPS 2024. arXiv:2406.15479.
  """
  check_amount('low_rank', density, rank)

  def init(specs, models):
    return kept(density, rank, [min(spec.shape) for spec in specs])

  inner = transform.MergeTransform(init, (), _truncate)
  # Singular triples do not depend on which way round a matrix is stored.
  return matrices.on_matrices(inner, 'pass', leaves=leaves, layout='out_in')


def check_amount(
  caller: str,
  density: float | jax.Array | None,
  rank: int | jax.Array | None,
) -> None:
  """Raises `ValueError` unless one of the two is given, and in its range."""
  if (density is None) == (rank is None):
    raise ValueError(
      f'{caller}: density is {density} and rank is {rank}, expected one of the '
      'two'
    )
  if isinstance(density, jax.Array) or isinstance(rank, jax.Array):
    return
  if density is not None and not 0 <= density <= 1:
    raise ValueError(
      f'{caller}: density is {density}, expected a fraction in [0, 1]'
    )
  if rank is not None and rank < 0:
    raise ValueError(f'{caller}: rank is {rank}, expected at least 0')


def kept(
  density: float | jax.Array | None,
  rank: int | jax.Array | None,
  sizes: Sequence[int],
) -> np.ndarray | jax.Array:
  """Returns how many of so many singular triples to keep, `u32[len(sizes)]`.

  Examples:
    >>> kept(0.5, None, [3, 4]).tolist(), kept(None, 3, [3, 2]).tolist()
    ([1, 2], [3, 2])
  """
  if isinstance(density, jax.Array):
    product = density.astype(jnp.float32) * np.array(sizes, np.float32)
    return jnp.floor(jnp.maximum(product, 0)).astype(jnp.uint32)
  if density is not None:
    return np.array([int(density * size) for size in sizes], np.uint32)
  if isinstance(rank, jax.Array):
    return jnp.minimum(rank.astype(jnp.uint32), np.array(sizes, np.uint32))
  return np.array([min(rank or 0, size) for size in sizes], np.uint32)


def _truncate(leaf, kept, **extra):
  stacked = jnp.stack(leaf.deltas)
  u, s, vh = jnp.linalg.svd(stacked, full_matrices=False)
  wanted = jnp.asarray(kept)[leaf.index]
  leading = jnp.arange(s.shape[-1], dtype=jnp.uint32) < wanted
  s = jnp.where(leading[None], s, jnp.zeros_like(s))
  truncated = jnp.matmul(u * s[:, None, :], vh, precision='highest')
  whole = wanted >= s.shape[-1]
  return leaf._replace(deltas=tuple(jnp.where(whole, stacked, truncated)))
