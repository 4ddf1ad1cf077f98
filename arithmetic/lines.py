"""Lines of tokens, put together from their pieces on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import pieces
from arithmetic import tokenizers


class Batch(NamedTuple):
  """Lines of tokens, and which of them are to be learned.

  Attributes:
    tokens: i32[batch, length].
    answer: bool[batch, length], true on all that follows the prompt, up to and
      with the end mark, but for what is given there: what is trained.
    scored: The same for the final answer alone, without the work of a
      scratchpad; None if there is no work.
  """

  tokens: jax.Array
  answer: jax.Array
  scored: jax.Array | None = None


class Line(NamedTuple):
  """The pieces of a line, in the order of writing."""

  prompt: list[pieces.Piece]
  work: list[pieces.Piece]
  answer: list[pieces.Piece]


def write(
  line: Line,
  tokenizer: tokenizers.DigitTokenizer,
  *,
  batch: int,
  length: int,
  removed: jax.Array | int | None = None,
  spaces: tuple[jax.Array, float] | None = None,
) -> Batch:
  """Writes lines whose pieces hold arrays.

  Args:
    line: The pieces of a batch of lines.
    tokenizer: Gives the lines their tokens.
    batch: How many lines.
    length: Tokens a line; what does not fit is dropped.
    removed: How many characters of the work are left out, from its first on:
      i32[] or i32[batch].
    spaces: A key, and the probability of a blank before each character of the
      prompt.

  Returns:
    A `Batch` of shape [batch, length].
  """
  merged = [pieces.merged(part) for part in line]
  rendered = [
    [pieces.render(piece, batch, tokenizer.characters) for piece in part]
    for part in merged
  ]
  prompt, work, _ = (sum(x.shape[1] for x, _ in part) for part in rendered)
  characters, keep = (
    jnp.concatenate(xs, axis=1)
    for xs in zip(*(x for part in rendered for x in part), strict=True)
  )
  if removed is not None:
    within = slice(prompt, prompt + work)
    index = jnp.cumsum(keep[:, within], axis=1, dtype=jnp.int32) - 1
    left = index >= jnp.reshape(jnp.asarray(removed, jnp.int32), (-1, 1))
    keep = keep.at[:, within].set(keep[:, within] & left)
  sizes = keep.astype(jnp.int32)
  wide = max(length, keep.shape[1])
  if spaces is not None:
    key, probability = spaces
    drawn = jax.random.bernoulli(key, probability, (batch, prompt))
    sizes = sizes.at[:, :prompt].multiply(1 + drawn.astype(jnp.int32))
    wide = max(length, keep.shape[1] + prompt)
  characters = tokenizers.compact(characters, keep, sizes, wide)
  # Where the prompt, the work and the line end, in characters.
  prompt_end, work_end, line_end = (
    jnp.sum(sizes[:, :end], axis=1, keepdims=True)
    for end in (prompt, prompt + work, keep.shape[1])
  )
  tokens, place = tokenizer.from_characters(characters)
  tokens, place = tokens[:, :length], place[:, :length]
  answer = (place >= prompt_end) & (place < line_end)
  flags = [
    np.full(ids.shape[1], piece.given)
    for part, written in zip(merged, rendered, strict=True)
    for piece, (ids, _) in zip(part, written, strict=True)
  ]
  if any(flag.any() for flag in flags):
    given = jnp.broadcast_to(np.concatenate(flags), keep.shape)
    given = tokenizers.compact(given, keep, sizes, wide)
    answer &= ~jnp.take_along_axis(given, jnp.minimum(place, wide - 1), axis=1)
  scored = answer & (place >= work_end) if line.work else None
  return Batch(tokens, answer, scored)
