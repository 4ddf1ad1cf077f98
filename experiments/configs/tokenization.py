"""Digits grouped to tokens from either end.

    python -m experiments.reproduce --table=tokenization --preset=cpu

Singh and Strouse, Tokenization counts: the impact of tokenization on arithmetic
in frontier LLMs, 2024, arXiv:2402.14903.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config


def _ends(size: int) -> str:
  return (
    f'digits: tokenizer=digits | left to right: tokenizer=left{size} | right to'
    f' left: tokenizer=right{size}'
  )


# Most significant digit first, as people and language models write.
_PLAIN = layouts.Layout(notation='infix', answer_order='plain')


def cpu() -> Config:
  """Two cores, minutes: tokens of two digits, up to four digits."""
  return Config(
    study='tokenization',
    vary=(_ends(2),),
    layout=_PLAIN,
    training=laboratory.Training(
      steps=1_500, level_weights=(0.1, 0.2, 0.3, 0.4)
    ),
    levels=(2, 3, 4),
    test_size=1_000,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  return laboratory.tiny(
    dataclasses.replace(cpu(), vary=(_ends(2),), levels=(2, 3))
  )


def full() -> Config:
  """An accelerator: tokens of three digits, as language models have them."""
  return Config(
    study='tokenization',
    vary=(_ends(3),),
    layout=_PLAIN,
    model=transformer.Shape(layers=6, heads=6, width=384, dtype='bfloat16'),
    training=laboratory.Training(
      steps=20_000,
      batch_size=1_024,
      learning_rate=5e-4,
      warmup=500,
      level_weights=(1,) * 9,
    ),
    levels=(3, 4, 5, 6, 7, 8, 9),
    test_size=2_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
