"""Merging methods transcribed from their papers: literal, slow, in NumPy.

A model is a dictionary from paths to float32 arrays, sorted by path. An oracle
takes the task vectors by the name of the expert and returns the merged one.
"""

import zlib

import jax
import numpy as np


def task_vectors(base, experts):
  return {
    name: {path: experts[name][path] - base[path] for path in sorted(base)}
    for name in sorted(experts)
  }


def total(taus):
  return {
    path: sum(tau[path] for tau in taus.values())
    for path in next(iter(taus.values()))
  }


def average(taus):
  return {path: x / np.float32(len(taus)) for path, x in total(taus).items()}


def weighted_sum(taus, weights):
  return total(
    {
      name: {path: np.float32(weights[name]) * x for path, x in tau.items()}
      for name, tau in taus.items()
    }
  )


def weighted_average(taus, weights):
  mass = sum(weights.values())
  return weighted_sum(taus, {name: w / mass for name, w in weights.items()})


def task_arithmetic(taus, scale):
  return {path: np.float32(scale) * x for path, x in total(taus).items()}


def fisher(taus, importance):
  merged = {}
  for path, plain in average(taus).items():
    merged[path] = plain.copy()
    for at in np.ndindex(plain.shape):
      weights = [importance[name][path][at] for name in taus]
      if sum(weights) > 0:
        weighted = sum(
          w * tau[path][at]
          for w, tau in zip(weights, taus.values(), strict=True)
        )
        merged[path][at] = weighted / sum(weights)
  return merged


def keep_threshold(magnitudes, density):
  """The authors' `topk_values_mask`, for which a density of 1 is an error."""
  d = magnitudes.size
  k = d - int(d * density)
  if k == 0:
    return np.ones(d, bool)
  return magnitudes >= np.sort(magnitudes)[k - 1]


def keep_index(magnitudes, density):
  """mergekit's `magnitude`, with a stable sort."""
  keep = np.zeros(magnitudes.size, bool)
  order = np.argsort(-magnitudes, kind='stable')
  keep[order[: int(density * magnitudes.size)]] = True
  return keep


def trim_one(tau, density, scope, ties):
  keep = {'threshold': keep_threshold, 'index': keep_index}[ties]
  if scope == 'tensor':
    return {
      path: x * keep(np.abs(x).ravel(), density).reshape(x.shape)
      for path, x in tau.items()
    }
  flat = np.concatenate([x.ravel() for x in tau.values()])
  flat = flat * keep(np.abs(flat), density)
  return unravel(flat, tau)


def trim(taus, density, scope='global', ties='threshold'):
  return {
    name: trim_one(tau, density, scope, ties) for name, tau in taus.items()
  }


def unravel(flat, like):
  out, start = {}, 0
  for path, x in like.items():
    out[path] = flat[start : start + x.size].reshape(x.shape)
    start += x.size
  return out


def elect_and_combine(taus, zero, combine):
  like = next(iter(taus.values()))
  rows = np.stack(
    [np.concatenate([x.ravel() for x in tau.values()]) for tau in taus.values()]
  )
  sign = np.sign(rows.sum(axis=0))
  if zero == 'majority':
    sign[sign == 0] = np.sign(np.sign(sign).sum())
  elif zero == 'positive':
    sign[sign == 0] = 1
  merged = np.zeros(rows.shape[1], np.float32)
  for at in range(rows.shape[1]):
    agree = [
      x
      for x in rows[:, at]
      if x != 0 and sign[at] != 0 and np.sign(x) == sign[at]
    ]
    if agree:
      merged[at] = sum(agree) / (len(agree) if combine == 'mean' else 1)
  return unravel(merged, like)


def ties(
  taus,
  density,
  scale=1.0,
  *,
  scope='global',
  ties='threshold',
  zero='majority',
  combine='mean',
):
  trimmed = trim(taus, density, scope, ties)
  merged = elect_and_combine(trimmed, zero, combine)
  return {path: np.float32(scale) * x for path, x in merged.items()}


def drop(taus, rate, key, rescale='expectation'):
  """The mask of a leaf comes from the key, its path and the expert's name."""
  dropped = {}
  for name, tau in taus.items():
    dropped[name] = {}
    for path, x in tau.items():
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      own = jax.random.fold_in(own, zlib.crc32(name.encode()))
      kept = x * np.asarray(jax.random.bernoulli(own, 1 - rate, x.shape))
      if rescale == 'expectation':
        kept = kept / np.float32(1 - rate)
      elif rescale != 'none':
        order = {'l1': 1, 'l2': 2, 'linf': np.inf}[rescale]
        before = np.linalg.norm(x.ravel(), order)
        after = np.linalg.norm(kept.ravel(), order)
        kept = kept * (before / after if after > 0 else np.float32(1))
      dropped[name][path] = kept
  return dropped
