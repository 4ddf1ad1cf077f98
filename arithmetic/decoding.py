"""Writing answers token by token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from arithmetic.tasks.base import column


def greedy(
  logits_fn: Callable[[jax.Array], jax.Array],
  prompts: jax.Array,
  prompt_length: jax.Array,
) -> jax.Array:
  """Continues prompts with the most likely token, again and again.

  Every step reads the whole line, so that any causal model, and any mixture
  of models, can be decoded.

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
