"""The forward pass of a decoder in integers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import transformer
from experiments.integer_only import arithmetics
from experiments.integer_only import calibration
from experiments.integer_only import conversion
from numerics import integer


@functools.partial(jax.jit, static_argnames=('config', 'arithmetic'))
def forward(
  model: conversion.Model,
  tokens: jax.Array,
  floats: conversion.Floats | None = None,
  *,
  config: transformer.Config,
  arithmetic: arithmetics.Arithmetic,
) -> jax.Array:
  """Logits of the next token at every position, as integers.

  Between its functions, activations are codes of `arithmetic.bits` and the
  residual stream is one of `arithmetic.stream_bits`, all in int32; operands of
  products are int8, which are added up in int32.

  Args:
    model: From `conversion.convert`.
    tokens: i32[batch, length].
    floats: Likewise, if a function is in float32.
    config: The decoder's shape.
    arithmetic: Which functions there are, and of how many bits.

  Returns:
    i32[batch, length, vocabulary], in steps of `floats.logits`.
  """
  batch, length = tokens.shape
  how = arithmetic
  rescale = functools.partial(
    integer.rescale, bits=how.bits, rounding=how.rounding
  )
  add = functools.partial(
    integer.add_rescaled, bits=how.stream_bits, rounding=how.rounding
  )
  x = model.embedding[tokens]
  ids = transformer.ids_of(tokens, config).vectors
  for table, stream in zip(model.positions, ids, strict=False):
    x = x + table[stream]
  limit = np.int32(2 ** (how.stream_bits - 1) - 1)
  x = jnp.clip(x.reshape(-1, config.width), -limit, limit)
  causal = jnp.tril(jnp.ones((1, 1, length, length), bool))

  def normalise(x, norm, known):
    if how.norm == 'float':
      y = calibration.norm(_real(x, known.scale_in), known.params, config)
      return _codes(y, known.scale_out, how.bits)
    y = integer.layer_norm(
      x, norm.bias, centred=config.norm == 'layer', root=how.norm
    )
    return rescale(y, norm.scale)

  for i, block in enumerate(model.blocks):
    known: Any = floats and floats.blocks[i]
    normed = normalise(x, block.attention_norm, known and known.attention_norm)
    packed = rescale(
      _dense(normed, block.query_key_value), block.query_key_value.scale
    )
    packed = packed.reshape(batch, length, 3, config.heads, -1)
    query, key, value = (packed[:, :, j] for j in range(3))
    products = _products('bihd,bjhd->bhij', query, key, 8)
    scores = rescale(products, block.scores, bits=how.score_bits)
    if how.softmax == 'float':
      real = jnp.where(causal, _real(scores, known.scores), -jnp.inf)
      share = np.float32(2.0 ** (1 - how.share_bits))
      shares = _codes(jax.nn.softmax(real), share, how.share_bits)
    else:
      shares = integer.shiftmax(
        scores, block.score_unit, where=causal, bits=how.share_bits
      )
    products = _products('bhij,bjhd->bihd', shares, value, how.share_bits)
    mixed = rescale(products, block.mixed).reshape(x.shape)
    x = add(
      x, block.attention_skip, _dense(mixed, block.output), block.output.scale
    )
    entered = normalise(
      x, block.perceptron_norm, known and known.perceptron_norm
    )
    hidden = rescale(_dense(entered, block.up), block.up.scale)
    if config.activation == 'relu':
      active = rescale(jnp.maximum(hidden, 0), block.active)
    elif how.gelu == 'float':
      real = jax.nn.gelu(_real(hidden, known.hidden))
      active = _codes(real, known.active, how.bits)
    else:
      found = integer.shift_gelu(
        hidden,
        block.gelu_unit,
        maximum=how.gelu,
        bits=how.share_bits,
        terms=how.gelu_terms,
      )
      active = rescale(found, block.active)
    x = add(
      x, block.perceptron_skip, _dense(active, block.down), block.down.scale
    )
  last = normalise(x, model.norm, floats and floats.norm)
  head = model.unembedding
  logits = rescale(_dense(last, head), head.scale, bits=32)
  return logits.reshape(batch, length, -1)


def _dense(x: jax.Array, layer: conversion.Linear) -> jax.Array:
  """Products of int8, added up in int32, i32[rows, out]."""
  products = jax.lax.dot(
    x.astype(jnp.int8), layer.kernel, preferred_element_type=jnp.int32
  )
  return products + layer.bias


def _products(
  equation: str, a: jax.Array, b: jax.Array, bits: int
) -> jax.Array:
  dtype = jnp.int8 if bits == 8 else jnp.int32
  return jnp.einsum(
    equation,
    a.astype(dtype),
    b.astype(dtype),
    preferred_element_type=jnp.int32,
  )


def _real(codes: jax.Array, scale: jax.Array) -> jax.Array:
  return codes.astype(jnp.float32) * scale


def _codes(x: jax.Array, scale: jax.Array | np.float32, bits: int):
  limit = np.float32(2 ** (bits - 1) - 1)
  return jnp.clip(jnp.round(x / scale), -limit, limit).astype(jnp.int32)
