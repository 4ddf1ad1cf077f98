"""Positions, and how far beyond training they add.

    python -m experiments.reproduce --table=length_generalization --preset=cpu

McLeish et al., Transformers Can Do Arithmetic with the Right Embeddings, 2024,
arXiv:2405.17399; Cho et al., Position Coupling, 2024, arXiv:2405.20671; Zhou et
al., Transformers Can Achieve Length Generalization But Not Robustly, 2024,
arXiv:2402.09371.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

# Least significant digit first, everywhere.
_REVERSED = layouts.Layout(notation='infix', operand_order='reversed')


def cpu() -> Config:
  """Two cores, minutes: trained up to eight digits."""
  return Config(
    study='length_generalization',
    vary=('model.positions=learned|rotary|fire|abacus|coupled',),
    layout=_REVERSED,
    training=laboratory.Training(
      steps=1_200, batch_size=64, learning_rate=1e-3, level_weights=(1,) * 8
    ),
    levels=(2, 4, 6, 8, 9, 10, 11, 12),
    test_size=250,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  return laboratory.tiny(
    dataclasses.replace(
      cpu(), vary=('model.positions=learned|abacus+fire',), levels=(2, 3, 4)
    )
  )


def full() -> Config:
  """An accelerator: 20 digits and far beyond, with and without index hints."""
  return Config(
    study='length_generalization',
    vary=(
      'model.positions=learned|none|rotary|alibi|kerple_log|fire'
      '|fire+randomised|abacus|abacus+fire|coupled',
      'plain: layout.hints=0 | hinted: layout.hints=102',
    ),
    layout=_REVERSED,
    model=transformer.Shape(
      layers=6, heads=8, width=512, activation='geglu', dtype='bfloat16'
    ),
    training=laboratory.Training(
      steps=50_000,
      batch_size=1_024,
      learning_rate=3e-4,
      warmup=500,
      weight_decay=0.1,
      level_weights=(1,) * 20,
    ),
    levels=(10, 20, 22, 25, 30, 40, 50, 60, 80, 100),
    test_size=1_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
