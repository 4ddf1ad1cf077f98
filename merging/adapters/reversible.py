"""Many adapters as one basis from which each comes back."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import patterns
from merging.adapters import leaves
from merging.adapters import lora


class Compressed(NamedTuple):
  """Vectors of `n` experts at equal positions, on a common basis.

  Attributes:
    mean: Over experts, `f32[..., positions, rank]`.
    basis: Orthonormal rows, `f32[..., positions, p, rank]`.
    coefficients: `f32[..., positions, n, p]`.
  """

  mean: jax.Array
  basis: jax.Array
  coefficients: jax.Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('a', 'b'),
  meta_fields=('scales', 'layouts', 'names'),
)
@dataclasses.dataclass(frozen=True)
class Reversible:
  """A set of adapters, compressed.

  Attributes:
    a: By path, the rows of the factors `a`: one position for each input.
    b: By path, the columns of the factors `b`: one position for each output.
    scales: For each path, sorted, the scales of the experts.
    layouts: For each path, sorted, that of the leaf.
    names: Of the experts, sorted.
  """

  a: dict[str, Compressed]
  b: dict[str, Compressed]
  scales: tuple[tuple[float, ...], ...]
  layouts: tuple[lora.Layout, ...]
  names: tuple[str, ...]


def compress(
  adapters: Mapping[str, Mapping[str, lora.Lora]], p: int
) -> Reversible:
  """Stores adapters as a basis and coefficients, to restore each (RMM).

  Rather than one set of weights for all tasks, which low-rank experts suffer
  from most, a small space of weights is kept. At each position of a factor (a
  row of `a`, a column of `b`), the `n` experts have vectors `x_1 ... x_n` of
  length `rank`; with their mean and the `p` leading eigenvectors of the
  scatter `Σ_t (x_t - mean)(x_t - mean)'` as the rows of `basis`,

      z_t = basis (x_t - mean),   x_t ≈ mean + basis' z_t

  is the closed form of least squared error. It is exact from
  `p = min(rank, n - 1)` on, as the vectors less their mean span no more. A
  position costs `p (rank + n) + rank` numbers instead of `rank n`, so storage
  is saved only for small `p` (see `storage_ratio`).

  The formulas were read from summaries of the paper, which has no public code.
  That scales are kept for each expert, and that adapters of different ranks
  are refused, are our choices. Factors are compared as they are: the error, not
  the exactness, depends on how each product was factored.

  Args:
    adapters: Plain LoRA adapters by the name of the expert, of the same leaves
      and ranks.
    p: Vectors of the basis at each position, 0 to `min(rank, n)` of each leaf.

  Returns:
    The compressed adapters, a pytree.

  Raises:
    ValueError: The adapters differ in leaves, ranks or layouts, have magnitudes
      (DoRA), or `p` is out of range.

  Examples:
    >>> key = jax.random.key(0)
    >>> base = {'kernel': jnp.ones((4, 3))}
    >>> experts = {
    ...   name: lora.init_lora(jax.random.key(i), base, rank=2)
    ...   for i, name in enumerate(('code', 'math', 'prose'))
    ... }
    >>> stored = compress(experts, p=2)
    >>> restored = restore(stored, 'math')['kernel']
    >>> bool(jnp.allclose(restored.a, experts['math']['kernel'].a, atol=1e-6))
    True

  References:
    Mohammadsajad Alipour, Mohammad Mohammadi Amiri. "Towards Reversible Model
    Merging For Low-rank Weights". 2025. arXiv:2510.14163.
  """
  if not adapters:
    raise ValueError('compress: there are no adapters')
  names = tuple(sorted(adapters))
  paths = sorted(adapters[names[0]])
  _check(names, paths, adapters, p)
  a, b = {}, {}
  for path in paths:
    experts = [adapters[name][path] for name in names]
    a[path] = _compress(jnp.stack([each.a for each in experts]), p)
    columns = [jnp.swapaxes(each.b, -1, -2) for each in experts]
    b[path] = _compress(jnp.stack(columns), p)
  first = adapters[names[0]]
  return Reversible(
    a,
    b,
    scales=tuple(
      tuple(adapters[name][path].scale for name in names) for path in paths
    ),
    layouts=tuple(first[path].layout for path in paths),
    names=names,
  )


def _check(names, paths, adapters, p):
  for name in names:
    if sorted(adapters[name]) != paths:
      odd = sorted(set(paths) ^ set(adapters[name]))
      raise ValueError(
        f'compress: {name!r} and {names[0]!r} do not adapt the same leaves: '
        f'only one has {patterns.listing(odd)}'
      )
    for path in paths:
      each, first = adapters[name][path], adapters[names[0]][path]
      if each.magnitude is not None:
        raise ValueError(
          f'compress: {name!r} at {path!r} has a magnitude (DoRA); the method '
          'is for plain LoRA: extract() a plain adapter of its full parameters'
        )
      if (each.a.shape, each.shape) != (first.a.shape, first.shape):
        raise ValueError(
          f'compress: {name!r} at {path!r} has factors {each.a.shape} and '
          f'{each.b.shape} in layout {each.layout!r}, but {names[0]!r} has '
          f'{first.a.shape} and {first.b.shape} in {first.layout!r}'
        )
      limit = min(each.rank, len(names))
      if not 0 <= p <= limit:
        raise ValueError(
          f'compress: p is {p}, expected 0 <= p <= {limit}, the smaller of the '
          f'rank {each.rank} of {path!r} and the number of experts {len(names)}'
        )


@functools.partial(jax.jit, static_argnums=1)
def _compress(vectors, p):
  """`f32[n, ..., positions, rank]` to its basis."""
  vectors = leaves.whole(vectors.astype(jnp.float32))
  vectors = jnp.moveaxis(vectors, 0, -2)
  mean = jnp.mean(vectors, axis=-2, keepdims=True)
  centred = vectors - mean
  # The right singular vectors are the eigenvectors of the scatter, without
  # squaring what is small.
  _, _, vh = jnp.linalg.svd(centred, full_matrices=False)
  basis = vh[..., :p, :]
  coefficients = jnp.matmul(
    centred,
    jnp.swapaxes(basis, -1, -2),
    precision=jax.lax.Precision.HIGHEST,
  )
  return Compressed(jnp.squeeze(mean, -2), basis, coefficients)


def restore(stored: Reversible, name: str) -> dict[str, lora.Lora]:
  """Returns the adapter of one expert.

  Args:
    stored: Of `compress`.
    name: Of the expert.

  Returns:
    The adapter by path, as near as the basis allows.

  Raises:
    ValueError: There is no such expert.

  Examples:
    >>> adapter = lora.init_lora(
    ...   jax.random.key(0), {'kernel': jnp.ones((4, 3))}, rank=2
    ... )
    >>> stored = compress({'math': adapter}, p=0)
    >>> restore(stored, 'math')['kernel'].a.shape
    (4, 2)
  """
  if name not in stored.names:
    raise ValueError(
      f'restore: there is no {name!r}, only {patterns.listing(stored.names)}'
      f'{patterns.suggest(name, stored.names)}'
    )
  place = stored.names.index(name)
  return {
    path: lora.Lora(
      a=_restore(stored.a[path], place),
      b=jnp.swapaxes(_restore(stored.b[path], place), -1, -2),
      scale=scales[place],
      layout=layout,
    )
    for path, scales, layout in zip(
      sorted(stored.a), stored.scales, stored.layouts, strict=True
    )
  }


def _restore(each, place):
  change = jnp.einsum(
    '...p,...pr->...r',
    each.coefficients[..., place, :],
    each.basis,
    precision=jax.lax.Precision.HIGHEST,
  )
  return each.mean + change


def storage_ratio(stored: Reversible) -> float:
  """Returns the numbers stored for each number of the adapters' factors.

  Args:
    stored: Of `compress`.

  Returns:
    `(p (rank + n) + rank) / (rank n)`, for leaves of several ranks weighted by
    their size. Above 1, nothing is saved.

  Examples:
    >>> base = {'kernel': jnp.ones((4, 3))}
    >>> experts = {
    ...   str(i): lora.init_lora(jax.random.key(i), base, rank=16)
    ...   for i in range(8)
    ... }
    >>> storage_ratio(compress(experts, p=2))  # (2 (16 + 8) + 16) / (16 · 8)
    0.5
  """
  kept = sum(each.size for each in jax.tree.leaves((stored.a, stored.b)))
  means = sum(
    each.mean.size for part in (stored.a, stored.b) for each in part.values()
  )
  return kept / (len(stored.names) * means)
