"""Measures how fast things are, against the limit and against the slow way.

    python -m experiments.bench --suite=methods --layers=2

Prints a table as it goes. Medians over repeats; the machine should be idle.
"""

from collections.abc import Sequence
import importlib

from absl import flags

from experiments.runtime import cli
from experiments.runtime import config as config_lib
from experiments.runtime import errors

SUITES = {'methods': 'Merges of a vision transformer, and sweeps as one vmap.'}

_SUITE = flags.DEFINE_string('suite', None, 'Which suite to run.')
_LAYERS = flags.DEFINE_integer(
  'layers', 2, 'Blocks of the vision transformer; ViT-B/32 has 12.', 1
)
_EXPERTS = flags.DEFINE_integer('experts', 8, 'Models that are merged.', 2)
_METHODS = flags.DEFINE_list(
  'methods', [], 'Names of recipes, separated by commas; a usual dozen if none.'
)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'How often to measure.', 1)


def main(argv: Sequence[str]) -> None:
  """Runs one suite and prints it."""
  del argv
  if _SUITE.value is None:
    raise errors.UsageError(
      f'--suite is required; {errors.suggest("", SUITES)}'
    )
  config_lib.choose('suite', _SUITE.value, SUITES)
  suite = importlib.import_module(f'experiments.benchmarks.{_SUITE.value}')
  suite.run(
    layers=_LAYERS.value,
    experts=_EXPERTS.value,
    names=_METHODS.value,
    repeats=_REPEATS.value,
  )


if __name__ == '__main__':
  cli.run(main, when_stopped='nothing is kept')
