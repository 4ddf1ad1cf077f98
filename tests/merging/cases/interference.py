"""Interference between task vectors: WUDI, SWUDI, OptMerge and DOGE.

Oracles work in float64 on `[out, in]`, for the leaves are stored `[in, out]`,
and write each gradient as a sum over experts, as the losses are.
"""

import numpy as np

import merging
from tests.merging import oracles
from tests.merging.case import Merge


def norm_squared(tau):
  return float(np.sum(np.square(tau)))


def adam(gradient, x, steps, learning_rate):
  mean, square = np.zeros_like(x), np.zeros_like(x)
  for t in range(1, steps + 1):
    g = gradient(x)
    mean = 0.9 * mean + 0.1 * g
    square = 0.999 * square + 0.001 * g**2
    unbiased = mean / (1 - 0.9**t)
    spread = np.sqrt(square / (1 - 0.999**t)) + 1e-8
    x = x - learning_rate * unbiased / spread
  return x


def momentum(gradient, x, steps, learning_rate):
  running = np.zeros_like(x)
  for _ in range(steps):
    running = 0.9 * running + gradient(x)
    x = x - learning_rate * running
  return x


def interference_gradient(x, targets, rows, norms):
  """Of `sum_i |(x - target_i) rows_i^T|^2 / norm_i^2`, expert by expert."""
  gradient = np.zeros_like(x)
  for target, row, norm in zip(targets, rows, norms, strict=True):
    if norm > 0:
      gradient += 2 * ((x - target) @ row.T) @ row / norm
  return gradient


def wudi(taus, steps, learning_rate):
  norms = [norm_squared(tau) for tau in taus]
  return adam(
    lambda x: interference_gradient(x, taus, taus, norms),
    sum(taus),
    steps,
    learning_rate,
  )


def swudi(taus, filter_of, rank, start):
  """Steps along eigenvectors, `filter_of(eigenvalue, largest)` of the way."""
  start = {'sum': sum(taus), 'mean': sum(taus) / len(taus), 'zero': 0.0}[start]
  norms = [norm_squared(tau) for tau in taus]
  if not any(norms):
    return taus[0]
  gram, wanted = 0.0, 0.0
  for tau, norm in zip(taus, norms, strict=True):
    if norm > 0:
      gram = gram + tau.T @ tau / norm
      wanted = wanted + tau @ tau.T @ tau / norm
  minimum = wanted @ np.linalg.pinv(gram, rcond=1e-6, hermitian=True)
  values, vectors = np.linalg.eigh(gram)
  order = np.argsort(-values)
  values, vectors = values[order], vectors[:, order]
  if rank == 'adaptive':
    positive = np.maximum(values, 0)
    kept = np.ceil(np.sum(np.sqrt(positive)) ** 2 / np.sum(positive))
  else:
    kept = np.ceil(len(values) * rank)
  tau = start + np.zeros_like(minimum)
  for k in range(min(int(kept), len(values))):
    if values[k] > 1e-6 * values[0]:
      fraction = filter_of(values[k], values[0])
      direction = vectors[:, k : k + 1]
      tau = tau + (minimum - start) @ direction @ direction.T * fraction
  return tau


def leading(matrix, rank):
  left, values, right = np.linalg.svd(matrix, full_matrices=False)
  return left[:, :rank] @ np.diag(values[:rank]) @ right[:rank]


def optmerge(taus, tuning, steps, learning_rate):
  rank = min(taus[0].shape) // len(taus)
  mean = sum(taus) / len(taus)
  rows = []
  for tau in taus:
    _, values, right = np.linalg.svd(tau, full_matrices=False)
    rows.append(np.diag(values[:rank]) @ right[:rank])
  norms = [norm_squared(tau) for tau in taus]
  if tuning == 'full':
    targets = [mean + leading(tau - mean, rank) for tau in taus]
    optimiser, start = adam, sum(taus)
  else:
    targets = [leading(tau, rank) for tau in taus]
    optimiser, start = momentum, mean
  return optimiser(
    lambda x: interference_gradient(x, targets, rows, norms),
    start,
    steps,
    learning_rate,
  )


