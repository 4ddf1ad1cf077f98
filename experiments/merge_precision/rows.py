"""Where a merge is in which format; adding a row is adding a line."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.arithmerge import method as method_lib
from experiments.arithmerge import methods as method_rows
from experiments.runtime import config as config_lib
import merging
import numerics

Params = Any
Experts = Mapping[str, Params]
Merge = Callable[[Params, Experts], Params]
Fmt = numerics.NumberFormat | numerics.BlockFormat | numerics.OutlierPairs

GROUPS = {
  'all': 'nothing',
  'models': 'base and experts stored',
  'vectors': 'task vectors stored',
  'merge': 'every operation of the merge',
  'result': 'the merged model stored',
}


class Row(NamedTuple):
  """What is in which format.

  Attributes:
    group: A key of `GROUPS`.
    name: What the table calls the format.
    fmt: The format; None for float32.
  """

  group: str
  name: str
  fmt: Fmt | None

  @property
  def key(self) -> str:
    """What settings call it."""
    return f'{self.group}/{self.name}'

  @property
  def bits(self) -> float:
    """Of a number, with its share of a scale that blocks have."""
    if self.fmt is None:
      return 32
    if isinstance(self.fmt, numerics.BlockFormat):
      return self.fmt.bits_per_value
    return self.fmt.bits

  def run(self, merge: Merge, base: Params, experts: Experts) -> Params:
    """Merges.

    Args:
      merge: The merge in float32.
      base: Its base.
      experts: Its experts.

    Returns:
      The merged model.
    """
    fmt = self.fmt
    if fmt is None:
      return merge(base, experts)
    if self.group == 'merge' and not isinstance(fmt, numerics.OutlierPairs):
      return numerics.emulate(merge, fmt)(base, experts)
    stored = functools.partial(_stored_all, fmt)
    if self.group == 'vectors':
      vectors = {
        name: stored(merging.tree.task_vector(expert, base))
        for name, expert in experts.items()
      }
      kept = {
        name: jax.tree.map(jnp.add, base, vector)
        for name, vector in vectors.items()
      }
      return merge(base, kept)
    if self.group == 'models':
      kept = {name: stored(expert) for name, expert in experts.items()}
      return merge(stored(base), kept)
    return stored(merge(base, experts))


@functools.partial(jax.jit, static_argnums=0)
def _stored_all(fmt: Fmt, tree: Params) -> Params:
  return jax.tree.map(functools.partial(_stored, fmt), tree)


def _stored(fmt: Fmt, x: jax.Array) -> jax.Array:
  """What is left of an array; narrow formats have a scale for each row."""
  if isinstance(fmt, numerics.OutlierPairs):
    return fmt.dequantize(fmt.quantize(x))
  if isinstance(fmt, numerics.Format) and fmt.bits >= 16:
    return numerics.round_to(x, fmt)
  return numerics.fake_quantize(x, fmt, axis=-1)


_WIDE: Sequence[Fmt] = (numerics.bfloat16, numerics.float16)
_EIGHT: Sequence[Fmt] = (
  numerics.float8_e4m3fn,
  numerics.float8_e5m2,
  numerics.int8,
  numerics.mxfp8_e4m3,
)
_FOUR: Sequence[Fmt] = (
  numerics.float4_e2m1fn,
  numerics.int4,
  numerics.mxfp4_e2m1,
  numerics.nvfp4,
)
_PAIRS = numerics.OutlierPairs()


def _rows(group: str, formats: Sequence[Any]) -> list[Row]:
  return [Row(group, fmt.name, fmt) for fmt in formats]


ROWS: Sequence[Row] = (
  Row('all', 'float32', None),
  *_rows('models', (*_WIDE, *_EIGHT, *_FOUR)),
  Row('models', 'outlier pairs', _PAIRS),
  *_rows('vectors', (*_WIDE, *_EIGHT, *_FOUR)),
  Row('vectors', 'outlier pairs', _PAIRS),
  *_rows('vectors', (numerics.FixedPoint(3), numerics.FixedPoint(2))),
  *_rows('merge', _WIDE),
  *_rows('result', (*_WIDE, *_EIGHT, *_FOUR)),
  Row('result', 'outlier pairs', _PAIRS),
)
BASELINE = ROWS[0].key


def named(patterns: Sequence[str]) -> list[Row]:
  """The rows that patterns name, float32 first; all if there are none.

  Raises:
    ValueError: If a pattern matches no row.

  Examples:
    >>> [row.key for row in named(['*/int4'])]
    ['all/float32', 'models/int4', 'vectors/int4', 'result/int4']
  """
  rows = {row.key: row for row in ROWS}
  return config_lib.matching('row', rows, patterns, BASELINE)


def methods(names: Sequence[str]) -> list[method_lib.Method]:
  """The merges of these names.

  Raises:
    ValueError: If there is none of a name, or one that needs validation, or is
      no merge of all experts.
  """
  every = {each.name: each for each in method_rows.METHODS}
  chosen = [config_lib.choose('method', name, every) for name in names]
  for each in chosen:
    if each.kind != 'merge' or each.default is None or each.by_scores:
      raise ValueError(
        f'methods: {each.name} is not merged here, as it needs validation or'
        ' merges other models'
      )
  if not chosen:
    raise ValueError('methods: name at least one')
  return chosen


def merge_of(
  method: method_lib.Method,
) -> Callable[[jax.Array, Params, Experts], Params]:
  """A merge with the settings that its authors name, of a key and the models.

  It is compiled by itself, so that rows share it.
  """

  @jax.jit
  def merge(key: jax.Array, base: Params, experts: Experts) -> Params:
    made = method.build(key=key, **(method.default or {}))
    return merging.merge(made, base, experts)

  return merge
