"""Ways to store the changes of one leaf by several experts in few bytes.

A codec turns the leaves of the base and of the experts into named arrays, its
parts, and gives any piece of the change of any expert back from pieces of
them.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any
from typing import ClassVar
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from experiments.checkpoints import changes
from merging import dynamic
from merging import patterns
import numerics

Shape = tuple[int, ...]

_BLOCK = 64  # Rows of a product of factors.

_FLOATS = ('float32', 'bfloat16', 'float16')
# Types that parts may have.
TYPES: Mapping[str, tuple[str, ...]] = {
  'codes': ('uint8',),
  'scales': ('float32',),
  'merged': _FLOATS,
  'masks': ('uint8',),
  'left': ('float32',),
  'right': ('float32',),
  'whole': ('float32',),
}


class Parts(NamedTuple):
  """Stored parts of a leaf.

  Attributes:
    shapes: Of the parts, by name.
    fetch: `(part, start, count) -> [count]`, in the order of a C array.
  """

  shapes: Mapping[str, Shape]
  fetch: Callable[[str, int, int], np.ndarray]


def in_memory(parts: Mapping[str, np.ndarray]) -> Parts:
  """Returns parts that are arrays."""
  return Parts(
    {part: array.shape for part, array in parts.items()},
    lambda part, start, count: parts[part].reshape(-1)[start : start + count],
  )


class Codec(Protocol):
  """A way to store changes; its fields are its settings, JSON-like."""

  parts: ClassVar[tuple[str, ...]]

  def encode(
    self, base: np.ndarray, experts: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Returns the parts for the leaves of all experts, sorted by name."""
    ...

  def decode(
    self, parts: Parts, expert: int, shape: Shape, start: int, stop: int
  ) -> np.ndarray:
    """Returns a piece of the change of an expert, `f32[stop - start]`."""
    ...

  def fits(
    self, shapes: Mapping[str, Shape], experts: int, leaf: Shape
  ) -> bool:
    """Whether parts of these shapes are those of a leaf."""
    ...


