"""Products by planes of bits, which are ANDed and counted."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import grouping
from numerics import number_format
from numerics.multiply import exact
from numerics.multiply import multiplier

Offset = typing.Literal['twos_complement', 'flexq']

_WORD = 32


@dataclasses.dataclass(frozen=True)
class BitPlanes(exact.IntegerDot):
  """Binary matrix products: bits are ANDed, and those that are set counted.

  With an offset, operands have no sign, `u = x + o_x` and `v = w + o_w`, and

      Σ u v = Σ_i Σ_j 2**(i + j) · popcount(u_i & v_j),

  where `u_i` are bits at place `i` of 32 neighbours in a word. What the offsets
  add is subtracted: `Σ x w = Σ u v − o_w Σ u − o_x Σ v + k o_x o_w`. Any widths
  go together.

  Attributes:
    x_bits: Of `x`.
    bits: Of `w`.
    offset: Which integers of `b` bits there are. `'twos_complement'`: from
      `−2**(b − 1)` to `2**(b − 1) − 1`. `'flexq'`: as FlexQ stores them, by an
      offset of `2**(b − 1) − 1`, from `1 − 2**(b − 1)` to `2**(b − 1)`.

  Raises:
    TypeError: If a field has the wrong type.
    ValueError: If a field is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.array([[-128, 3]], jnp.int8)
    >>> w = jnp.array([[-32], [31]], jnp.int8)
    >>> numerics.BitPlanes(x_bits=8, bits=6).dot(x, w)
    Array([[4189]], dtype=int32)

  References:
    Zhang et al., FlexQ: Efficient Post-training INT6 Quantization for LLM
      Serving via Algorithm-System Co-Design, 2025, arXiv:2508.04405.
  """

  x_bits: int = 8
  bits: int = 6
  offset: Offset = 'twos_complement'

  def __post_init__(self) -> None:
    number_format.check_int('BitPlanes', 'x_bits', self.x_bits, 2, 16)
    number_format.check_int('BitPlanes', 'bits', self.bits, 2, 16)
    number_format.check_choice(
      'BitPlanes', 'offset', self.offset, typing.get_args(Offset)
    )

  @property
  def x_range(self) -> tuple[int, int]:
    """From minus the offset on."""
    return self._range(self.x_bits)

  @property
  def w_range(self) -> tuple[int, int]:
    """From minus the offset on."""
    return self._range(self.bits)

  def _range(self, bits: int) -> tuple[int, int]:
    low = -(2 ** (bits - 1)) + (self.offset == 'flexq')
    return low, low + 2**bits - 1

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""
    o_x, o_w = (np.int32(-low) for low, _ in (self.x_range, self.w_range))
    u = x + o_x & np.int32(2**self.x_bits - 1)
    v = w + o_w & np.int32(2**self.bits - 1)
    left = _packed(u, 1, self.x_bits)[:, None]  # [x_bits, 1, m, words]
    right = _packed(v, 0, self.bits)[None]  # [1, bits, words, n]
    counts = multiplier.fold(
      lambda total, a, b: total + jax.lax.population_count(a & b),
      jnp.zeros((self.x_bits, self.bits, len(x), w.shape[1]), jnp.uint32),
      left,
      right,
    ).astype(jnp.int32)
    places = np.add.outer(np.arange(self.x_bits), np.arange(self.bits))
    shifted = counts << places.astype(np.int32)[..., None, None]
    total = jnp.sum(shifted, axis=(0, 1), dtype=jnp.int32)
    both = np.int32(w.shape[0]) * (o_x * o_w)  # Modulo 2**32, as all of it is.
    total = total - o_w * jnp.sum(u, axis=1, dtype=jnp.int32)[:, None]
    return total - o_x * jnp.sum(v, axis=0, dtype=jnp.int32)[None] + both


def _packed(x: jax.Array, axis: int, bits: int) -> jax.Array:
  """The planes of bits along an axis, in words: u32[bits, …]."""
  words = grouping.split(x.astype(jnp.uint32), axis, _WORD)
  places = np.arange(_WORD, dtype=np.uint32)
  places = np.expand_dims(places, [i for i in range(3) if i != axis + 1])
  return jnp.stack(
    [
      jnp.sum(
        (words >> np.uint32(plane) & np.uint32(1)) << places,
        axis=axis + 1,
        dtype=jnp.uint32,
      )
      for plane in range(bits)
    ]
  )
