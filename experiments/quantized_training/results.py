"""What came out, and what it says."""

from typing import NamedTuple

import numpy as np

from experiments.configs import quantized_training as configs
from experiments.laboratory import results as laboratory
from experiments.quantized_training import learning
from experiments.quantized_training import rows as rows_lib


class Result(NamedTuple):
  """What came out of one arithmetic.

  Attributes:
    row: Which.
    scores: Of every seed.
    steps: When losses were taken, `i64[times]`.
    losses: The training loss, a mean since the time before,
      `f64[seeds, times]`.
  """

  row: rows_lib.Row
  scores: learning.Scores
  steps: np.ndarray
  losses: np.ndarray

  @property
  def loss(self) -> np.ndarray:
    """The last of them, `f64[seeds]`."""
    return self.losses[:, -1]


class Results(NamedTuple):
  """What came out of all arithmetics.

  Attributes:
    config: The run.
    problems: How many were scored.
    line: One of them, as it is written.
    rows: In the order of the table, float32 first.
  """

  config: configs.Config
  problems: int
  line: str
  rows: tuple[Result, ...]

  def named(self, key: str) -> Result | None:
    """A row; None if it did not run."""
    return next((x for x in self.rows if x.row.key == key), None)


def findings(results: Results) -> list[str]:
  """Sentences computed from the numbers."""
  wide, *others = results.rows
  said = [
    'Trained in float32, the models answer'
    f' {laboratory.percent(wide.scores.exact)} of {results.problems} problems'
    f' exactly, at a loss of {wide.loss.mean():.3f} nats a token at the end.'
  ]
  said += [
    f'Trained in {each.row.name}: {_against(each, wide)} of float32.'
    for each in others
  ]
  for one, other, what in (
    ('quartet', 'mxfp4', 'learns better than MXFP4 rounded to nearest'),
    (
      'quartet',
      'mxfp4_stochastic',
      'learns better than MXFP4 with a backward pass at random that clips',
    ),
    ('quartet_nearest', 'quartet', 'gains by scales that are not rounded down'),
  ):
    pair = results.named(one), results.named(other)
    if pair[0] and pair[1]:
      verdict = told(np.log(pair[1].loss) - np.log(pair[0].loss))
      said.append(
        f'That Quartet {what} {verdict}: {_against(pair[0], pair[1])}.'
      )
  said += _own(others)
  return said


def _against(a: Result, b: Result) -> str:
  """Exact answers of one less those of another, and the ratio of losses."""
  ratio = a.loss / b.loss
  spread = f' ± {ratio.std(ddof=1):.2f}' if len(ratio) > 1 else ''
  gain = laboratory.difference(a.scores.exact, b.scores.exact)
  return (
    f'exact answers {gain}; the loss is {ratio.mean():.2f}{spread} times that'
  )


def told(gain: np.ndarray) -> str:
  """Whether a gain is beyond two standard errors.

  Examples:
    >>> (
    ...   told(np.array([0.2, 0.3])),
    ...   told(np.array([0.1, -0.1])),
    ...   told(-np.ones(1)),
    ... )
    ('holds', 'cannot be told', 'cannot be told')
  """
  count = len(gain)
  if count < 2 or not abs(gain.mean()) > 2 * gain.std(ddof=1) / count**0.5:
    return 'cannot be told'
  return 'holds' if gain.mean() > 0 else 'does not hold'


def _own(rows: list[Result]) -> list[str]:
  """Where weights know more in float32 than in what they were trained in."""
  gains = [100 * (x.scores.wide - x.scores.exact) for x in rows]
  if not rows:
    return []
  place = int(np.argmax([abs(gain.mean()) for gain in gains]))
  name, gain = rows[place].row.name, gains[place].mean()
  return [
    'Run in float32, weights answer most otherwise than in their own arithmetic'
    f' where that is {name}: {gain:+.1f} points.'
  ]
