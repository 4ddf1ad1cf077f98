"""What decoders share: masks and positions of lines, the cache, greedy text."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp

from third_party.huggingface.models import layers

# Keys and values of each layer, `[batch, keys, key heads, width]`.
Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Place(NamedTuple):
  """Where new tokens stand in their lines.

  Attributes:
    start: Column of the first new token.
    positions: Their positions, `i32[batch or 1, new]`.
    real: What of a whole line is no padding, `bool[batch or 1, columns]`.
  """

  start: jax.Array | int
  positions: jax.Array
  real: jax.Array

  def mask(self, window: int | None = None) -> jax.Array:
    """Says what each new token sees.

    Args:
      window: How many columns back it sees, its own counted; all without it.

    Returns:
      `bool[batch or 1, new, columns]`.
    """
    key = jnp.arange(self.real.shape[1])[None, :]
    query = (self.start + jnp.arange(self.positions.shape[1]))[:, None]
    seen = key <= query
    if window is not None:
      seen &= key > query - window
    return seen[None] & self.real[:, None, :]


class Config(Protocol):
  """What the config of a decoder says to all."""

  @property
  def layers(self) -> int:
    """How many blocks."""
    ...

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    ...

  @property
  def head_width(self) -> int:
    """Channels of a head."""
    ...

  @property
  def longest(self) -> int | None:
    """The longest line there are positions for."""
    ...


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A family's forward pass and its config, equal if these are.

  Attributes:
    forward: `(params, tokens, place, cache, config=, dtype=, last=)` to f32
      logits of all new tokens, or of the last one, and the cache with theirs.
    config: Static.
    dtype: What activations are in.
  """

  forward: Callable[..., tuple[jax.Array, Cache | None]]
  config: Config
  dtype: Any

  def __call__(self, params, tokens, place, cache=None, *, last=False):
    """Runs the forward pass."""
    return self.forward(
      params,
      tokens,
      place,
      cache,
      config=self.config,
      dtype=self.dtype,
      last=last,
    )


def apply(
  params: layers.Params,
  tokens: jax.Array,
  *,
  attention_mask: jax.Array | None = None,
  positions: jax.Array | None = None,
  decoder: Decoder,
) -> jax.Array:
  """Logits of the next token at every place of whole lines.

  Positions count the tokens that are no padding, as generation in transformers
  does, so that padding on either side changes nothing. Its plain forward pass
  counts padding too: for GPT-2 padded on the left it differs, unless it is
  given these positions, or this function those.

  Args:
    params: Weights by name.
    tokens: `i32[batch, length]`; one that is not in the vocabulary makes its
      line NaN, unless it is padding.
    attention_mask: `[batch, length]`, zero or false for padding, whose logits
      mean nothing. No padding without it.
    positions: `i32[batch, length]`, to count otherwise.
    decoder: The family's.

  Returns:
    `f32[batch, length, vocabulary]`; `[:, i]` has seen tokens up to `i`.

  Raises:
    ValueError: Arguments have wrong shapes, or lines are too long.
  """
  place = _place(tokens, attention_mask, decoder.config, 0)
  if positions is not None:
    if positions.shape != tokens.shape:
      raise ValueError(
        f'positions are like tokens, {tokens.shape}, got {positions.shape}'
      )
    place = place._replace(positions=positions)
  tokens = jnp.where(place.real, tokens, 0)
  logits, _ = decoder(params, tokens, place)
  return logits


def _place(tokens, attention_mask, config, steps):
  if tokens.ndim != 2 or not tokens.size:
    raise ValueError(f'tokens are [batch, length], got shape {tokens.shape}')
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise TypeError(f'tokens are whole numbers, got {tokens.dtype}')
  batch, length = tokens.shape
  if config.longest is not None and length + steps > config.longest:
    raise ValueError(
      f'the model has positions for lines of {config.longest} tokens, got'
      f' {length + steps}; shorten the lines'
    )
  real = jnp.ones((1, length), bool)
  if attention_mask is not None:
    if attention_mask.shape != (batch, length):
      raise ValueError(
        f'attention_mask is like tokens, {(batch, length)}, got'
        f' {attention_mask.shape}'
      )
    real = jnp.asarray(attention_mask).astype(bool)
  positions = jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0)
  return Place(0, positions, real)


