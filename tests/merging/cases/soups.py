"""Soups, paths on spheres and their kin, transcribed from their formulas.

Vectors are float64, and written as mergekit writes them: on parameters of the
base and the experts, or on task vectors.
"""

import numpy as np

import merging
from tests.merging.case import Merge

WEIGHTS = {'code': 0.5, 'math': 0.25, 'prose': 1.0}
BEYOND = {'code': 1.5, 'math': -1.0, 'prose': 0.5}
LOSSES = {'code': 0.5, 'math': 2.0, 'prose': 1.0}
PAIR = ('code', 'math')


def linear(experts, weights):
  """Without normalisation."""
  return {
    path: sum(
      np.float64(weights[name]) * experts[name][path] for name in weights
    )
    for path in next(iter(experts.values()))
  }


def by_leaf(experts, combine):
  """Applies a function of the list of leaves, sorted by the name of experts."""
  return {
    path: combine([np.float64(experts[name][path]) for name in sorted(experts)])
    for path in next(iter(experts.values()))
  }


def by_row(combine, ndim=2):
  """Takes rows of the frame [out, in] alone: columns of a stored kernel."""

  def rows(leaves):
    if leaves[0].ndim != ndim:
      return combine(leaves)
    columns = [
      combine([leaf[:, i] for leaf in leaves])
      for i in range(leaves[0].shape[1])
    ]
    return np.stack(columns, axis=1)

  return rows


def slerp_pair(t, a, b, threshold):
  lengths = np.linalg.norm(a), np.linalg.norm(b)
  if min(lengths) == 0:
    return (1 - t) * a + t * b
  cosine = np.clip(np.sum(a / lengths[0] * (b / lengths[1])), -1, 1)
  if abs(cosine) > threshold or abs(cosine) == 1:
    return (1 - t) * a + t * b
  angle = np.arccos(cosine)
  return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def multislerp_tangent(leaves, weights):
  """Over the tangent space at the normalised mean, as mergekit does."""
  norms = [np.linalg.norm(x) for x in leaves]
  units = [x / n if n else x for x, n in zip(leaves, norms, strict=True)]
  mean = sum(w * u for w, u in zip(weights, units, strict=True))
  if np.linalg.norm(mean) < 1e-8:
    return sum(w * x for w, x in zip(weights, leaves, strict=True))
  mean = mean / np.linalg.norm(mean)
  tangents = [u - np.sum(u * mean) * mean for u in units]
  tangent = sum(w * v for w, v in zip(weights, tangents, strict=True))
  length = np.linalg.norm(tangent) + 1e-8
  point = mean * np.cos(length) + tangent * (np.sin(length) / length)
  return point * sum(w * n for w, n in zip(weights, norms, strict=True))


def karcher_steps(leaves, weights, max_iter=10, tol=1e-5):
  """Step by step on the sphere, as mergekit does."""
  norms = [np.linalg.norm(x) for x in leaves]
  size = sum(w * n for w, n in zip(weights, norms, strict=True))
  valid = [i for i, n in enumerate(norms) if n > 0]
  if not valid:
    return np.zeros_like(leaves[0])
  units = [leaves[i] / norms[i] for i in valid]
  shares = np.array([weights[i] for i in valid]) / sum(
    weights[i] for i in valid
  )
  u = sum(a * x for a, x in zip(shares, units, strict=True))
  u = u / np.linalg.norm(u) if np.linalg.norm(u) > tol else units[0]
  for _ in range(max_iter):
    step = np.zeros_like(u)
    for a, x in zip(shares, units, strict=True):
      cosine = np.clip(np.sum(u * x), -1, 1)
      angle = np.arccos(cosine)
      if angle >= tol:
        step += a * angle / np.sin(angle) * (x - cosine * u)
    length = np.linalg.norm(step)
    if length < tol:
      break
    u = np.cos(length) * u + np.sin(length) * step / length
    u /= np.linalg.norm(u)
  return size * u


