"""Products of matrices of integers in the place of those of floats."""

import dataclasses

import jax
import jax.numpy as jnp

from numerics import fixed_point
from numerics import number_format
from numerics import products
from numerics import quantizing
from numerics import rounding
from numerics.multiply import exact
from numerics.multiply import scaled


@dataclasses.dataclass(frozen=True)
class IntegerProduct(products.Product):
  """Products quantised on the way, computed by an algorithm for integers.

  For `Precision(product=…)`: of every product of matrices the first operand is
  stored with a scale for each row, the second with one for each column or for
  groups along it, and `quantized_dot` multiplies the codes. The result is that
  of the stored matrices, to the last places of float32: algorithms that are
  exact differ in nothing but what they cost.

  The derivative is that of the exact product in float32.

  Attributes:
    multiply: The algorithm.
    x: What the first operand is stored in, integers.
    w: What the second operand is stored in, weights of a layer.
    group_size: How many weights along a column share a scale; None: all.

  Raises:
    TypeError: If a format is none of the algorithm.
    ValueError: If the algorithm does not take all integers of a format.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> how = numerics.IntegerProduct(numerics.TMac(bits=4), w=numerics.int4)
    >>> policy = numerics.Policy(matmul=numerics.Precision(product=how))
    >>> x, w = jnp.float32([0.5, -1, 0.25, 2]), jnp.float32([0.1, 0.7, -3, 2])
    >>> float(numerics.emulate(jnp.dot, policy)(x, w))  # The exact one is 2.6.
    2.66...
  """

  multiply: exact.IntegerDot
  x: number_format.NumberFormat = fixed_point.int8
  w: number_format.NumberFormat = fixed_point.int8
  group_size: int | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.multiply, exact.IntegerDot):
      raise TypeError(
        'IntegerProduct: multiply must be an algorithm such as'
        f' numerics.TMac(), got {self.multiply!r}.'
      )
    for field in ('x', 'w'):
      rounding.checked_format(f'IntegerProduct: {field}', getattr(self, field))
    name = 'IntegerProduct: x'
    codes, _, _ = exact.integers(name, self.x, _ends(self.x), None)
    self._check('x', codes, self.multiply.x_range)
    codes, _, _ = self.multiply.read(self.w, _ends(self.w), None)
    self._check('w', codes, self.multiply.w_range)

  def _check(self, field: str, codes: jax.Array, limits: tuple[int, int]):
    low, high = limits
    if codes.min() < low or codes.max() > high:
      raise ValueError(
        f'IntegerProduct: {type(self.multiply).__name__} takes {field} from'
        f' {low} to {high}, but {getattr(self, field).name} has'
        f' {codes.min()} to {codes.max()}.'
      )

  @property
  def formats(self) -> tuple[products.Stored, products.Stored]:
    """In what the operands are stored."""
    return self.x, self.w

  def check(self, where: str, length: int) -> None:
    """Raises a ValueError if it cannot add up so many products."""
    try:
      self.multiply.check_length(min(self.group_size or length, length))
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from None

  def product(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Multiplies stacks of matrices."""

    def one(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
      x = quantizing.quantize(lhs, self.x, axis=-1)
      w = quantizing.quantize(rhs, self.w, axis=0, group_size=self.group_size)
      return scaled.quantized_dot(x, w, self.multiply)

    return products.contract(
      lhs,
      rhs,
      key,
      lambda lhs, rhs, key: jax.vmap(one)(lhs, rhs),
      products.exact,
    )


def _ends(fmt: number_format.NumberFormat) -> jax.Array:
  return jnp.asarray([fmt.min, fmt.max], jnp.float32)
