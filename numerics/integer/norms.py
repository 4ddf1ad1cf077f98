"""Normalisation of integers, with an integer square root."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from numerics import number_format
from numerics import wide
from numerics.integer import checking

Root = Literal['exact', 'newton']

_LARGEST = np.int32(2**31 - 1)
_BOUND = np.int32(2**30)
_LONGEST = 2**15


@functools.partial(
  jax.jit, static_argnames=('centred', 'root', 'steps'), inline=True
)
def layer_norm(
  x: jax.Array,
  bias: jax.typing.ArrayLike | None = None,
  *,
  centred: bool = True,
  root: Root = 'exact',
  steps: int = 10,
) -> jax.Array:
  """Normalises the last axis, in integers.

      y = x − round(mean x),   s = ⌊√(Σ y²)⌋,
      z = ⌊y · ⌊(2**31 − 1) / s⌋ / 2⌋ + bias.

  The scale of `z` is that of no input: `y / s` has as many steps as an int32,
  and `√width · y / s` is what is normalised. Gains multiply the scale.

  The sum of squares is exact, of up to 48 bits. So is its root; published is a
  Newton iteration of 10 steps from 2**16 on, which cannot return less than 64,
  and so is wrong where the sum of squares is below 4096.

  Args:
    x: i32[..., width], of up to 2**15 features; beyond 16 bits it saturates.
    bias: i32[width], up to ±2**30; see `norm_bias`.
    centred: Whether the mean is subtracted; without, it is an RMS norm.
    root: `'exact'`, or `'newton'`, as published.
    steps: Of the Newton iteration.

  Returns:
    int32, of the scale `√width / 2**30`, times gains.

  Raises:
    TypeError: If `x` is no array of integers.
    ValueError: If there are too many features, or a setting is out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from numerics import integer
    >>> z = integer.layer_norm(jnp.array([-30, 10, 50, 90]))
    >>> [round(x * 2 / 2**30, 3) for x in z.tolist()]
    [-1.348, -0.449, 0.449, 1.348]

  References:
    Li and Gu, I-ViT: Integer-only Quantization for Efficient Vision Transformer
      Inference, 2023, arXiv:2207.01405.
  """
  x = checking.as_int32('layer_norm', x)
  number_format.check_choice('layer_norm', 'root', root, ('exact', 'newton'))
  number_format.check_int('layer_norm', 'steps', steps, 1, 64)
  width = x.shape[-1]
  if not 1 <= width <= _LONGEST:
    raise ValueError(
      f'layer_norm: expected 1 to {_LONGEST} features, got {width}.'
    )
  y = jnp.clip(x, np.int32(-_LONGEST), np.int32(_LONGEST - 1))
  if centred:
    total = jnp.sum(y, axis=-1, keepdims=True, dtype=jnp.int32)
    y = y - wide.nearest_quotient(total, np.int32(width))
  size = jnp.abs(y).astype(jnp.uint32)
  squares = wide.total(size * size)
  exact = root == 'exact'
  deviation = wide.square_root(squares) if exact else _newton(squares, steps)
  # Neither is below ⌊√Σ y²⌋, so no product is beyond 2**31 − 1.
  deviation = jnp.maximum(deviation.astype(jnp.int32), 1)[..., None]
  z = (y * (_LARGEST // deviation)) >> 1
  if bias is None:
    return z
  added = jnp.clip(checking.as_int32('layer_norm', bias), -_BOUND, _BOUND)
  return z + jnp.broadcast_to(added, z.shape)


def norm_bias(
  bias: 'np.typing.ArrayLike', gain: 'np.typing.ArrayLike'
) -> np.ndarray:
  """A bias in steps of a norm's result: `⌊bias / gain · 2**30 / √width⌋`.

  Computed by NumPy, before a program runs.

  Args:
    bias: f32[width].
    gain: f32[width], which multiplies the scale of the result.

  Returns:
    int32[width].

  Raises:
    ValueError: If a bias is more than the norm's result can be, `√width` times
      its gain.
  """
  bias, gain = (np.asarray(each, np.float64) for each in (bias, gain))
  limit = math.sqrt(bias.shape[-1]) * np.abs(gain)
  if (np.abs(bias) > limit).any():
    place = int(np.argmax(np.abs(bias) - limit))
    raise ValueError(
      f'norm_bias: the bias {bias[place]:g} of feature {place} is beyond'
      f' √width = {math.sqrt(len(bias)):g} times its gain {gain[place]:g}; add'
      ' it after rescaling.'
    )
  steps = bias / np.where(gain == 0, 1, gain) * 2**30
  return np.floor(steps / math.sqrt(bias.shape[-1])).astype(np.int32)


def _newton(x: wide.Wide, steps: int) -> jax.Array:
  """The published root: Newton's iteration from 2**16 on, u32[...]."""

  def step(_, k: jax.Array) -> jax.Array:
    k = jnp.maximum(k, np.uint32(1))
    return (k + wide.quotient(x, k)) >> np.uint32(1)

  return jax.lax.fori_loop(0, steps, step, jnp.full_like(x.low, 2**16))
