"""Quantising a trained layer well: scales and roundings from data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numerics import grouping
from numerics import number_format
from numerics import quantizing
from numerics import rounding
from numerics import scaling

# The rectified sigmoid reaches 0 and 1, so that roundings come to an end.
_LOW, _HIGH = -0.1, 1.1


def mse_scale(
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  axis: scaling.Axis = None,
  group_size: int | None = None,
  candidates: int = 100,
) -> jax.Array:
  """The scale with the least squared error of what is stored.

  A scale below that of `absmax_scale` clips the largest numbers, and stores all
  others more finely. Of a float format it is what others call its bias, a real
  number.

  Args:
    x: float32, bfloat16 or float16 of any shape.
    fmt: The format to store in.
    axis: As in `quantize`.
    group_size: As in `quantize`.
    candidates: How many scales are tried, equally spaced up to the largest.

  Returns:
    float32, as `quantize` takes it for `scale`.

  Raises:
    TypeError: If an argument has another type.
    ValueError: If there is no candidate, or the axis is not there.

  Examples:
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> x = jnp.append(jnp.linspace(-1, 1, 1001), 3.0)
    >>> scale = numerics.mse_scale(x, numerics.int4)
    >>> bool(scale * numerics.int4.max < 2)  # 3 is clipped, for all others.
    True

  References:
    Kuzmin et al., FP8 Quantization: The Power of the Exponent, 2022,
      arXiv:2208.09225.
  """
  name = 'mse_scale'
  x = rounding.checked_array(name, x)
  rounding.checked_format(name, fmt)
  number_format.check_int(name, 'candidates', candidates, 1, 10_000)
  shared = scaling.as_tuple(axis)
  if group_size is None:
    return _mse_scale(x, fmt, shared, candidates)
  number_format.check_int(name, 'group_size', group_size, 1, 2**31)
  place = grouping.checked_axis(name, axis, x.ndim)
  groups = grouping.split(x, place, group_size)
  found = _mse_scale(groups, fmt, (place + 1,), candidates)
  return found.squeeze(place + 1)


def learned_rounding(
  w: jax.typing.ArrayLike,
  x: jax.typing.ArrayLike,
  fmt: number_format.NumberFormat,
  *,
  group_size: int | None = None,
  scale: jax.typing.ArrayLike | None = None,
  steps: int = 1000,
  learning_rate: float = 0.02,
  weight: float = 10.0,
) -> quantizing.Quantized:
  """Stores weights so that what the layer makes of data changes least.

  Rounding every weight to its nearest number is best for the weights, not for
  `x @ w`: errors that are alike in direction add up. Here each weight goes down
  or up to one of its two neighbours,

      w̃ = down(w) + h (up(w) − down(w)),  h = clip(1.2 σ(v) − 0.1, 0, 1),

  where `v` is learned by Adam from `h` at the weight itself: it minimises the
  mean of `|x @ (w̃ − w)|²`, and `weight` times the mean of `1 − |2h − 1|^β`,
  which drives `h` to 0 or 1; β falls from 20 to 2 over the last four fifths of
  the steps. Errors of each column are in units of that of rounding to nearest.
  The distance of neighbours is the format's, so that of floats it varies.

  Ours is what follows: the weight of a column that helps most by going the
  other way does so, until none helps. A column that is no better than rounded
  to nearest is rounded to nearest.

  Args:
    w: Kernel of a dense layer, float32, bfloat16 or float16[in, out].
    x: Some of its inputs, `[..., in]`.
    fmt: The format to store in.
    group_size: How many neighbours along a column share a scale; None: all.
    scale: Given scales, such as those of `mse_scale`.
    steps: Of Adam.
    learning_rate: Of Adam.
    weight: Of the regulariser.

  Returns:
    As `quantize(w, fmt, axis=0, …)`, rounded otherwise.

  Raises:
    TypeError: If an argument has another type.
    ValueError: If shapes do not fit.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numerics
    >>> keys = jax.random.split(jax.random.key(0))
    >>> w = jax.random.normal(keys[0], (32, 8))
    >>> x = jax.random.normal(keys[1], (100, 4)) @ jnp.ones((4, 32)) + 0.1
    >>> x = x + jax.random.normal(keys[0], (100, 32)) / 4
    >>> fmt = numerics.float4_e2m1fn
    >>> def error(stored):
    ...   return float(jnp.mean((x @ (numerics.dequantize(stored) - w)) ** 2))
    >>> nearest = error(numerics.quantize(w, fmt, axis=0))
    >>> error(numerics.learned_rounding(w, x, fmt)) < nearest / 10
    True

  References:
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization,
      2020, arXiv:2004.10568.
    Chen et al., Low-Bitwidth Floating Point Quantization for Efficient
      High-Quality Diffusion Models, 2024, arXiv:2408.06995.
  """
  name = 'learned_rounding'
  w = rounding.checked_array(name, w).astype(jnp.float32)
  x = rounding.checked_array(name, x).astype(jnp.float32)
  if w.ndim != 2 or x.shape[-1:] != w.shape[:1]:
    raise ValueError(
      f'{name}: expected w [in, out] and x [..., in], got {w.shape} and'
      f' {x.shape}.'
    )
  number_format.check_int(name, 'steps', steps, 1, 10**7)
  stored = functools.partial(
    quantizing.quantize, fmt=fmt, axis=0, group_size=group_size
  )
  if scale is None:
    scale = stored(w).scale
  down, up, nearest = (
    quantizing.dequantize(stored(w, scale=scale, mode=mode))
    for mode in ('down', 'up', 'nearest_even')
  )
  gram = jnp.einsum('...i,...j->ij', x, x, precision='highest')
  best = _learn(w, gram, down, up, nearest, learning_rate, weight, steps)
  return stored(best, scale=scale)


@functools.partial(jax.jit, static_argnames=('fmt', 'shared', 'candidates'))
def _mse_scale(
  x: jax.Array,
  fmt: number_format.NumberFormat,
  shared: tuple[int, ...] | None,
  candidates: int,
) -> jax.Array:
  largest = scaling.absmax_scale(x, fmt, axis=shared)
  wide = x.astype(jnp.float32)

  def error(ratio: jax.Array) -> jax.Array:
    stored = quantizing.fake_quantize(x, fmt, scale=ratio * largest)
    return jnp.sum((stored - wide) ** 2, axis=shared, keepdims=True)

  ratios = jnp.arange(1, candidates + 1, dtype=jnp.float32) / candidates
  return ratios[jnp.argmin(jax.lax.map(error, ratios), axis=0)] * largest


@functools.partial(jax.jit, static_argnames='steps')
def _learn(
  w: jax.Array,
  gram: jax.Array,
  down: jax.Array,
  up: jax.Array,
  nearest: jax.Array,
  learning_rate: float,
  weight: float,
  steps: int,
) -> jax.Array:
  """Chooses a neighbour for each weight."""

  def errors(rounded: jax.Array) -> jax.Array:
    off = rounded - w
    return jnp.sum(off * (gram @ off), axis=0)

  least = errors(nearest)
  unit = jnp.maximum(least, np.finfo(np.float32).tiny)
  gap = up - down
  free = gap > 0  # Other weights are where they are.
  start = jnp.where(free, (w - down) / jnp.where(free, gap, 1.0), 0.5)
  start = (jnp.clip(start, 0.01, 0.99) - _LOW) / (_HIGH - _LOW)

  def share(v: jax.Array) -> jax.Array:
    return jnp.clip((_HIGH - _LOW) * jax.nn.sigmoid(v) + _LOW, 0.0, 1.0)

  def loss(v: jax.Array, progress: jax.Array) -> jax.Array:
    h = share(v)
    late = (progress - 0.2) / 0.8
    beta = 2.0 + 9.0 * (1.0 + jnp.cos(np.pi * jnp.maximum(late, 0.0)))
    undecided = jnp.where(free, 1.0 - jnp.abs(2.0 * h - 1.0) ** beta, 0.0)
    pressed = jnp.where(late > 0, weight, 0.0)
    return jnp.mean(errors(down + h * gap) / unit) + pressed * jnp.mean(
      undecided
    )

  def step(state: Any, i: jax.Array) -> tuple[Any, None]:
    v, mean, square = state
    g = jax.grad(loss)(v, i / steps)
    mean = 0.9 * mean + 0.1 * g
    square = 0.999 * square + 0.001 * g**2
    time = i + 1.0
    unbiased = mean / (1.0 - 0.9**time)
    spread = jnp.sqrt(square / (1.0 - 0.999**time))
    return (v - learning_rate * unbiased / (spread + 1e-12), mean, square), None

  v = jnp.log(start / (1.0 - start))
  state = (v, jnp.zeros_like(v), jnp.zeros_like(v))
  (v, _, _), _ = jax.lax.scan(step, state, jnp.arange(steps, dtype=jnp.float32))
  chosen = _flip(jnp.where(share(v) >= 0.5, up, down), w, gram, down, up)
  return jnp.where(errors(chosen) < least, chosen, nearest)


def _flip(
  rounded: jax.Array,
  w: jax.Array,
  gram: jax.Array,
  down: jax.Array,
  up: jax.Array,
) -> jax.Array:
  """Moves the weight of each column that helps most, while one does."""
  both = down + up
  columns = jnp.arange(w.shape[1])

  def changes(rounded: jax.Array) -> jax.Array:
    move = both - 2.0 * rounded
    pull = gram @ (rounded - w)
    return move * (2.0 * pull + move * jnp.diag(gram)[:, None])

  def turn(state: Any) -> Any:
    rounded, change = state
    place = jnp.argmin(change, axis=0)
    moved = both[place, columns] - rounded[place, columns]
    helps = change[place, columns] < -slack
    moved = jnp.where(helps, moved, rounded[place, columns])
    rounded = rounded.at[place, columns].set(moved)
    return rounded, changes(rounded)

  first = changes(rounded)
  slack = 1e-6 * jnp.abs(first).max(axis=0)
  last, _ = jax.lax.while_loop(
    lambda state: jnp.any(state[1].min(axis=0) < -slack), turn, (rounded, first)
  )
  return last
