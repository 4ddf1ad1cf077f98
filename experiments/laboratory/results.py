"""What came out of a run of the laboratory."""

from typing import NamedTuple

import numpy as np

from arithmetic import tasks as task_lib
from experiments.configs import laboratory as configs


class Result(NamedTuple):
  """What came out of one variant.

  Attributes:
    variant: Which.
    sizes: How many problems of each level were scored.
    line: One of them, as it is written.
    exact: Share of answers right as a whole, after work that the model wrote
      itself, `f64[seeds, levels]`.
    tokens: Share of right tokens, given those before, `f64[seeds, levels]`.
    places: The same for the first, second, ... token of the final answers to
      problems of the largest level, `f64[seeds, places]`.
    grid: Share of right answers, with their work, by the lengths of two
      operands, `f64[seeds, lengths, lengths]`.
    whole: Share of problems of the largest level that are right in all turns
      up to each, `f64[seeds, turns]`; no turns where the layout has none.
    turns: Share of right turns by the share of errors in what was said before,
      none first, `f64[seeds, histories, turns]`.
    own: The same after what the model said itself, `f64[seeds, turns]`.
    waves: How much of the embeddings of digits is waves of the frequencies 0,
      1, 2 and 5, the median over features of R², `f64[seeds]`.
    steps: When losses were taken, `i64[times]`.
    losses: The training loss, a mean since the time before,
      `f64[seeds, times]`.
    learning: `places` at the same times, `f64[seeds, times, places]`; None if
      checkpoints were not inspected.
  """

  variant: configs.Variant
  sizes: tuple[int, ...]
  line: str
  exact: np.ndarray
  tokens: np.ndarray
  places: np.ndarray
  grid: np.ndarray
  whole: np.ndarray
  turns: np.ndarray
  own: np.ndarray
  waves: np.ndarray
  steps: np.ndarray
  losses: np.ndarray
  learning: np.ndarray | None = None

  @property
  def name(self) -> str:
    """What the variant is called."""
    return self.variant.name

  @property
  def middle(self) -> np.ndarray:
    """Right digits of final answers but the first and the last, `f64[seeds]`.

    The end mark, the last of `places`, is no digit.
    """
    return self.places[:, 1:-2].mean(axis=1)

  @property
  def learned(self) -> np.ndarray:
    """When tokens of final answers were first 90 % right, `f64[places]`.

    In steps, the mean over seeds; NaN where a seed never got there.
    """
    if self.learning is None:
      return np.full(self.places.shape[1], np.nan)
    there = self.learning >= 0.9
    first = self.steps[np.argmax(there, axis=1)].astype(np.float64)
    return np.where(there.any(axis=1), first, np.nan).mean(axis=0)

  @property
  def horizon(self) -> np.ndarray:
    """Up to which turn half of the problems have no error, `f64[seeds]`.

    Between two turns it is interpolated; if it is never less than half, it is
    the last turn.
    """
    return np.array([_crossing(seed) for seed in self.whole])

  @property
  def late(self) -> np.ndarray:
    """Right turns of the last quarter, `f64[seeds, histories]`."""
    return self.turns[:, :, -max(1, self.turns.shape[-1] // 4) :].mean(axis=-1)


class Results(NamedTuple):
  """What came out of all variants.

  Attributes:
    config: The run.
    rows: One for each variant, in the order of the axes.
  """

  config: configs.Config
  rows: tuple[Result, ...]

  @property
  def turns(self) -> int:
    """How many turns the longest problems have; 0 if they have none."""
    return max(row.whole.shape[1] for row in self.rows)

  @property
  def unit(self) -> str:
    """What a level counts: the digits of an operand, where it is that."""
    tasks = {task_lib.get(row.variant.config.task) for row in self.rows}
    digits = all(set(task.widths(7)) == {7} for task in tasks)
    return 'digits' if digits else 'size'

  def sized(self, level: int) -> str:
    """Says how large the problems of a level are."""
    if self.turns:
      return f'{self.turns * level // self.config.levels[-1]} turns'
    if self.unit == 'size':
      return f'size {level}'
    return f'{level} digit' if level == 1 else f'{level} digits'

  def named(self, *labels: str) -> Result | None:
    """The row with these labels, wherever they stand; `None` if it did not run.

    Args:
      *labels: Some of a variant's labels; no two variants have all of them.
    """
    found = [row for row in self.rows if set(labels) <= set(row.variant.labels)]
    return found[0] if len(found) == 1 else None


def _crossing(shares: np.ndarray) -> float:
  """Where shares of problems, from 1 before the first turn, fall below half.

  Examples:
    >>> _crossing(np.array([0.9, 0.6, 0.4])), _crossing(np.array([1.0, 0.8]))
    (2.5, 2.0)
  """
  shares = np.array([1.0, *shares])
  below = np.flatnonzero(shares < 0.5)
  if not below.size:
    return len(shares) - 1.0
  turn = below[0]
  fall = shares[turn - 1] - shares[turn]
  return float(turn - 1 + (shares[turn - 1] - 0.5) / fall)


def difference(a: np.ndarray, b: np.ndarray) -> str:
  """Says by how many points `a` is ahead of `b`, seed by seed.

  Args:
    a: Shares, `f64[seeds]`.
    b: The same of other models that began with the same numbers.

  Examples:
    >>> difference(np.array([0.9, 0.8]), np.array([0.5, 0.6]))
    '+30.0 ± 14.1 points, ahead in 2 of 2 seeds'
  """
  gain = 100 * (a - b)
  if len(gain) == 1:
    return f'{gain[0]:+.1f} points, with one seed'
  return (
    f'{gain.mean():+.1f} ± {gain.std(ddof=1):.1f} points, ahead in'
    f' {int((gain > 0).sum())} of {len(gain)} seeds'
  )


def percent(values: np.ndarray) -> str:
  """Says a share, with its spread over seeds.

  Examples:
    >>> percent(np.array([0.5, 0.7])), percent(np.array([0.5]))
    ('60.0 ± 14.1 %', '50.0 %')
  """
  spread = f' ± {100 * values.std(ddof=1):.1f}' if len(values) > 1 else ''
  return f'{100 * values.mean():.1f}{spread} %'
