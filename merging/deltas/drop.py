"""Dropping changes at random."""

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import draws
from merging import patterns
from merging import references
from merging import transform

RESCALES = ('expectation', 'l1', 'l2', 'linf', 'none')
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


class _State(NamedTuple):
  rate: float | jax.Array
  seeds: draws.Seeds


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
    key: Random key, as of `jax.random.key(0)`; another one for every random
      step of a merge, or they drop the same entries.
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
  patterns.check_option('drop_and_rescale', 'rescale', rescale, RESCALES)
  if not checks.within(rate, least=0, most=_BELOW_ONE):
    raise ValueError(
      f'drop_and_rescale: rate is {rate}, expected 0 <= rate < 1'
    )
  draws.check_key('drop_and_rescale', key)

  def init(specs, models):
    return _State(rate, draws.seeds(key, specs, models))

  by_place = draws.by_place(key)
  found = transform.Selection(
    transform.bind(_sizes, rescale),
    transform.bind(_find_factor, rescale),
    entries=False,
  )
  of_entries = rescale in ('expectation', 'none')
  return transform.MergeTransform(
    init,
    (),
    transform.bind(_drop, rescale),
    entrywise=lambda spec: by_place and of_entries,
    selection=lambda spec: found if by_place and not of_entries else None,
  )


def drop(
  caller: str,
  leaf: transform.Leaf,
  seeds: draws.Seeds,
  keep_rates: Sequence[jax.Array],
  rescale: str,
) -> transform.Leaf:
  """Drops entries of a leaf at random, and scales up those that are left.

  Args:
    caller: Name for error messages.
    leaf: The leaf, with the deltas of all experts.
    seeds: What is drawn from.
    keep_rates: For each expert, the probability of keeping an entry, `f32[]` or
      `f32[*shape]`.
    rescale: See `drop_and_rescale`.

  Returns:
    The leaf with fewer changes.
  """
  drawn = draws.uniforms(caller, leaf, seeds)
  deltas = []
  for delta, number, rate in zip(leaf.deltas, drawn, keep_rates, strict=True):
    kept = jnp.where(number < rate, delta, jnp.zeros_like(delta))
    factor = _factor(rescale, rate, delta, kept)
    deltas.append(kept if factor is None else factor * kept)
  return leaf._replace(deltas=tuple(deltas))


def _drop(rescale, leaf, state, selected=None, **extra):
  if selected is None:
    return _dropped(rescale, leaf, state)
  dropped = _dropped('none', leaf, state)
  (factors,) = selected
  deltas = (
    factor.astype(delta.dtype) * delta
    for factor, delta in zip(factors, dropped.deltas, strict=True)
  )
  return dropped._replace(deltas=tuple(deltas))


def _dropped(rescale, leaf, state):
  rate = 1 - jnp.asarray(state.rate, jnp.float32)
  rates = [rate] * len(leaf.deltas)
  return drop('drop_and_rescale', leaf, state.seeds, rates, rescale)


def _sizes(rescale, leaf, state, model):
  """How large an expert's leaf is before and after, or a piece of it."""
  models = jnp.asarray(state.seeds.models)[model][None]
  state = state._replace(seeds=state.seeds._replace(models=models))
  dropped = _dropped('none', leaf, state)
  sizes = [_size(rescale, x) for x in (*leaf.deltas, *dropped.deltas)]
  return jnp.stack(sizes), np.int32(0)


def _find_factor(rescale, sizes, rank):
  """Finds what restores the norm of an expert's leaf, from that of pieces."""
  if rescale == 'linf':
    before, after = sizes.max(axis=0)
  else:
    before, after = sizes.sum(axis=0, dtype=np.float64)
  if rescale == 'l2':
    before, after = np.sqrt([before, after])
  return (float(before / after) if after > 0 else 1.0,)


def _factor(rescale, keep_rate, delta, kept):
  if rescale == 'none':
    return None
  if rescale == 'expectation':
    # A factor, not a divisor: XLA turns division by a constant into one, and
    # the bits would depend on whether the rate is a constant.
    some = keep_rate > 0
    inverse = jnp.where(some, 1 / jnp.where(some, keep_rate, 1), 0)
    return inverse.astype(delta.dtype)
  before, after = _norm(rescale, delta), _norm(rescale, kept)
  some = after > 0
  return jnp.where(some, before / jnp.where(some, after, 1), 1)


def _norm(kind, x):
  size = _size(kind, x)
  return jnp.sqrt(size) if kind == 'l2' else size


def _size(kind, x):
  size = jnp.abs(x)
  if kind == 'linf':
    return jnp.max(size, initial=0)
  return jnp.sum(size * size if kind == 'l2' else size)
