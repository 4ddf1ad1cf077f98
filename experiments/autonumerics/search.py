"""Evolutions, kept as files, and what they are compared with."""

from collections.abc import Callable
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.configs import autonumerics as configs
from experiments.runtime import files
import numerics
from numerics import functions

_EVERY = 25  # Generations between two points of a curve.


class Problem(NamedTuple):
  """A function on an interval.

  Attributes:
    name: What it is called.
    exact: Takes and returns `f64[n]`.
    low: Where the interval begins.
    high: Where it ends.
    series: Its Taylor coefficients at the middle, given how many.
  """

  name: str
  exact: Callable[[np.ndarray], np.ndarray]
  low: float
  high: float
  series: Callable[[int], list[float]]

  @property
  def middle(self) -> float:
    """The point of its series."""
    return (self.low + self.high) / 2


def _exp2_series(count: int) -> list[float]:
  log, top = math.log(2), 2**0.5
  return [top * log**n / math.factorial(n) for n in range(count)]


def _cos_series(count: int) -> list[float]:
  turns = [math.cos(0.5), -math.sin(0.5), -math.cos(0.5), math.sin(0.5)]
  return [turns[n % 4] / math.factorial(n) for n in range(count)]


def _rsqrt_series(count: int) -> list[float]:
  terms = [1.5**-0.5]
  for n in range(1, count):
    terms.append(terms[-1] * -(n - 0.5) / n / 1.5)
  return terms


PROBLEMS = {
  'exp2': Problem('2^x on [0, 1]', np.exp2, 0.0, 1.0, _exp2_series),
  'cos': Problem('cos x on [0, 1]', np.cos, 0.0, 1.0, _cos_series),
  'rsqrt': Problem(
    '1 / √x on [1, 2]', lambda x: 1 / np.sqrt(x), 1.0, 2.0, _rsqrt_series
  ),
}


class Evolved(NamedTuple):
  """What one evolution found.

  Attributes:
    front: Programs, by operations.
    generations: At which the front was looked at.
    digits: Decimal digits of the fronts, `f64[generations, operations]`; NaN
      where there was no program yet.
  """

  front: list[functions.Found]
  generations: list[int]
  digits: np.ndarray


def evolved(
  config: configs.Config,
  seed: int,
  path: Path,
  tell: Callable[[int, list[functions.Found]], None],
) -> Evolved:
  """Reads what a seed found, or lets it evolve and writes it.

  Args:
    config: The run.
    seed: Which evolution of it.
    path: The file.
    tell: Called after every generation, with its number and the front.

  Returns:
    What it found.
  """
  if not path.exists():
    files.write(path, json.dumps(_evolve(config, seed, tell), indent=1) + '\n')
  record = json.loads(path.read_text(encoding='utf-8'))
  front = [
    functions.Found(
      functions.Program(tuple(functions.Step(*step) for step in each['steps'])),
      each['error'],
    )
    for each in record['front']
  ]
  digits = np.array(record['digits'], np.float64)  # None is NaN.
  return Evolved(front, record['generations'], digits)


def _evolve(config, seed, tell):
  problem = PROBLEMS[config.function]
  settings = functions.Evolution(
    operations=config.operations,
    generations=config.generations,
    children=config.children,
    kept=config.kept,
  )
  interval = problem.exact, problem.low, problem.high
  # Seeds of a run are apart from those of a run that begins elsewhere.
  own = int(np.random.SeedSequence([config.seed, seed]).generate_state(1)[0])
  generations, digits, front = [], [], []
  for number, front in enumerate(settings.fronts(*interval, seed=own), 1):
    tell(number, front)
    if number % _EVERY == 0 or number in (1, config.generations):
      found = {each.program.operations: each.digits for each in front}
      generations.append(number)
      digits.append([found.get(k + 1) for k in range(config.operations)])
  levelled = functions.levelled([each.program for each in front], *interval)
  return {
    'generations': generations,
    'digits': digits,
    'front': [
      {'error': each.error, 'steps': [list(s) for s in each.program.steps]}
      for each in levelled
    ],
  }


def polynomial_digits(config: configs.Config) -> dict[int, float]:
  """Digits of the best polynomials by Horner's rule, by operations."""
  problem = PROBLEMS[config.function]
  found = {}
  for degree in range(1, config.operations // 2 + 1):
    best = functions.minimax(problem.exact, degree, problem.low, problem.high)
    found[2 * degree] = _digits(best.error)
  return found


def series_digits(config: configs.Config) -> dict[int, float]:
  """Digits of Taylor's series at the middle, by operations.

  The argument's distance from the middle is taken to be there already.
  """
  problem = PROBLEMS[config.function]
  x = np.linspace(problem.low, problem.high, 2001)
  exact = problem.exact(x)
  found = {}
  for degree in range(1, config.operations // 2 + 1):
    program = functions.horner(tuple(problem.series(degree + 1)))
    error = np.max(np.abs(program(x - problem.middle) / exact - 1))
    found[2 * degree] = _digits(float(error))
  return found


def float32_ulps(config: configs.Config, program: functions.Program) -> float:
  """The largest error of a program whose every step is rounded to float32."""
  problem = PROBLEMS[config.function]
  x = np.linspace(problem.low, problem.high, 1 << 16, dtype=np.float32)[1:]
  single = numerics.Format(8, 23)

  def run(x):
    with np.errstate(all='ignore'):
      return program(x, number=np.float32)

  return functions.accuracy(run, problem.exact, x, single).max_ulps


def digits(config: configs.Config, program: functions.Program) -> float:
  """Digits of a program; those that divide by 0 begin beside it."""
  problem = PROBLEMS[config.function]
  x = np.linspace(problem.low, problem.high, 2001)[1:]
  return _digits(float(np.max(np.abs(program(x) / problem.exact(x) - 1))))


def _digits(error: float) -> float:
  return -math.log10(error)
