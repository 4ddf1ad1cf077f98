"""Running sums over many turns: how long nothing goes wrong, and after errors.

    python -m experiments.reproduce --table=long_horizon --preset=cpu

Sinha et al., The Illusion of Diminishing Returns: Measuring Long Horizon
Execution in LLMs, 2025, arXiv:2509.09677.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

_LAYOUT = layouts.Layout(turns=True)
# What a turn looks like does not depend on how many came before it.
_POSITIONS = 'turns+t5'
_HISTORIES = (0.25, 0.5, 0.75)


def _rows(*widths: int) -> str:
  """Decoders of these widths, and the widest trained on errors, too."""
  rows = [f'width {n}: model.width={n}' for n in widths]
  return ' | '.join(
    [*rows, f'errors seen: model.width={widths[-1]} training.errors=0.25']
  )


def cpu() -> Config:
  """Two cores, minutes: trained on up to 4 turns, rolled out for 16.

  Most problems have two turns: from these, a tiny decoder finds out within
  minutes how to look up a key. With up to 8 turns, seeds differ in whether they
  find it out at all.
  """
  return Config(
    study='long_horizon',
    vary=(_rows(48, 64),),
    task='running_sums_modulo_10',
    layout=_LAYOUT,
    model=transformer.Shape(positions=_POSITIONS),
    training=laboratory.Training(
      steps=2_500,
      batch_size=64,
      learning_rate=4e-3,
      level_weights=(2, 1),
    ),
    levels=(2, 4, 8),
    histories=_HISTORIES,
    test_size=500,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  config = laboratory.tiny(
    dataclasses.replace(cpu(), vary=(), levels=(1, 2), histories=(0.5,))
  )
  return dataclasses.replace(config, vary=('training.errors=0.0|0.5',))


def full() -> Config:
  """An accelerator: values of two digits, up to 512 turns."""
  return Config(
    study='long_horizon',
    vary=(_rows(128, 256, 512),),
    task='running_sums',
    layout=_LAYOUT,
    model=transformer.Shape(
      layers=6, heads=8, positions=_POSITIONS, dtype='bfloat16'
    ),
    training=laboratory.Training(
      steps=20_000,
      batch_size=256,
      learning_rate=5e-4,
      warmup=500,
      level_weights=(1, 1, 1, 1),
    ),
    levels=(4, 32, 256),
    histories=_HISTORIES,
    test_size=1_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
