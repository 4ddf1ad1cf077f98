"""Masks of what experts need."""

import numpy as np

import merging
from tests.merging import oracles
from tests.merging.case import Merge

THRESHOLDS = {'code': 0.2, 'math': 0.4, 'prose': 0.6}


def tall_masks(taus, merged, thresholds):
  """For each expert and leaf, entry by entry: does it need the merged one?"""
  masks = {}
  for name, tau in taus.items():
    masks[name] = {}
    for path, x in tau.items():
      mask = np.zeros(x.shape, bool)
      for at in np.ndindex(x.shape):
        moved = abs(merged[path][at] - x[at])
        mask[at] = abs(x[at]) > np.float32(thresholds[name]) * moved
      masks[name][path] = mask
  return masks


def consensus(taus, scale, thresholds, k, merged):
  masks = tall_masks(taus, merged, thresholds)
  out = {}
  for path, x in merged.items():
    needed = sum(mask[path].astype(int) for mask in masks.values())
    out[path] = np.float32(scale) * np.where(needed >= k, x, np.float32(0))
  return out


def _same(value, taus):
  return dict.fromkeys(taus, value)


MERGES = (
  Merge(
    'consensus',
    lambda: merging.consensus(0.5),
    lambda taus: consensus(taus, 0.5, _same(0.4, taus), 2, oracles.total(taus)),
    vary=lambda threshold: merging.consensus(0.5, threshold),
  ),
  Merge(
    'consensus_signs',
    lambda: merging.consensus(
      0.7,
      THRESHOLDS,
      k=1,
      inner=merging.chain(merging.elect_sign(), merging.total()),
    ),
    lambda taus: consensus(
      taus,
      0.7,
      THRESHOLDS,
      1,
      oracles.elect_and_combine(taus, 'majority', 'sum'),
    ),
    compiled=1e-6,  # XLA may move a constant scale into the mask, or fuse it.
    variant=True,
  ),
)
