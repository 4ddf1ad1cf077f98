"""How good a model is, as functions of its weights that can be compiled."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from third_party.huggingface.models import layers


def token_losses(
  apply: Callable[..., jax.Array],
  params: layers.Params,
  tokens: jax.Array,
  *,
  attention_mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihoods of tokens, each given those before it.

  Args:
    apply: Of a decoder, `model.apply`.
    params: Weights by name.
    tokens: `i32[batch, length]`, length at least 2.
    attention_mask: `[batch, length]`, zero or false for padding.

  Returns:
    `f32[batch, length - 1]` in nats, of the tokens from the second on, zero for
    those that are padding or follow padding; and `bool` of the same shape,
    false there.

  Raises:
    ValueError: There is nothing to predict.
  """
  if tokens.ndim != 2 or tokens.shape[1] < 2:
    raise ValueError(
      f'tokens are [batch, length] with 2 or more in a line, got {tokens.shape}'
    )
  mask = jnp.ones_like(tokens) if attention_mask is None else attention_mask
  mask = jnp.asarray(mask).astype(bool)
  real = mask[:, 1:] & mask[:, :-1]
  logits = apply(params, tokens, attention_mask=attention_mask)[:, :-1]
  chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]
  losses = jax.nn.logsumexp(logits, axis=-1) - chosen
  return jnp.where(real, losses, 0), real


def perplexity(
  apply: Callable[..., jax.Array],
  params: layers.Params,
  tokens: jax.Array,
  *,
  attention_mask: jax.Array | None = None,
) -> jax.Array:
  """The exponential of the mean loss of all tokens that can be predicted.

  Every token weighs the same, however long its line is. Over several batches,
  sum `token_losses` and their counts; do not average perplexities.

  Args:
    apply: Of a decoder, `model.apply`.
    params: Weights by name.
    tokens: `i32[batch, length]`, length at least 2.
    attention_mask: `[batch, length]`, zero or false for padding.

  Returns:
    `f32[]`, at least 1; NaN if all is padding.

  Raises:
    ValueError: There is nothing to predict.

  Examples:
    >>> import jax.numpy as jnp
    >>> guess = lambda params, tokens, attention_mask: jnp.zeros((1, 3, 8))
    >>> print(perplexity(guess, {}, jnp.array([[1, 2, 3]])).round(3))
    8.0
  """
  losses, real = token_losses(
    apply, params, tokens, attention_mask=attention_mask
  )
  count = real.sum().astype(jnp.float32)
  mean = losses.sum() / jnp.maximum(count, 1)
  return jnp.where(count > 0, jnp.exp(mean), jnp.nan)


def zero_shot(
  apply: Callable[..., jax.Array],
  params: layers.Params,
  images: jax.Array,
  tokens: jax.Array,
  labels: jax.Array,
) -> jax.Array:
  """The share of images whose likeliest class is the right one.

  Args:
    apply: Of CLIP with both towers, `model.apply`.
    params: Weights by name. A merged vision tower goes in as
      `{**clip.params, **tower}`.
    images: `f32[batch, channels, height, width]`.
    tokens: `i32[classes, length]`, a line that names each class.
    labels: `i32[batch]`, the class of each image.

  Returns:
    `f32[]`, from 0 to 1.

  Raises:
    ValueError: There is not a label for each image.

  Examples:
    >>> import jax.numpy as jnp
    >>> same = lambda params, images, tokens: images[:, :, 0, 0]
    >>> images = jnp.eye(2).reshape(2, 2, 1, 1)
    >>> print(zero_shot(same, {}, images, jnp.eye(2), jnp.array([0, 0])))
    0.5
  """
  if labels.shape != images.shape[:1]:
    raise ValueError(
      f'there is a label for each of {len(images)} images, got {labels.shape}'
    )
  best = apply(params, images, tokens).argmax(axis=1)
  return (best.astype(labels.dtype) == labels).astype(jnp.float32).mean()
