"""All experts from one merged task vector and a bit for each parameter.

Different tasks need mostly different entries of a merged task vector. TALL
masks say which, and bring each expert back from the base, the merged vector and
its mask: 1 bit for each parameter, rounded up to bytes in each leaf, in place
of 32.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from merging import drivers
from merging import programs
from merging import transform
from merging import tree
from merging.combine import mean as means
from merging.deltas import mask as masking
from merging.dynamic import storage as storage_lib

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bundle:
  """Experts as masks of one task vector, a pytree.

  Attributes:
    merged: The merged task vector by path, floating-point leaves only.
    masks: By path, the packed masks of the experts in the order of `names`,
      `u8[experts, ceil(size / 8)]`, the first entry in the highest bit.
    names: Names of the experts, sorted.
  """

  merged: dict[str, jax.Array]
  masks: dict[str, jax.Array]
  names: tuple[str, ...] = dataclasses.field(metadata={'static': True})

  @property
  def storage(self) -> storage_lib.Storage:
    """What the bundle takes, without the base that it does not hold."""
    return storage_lib.Storage(
      parameters=sum(x.size for x in self.merged.values()),
      experts=len(self.names),
      shared=storage_lib.num_bytes(self.merged.values()),
      each=sum(x.shape[1] for x in self.masks.values()),
    )


def compress(
  base: Tree,
  experts: Mapping[str, Tree],
  threshold: masking.Threshold = 0.4,
  *,
  inner: transform.MergeTransform | None = None,
  dtype: jax.typing.DTypeLike = jnp.float32,
  **extra: Any,
) -> Bundle:
  """Stores experts as masks of their merged task vector (TALL masks).

      m_t = |tau_t| > threshold_t |tau - tau_t|,   tau = sum_t tau_t

  It works under `jit`. The masks of an expert depend on its own threshold only:
  to choose one on validation data, compress with each.

  Args:
    base: Parameters that all experts were fine-tuned from.
    experts: Fine-tuned parameters by the name of the expert.
    threshold: See `merging.localise`. The paper takes the best of 0.2, 0.3,
      ..., 0.6 for each expert on validation data.
    inner: The merge; `total()` by default. The paper's other one is
      `ties(combine='sum')`.
    dtype: Type to store the merged task vector in; masks are found for the
      rounded one.
    **extra: See `merging.merge`.

  Returns:
    The bundle.

  Raises:
    ValueError: As `merging.merge`, or a threshold is negative.

  Examples:
    >>> base = {'w': jnp.zeros(16)}
    >>> experts = {
    ...   'math': {'w': jnp.zeros(16).at[:8].set(2.0)},
    ...   'code': {'w': jnp.zeros(16).at[8:].set(3.0)},
    ... }
    >>> bundle = compress(base, experts)
    >>> bool(
    ...   jnp.all(restore(bundle, base, 'math')['w'] == experts['math']['w'])
    ... )
    True
    >>> bundle.storage.bits_per_parameter
    1.0

  References:
    Ke Wang, Nikolaos Dimitriadis, Guillermo Ortiz-Jimenez, François Fleuret,
    Pascal Frossard. "Localizing Task Information for Improved Model Merging and
    Compression". ICML 2024. arXiv:2405.07813.
  """
  masking.check_threshold('compress', threshold)
  inner = means.total() if inner is None else inner
  change = inner._replace(update=transform.bind(_change, inner.update))
  wide = jax.tree.map(
    lambda x: storage_lib.widened(x) if tree.is_float(x) else x, base
  )
  merged = tree.flatten(drivers.merge(change, wide, experts, **extra))
  names = tuple(sorted(experts))
  limits = masking.thresholds('compress', threshold, names)
  flat = tree.flatten(base)
  ends = [tree.flatten(experts[name]) for name in names]
  kept = {
    path: jnp.asarray(merged[path], dtype)
    for path in sorted(flat)
    if tree.is_float(flat[path])
  }
  masks: dict[str, jax.Array] = {
    path: pack_masks(
      jnp.asarray(flat[path]),
      tuple(jnp.asarray(end[path]) for end in ends),
      each,
      limits,
    )
    for path, each in kept.items()
  }
  return Bundle(kept, masks, names)


def _change(update, leaf, state, **extra):
  """Makes the change the result: what `merge` returns is then all of it."""
  merged = update(leaf, state, **extra)
  return merged._replace(base=jnp.zeros_like(merged.base))


@jax.jit
def pack_masks(
  base: jax.Array,
  experts: tuple[jax.Array, ...],
  merged: jax.Array,
  thresholds: jax.Array,
) -> jax.Array:
  """Returns the masks of one leaf, a bit for each entry.

  Args:
    base: The leaf of the base, `[*shape]`.
    experts: That of each expert.
    merged: The merged task vector, `[*shape]`.
    thresholds: `f32[experts]`.

  Returns:
    `u8[experts, ceil(size / 8)]`.

  Examples:
    >>> bits = pack_masks(
    ...   jnp.zeros(3), (jnp.array([1.0, 0, 2]),), jnp.ones(3), jnp.array([0.4])
    ... )
    >>> bits.tolist()  # 0b10100000
    [[160]]
  """
  row = (base, *experts)
  pack = programs.in_automatic_mesh(_pack_masks, row)
  return pack(base, experts, merged, thresholds)


def _pack_masks(base, experts, merged, thresholds):
  base, merged = storage_lib.widened(base), storage_lib.widened(merged).ravel()
  rows = [
    masking.tall_mask(
      (storage_lib.widened(x) - base).ravel(), merged, threshold
    )
    for x, threshold in zip(experts, thresholds, strict=True)
  ]
  return jnp.packbits(jnp.stack(rows), axis=1)


@jax.jit
def restore_leaf(
  base: jax.Array, merged: jax.Array, mask: jax.Array
) -> jax.Array:
  """Returns one leaf of an expert, `base + mask merged`.

  Args:
    base: The leaf of the base, `[*shape]`.
    merged: The merged task vector, `[*shape]`.
    mask: Packed, `u8[ceil(size / 8)]`.

  Returns:
    `[*shape]`, added in float32 and rounded once to the dtype of the base.

  Examples:
    >>> mask = jnp.array([160], jnp.uint8)
    >>> restore_leaf(jnp.ones(3), jnp.full(3, 4.0), mask).tolist()
    [5.0, 1.0, 5.0]
  """
  row, sharding = (base, merged), jax.typeof(base).sharding
  run = programs.in_automatic_mesh(_restore_leaf, row, sharding)
  return run(base, merged, mask)


def _restore_leaf(base, merged, mask):
  bits = jnp.unpackbits(mask, count=merged.size).reshape(merged.shape)
  change = storage_lib.widened(merged)
  restored = storage_lib.widened(base) + jnp.where(
    bits > 0, change, jnp.zeros_like(change)
  )
  return restored.astype(base.dtype)


def restore(bundle: Bundle, base: Tree, name: str) -> Tree:
  """Returns an expert, to within what its mask could not tell.

      theta = theta_0 + m_t tau

  It works under `jit`, with a static name.

  Args:
    bundle: What `compress` returned.
    base: The base that it was compressed with.
    name: Of the expert.

  Returns:
    The parameters, with the structure and dtypes of `base`. Leaves that are not
    floating are those of `base`.

  Raises:
    ValueError: There is no such expert, or the base has other leaves.
  """
  index = storage_lib.index_of('restore', name, bundle.names)
  flat = dict(tree.flatten(base))
  storage_lib.check_base(flat, {k: x.shape for k, x in bundle.merged.items()})
  for path, merged in bundle.merged.items():
    flat[path] = restore_leaf(
      jnp.asarray(flat[path]), merged, bundle.masks[path][index]
    )
  return tree.unflatten(flat, like=base)
