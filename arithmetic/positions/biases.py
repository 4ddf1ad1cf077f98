"""Terms added to attention scores, functions of the distance of two ids.

Distances are those of a query to the keys at or before it, i32[batch, queries,
keys], not negative; terms are f32[batch, heads, queries, keys].
"""

import jax
import jax.numpy as jnp
import numpy as np

# What KERPLE's parameters are kept above.
_KERPLE_FLOOR = 0.01
# What keeps FIRE's ratio finite.
_FIRE_EPSILON = 1e-6


def alibi(distance: jax.Array, heads: int) -> jax.Array:
  """-m_h D, where m_h = 2^(-8 h / heads) for heads 1, 2, ...

  The official code takes other slopes if heads are not a power of two: those
  of the next lower power, then every other one of the next higher power.

  References:
    Press et al., Train Short, Test Long: Attention with Linear Biases Enables
    Input Length Extrapolation, 2021, arXiv:2108.12409.
  """
  slopes = [2.0 ** (-8 * h / heads) for h in range(1, heads + 1)]
  return -_by_head(jnp.asarray(slopes)) * _by_distance(distance)


def t5(
  distance: jax.Array, table: jax.Array, *, max_distance: int = 128
) -> jax.Array:
  """A learned number for each head and bucket of distances.

  With B buckets, distances below B / 2 have one each. Bucket
  B / 2 + floor(log(2 D / B) / log(2 max_distance / B) * B / 2) holds the
  others, up to the last, which also holds all from `max_distance` on.

  T5 does not divide scores by the root of the head's width; here they are
  divided, as for all schemes.

  Args:
    distance: i32[batch, queries, keys].
    table: f32[buckets, heads].
    max_distance: From here on there is one bucket.

  Returns:
    f32[batch, heads, queries, keys].

  References:
    Raffel et al., Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer, 2019, arXiv:1910.10683.
  """
  bucket = jnp.asarray(_buckets(table.shape[0], max_distance))
  terms = table[bucket[jnp.minimum(distance, max_distance)]]
  return jnp.moveaxis(terms, -1, 1)


def kerple_log(
  distance: jax.Array, scale: jax.Array, rate: jax.Array
) -> jax.Array:
  """-r1 log(1 + r2 D), with r1 = `scale` and r2 = `rate`, f32[heads].

  Both are kept at 0.01 or more, as the official code does. Gradients pass this
  bound, so that a parameter is not caught there.

  References:
    Chi et al., KERPLE: Kernelized Relative Positional Embedding for Length
    Extrapolation, 2022, arXiv:2205.09921.
  """
  scale, rate = _bounded(scale), _bounded(rate)
  logs = jnp.log1p(_by_head(rate) * _by_distance(distance))
  return -_by_head(scale) * logs


def kerple_power(
  distance: jax.Array, scale: jax.Array, power: jax.Array
) -> jax.Array:
  """-r1 D^r2, with r1 = `scale` and r2 = `power`, f32[heads].

  Both are kept at 0.01 or more, as in `kerple_log`, and the power at 2 or less.

  References:
    Chi et al., KERPLE: Kernelized Relative Positional Embedding for Length
    Extrapolation, 2022, arXiv:2205.09921.
  """
  scale, power = _bounded(scale), _bounded(power, 2.0)
  far = _by_distance(distance) > 0
  # The derivative by the power has a log D, which must not meet 0.
  base = jnp.where(far, _by_distance(distance), 1.0)
  powers = jnp.where(far, base ** _by_head(power), 0.0)
  return -_by_head(scale) * powers


def fire(
  distance: jax.Array,
  query_ids: jax.Array,
  *,
  scale: jax.Array,
  threshold: jax.Array,
  hidden: tuple[jax.Array, jax.Array],
  output: tuple[jax.Array, jax.Array],
) -> jax.Array:
  """f(ψ(D) / ψ(max(i, L))), where ψ(x) = log(c x + 1) and f is a perceptron.

  The ratio is between 0 and 1 however long the line is, once i is beyond L. The
  official code of position coupling takes the smaller of i and L, which is
  not what the paper of FIRE says.

  Args:
    distance: i32[batch, queries, keys].
    query_ids: i32[batch, queries], the i.
    scale: f32[], c; only its magnitude counts.
    threshold: f32[], L; only its magnitude counts.
    hidden: Kernel f32[1, width] and bias f32[width] of the layer that ends in
      a ReLU.
    output: Kernel f32[width, heads] and bias f32[heads] of the other.

  Returns:
    f32[batch, heads, queries, keys].

  References:
    Li et al., Functional Interpolation for Relative Positions Improves Long
    Context Transformers, 2023, arXiv:2310.04418.
  """

  def psi(x: jax.Array) -> jax.Array:
    return jnp.log1p(jnp.abs(scale) * x)

  farthest = jnp.maximum(query_ids.astype(jnp.float32), jnp.abs(threshold))
  ratio = psi(distance.astype(jnp.float32)) / (
    psi(farthest)[..., None] + _FIRE_EPSILON
  )
  kernel, bias = hidden
  x = jax.nn.relu(
    ratio[..., None] * kernel.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)
  )
  kernel, bias = output
  return jnp.moveaxis(x @ kernel + bias.reshape(1, 1, 1, -1), -1, 1)


def _buckets(count: int, max_distance: int) -> np.ndarray:
  """The bucket of each distance from 0 to max_distance."""
  exact = count // 2
  distance = np.arange(max_distance + 1)
  ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
  far = exact + (ratio * (count - exact)).astype(int)
  bucket = np.where(distance < exact, distance, np.minimum(far, count - 1))
  return bucket.astype(np.int32)


def _bounded(x: jax.Array, high: float = np.inf) -> jax.Array:
  """Clips a parameter, but not its gradient."""
  return x + jax.lax.stop_gradient(jnp.clip(x, _KERPLE_FLOOR, high) - x)


def _by_head(x: jax.Array) -> jax.Array:
  return x.astype(jnp.float32).reshape(1, -1, 1, 1)


def _by_distance(distance: jax.Array) -> jax.Array:
  return distance.astype(jnp.float32)[:, None]
