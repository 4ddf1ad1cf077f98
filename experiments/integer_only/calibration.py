"""What range the numbers of a decoder have, for their scales."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic import transformer
from experiments.runtime import errors

_EPSILON = 1e-6


class BlockRanges(NamedTuple):
  """The largest magnitudes in a block, f32[] each, in the order of computing.

  Attributes:
    stream: What the block reads.
    attention_norm: Of its norm.
    query: Of all heads.
    key: Likewise.
    value: Likewise.
    scores: Those that the mask shows.
    mixed: Values mixed by attention.
    middle: The stream after attention.
    perceptron_norm: Of its norm.
    hidden: Before the activation.
    active: After it.
  """

  stream: jax.Array
  attention_norm: jax.Array
  query: jax.Array
  key: jax.Array
  value: jax.Array
  scores: jax.Array
  mixed: jax.Array
  middle: jax.Array
  perceptron_norm: jax.Array
  hidden: jax.Array
  active: jax.Array


class Ranges(NamedTuple):
  """The largest magnitudes in a decoder.

  Attributes:
    blocks: Of each block.
    stream: After the last.
    norm: Of the norm after that.
  """

  blocks: tuple[BlockRanges, ...]
  stream: jax.Array
  norm: jax.Array


def check(config: transformer.Shape) -> None:
  """Raises if a decoder has what no integers are known for.

  Raises:
    UsageError: With what it has.
  """
  for field, possible in (
    ('norm_place', ('pre',)),
    ('activation', ('gelu', 'relu')),
    ('loops', (1,)),
    ('inject', (False,)),
    ('dtype', ('float32',)),
  ):
    if getattr(config, field) not in possible:
      raise errors.UsageError(
        f'{field} has to be {" or ".join(map(str, possible))} for integers'
        f' only, not {getattr(config, field)}'
      )
  if config.scheme.attention != 'none' or config.scheme.vectors == 'sinusoidal':
    raise errors.UsageError(
      'positions have to be learned or none for integers only, not'
      f' {config.positions}'
    )


def observe(
  params: transformer.Params, tokens: jax.Array, *, config: transformer.Config
) -> tuple[jax.Array, Ranges]:
  """Runs a decoder in float32, and keeps the largest magnitudes.

  Args:
    params: Its parameters.
    tokens: i32[batch, length].
    config: Its shape.

  Returns:
    What `transformer.apply` returns, and the magnitudes.
  """
  batch, length = tokens.shape
  width, heads = config.width, config.heads
  x = params['embedding']['embedding'][tokens]
  for table, ids in tables(params, tokens, config):
    x = x + table[ids]
  x = x.reshape(-1, width)
  causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
  blocks = []
  for i in range(config.layers):
    block = params[f'blocks_{i}']
    stream = x
    normed = norm(x, block['attention_norm'], config)
    packed = _dense(normed, block['attention']['query_key_value'])
    packed = packed.reshape(batch, length, 3, heads, -1)
    query, key, value = (packed[:, :, j] for j in range(3))
    scores = jnp.einsum('bihd,bjhd->bhij', query, key)
    scores = jnp.where(causal, scores * config.head_width**-0.5, -jnp.inf)
    shares = jax.nn.softmax(scores, axis=-1)
    mixed = jnp.einsum('bhij,bjhd->bihd', shares, value).reshape(x.shape)
    middle = x + _dense(mixed, block['attention']['output'])
    entered = norm(middle, block['perceptron_norm'], config)
    hidden = _dense(entered, block['up'])
    gelu = config.activation == 'gelu'
    active = jax.nn.gelu(hidden) if gelu else jax.nn.relu(hidden)
    x = middle + _dense(active, block['down'])
    seen = (stream, normed, query, key, value, jnp.where(causal, scores, 0.0))
    seen += (mixed, middle, entered, hidden, active)
    blocks.append(BlockRanges(*(jnp.max(jnp.abs(each)) for each in seen)))
  last = norm(x, params['norm'], config)
  logits = last @ unembedding(params, config)
  ranges = Ranges(tuple(blocks), jnp.max(jnp.abs(x)), jnp.max(jnp.abs(last)))
  return logits.reshape(batch, length, -1), ranges


def tables(
  params: transformer.Params, tokens: jax.Array, config: transformer.Config
) -> list[tuple[jax.Array, jax.Array]]:
  """The learned tables of positions, and the rows that tokens take."""
  if config.scheme.vectors == 'none':
    return []
  streams = transformer.ids_of(tokens, config).vectors
  names = ['positions', *(f'positions_{i}' for i in range(1, len(streams)))]
  return [(params[name], ids) for name, ids in zip(names, streams, strict=True)]


def unembedding(
  params: transformer.Params, config: transformer.Config
) -> jax.Array:
  """What takes features to logits, f32[width, vocabulary]."""
  if config.tied:
    return params['embedding']['embedding'].T * config.width**-0.5
  return params['unembedding']['kernel']


def norm(x: jax.Array, params: Any, config: transformer.Shape) -> jax.Array:
  """The norm of a decoder, in float32."""
  if config.norm == 'layer':
    x = x - jnp.mean(x, axis=-1, keepdims=True)
  size = jnp.mean(x * x, axis=-1, keepdims=True)
  y = x * jax.lax.rsqrt(size + _EPSILON) * params['scale'][None]
  return y + params['bias'][None] if 'bias' in params else y


def _dense(x: jax.Array, params: Any) -> jax.Array:
  y = x @ params['kernel']
  return y + params['bias'][None] if 'bias' in params else y
