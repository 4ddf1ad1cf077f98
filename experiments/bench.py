"""Measures how fast things are, against the limit and against the slow way.

    python -m experiments.bench --suite=methods --layers=2
    python -m experiments.bench --suite=merge --size=0.5B --experts=4,8
    python -m experiments.bench --suite=numerics
    python -m experiments.bench --suite=train

Prints a table as it goes. Medians over repeats; the machine should be idle.
"""

from collections.abc import Sequence
import importlib

from absl import flags

from experiments.runtime import cli
from experiments.runtime import config as config_lib
from experiments.runtime import errors

SUITES = {
  'merge': 'Merges of checkpoints, beside mergekit and the least possible.',
  'methods': 'Merges of a vision transformer, and sweeps as one vmap.',
  'numerics': 'Rounding to narrow formats, beside pychop.',
  'train': 'Training and decoding of small decoders, beside nanoGPT.',
}

_SUITE = flags.DEFINE_string('suite', None, 'Which suite to run.')
_EXPERTS = flags.DEFINE_list(
  'experts', [], 'Models that are merged; several numbers for --suite=merge.'
)
_METHODS = flags.DEFINE_list(
  'methods',
  [],
  'Names of methods (numerics: of formats; train: of cases), separated by'
  ' commas; the usual if none.',
)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'How often to measure.', 1)
_LAYERS = flags.DEFINE_integer(
  'layers', 2, 'methods: blocks of the vision transformer; ViT-B/32 has 12.', 1
)
_SIZE = flags.DEFINE_string(
  'size', '125M', 'merge: parameters: 1M, 10M, 125M, 0.5B or 1.1B.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'merge: where models and tables go; models are kept.',
  allow_override=True,  # Tools that import all binaries meet the name twice.
)
_PEER = flags.DEFINE_string(
  'peer',
  '',
  'merge: mergekit-yaml, or the environment that has it; numerics, train: the'
  ' environment that has pychop, nanoGPT.',
)
_OURS_ONLY = flags.DEFINE_bool('ours_only', False, 'merge: without the peer.')


def main(argv: Sequence[str]) -> None:
  """Runs one suite and prints it."""
  del argv
  if _SUITE.value is None:
    raise errors.UsageError(
      f'--suite is required; {errors.suggest("", SUITES)}'
    )
  config_lib.choose('suite', _SUITE.value, SUITES)
  suite = importlib.import_module(f'experiments.benchmarks.{_SUITE.value}')
  counts = _counts()
  if _SUITE.value == 'merge':
    suite.run(
      size=_SIZE.value,
      experts=counts or [4],
      names=_METHODS.value,
      repeats=_REPEATS.value,
      workdir=_WORKDIR.value,
      peer=_PEER.value,
      ours_only=_OURS_ONLY.value,
    )
    return
  if _SUITE.value in ('numerics', 'train'):
    suite.run(names=_METHODS.value, repeats=_REPEATS.value, peer=_PEER.value)
    return
  if len(counts) > 1:
    raise errors.UsageError('--experts: one number for --suite=methods')
  suite.run(
    layers=_LAYERS.value,
    experts=counts[0] if counts else 8,
    names=_METHODS.value,
    repeats=_REPEATS.value,
  )


def _counts() -> list[int]:
  """The numbers of experts."""
  for text in _EXPERTS.value:
    if not text.isdecimal() or int(text) < 2:
      raise errors.UsageError(
        f'--experts: numbers from 2 on, separated by commas; got {text!r}'
      )
  return [int(text) for text in _EXPERTS.value]


if __name__ == '__main__':
  cli.run(main, when_stopped='nothing is kept')
