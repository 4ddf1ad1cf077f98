"""What came out, and what it says of the claims."""

from typing import NamedTuple

import numpy as np

from experiments.configs import lmul as configs
from experiments.lmul import measure

# Errors that differ by no more than a quarter are called comparable.
_COMPARABLE = 1.25


class Result(NamedTuple):
  """What came out in one arithmetic.

  Attributes:
    row: Which.
    errors: Of every seed.
  """

  row: measure.Row
  errors: measure.Errors


class Results(NamedTuple):
  """What came out in all arithmetics.

  Attributes:
    config: The run.
    rows: In the order of the table.
  """

  config: configs.Config
  rows: tuple[Result, ...]

  def named(self, key: str) -> Result | None:
    """A row; None if it did not run."""
    return next((x for x in self.rows if x.row.key == key), None)


def findings(results: Results) -> list[str]:
  """Sentences computed from the numbers."""
  return [
    *_claim(results, 4, 'float8_e4m3fn', 'is comparable to', _COMPARABLE),
    *_claim(results, 3, 'float8_e5m2', 'is better than', 1.0),
    *_variants(results),
    *_theory(results),
  ]


def _claim(
  results: Results, bits: int, name: str, words: str, limit: float
) -> list[str]:
  """Whether L-Mul is no more than `limit` times as wrong as a format."""
  lmul = results.named(f'bits/{bits}')
  if lmul is None:
    return []
  said = []
  for group, scaled in (('formats', ''), ('scaled', ' with scales')):
    other = results.named(f'{group}/{name}')
    if other is None:
      continue
    ratios = {}
    for measured, called in measure.MEASURES.items():
      pair = getattr(lmul.errors, measured), getattr(other.errors, measured)
      if pair[0] is not None and pair[1] is not None:
        ratios[called] = pair[0].mean() / pair[1].mean()
    listed = ', '.join(f'{x:.2f} for {called}' for called, x in ratios.items())
    holds = [called for called, x in ratios.items() if x <= limit]
    verdict = (
      'holds'
      if len(holds) == len(ratios)
      else f'holds for {" and ".join(holds)}'
      if holds
      else 'does not hold'
    )
    said.append(
      f'L-Mul with {bits} bits {words} {name}{scaled}: {verdict}. Its error is,'
      f' in units of the other, {listed}.'
    )
  return said


def _variants(results: Results) -> list[str]:
  """What the carry into the exponent is worth."""
  bits = str(results.config.mantissa_bits[-1])
  pair = results.named(f'bits/{bits}'), results.named(f'value/{bits}')
  if not pair[0] or not pair[1]:
    return []
  a, b = (_percent(each.errors.uniform) for each in pair if each)
  return [
    f'With {bits} bits, products of uniform mantissas are wrong by {a} % if bit'
    f' patterns are added, and by {b} % by the formula of the paper, which has'
    ' no carry into the exponent.'
  ]


def _theory(results: Results) -> list[str]:
  """How far measured means are from the closed form."""
  gaps = []
  for result in results.rows:
    found = result.errors.mean
    if result.row.theory is not None and found is not None:
      gaps.append(abs(float(found.mean()) - result.row.theory))
  if not gaps:
    return []
  count = results.config.products * results.config.seeds
  return [
    f'The mean error of {len(gaps)} kinds of L-Mul differs from its closed form'
    f' by at most {max(gaps):.5f}, over {count:,} products each.'
  ]


def _percent(values: np.ndarray | None) -> str:
  assert values is not None
  return f'{100 * values.mean():.2f}'
