"""What a run is about: a paper's claim, its numbers, and what to look for."""

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


def _trained(row: results_lib.Result) -> np.ndarray:
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


def _teaching(results: Results) -> list[str]:
  sentences = []
  for plain in results.rows:
    if 'plain' not in plain.variant.labels:
      continue
    rest = [label for label in plain.variant.labels if label != 'plain']
    for other in ('reversed', 'scratchpad'):
      row = results.named(other, *rest)
      if row is not None:
        where = f'With {" and ".join(rest)} examples' if rest else 'Here'
        claim = f'{where}, {other} is learned better than plain'
        sentences.append(verdict(claim, _trained(row) - _trained(plain)))
  return sentences


def _tokenization(results: Results) -> list[str]:
  right, left = (
    results.named(f'{end} to {other}')
    for end, other in (('right', 'left'), ('left', 'right'))
  )
  if right is None or left is None:
    return compare(results)
  return [
    verdict(
      'Tokens counted from the right are learned better than from the left',
      _trained(right) - _trained(left),
    ),
    *compare(results),
  ]


def _length(results: Results) -> list[str]:
  """How far each row gets beyond what it was trained on."""
  sentences = []
  config = results.config
  longest = len(config.training.level_weights)
  beyond = [i for i, level in enumerate(config.levels) if level > longest]
  if not beyond:
    return compare(results)
  for row in results.rows:
    last = [
      max(
        (
          level
          for level, share in zip(config.levels, seed, strict=True)
          if share >= 0.9
        ),
        default=0,
      )
      for seed in row.exact
    ]
    sentences.append(
      f'{row.name}: {results_lib.percent(_trained(row))} up to {longest} digits'
      f', {results_lib.percent(row.exact[:, beyond].mean(axis=1))} beyond; nine'
      f' of ten answers are right up to {_listed(last)} digits, by seed.'
    )
  best = max(results.rows, key=lambda row: row.exact[:, beyond].mean())
  plain = results.named('learned')
  if plain is not None and plain is not best:
    gain = (best.exact - plain.exact)[:, beyond].mean(axis=1)
    sentences.append(
      verdict(f'Beyond training, {best.name} goes further than learned', gain)
    )
  return sentences


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))


STUDIES: Mapping[str, Study] = {
  'none': Study(
    title='Laboratory',
    lead=(
      'Small transformers learn an exact task from random initial weights. Rows'
      ' differ in what is named; all else is the same, the data of a seed among'
      ' it, and its initial weights where shapes allow.'
    ),
    findings=compare,
  ),
  'teaching_arithmetic': Study(
    title='Teaching arithmetic to small transformers',
    lead=(
      'Lee et al. (2023) find that addition is learned from far fewer examples'
      ' if the answer is written least significant digit first, and from fewer'
      ' still with the steps written out. Here that is asked of a model of a'
      ' quarter of a million parameters, in minutes.'
    ),
    findings=_teaching,
    reading=(
      'The paper trains 10.7 million parameters on a stream of characters, and'
      ' samples answers; here every line is a problem, only what follows the'
      ' prompt is learned, and decoding is greedy. That takes fewer examples,'
      ' so columns are not to be compared with the paper, but rows are.'
    ),
    published=Published(
      values={
        'plain, 1000': 0.0039,
        'plain, 2000': 0.0174,
        'plain, 5000': 0.811,
        'plain, 10000': 0.874,
        'reversed, 1000': 0.0157,
        'reversed, 2000': 0.306,
        'reversed, 5000': 0.9983,
        'reversed, 10000': 1.0,
        'scratchpad, 1000': 0.846,
        'scratchpad, 2000': 0.997,
        'scratchpad, 5000': 1.0,
        'scratchpad, 10000': 1.0,
      },
      source=(
        'Published: 3-digit addition of Lee et al., Teaching Arithmetic to'
        ' Small Transformers, 2023, arXiv:2307.03381, from the tables in their'
        ' repository: 10.7 million parameters, one seed, answers sampled at'
        ' temperature 0.8. The scratchpad is the simplified one.'
      ),
    ),
  ),
  'tokenization': Study(
    title='Tokenization counts',
    lead=(
      'Singh and Strouse (2024) find that large language models add better if'
      ' digits are grouped to tokens from the right, so that a token has one'
      ' place value, than from the left. Here models are trained from scratch'
      ' with either.'
    ),
    findings=_tokenization,
    reading=(
      'Grouped from the left, where a token stands in a number depends on how'
      ' many digits the number has, in the answer too.'
    ),
  ),
  'length_generalization': Study(
    title='Length generalisation of addition',
    lead=(
      'Models that add numbers of as many digits as they were trained on often'
      ' fail with one more. How tokens are told where they stand decides how'
      ' far they go: positions by digit (Abacus, McLeish et al., 2024; position'
      ' coupling, Cho et al., 2024), or biases by distance (FIRE, Li et al.,'
      ' 2023, with index hints in Zhou et al., 2024).'
    ),
    findings=_length,
    reading=(
      'Lengths beyond training differ much from seed to seed, in the papers as'
      ' well; three seeds say what happens, not how often.'
    ),
  ),
}
