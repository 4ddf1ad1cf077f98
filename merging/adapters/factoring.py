"""The best low-rank adapter of a change: singular value decomposition."""

from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import tree
from merging.adapters import leaves as leaves_lib
from merging.adapters import lora

Tree = Any


class Factored(NamedTuple):
  """An adapter in place of dense changes, and what it does not hold.

  Attributes:
    adapter: By path; its scale is 1, that is, `alpha = rank`.
    discarded: By path, the fraction of the squared norm of the change that the
      adapter does not hold, `f32[]`.
  """

  adapter: dict[str, lora.Lora]
  discarded: dict[str, jax.Array]


def extract(
  base: Tree,
  expert: Tree,
  *,
  rank: int,
  leaves: leaves_lib.Selector = '',
  stacked: leaves_lib.Selector | None = None,
  layout: leaves_lib.Layout | Mapping[str, leaves_lib.Layout] = 'in_out',
) -> Factored:
  """Returns the adapter nearest to a fully fine-tuned expert.

  For each chosen matrix, with `expert - base = u diag(s) v'`,

      a = u[:, :rank] sqrt(s[:rank]),   b = sqrt(s[:rank]) v'[:rank]

  is the nearest of that rank, and leaves `sum(s[rank:]²) / sum(s²)`.

  Args:
    base: Parameters that the expert was fine-tuned from.
    expert: Fine-tuned parameters.
    rank: Of the adapter; a smaller matrix gets its full rank.
    leaves: Which matrices to adapt (see `init_lora`).
    stacked: Which leaves stack the matrices of all layers.
    layout: How the model stores matrices.

  Returns:
    The adapter, and what is lost. A leaf that is not chosen, such as a bias,
    keeps its value of the base: `discarded` is 1 if the expert changed it.

  Raises:
    ValueError: The trees differ in structure, nothing is selected, or the rank
      is not positive.

  Examples:
    >>> base = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)}
    >>> expert = {'kernel': jnp.diag(jnp.array([3.0, 1])), 'bias': jnp.ones(2)}
    >>> adapter, discarded = extract(base, expert, rank=1)
    >>> {path: round(float(each), 3) for path, each in discarded.items()}
    {'kernel': 0.1, 'bias': 1.0}
  """
  lora.check_rank('extract', rank)
  tree.check_same_structure(base, expert, names=('base', 'expert'))
  chosen = leaves_lib.choose(
    'extract', base, leaves, stacked=stacked, layout=layout
  )
  ends = tree.flatten(expert)
  adapter: dict[str, lora.Lora] = {}
  discarded: dict[str, jax.Array] = {}
  for path, matrix in chosen.items():
    adapter[path], discarded[path] = factor(
      leaves_lib.widened(ends[path]) - leaves_lib.widened(matrix.leaf),
      rank,
      matrix.layout,
    )
  for path, leaf in tree.flatten(base).items():
    if path not in chosen:
      discarded[path] = _differs(ends[path], leaf).astype(jnp.float32)
  return Factored(adapter, discarded)


def _differs(x, y):
  if tree.is_float(x):
    x, y = leaves_lib.widened(x), leaves_lib.widened(y)
  return jnp.any(jnp.asarray(x) != jnp.asarray(y))


@functools.partial(jax.jit, static_argnums=(1, 2))
def factor(
  change: jax.Array, rank: int, layout: leaves_lib.Layout
) -> tuple[lora.Lora, jax.Array]:
  """Returns the nearest adapter of a rank, and the fraction it discards.

  Args:
    change: Of a leaf, `f32[..., rows, columns]`.
    rank: Static.
    layout: Of the leaf, static.

  Returns:
    The adapter, and the discarded fraction of the squared norm, `f32[]`; of no
    change, 0.

  Examples:
    >>> adapter, discarded = factor(jnp.ones((2, 3)), 1, 'in_out')
    >>> adapter.a.shape, adapter.b.shape, round(float(discarded), 3)
    ((2, 1), (1, 3), 0.0)
  """
  change = leaves_lib.whole(change)
  if layout == 'out_in':
    change = jnp.swapaxes(change, -1, -2)
  u, s, vh = jnp.linalg.svd(change, full_matrices=False)
  root = jnp.sqrt(s[..., :rank])
  adapter = lora.Lora(
    a=u[..., :rank] * root[..., None, :],
    b=root[..., :, None] * vh[..., :rank, :],
    layout=layout,
  )
  total = jnp.sum(jnp.square(s))
  lost = jnp.sum(jnp.square(s[..., rank:]))
  return adapter, lost / jnp.where(total > 0, total, 1)
