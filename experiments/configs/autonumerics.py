"""A function in as few operations as can be: what evolution finds.

python -m experiments.reproduce --table=autonumerics --preset=cpu
"""

import dataclasses

from experiments.configs import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run.

  Attributes:
    function: What is computed: `'exp2'` or `'cos'` on [0, 1], or `'rsqrt'` on
      [1, 2].
    operations: The most operations of a program.
    generations: Of every evolution.
    children: Programs in each generation.
    kept: Programs that are kept for each number of operations.
    seeds: Independent evolutions.
    seed: What they begin with.
  """

  function: str = 'exp2'
  operations: int = 10
  generations: int = 1500
  children: int = 128
  kept: int = 40
  seeds: int = 3
  seed: int = 0

  def __post_init__(self):
    if self.function not in FUNCTIONS:
      raise ValueError(
        f'function is one of {", ".join(FUNCTIONS)}, got {self.function!r}'
      )
    checks.at_least(
      self, operations=2, generations=1, children=1, kept=1, seeds=1
    )
    checks.seed(self)


FUNCTIONS = ('exp2', 'cos', 'rsqrt')


def cpu() -> Config:
  """Two cores, five minutes."""
  return Config()


def smoke() -> Config:
  """Seconds: four operations, few generations."""
  return Config(operations=4, generations=30, children=32, kept=10, seeds=2)


def full() -> Config:
  """A search that is a hundred times as long; the paper's took days on many."""
  return Config(generations=30_000, children=512, kept=200, seeds=5)


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