@dataclasses.dataclass(frozen=True)
class Narrow:
  """Each change in a narrow floating-point format, a scale for each group.

      change ≈ scale · round(change / scale),   scale = max |group| / format max

  with float4_e2m1fn, two to a byte, or float8_e4m3fn, as
  `numerics.fake_quantize` has it, bit for bit. A group costs 4 bytes more.

  Attributes:
    bits: 4 or 8.
    group: Entries that share a scale, an even number.
  """

  bits: int
  group: int = 64
  parts: ClassVar[tuple[str, ...]] = ('codes', 'scales')

  def __post_init__(self):
    if self.bits not in (4, 8):
      raise ValueError(f'bits is {self.bits!r}, expected 4 or 8')
    if type(self.group) is not int or self.group < 2 or self.group % 2:
      raise ValueError(f'group is {self.group!r}, expected an even number')

  def encode(
    self, base: np.ndarray, experts: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Returns `codes`, `u8[experts, bytes]`, and `scales`, `f32`."""
    start = changes.widened(base).reshape(-1)
    room = -start.size % self.group
    rows = []
    for name in sorted(experts):
      change = changes.widened(experts[name]).reshape(-1) - start
      groups = np.pad(change, (0, room)).reshape(-1, self.group)
      stored, scales = _narrow(jnp.asarray(groups), self._format)
      codes = np.asarray(stored).astype(self._dtype).view(np.uint8).reshape(-1)
      if self.bits == 4:
        codes = (codes[::2] & 15) | (codes[1::2] << 4)
      rows.append((codes, np.asarray(scales).reshape(-1)))
    codes, scales = zip(*rows, strict=True)
    return {'codes': np.stack(codes), 'scales': np.stack(scales)}

  def decode(
    self, parts: Parts, expert: int, shape: Shape, start: int, stop: int
  ) -> np.ndarray:
    """Returns a piece of the change of an expert, `f32[stop - start]`."""
    groups = self._groups(shape)
    first, last = start // self.group, -(-stop // self.group)
    scales = parts.fetch('scales', expert * groups + first, last - first)
    row = self.group * self.bits // 8
    codes = parts.fetch(
      'codes', (expert * groups + first) * row, (last - first) * row
    )
    values = _values(self.bits)[codes]
    change = scales[:, None] * values.reshape(-1, self.group)
    return change.reshape(-1)[start - first * self.group :][: stop - start]

  def fits(
    self, shapes: Mapping[str, Shape], experts: int, leaf: Shape
  ) -> bool:
    """Whether parts of these shapes are those of a leaf."""
    groups = self._groups(leaf)
    return shapes == {
      'codes': (experts, groups * self.group * self.bits // 8),
      'scales': (experts, groups),
    }

  def _groups(self, shape: Shape) -> int:
    return -(-math.prod(shape) // self.group)

  @property
  def _format(self) -> numerics.Format:
    return numerics.float4_e2m1fn if self.bits == 4 else numerics.float8_e4m3fn

  @property
  def _dtype(self) -> np.dtype:
    narrow = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
    return np.dtype(narrow[self.bits == 8])


@functools.cache
def _values(bits: int) -> np.ndarray:
  """The numbers that a byte stands for, `f32[256, 8 / bits]`."""
  codes = np.arange(256, dtype=np.uint8)
  if bits == 8:
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)[:, None]
  codes = np.stack([codes & 15, codes >> 4], axis=-1)
  return codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _narrow(groups, fmt):
  scales = numerics.absmax_scale(groups, fmt, axis=-1)
  largest = np.float32(fmt.max)
  scaled = jnp.clip(groups * (1 / scales), -largest, largest)
  return numerics.round_to(scaled, fmt), scales


@dataclasses.dataclass(frozen=True)
class Tall:
  """One merged task vector, and a bit for each entry and expert (TALL masks).

  See `merging.dynamic.tall`.

  Attributes:
    threshold: The larger, the fewer entries an expert takes.
    dtype: Of the merged task vector; empty for that of the leaf in the base.
  """

  threshold: float = 0.4
  dtype: str = ''
  parts: ClassVar[tuple[str, ...]] = ('merged', 'masks')

  def __post_init__(self):
    if not 0 <= self.threshold < math.inf:
      raise ValueError(
        f'threshold is {self.threshold!r}, expected 0 or more; its authors '
        'search 0.2 to 0.6'
      )
    patterns.check_option('Tall', 'dtype', self.dtype, ('', *_FLOATS))

  def encode(
    self, base: np.ndarray, experts: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Returns `merged`, `[*shape]`, and `masks`, `u8[experts, bytes]`."""
    own = str(base.dtype)
    bundle = dynamic.tall.compress(
      {'x': base},
      {name: {'x': leaf} for name, leaf in experts.items()},
      self.threshold,
      dtype=jnp.dtype(self.dtype or (own if own in _FLOATS else 'float32')),
    )
    return {
      'merged': np.asarray(bundle.merged['x']),
      'masks': np.asarray(bundle.masks['x']),
    }

  def decode(
    self, parts: Parts, expert: int, shape: Shape, start: int, stop: int
  ) -> np.ndarray:
    """Returns a piece of the change of an expert, `f32[stop - start]`."""
    merged = parts.fetch('merged', start, stop - start).astype(np.float32)
    row = -(-math.prod(shape) // 8)
    first, last = start // 8, -(-stop // 8)
    bits = parts.fetch('masks', expert * row + first, last - first)
    mask = np.unpackbits(bits)[start - 8 * first :][: stop - start]
    return np.where(mask, merged, np.float32(0))

  def fits(
    self, shapes: Mapping[str, Shape], experts: int, leaf: Shape
  ) -> bool:
    """Whether parts of these shapes are those of a leaf."""
    row = -(-math.prod(leaf) // 8)
    return shapes == {'merged': leaf, 'masks': (experts, row)}


@dataclasses.dataclass(frozen=True)
class LowRank:
  """Leading singular triples of each change (TSV-C).

  See `merging.dynamic.tsv`. What factors would not make smaller is kept whole.

  Attributes:
    share: Fraction of the singular values to keep, or 0 for one over the number
      of experts.
  """

  share: float = 0.0
  parts: ClassVar[tuple[str, ...]] = ('left', 'right', 'whole')

  def __post_init__(self):
    if not 0 <= self.share <= 1:
      raise ValueError(
        f'share is {self.share!r}, expected a fraction, or 0 for one over the '
        'number of experts'
      )

  def encode(
    self, base: np.ndarray, experts: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Returns `left` and `right`, `f32`, or `whole`, `f32[experts, *shape]`."""
    bundle = dynamic.tsv.compress(
      {'x': base},
      {name: {'x': leaf} for name, leaf in experts.items()},
      share=self.share or None,
    )
    found = bundle.changes['x']
    if isinstance(found, dynamic.twin.Factors):
      return {
        'left': np.asarray(found.left, np.float32),
        'right': np.asarray(found.right, np.float32),
      }
    return {'whole': np.asarray(found, np.float32)}

  def decode(
    self, parts: Parts, expert: int, shape: Shape, start: int, stop: int
  ) -> np.ndarray:
    """Returns a piece of the change of an expert, `f32[stop - start]`."""
    if 'whole' in parts.shapes:
      place = expert * math.prod(shape) + start
      return parts.fetch('whole', place, stop - start)
    rows, columns = shape
    rank = parts.shapes['left'][-1]
    right = parts.fetch('right', expert * rank * columns, rank * columns)
    right = right.reshape(rank, columns)
    # The order in which a product is summed depends on its shape. Rows are
    # multiplied in the same blocks for whatever piece, so that it is no other.
    first = start // columns // _BLOCK * _BLOCK
    last = min(rows, -(-stop // columns // _BLOCK) * _BLOCK)
    blocks = []
    for row in range(first, last, _BLOCK):
      count = min(_BLOCK, rows - row)
      left = parts.fetch('left', (expert * rows + row) * rank, count * rank)
      blocks.append(left.reshape(count, rank) @ right)
    change = np.concatenate(blocks).reshape(-1)
    return change[start - first * columns :][: stop - start]

  def fits(
    self, shapes: Mapping[str, Shape], experts: int, leaf: Shape
  ) -> bool:
    """Whether parts of these shapes are those of a leaf."""
    if 'whole' in shapes:
      return shapes == {'whole': (experts, *leaf)}
    left, right = shapes.get('left', ()), shapes.get('right', ())
    if len(shapes) != 2 or len(leaf) != 2 or len(left) != len(right) != 3:
      return False
    rank = left[-1]
    return (left, right) == (
      (experts, leaf[0], rank),
      (experts, rank, leaf[1]),
    )


_KINDS: dict[str, Callable[..., Codec]] = {
  '4bit': functools.partial(Narrow, 4),
  '8bit': functools.partial(Narrow, 8),
  'tall': Tall,
  'low_rank': LowRank,
}
KINDS = tuple(_KINDS)


def make(kind: str, **settings: Any) -> Codec:
  """Returns a codec by name.

  Args:
    kind: `'4bit'`, `'8bit'`, `'tall'` or `'low_rank'`.
    **settings: Its fields: `group` of the first two, `threshold` and `dtype` of
      `'tall'`, `share` of `'low_rank'`.

  Returns:
    The codec.

  Raises:
    ValueError: The name or a setting is unknown, or out of range.

  Examples:
    >>> make('4bit', group=32)
    Narrow(bits=4, group=32)
  """
  patterns.check_option('make', 'kind', kind, KINDS)
  try:
    return _KINDS[kind](**settings)
  except TypeError as error:
    raise ValueError(
      f'{kind} does not have these settings: {patterns.listing(settings)}'
    ) from error
