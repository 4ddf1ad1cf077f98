"""Sparse merges, and merges in which experts compete."""

import zlib

import jax
import numpy as np

import merging
from tests.merging import oracles
from tests.merging.case import Merge

KEY = jax.random.key(11)
WEIGHTS = {'code': 0.5, 'math': 2.0, 'prose': 1.0}


def _each(taus, function):
  """Applies `(path, x) -> x` to each leaf of each task vector."""
  return {
    name: {path: function(path, x) for path, x in tau.items()}
    for name, tau in taus.items()
  }


def weigh(taus, weights):
  return {
    name: {path: np.float32(weights[name]) * x for path, x in tau.items()}
    for name, tau in taus.items()
  }


def as_rows(x):
  """Rows of `[out, in]` for a kernel `[in, out]`; all else is one row."""
  return x.T if x.ndim == 2 else x.reshape(1, -1)


def from_rows(rows, like):
  return rows.T if like.ndim == 2 else rows.reshape(like.shape)


def magprune(taus, density, window, key, rescale='expectation'):
  out = {}
  for name, tau in taus.items():
    out[name] = {}
    for path, x in tau.items():
      rows = as_rows(x)
      keep_rate = np.zeros(rows.shape, np.float32)
      for row, magnitudes in enumerate(np.abs(rows)):
        order = sorted(range(len(magnitudes)), key=lambda at: magnitudes[at])
        for rank, at in enumerate(order):
          last = len(order) - 1
          q = rank / last if last else 0.5
          keep_rate[row, at] = density - window / 2 + window * q
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      own = jax.random.fold_in(own, zlib.crc32(name.encode()))
      shape = rows.shape if x.ndim == 2 else x.shape
      drawn = np.asarray(jax.random.uniform(own, shape)).reshape(rows.shape)
      kept = np.where(drawn < keep_rate, rows, np.float32(0))
      if rescale == 'expectation':
        kept = kept / keep_rate
      elif rescale == 'l1' and np.abs(kept).sum() > 0:
        kept = kept * (np.abs(rows).sum() / np.abs(kept).sum())
      out[name][path] = from_rows(kept, x)
  return out


def weighted_vote(taus, weights, combine):
  """mergekit's consensus 'sum': a tie is elected upwards."""
  merged = {}
  for path, like in next(iter(taus.values())).items():
    merged[path] = np.zeros_like(like)
    for at in np.ndindex(like.shape):
      deltas = {name: weights[name] * taus[name][path][at] for name in taus}
      sign = 1 if sum(deltas.values()) >= 0 else -1
      agree = [name for name in taus if np.sign(deltas[name]) == sign]
      mass = sum(weights[name] for name in agree) if combine == 'mean' else 1
      merged[path][at] = sum(deltas[name] for name in agree) / (mass or 1)
  return merged


def della(
  taus, density, scale, window, combine='mean', weights=None, **options
):
  weights = weights or dict.fromkeys(taus, 1.0)
  sparse = magprune(taus, density, window, KEY, **options)
  merged = weighted_vote(sparse, weights, combine)
  return {path: np.float32(scale) * x for path, x in merged.items()}


def band(taus, drop_low, drop_high, scope='tensor'):
  def keep(path, x):
    rows = as_rows(x) if scope == 'row' else x.reshape(1, -1)
    out = np.zeros_like(rows)
    for row, values in enumerate(rows):
      order = np.argsort(np.abs(values), kind='stable')
      low, high = int(drop_low * len(order)), int(drop_high * len(order))
      for at in order[low : len(order) - high]:
        out[row, at] = values[at]
    return from_rows(out, x) if scope == 'row' else out.reshape(x.shape)

  return _each(taus, keep)


def sce(taus, density):
  merged = {}
  for path, like in next(iter(taus.values())).items():
    stack = np.stack([tau[path].ravel() for tau in taus.values()])
    stack = stack.astype(np.float64)
    if density < 1:
      variance = stack.var(axis=0)
      variance[np.all(stack == stack[0], axis=0)] = 0
      number = int(density * np.count_nonzero(variance))
      chosen = np.argsort(-variance, kind='stable')[:number]
      mask = np.zeros(stack.shape[1])
      mask[chosen] = 1
      stack = stack * mask
    energy = (stack**2).mean(axis=1)
    total = energy.sum()
    weights = energy / total if total else np.full(len(stack), 1 / len(stack))
    out = np.zeros(stack.shape[1])
    for at in range(stack.shape[1]):
      sign = 1 if np.float32(stack[:, at].sum()) >= 0 else -1
      agree = [i for i, x in enumerate(stack[:, at]) if np.sign(x) == sign]
      mass = sum(weights[i] for i in agree)
      if mass:
        out[at] = sum(weights[i] * stack[i, at] for i in agree) / mass
    merged[path] = out.reshape(like.shape)
  return merged


