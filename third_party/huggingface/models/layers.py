"""The layers that the families share, as functions of weights by name.

Activations are flat, `[batch * length, channels]`, where a layer acts on each
token alone. Products are accumulated in float32; norms and softmax are in
float32, whatever the activations are in.
"""

from collections.abc import Callable
from collections.abc import Mapping
import math

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]


def quick_gelu(x: jax.Array) -> jax.Array:
  """Returns `x * sigmoid(1.702 x)`, the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
  """Returns `x * Phi(x)` with the exact distribution function."""
  return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
  """Returns the GELU of GPT-2, with a hyperbolic tangent for the integral."""
  return jax.nn.gelu(x, approximate=True)


# By the names that configs have for them.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': gelu,
  'gelu_new': gelu_tanh,
  'gelu_pytorch_tanh': gelu_tanh,
  'quick_gelu': quick_gelu,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'swish': jax.nn.silu,
}


def linear(params: Params, name: str, x: jax.Array, *, out_in: bool = True):
  """Applies `name.weight`, and `name.bias` where there is one.

  Args:
    params: Weights by name.
    name: Name of the layer.
    x: `[rows, in]`.
    out_in: Whether the weight is `[out, in]`, and not `[in, out]`.

  Returns:
    `[rows, out]` of the type of `x`.
  """
  weight = params[f'{name}.weight'].astype(x.dtype)
  y = contract(x, weight, 1 if out_in else 0)
  bias = params.get(f'{name}.bias')
  if bias is not None:
    y = y + bias.astype(jnp.float32)[None]
  return y.astype(x.dtype)


def contract(x: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
  """Returns f32 products of the rows of `x` along an axis of a matrix."""
  dimensions = (((1,), (axis,)), ((), ()))
  return jax.lax.dot_general(
    x, weight, dimensions, preferred_element_type=jnp.float32
  )


def embed(table: jax.Array, indices: jax.Array, dtype) -> jax.Array:
  """Returns rows of a table; NaN for an index that it does not have.

  A wrong token should show, and not be read as another one.
  """
  rows = jnp.take(table, indices, axis=0, mode='fill', fill_value=jnp.nan)
  known = indices >= 0
  return jnp.where(known[..., None], rows, jnp.nan).astype(dtype)


def layer_norm(params: Params, name: str, x: jax.Array, epsilon: float):
  """Normalises mean and variance over the last axis, by weights of `name`."""
  y = x.astype(jnp.float32)
  y = y - y.mean(-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
  weight, bias = (
    params[f'{name}.{each}'].astype(jnp.float32) for each in ('weight', 'bias')
  )
  shape = (1,) * (y.ndim - 1) + weight.shape
  return (y * weight.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def rms_norm(params: Params, name: str, x: jax.Array, epsilon: float):
  """Normalises the mean square over the last axis of `[rows, channels]`."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
  return (y * params[f'{name}.weight'].astype(jnp.float32)[None]).astype(
    x.dtype
  )


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  scale: float | None = None,
) -> jax.Array:
  """Attention, of several heads of queries to one of keys where these are less.

  Args:
    query: `[batch, queries, heads, width]`.
    key: `[batch, keys, key heads, width]`; key heads divide heads.
    value: As `key`.
    mask: `bool[batch or 1, queries, keys]`, true where a query sees a key; all
      are seen without it. A query that sees none, which is padding, gets the
      mean value: some number that is not NaN.
    scale: Of the products; by default `1 / sqrt(width)`.

  Returns:
    `[batch * queries, heads * width]`.
  """
  batch, length, heads, width = query.shape
  groups = key.shape[2]
  scale = 1 / math.sqrt(width) if scale is None else scale
  query = query.reshape(batch, length, groups, heads // groups, width)
  scores = scale * jnp.einsum(
    'bqgrd,bkgd->bgrqk', query, key, preferred_element_type=jnp.float32
  )
  if mask is not None:
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where(mask[:, None, None], scores, lowest)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  out = jnp.einsum(
    'bgrqk,bkgd->bqgrd', weights, value, preferred_element_type=jnp.float32
  )
  return out.reshape(batch * length, heads * width).astype(value.dtype)