def doge_change(taus, weights, steps, learning_rate, subspace):
  rank = min(taus[0].shape)
  number = rank // len(taus)
  lefts = [
    np.linalg.svd(tau, full_matrices=False)[0][:, :number]
    for tau in taus
    if tau.any()
  ]
  if not lefts:
    return np.zeros_like(taus[0])
  left = np.linalg.svd(np.concatenate(lefts, axis=1), full_matrices=False)[0]
  shared = left[:, : rank // subspace]

  def gradient(change):
    out = np.zeros_like(change)
    moved = sum(w * (tau + change) for w, tau in zip(weights, taus))  # noqa: B905
    for tau in taus:
      for row in range(len(tau)):
        error = tau[row] @ (tau[row] - moved[row])
        out[row] -= 2 * error * sum(weights) * tau[row]
    return out - shared @ (shared.T @ out)

  return adam(gradient, np.zeros_like(taus[0]), steps, learning_rate)


def doge(taus, scale, density, steps, learning_rate, subspace):
  """Of all leaves at once, for the mask is of the model."""
  merged = dict.fromkeys(next(iter(taus.values())), 0.0)
  masks = oracles.trim(taus, density)
  for path in merged:
    stack = [tau[path].T.astype(np.float64) for tau in taus.values()]
    norms = [np.sqrt(norm_squared(tau)) for tau in stack]
    weights = [scale / norm if norm > 0 else 0.0 for norm in norms]
    change = doge_change(stack, weights, steps, learning_rate, subspace)
    for name, tau, weight in zip(taus, stack, weights, strict=True):
      kept = masks[name][path].T != 0
      merged[path] = merged[path] + (weight * (tau + change) * kept).T
  return merged


def linear(path):
  return path != 'embedding' and 'bias' not in path


def by_leaf(solve, otherwise, scale=1.0):
  """Solves linear layers, one by one, and does otherwise with the rest."""

  def oracle(taus):
    merged = otherwise(taus)
    for path in merged:
      if linear(path):
        stack = [tau[path].T.astype(np.float64) for tau in taus.values()]
        merged[path] = solve(stack).T
    return {path: scale * x for path, x in merged.items()}

  return oracle


def stay(taus):
  return {path: np.zeros_like(x) for path, x in oracles.total(taus).items()}


def _doge_oracle(taus):
  layers = {
    name: {path: x for path, x in tau.items() if linear(path)}
    for name, tau in taus.items()
  }
  return stay(taus) | doge(layers, 0.5, 0.4, 6, 1e-2, 2)


MERGES = (
  Merge(
    'wudi',
    lambda: merging.wudi(6, 1e-2, scale=0.5),
    by_leaf(lambda taus: wudi(taus, 6, 1e-2), stay, 0.5),
    vary=lambda rate: merging.wudi(6, rate / 100),
    sharded=1e-6,
  ),
  Merge(
    'swudi',
    lambda: merging.swudi(strength=20.0, rank=0.5),
    by_leaf(
      lambda taus: swudi(
        taus, lambda value, _: 1 - np.exp(-20 * value), 0.5, 'sum'
      ),
      oracles.average,
    ),
    vary=lambda strength: merging.swudi(strength=strength),
    sharded=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'aswudi',
    lambda: merging.aswudi(start='mean'),
    by_leaf(
      lambda taus: swudi(taus, lambda *_: 1.0, 'adaptive', 'mean'),
      oracles.average,
    ),
    vary=lambda scale: merging.aswudi(scale=scale),
    sharded=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'optmerge_full',
    lambda: merging.optmerge('full', 6, 1e-2),
    by_leaf(lambda taus: optmerge(taus, 'full', 6, 1e-2), stay),
    vary=lambda rate: merging.optmerge('full', 6, rate / 100),
    sharded=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'optmerge_lora',
    lambda: merging.optmerge('lora', 6, 0.05),
    by_leaf(lambda taus: optmerge(taus, 'lora', 6, 0.05), stay),
    vary=lambda rate: merging.optmerge('lora', 6, rate),
    sharded=1e-6,
    kinds=('generic',),
    variant=True,
  ),
  Merge(
    'doge',
    lambda: merging.doge(0.5, 0.4, steps=6, learning_rate=1e-2, subspace=2),
    _doge_oracle,
    vary=lambda scale: merging.doge(scale, steps=6, subspace=2),
    sharded=1e-6,
    kinds=('generic',),
  ),
)
