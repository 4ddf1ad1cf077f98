"""Merges by singular vectors, transcribed with full matrices, in float64."""

import jax.numpy as jnp
import numpy as np

import merging
from tests.merging import oracles
from tests.merging.case import Merge

ORDER = ('prose', 'code', 'math')


def by_leaf(taus, matrix, other, turn=False):
  """Merges matrices, [out, in] if they are to be turned, and other leaves."""
  merged = {}
  for path in next(iter(taus.values())):
    rows = [np.asarray(tau[path], np.float64) for tau in taus.values()]
    if rows[0].ndim != 2:
      merged[path] = other(rows)
    elif turn:
      merged[path] = matrix([row.T for row in rows]).T
    else:
      merged[path] = matrix(rows)
  return merged


def mean(rows):
  return sum(rows) / len(rows)


def svd(x):
  return np.linalg.svd(x, full_matrices=False)


def whitened(x):
  p, _, qt = svd(x)
  return p @ qt


def tsv_matrix(rows, ranks=None):
  """The authors' slots: the leftover columns stay zero."""
  u_all, s_all, v_all = (np.zeros_like(each) for each in svd(rows[0]))
  ranks = ranks or [int(s_all.size * (1 / len(rows)))] * len(rows)
  start = 0
  for row, rank in zip(rows, ranks, strict=True):
    u, s, v = svd(row)
    if not row.any():
      continue
    u_all[:, start : start + rank] = u[:, :rank]
    s_all[start : start + rank] = s[:rank]
    v_all[start : start + rank, :] = v[:rank, :]
    start += rank
  return whitened(u_all) @ np.diag(s_all) @ whitened(v_all)


def tsv(taus, scale):
  merged = by_leaf(taus, tsv_matrix, mean)
  return {path: scale * x for path, x in merged.items()}


def stress(delta):
  return jnp.clip(delta, -0.1, 0.15)


def two_of_the_first(delta, singular_values):
  """One direction, but two for a change that is positive on average.

  Args:
    delta: Of one expert.
    singular_values: Of that change.

  Returns:
    The number of directions.
  """
  assert singular_values.shape == (min(delta.shape),)
  return jnp.where(jnp.mean(delta) > 0, 2, 1)


def r_tsvm(taus, scale):
  def matrix(rows):
    rows = [np.clip(row, np.float32(-0.1), np.float32(0.15)) for row in rows]
    ranks = [1 + int(row.mean() > 0) for row in rows]
    size = min(rows[0].shape)
    if sum(ranks) > size:
      ranks = [int(rank * size / sum(ranks)) for rank in ranks]
    return tsv_matrix(rows, ranks)

  merged = by_leaf(taus, matrix, mean)
  return {path: scale * x for path, x in merged.items()}


def iso_c_matrix(rows):
  u, s, v = svd(sum(rows))
  return u @ np.diag(np.full_like(s, s.mean())) @ v


def iso_c(taus, scale):
  merged = by_leaf(taus, iso_c_matrix, mean)
  return {path: scale * x for path, x in merged.items()}


def iso_cts_matrix(rows, fraction):
  size, tasks = min(rows[0].shape), len(rows)
  common = int(size * fraction)
  specific = round((size - common) / tasks) * tasks
  common = size - specific
  each = specific // tasks
  u, s, v = svd(sum(rows))
  u, s, v = u[:, :common], s[:common], v[:common, :]
  us, ss, vs = [], [], []
  for row in rows:
    u_own, s_own, v_own = svd(row - u @ u.T @ row)
    us.append(u_own[:, :each])
    ss.append(s_own[:each])
    vs.append(v_own[:each, :])
  u = whitened(np.concatenate([*us, u], axis=1))
  v = whitened(np.concatenate([*vs, v], axis=0))
  s = np.concatenate([*ss, s])
  return u @ np.diag(np.full_like(s, s.mean())) @ v


def iso_cts(taus, scale, fraction, turn=True):
  merged = by_leaf(
    taus, lambda rows: iso_cts_matrix(rows, fraction), mean, turn
  )
  return {path: scale * x for path, x in merged.items()}


def knots(taus, inner, turn=True):
  """Coordinates of all matrices go to the inner oracle; others are averaged."""
  coordinates = {name: {} for name in taus}
  bases, others = {}, {}
  for path in next(iter(taus.values())):
    rows = [np.asarray(tau[path], np.float64) for tau in taus.values()]
    if rows[0].ndim != 2:
      others[path] = mean(rows)
      continue
    rows = [row.T for row in rows] if turn else rows
    u, s, v = svd(np.concatenate(rows, axis=1))
    s = np.where(s > 1e-5 * s.max(), s, 0)
    bases[path] = u
    parts = np.split(v, len(rows), axis=1)
    for name, part in zip(taus, parts, strict=True):
      coordinates[name][path] = (np.diag(s) @ part).astype(np.float32)
  for path, x in inner(coordinates).items():
    others[path] = (bases[path] @ x).T if turn else bases[path] @ x
  return others


def opcm(taus, alpha, order):
  """The published loop: scaled after every expert, unscaled before the next."""

  def norm(tau):
    return np.sqrt(sum((x**2).sum() for x in tau.values()))

  def projected(tau, merged):
    u, s, vt = np.linalg.svd(merged, full_matrices=True)
    if s[0] == 0:
      return tau
    split = int(np.argmax(np.cumsum(s) / s.sum() > alpha))
    inside = u.T @ tau @ vt.T
    np.fill_diagonal(inside, 0)
    inside[:split, :split] = 0
    return u @ inside @ vt

  taus = {
    name: {path: x.astype(np.float64) for path, x in tau.items()}
    for name, tau in taus.items()
  }
  merged, previous = taus[order[0]], 1.0
  norms = [norm(merged)]
  for name in order[1:]:
    tau = taus[name]
    norms.append(norm(tau))
    new = {}
    for path, x in merged.items():
      change = projected(tau[path], x) if x.ndim == 2 else tau[path]
      new[path] = previous * x + change
    previous = norm(new) / np.mean(norms)
    merged = {path: x / previous for path, x in new.items()}
  return merged


MERGES = (
  Merge(
    'tsv',
    lambda: merging.tsv(0.7),
    lambda taus: tsv(taus, 0.7),
    vary=merging.tsv,
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'r_tsvm',
    lambda: merging.r_tsvm(merging.map_deltas(stress), two_of_the_first, 0.7),
    lambda taus: r_tsvm(taus, 0.7),
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'iso_c',
    lambda: merging.iso_c(1.3),
    lambda taus: iso_c(taus, 1.3),
    vary=merging.iso_c,
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'iso_cts',
    lambda: merging.iso_cts(1.5, 0.5),
    lambda taus: iso_cts(taus, 1.5, 0.5),
    vary=lambda scale: merging.iso_cts(scale, 0.5),
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'knots_ties',
    lambda: merging.knots(merging.ties(0.3, 0.6)),
    lambda taus: knots(taus, lambda reps: oracles.ties(reps, 0.3, 0.6)),
    vary=lambda density: merging.knots(merging.ties(density)),
    atol=1e-5,  # Of the decomposition, whose last bits are the processor's.
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
  Merge(
    'opcm',
    lambda: merging.opcm(0.4, ORDER),
    lambda taus: opcm(taus, 0.4, ORDER),
    vary=merging.opcm,
    sharded=1e-6,
    compiled=1e-6,
    kinds=('generic',),
  ),
)