def remember(
  cache: tuple[jax.Array, jax.Array] | None,
  key: jax.Array,
  value: jax.Array,
  start: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
  """Returns the keys and values of all columns, with new ones from a column on.

  Args:
    cache: Those of one layer, or None if the new ones are all.
    key: `[batch, new, key heads, width]`.
    value: As `key`.
    start: Column of the first.

  Returns:
    Keys and values.
  """
  if cache is None:
    return key, value
  keys, values = (
    jax.lax.dynamic_update_slice_in_dim(old, new, start, axis=1)
    for old, new in zip(cache, (key, value), strict=True)
  )
  return keys, values


def head(x: jax.Array, table: jax.Array, batch: int, last: bool) -> jax.Array:
  """Returns logits from the features of all tokens.

  Args:
    x: `[batch * length, channels]`.
    table: `[vocabulary, channels]`.
    batch: How many lines.
    last: Whether of the last token of each line alone.

  Returns:
    `f32[batch, length or 1, vocabulary]`.
  """
  if last:
    x = x.reshape(batch, -1, x.shape[-1])[:, -1]
  logits = layers.contract(x, table.astype(x.dtype), 1)
  return logits.reshape(batch, -1, table.shape[0])


def greedy(
  decoder: Decoder,
  params: layers.Params,
  tokens: jax.Array,
  steps: int,
  *,
  attention_mask: jax.Array | None = None,
) -> jax.Array:
  """Continues lines by the most likely token, step by step, with a cache.

  Args:
    decoder: Of a model, `model.decoder`.
    params: Weights by name.
    tokens: Prompts, `i32[batch, length]`, shorter ones padded on the left.
    steps: How many tokens to add; there is no token that ends a line early.
    attention_mask: `[batch, length]`, zero or false for padding.

  Returns:
    The new tokens, `i32[batch, steps]`.

  Raises:
    ValueError: Wrong shapes, too long, or padding on the right.
  """
  if steps < 1:
    raise ValueError(f'steps is at least 1, got {steps}')
  place = _place(tokens, attention_mask, decoder.config, steps - 1)
  ends = place.real[:, -1]
  if not isinstance(ends, jax.core.Tracer) and not ends.all():
    raise ValueError(
      'a line ends with padding, so that there is no last token to continue;'
      ' pad on the left'
    )
  tokens = jnp.where(place.real, tokens, 0)
  return _greedy(params, tokens, place, decoder=decoder, steps=steps)


@functools.partial(jax.jit, static_argnames=('decoder', 'steps'))
def _greedy(params, tokens, place, *, decoder, steps):
  config = decoder.config
  (batch, length), columns = tokens.shape, tokens.shape[1] + steps
  shape = (batch, columns, config.key_heads, config.head_width)
  empty = jnp.zeros(shape, decoder.dtype)
  cache = ((empty, empty),) * config.layers
  real = jnp.pad(place.real, ((0, 0), (0, steps)), constant_values=True)
  logits, cache = decoder(
    params, tokens, place._replace(real=real), cache, last=True
  )

  def step(carry, i):
    token, position, cache = carry
    here = Place(length + i, position + i, real)
    logits, cache = decoder(params, token, here, cache, last=True)
    best = _best(logits)
    return (best, position, cache), best[:, 0]

  first = _best(logits)
  carry = (first, place.positions[:, -1:] + 1, cache)
  _, rest = jax.lax.scan(step, carry, jnp.arange(steps - 1))
  return jnp.concatenate([first, rest.T], axis=1)


def _best(logits):
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)
