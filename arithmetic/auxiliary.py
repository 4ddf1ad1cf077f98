"""Losses besides that of the next token."""

import dataclasses

import jax
import jax.numpy as jnp

from arithmetic.layouts import Batch
from arithmetic.transformer import Config
from arithmetic.transformer import Features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
  """Heads have to hold a number for each token of the answer.

  A linear map without bias, the same for all tokens, reads the number from what
  some heads of a layer have gathered where the token is predicted. Its squared
  error, in units of `scale`, is added to the loss `weight` times, and its
  kernel is learned with the decoder; after training it is of no use.

  The paper's code for this loss, and its weight, are not published: `weight`
  and `scale` are ours.

  Attributes:
    weight: Of the squared error in the loss; 0 for none.
    layer: Which block; the last is -1.
    heads: Which of its heads.
    scale: What numbers are divided by.

  Raises:
    ValueError: If the weight is negative, the scale is not positive, or heads
      are named twice or not at all.

  References:
    Bai et al., Why Can't Transformers Learn Multiplication?
    Reverse-Engineering Reveals Long-Range Dependency Pitfalls, 2025,
    arXiv:2510.00184.
  """

  weight: float = 0.0
  layer: int = -1
  heads: tuple[int, ...] = (0, 1)
  scale: float = 50.0

  def __post_init__(self):
    if not self.weight >= 0:
      raise ValueError(f'weight is not negative, got {self.weight}')
    if not self.scale > 0:
      raise ValueError(f'scale is positive, got {self.scale}')
    if not self.heads or len(set(self.heads)) < len(self.heads):
      raise ValueError(f'heads are one or more, each once, got {self.heads}')

  def init(self, config: Config) -> jax.Array:
    """Where the map begins: it says 0.

    Args:
      config: The decoder.

    Returns:
      A kernel, f32[features].

    Raises:
      ValueError: If the decoder has no such layer, or no such head.
    """
    if not -config.layers <= self.layer < config.layers:
      raise ValueError(
        f'layer is one of {config.layers} blocks, got {self.layer}'
      )
    if not all(0 <= head < config.heads for head in self.heads):
      raise ValueError(
        f'heads are below {config.heads}, as the decoder has so many; got'
        f' {self.heads}'
      )
    return jnp.zeros(len(self.heads) * config.head_width, jnp.float32)

  def predict(self, kernel: jax.Array, features: Features) -> jax.Array:
    """What the map reads at each token.

    Args:
      kernel: From `init`.
      features: From `transformer.watch`.

    Returns:
      f32[batch, length].
    """
    heads = features.heads[-1, self.layer][:, :, jnp.asarray(self.heads)]
    shape = (*heads.shape[:2], kernel.size)
    return self.scale * (heads.astype(jnp.float32).reshape(shape) @ kernel)

  def loss(
    self,
    kernel: jax.Array,
    features: Features,
    batch: Batch,
    numbers: jax.Array,
    weight: jax.Array,
  ) -> jax.Array:
    """The weighted mean squared error.

    Args:
      kernel: From `init`.
      features: Of tokens 0 to length - 2 of the lines.
      batch: The lines.
      numbers: i32[batch, n], for the first n tokens of each final answer.
      weight: [batch], 0 for lines that do not count.

    Returns:
      A scalar.
    """
    due, there = _along(batch, numbers)
    error = (self.predict(kernel, features) - due) ** 2
    counted = there.astype(jnp.float32) * weight.astype(jnp.float32)[:, None]
    mean = jnp.sum(error * counted) / jnp.maximum(jnp.sum(counted), 1.0)
    return self.weight * mean / self.scale**2


def _along(batch: Batch, numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Numbers of answer tokens where these are predicted, and which have one."""
  final = batch.answer if batch.scored is None else batch.scored
  place = jnp.cumsum(final[:, 1:], axis=1, dtype=jnp.int32) - 1
  count = numbers.shape[1]
  there = final[:, 1:] & (place < count)
  chosen = jnp.take_along_axis(numbers, jnp.clip(place, 0, count - 1), axis=1)
  return chosen.astype(jnp.float32), there