def pcb(taus, density, scale, variant):
  like = next(iter(taus.values()))
  tau = np.stack(
    [
      np.concatenate([x.ravel() for x in each.values()])
      for each in taus.values()
    ]
  ).astype(np.float64)
  number, size = tau.shape

  def norm(x):
    width = x.max() - x.min()
    return (x - x.min()) / width if width else np.zeros_like(x)

  def softmax(x):
    return np.exp(x) / np.exp(x).sum()

  def clamp(x, low, high):
    """The authors' bounds, places in ascending order from 0."""
    ordered = np.sort(x)
    least, most = ordered[int(size * low)], ordered[int(size * (1 - high) - 1)]
    return np.minimum(np.maximum(x, least), most)

  if variant == 'paper':
    weights = []
    for i in range(number):
      intra = softmax(number * norm(tau[i] * tau[i]))
      inter = sum(softmax(norm(tau[i] * tau[j])) for j in range(number))
      beta = intra * inter
      # Products of the same numbers are equal, whatever the order of sums.
      threshold = np.sort(beta)[int((1 - density) * size)] * (1 - 1e-12)
      weights.append(np.where(beta >= threshold, beta, 0))
  else:
    clip = 1e-4 if variant == 'raw' else 1e-2
    sizes = np.stack([clamp(np.abs(x), clip, clip) for x in tau])
    sign = np.sign(tau)
    normal = np.stack([s * norm(a) for s, a in zip(sign, sizes, strict=True)])
    weights = []
    for i in range(number):
      intra = np.exp(number * norm(sizes[i]) ** 2)
      if variant == 'raw':
        inter = np.tanh(tau[i] * tau.sum(axis=0))
      elif variant == 'signed':
        inter = np.tanh(tau[i] * normal.sum(axis=0))
      else:
        inter = sum(np.tanh(normal[i] * normal[j]) for j in range(number))
      weights.append(norm(clamp(intra * inter, 1 - density, 0)))
    tau = sign * sizes
  weights = np.stack(weights)
  mass = weights.sum(axis=0)
  merged = (weights * tau).sum(axis=0) / np.where(mass > 0, mass, 1)
  return oracles.unravel(scale * merged, like)


def widen(base, experts, ratio=1.0, score=1.0):
  def scores(significance):
    out = np.exp(significance) / np.exp(significance).sum(axis=0)
    for t, row in enumerate(significance):
      out[t][row > ratio * row.mean() + 1e-12] = score
    return out

  def rank(changes):
    place = np.zeros(len(changes))
    for at, column in enumerate(np.argsort(changes, kind='stable')):
      place[column] = at / len(changes)
    return place

  merged = {}
  for path, x in base.items():
    start = x.astype(np.float64)
    ends = [each[path].astype(np.float64) for each in experts.values()]
    taus = np.stack([end - start for end in ends])
    if x.ndim != 2:
      weights = scores(np.abs(taus))
    else:
      # A kernel [in, out]: the weights of one input are a row here.
      length = np.linalg.norm(start, axis=1)
      moved, turned = [], []
      for end in ends:
        after = np.linalg.norm(end, axis=1)
        cosine = (start * end).sum(axis=1) / (length * after)
        moved.append(rank(np.abs(after - length)))
        turned.append(rank(1 - cosine))
      weights = (scores(np.stack(moved)) + scores(np.stack(turned))) / 2
      weights = weights[:, :, None]
    merged[path] = start + (weights * taus).sum(axis=0)
  return merged


