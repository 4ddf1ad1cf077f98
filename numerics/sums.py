"""Sums whose every addition is rounded to a format, in an order one chooses."""

from collections.abc import Callable
import dataclasses
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics import rounding

Order = typing.Literal['sequential', 'chunked', 'blocked', 'pairwise']
ORDERS: tuple[str, ...] = typing.get_args(Order)

_ONE = np.uint32(1)
_MINUS_ONE = np.uint32(0xFFFFFFFF)
# Terms of which sums in pairs are held at once, besides one sum for each such
# group.
_GROUP = 8


@dataclasses.dataclass(frozen=True)
class Accumulator:
  """How the terms of a sum are added: a format and an order.

  Let `+` be the exact sum rounded once to the format (if that has at most 22
  significant bits; 21 if it wraps). The terms `t_0 …` of a
  product of matrices are exact products if the operands have at most 12
  significant bits (any format up to tfloat32 and float16), and else rounded to
  float32.

  * `'sequential'`: `((t_0 + t_1) + t_2) + …`, a chain of multiply-adds.
  * `'chunked'`: chunks of `chunk` terms are added sequentially, and then their
    sums; both in the format.
  * `'blocked'`: blocks of `chunk` terms are added sequentially in float32, and
    then their sums sequentially in the format, as a matrix unit does that is
    wider inside.
  * `'pairwise'`: neighbours are added, then neighbours among those sums, and so
    on; one without a neighbour moves up as it is.

  Terms of a convolution come position by position of the kernel, within a
  position feature by feature.

  Attributes:
    fmt: The format of partial sums.
    order: As above.
    chunk: Terms in a chunk or block.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> ones = jnp.ones(100)
    >>> policy = numerics.Policy(
    ...   reduction=numerics.Precision(
    ...     accumulator=numerics.Accumulator(numerics.float8_e4m3fn)
    ...   )
    ... )
    >>> float(numerics.emulate(jnp.sum, policy)(ones))  # 16 + 1 is 16.
    16.0

  References:
    Wang et al., Training Deep Neural Networks with 8-bit Floating Point
      Numbers, 2018, arXiv:1812.08011 (chunks).
    Higham, The Accuracy of Floating Point Summation, 1993,
      doi:10.1137/0914050.
  """

  fmt: number_format.NumberFormat
  order: Order = 'sequential'
  chunk: int = 32

  def __post_init__(self) -> None:
    rounding.checked_format('Accumulator', self.fmt)
    if self.order not in ORDERS:
      raise ValueError(
        f'Accumulator: order must be one of {", ".join(ORDERS)}; got'
        f' {self.order!r}.'
      )
    if not isinstance(self.chunk, int) or self.chunk < 1:
      raise ValueError(
        f'Accumulator: chunk must be a positive int, got {self.chunk!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Adder:
  """Addition rounded to a format.

  Attributes:
    fmt: The format, or None for float32.
    mode: The direction of rounding.
    key: For stochastic modes; every addition makes one of its own of it.
  """

  fmt: number_format.NumberFormat | None
  mode: rounding.Mode
  key: jax.Array | None

  def at(self, place: Any) -> 'Adder':
    """The adder of a certain place in the sum."""
    if self.key is None:
      return self
    return dataclasses.replace(self, key=jax.random.fold_in(self.key, place))

  def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the rounded sum."""
    if self.fmt is None:
      return a + b
    if self.fmt.overflow == 'wrap':  # What wraps anyway costs no bits below.
      around = np.float32(2.0**self.fmt.bits * self.fmt.min_positive)
      a, b = jax.lax.rem(a, around), jax.lax.rem(b, around)
    wide = self.fmt.significant_bits > 22
    total = a + b if wide else add_to_odd(a, b)
    return rounding.round_to(total, self.fmt, mode=self.mode, key=self.key)


def add_to_odd(a: jax.Array, b: jax.Array) -> jax.Array:
  """The sum rounded to odd, so that rounding it again is rounding once.

  Holds for formats of at most 21 stored bits, in any mode but for the last
  place of a probability. Sums in the range of float32's denormals, which are
  exact, may be flushed by the backend.

  Args:
    a: float32.
    b: float32.

  Returns:
    float32.

  References:
    Boldo and Melquiond, Emulation of a FMA and Correctly Rounded Sums: Proved
      Algorithms Using Rounding to Odd, 2008, doi:10.1109/TC.2007.70819.
    Knuth, The Art of Computer Programming 2, 4.2.2 (the error of a sum).
  """
  total = a + b
  rest = total - a
  error = (a - (total - rest)) + (b - rest)
  bits = jax.lax.bitcast_convert_type(total, jnp.uint32)
  inexact = (error > 0) | (error < 0)  # Not if it is NaN, of an infinity.
  outward = (error > 0) == (total > 0)
  step = jnp.where(outward, _ONE, _MINUS_ONE)
  move = inexact & ((bits & _ONE) == 0)
  moved = jnp.where(move, bits + step, bits)
  return jax.lax.bitcast_convert_type(moved, jnp.float32)


def accumulate(
  term: Callable[[Any], jax.Array],
  xs: Any,
  count: int,
  how: Accumulator,
  mode: rounding.Mode,
  key: jax.Array | None,
) -> jax.Array:
  """Adds terms.

  Args:
    term: Makes a term, float32 of any shape, of what is at one place of `xs`.
    xs: A tree of arrays with a leading axis for the terms. Zeros of them,
      negative ones in the first leaf, have to make a term that is −0.
    count: How many terms there are, at least one.
    how: Format and order.
    mode: The direction of rounding.
    key: For stochastic modes.

  Returns:
    The sum, of the shape of a term.
  """
  adder = Adder(how.fmt, mode, key)
  if how.order == 'sequential':
    return _sequential(adder, term, xs, count)
  size = _GROUP if how.order == 'pairwise' else min(how.chunk, count)
  parts = -(-count // size)
  groups = _grouped(xs, parts, size)
  if how.order == 'pairwise':

    def add_group(place, group):
      return place + 1, _tree(adder.at(0).at(place), jax.vmap(term)(group))

    _, sums = jax.lax.scan(add_group, np.uint32(0), groups)
    return _tree(adder.at(1), sums)
  inner = adder if how.order == 'chunked' else Adder(None, mode, None)

  def add_chunk(place_and_group):
    place, group = place_and_group
    return _sequential(inner.at(0).at(place), term, group, size)

  return _sequential(adder.at(1), add_chunk, (jnp.arange(parts), groups), parts)


def cumulate(
  x: jax.Array,
  fmt: number_format.NumberFormat,
  mode: rounding.Mode,
  key: jax.Array | None,
) -> jax.Array:
  """All partial sums along the first axis, added in sequence."""
  adder = Adder(fmt, mode, key)

  def step(carry, x):
    place, total = carry
    total = adder.at(place)(total, x)
    return (place + 1, total), total

  start = jnp.full(x.shape[1:], -0.0, x.dtype)
  _, sums = jax.lax.scan(step, (np.uint32(0), start), x)
  return sums


def _sequential(
  adder: Adder, term: Callable[[Any], jax.Array], xs: Any, count: int
) -> jax.Array:
  def step(carry, x):
    place, total = carry
    return (place + 1, adder.at(place)(total, term(x))), None

  shape = jax.eval_shape(term, jax.tree.map(lambda x: x[0], xs))
  # −0 is what can be added without a trace.
  start = jnp.full(shape.shape, -0.0, shape.dtype)
  (_, total), _ = jax.lax.scan(step, (np.uint32(0), start), xs, length=count)
  return total


def _tree(adder: Adder, terms: jax.Array) -> jax.Array:
  level = 0
  while len(terms) > 1:
    pairs = len(terms) // 2
    sums = adder.at(level)(terms[: 2 * pairs : 2], terms[1 : 2 * pairs : 2])
    terms = jnp.concatenate([sums, terms[2 * pairs :]])
    level += 1
  return terms[0]


def _grouped(xs: Any, parts: int, size: int) -> Any:
  """Splits the leading axis in two, with zeros at the end."""
  leaves, tree = jax.tree.flatten(xs)
  for place, leaf in enumerate(leaves):
    missing = parts * size - len(leaf)
    zero = np.asarray(-0.0 if place == 0 else 0.0, leaf.dtype)
    widths = [(0, missing, 0)] + [(0, 0, 0)] * (leaf.ndim - 1)
    padded = jax.lax.pad(leaf, zero, widths)
    leaves[place] = padded.reshape(parts, size, *leaf.shape[1:])
  return jax.tree.unflatten(tree, leaves)


def dot(
  lhs: jax.Array,
  rhs: jax.Array,
  how: Accumulator,
  mode: rounding.Mode,
  key: jax.Array | None,
  exact: bool,
  product: Callable[[jax.Array, jax.Array], jax.Array] = jnp.multiply,
) -> jax.Array:
  """Multiplies stacks of matrices.

  Args:
    lhs: f32[batch, m, k].
    rhs: f32[batch, k, n].
    how: Format and order of the sums.
    mode: The direction of rounding.
    key: For stochastic modes.
    exact: Whether float32 holds the products. If not they are kept apart from
      the additions, lest the compiler fuse them to something else.
    product: What multiplies; of −0 and 0 it makes −0.

  Returns:
    f32[batch, m, n].
  """
  count = lhs.shape[2]
  if count == 0 or math.prod(lhs.shape[:2]) * rhs.shape[2] == 0:
    return jnp.zeros((*lhs.shape[:2], rhs.shape[2]), jnp.float32)

  def term(rows):
    left, right = rows
    found = product(left[:, :, None], right[:, None, :])
    return found if exact else jax.lax.optimization_barrier(found)

  xs = (jnp.moveaxis(lhs, 2, 0), jnp.moveaxis(rhs, 1, 0))
  return accumulate(term, xs, count, how, mode, key)
