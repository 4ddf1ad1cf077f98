"""Digits as waves: whether vectors of ten digits lie on a few frequencies."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def basis(period: int, frequencies: Sequence[int]) -> np.ndarray:
  """Orthonormal waves over the numbers from 0 to period - 1.

  Args:
    period: How many numbers.
    frequencies: Cycles in a period, each at most half of it; 0 is a constant.

  Returns:
    f64[period, waves]: a cosine and a sine for each frequency, but for 0 and
    half the period, which have a cosine alone.

  Raises:
    ValueError: If a frequency is not between 0 and half the period.

  Examples:
    >>> basis(10, (0, 1, 2, 5)).shape
    (10, 6)
  """
  if not all(0 <= k <= period / 2 for k in frequencies):
    raise ValueError(
      f'frequencies are from 0 to half of {period}, got {frequencies}'
    )
  angles = 2 * np.pi * np.arange(period) / period
  waves = []
  for k in frequencies:
    waves.append(np.cos(k * angles))
    if 0 < k < period / 2:
      waves.append(np.sin(k * angles))
  return np.stack([wave / np.linalg.norm(wave) for wave in waves], axis=1)


def explained(
  vectors: jax.Array, frequencies: Sequence[int] = (0, 1, 2, 5)
) -> jax.Array:
  """How much of each feature is waves of a few frequencies.

  Args:
    vectors: f32[numbers, features], of the numbers 0, 1, ....
    frequencies: Which, in cycles over all numbers.

  Returns:
    R², f32[features]: 1 less the share of the variance over numbers that is
    left over.

  References:
    Bai et al., Why Can't Transformers Learn Multiplication?
    Reverse-Engineering Reveals Long-Range Dependency Pitfalls, 2025,
    arXiv:2510.00184.
  """
  waves = jnp.asarray(basis(len(vectors), frequencies), jnp.float32)
  rest = vectors - waves @ (waves.T @ vectors)
  spread = vectors - vectors.mean(axis=0, keepdims=True)
  total = jnp.maximum(jnp.sum(spread**2, axis=0), 1e-12)
  return 1.0 - jnp.sum(rest**2, axis=0) / total
