"""What a run is about: claims, and whether they show."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.configs import laboratory as configs
from experiments.laboratory import results as results_lib

Results = results_lib.Results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """What a paper says of rows, in its own setting.

  Attributes:
    values: Share of exact answers by the name of the row.
    source: Where the numbers are from, and how the setting differs.
  """

  values: Mapping[str, float]
  source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What a page says beside the numbers.

  Attributes:
    title: A few words.
    lead: What is compared, and why, in a few sentences.
    findings: From results to sentences computed from them.
    reading: How to read the page, in a paragraph.
    published: What the paper says, if numbers are known.
  """

  title: str
  lead: str
  findings: Callable[[Results], Sequence[str]]
  reading: str = ''
  published: Published | None = None


def compare(results: Results) -> list[str]:
  """Says which variant is best, and how sure that is."""
  rows = results.rows
  means = {row.name: row.exact.mean(axis=1) for row in rows}
  best, *others = sorted(means, key=lambda name: -means[name].mean())
  levels = len(results.config.levels)
  over = f', a mean over {levels} sizes' if levels > 1 else ''
  return [
    f'{best} answers {results_lib.percent(means[best])} of the problems'
    f' exactly{over}.',
    *(
      f'{best} against {other}:'
      f' {results_lib.difference(means[best], means[other])}.'
      for other in others
    ),
  ]


def verdict(
  claim: str, gain: np.ndarray, *, unit: str = 'points', scale: float = 100.0
) -> str:
  """Says whether a claim shows.

  Args:
    claim: What is claimed.
    gain: By how much it shows in each seed, above 0 if it does, `f64[seeds]`.
    unit: Of the gains as shown.
    scale: Factor from gains to that.

  Returns:
    A sentence: reproduced if it shows in every seed, not reproduced if it does
    not on average.

  Examples:
    >>> verdict('Reversed is better', np.array([0.2, 0.4]))
    'Reversed is better: reproduced (+30.0 ± 14.1 points, in 2 of 2 seeds).'
  """
  shown = int((gain > 0).sum())
  word = 'reproduced in part'
  if shown == len(gain):
    word = 'reproduced'
  elif gain.mean() <= 0:
    word = 'not reproduced'
  spread = f' ± {scale * gain.std(ddof=1):.1f}' if len(gain) > 1 else ''
  return (
    f'{claim}: {word} ({scale * gain.mean():+.1f}{spread} {unit}, in {shown} of'
    f' {len(gain)} seeds).'
  )


def beyond(row: results_lib.Result) -> np.ndarray:
  """Exact answers beyond what was trained on, `f64[seeds]`; NaN if none is."""
  longest = len(row.variant.config.training.level_weights)
  levels = [level > longest for level in row.variant.config.levels]
  if not any(levels):
    return np.full(len(row.exact), np.nan)
  return row.exact[:, levels].mean(axis=1)


def trained(row: results_lib.Result) -> np.ndarray:
  """Exact answers on the sizes that were trained on, `f64[seeds]`.

  On all sizes, where none of those that are scored was.
  """
  weights = row.variant.config.training.level_weights
  inside = np.array(
    [
      level <= len(weights) and weights[level - 1] > 0
      for level in row.variant.config.levels
    ]
  )
  return row.exact[:, inside if inside.any() else ~inside].mean(axis=1)


class Claim(NamedTuple):
  """A paper says that some rows are learned better than others.

  Attributes:
    better: The label of those that are better.
    than: The label of those that they are better than.
    said: The claim, as `reversed is learned better than plain`.
    beyond: Whether it is about levels beyond those that were trained on.
  """

  better: str
  than: str
  said: str
  beyond: bool = False


def claims(
  *each: Claim, together: bool = False
) -> Callable[[Results], Sequence[str]]:
  """Findings of a paper that makes such claims.

  Args:
    *each: The claims.
    together: Whether a claim is judged once, by the mean over all that differs
      besides; else for each combination of it.

  Returns:
    What a `Study` calls `findings`: a verdict for each claim whose rows are
    there, and which row is best.
  """

  def findings(results: Results) -> list[str]:
    sentences = []
    for claim in each:
      gains = _gains(results, claim)
      if together and len(gains) > 1:
        said = f'Over {len(gains)} pairs of rows, {claim.said}'
        sentences.append(verdict(said, np.mean(list(gains.values()), axis=0)))
        continue
      for rest, gain in gains.items():
        said = f'with {rest}, {claim.said}' if rest else claim.said
        sentences.append(verdict(said[:1].upper() + said[1:], gain))
    if together:
      return sentences
    # Where a claim was judged, which row is best is all that is left to say.
    return [*sentences, *compare(results)[: 1 if sentences else None]]

  return findings


def _gains(results: Results, claim: Claim) -> dict[str, np.ndarray]:
  """By how much a claim shows, `f64[seeds]`, by what else its rows are."""
  of = beyond if claim.beyond else trained
  gains = {}
  for row in results.rows:
    if claim.than in row.variant.labels:
      rest = [label for label in row.variant.labels if label != claim.than]
      better = results.named(claim.better, *rest)
      if better is not None:
        gain = of(better) - of(row)
        if not np.isnan(gain).any():
          gains[_settings(results, row, claim.than)] = gain
  return gains


def _settings(results: Results, row: results_lib.Result, but: str) -> str:
  """What a row is besides a label, numbers with what they are of."""
  axes = configs.axes(results.config)
  return ', '.join(
    f'{axis.name}={label}' if axis.numbers else label
    for axis, label in zip(axes, row.variant.labels, strict=True)
    if label != but
  )
