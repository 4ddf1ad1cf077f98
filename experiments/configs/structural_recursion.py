"""A function that is defined by recursion, and what is seldom seen of it.

    python -m experiments.reproduce --table=structural_recursion --preset=cpu

Zhang et al., Can Transformers Learn to Solve Problems Recursively?, 2023,
arXiv:2305.14699.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config


def _draws(levels: int) -> str:
  """Problems as they come, and all depths of recursion equally often."""
  natural = ','.join(f'{2.0**-n:g}' for n in range(levels))
  every = ','.join(['1'] * levels)
  return (
    f'as they come: training.level_weights={natural}'
    f' | every depth: training.level_weights={every}'
  )


def cpu() -> Config:
  """Two cores, minutes: numbers of 24 bits that end with up to ten ones.

  Few examples, so that as they come few go deep; always new ones leave nothing
  to learn in either row.
  """
  return Config(
    study='structural_recursion',
    vary=(_draws(11),),
    task='binary_successor',
    layout=layouts.Layout(operand_order='reversed', answer_order='reversed'),
    model=transformer.Shape(width=64, positions='rotary'),
    training=laboratory.Training(
      steps=500, batch_size=64, examples=500, level_weights=(1,) * 11
    ),
    levels=(1, 2, 3, 5, 7, 9, 11),
    test_size=200,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  config = laboratory.tiny(dataclasses.replace(cpu(), vary=(), levels=(1, 2)))
  return dataclasses.replace(config, vary=(_draws(2),))


def full() -> Config:
  """An accelerator: trees of up to 31 nodes, visited in order."""
  return Config(
    study='structural_recursion',
    vary=(
      'model.positions=rotary|alibi',
      'task=inorder_traversal|preorder_traversal',
    ),
    task='inorder_traversal',
    model=transformer.Shape(
      layers=6, heads=8, width=512, positions='rotary', dtype='bfloat16'
    ),
    training=laboratory.Training(
      steps=50_000,
      batch_size=512,
      learning_rate=5e-4,
      warmup=1_000,
      level_weights=(1,) * 31,
    ),
    levels=(7, 15, 23, 31),
    test_size=2_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
