"""A small decoder-only transformer behind `init` and `apply`."""

import dataclasses
from typing import Any
from typing import get_args
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from arithmetic import positions as position_schemes

Params = dict[str, Any]
Dtype = Literal['float32', 'bfloat16']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The shape of a decoder.

  Attributes:
    vocabulary_size: How many tokens there are.
    max_length: The longest line, in tokens.
    layers: Blocks of attention and a two-layer perceptron.
    heads: Attention heads; they divide the width.
    width: Features of the residual stream.
    hidden_ratio: Hidden features of the perceptron, as a multiple of width.
    positions: `learned` or `sinusoidal` vectors added to the embedding,
      `rotary` queries and keys, or `none`.
    dtype: What activations are computed in; parameters are float32, and so
      are norms, attention weights and logits.
  """

  vocabulary_size: int
  max_length: int
  layers: int = 2
  heads: int = 4
  width: int = 128
  hidden_ratio: int = 4
  positions: position_schemes.Scheme = 'learned'
  dtype: Dtype = 'float32'

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f'{field.name} is at least 1, got {value}')
    if self.width % self.heads:
      raise ValueError(
        f'heads divide the width: {self.width} features cannot be shared by'
        f' {self.heads} heads'
      )
    if self.positions not in position_schemes.SCHEMES:
      raise ValueError(
        f'positions is one of {", ".join(position_schemes.SCHEMES)}, got'
        f' {self.positions!r}'
      )
    if self.dtype not in get_args(Dtype):
      raise ValueError(
        f'dtype is one of {", ".join(get_args(Dtype))}, got {self.dtype!r}'
      )


def init(key: jax.Array, config: Config) -> Params:
  """Draws the parameters of a decoder.

  Args:
    key: A PRNG key.
    config: The decoder's shape.

  Returns:
    Nested plain dicts of f32 arrays; kernels are (in, out).

  Examples:
    >>> import jax
    >>> config = Config(vocabulary_size=16, max_length=8, width=32)
    >>> params = init(jax.random.key(0), config)
    >>> params['blocks_0']['attention']['query_key_value']['kernel'].shape
    (32, 96)
  """
  tokens = jnp.zeros((1, config.max_length), jnp.int32)
  variables: Any = _Decoder(config).init(key, tokens)
  return variables['params']


def apply(params: Params, tokens: jax.Array, *, config: Config) -> jax.Array:
  """Logits of the next token at every position.

  Args:
    params: From `init`.
    tokens: i32[batch, length], length at most `config.max_length`.
    config: The decoder's shape.

  Returns:
    f32[batch, length, vocabulary]; entry [:, i] has seen tokens up to i.

  Raises:
    ValueError: If the lines are longer than `config.max_length`.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> config = Config(vocabulary_size=16, max_length=8, width=32)
    >>> params = init(jax.random.key(0), config)
    >>> apply(params, jnp.zeros((3, 5), jnp.int32), config=config).shape
    (3, 5, 16)
  """
  if tokens.shape[-1] > config.max_length:
    raise ValueError(
      f'lines of {tokens.shape[-1]} tokens do not fit a decoder of'
      f' max_length={config.max_length}'
    )
  logits: Any = _Decoder(config).apply({'params': params}, tokens)
  return logits


def _dense(features: int, config: Config, name: str, *, scale: float = 1.0):
  initializer = nn.initializers.variance_scaling(
    scale, 'fan_in', 'truncated_normal'
  )
  return nn.Dense(
    features,
    kernel_init=initializer,
    dtype=jnp.dtype(config.dtype),
    name=name,
  )


def _norm(x: jax.Array, name: str) -> jax.Array:
  """Root-mean-square norm, computed in float32."""
  return nn.RMSNorm(name=name)(x.astype(jnp.float32)).astype(x.dtype)


class _Attention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x: jax.Array, length: int) -> jax.Array:
    """Causal attention on flat activations [batch * length, width]."""
    config = self.config
    batch = x.shape[0] // length
    head_width = config.width // config.heads
    packed = _dense(3 * config.width, config, 'query_key_value')(x)
    packed = packed.reshape(batch, length, 3, config.heads, head_width)
    query, key, value = (packed[:, :, i] for i in range(3))
    if config.positions == 'rotary':
      places = jnp.broadcast_to(jnp.arange(length), (batch, length))
      query = position_schemes.rotate(query, places)
      key = position_schemes.rotate(key, places)
    scores = jnp.einsum(
      'bihd,bjhd->bhij', query, key, preferred_element_type=jnp.float32
    )
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    scores = jnp.where(causal, scores * head_width**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum('bhij,bjhd->bihd', weights, value)
    return _dense(config.width, config, 'output', scale=0.5 / config.layers)(
      mixed.reshape(x.shape)
    )


class _Block(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x: jax.Array, length: int) -> jax.Array:
    config = self.config
    normed = _norm(x, 'attention_norm')
    x = x + _Attention(config, name='attention')(normed, length)
    normed = _norm(x, 'perceptron_norm')
    hidden = _dense(config.hidden_ratio * config.width, config, 'up')(normed)
    hidden = jax.nn.gelu(hidden)
    return x + _dense(config.width, config, 'down', scale=0.5 / config.layers)(
      hidden
    )


class _Decoder(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    config = self.config
    batch, length = tokens.shape
    embedding = nn.Embed(
      config.vocabulary_size,
      config.width,
      embedding_init=nn.initializers.normal(1.0),
      name='embedding',
    )
    x = embedding(tokens)
    if config.positions == 'learned':
      table = self.param(
        'positions',
        nn.initializers.normal(1.0),
        (config.max_length, config.width),
      )
      x = x + table[None, :length]
    elif config.positions == 'sinusoidal':
      places = jnp.arange(length)[None]
      x = x + position_schemes.sinusoidal(places, config.width)
    # Linear layers run on [batch * length, width]: one large product is twice
    # as fast on a CPU as a batch of small ones.
    x = x.reshape(batch * length, config.width).astype(config.dtype)
    for layer in range(config.layers):
      x = _Block(config, name=f'blocks_{layer}')(x, length)
    x = nn.RMSNorm(name='norm')(x.astype(jnp.float32))
    logits = nn.Dense(
      config.vocabulary_size,
      use_bias=False,
      kernel_init=nn.initializers.variance_scaling(
        1.0, 'fan_in', 'truncated_normal'
      ),
      name='unembedding',
    )(x)
    return logits.reshape(batch, length, config.vocabulary_size)
