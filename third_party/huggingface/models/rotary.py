"""Rotary positions: frequencies as a config scales them, and the rotation."""

from collections.abc import Callable
from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp
import numpy as np

from third_party.huggingface.models import fields as fields_lib

Frequencies = tuple[tuple[float, ...], float]


def read(fields: fields_lib.Fields, width: int) -> Frequencies:
  """Returns the frequencies that a config asks for.

  The older fields `rope_theta` and `rope_scaling` and the newer field
  `rope_parameters` are read; with both, `rope_scaling` counts, and a theta
  within either counts more than one outside, as in transformers.

  * `default`: `f[i] = theta^(-2i / width)`.
  * `linear`: `f[i] / factor`.
  * `llama3`: with `n[i] = original length * f[i] / 2 pi` turns over the length
    of pretraining, frequencies of more than `high_freq_factor` turns stay,
    those of less than `low_freq_factor` are divided by `factor`, and between
    them it is a mixture, linear in `n`.
  * `yarn`: a mixture of `f[i]` and `f[i] / factor`, linear in `i` between the
    frequencies that make `beta_fast` and `beta_slow` turns; sine and cosine
    are scaled by `attention_factor`, by default `0.1 ln(factor) + 1`.

  Types whose frequencies depend on the length of a line (`dynamic`,
  `longrope`) are refused.

  Args:
    fields: Of a config.
    width: Channels of a head.

  Returns:
    Radians per token, `width / 2` of them, and the factor of sine and cosine.

  Examples:
    >>> scaling = {'type': 'linear', 'factor': 4, 'rope_theta': 16}
    >>> read(fields_lib.Fields({'rope_scaling': scaling}), 4)
    ((0.25, 0.0625), 1.0)
  """
  theta = fields.number('rope_theta', 10_000.0)
  fields.only('partial_rotary_factor', 1, 'all channels of a head are rotated')
  old = bool(fields.get('rope_scaling'))
  rope = fields.section('rope_scaling' if old else 'rope_parameters')
  rope.only('partial_rotary_factor', 1, 'all channels of a head are rotated')
  theta = rope.number('rope_theta', theta)
  if theta <= 1:
    rope.invalid('rope_theta', f'expected a number above 1, got {theta}')
    theta = 10_000.0
  word = 'rope_type' if rope.has('rope_type') else 'type'
  kind = rope.choice(word, 'default', _SCALINGS)
  plain = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
  longest = fields.integer('max_position_embeddings', 2048)
  length = fields.integer(
    'original_max_position_embeddings',
    rope.integer('original_max_position_embeddings', longest),
  )
  scaled, attention = _SCALINGS[kind](rope, plain, theta, length)
  return tuple(scaled.astype(np.float32).tolist()), attention


def _default(rope, plain, theta, length):
  del rope, theta, length
  return plain, 1.0


def _linear(rope, plain, theta, length):
  del theta, length
  return plain / _factor(rope), 1.0


def _llama3(rope, plain, theta, length):
  del theta
  low = rope.number('low_freq_factor', 1.0)
  high = rope.number('high_freq_factor', 4.0)
  if low >= high:
    rope.invalid('low_freq_factor', f'{low} is not below high_freq_factor')
    return plain, 1.0
  turns = length * plain / (2 * math.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return kept * plain + (1 - kept) * plain / _factor(rope), 1.0


def _yarn(rope, plain, theta, length):
  for each in ('mscale', 'mscale_all_dim'):
    if rope.get(each):
      rope.refuse(each, rope.get(each), 'only attention_factor is read')
  factor = _factor(rope)
  width = 2 * len(plain)

  def place(turns):
    # The index of the frequency that makes as many turns over the length.
    turned = length / (turns * 2 * math.pi)
    return width * math.log(turned) / (2 * math.log(theta))

  low = place(rope.number('beta_fast', 32.0))
  high = place(rope.number('beta_slow', 1.0))
  if rope.flag('truncate', True):
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, width - 1)
  high = high + 0.001 if low == high else high
  slow = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
  default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
  attention = rope.number('attention_factor', default)
  return slow * plain / factor + (1 - slow) * plain, attention


_SCALINGS: Mapping[str, Callable[..., tuple[np.ndarray, float]]] = {
  'default': _default,
  'linear': _linear,
  'llama3': _llama3,
  'yarn': _yarn,
}


def _factor(rope):
  if rope.get('factor') is None:
    rope.invalid('factor', 'is missing', 'give the factor of the scaling')
  return rope.number('factor', 1.0)


def rotate(
  x: jax.Array, positions: jax.Array, frequencies: Frequencies
) -> jax.Array:
  """Rotates pairs of channels `(i, i + width / 2)` by angles of positions.

  Args:
    x: Queries or keys, `[batch, length, heads, width]`.
    positions: `i32[batch or 1, length]`.
    frequencies: From `read`.

  Returns:
    As `x`.
  """
  speeds, scale = frequencies
  angles = positions.astype(jnp.float32)[..., None, None] * jnp.asarray(
    speeds, jnp.float32
  ).reshape(1, 1, 1, -1)
  cos, sin = scale * jnp.cos(angles), scale * jnp.sin(angles)
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (left * cos - right * sin, right * cos + left * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
