"""Coefficients by depth and norm, patches, and low rank."""

import numpy as np

import merging
from tests.merging import oracles
from tests.merging.case import Merge

_NUMBERS = {'bias': 0, 'wide': 1, 'tall': 2}


def number(path):
  """The leaves of the block of the fixtures, as blocks of their own."""
  return _NUMBERS.get(path.split('/')[-1])


def lines(taus, merged, beta, alpha=None):
  """The authors' `LiNeS_scaling`, with the L1 norms of whole models."""
  if alpha is None:
    total = sum(
      abs(x.astype(np.float64)).sum() for x in oracles.total(taus).values()
    )
    norm = sum(abs(x.astype(np.float64)).sum() for x in merged.values())
    alpha = total / norm / len(taus)
  depth = max(number(path) or 0 for path in merged)
  out = {}
  for path, x in merged.items():
    factor = alpha
    if number(path) is not None:
      factor = alpha + beta * number(path) / depth
    out[path] = factor * x.astype(np.float64)
  return out


def layer_swap(taus, outer, middle, by_block, others):
  out = {}
  for path in taus[outer]:
    block = number(path)
    weight = others if block is None else by_block[block]
    ends = (taus[name][path].astype(np.float64) for name in (outer, middle))
    out[path] = weight * next(ends) + (1 - weight) * next(ends)
  return out


def metagpt(taus):
  squares = {
    name: sum((x.astype(np.float64) ** 2).sum() for x in tau.values())
    for name, tau in taus.items()
  }
  shares = {name: x / sum(squares.values()) for name, x in squares.items()}
  return {
    path: sum(shares[name] * taus[name][path] for name in taus)
    for path in next(iter(taus.values()))
  }


def reasoning_vector(taus, target, reinforced, supervised, scale, leaves):
  out = dict(taus[target])
  for path in out:
    if any(word in path for word in leaves):
      vector = taus[reinforced][path] - taus[supervised][path]
      out[path] = out[path] + np.float32(scale) * vector
  return out


def robust_signature(taus, clean, scale, leaves, norms=()):
  robust = [name for name in taus if name != clean]
  out = {}
  for path, x in taus[clean].items():
    c = x.astype(np.float64).ravel()
    vectors = [taus[name][path].astype(np.float64).ravel() for name in robust]
    merged = c
    if any(word in path for word in norms):
      merged = sum(vectors) / len(robust)
    elif any(word in path for word in leaves):
      for v in vectors:
        signature = v - (v @ c) / (c @ c) * c if c @ c > 0 else v
        merged = merged + scale / len(robust) * signature
    out[path] = merged.reshape(x.shape)
  return out


def low_rank(taus, kept):
  """The leading triples by eigenvectors of the smaller Gram matrix."""
  out = {}
  for name, tau in taus.items():
    out[name] = {}
    for path, x in tau.items():
      out[name][path] = x
      if x.ndim == 2:
        wide = x.astype(np.float64)
        wide = wide if x.shape[0] <= x.shape[1] else wide.T
        _, vectors = np.linalg.eigh(wide @ wide.T)
        leading = vectors[:, vectors.shape[1] - kept(min(x.shape)) :]
        wide = leading @ leading.T @ wide
        out[name][path] = wide if x.shape[0] <= x.shape[1] else wide.T
  return out


MERGES = (
  Merge(
    'lines',
    lambda: merging.lines(merging.total(), 0.5, blocks=number),
    lambda taus: lines(taus, oracles.total(taus), 0.5),
    vary=lambda beta: merging.lines(merging.total(), beta, blocks=number),
    sharded=1e-6,
    compiled=1e-6,
  ),
  Merge(
    'lines_signs',
    lambda: merging.lines(
      merging.chain(merging.elect_sign(), merging.total()), 0.5, blocks=number
    ),
    lambda taus: lines(
      taus, oracles.elect_and_combine(taus, 'majority', 'sum'), 0.5
    ),
    sharded=1e-6,
    compiled=1e-6,
    variant=True,
  ),
  Merge(
    'lines_alpha',
    lambda: merging.lines(merging.total(), 0.5, 0.3, blocks=number),
    lambda taus: lines(taus, oracles.total(taus), 0.5, 0.3),
    vary=lambda alpha: merging.lines(
      merging.total(), 0.5, alpha, blocks=number
    ),
    variant=True,
  ),
  Merge(
    'layer_swap',
    lambda: merging.layer_swap(
      'code',
      'math',
      lower=1,
      lower_transition=0,
      upper_transition=1,
      upper=0,
      weight=0.25,
      others=0.75,
      blocks=number,
    ),
    lambda taus: layer_swap(taus, 'code', 'math', [1, 0, 0.25], 0.75),
    names=('code', 'math'),
    vary=lambda weight: merging.layer_swap(
      'code',
      'math',
      lower=1,
      lower_transition=0,
      upper=0,
      weight=weight,
      blocks=number,
    ),
  ),
  Merge('metagpt', merging.metagpt, metagpt, sharded=1e-6, compiled=1e-6),
  Merge(
    'reasoning_vector',
    lambda: merging.reasoning_vector(
      'code', 'math', 'prose', 0.5, leaves='wide|head'
    ),
    lambda taus: reasoning_vector(
      taus, 'code', 'math', 'prose', 0.5, ('wide', 'head')
    ),
    vary=lambda scale: merging.reasoning_vector('code', 'math', 'prose', scale),
  ),
  Merge(
    'robust_signature',
    lambda: merging.robust_signature(
      'math', 0.5, leaves='wide|unchanged', norms='bias'
    ),
    lambda taus: robust_signature(
      taus, 'math', 0.5, ('wide', 'unchanged'), ('bias',)
    ),
    vary=lambda scale: merging.robust_signature('math', scale, leaves='wide'),
    sharded=1e-6,
    compiled=1e-6,
  ),
  Merge(
    'low_rank',
    lambda: merging.chain(merging.low_rank(density=0.5), merging.total()),
    lambda taus: oracles.total(low_rank(taus, lambda r: int(0.5 * r))),
    vary=lambda density: merging.chain(
      merging.low_rank(density=density), merging.total()
    ),
    sharded=1e-5,
    compiled=1e-5,
    kinds=('generic',),
  ),
)
