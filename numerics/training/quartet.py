"""Training with all products of dense layers in MXFP4."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from numerics import blocks
from numerics import grouping
from numerics import noise
from numerics import number_format
from numerics import products
from numerics import rounding

ScaleRound = typing.Literal['floor', 'nearest', 'ceil']

_FMT = blocks.mxfp4_e2m1
_SIZE = 32
# Where clipping normal numbers to the grid of E2M1 costs least, in deviations.
_CLIP = 2.92247856
# What the official code adds to a scale, so that it is not 0.
_LEAST = np.float32(1e-8)
# The last fraction of a scale that is rounded down to a power of two.
_LAST = {
  'floor': blocks.fraction(np.nextafter(np.float32(2), np.float32(0))),
  'nearest': blocks.fraction(2**0.5),
  'ceil': 0,
}


@dataclasses.dataclass(frozen=True)
class Quartet(products.Product):
  """Products of a dense layer in MXFP4, in the forward pass and the backward.

  Forward (QuEST). Blocks of 32 along the axis that is added up are rotated by a
  Hadamard matrix, which makes them more normal and leaves products as they are,
  and rounded to E2M1 with the scale that is best for normal numbers,

      scale = 2**floor(log2(2.92 / 6 · std(block))),

  beyond 6 of which they saturate. The derivative of rounding is 1 where they do
  not and 0 where they do.

  Backward. The two products are those of the cotangent with the operands as
  they were rounded, rotated along their own axes of summation with random
  signs, in blocks with the scale `4/3 · 2**(floor(log2 amax) − 2)`, which lets
  nothing saturate, and rounded stochastically: what they are on average is the
  product in float32. Signs and roundings are drawn anew for every operation.

  Ties of the forward rounding go toward zero, as in the official code. There
  the scale is rounded down, which is the default here; `scale_round='nearest'`
  is no dearer and wrong by less: for normal numbers, on average over the
  deviation, the mean squared error is 0.0134 instead of 0.0224 (0.0155 with
  `'ceil'`). A negative variance, which cancellation may give, counts as 0.

  The forward axis has to be a multiple of 32, since zeros for padding would
  falsify the deviation. The axes of the backward products (tokens, outputs) are
  filled up with zeros, which change no expectation. The paper trains the dense
  layers so, and leaves products of attention alone:

      Policy(overrides=(
        Override(Precision(product=Quartet()), scope='Dense',
                 primitive='matmul'),))

  Gradients are `grad(emulate(f, policy))`. In `emulate(grad(f), policy)` the
  products of the derivative would be forward ones.

  Attributes:
    scale_round: How the scale of the forward pass becomes a power of two:
      `'floor'`, `'nearest'` (of the logarithm) or `'ceil'`.

  Raises:
    ValueError: If `scale_round` is unknown; under `emulate`, if an axis is no
      multiple of 32.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> policy = numerics.Policy(
    ...   matmul=numerics.Precision(product=numerics.Quartet())
    ... )
    >>> x, w = jax.random.normal(jax.random.key(0), (2, 8, 64)) / 8
    >>> def loss(w, policy, **key):
    ...   return (
    ...     numerics.emulate(jnp.matmul, policy)(x, w.T, **key) ** 2
    ...   ).sum()
    >>> gradient = jax.grad(loss)(w, policy, rounding_key=jax.random.key(1))
    >>> exact = jax.grad(loss)(w, numerics.Policy())
    >>> cosine = jnp.vdot(gradient, exact) / (
    ...   jnp.linalg.norm(gradient) * jnp.linalg.norm(exact)
    ... )
    >>> bool(0.9 < cosine < 1)
    True

  References:
    Castro et al., Quartet: Native FP4 Training Can Be Optimal for Large
      Language Models, 2025, arXiv:2505.14669.
    Panferov et al., QuEST: Stable Training of LLMs with 1-Bit Weights and
      Activations, 2025, arXiv:2502.05003 (the forward pass).
  """

  scale_round: ScaleRound = 'floor'

  draws = True

  @property
  def formats(self) -> tuple[products.Stored, products.Stored]:
    """In what operands are stored."""
    return _FMT, _FMT

  def __post_init__(self) -> None:
    number_format.check_choice(
      'Quartet', 'scale_round', self.scale_round, tuple(_LAST)
    )

  def check(self, where: str, length: int) -> None:
    """Raises if blocks would not be full."""
    if length % _SIZE:
      raise ValueError(
        f'Quartet: {where} adds up {length} products, which is no multiple of'
        f' {_SIZE}; leave it in another precision by an Override(…, scope=…,'
        " primitive='matmul')."
      )

  def product(
    self, lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
  ) -> jax.Array:
    """Multiplies stacks of matrices; see `Product`."""
    rotation = jnp.asarray(hadamard(_SIZE))
    left = quest(_rotated(lhs, rotation), self.scale_round)
    right = quest(_rotated(rhs.swapaxes(1, 2), rotation), self.scale_round)
    return products.contract(
      _flat(left),
      _flat(right).swapaxes(1, 2),
      key,
      products.exact,
      _stochastic,
    )


@functools.cache
def hadamard(size: int) -> np.ndarray:
  """Sylvester's symmetric orthonormal matrix: f32[size, size], a power of two.

  Examples:
    >>> (2 * hadamard(4)).tolist()[1:]
    [[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]
  """
  matrix = np.ones((1, 1))
  while len(matrix) < size:
    matrix = np.kron([[1, 1], [1, -1]], matrix)
  return (matrix / np.sqrt(size)).astype(np.float32)


def quest(x: jax.Array, scale_round: ScaleRound) -> jax.Array:
  """Rounds blocks with the scale that is best on average for normal numbers.

  Args:
    x: f32[..., 32], a block in each row.
    scale_round: As in `Quartet`.

  Returns:
    f32 of the shape of `x`, with a derivative of 0 where it saturates.
  """
  found = jax.lax.stop_gradient(x)
  mean = jnp.mean(found, -1, keepdims=True)
  variance = jnp.mean(found * found, -1, keepdims=True) - mean * mean
  wanted = np.float32(_CLIP / 6) * jnp.sqrt(jnp.maximum(variance, 0))
  exponent = blocks.rounded_log2(wanted + _LEAST, _LAST[scale_round])
  scaled = blocks.times_power(found, -exponent)
  stored = rounding.round_to(scaled, _FMT.element, mode='nearest_zero')
  values = blocks.times_power(stored, exponent)
  values = jnp.where(wanted < np.inf, values, np.nan)
  inside = jnp.abs(scaled) < _FMT.element.max
  return rounding.straight_through(jnp.where(inside, x, found), values)


def _rotated(x: jax.Array, rotation: jax.Array) -> jax.Array:
  """Blocks of the last axis, filled up with zeros: f32[..., groups, size]."""
  split = grouping.split(x, x.ndim - 1, _SIZE)
  return jnp.matmul(split, rotation, precision=jax.lax.Precision.HIGHEST)


def _flat(x: jax.Array) -> jax.Array:
  """The last axis as it was, but for its filling."""
  return x.reshape(*x.shape[:-2], -1)


def _stochastic(
  lhs: jax.Array, rhs: jax.Array, key: jax.Array | None
) -> jax.Array:
  """A product that is right on average."""
  assert key is not None
  keys = [noise.derive(key, place) for place in range(3)]
  odd = noise.random_bits(keys[0], (_SIZE, 1)) & np.uint32(1)
  signs = np.float32(1) - np.float32(2) * odd.astype(jnp.float32)
  rotation = signs * hadamard(_SIZE)
  left = unsaturated(_rotated(lhs, rotation), keys[1])
  right = unsaturated(_rotated(rhs.swapaxes(1, 2), rotation), keys[2])
  return products.exact(_flat(left), _flat(right).swapaxes(1, 2))


def unsaturated(x: jax.Array, key: jax.Array) -> jax.Array:
  """Rounds blocks stochastically, with room for the largest number.

  In units of the scale of `mxfp4_e2m1` numbers are below 8, so that 3/4 of them
  are below 6, the largest number of E2M1.

  Args:
    x: f32[..., 32], a block in each row.
    key: A PRNG key.

  Returns:
    f32 of the shape of `x`, which it is on average.
  """
  amax = jnp.max(jnp.abs(x), -1, keepdims=True)
  exponent = blocks.shared_exponent(amax, _FMT)
  scaled = blocks.times_power(x, -exponent) * np.float32(3 / 4)
  stored = rounding.round_to(
    scaled, _FMT.element, mode='stochastic', key=key
  ) * np.float32(4 / 3)
  values = blocks.times_power(stored, exponent)
  return jnp.where(amax < np.inf, values, np.nan)
