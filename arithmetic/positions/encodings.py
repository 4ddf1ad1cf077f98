"""Fixed functions of positions: vectors, and rotations of queries and keys."""

import jax
import jax.numpy as jnp


def sinusoidal(positions: jax.Array, width: int) -> jax.Array:
  """Fixed position vectors: sine in even, cosine in odd entries.

  Entry 2k of position i is sin(i / 10000^(2k / width)), entry 2k + 1 the
  cosine of the same angle.

  Args:
    positions: i32[...].
    width: The model's width, even.

  Returns:
    f32[..., width].

  References:
    Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762.
  """
  angles = _angles(positions, width, 10_000.0)
  return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(
    *positions.shape, width
  )


def rotate(x: jax.Array, positions: jax.Array, *, base: float = 10_000.0):
  """Rotates pairs of features by angles proportional to the position.

  The inner product of two vectors so rotated depends on their positions only
  through the difference.

  Args:
    x: f32[batch, length, heads, width], queries or keys.
    positions: i32[batch, length].
    base: The slowest pair turns by 1 / base radians a position, about.

  Returns:
    An array like x.

  References:
    Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding,
    2021, arXiv:2104.09864.
  """
  angles = _angles(positions, x.shape[-1], base)[:, :, None, :]
  sine, cosine = (
    jnp.sin(angles).astype(x.dtype),
    jnp.cos(angles).astype(x.dtype),
  )
  even, odd = x[..., 0::2], x[..., 1::2]
  pairs = jnp.stack(
    [even * cosine - odd * sine, even * sine + odd * cosine], axis=-1
  )
  return pairs.reshape(x.shape)


def _angles(positions: jax.Array, width: int, base: float) -> jax.Array:
  """f32[..., width / 2]: position times the frequency of each pair."""
  if width % 2:
    raise ValueError(
      f'positions rotate pairs of features; width {width} is odd'
    )
  frequencies = jnp.asarray(
    [base ** (-2 * k / width) for k in range(width // 2)], jnp.float32
  )
  frequencies = frequencies.reshape((1,) * positions.ndim + (-1,))
  return positions.astype(jnp.float32)[..., None] * frequencies
