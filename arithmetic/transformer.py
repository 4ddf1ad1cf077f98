"""A small decoder-only transformer behind `init` and `apply`."""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic import positions as position_schemes
from arithmetic.blocks import Decoder
from arithmetic.blocks import KeysValues
from arithmetic.blocks import View
from arithmetic.blocks import WATCHED
from arithmetic.config import Activation as Activation
from arithmetic.config import Config as Config
from arithmetic.config import Dtype as Dtype
from arithmetic.config import Norm as Norm
from arithmetic.config import NormPlace as NormPlace
from arithmetic.config import Shape as Shape

Params = dict[str, Any]


class Features(NamedTuple):
  """What a decoder computes on its way, in the order of loops and layers.

  Attributes:
    heads: What each head has gathered, before the output matrix of its
      attention, [loops, layers, batch, length, heads, head_width].
    stream: The residual stream behind each block, [loops, layers, batch,
      length, width].
  """

  heads: jax.Array
  stream: jax.Array


# Of every layer, keys and values [loops, batch, length, heads, head_width].
Cache = tuple[KeysValues, ...]


@functools.partial(jax.jit, static_argnames='config', inline=True)
def init(key: jax.Array, config: Config) -> Params:
  """Draws the parameters of a decoder, in one program.

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
  variables: Any = Decoder(config).init(key, tokens, ids_of(tokens, config))
  return variables['params']


def ids_of(
  tokens: jax.Array, config: Config, *, key: jax.Array | None = None
) -> position_schemes.Places:
  """The position ids that a decoder gives to lines of tokens.

  Args:
    tokens: i32[batch, length].
    config: The decoder's shape.
    key: For training: draws, where a scheme draws.

  Returns:
    What `apply` computes itself, and takes as `places`.
  """
  return position_schemes.places(
    config.scheme,
    tokens,
    max_length=config.max_length,
    classes=config.classes,
    key=key,
  )


@functools.partial(jax.jit, static_argnames=('config', 'loops'), inline=True)
def apply(
  params: Params,
  tokens: jax.Array,
  *,
  config: Config,
  key: jax.Array | None = None,
  places: position_schemes.Places | None = None,
  loops: int | None = None,
) -> jax.Array:
  """Logits of the next token at every position.

  Args:
    params: From `init`.
    tokens: i32[batch, length], length at most `config.max_length`.
    config: The decoder's shape.
    key: For training: draws positions, where they are random, and what is
      dropped.
    places: Position ids to take instead of those of `config.positions`.
    loops: How often to go through the blocks, if not `config.loops` times.

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
  logits, _ = _whole(params, tokens, config, key, places, loops)
  return logits


@functools.partial(jax.jit, static_argnames=('config', 'loops'), inline=True)
def watch(
  params: Params,
  tokens: jax.Array,
  *,
  config: Config,
  key: jax.Array | None = None,
  places: position_schemes.Places | None = None,
  loops: int | None = None,
) -> tuple[jax.Array, Features]:
  """The logits of `apply`, and what was computed on the way.

  Args:
    params: From `init`.
    tokens: i32[batch, length], length at most `config.max_length`.
    config: The decoder's shape.
    key: For training: draws positions, where they are random, and what is
      dropped.
    places: Position ids to take instead of those of `config.positions`.
    loops: How often to go through the blocks, if not `config.loops` times.

  Returns:
    Logits f32[batch, length, vocabulary], and features.

  Raises:
    ValueError: If the lines are longer than `config.max_length`.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> config = Config(vocabulary_size=16, max_length=8, width=32)
    >>> params = init(jax.random.key(0), config)
    >>> line = jnp.zeros((3, 5), jnp.int32)
    >>> _, features = watch(params, line, config=config)
    >>> features.heads.shape, features.stream.shape
    ((1, 2, 3, 5, 4, 8), (1, 2, 3, 5, 32))
  """
  logits, watched = _whole(
    params, tokens, config, key, places, loops, watch=True
  )
  blocks = [watched[f'blocks_{i}'] for i in range(config.layers)]
  heads = jnp.stack([x['attention']['heads'][0] for x in blocks], axis=1)
  stream = jnp.stack([x['stream'][0] for x in blocks], axis=1)
  shape = (*stream.shape[:2], *tokens.shape, config.width)
  return logits, Features(heads, stream.reshape(shape))


def empty_cache(
  config: Config,
  batch: int,
  *,
  length: int | None = None,
  loops: int | None = None,
) -> Cache:
  """Room for the keys and values of lines.

  Args:
    config: The decoder's shape.
    batch: How many lines.
    length: Tokens a line, by default `config.max_length`.
    loops: How often `extend` will go through the blocks, if not
      `config.loops` times.

  Returns:
    A `Cache` for `extend`.
  """
  shape = (
    loops or config.loops,
    batch,
    length or config.max_length,
    config.heads,
    config.head_width,
  )
  empty = jnp.zeros(shape, jnp.dtype(config.dtype))
  return tuple((empty, empty) for _ in range(config.layers))


