"""Reproduces a table: trains what it needs, and leaves a directory.

    python -m experiments.reproduce --table=arithmerge --preset=cpu

The directory holds the resolved configuration, the environment, metrics.jsonl,
the models, table.md, table.csv, figures, and report.html. Killed at any
moment, the same command continues and ends with the same numbers.
"""

from collections.abc import Sequence
import importlib
import json
from pathlib import Path

from absl import flags

from experiments.runtime import cli
from experiments.runtime import config as config_lib
from experiments.runtime import errors

# A table is a module of presets, of its name; the package that runs one of
# them; and what it shows.
TABLES = {
  'arithmerge': ('arithmerge', 'Merging experts on exact arithmetic tasks.'),
  'autonumerics': (
    'autonumerics',
    'A function in few operations, by evolution [Real et al., 2023].',
  ),
  'cot_theory': (
    'laboratory',
    'An answer directly, or after its derivation [Feng et al., 2023].',
  ),
  'dissecting_multiplication': (
    'laboratory',
    'A number times a digit: order, depth, examples [Qiu et al., 2024].',
  ),
  'integer_only': (
    'integer_only',
    'A trained model in integers only [Li and Gu, 2023].',
  ),
  'laboratory': ('laboratory', 'Any task, layout and decoder, side by side.'),
  'length_generalization': (
    'laboratory',
    'Positions, and how far beyond training they add.',
  ),
  'lmul': ('lmul', 'The error of L-Mul, by bits of mantissa.'),
  'long_horizon': (
    'laboratory',
    'Sums over many turns, and after errors [Sinha et al., 2025].',
  ),
  'merge_precision': (
    'merge_precision',
    'What narrow formats do to a merge: storage, arithmetic, result.',
  ),
  'multiplication_auxiliary': (
    'laboratory',
    'Long multiplication, and what makes it learned [Bai et al., 2025].',
  ),
  'nupa': (
    'laboratory',
    'Simple tasks on numbers: tokens and positions [Yang et al., 2024].',
  ),
  'positional_description': (
    'laboratory',
    'Products padded and reversed [Shen et al., 2023].',
  ),
  'precision': (
    'precision',
    'What a trained model loses in other arithmetics.',
  ),
  'quantized_training': (
    'quantized_training',
    'An arithmetic transformer trained in DFP-16, INT8 and MXFP4.',
  ),
  'structural_recursion': (
    'laboratory',
    'A successor by recursion, and rare depths of it [Zhang et al., 2023].',
  ),
  'teaching_arithmetic': (
    'laboratory',
    'Addition plain, reversed and with its steps [Lee et al., 2023].',
  ),
  'tokenization': (
    'laboratory',
    'Digits grouped from either end [Singh and Strouse, 2024].',
  ),
}

_TABLE = flags.DEFINE_string('table', None, 'Which table to reproduce.')
_LIST = flags.DEFINE_bool('list', False, 'Show all tables and end.')
_PRESET = flags.DEFINE_string(
  'preset',
  None,
  'How large: smoke (a minute), cpu (minutes, the default), all (cpu with every'
  ' method), full (GPU).',
)
_CONFIG = flags.DEFINE_string(
  'config', None, 'A config.json of an earlier run, instead of a preset.'
)
_SET = flags.DEFINE_multi_string(
  'set', [], 'A setting to change, as in --set=expert.steps=50; repeatable.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where results go; out/TABLE-PRESET by default.'
)


def load_config(table: str, preset: str | None, path: str | None):
  """The configuration of a preset, or of an earlier run's config.json."""
  module = importlib.import_module(f'experiments.configs.{table}')
  if path is None:
    return config_lib.choose('preset', preset or 'cpu', module.PRESETS)()
  if preset is not None:
    raise errors.UsageError('give --config or --preset, not both')
  try:
    data = json.loads(Path(path).expanduser().read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.UsageError(f'--config={path}: {error}') from error
  return config_lib.from_dict(module.Config, data)


def main(argv: Sequence[str]) -> None:
  """Runs one table and prints it."""
  del argv
  if _LIST.value:
    for name, (_, description) in TABLES.items():
      print(f'{name:24}{description}')
    return
  if _TABLE.value is None:
    raise errors.UsageError(
      f'--table is required; {errors.suggest("", TABLES)}'
    )
  config_lib.choose('table', _TABLE.value, TABLES)
  config = config_lib.overlay(
    load_config(_TABLE.value, _PRESET.value, _CONFIG.value), _SET.value
  )
  named = _PRESET.value or ('config' if _CONFIG.value else 'cpu')
  workdir = _WORKDIR.value or f'out/{_TABLE.value}-{named}'
  package, _ = TABLES[_TABLE.value]
  run = importlib.import_module(f'experiments.{package}.run').run
  table = run(config, workdir)
  print(table.to_text())
  print(f'Everything is in {workdir}; open {workdir}/report.html')


if __name__ == '__main__':
  cli.run(main)
