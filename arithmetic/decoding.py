"""Writing answers token by token."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from arithmetic import transformer
from arithmetic.tasks.base import column


def greedy(
  logits_fn: Callable[[jax.Array], jax.Array],
  prompts: jax.Array,
  prompt_length: jax.Array,
) -> jax.Array:
  """Continues prompts with the most likely token, again and again.

  Every step reads the whole line, so that any causal model, and any mixture
  of models, can be decoded. `generate` is faster for one decoder.

  Args:
    logits_fn: From tokens i32[batch, length - 1] to logits
      f32[batch, length - 1, vocabulary] of the token after each.
    prompts: i32[batch, length]; only the first `prompt_length` tokens of a
      line are read.
    prompt_length: i32[batch], at least 1.

  Returns:
    i32[batch, length]: each line's prompt and its continuation up to the
    line's end. What follows an end mark is the model's, too.

  Examples:
    A model that always counts up:

    >>> import jax, jax.numpy as jnp
    >>> prompts = jnp.asarray([[3, 0, 0, 0], [5, 7, 0, 0]])
    >>> greedy(
    ...   lambda x: jax.nn.one_hot(x + 1, 12), prompts, jnp.asarray([1, 2])
    ... )
    Array([[3, 4, 5, 6],
           [5, 7, 8, 9]], dtype=int32)
  """
  given = column(prompts) < prompt_length[:, None]

  def step(i, tokens):
    predicted = jnp.argmax(logits_fn(tokens[:, :-1])[:, i - 1], axis=-1)
    written = jnp.where(given[:, i], tokens[:, i], predicted)
    return tokens.at[:, i].set(written.astype(tokens.dtype))

  tokens = jnp.where(given, prompts, 0)
  return jax.lax.fori_loop(1, prompts.shape[1], step, tokens)


class _Writing(NamedTuple):
  """Lines that are being written.

  Attributes:
    tokens: i32[batch, length].
    place: i32[], the first place that is not yet decided.
    cache: Of the tokens before the last that is decided.
    ended: bool[batch], whether an end mark was written.
  """

  tokens: jax.Array
  place: jax.Array
  cache: transformer.Cache
  ended: jax.Array


def generate(
  params: transformer.Params,
  prompts: jax.Array,
  prompt_length: jax.Array,
  *,
  config: transformer.Config,
  prefill: int = 1,
  end: int | None = None,
  loops: int | None = None,
  given: jax.Array | None = None,
  temperature: float = 0.0,
  top_k: int | None = None,
  key: jax.Array | None = None,
) -> jax.Array:
  """Continues prompts with one decoder, reading each token once.

  At temperature 0 it writes what `greedy` writes. Else the next token is drawn
  from the softmax of logits / temperature over the `top_k` likeliest tokens, as
  in Lee et al., Teaching Arithmetic to Small Transformers, 2023,
  arXiv:2307.03381, at 0.8 and 200.

  Position ids are those of evaluation, of the tokens so far.

  Args:
    params: From `transformer.init`.
    prompts: i32[batch, length]; only the first `prompt_length` tokens of a
      line are read.
    prompt_length: i32[batch], at least `prefill`.
    config: The decoder's shape.
    prefill: How many tokens at the beginning are prompt in every line; they
      are read at once.
    end: A token behind which a line is filled with token 0; once all lines
      have one, decoding stops. Without it, what follows an end mark is the
      model's, too.
    loops: How often to go through the blocks, if not `config.loops` times.
    given: bool[batch, length], tokens of `prompts` that are told behind the
      prompt, as questions between answers.
    temperature: 0 for the likeliest token, which is the default.
    top_k: How many tokens can be drawn; all by default.
    key: Needed to draw.

  Returns:
    i32[batch, length]: each line's prompt and its continuation.

  Raises:
    ValueError: For lines that do not fit the decoder, or settings out of range.

  Examples:
    >>> import jax, jax.numpy as jnp
    >>> config = transformer.Config(vocabulary_size=9, max_length=6, layers=1)
    >>> params = transformer.init(jax.random.key(0), config)
    >>> prompts = jnp.asarray([[3, 0, 0, 0, 0, 0], [5, 7, 0, 0, 0, 0]])
    >>> generate(params, prompts, jnp.asarray([1, 2]), config=config).shape
    (2, 6)
  """
  batch, length = prompts.shape
  if length > config.max_length:
    raise ValueError(
      f'lines of {length} tokens do not fit a decoder of'
      f' max_length={config.max_length}'
    )
  if not 1 <= prefill <= length:
    raise ValueError(
      f'prefill is from 1 to the {length} tokens of a line, got {prefill}'
    )
  if temperature < 0:
    raise ValueError(f'temperature is at least 0, got {temperature}')
  if top_k is not None and top_k < 1:
    raise ValueError(f'top_k is at least 1, got {top_k}')
  if temperature and key is None:
    raise ValueError('key is missing: drawing at a temperature needs one')
  told = column(prompts) < prompt_length[:, None]
  given = told if given is None else told | given

  def read(tokens, start, count, cache):
    """Logits after the `count` tokens from `start`, and the cache with them."""
    new = jax.lax.dynamic_slice_in_dim(tokens, start, count, axis=1)
    logits, cache = transformer.extend(
      params,
      cache,
      new,
      start,
      config=config,
      # Cheap beside the decoder, and right for schemes that look at tokens.
      places=transformer.ids_of(tokens, config),
    )
    return logits[:, -1], cache

  def choose(logits, place):
    if key is None or not temperature:
      return jnp.argmax(logits, axis=-1)
    if top_k is not None and top_k < logits.shape[-1]:
      least = jax.lax.top_k(logits, top_k)[0][:, -1:]
      logits = jnp.where(logits < least, -jnp.inf, logits)
    draw = jax.random.fold_in(key, place)
    return jax.random.categorical(draw, logits / temperature)

  def write(state: _Writing) -> _Writing:
    tokens, place, cache, ended = state
    logits, cache = read(tokens, place - 1, 1, cache)
    chosen = jnp.where(ended, 0, choose(logits, place)).astype(tokens.dtype)
    written = jnp.where(given[:, place], tokens[:, place], chosen)
    if end is not None:
      ended = ended | ((written == end) & ~given[:, place])
    tokens = tokens.at[:, place].set(written)
    return _Writing(tokens, place + 1, cache, ended)

  tokens = jnp.where(given, prompts, 0)
  cache = transformer.empty_cache(config, batch, length=length, loops=loops)
  if prefill > 1:
    _, cache = read(tokens, 0, prefill - 1, cache)
  state = jax.lax.while_loop(
    lambda state: (state.place < length) & ~jnp.all(state.ended),
    write,
    _Writing(tokens, jnp.asarray(prefill), cache, jnp.zeros(batch, bool)),
  )
  return state.tokens
