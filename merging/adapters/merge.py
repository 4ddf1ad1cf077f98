"""Merging adapters exactly: by the changes they make, never by factors."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import drivers
from merging import programs
from merging import transform as transform_lib
from merging import tree
from merging.adapters import dense
from merging.adapters import factoring
from merging.adapters import leaves as leaves_lib
from merging.adapters import lora

Tree = Any


def merge_adapters(
  transform: transform_lib.MergeTransform,
  base: Tree,
  adapters: Mapping[str, dense.Adapter],
  **extra: Mapping[str, Tree],
) -> Tree:
  """Merges experts that are adapters of one base into full parameters.

      theta = base + update(delta(adapter_1), ..., delta(adapter_T))

  The transform gets the change that each adapter makes. Combining the factors
  instead, as in `mean(a) @ mean(b)`, is another function with a cross term for
  every pair of experts, and depends on how each product was factored.

  Ranks, scales and the adapted leaves may differ between experts; a leaf that
  an expert does not adapt is one that it does not change. Leaves that none
  adapts stay as they are, and a statistic of the whole model (such as the
  threshold of `ties`) is one of the adapted leaves. Changes are made dense one
  leaf at a time, inside the program that merges them, and never rounded to the
  dtype of the base.

  Args:
    transform: Any merge, such as `ties()`.
    base: Parameters that all adapters were trained on.
    adapters: Adapters by the name of the expert.
    **extra: Data that the transform needs (see `merging.merge`), for adapted
      leaves.

  Returns:
    The merged parameters, with the structure and dtypes of `base`.

  Raises:
    ValueError: An adapter does not fit the base or is not finite; adapters do
      not agree on a layout; the transform does not combine the experts.
    TypeError: `adapters` is not a mapping.

  Examples:
    >>> import merging
    >>> from merging import adapters
    >>> base = {'kernel': jnp.zeros((2, 2)), 'bias': jnp.ones(2)}
    >>> e1, e2 = jnp.eye(2)[:, :1], jnp.eye(2)[:, 1:]
    >>> experts = {
    ...   'math': {'kernel': adapters.Lora(e1, e1.T)},
    ...   'code': {'kernel': adapters.Lora(e2, e2.T)},
    ... }
    >>> merged = merge_adapters(merging.average(), base, experts)
    >>> merged['kernel'].tolist()
    [[0.5, 0.0], [0.0, 0.5]]
  """
  flat = tree.flatten(base)
  changes = _merged(transform, flat, adapters, extra)
  merged = {path: dense.moved(flat[path], each) for path, each in changes}
  return tree.unflatten({**flat, **merged}, like=base)


def merge_to_adapter(
  transform: transform_lib.MergeTransform,
  base: Tree,
  adapters: Mapping[str, dense.Adapter],
  *,
  rank: int,
  layout: leaves_lib.Layout = 'in_out',
  **extra: Mapping[str, Tree],
) -> factoring.Factored:
  """Merges adapters of one base into one adapter, nearest to the exact merge.

  As `merge_adapters`, with the merged change of each leaf brought back to a low
  rank by singular value decomposition. Linear merges of `T` adapters of rank
  `r` are exact at `rank = T r`; others have no such bound, so look at what is
  discarded.

  Args:
    transform: Any merge.
    base: Parameters that all adapters were trained on.
    adapters: Adapters by the name of the expert.
    rank: Of the result; a smaller matrix gets its full rank.
    layout: Of leaves whose adapters have none; that of a `Lora` wins.
    **extra: Data that the transform needs.

  Returns:
    The adapter, and for each leaf the fraction of the squared norm of the
    merged change that it does not hold.

  Raises:
    ValueError: As `merge_adapters`, or the rank is not positive.
    TypeError: `adapters` is not a mapping.

  Examples:
    >>> import merging
    >>> from merging import adapters
    >>> base = {'kernel': jnp.zeros((2, 2))}
    >>> experts = {
    ...   name: {'kernel': adapters.Lora(jnp.ones((2, 1)), jnp.ones((1, 2)))}
    ...   for name in ('math', 'code')
    ... }
    >>> adapter, discarded = merge_to_adapter(
    ...   merging.average(), base, experts, rank=1
    ... )
    >>> round(float(discarded['kernel']), 3)
    0.0
  """
  lora.check_rank('merge_to_adapter', rank)
  flat = tree.flatten(base)
  adapter: dict[str, lora.Lora] = {}
  discarded: dict[str, jax.Array] = {}
  for path, change in _merged(transform, flat, adapters, extra):
    own = next(iter(_layouts(adapters, path).values()), layout)
    adapter[path], discarded[path] = factoring.factor(change, rank, own)
  return factoring.Factored(adapter, discarded)


def _merged(
  transform: transform_lib.MergeTransform,
  flat: Mapping[str, Any],
  adapters: Mapping[str, dense.Adapter],
  extra: Mapping[str, Mapping[str, Tree]],
) -> Iterator[tuple[str, jax.Array]]:
  """Yields the path and the merged change of each adapted leaf."""
  models = checks.check_experts('merge_adapters', adapters)
  for name in models:
    dense.check_fits('merge_adapters', adapters[name], flat, name)
  paths = sorted({path for each in adapters.values() for path in each})
  if not paths:
    raise ValueError('merge_adapters: the adapters adapt no leaf')
  for path in paths:
    layouts = _layouts(adapters, path)
    if len(set(layouts.values())) > 1:
      raise ValueError(
        f'merge_adapters: the adapters at {path!r} do not agree on its layout: '
        f'{layouts}'
      )
  data = checks.check_extra(
    'merge_adapters', transform.extra, extra, models, paths
  )
  checks.check_values(
    'merge_adapters', ('base',), [{path: flat[path] for path in paths}]
  )
  dense.check_finite('merge_adapters', adapters)

  specs = tuple(
    transform_lib.LeafSpec(path, np.shape(leaf), jnp.result_type(leaf))
    for path in paths
    for leaf in (flat[path],)
  )
  state = transform.init(specs, models)
  leaves = [
    programs.Inputs(
      index=np.int32(index),
      row=(
        leaves_lib.widened(flat[path]),
        *(adapters[name].get(path) for name in models),
      ),
      extra={name: drivers.at(path, columns) for name, columns in data.items()},
    )
    for index, path in enumerate(paths)
  ]
  change = transform._replace(
    update=transform_lib.bind(_update, transform.update)
  )
  dtype = jnp.dtype(jnp.float32)
  for path, _, value in drivers.each_leaf(change, specs, leaves, state, dtype):
    yield path, value


def _layouts(adapters, path):
  """By expert, how its adapter of a leaf says that the leaf is stored."""
  own = {name: each.get(path) for name, each in adapters.items()}
  return {
    name: each.layout for name, each in own.items() if hasattr(each, 'layout')
  }


def _update(update, leaf, state, **extra):
  """Merges a leaf and leaves its change alone, on a base of zero."""
  out = update(leaf, state, **extra)
  moved = out.base - leaf.base  # By transforms that interpolate the base.
  deltas = tuple(moved + each for each in out.deltas)
  return out._replace(base=jnp.zeros_like(leaf.base), deltas=deltas)
