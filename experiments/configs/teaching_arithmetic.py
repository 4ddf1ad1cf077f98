"""Addition plain, reversed and with its steps, from few examples.

    python -m experiments.reproduce --table=teaching_arithmetic --preset=cpu

Lee et al., Teaching Arithmetic to Small Transformers, 2023, arXiv:2307.03381.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

_WRITTEN = (
  'plain: layout.answer_order=plain | reversed: layout.answer_order=reversed |'
  ' scratchpad: layout.answer_order=plain layout.scratchpad=simplified'
)
# A line with its work is five times as long: a step reads a fourth as many, and
# there are twice as many steps.
_FEWER_LINES = ' training.batch_size=32 training.steps=1600'


def cpu() -> Config:
  """Two cores, minutes: a quarter of a million parameters."""
  return Config(
    study='teaching_arithmetic',
    vary=(_WRITTEN + _FEWER_LINES, 'training.examples=1000|5000'),
    layout=layouts.Layout(notation='infix'),
    training=laboratory.Training(steps=800, level_weights=(0.01, 0.09, 0.9)),
    levels=(3,),
    test_size=1_000,
    seeds=2,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  return laboratory.tiny(
    dataclasses.replace(
      cpu(), vary=(_WRITTEN, 'training.examples=100'), levels=(2,)
    )
  )


def full() -> Config:
  """An accelerator: the paper's decoder and sizes, five seeds."""
  return Config(
    study='teaching_arithmetic',
    vary=(_WRITTEN, 'training.examples=1000|2000|5000|10000'),
    layout=layouts.Layout(notation='infix'),
    model=transformer.Shape(
      layers=6,
      heads=6,
      width=384,
      norm='layer',
      biases=False,
      tied=True,
      dropout=0.2,
      dtype='bfloat16',
    ),
    training=laboratory.Training(
      steps=5_000,
      batch_size=1_024,
      learning_rate=1e-3,
      warmup=100,
      weight_decay=0.1,
      level_weights=(0.01, 0.09, 0.9),
    ),
    levels=(3,),
    test_size=10_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
