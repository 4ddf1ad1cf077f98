"""Long multiplication: directly, with a loss for columns, with vanishing work.

    python -m experiments.reproduce --table=multiplication_auxiliary
      --preset=cpu

Bai et al., Why Can't Transformers Learn Multiplication? Reverse-Engineering
Reveals Long-Range Dependency Pitfalls, 2025, arXiv:2510.00184.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

_LAYOUT = layouts.Layout(notation='infix', operand_order='reversed', pad=True)


def _ways(removal: int, start: int, every: int) -> str:
  """Directly, with an auxiliary loss, and with work that is removed."""
  return (
    'direct: | auxiliary: training.auxiliary.weight=20 | implicit:'
    f' layout.scratchpad=products training.removal={removal}'
    f' training.removal_start={start} training.removal_steps={every}'
  )


def cpu() -> Config:
  """Two cores, minutes: three by three digits, not learned in the middle.

  Weight and learning rate were chosen on problems for validation. The work of
  24 characters and the mark behind it are gone after 2,650 steps.
  """
  return Config(
    study='multiplication_auxiliary',
    vary=(_ways(2, 700, 150),),
    task='long_multiplication',
    layout=_LAYOUT,
    model=transformer.Shape(width=96),
    training=laboratory.Training(
      steps=4_000, batch_size=64, learning_rate=3e-3, level_weights=(0, 0, 1)
    ),
    levels=(3,),
    test_size=500,
    inspect=True,
    seeds=2,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  config = laboratory.tiny(dataclasses.replace(cpu(), vary=(), levels=(2,)))
  return dataclasses.replace(config, vary=(_ways(4, 5, 2),))


def full() -> Config:
  """An accelerator: four by four digits, the paper's width, fewer steps."""
  return Config(
    study='multiplication_auxiliary',
    vary=(_ways(8, 20_000, 2_000),),
    task='long_multiplication',
    layout=_LAYOUT,
    model=transformer.Shape(
      layers=2, heads=4, width=768, biases=False, dtype='bfloat16'
    ),
    training=laboratory.Training(
      steps=100_000,
      batch_size=256,
      learning_rate=1e-4,
      warmup=500,
      level_weights=(0, 0, 0, 1),
    ),
    levels=(4,),
    test_size=1_000,
    inspect=True,
    checkpoint_steps=1_000,
    seeds=3,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