def arcee_fusion(base, experts):
  [expert] = experts.values()
  merged = {}
  for path, x in base.items():
    a, b = (as_rows(y).astype(np.float64) for y in (x, expert[path]))
    p, q = (np.exp(y) / np.exp(y).sum(axis=1, keepdims=True) for y in (b, a))
    divergence = (p * np.log(p / q)).sum(axis=1, keepdims=True)
    importance = np.abs(b - a) * divergence
    ordered = np.sort(importance.ravel())
    q1, median, q3 = (
      ordered[int(q * (ordered.size - 1))] for q in (0.25, 0.5, 0.75)
    )
    keep = importance >= median + 1.5 * (q3 - q1)
    merged[path] = from_rows(np.where(keep, b, a), x)
  return merged


def ram(taus, threshold, rate=0.0, cap=0.0, scope='tensor'):
  paths = list(next(iter(taus.values())))
  groups = [paths] if scope == 'global' else [[path] for path in paths]
  merged = {}
  for group in groups:
    shared, unique = dict.fromkeys(taus, 0), dict.fromkeys(taus, 0)
    changed = {
      path: {name: np.abs(taus[name][path]) > threshold for name in taus}
      for path in group
    }
    count = {
      path: sum(x.astype(int) for x in changed[path].values()) for path in group
    }
    for path in group:
      for name in taus:
        shared[name] += (changed[path][name] & (count[path] > 1)).sum()
        unique[name] += (changed[path][name] & (count[path] == 1)).sum()
    for path in group:
      merged[path] = np.zeros_like(taus[next(iter(taus))][path])
      for name in taus:
        factor = 1 + rate * min(cap, shared[name] / max(1, unique[name]))
        own = count[path] == 1
        part = np.where(own, factor, 1 / np.maximum(count[path], 1))
        merged[path] += changed[path][name] * part * taus[name][path]
  return merged


MERGES = (
  Merge(
    'della',
    lambda: merging.della(0.6, 1.1, window=0.3, key=KEY),
    lambda taus: della(taus, 0.6, 1.1, 0.3),
    vary=lambda density: merging.della(density, window=0.1, key=KEY),
  ),
  Merge(
    'della_mergekit',
    lambda: merging.della(
      0.5, 0.9, window=0.3, key=KEY, rescale='l1', weights=WEIGHTS
    ),
    lambda taus: della(taus, 0.5, 0.9, 0.3, weights=WEIGHTS, rescale='l1'),
    sharded=1e-6,
    variant=True,
  ),
  Merge(
    'breadcrumbs',
    lambda: merging.breadcrumbs(0.5, 0.1, 0.3, weights=WEIGHTS),
    lambda taus: oracles.task_arithmetic(
      weigh(band(taus, 0.5, 0.1), WEIGHTS), 0.3
    ),
    vary=lambda drop: merging.breadcrumbs(drop, 0.1),
  ),
  Merge(
    'breadcrumbs_rows_elect',
    lambda: merging.breadcrumbs(0.3, 0.25, 1.0, scope='row', elect=True),
    lambda taus: weighted_vote(
      band(taus, 0.3, 0.25, 'row'), dict.fromkeys(taus, 1.0), 'sum'
    ),
    variant=True,
  ),
  Merge(
    'sce',
    lambda: merging.sce(0.4),
    lambda taus: sce(taus, 0.4),
    vary=merging.sce,
    sharded=1e-6,
    compiled=1e-6,
  ),
  Merge(
    'pcb',
    lambda: merging.pcb(0.2, 0.8),
    lambda taus: pcb(taus, 0.2, 0.8, 'paper'),
    vary=merging.pcb,
    sharded=1e-6,
    compiled=1e-6,
  ),
  Merge(
    'widen',
    lambda: merging.widen(1.1, 0.9),
    lambda base, experts: widen(base, experts, 1.1, 0.9),
    of_models=True,
    vary=merging.widen,
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'arcee_fusion',
    merging.arcee_fusion,
    arcee_fusion,
    of_models=True,
    names=('math',),
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'ram',
    merging.ram,
    lambda taus: ram(taus, 1e-5, 0.0, 0.0, 'global'),
    vary=merging.ram,
    values=(1e-3, 0.1),
  ),
  Merge(
    'ramplus',
    lambda: merging.ramplus(0.5, 1.0, threshold=0.04),
    lambda taus: ram(taus, 0.04, 0.5, 1.0, 'global'),
    vary=lambda rate: merging.ramplus(rate, threshold=0.04),
  ),
)
