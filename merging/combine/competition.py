"""Letting experts compete for each entry (parameter competition balancing).

Scores need statistics of the whole model: extrema, sums of exponentials, and
order statistics. Extrema of leaves are kept in a table with a place for each
leaf, for statistics are added; order statistics are counted, never sorted (see
`merging.select`), and exact.
"""

import math
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from merging import checks
from merging import patterns
from merging import select
from merging import transform

# Fraction of magnitudes that is clipped at either end.
_LEAST = float(np.finfo(np.float32).tiny)
_CLIP = {'paper': 0.0, 'raw': 1e-4, 'signed': 1e-2, 'pairwise': 1e-2}

_MARGIN = 1e-5  # Relative difference in which scores count as equal.

Variant = Literal['paper', 'raw', 'signed', 'pairwise']


class _State(NamedTuple):
  size: select.Array  # Number of entries, a count.
  rank: select.Array  # Of the quantile of the scores.
  clip_ranks: select.Array  # Counts, [2, 2].
  empty: np.ndarray  # f32[leaves]
  clips: select.Kth | None = None  # Lowest of each model, then highest.
  floor: jax.Array | None = None  # Least product of pairs, f32[pairs].
  ceiling: jax.Array | None = None
  shares: jax.Array | None = None  # Means of exponentials, f32[pairs].
  mass: jax.Array | None = None  # The same of the squares, f32[models].
  kth: select.Kth | None = None  # Of positive scores, then of negative ones.
  best: jax.Array | None = None  # Largest score, f32[models].


def balanced_mean(
  density: float | jax.Array = 0.05, *, variant: Variant = 'paper'
) -> transform.MergeTransform:
  """Averages deltas with weights for which the experts compete (PCB).

  With `Norm` the min-max normalisation over all entries of the model, and `T`
  experts, the paper scores the entries of each task vector by

      intra_i = Softmax(T Norm(tau_i * tau_i))
      inter_i = sum_j Softmax(Norm(tau_i * tau_j))
      score_i = intra_i * inter_i

  where the softmax is over the entries, keeps the `density` of entries with the
  highest scores and averages with the scores as weights:

      delta = sum_i w_i tau_i / sum_i w_i,   w_i = score_i if kept, else 0

  The authors published three programs, which agree neither with this nor with
  each other. They clip the magnitudes `a_i = |tau_i|` at order statistics
  (`tau_i` below is the clipped one where it is averaged), and weight by the
  min-max normalised part of the score above its quantile:

      n_i = sign(tau_i) Norm(a_i)
      score_i = exp(T Norm(a_i)^2) inter_i
      w_i = Norm(max(score_i, quantile of 1 - density))

  An entry that one expert alone keeps moves by its full delta, however small
  the weight is. Scores within a hundred-thousandth of the quantile count as
  equal to it.

  Costs four sweeps, of which two and the update compute all
  scores; 'paper' and 'pairwise' do so for all pairs of experts.

  Args:
    density: Fraction of entries of each expert that may have a weight.
    variant: `'paper'`; or how the authors' program computes `inter_i`: `'raw'`
      as `tanh(tau_i sum_j tau_j)`, clipped at 1e-4 (the file in the root of
      their repository); `'signed'` as `tanh(tau_i sum_j n_j)`, clipped at 1e-2
      (vision without validation); `'pairwise'` as `sum_j tanh(n_i n_j)`,
      clipped at 1e-2 (vision with evolution of coefficients).

  Returns:
    The transform.

  Raises:
    ValueError: `density` is not a fraction, or `variant` is unknown.

  Examples:
    >>> import merging
    >>> experts = {
    ...   'math': {'w': jnp.array([4.0, 0.1, -0.2, 1.0])},
    ...   'code': {'w': jnp.array([0.1, -3.0, 0.1, 1.0])},
    ... }
    >>> transform = balanced_mean(0.25)
    >>> merging.merge(transform, {'w': jnp.zeros(4)}, experts)['w'].tolist()
    [4.0, -3.0, 0.0, 0.0]
  """
  patterns.check_option('balanced_mean', 'variant', variant, _CLIP)
  if not checks.within(density, least=_LEAST, most=1):
    raise ValueError(
      f'balanced_mean: density is {density}, expected a fraction above 0 and '
      'at most 1; 5 % is 0.05'
    )

  def init(specs, models):
    size = sum(math.prod(spec.shape) for spec in specs)
    count = jnp.asarray(select.count_of_ints([size]))[:, 0]
    below = jnp.asarray(select.kept(1 - density, [size]))[:, 0]
    rank = select.carry(below + select.count(1))
    clip = _CLIP[variant]
    lowest = min(int(size * clip) + 1, size)
    highest = max(int(size * (1 - clip)), 1)
    return _State(
      size=count,
      rank=jnp.where(select.less(count, rank), count, rank),
      clip_ranks=select.count_of_ints([lowest, highest]),
      empty=np.zeros(len(specs), np.float32),
    )

  if variant == 'paper':
    prepare = (
      transform.Observer(_observe_products, _finish_products),
      transform.Observer(_observe_shares, _finish_shares),
    )
  else:
    prepare = (
      transform.Observer(_observe_clips, _finish_clips),
      transform.Observer(_observe_lower_clips, _finish_lower_clips),
    )
  quantile = (
    transform.Observer(
      transform.bind(_observe_scores, variant), _finish_scores
    ),
    transform.Observer(
      transform.bind(_observe_lower_scores, variant), _finish_lower_scores
    ),
  )
  return transform.MergeTransform(
    init, (*prepare, *quantile), transform.bind(_update, variant)
  )


