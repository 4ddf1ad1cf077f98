"""Products of matrices modulo a prime, by products of bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numerics import wide
from numerics.multiply import exact

_SHIFT = 62


@dataclasses.dataclass(frozen=True)
class Barrett:
  """Remainders by multiplying with a rounded inverse.

      t = floor(z · floor(2**62 / q) / 2**62),   z mod q = z − t q  or that − q.

  `t` is the quotient or one less, for every `z < 2**62` and whatever `q` is.
  Published code shifts by `2 ⌈log₂ q⌉` in the place of 62, and is wrong beyond
  as many bits of `z`, which sums of products reach if `q` is small.

  Numbers of 64 bits are pairs of uint32 (`numerics.wide`), so that JAX needs no
  `enable_x64`.

  Attributes:
    modulus: `q`, from 2 to 2**31 − 1.

  Raises:
    TypeError: If it is no int.
    ValueError: If it is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import wide
    >>> z = wide.Wide(jnp.uint32(2**30 - 1), jnp.uint32(2**32 - 1))
    >>> int(Barrett(65537).remainder(z)) == (2**62 - 1) % 65537
    True

  References:
    Barrett, Implementing the Rivest Shamir and Adleman Public Key Encryption
      Algorithm on a Standard Digital Signal Processor, 1986.
  """

  modulus: int

  def __post_init__(self) -> None:
    _check_modulus('Barrett', self.modulus)

  def remainder(self, z: wide.Wide) -> jax.Array:
    """The remainder.

    Args:
      z: Without sign and less than 2**62; others have wrong remainders.

    Returns:
      u32[...], less than the modulus.
    """
    inverse = 2**_SHIFT // self.modulus
    high = jnp.uint32(inverse >> 32)
    low = jnp.uint32(inverse & 0xFFFFFFFF)
    # The product of two pairs, of which words 1 and 2 have the quotient's bits.
    upper, left = wide.product(z.high, low), wide.product(z.low, high)
    middle = wide.Wide(jnp.zeros_like(z.low), wide.product(z.low, low).high)
    middle = wide.add(middle, wide.Wide(jnp.zeros_like(z.low), upper.low))
    middle = wide.add(middle, wide.Wide(jnp.zeros_like(z.low), left.low))
    third = middle.high + upper.high + left.high + z.high * high
    quotient = middle.low >> np.uint32(_SHIFT - 32) | third << np.uint32(2)
    modulus = np.uint32(self.modulus)
    rest = (
      z.low - quotient * modulus
    )  # Less than 2 q, so modulo 2**32 is right.
    return jnp.where(rest >= modulus, rest - modulus, rest)


@dataclasses.dataclass(frozen=True)
class ModularDot(exact.IntegerDot):
  """Products modulo a number of up to 31 bits on units that multiply bytes.

  A residue `x` is a sum of bytes, `x = Σ_b 2**(8 b) x_b`. What they multiply is
  known beforehand, so that the places go into it (basis-aligned),

      Σ_k x_k w_k ≡ Σ_k Σ_b x_{k,b} · (2**(8 b) w_k mod q),

  and the bytes of `2**(8 b) w mod q` are stored. Then `Σ_k x w` is one product
  of matrices of uint8, four times as long and wide, added in uint32; four sums
  with their places make a number of 57 bits, whose remainder `Barrett` takes.

  Operands and results are residues from 0 to `q − 1`; under `jit`, others count
  as what their 32 bits are without sign.

  Attributes:
    modulus: `q`, from 2 to 2**31 − 1.

  Raises:
    TypeError: If it is no int.
    ValueError: If it is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> q = 998244353
    >>> x, w = jnp.array([[q - 1, 2]]), jnp.array([[q - 1], [q - 3]])
    >>> numerics.ModularDot(q).dot(x, w)  # 1 − 6
    Array([[998244348]], dtype=int32)

  References:
    Tong et al., Leveraging ASIC AI Chips for Homomorphic Encryption, 2025,
      arXiv:2501.07047.
  """

  modulus: int

  def __post_init__(self) -> None:
    _check_modulus('ModularDot', self.modulus)

  @property
  def x_range(self) -> tuple[int, int]:
    """Residues."""
    return 0, self.modulus - 1

  @property
  def w_range(self) -> tuple[int, int]:
    """Residues."""
    return 0, self.modulus - 1

  @property
  def longest(self) -> int:
    """As many as four times their number of products of bytes fit uint32."""
    return (2**32 - 1) // (4 * 255**2)

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies matrices."""
    barrett = Barrett(self.modulus)
    left = _bytes(x.astype(jnp.uint32)).reshape(len(x), -1)  # [m, 4 k]
    zero = jnp.zeros(w.shape, jnp.uint32)
    placed = [barrett.remainder(wide.Wide(zero, w.astype(jnp.uint32)))]
    for _ in range(3):
      moved = wide.shift_left(wide.Wide(zero, placed[-1]), 8)
      placed.append(barrett.remainder(moved))
    right = _bytes(jnp.stack(placed, axis=1))  # [k, 4, n, 4]
    right = right.transpose(0, 1, 3, 2).reshape(left.shape[1], -1)
    sums = jax.lax.dot(left, right, preferred_element_type=jnp.uint32)
    sums = sums.reshape(len(x), 4, w.shape[1])
    found = wide.Wide(jnp.zeros_like(sums[:, 0]), sums[:, 0])
    for place in range(1, 4):
      part = wide.Wide(jnp.zeros_like(sums[:, place]), sums[:, place])
      found = wide.add(found, wide.shift_left(part, 8 * place))
    return barrett.remainder(found).astype(jnp.int32)


def _bytes(x: jax.Array) -> jax.Array:
  """The four bytes of u32[...], the least first: u8[..., 4]."""
  places = np.arange(0, 32, 8, dtype=np.uint32)
  parts = [x >> place & np.uint32(0xFF) for place in places]
  return jnp.stack(parts, axis=-1).astype(jnp.uint8)


def _check_modulus(owner: str, modulus: object) -> None:
  if isinstance(modulus, bool) or not isinstance(modulus, int):
    raise TypeError(f'{owner}: modulus must be an int, got {modulus!r}.')
  if not 2 <= modulus < 2**31:
    raise ValueError(
      f'{owner}: modulus must be from 2 to 2**31 - 1, got {modulus}; of a'
      ' larger one, take residues by several that are coprime.'
    )
