"""What came out, and what it says."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.configs import precision as configs
from experiments.laboratory import results as laboratory
from experiments.precision import rows as rows_lib
from experiments.precision import scoring

_POINT = 0.01


class Result(NamedTuple):
  """What came out in one arithmetic.

  Attributes:
    row: Which.
    scores: Of every seed.
    energy: Microjoules of the products of matrices, a problem; None if they
      have no price.
  """

  row: rows_lib.Row
  scores: scoring.Scores
  energy: float | None


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
  said = [
    f'In float32 the models answer {laboratory.percent(wide.scores.exact)} of'
    f' {results.problems} problems exactly.'
  ]
  said += _narrowest(results, ('all',), 'for every operation')
  said += _narrowest(
    results, ('products',), 'for operands of products, without scales'
  )
  said += _narrowest(
    results, ('blocks',), 'for operands of products, with scales'
  )
  said += _scales(results)
  said += _lmul(results, 'attention', 'attention/', 'in attention alone')
  said += _lmul(results, 'all', 'products/', 'in all products')
  said += _modes(results)
  said += _sums(results)
  said += _broken(results)
  return said


def _narrowest(
  results: Results, groups: Sequence[str], where: str
) -> list[str]:
  """The narrowest formats that lose no more than a point."""
  rows = [x for x in results.rows[1:] if x.row.group in groups]
  if not rows:
    return []
  kept = [x for x in rows if results.lost(x).mean() <= _POINT]
  if not kept:
    return [f'{where.capitalize()}, no format is within a point of float32.']
  bits = min(x.row.bits for x in kept)
  least = [x for x in kept if x.row.bits == bits]
  return [
    f'{where.capitalize()}, the narrowest format within a point of float32 is '
    + ' or '.join(
      f'{x.row.name} ({bits:g} bits, lost {points(results.lost(x))})'
      for x in least
    )
    + '.'
  ]


def _scales(results: Results) -> list[str]:
  """What scales give back, and what those that saturate nothing do."""
  said = []
  for name in ('mxfp8_e4m3', 'mxfp8_e5m2', 'mxfp4_e2m1'):
    pair = (
      results.named(f'blocks/{name}_rceil'),
      results.named(f'blocks/{name}'),
    )
    if pair[0] and pair[1]:
      said.append(
        f'{name} with scales that let nothing saturate (rceil) against those of'
        f' OCP: {_difference(pair[0], pair[1])}.'
      )
  for bare, scaled in (
    ('float8_e4m3fn', 'mxfp8_e4m3'),
    ('float6_e2m3fn', 'mxfp6_e2m3'),
    ('float6_e3m2fn', 'mxfp6_e3m2'),
    ('float4_e2m1fn', 'mxfp4_e2m1'),
  ):
    pair = results.named(f'products/{bare}'), results.named(f'blocks/{scaled}')
    if pair[0] and pair[1]:
      said.append(
        f'{bare} with a scale for 32 neighbours ({scaled}) against without:'
        f' {_difference(pair[1], pair[0])}.'
      )
  return said


def _lmul(results: Results, place: str, other: str, where: str) -> list[str]:
  """L-Mul by its bits, and what is claimed of it."""
  rows = {
    int(x.row.name.split()[-1]): x
    for x in results.rows
    if x.row.group == 'lmul' and x.row.name.startswith(place)
  }
  if not rows:
    return []
  lost = [f'{points(results.lost(x))} with {m} bits' for m, x in rows.items()]
  eights = {
    name: results.named(other + name)
    for name in ('float8_e4m3fn', 'float8_e5m2')
  }
  lost += [f'{n} {points(results.lost(x))}' for n, x in eights.items() if x]
  said = [f'{where.capitalize()}, L-Mul loses {", ".join(lost)}.']
  for bits, name, claim in (
    (4, 'float8_e4m3fn', 'is comparable to'),
    (3, 'float8_e5m2', 'is better than'),
  ):
    result, eight = rows.get(bits), eights[name]
    if result is None or eight is None:
      continue
    gain = result.scores.exact - eight.scores.exact
    verdict = _told(gain)
    if claim == 'is comparable to':
      verdict = 'holds' if gain.mean() >= -_POINT else 'does not hold'
    ratio = result.scores.error.mean() / eight.scores.error.mean()
    said.append(
      f'{where.capitalize()}, the claim that L-Mul with {bits} bits {claim}'
      f' {name} {verdict}: {_difference(result, eight)}; its largest logit'
      f' error is {ratio:.2f} times the other.'
    )
  return said


def _told(gain: np.ndarray) -> str:
  """Whether a gain is beyond a point, and two standard errors.

  Examples:
    >>> _told(np.array([0.2, 0.3])), _told(np.array([0.0, -0.05, 0.0]))
    ('holds', 'cannot be told')
  """
  count = len(gain)
  error = gain.std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
  if abs(gain.mean()) <= max(_POINT, 2 * error):
    return 'cannot be told'
  return 'holds' if gain.mean() > 0 else 'does not hold'


def _modes(results: Results) -> list[str]:
  """Rounding that is not to nearest, over the formats that have it."""
  said = []
  for mode in rows_lib.MODES:
    pairs = []
    for name in rows_lib.ROUNDED:
      pair = (
        results.named(f'mode/{name} {mode}'),
        results.named(f'products/{name}'),
      )
      if pair[0] and pair[1]:
        pairs.append((name, pair[0].scores.exact - pair[1].scores.exact))
    if not pairs:
      continue
    name, gain = max(pairs, key=lambda each: abs(each[1].mean()))
    said.append(
      f'Rounding {_MODES[mode]} instead of to nearest makes most of a'
      f' difference to {name}: {100 * gain.mean():+.1f} points; no format gains'
      f' more than {100 * max(0.0, *(x.mean() for _, x in pairs)):.1f}.'
    )
  return said


_MODES = {'toward_zero': 'toward zero', 'stochastic': 'at random'}


def _sums(results: Results) -> list[str]:
  """What narrow sums lose besides."""
  pairs = []
  for result in results.rows:
    if result.row.group == 'sums':
      operands, _, _ = result.row.name.partition(' in ')
      before = results.named(f'products/{operands}')
      if before is not None:
        pairs.append((result, before))
  if not pairs:
    return []
  gains = [(a.scores.exact - b.scores.exact).mean() for a, b in pairs]
  start = 'Terms added one after the other in 16 bits instead of in float32'
  if max(map(abs, gains)) <= _POINT:
    return [f'{start} change none of {len(pairs)} rows by more than a point.']
  result, before = pairs[int(np.argmax(np.abs(gains)))]
  return [
    f'{start} make most of a difference to {result.row.name}:'
    f' {_difference(result, before)}.'
  ]


def _broken(results: Results) -> list[str]:
  """Where logits are no numbers."""
  broken = [x for x in results.rows if x.scores.finite.mean() < 1]
  return [
    f'In {rows_lib.GROUPS[x.row.group].lower()}, {x.row.name}:'
    f' {laboratory.percent(1 - x.scores.finite)} of the answers have logits'
    ' that are infinite or no number, and are counted as wrong.'
    for x in broken
  ]


def _difference(a: Result, b: Result) -> str:
  """By how many points `a` is ahead, and whether that is more than one."""
  gain = a.scores.exact - b.scores.exact
  spread = f' ± {100 * gain.std(ddof=1):.1f}' if len(gain) > 1 else ''
  close = abs(gain.mean()) <= _POINT
  return f'{100 * gain.mean():+.1f}{spread} points' + (
    ' (no more than one apart)' if close else ''
  )


def points(lost: np.ndarray) -> str:
  """Says what is lost, with its spread over seeds.

  Examples:
    >>> points(np.array([0.01, 0.03]))
    '2.0 ± 1.4 points'
  """
  spread = f' ± {100 * lost.std(ddof=1):.1f}' if len(lost) > 1 else ''
  mean = round(100 * float(lost.mean()), 1) + 0.0  # Not -0.0.
  return f'{mean:.1f}{spread} points'