def _pairs(number):
  return [(i, j) for i in range(number) for j in range(i, number)]


def _products(deltas):
  return [deltas[i] * deltas[j] for i, j in _pairs(len(deltas))]


def _at_leaf(state, leaf, values):
  """A table of values by leaf that adds up to all leaves', `f32[n, leaves]`."""
  empty = jnp.zeros((len(values), len(state.empty)), jnp.float32)
  column = jnp.stack(values).astype(jnp.float32)
  return empty.at[:, leaf.index].set(column)


def _min(x):
  return jnp.min(x, initial=jnp.inf)


def _max(x):
  return jnp.max(x, initial=-jnp.inf)


def _observe_products(leaf, state, **extra):
  products = _products(leaf.deltas)
  return tuple(
    _at_leaf(state, leaf, [extreme(x) for x in products])
    for extreme in (_min, _max)
  )


def _finish_products(extrema, state):
  floor, ceiling = extrema
  return state._replace(floor=floor.min(axis=1), ceiling=ceiling.max(axis=1))


def _exponentials(deltas, state):
  """Numerators of the softmaxes: of pairs, and of squares times `T`."""
  number = len(deltas)
  pairs, squares = {}, []
  for k, (pair, product) in enumerate(
    zip(_pairs(number), _products(deltas), strict=True)
  ):
    low = state.floor[k].astype(product.dtype)
    high = state.ceiling[k].astype(product.dtype)
    norm = _normal(product, low, high)
    # Less the largest exponent, which the softmax does not change.
    pairs[pair] = jnp.exp(norm - 1)
    if pair[0] == pair[1]:
      squares.append(jnp.exp(number * (norm - 1)))
  return pairs, squares


def _normal(x, low, high):
  """Min-max normalisation, of what is all equal to 0."""
  width = high - low
  return jnp.where(width > 0, (x - low) / jnp.where(width > 0, width, 1), 0)


def _observe_shares(leaf, state, **extra):
  pairs, squares = _exponentials(leaf.deltas, state)
  return jnp.stack([jnp.sum(x) for x in (*pairs.values(), *squares)])


def _finish_shares(sums, state):
  # Means and not sums, for products of softmaxes over many entries underflow.
  high, low = state.size.astype(jnp.float32)
  means = sums / (high * 2**16 + low)
  number = len(state.floor)
  return state._replace(shares=means[:number], mass=means[number:])


def _paper_scores(deltas, state):
  pairs, squares = _exponentials(deltas, state)
  share = {
    pair: x / state.shares[k].astype(x.dtype)
    for k, (pair, x) in enumerate(pairs.items())
  }
  scores = []
  for i, square in enumerate(squares):
    inter = [share[min(i, j), max(i, j)] for j in range(len(deltas))]
    intra = square / state.mass[i].astype(square.dtype)
    scores.append(intra * transform.add_deltas(inter))
  return scores


def _magnitudes(deltas):
  return [select.magnitude_bits(delta) for delta in deltas]


def _observe_clips(leaf, state, **extra):
  return select.upper_histogram(_magnitudes(leaf.deltas))


def _finish_clips(histogram, state):
  models = histogram.shape[1]
  ranks = jnp.repeat(jnp.asarray(state.clip_ranks), models, axis=1)
  twice = jnp.concatenate([histogram, histogram], axis=1)
  return state._replace(clips=select.pick_upper(twice, ranks))


