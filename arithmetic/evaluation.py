"""Whether answers are right, whole."""

import jax
import jax.numpy as jnp

from arithmetic.layouts import Batch


def answer_loss(
  logits: jax.Array, batch: Batch, weight: jax.Array | None = None
):
  """Mean cross-entropy of the answer's tokens, the end mark among them.

  Args:
    logits: f32[batch, length - 1, vocabulary], for tokens 1 to length - 1.
    batch: The lines; only answer tokens count.
    weight: f32[batch], 1 by default; a line of weight 0 does not count.

  Returns:
    A scalar, in nats a token.
  """
  targets = batch.tokens[:, 1:]
  weights = batch.answer[:, 1:].astype(jnp.float32)
  if weight is not None:
    weights = weights * weight.astype(jnp.float32)[:, None]
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  return -jnp.sum(picked * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def exact_match(logits: jax.Array, batch: Batch) -> jax.Array:
  """Whether each answer is right in every token, up to and with the end mark.

  One forward pass over the true line decides what greedy decoding would
  write: decoding reproduces the answer exactly when, at every answer
  position, the most likely next token after the true prefix is the true one.
  The work of a scratchpad counts, too: a model that reaches the right answer by
  other work has to be decoded, and read by `Layout.read`.

  Args:
    logits: f32[batch, length - 1, vocabulary], for tokens 1 to length - 1.
    batch: The true lines.

  Returns:
    bool[batch].
  """
  right = jnp.argmax(logits, axis=-1) == batch.tokens[:, 1:]
  return jnp.all(right | ~batch.answer[:, 1:], axis=-1)


def accuracy_by_emission(
  logits: jax.Array, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """How often each token of the answers is right after the true ones before it.

  Args:
    logits: f32[batch, length - 1, vocabulary], for tokens 1 to length - 1.
    batch: The true lines.

  Returns:
    By the order of writing, 0 for the first token of an answer: the share
    that is right, 0 where there is none, f32[length - 1]; and how many answers
    have that token, i32[length - 1].
  """
  answer = batch.answer[:, 1:]
  right = (jnp.argmax(logits, axis=-1) == batch.tokens[:, 1:]) & answer
  length = answer.shape[1]
  place = jnp.cumsum(answer, axis=1, dtype=jnp.int32) - 1
  place = jnp.where(answer, place, length)
  zero = jnp.zeros(length, jnp.int32)
  hits = zero.at[place].add(right.astype(jnp.int32), mode='drop')
  counts = zero.at[place].add(1, mode='drop')
  share = hits.astype(jnp.float32) / jnp.maximum(counts, 1).astype(jnp.float32)
  return share, counts


def turn_of(batch: Batch) -> jax.Array:
  """Of which string of the answer each token is, where answers take turns.

  Args:
    batch: Lines of a layout with turns.

  Returns:
    i32[batch, length], from 0; what tokens outside of answers have means
    nothing.
  """
  begins = batch.answer & ~jnp.pad(batch.answer, [(0, 0), (1, 0)])[:, :-1]
  return jnp.maximum(jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1, 0)


def right_turns(logits: jax.Array, batch: Batch, turns: int) -> jax.Array:
  """Whether each turn is right in every token, given the turns before it.

  Args:
    logits: f32[batch, length - 1, vocabulary], for tokens 1 to length - 1.
    batch: Lines of a layout with turns.
    turns: How many there are.

  Returns:
    bool[batch, turns]; the end mark belongs to the last.
  """
  missed = jnp.argmax(logits, axis=-1) != batch.tokens[:, 1:]
  turn = jnp.where(missed & batch.answer[:, 1:], turn_of(batch)[:, 1:], turns)
  row = jnp.arange(len(turn))[:, None]
  return (
    jnp.ones((len(turn), turns), bool).at[row, turn].set(False, mode='drop')
  )
