"""What came out, and what it says."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.configs import integer_only as configs
from experiments.integer_only import arithmetics
from experiments.laboratory import results as laboratory
from experiments.precision import results as precision
from experiments.precision import scoring

_POINT = 0.01

# Top-1 accuracy on ImageNet in percent, in float32 and in integers only, after
# 90 epochs of training with quantisation.
PUBLISHED: Mapping[str, tuple[float, float]] = {
  'DeiT-T': (72.21, 72.24),
  'DeiT-S': (79.85, 80.12),
  'DeiT-B': (81.85, 81.74),
}
SOURCE = (
  'Published: top-1 accuracy of DeiT-S on ImageNet in percent, in float32 and'
  ' with integers only after 90 epochs of training with quantisation; Li and'
  ' Gu, I-ViT, 2023, as their README has it (github.com/zkkli/I-ViT).'
)


class Result(NamedTuple):
  """What came out in one arithmetic.

  Attributes:
    row: Which.
    scores: Of every seed.
    operations: How many operations were proved to be of integers; None if
      there are others.
  """

  row: arithmetics.Row
  scores: scoring.Scores
  operations: int | None


class Results(NamedTuple):
  """What came out in all arithmetics.

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

  def lost(self, result: Result) -> np.ndarray:
    """Exact answers that float32 has and another has not, `f64[seeds]`."""
    return self.rows[0].scores.exact - result.scores.exact


def findings(results: Results) -> list[str]:
  """Sentences computed from the numbers."""
  wide = results.rows[0]
  return [
    f'In float32 the models answer {laboratory.percent(wide.scores.exact)} of'
    f' {results.problems} problems exactly.',
    *_products(results),
    *_functions(results),
    *_published(results),
    *_changes(results),
    *_roots(results),
    *_narrow(results),
    *_proved(results),
  ]


def _products(results: Results) -> list[str]:
  """What is lost before a function is one of integers."""
  said = []
  for key, words in (
    ('float/weights int8', 'Weights in int8 alone lose'),
    (
      arithmetics.IN_FLOAT,
      'Activations in int8 too, with all functions in float32, lose',
    ),
  ):
    result = results.named(key)
    if result is not None:
      lost = precision.points(results.lost(result))
      said.append(f'{words} {lost}, at a logit error of {_error(result)}.')
  return said


def _functions(results: Results) -> list[str]:
  """What each function of integers costs by itself."""
  before = results.named(arithmetics.IN_FLOAT)
  each = [
    x
    for x in results.rows
    if x.row.group == 'functions' and x.row.key != arithmetics.IN_FLOAT
  ]
  if before is None or not each:
    return []
  listed = ', '.join(
    f'{x.row.name} {precision.points(before.scores.exact - x.scores.exact)} and'
    f' {_error(x)}'
    for x in each
  )
  worst = max(each, key=lambda x: x.scores.error.mean())
  return [
    'With one function of integers at a time, answers lost against none, and'
    f' the logit error: {listed}. {worst.row.name} is farthest from float32.'
  ]


def _published(results: Results) -> list[str]:
  """Integers only, as they are published."""
  result = results.named(arithmetics.PUBLISHED)
  if result is None:
    return []
  gains = ', '.join(f'{b - a:+.2f}' for a, b in PUBLISHED.values())
  kept = results.lost(result).mean() <= _POINT
  return [
    'Integers only, with the functions as published, lose'
    f' {precision.points(results.lost(result))}'
    f' and {"stay" if kept else "do not stay"} within a point of float32,'
    ' without any training in integers; the paper, after 90 epochs of it,'
    f' reports {gains} points for {", ".join(PUBLISHED)}.'
  ]


def _changes(results: Results) -> list[str]:
  """What each change of the functions is worth."""
  rows = [
    x
    for x in results.rows
    if x.row.key == arithmetics.PUBLISHED or x.row.name.startswith('…')
  ]
  if len(rows) < 2:
    return []
  steps = ', '.join(
    f'{x.row.name.removeprefix("… ")} {_error(x)}' for x in rows
  )
  return [f'Logit error, one change after another: {steps}.']


def _roots(results: Results) -> list[str]:
  """Whether the published root is wrong in a stream of 8 bits."""
  pair = [
    results.named(f'integer/stream of 8 bits, {name}')
    for name in ('exact root', 'ten steps')
  ]
  if not pair[0] or not pair[1]:
    return []
  cost = pair[0].scores.exact - pair[1].scores.exact
  return [
    'In a stream of 8 bits, ten steps to the root, which end at 64 or more,'
    f' lose {precision.points(cost)} against the exact root (logit error'
    f' {_error(pair[1])} and {_error(pair[0])}).'
  ]


def _narrow(results: Results) -> list[str]:
  """What functions of integers cost where there are few bits."""
  said = []
  for bits in arithmetics.BITS:
    lost = []
    for name in arithmetics.NARROW:
      result = results.named(f'narrow/{bits} bits, {name}')
      if result is not None:
        lost.append(f'{name} {precision.points(results.lost(result))}')
    if lost:
      said.append(
        f'With {bits} bits for weights and activations are lost:'
        f' {", ".join(lost)}.'
      )
  return said


def _proved(results: Results) -> list[str]:
  """How many operations were looked at."""
  counts = sorted(x.operations for x in results.rows if x.operations)
  if not counts:
    return []
  least, most = counts[0], counts[-1]
  listed = f'{least}' if least == most else f'{least} to {most}'
  return [
    f'In {len(counts)} rows, the program from tokens to logits, of {listed}'
    ' operations, was proved to have no floating number.'
  ]


def _error(result: Result) -> str:
  return f'{100 * result.scores.error.mean():.1f} %'
