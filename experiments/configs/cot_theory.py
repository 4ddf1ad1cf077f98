"""An answer directly, or after its derivation.

    python -m experiments.reproduce --table=cot_theory --preset=cpu

Feng et al., Towards Revealing the Mystery behind Chain of Thought: A
Theoretical Perspective, 2023, arXiv:2305.15408.
"""

import dataclasses

from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config


def _depths(derived: int, *direct: int) -> str:
  rows = [f'direct, {n} layers: model.layers={n}' for n in direct]
  rows.append(
    f'derivation, {derived} layers: layout.scratchpad=lengths'
    f' model.layers={derived}'
  )
  return ' | '.join(rows)


def cpu() -> Config:
  """Two cores, minutes: sequences of up to 20 digits."""
  return Config(
    study='cot_theory',
    vary=(_depths(2, 2, 3, 4),),
    task='longest_increasing',
    training=laboratory.Training(steps=1_500, level_weights=(1,) * 10),
    model=transformer.Shape(width=96, positions='rotary'),
    levels=(4, 6, 8, 10),
    test_size=1_000,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  config = laboratory.tiny(dataclasses.replace(cpu(), vary=(), levels=(1, 2)))
  return dataclasses.replace(config, vary=(_depths(2, 2, 3),))


def full() -> Config:
  """An accelerator: the paper's depths and width, longer sequences."""
  return Config(
    study='cot_theory',
    vary=(_depths(3, 3, 4, 5),),
    task='longest_increasing',
    model=transformer.Shape(
      width=256,
      heads=4,
      norm='layer',
      positions='sinusoidal',
      dropout=0.1,
      dtype='bfloat16',
    ),
    training=laboratory.Training(
      steps=100_000,
      batch_size=512,
      learning_rate=1e-4,
      warmup=5_000,
      level_weights=(1,) * 40,
    ),
    levels=(10, 25, 40),
    test_size=10_000,
    seeds=4,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
