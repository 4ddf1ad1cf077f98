"""Dropping changes at random."""

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from merging import patterns
from merging import references
from merging import transform

_RESCALES = ('expectation', 'l1', 'l2', 'linf', 'none')


class _State(NamedTuple):
  rate: float | jax.Array
  key: jax.Array
  paths: np.ndarray  # u32[leaves]
  models: np.ndarray  # u32[models]


@references.cited
def drop_and_rescale(
  rate: float | jax.Array,
  *,
  key: jax.Array,
  rescale: Literal['expectation', 'l1', 'l2', 'linf', 'none'] = 'expectation',
) -> transform.MergeTransform:
  """Zeroes a random fraction of the changes and scales up the rest (DARE).

  Small changes are redundant enough for most of them to be dropped, and what is
  sparse interferes less. For each entry,

      delta = delta * bernoulli(1 - rate) / (1 - rate)

  which leaves its expectation as it was. The mask of a leaf depends on the key,
  its path and the expert's name only: not on the order of leaves or experts,
  and not on how they are sharded.

  Args:
    rate: Probability of dropping an entry, in [0, 1).
    key: Random key, as of `jax.random.key(0)`.
    rescale: `'expectation'` divides by `1 - rate`, as the paper. `'l1'`, `'l2'`
      and `'linf'` restore that norm of each expert's leaf (mergekit does, with
      `'l1'`), which differs. `'none'` only drops, as the authors' code does
      unless it is given `--use_weight_rescale`.

  Returns:
    The transform.

  Raises:
    ValueError: `rate` is not in [0, 1), or `rescale` is unknown.
    TypeError: `key` is not a random key.

  Examples:
    >>> import merging
    >>> key = jax.random.key(0)
    >>> transform = merging.chain(
    ...   merging.drop_and_rescale(0.5, key=key), merging.total()
    ... )
    >>> base, expert = {'w': jnp.zeros(6)}, {'w': jnp.ones(6)}
    >>> merged = merging.merge(transform, base, {'expert': expert})
    >>> sorted(set(merged['w'].tolist()))
    [0.0, 2.0]

  References:
    Le Yu, Bowen Yu, Haiyang Yu, Fei Huang, Yongbin Li. "Language Models are
    Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch".
    ICML 2024. arXiv:2311.03099.
  """
  patterns.check_option('drop_and_rescale', 'rescale', rescale, _RESCALES)
  if not isinstance(rate, jax.Array) and not 0 <= rate < 1:
    raise ValueError(
      f'drop_and_rescale: rate is {rate}, expected 0 <= rate < 1'
    )
  if not isinstance(key, jax.Array):
    raise TypeError(
      f'drop_and_rescale: key is {key!r}, expected a random key such as '
      'jax.random.key(0)'
    )

  def init(specs, models):
    paths = hashes([spec.path for spec in specs])
    return _State(rate, key, paths, hashes(models))

  return transform.MergeTransform(init, (), transform.bind(_drop, rescale))


def hashes(names: Sequence[str]) -> np.ndarray:
  """Returns a number for each name that is the same in every run, `u32[len]`.

  Examples:
    >>> hashes(['kernel']).tolist()
    [1574083243]
  """
  return np.array([zlib.crc32(name.encode()) for name in names], np.uint32)


def _drop(rescale, leaf, state, **extra):
  if len(leaf.deltas) != len(state.models):
    raise ValueError(
      f'drop_and_rescale: {len(leaf.deltas)} deltas of {len(state.models)} '
      'experts; drop before the experts are combined'
    )
  path = jnp.asarray(state.paths)[leaf.index]
  leaf_key = jax.random.fold_in(state.key, path)
  keep_rate = 1 - jnp.asarray(state.rate, jnp.float32)

  def keep_of(model):
    key = jax.random.fold_in(leaf_key, model)
    return jax.random.bernoulli(key, keep_rate, leaf.base.shape)

  # One expert after the other: `vmap` would mix the keys of some generators.
  keeps = jax.lax.map(keep_of, jnp.asarray(state.models))
  deltas = []
  for delta, keep in zip(leaf.deltas, keeps, strict=True):
    kept = jnp.where(keep, delta, jnp.zeros_like(delta))
    factor = _factor(rescale, keep_rate, delta, kept)
    deltas.append(kept if factor is None else factor * kept)
  return leaf._replace(deltas=tuple(deltas))


def _factor(rescale, keep_rate, delta, kept):
  if rescale == 'none':
    return None
  if rescale == 'expectation':
    # A factor, not a divisor: XLA turns division by a constant into one, and
    # the bits would depend on whether the rate is a constant.
    return (1 / keep_rate).astype(delta.dtype)
  before, after = _norm(rescale, delta), _norm(rescale, kept)
  some = after > 0
  return jnp.where(some, before / jnp.where(some, after, 1), 1)


def _norm(kind, x):
  size = jnp.abs(x)
  if kind == 'linf':
    return jnp.max(size, initial=0)
  return jnp.sqrt(jnp.sum(size * size)) if kind == 'l2' else jnp.sum(size)
