"""Dropping changes at random."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import draws
from merging import patterns
from merging import references
from merging import selections
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
  of_entries = rescale in ('expectation', 'none')
  found = None
  if by_place and not of_entries:
    found = choice(rescale, _mask, np.asarray)
  return transform.MergeTransform(
    init,
    (),
    transform.bind(_drop, rescale),
    entrywise=lambda spec: by_place and of_entries,
    selection=lambda spec: found,
  )


def _drop(rescale, leaf, state, selected=None, **extra):
  if selected is not None:
    return scale_kept(leaf, selected)
  keeps = _drawn(leaf, state)
  rates = [_keep_rate(state)] * len(keeps)
  return keep(rescale, leaf, keeps, rates)


def _keep_rate(state):
  return 1 - jnp.asarray(state.rate, jnp.float32)


def _drawn(leaf, state):
  drawn = draws.uniforms('drop_and_rescale', leaf, state.seeds)
  return [number < _keep_rate(state) for number in drawn]


def _mask(leaf, state, model):
  state = state._replace(seeds=draws.of_model(state.seeds, model))
  (mask,) = _drawn(leaf, state)
  return mask


def keep(
  rescale: str,
  leaf: transform.Leaf,
  keeps: Sequence[jax.Array],
  rates: Sequence[jax.Array],
) -> transform.Leaf:
  """Zeroes what is not kept, and scales up the rest.

  Args:
    rescale: See `drop_and_rescale`.
    leaf: The leaf, with the deltas of all experts.
    keeps: Which entries to keep, `bool[*shape]` for each expert.
    rates: With which probability they are kept, `f32[]` or `f32[*shape]`.

  Returns:
    The leaf with fewer changes.
  """
  deltas = []
  for delta, mask, rate in zip(leaf.deltas, keeps, rates, strict=True):
    kept = jnp.where(mask, delta, jnp.zeros_like(delta))
    factor = _factor(rescale, rate, delta, kept)
    deltas.append(kept if factor is None else factor * kept)
  return leaf._replace(deltas=tuple(deltas))


def scale_kept(
  leaf: transform.Leaf, selected: Sequence[tuple[jax.Array, ...]]
) -> transform.Leaf:
  """Does the same with what a host chose.

  Args:
    leaf: The leaf, or a piece of it.
    selected: What is given for a `choice`.

  Returns:
    The leaf with fewer changes.
  """
  deltas = []
  for delta, (mask, *numbers) in zip(leaf.deltas, selected, strict=True):
    kept = jnp.where(mask, delta, jnp.zeros_like(delta))
    for (factor,) in numbers:
      kept = factor.astype(delta.dtype) * kept
    deltas.append(kept)
  return leaf._replace(deltas=tuple(deltas))


def choice(
  rescale: str,
  values: Callable[..., Any],
  choose: Callable[[Any], np.ndarray],
  *,
  by_row: bool = False,
) -> selections.Choice:
  """A choice of entries to keep, and of factors that restore a norm.

  Args:
    rescale: See `drop_and_rescale`; not `'expectation'`.
    values: See `selections.Choice`.
    choose: See there.
    by_row: See there.

  Returns:
    The choice, from which `scale_kept` makes the leaf.
  """
  made = selections.Choice(values, choose, by_row)
  if rescale == 'none':
    return made
  return dataclasses.replace(
    made,
    sizes=transform.bind(_sizes, rescale),
    finish=transform.bind(_find_factor, rescale),
  )


def _sizes(rescale, leaf, state, model, mask):
  """How large an expert's piece is before and after."""
  (delta,) = leaf.deltas
  kept = jnp.where(mask.reshape(delta.shape), delta, jnp.zeros_like(delta))
  return jnp.stack([_size(rescale, delta), _size(rescale, kept)])


def _find_factor(rescale, sizes):
  """Finds what restores the norm of an expert's leaf, from that of pieces."""
  sizes = sizes.astype(np.float64)
  before, after = sizes.max(axis=0) if rescale == 'linf' else sizes.sum(axis=0)
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
