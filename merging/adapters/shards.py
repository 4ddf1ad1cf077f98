"""Adapters cut from pools that all layers share: a mixture of shards."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from merging import draws
from merging.adapters import leaves as leaves_lib
from merging.adapters import lora

Tree = Any


class Pool(NamedTuple):
  """The shards of one group of matrices: all that is trained.

  Attributes:
    a: `f32[count, in / shards]`.
    b: `f32[count, out / shards]`.
  """

  a: jax.Array
  b: jax.Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('a', 'b'),
  meta_fields=('group', 'scale', 'layout'),
)
@dataclasses.dataclass(frozen=True)
class Selection:
  """Which shards make up the factors of one leaf: drawn once, never trained.

  Attributes:
    a: Places in the pool, `i32[rank, shards]`.
    b: Likewise.
    group: Name of the pool.
    scale: Of the adapter.
    layout: Of the leaf.
  """

  a: jax.Array
  b: jax.Array
  group: str
  scale: float
  layout: leaves_lib.Layout


class Shards(NamedTuple):
  """An adapter of shared shards.

  Attributes:
    pools: By group; train these.
    selections: By path of the leaf; constants.
  """

  pools: dict[str, Pool]
  selections: dict[str, Selection]


def init_shards(
  key: jax.Array,
  base: Tree,
  *,
  rank: int,
  budget: int,
  private: int = 1,
  shards: int = 4,
  alpha: float = 16.0,
  dissociate: bool = True,
  leaves: leaves_lib.Selector = '',
  layers: tuple[int, int] | None = None,
  block: str = leaves_lib.BLOCK,
  layout: leaves_lib.Layout | Mapping[str, leaves_lib.Layout] = 'in_out',
  group: Callable[[str], str] | None = None,
) -> Shards:
  """Returns an adapter whose layers share their shards (MoS).

  Each of the `L` matrices of a group has factors of rank `rank`, but together
  they have the parameters of `L` adapters of rank `budget`:

      count = L · budget · (in + out)

  Vectors of the factors are concatenated from `shards` shards each. Of `rank`
  vectors, `private` belong to the matrix alone. The shards of the others are
  drawn at random from a public pool, once, without replacement within a matrix
  (subset selection), for `a` apart from `b` (pair dissociation), and for every
  part of a vector (vector sharding). `rank == budget == private` is LoRA.

  The authors' published code has no pools; this follows the paper's
  description. That draws are without replacement, that public vectors precede
  private ones, and that matrices of one shape are one group by default, are our
  reading.

  Args:
    key: Random key; each leaf folds in a hash of its path.
    base: Parameters.
    rank: Of the factors, `r` in the paper.
    budget: Rank of the LoRA adapters that would have as many parameters.
    private: Vectors that a matrix has for itself, at most `budget`.
    shards: Parts of a vector, `l` in the paper; divides both sides of a matrix.
    alpha: The scale is `alpha / rank`.
    dissociate: Whether `b` draws its own shards; else those of `a`.
    leaves: Which matrices to adapt (see `init_lora`).
    layers: `(first, last)` blocks, likewise.
    block: How blocks are numbered, likewise.
    layout: How the model stores matrices, likewise.
    group: `path -> name of the pool`, such as one for each kind of projection;
      all matrices of a group have one shape. By default, the shape.

  Returns:
    The pools, with `b` zero and `a` as in LoRA, and the selections.

  Raises:
    ValueError: Nothing is selected, sizes do not divide, a group has several
      shapes, or its public pool has fewer shards than a matrix draws.

  Examples:
    >>> base = {'blocks': [{'kernel': jnp.ones((8, 4))} for _ in range(4)]}
    >>> pools, selections = init_shards(
    ...   jax.random.key(0), base, rank=4, budget=2, shards=2
    ... )
    >>> sum(each.size for each in jax.tree.leaves(pools)) == 4 * 2 * (8 + 4)
    True

  References:
    Sheng Wang, Liheng Chen, Pengan Chen, Jingwei Dong, Boyang Xue, Jiyue Jiang,
    Lingpeng Kong, Chuan Wu. "MoS: Unleashing Parameter Efficiency of Low-Rank
    Adaptation with Mixture of Shards". ICLR 2025. arXiv:2410.00938.
  """
  caller = 'init_shards'
  for name, value in (('rank', rank), ('budget', budget), ('shards', shards)):
    lora.check_rank(caller, value, name)
  if not 0 <= private <= min(rank, budget):
    raise ValueError(
      f'{caller}: private is {private}, expected 0 <= private <= rank={rank} '
      f'and budget={budget}'
    )
  chosen = leaves_lib.choose(
    caller, base, leaves, layers=layers, block=block, layout=layout
  )
  groups: dict[str, list[str]] = {}
  for path, matrix in chosen.items():
    default = f'{matrix.fan_in}x{matrix.fan_out}'
    name = default if group is None else group(path)
    groups.setdefault(name, []).append(path)
  pools = {}
  selections = {}
  for name, paths in groups.items():
    matrix = _one_shape(caller, name, {path: chosen[path] for path in paths})
    if matrix.fan_in % shards or matrix.fan_out % shards:
      raise ValueError(
        f'{caller}: shards={shards} does not divide {matrix.fan_in} inputs and '
        f'{matrix.fan_out} outputs of {paths[0]!r}'
      )
    public = len(paths) * (budget - private) * shards
    drawn = (rank - private) * shards
    if drawn > public:
      raise ValueError(
        f'{caller}: {paths[0]!r} draws {drawn} shards, but the {len(paths)} '
        f'matrices of group {name!r} share {public}; lower rank or private, or '
        'raise budget'
      )
    for i, path in enumerate(paths):
      place = public + i * private * shards
      own = jnp.arange(place, place + private * shards, dtype=jnp.int32)
      a, b = (
        _draw(jax.random.fold_in(key, each), public, drawn, own, rank)
        for each in draws.hashes([f'{path}/a', f'{path}/b'])
      )
      selections[path] = Selection(
        a, b if dissociate else a, name, alpha / rank, chosen[path].layout
      )
    count = len(paths) * budget
    pool_key = jax.random.fold_in(key, draws.hashes([name])[0])
    pools[name] = Pool(
      lora.uniform(pool_key, matrix, count).T.reshape(count * shards, -1),
      jnp.zeros((count * shards, matrix.fan_out // shards), jnp.float32),
    )
  return Shards(pools, selections)


def _one_shape(caller, name, members):
  (first, matrix), *others = members.items()
  for path, each in others:
    if (each.fan_in, each.fan_out) != (matrix.fan_in, matrix.fan_out):
      raise ValueError(
        f'{caller}: group {name!r} has {first!r} of {matrix.leaf.shape} and '
        f'{path!r} of {each.leaf.shape}, expected one shape'
      )
  return matrix


def _draw(key, public, drawn, own, rank):
  chosen = jax.random.permutation(key, public)[:drawn].astype(jnp.int32)
  return jnp.concatenate([chosen, own]).reshape(rank, -1)


def gather_shards(
  pools: Mapping[str, Pool], selections: Mapping[str, Selection]
) -> dict[str, lora.Lora]:
  """Returns the adapter that the shards make up.

  From here on it is any other adapter. To train, differentiate in the pools:
  `apply(base, gather_shards(pools, selections))`.

  Args:
    pools: Of `init_shards`, as trained so far.
    selections: Of `init_shards`.

  Returns:
    The adapters by path.

  Raises:
    ValueError: A pool is missing.

  Examples:
    >>> base = {'kernel': jnp.ones((8, 4))}
    >>> adapter = gather_shards(
    ...   *init_shards(jax.random.key(0), base, rank=2, budget=2)
    ... )
    >>> adapter['kernel'].a.shape, adapter['kernel'].b.shape
    ((8, 2), (2, 4))
  """
  adapter = {}
  for path, each in selections.items():
    if each.group not in pools:
      raise ValueError(
        f'gather_shards: {path!r} takes shards of {each.group!r}, there are '
        f'pools {sorted(pools)}'
      )
    pool = pools[each.group]
    rank = len(each.a)
    adapter[path] = lora.Lora(
      a=pool.a[each.a].reshape(rank, -1).T,
      b=pool.b[each.b].reshape(rank, -1),
      scale=each.scale,
      layout=each.layout,
    )
  return adapter
