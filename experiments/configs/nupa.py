"""Simple tasks on numbers: digits or pairs of them as tokens, and positions.

    python -m experiments.reproduce --table=nupa --preset=cpu

Yang et al., Number Cookbook: Number Understanding of Language Models and How to
Improve It, 2024, arXiv:2411.03766.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

# A token of two digits is one place of a number, in prompt and answer.
_TOKENS = 'digits: tokenizer=digits | pairs: tokenizer=right2-left2'
_POSITIONS = 'model.positions=rotary|none|alibi'


def cpu() -> Config:
  """Two cores, minutes: up to four digits, scored up to six."""
  return Config(
    study='nupa',
    vary=('task=addition|maximum|carryless_addition', _TOKENS, _POSITIONS),
    layout=layouts.Layout(notation='prefix'),
    training=laboratory.Training(steps=800, level_weights=(1,) * 4),
    levels=(2, 3, 4, 5, 6),
    test_size=500,
    seeds=2,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  return laboratory.tiny(
    dataclasses.replace(
      cpu(),
      vary=('task=addition|maximum', _TOKENS, 'model.positions=rotary|none'),
      levels=(2, 3),
    )
  )


def full() -> Config:
  """An accelerator: wider, deeper, up to eight digits and scored up to 20."""
  return Config(
    study='nupa',
    vary=(
      'task=addition|subtraction|multiplication|maximum|minimum|comparison'
      '|carryless_addition|digitwise_maximum|counting|long_multiplication',
      _TOKENS,
      _POSITIONS,
    ),
    model=transformer.Shape(layers=6, heads=6, width=384, dtype='bfloat16'),
    training=laboratory.Training(
      steps=20_000,
      batch_size=512,
      learning_rate=5e-4,
      warmup=500,
      level_weights=(1,) * 8,
    ),
    levels=(4, 8, 9, 12, 14, 20),
    test_size=1_000,
    seeds=3,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
