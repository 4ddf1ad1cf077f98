"""The layers of the decoder, as Flax modules.

Linear layers run on activations [batch * length, width]: one large product is
twice as fast on a CPU as a batch of small ones.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from arithmetic import positions as position_schemes
from arithmetic.config import Config

# Keys and values of a block, [batch, length, heads, head_width] each.
KeysValues = tuple[jax.Array, jax.Array]

# The collection of what blocks compute, filled only for who asks for it.
WATCHED = 'watched'


class View(NamedTuple):
  """What tokens see of a line, besides its activations.

  Attributes:
    batch: How many lines there are.
    query_ids: i32[batch or 1, queries], for attention.
    key_ids: i32[batch or 1, keys].
    mask: bool[1, 1, queries, keys], which keys a query sees.
    bias: f32[batch or 1, heads, queries, keys], what all layers add to scores,
      or `None`.
    start: i32[], the place of the first query among the keys of a cache.
    train: Whether something is dropped.
  """

  batch: int
  query_ids: jax.Array
  key_ids: jax.Array
  mask: jax.Array
  bias: jax.Array | None = None
  start: jax.Array | int = 0
  train: bool = False


class ScoreBias(nn.Module):
  """What a distance adds to attention scores, and its parameters."""

  config: Config

  @nn.compact
  def __call__(self, query_ids: jax.Array, key_ids: jax.Array) -> jax.Array:
    """From ids of queries and keys to f32[batch or 1, heads, queries, keys]."""
    scheme, heads = self.config.scheme, self.config.heads
    # Keys that lie ahead are hidden by the mask.
    distance = jnp.maximum(query_ids[:, :, None] - key_ids[:, None, :], 0)
    biases, uniform = position_schemes.biases, nn.initializers.uniform
    match scheme.attention:
      case 'alibi':
        return biases.alibi(distance, heads)
      case 't5':
        initializer = nn.initializers.normal(self.config.width**-0.5)
        table = self.param('table', initializer, (scheme.buckets, heads))
        return biases.t5(distance, table, max_distance=scheme.max_distance)
      case 'kerple_log':
        scale = self.param('scale', uniform(2.0), (heads,))
        rate = self.param('rate', uniform(1.0), (heads,))
        return biases.kerple_log(distance, scale, rate)
      case 'kerple_power':
        scale = self.param('scale', uniform(1.0), (heads,))
        power = self.param('power', uniform(2.0), (heads,))
        return biases.kerple_power(distance, scale, power)
      case _:
        constant = nn.initializers.constant
        multiplier = self.param('threshold', constant(1.0), ())
        return biases.fire(
          distance,
          query_ids,
          scale=self.param('scale', constant(0.1), ()),
          threshold=multiplier * scheme.threshold,
          hidden=self._layer('hidden', 1, scheme.hidden),
          output=self._layer('output', scheme.hidden, heads),
        )

  def _layer(
    self, name: str, inputs: int, outputs: int
  ) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias, both uniform, so that kinks of ReLUs lie apart."""

    def initializer(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
      bound = inputs**-0.5
      return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return (
      self.param(f'{name}_kernel', initializer, (inputs, outputs)),
      self.param(f'{name}_bias', initializer, (outputs,)),
    )


class Attention(nn.Module):
  """Causal attention of several heads."""

  config: Config

  @nn.compact
  def __call__(
    self, x: jax.Array, view: View, cache: KeysValues | None = None
  ) -> tuple[jax.Array, KeysValues | None]:
    """From flat activations to flat activations, and the cache with them."""
    config, scheme = self.config, self.config.scheme
    packed = _dense(3 * config.width, config, 'query_key_value')(x)
    packed = packed.reshape(view.batch, -1, 3, config.heads, config.head_width)
    query, key, value = (packed[:, :, i] for i in range(3))
    if scheme.attention == 'rotary':
      query = position_schemes.rotate(query, view.query_ids, base=scheme.base)
      # Of the tokens read now, so that keys go into a cache rotated.
      key = position_schemes.rotate(key, view.query_ids, base=scheme.base)
    if cache is not None:
      write = jax.lax.dynamic_update_slice_in_dim
      key = write(cache[0], key, view.start, axis=1)
      value = write(cache[1], value, view.start, axis=1)
      cache = key, value
    scores = jnp.einsum(
      'bihd,bjhd->bhij', query, key, preferred_element_type=jnp.float32
    )
    scores = scores * config.head_width**-0.5
    if view.bias is not None:
      scores = scores + view.bias
    elif scheme.biased:
      scores = scores + ScoreBias(config, name='bias')(
        view.query_ids, view.key_ids
      )
    scores = jnp.where(view.mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = _dropout(weights, config, train=view.train)
    mixed = jnp.einsum('bhij,bjhd->bihd', weights, value)
    self.sow(WATCHED, 'heads', mixed)
    output = _dense(config.width, config, 'output', scale=_branch(config))
    return output(mixed.reshape(x.shape)), cache


class Block(nn.Module):
  """Attention and a perceptron, each added to the residual stream."""

  config: Config

  @nn.compact
  def __call__(
    self, x: jax.Array, view: View, cache: KeysValues | None = None
  ) -> tuple[jax.Array, KeysValues | None]:
    """From flat activations to flat activations, and the cache with them."""
    config = self.config
    attention = Attention(config, name='attention')
    y, cache = attention(_enter(x, config, 'attention'), view, cache)
    x = _leave(x, y, config, view, 'attention')
    y = _enter(x, config, 'perceptron')
    hidden = _dense(config.hidden_ratio * config.width, config, 'up')(y)
    match config.activation:
      case 'gelu':
        hidden = jax.nn.gelu(hidden)
      case 'relu':
        hidden = jax.nn.relu(hidden)
      case activation:
        gate = _dense(config.hidden_ratio * config.width, config, 'gate')(y)
        unit = jax.nn.silu if activation == 'swiglu' else jax.nn.gelu
        hidden = unit(gate) * hidden
    y = _dense(config.width, config, 'down', scale=_branch(config))(hidden)
    x = _leave(x, y, config, view, 'perceptron')
    self.sow(WATCHED, 'stream', x)
    return x, cache


class Decoder(nn.Module):
  """Embedding, blocks, and logits."""

  config: Config

  def setup(self):  # noqa: D102
    config = self.config
    self.embedding = nn.Embed(
      config.vocabulary_size,
      config.width,
      embedding_init=nn.initializers.normal(1.0),
    )
    self.dropout = nn.Dropout(config.dropout)
    self.blocks = [Block(config) for _ in range(config.layers)]
    if config.norm_place != 'post':
      self.norm = _norm_module(config)
    if not config.tied:
      self.unembedding = nn.Dense(
        config.vocabulary_size,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(
          1.0, 'fan_in', 'truncated_normal'
        ),
      )
    scheme = config.scheme
    if scheme.vectors == 'learned':
      shape = scheme.rows(config.max_length), config.width
      self.tables = [
        self.param(
          f'positions_{i}' if i else 'positions',
          nn.initializers.normal(1.0),
          shape,
        )
        for i in range(len(scheme.vector_ids))
      ]
    if scheme.biased and scheme.shared:
      self.bias = ScoreBias(config)

  def __call__(
    self, tokens: jax.Array, places: position_schemes.Places
  ) -> jax.Array:
    """What initialises all parameters: one loop."""
    x = self.embed(tokens, places.vectors)
    length = tokens.shape[1]
    view = View(
      tokens.shape[0],
      places.attention,
      places.attention,
      jnp.ones((1, 1, length, length), bool),
      self.shared_bias(places.attention, places.attention),
    )
    return self.unembed(self.loop(x, view)[0])

  def embed(
    self, tokens: jax.Array, ids: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Flat activations of tokens i32[batch, length] and their position ids."""
    config = self.config
    x = self.embedding(tokens)
    match config.scheme.vectors:
      case 'learned':
        for table, stream in zip(self.tables, ids, strict=True):
          x = x + jnp.asarray(table)[stream]
      case 'sinusoidal':
        for stream in ids:
          x = x + position_schemes.sinusoidal(stream, config.width)
    x = x.reshape(-1, config.width).astype(config.dtype)
    return self.dropout(x, deterministic=not (train and config.dropout))

  def shared_bias(
    self, query_ids: jax.Array, key_ids: jax.Array
  ) -> jax.Array | None:
    """What all layers add to their scores, if there is something."""
    scheme = self.config.scheme
    if not (scheme.biased and scheme.shared):
      return None
    return self.bias(query_ids, key_ids)

  def loop(
    self,
    x: jax.Array,
    view: View,
    caches: tuple[KeysValues | None, ...] | None = None,
  ) -> tuple[jax.Array, tuple[KeysValues | None, ...]]:
    """Goes through the blocks once."""
    caches = caches or (None,) * self.config.layers
    written = []
    for block, cache in zip(self.blocks, caches, strict=True):
      x, new = block(x, view, cache)
      written.append(new)
    return x, tuple(written)

  def unembed(self, x: jax.Array) -> jax.Array:
    """Logits f32[batch * length, vocabulary] of flat activations."""
    x = x.astype(jnp.float32)
    if self.config.norm_place != 'post':
      x = self.norm(x)
    if self.config.tied:
      return self.embedding.attend(x) * self.config.width**-0.5
    return self.unembedding(x)


def _dense(
  features: int, config: Config, name: str, *, scale: float = 1.0
) -> nn.Dense:
  initializer = nn.initializers.variance_scaling(
    scale, 'fan_in', 'truncated_normal'
  )
  return nn.Dense(
    features,
    use_bias=config.biases,
    kernel_init=initializer,
    dtype=jnp.dtype(config.dtype),
    name=name,
  )


def _branch(config: Config) -> float:
  """The scale of what is added to the stream, 2 branches a block and loop."""
  return 0.5 / (config.layers * config.loops)


def _norm_module(config: Config, name: str | None = None) -> nn.Module:
  if config.norm == 'layer':
    return nn.LayerNorm(use_bias=config.biases, name=name)
  return nn.RMSNorm(name=name)


def _norm(x: jax.Array, config: Config, name: str) -> jax.Array:
  """A norm, computed in float32."""
  return _norm_module(config, name)(x.astype(jnp.float32)).astype(x.dtype)


def _enter(x: jax.Array, config: Config, name: str) -> jax.Array:
  """What a residual branch reads of the stream."""
  if config.norm_place == 'post':
    return x
  return _norm(x, config, f'{name}_norm')


def _leave(
  x: jax.Array, y: jax.Array, config: Config, view: View, name: str
) -> jax.Array:
  """The stream with what a branch has computed."""
  if config.norm_place == 'both':
    y = _norm(y, config, f'{name}_post_norm')
  x = x + _dropout(y, config, train=view.train)
  return _norm(x, config, f'{name}_norm') if config.norm_place == 'post' else x


def _dropout(x: jax.Array, config: Config, *, train: bool) -> jax.Array:
  if not (train and config.dropout):
    return x
  return nn.Dropout(config.dropout, deterministic=False)(x)
