"""The rows of the table: how experts are merged, and what is searched.

A new method is one entry of `METHODS`. Nothing else knows the list.
"""

from collections.abc import Iterable
import difflib
import functools
from typing import Any

import jax

from experiments.arithmerge.method import grid
from experiments.arithmerge.method import Method
from experiments.arithmerge.method import Models
import merging
from merging.dynamic import tall
from merging.dynamic import tsv
from merging.dynamic import twin

# Coefficients of a sum of nearly orthogonal task vectors, of a mean of those
# that agree, and of a sum whose spectrum was levelled.
_SUM = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)
_MEAN = (0.5, 1.0, 1.5, 2.0, 2.5)
_LEVEL = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def _restored(stored: Any, base: Any, experts: Models) -> Models:
  """What comes back of each expert from a bundle."""
  compress, restore = stored
  bundle = compress(base, experts)
  return {name: restore(bundle, base, name) for name in experts}


def _onto_first(
  made: merging.MergeTransform, base: Any, experts: Models
) -> Any:
  """Merges the second expert into the first, as if that were the base."""
  del base
  first, second = experts.values()
  return merging.merge(made, first, {'second': second})


def _protected(made: Any, base: Any, experts: Models) -> Any:
  """Merges experts that were each rewritten without changing what they do."""
  protect, transform = made
  rewritten = {
    name: protect(base, expert, i)
    for i, (name, expert) in enumerate(sorted(experts.items()))
  }
  return merging.merge(transform, base, rewritten)


def _lock(key: jax.Array, spec: Any, scale: jax.Array) -> Any:
  def protect(base: Any, expert: Any, i: int) -> Any:
    del base
    own = jax.random.fold_in(key, i)
    return merging.symmetry.merge_lock(own, expert, spec).params

  return protect, merging.task_arithmetic(scale)


def _rearrange(key: jax.Array, spec: Any, scale: jax.Array) -> Any:
  def protect(base: Any, expert: Any, i: int) -> Any:
    own = jax.random.fold_in(key, i)
    rewrite = merging.symmetry.rearrange_and_scale
    return rewrite(own, expert, base, spec).params

  return protect, merging.task_arithmetic(scale)