def _observe_lower_clips(leaf, state, **extra):
  return select.lower_histogram(2 * _magnitudes(leaf.deltas), state.clips)


def _finish_lower_clips(histogram, state):
  return state._replace(clips=select.pick_lower(histogram, state.clips))


def _clipped(deltas, state):
  """Returns clipped deltas and their signed normal magnitudes."""
  bits = state.clips.bits.reshape(2, len(deltas))
  low, high = jax.lax.bitcast_convert_type(bits, jnp.float32)
  clipped, normal = [], []
  for i, delta in enumerate(deltas):
    least, most = low[i].astype(delta.dtype), high[i].astype(delta.dtype)
    size = jnp.minimum(jnp.maximum(jnp.abs(delta), least), most)
    clipped.append(jnp.sign(delta) * size)
    normal.append(jnp.sign(delta) * _normal(size, least, most))
  return clipped, normal


def _code_scores(variant, deltas, state):
  number = len(deltas)
  _, normal = _clipped(deltas, state)
  if variant == 'pairwise':
    inter = [
      transform.add_deltas([jnp.tanh(one * other) for other in normal])
      for one in normal
    ]
  else:
    others = transform.add_deltas(deltas if variant == 'raw' else normal)
    inter = [jnp.tanh(delta * others) for delta in deltas]
  return [
    # Scores matter up to a factor; without this one they overflow.
    jnp.exp(number * (jnp.square(n) - 1)) * x
    for n, x in zip(normal, inter, strict=True)
  ]


def _scores(variant, leaf, state):
  if variant == 'paper':
    return _paper_scores(leaf.deltas, state)
  return _code_scores(variant, leaf.deltas, state)


def _signed_rows(scores):
  """Positive scores, then negative ones, as magnitudes.

  The k-th smallest of `n` scores is the k-th smallest of their positive parts
  less the `(n + 1 - k)`-th smallest of their negative parts.
  """
  positive = [jnp.maximum(score, 0) for score in scores]
  negative = [jnp.maximum(-score, 0) for score in scores]
  return _magnitudes([*positive, *negative])


def _observe_scores(variant, leaf, state, **extra):
  scores = _scores(variant, leaf, state)
  best = _at_leaf(state, leaf, [_max(score) for score in scores])
  return select.upper_histogram(_signed_rows(scores)), best


def _finish_scores(statistic, state):
  histogram, best = statistic
  after = select.subtract(state.size, state.rank) + select.count(1)
  ranks = jnp.stack([state.rank, select.carry(after)], axis=1)
  ranks = jnp.repeat(ranks, best.shape[0], axis=1)
  kth = select.pick_upper(histogram, ranks)
  return state._replace(kth=kth, best=jnp.max(best, axis=1))


def _observe_lower_scores(variant, leaf, state, **extra):
  rows = _signed_rows(_scores(variant, leaf, state))
  return select.lower_histogram(rows, state.kth)


def _finish_lower_scores(histogram, state):
  return state._replace(kth=select.pick_lower(histogram, state.kth))


def _update(variant, leaf, state, **extra):
  deltas = leaf.deltas
  scores = _scores(variant, leaf, state)
  bits = state.kth.bits.reshape(2, len(deltas))
  positive, negative = jax.lax.bitcast_convert_type(bits, jnp.float32)
  quantiles = positive - negative
  if variant == 'paper':
    weights = [
      jnp.where(score >= _bound(quantile, -1, score), score, 0)
      for score, quantile in zip(scores, quantiles, strict=True)
    ]
  else:
    deltas, _ = _clipped(deltas, state)
    weights = [
      jnp.where(
        score > _bound(quantile, 1, score),
        _normal(score, quantile.astype(score.dtype), best.astype(score.dtype)),
        0,
      )
      for score, quantile, best in zip(
        scores, quantiles, state.best, strict=True
      )
    ]
  mass = transform.add_deltas(weights)
  total = transform.add_deltas(
    [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
  )
  merged = total / jnp.where(mass > 0, mass, 1)
  return leaf._replace(deltas=(merged,))


def _bound(quantile, side, score):
  """The quantile with a margin above or below it, for rounding.

  The score at the quantile is computed again for the update, perhaps in another
  order, and must not change sides: its weight, however small, may be the only
  one of an entry.
  """
  return (quantile + side * _MARGIN * jnp.abs(quantile)).astype(score.dtype)