def extend(
  params: Params,
  cache: Cache,
  tokens: jax.Array,
  start: jax.Array | int,
  *,
  config: Config,
  places: position_schemes.Places,
) -> tuple[jax.Array, Cache]:
  """Logits of tokens that follow those whose keys and values are cached.

  Args:
    params: From `init`.
    cache: From `empty_cache` or an earlier call.
    tokens: i32[batch, count], what comes next in every line.
    start: How many tokens came before.
    config: The decoder's shape.
    places: The position ids of the whole line, as long as the cache. Ids
      beyond the tokens given are not read.

  Returns:
    Logits f32[batch, count, vocabulary] and the cache with the tokens.

  Examples:
    A line in two parts:

    >>> import functools
    >>> import jax
    >>> import jax.numpy as jnp
    >>> config = Config(vocabulary_size=16, max_length=8, width=32)
    >>> params = init(jax.random.key(0), config)
    >>> line = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]])
    >>> read = functools.partial(
    ...   jax.jit(extend, static_argnames='config'),
    ...   config=config,
    ...   places=ids_of(line, config),
    ... )
    >>> _, cache = read(params, empty_cache(config, 1), line[:, :4], 0)
    >>> logits, cache = read(params, cache, line[:, 4:], 4)
    >>> whole = apply(params, line, config=config)
    >>> bool(jnp.allclose(logits, whole[:, 4:], atol=1e-5))
    True
  """
  batch, count = tokens.shape
  loops, _, length = cache[0][0].shape[:3]
  query_places = jax.tree.map(
    lambda ids: jax.lax.dynamic_slice_in_dim(ids, start, count, axis=-1),
    places,
  )
  row = start + jnp.arange(count)[:, None]
  causal = (jnp.arange(length)[None] <= row)[None, None]
  view = View(
    batch, query_places.attention, places.attention, causal, start=start
  )
  ids = query_places.vectors
  logits, new = _run(params, tokens, ids, view, config, loops, None, cache)
  return logits, new or ()


def _whole(
  params: Params,
  tokens: jax.Array,
  config: Config,
  key: jax.Array | None,
  places: position_schemes.Places | None,
  loops: int | None,
  *,
  watch: bool = False,
) -> tuple[jax.Array, Any]:
  """Logits of whole lines, and what is watched."""
  _check_length(tokens, config)
  batch, length = tokens.shape
  place_key, drop_key = (None, None) if key is None else jax.random.split(key)
  if places is None:
    places = ids_of(tokens, config, key=place_key)
  causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
  view = View(batch, places.attention, places.attention, causal)
  vectors = places.vectors
  return _run(
    params, tokens, vectors, view, config, loops, drop_key, watch=watch
  )


def _run(
  params: Params,
  tokens: jax.Array,
  ids: jax.Array,
  view: View,
  config: Config,
  loops: int | None,
  key: jax.Array | None,
  cache: Cache | None = None,
  *,
  watch: bool = False,
) -> tuple[jax.Array, Any]:
  """Embeds, goes through the blocks again and again, and unembeds.

  Returns:
    Logits, and of every loop the caches, or what is watched.
  """
  decoder: Any = functools.partial(Decoder(config).apply, {'params': params})
  train = key is not None

  def drop(count: jax.Array | int) -> dict[str, jax.Array] | None:
    return {'dropout': jax.random.fold_in(key, count)} if train else None

  embedded = decoder(tokens, ids, train=train, rngs=drop(0), method='embed')
  bias = decoder(view.query_ids, view.key_ids, method='shared_bias')
  view = view._replace(bias=bias, train=train)

  def once(x: jax.Array, item: Any) -> tuple[jax.Array, Any]:
    count, cache = item
    x = x + embedded if config.inject else x
    loop = functools.partial(decoder, rngs=drop(count), method='loop')
    if not watch:
      return loop(x, view, cache)
    (x, _), watched = loop(x, view, cache, mutable=[WATCHED])
    return x, watched[WATCHED]

  x = jnp.zeros_like(embedded) if config.inject else embedded
  loops = loops or config.loops
  if loops > 1:
    x, cache = jax.lax.scan(once, x, (jnp.arange(1, loops + 1), cache))
  else:
    x, cache = once(x, (1, jax.tree.map(lambda leaf: leaf[0], cache)))
    cache = jax.tree.map(lambda leaf: leaf[None], cache)
  logits = decoder(x, method='unembed')
  return logits.reshape(*tokens.shape, config.vocabulary_size), cache


def _check_length(tokens: jax.Array, config: Config) -> None:
  if tokens.shape[-1] > config.max_length:
    raise ValueError(
      f'lines of {tokens.shape[-1]} tokens do not fit a decoder of'
      f' max_length={config.max_length}'
    )