def stock(deltas, clip=True):
  """The mean over pairs, one by one."""
  cosines = []
  for i, a in enumerate(deltas):
    for b in deltas[i + 1 :]:
      product = np.linalg.norm(a) * np.linalg.norm(b)
      cosines.append(np.sum(a * b) / product if product else 0.0)
  cosine = np.mean(cosines)
  if clip:
    cosine = min(max(cosine, 0.0), 1.0)
  count = len(deltas)
  ratio = count * cosine / (1 + (count - 1) * cosine)
  return ratio * sum(deltas) / count


def nearswap_pair(t, a, b):
  weight = np.clip(t / np.maximum(np.abs(a - b), 1e-6), 0, 1)
  return weight * b + (1 - weight) * a


def _normalised(weights):
  values = [weights[name] for name in sorted(weights)]
  return [value / sum(values) for value in values]


def _slerp(t, threshold=0.9995):
  return lambda base, experts: by_leaf(
    experts, lambda x: slerp_pair(t, x[0], x[1], threshold)
  )


def _from_base(base, experts, combine):
  """Between the base and the only expert."""
  return by_leaf({'0': base} | experts, lambda x: combine(x[0], x[1]))


MERGES = (
  Merge(
    'linear_sum',
    lambda: merging.linear(BEYOND, normalize=False),
    lambda base, experts: linear(experts, BEYOND),
    of_models=True,
    vary=lambda w: merging.linear([w, 0.5, 0.25], normalize=False),
  ),
  Merge(
    'metrics_weighted_average',
    lambda: merging.metrics_weighted_average(LOSSES, 2.0),
    lambda base, experts: linear(
      experts, {'code': 16 / 21, 'math': 1 / 21, 'prose': 4 / 21}
    ),
    of_models=True,
    vary=lambda penalty: merging.metrics_weighted_average(LOSSES, penalty),
  ),
  Merge(
    'slerp',
    lambda: merging.slerp(0.3, toward='math'),
    _slerp(0.3),
    of_models=True,
    names=PAIR,
    vary=lambda t: merging.slerp(t, toward='math'),
    sharded=1e-6,
  ),
  Merge(
    'slerp_from_base',
    lambda: merging.slerp(0.3, threshold=1.0),
    lambda base, experts: _from_base(
      base, experts, lambda a, b: slerp_pair(0.3, a, b, 1.0)
    ),
    of_models=True,
    names=('math',),
    vary=lambda threshold: merging.slerp(0.3, threshold=threshold),
    sharded=1e-6,
    variant=True,
  ),
  Merge(
    'nuslerp_deltas_by_output',
    lambda: merging.nuslerp({'code': 3, 'math': 1}, of='deltas', axis=1),
    lambda taus: by_leaf(
      taus, by_row(lambda x: slerp_pair(0.25, x[0], x[1], 1.0))
    ),
    names=PAIR,
    vary=lambda w: merging.nuslerp([w, 1.0], of='deltas', axis=1),
    sharded=1e-6,
  ),
  Merge(
    'multislerp',
    lambda: merging.multislerp(WEIGHTS),
    lambda base, experts: by_leaf(
      experts, lambda x: multislerp_tangent(x, _normalised(WEIGHTS))
    ),
    of_models=True,
    vary=lambda w: merging.multislerp([w, 0.5, 0.25]),
    sharded=1e-6,
    compiled=1e-6,
    still=1e-6,
  ),
  Merge(
    'karcher',
    lambda: merging.karcher(WEIGHTS),
    lambda base, experts: by_leaf(
      experts, lambda x: karcher_steps(x, _normalised(WEIGHTS))
    ),
    of_models=True,
    vary=lambda w: merging.karcher([w, 0.5, 0.25]),
    sharded=1e-6,
    still=1e-6,
  ),
  Merge(
    'model_stock',
    merging.model_stock,
    lambda taus: by_leaf(taus, stock),
    sharded=1e-6,
  ),
  Merge(
    'model_stock_by_output',
    lambda: merging.model_stock(axis=1),
    lambda taus: by_leaf(taus, by_row(stock)),
    sharded=1e-6,
    variant=True,
  ),
  Merge(
    'nearswap',
    lambda: merging.nearswap(0.05, toward='code'),
    lambda base, experts: by_leaf(
      experts, lambda x: nearswap_pair(0.05, x[1], x[0])
    ),
    of_models=True,
    names=PAIR,
    vary=lambda t: merging.nearswap(t, toward='code'),
  ),
)
