"""What a run is about: claims, and whether they show."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

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


def verdict(claim: str, gain: np.ndarray) -> str:
  """Says whether a claim shows.

  Args:
    claim: What is claimed.
    gain: By how much it shows in each seed, above 0 if it does, `f64[seeds]`.

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
  spread = f' ± {100 * gain.std(ddof=1):.1f}' if len(gain) > 1 else ''
  return (
    f'{claim}: {word} ({100 * gain.mean():+.1f}{spread} points, in {shown} of'
    f' {len(gain)} seeds).'
  )


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


def claims(*pairs: tuple[str, str, str]) -> Callable[[Results], Sequence[str]]:
  """Findings of a paper that says that some rows are learned better.

  Args:
    *pairs: The label of a row, that of one it is better than, and the claim,
      as `reversed is learned better than plain`. It is judged for each
      combination of what else differs, on the sizes that were trained on.

  Returns:
    What a `Study` calls `findings`: a verdict for each claim whose rows are
    there, and which row is best.
  """

  def findings(results: Results) -> list[str]:
    sentences = []
    for worse in results.rows:
      for better, than, claim in pairs:
        if than not in worse.variant.labels:
          continue
        rest = [label for label in worse.variant.labels if label != than]
        row = results.named(better, *rest)
        if row is not None:
          said = f'With {", ".join(rest)}: {claim}' if rest else claim
          sentences.append(verdict(said, trained(row) - trained(worse)))
    return [*sentences, *compare(results)]

  return findings
