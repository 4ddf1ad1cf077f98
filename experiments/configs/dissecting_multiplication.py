"""A number times a digit: the order of the answer, depth, simple examples.

    python -m experiments.reproduce --table=dissecting_multiplication
      --preset=cpu

Qiu et al., Dissecting Multiplication in Transformers: Insights into LLMs, 2024,
arXiv:2407.15360.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

_PLAIN = layouts.Layout(notation='infix', answer_order='plain')


def _remedies(layers: int, digits: int) -> str:
  """One change at a time, and all of them; the last level alone is scored."""
  reverse = 'layout.answer_order=reversed'
  deeper = f'model.layers={layers}'
  easy = f'training.level_weights={",".join(["1"] * (digits - 1))},2'
  return (
    f'plain: | reversed: {reverse} | deeper: {deeper} | with shorter: {easy} |'
    f' all three: {reverse} {deeper} {easy}'
  )


def cpu() -> Config:
  """Two cores, minutes: five digits times one."""
  return Config(
    study='dissecting_multiplication',
    vary=(_remedies(3, 5),),
    task='multiplication',
    layout=_PLAIN,
    training=laboratory.Training(
      steps=1_500, learning_rate=1e-3, level_weights=(0, 0, 0, 0, 1)
    ),
    levels=(5,),
    test_size=1_000,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  config = laboratory.tiny(dataclasses.replace(cpu(), vary=(), levels=(2,)))
  return dataclasses.replace(config, vary=(_remedies(2, 2),))


def full() -> Config:
  """An accelerator: more layers, width and steps, five seeds."""
  return Config(
    study='dissecting_multiplication',
    vary=(_remedies(6, 5),),
    task='multiplication',
    layout=_PLAIN,
    model=transformer.Shape(layers=3, heads=8, width=256, dtype='bfloat16'),
    training=laboratory.Training(
      steps=20_000,
      batch_size=512,
      learning_rate=1e-3,
      warmup=500,
      level_weights=(0, 0, 0, 0, 1),
    ),
    levels=(5,),
    test_size=10_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