METHODS: tuple[Method, ...] = (
  Method(
    name='average',
    recipe='average',
    build=lambda key: merging.average(),
    tangent=True,
  ),
  Method(
    name='weighted by validation',
    recipe='metrics_weighted_average',
    build=lambda key, scores, penalty: merging.metrics_weighted_average(
      scores, penalty, better='higher'
    ),
    settings=grid(penalty=(0.5, 1.0, 2.0)),
    default={'penalty': 1.0},
    by_scores=True,
  ),
  Method(
    name='greedy soup',
    recipe='weighted_average',
    build=lambda key, **weights: merging.weighted_average(weights),
    default=None,
    search=merging.search.greedy_soup,
  ),
  Method(
    name='multi-SLERP of task vectors',
    recipe='multislerp',
    build=lambda key, scale: merging.chain(
      merging.multislerp(of='deltas'), merging.scale(scale)
    ),
    settings=grid(scale=_MEAN),
    default={'scale': 1.0},
  ),
  Method(
    name='Karcher mean of task vectors',
    recipe='karcher',
    build=lambda key, scale: merging.chain(
      merging.karcher(of='deltas'), merging.scale(scale)
    ),
    settings=grid(scale=_MEAN),
    default={'scale': 1.0},
  ),
  Method(
    name='Model Stock',
    recipe='model_stock',
    build=lambda key: merging.model_stock(),
  ),
  Method(
    name='task arithmetic',
    recipe='task_arithmetic',
    build=lambda key, scale: merging.task_arithmetic(scale),
    settings=grid(scale=_SUM),
    default={'scale': 0.4},
    tangent=True,
  ),
  Method(
    name='MetaGPT',
    recipe='metagpt',
    build=lambda key: merging.metagpt(),
  ),
  Method(
    name='LiNeS',
    recipe='lines',
    build=lambda key, scale: merging.lines(merging.total(), scale),
    settings=grid(scale=(0.1, 0.2, 0.3, 0.5, 0.8)),
    default={'scale': 0.3},
  ),
  Method(
    name='TIES',
    recipe='ties',
    build=lambda key, density, scale: merging.ties(density, scale),
    settings=grid(density=(0.2, 0.5), scale=_MEAN),
    default={'density': 0.2, 'scale': 1.0},
    tangent=True,
  ),
  Method(
    name='DARE',
    recipe='dare',
    build=lambda key, rate, scale: merging.dare(
      rate, merging.task_arithmetic(scale), key=key
    ),
    settings=grid(rate=(0.3,), scale=_SUM),
    default={'rate': 0.3, 'scale': 0.4},
  ),
  Method(
    name='DARE-TIES',
    recipe='dare_ties',
    build=lambda key, rate, density, scale: merging.dare_ties(
      rate, density, scale, key=key
    ),
    settings=grid(rate=(0.3,), density=(0.2, 0.5), scale=(1.0, 1.5, 2.0)),
    default={'rate': 0.3, 'density': 0.2, 'scale': 1.0},
  ),
  Method(
    name='DELLA',
    recipe='della',
    build=lambda key, density, scale: merging.della(density, scale, key=key),
    settings=grid(density=(0.7,), scale=(0.5, 1.1, 1.5, 2.0, 2.5)),
    default={'density': 0.7, 'scale': 1.1},
  ),
  Method(
    name='Breadcrumbs',
    recipe='breadcrumbs',
    build=lambda key, drop_low, scale: merging.breadcrumbs(
      drop_low, scale=scale
    ),
    settings=grid(drop_low=(0.85, 0.5), scale=(0.3, 0.5, 0.8, 1.2)),
    default={'drop_low': 0.85, 'scale': 0.3},
  ),
  Method(
    name='PCB',
    recipe='pcb',
    build=lambda key, density, scale: merging.pcb(density, scale),
    settings=grid(density=(0.05, 0.2), scale=(0.6, 1.2, 1.8)),
    default={'density': 0.05, 'scale': 1.2},
  ),
  Method(
    name='SCE',
    recipe='sce',
    build=lambda key, density: merging.sce(density),
    settings=grid(density=(0.1, 0.3, 1.0)),
    default={'density': 1.0},
  ),
  Method(name='RAM', recipe='ram', build=lambda key: merging.ram()),
  Method(name='RAM+', recipe='ramplus', build=lambda key: merging.ramplus()),
  Method(name='WIDEN', recipe='widen', build=lambda key: merging.widen()),
  Method(
    name='Consensus',
    recipe='consensus',
    build=lambda key, scale: merging.consensus(scale),
    settings=grid(scale=_SUM),
    default={'scale': 0.3},
  ),
  Method(
    name='KnOTS-TIES',
    recipe='knots',
    build=lambda key, density, scale: merging.knots(
      merging.ties(density, scale)
    ),
    settings=grid(density=(0.2,), scale=_MEAN),
    default={'density': 0.2, 'scale': 1.0},
  ),
  Method(
    name='TSV-M',
    recipe='tsv',
    build=lambda key, scale: merging.tsv(scale),
    settings=grid(scale=_LEVEL),
    default={'scale': 1.0},
    tangent=True,
  ),
  Method(
    name='Iso-C',
    recipe='iso_c',
    build=lambda key, scale: merging.iso_c(scale),
    settings=grid(scale=_LEVEL),
    default={'scale': 1.0},
    tangent=True,
  ),
  Method(
    name='Iso-CTS',
    recipe='iso_cts',
    build=lambda key, scale: merging.iso_cts(scale),
    settings=grid(scale=_LEVEL),
    default={'scale': 1.0},
  ),
  Method(name='OPCM', recipe='opcm', build=lambda key: merging.opcm()),
  Method(
    name='WUDI',
    recipe='wudi',
    build=lambda key, scale: merging.wudi(scale=scale, otherwise='mean'),
    settings=grid(scale=(0.3, 0.6, 1.0)),
    default={'scale': 1.0},
  ),
  Method(
    name='SWUDI',
    recipe='swudi',
    build=lambda key, scale: merging.swudi(scale=scale),
    settings=grid(scale=(0.6, 0.8, 1.0, 1.3, 1.6)),
    default={'scale': 1.0},
  ),
  Method(
    name='ASWUDI',
    recipe='aswudi',
    build=lambda key, scale: merging.aswudi(scale=scale),
    settings=grid(scale=(0.6, 0.8, 1.0, 1.3, 1.6)),
    default={'scale': 1.0},
    tangent=True,
  ),
  Method(
    name='OptMerge',
    recipe='optmerge',
    build=lambda key, scale: merging.optmerge(scale=scale, otherwise='mean'),
    settings=grid(scale=(0.1, 0.3, 0.6, 1.0)),
    default={'scale': 1.0},
  ),
  Method(
    name='DOGE',
    recipe='doge',
    build=lambda key, scale: merging.doge(scale, otherwise='mean'),
    settings=grid(scale=(0.02, 0.04, 0.07, 0.15, 0.3)),
    default={'scale': 0.07},
  ),
  Method(
    name='TALL masks',
    recipe='dynamic.tall.compress',
    build=lambda key, threshold: (
      functools.partial(tall.compress, threshold=threshold),
      tall.restore,
    ),
    settings=grid(threshold=(0.2, 0.4, 0.6)),
    default={'threshold': 0.4},
    kind='restore',
    run=_restored,
  ),
  Method(
    name='TSV-C',
    recipe='dynamic.tsv.compress',
    build=lambda key: (tsv.compress, tsv.restore),
    kind='restore',
    run=_restored,
  ),
  Method(
    name='Twin, a tenth of the ranks',
    recipe='dynamic.twin.compress',
    build=lambda key: (
      twin.compress,
      lambda bundle, base, name: twin.restore(bundle, name),
    ),
    kind='restore',
    run=_restored,
  ),
  Method(
    name='average of two',
    recipe='average',
    build=lambda key: merging.average(),
    kind='pair',
  ),
  Method(
    name='task arithmetic of two',
    recipe='task_arithmetic',
    build=lambda key, scale: merging.task_arithmetic(scale),
    settings=grid(scale=(0.3, 0.4, 0.6, 0.8, 1.0)),
    default={'scale': 0.4},
    kind='pair',
  ),
  Method(
    name='SLERP',
    recipe='slerp',
    build=lambda key, t: merging.slerp(t, toward='second'),
    settings=grid(t=(0.25, 0.5, 0.75)),
    default={'t': 0.5},
    kind='pair',
  ),
  Method(
    name='NuSLERP of task vectors',
    recipe='nuslerp',
    build=lambda key, t: merging.nuslerp(
      {'first': 1 - t, 'second': t}, of='deltas'
    ),
    settings=grid(t=(0.25, 0.5, 0.75)),
    default={'t': 0.5},
    kind='pair',
  ),
  Method(
    name='NearSwap',
    recipe='nearswap',
    build=lambda key, t: merging.nearswap(t, toward='second'),
    settings=grid(t=(1e-4, 3e-4, 1e-3)),
    default={'t': 3e-4},
    kind='pair',
  ),
  Method(
    name='Arcee Fusion',
    recipe='arcee_fusion',
    build=lambda key: merging.arcee_fusion(),
    kind='pair',
    run=_onto_first,
  ),
  Method(
    name='layer swap',
    recipe='layer_swap',
    build=lambda key: merging.layer_swap(
      'first',
      'second',
      lower=1,
      upper=0,
      lower_transition=0,
      upper_transition=0,
    ),
    kind='pair',
  ),
  Method(
    name='task arithmetic after MergeLock',
    recipe='symmetry.merge_lock',
    build=_lock,
    settings=grid(scale=(0.2, 0.4)),
    default={'scale': 0.4},
    kind='protect',
    run=_protected,
  ),
  Method(
    name='task arithmetic after PaRaMS',
    recipe='symmetry.rearrange_and_scale',
    build=_rearrange,
    settings=grid(scale=(0.2, 0.4)),
    default={'scale': 0.4},
    kind='protect',
    run=_protected,
  ),
)

_ALWAYS = ('average', 'task arithmetic')


def named(names: Iterable[str]) -> tuple[Method, ...]:
  """The rows of these names, in the order of the table; all if there are none.

  Raises:
    KeyError: There is no such row.

  Examples:
    >>> [method.name for method in named(['TIES'])]
    ['average', 'task arithmetic', 'TIES']
  """
  wanted = set(names)
  known = [method.name for method in METHODS]
  for name in sorted(wanted):
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise KeyError(f'there is no row {name!r} among {known}{hint}')
  keep = wanted.union(_ALWAYS) if wanted else known
  return tuple(method for method in METHODS if method.name in keep)
