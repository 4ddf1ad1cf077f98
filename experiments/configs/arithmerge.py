"""ArithMerge: experts on exact arithmetic, merged in every way there is.

A base learns all tasks on short problems and sees a few longer ones; each
expert learns the longer problems of one task. What is asked of a merge is the
longer problems of every task at once.

    python -m experiments.reproduce --table=arithmerge --preset=cpu

`docs/arithmerge.md` says how this setting was found and what was tried.
"""

import dataclasses
from typing import Literal

from experiments.configs import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """The decoder that all models share.

  Attributes:
    layers: Blocks.
    heads: Attention heads.
    width: Features of the residual stream.
    positions: How a token knows its place.
    dtype: What activations are computed in.
  """

  layers: int = 2
  heads: int = 4
  width: int = 128
  positions: Literal['learned', 'sinusoidal', 'rotary', 'none'] = 'learned'
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    checks.at_least(self, layers=1, heads=1, width=2)
    if self.width % self.heads:
      raise ValueError(
        f'width {self.width} is not a multiple of heads {self.heads}'
      )
    rotated = {'rotary': self.width // self.heads, 'sinusoidal': self.width}
    if rotated.get(self.positions, 0) % 2:
      raise ValueError(
        f'positions that are {self.positions} come in pairs of features; width'
        f' {self.width} with {self.heads} heads is odd'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """How a model is trained: Adam, clipped gradients, cosine decay to a tenth.

  Attributes:
    steps: Optimiser steps.
    batch_size: Problems a step.
    learning_rate: At its highest.
    warmup: Steps from zero to the highest learning rate.
    level_weights: How often problems of level 1, 2, ... are drawn.
  """

  steps: int
  batch_size: int = 128
  learning_rate: float
  warmup: int = 0
  level_weights: tuple[float, ...]

  def __post_init__(self):
    checks.training(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run of the benchmark.

  Attributes:
    tasks: Names from `arithmetic.tasks`, one expert each.
    seeds: Independent repetitions: initial weights, data, and merges.
    seed: What all randomness of the run begins with; two runs with different
      `seed` share nothing.
    model: The decoder.
    base: Training of the base on all tasks.
    expert: Training of each expert, from the base, on its task.
    joint_steps: Steps of the model trained on all tasks from the base, with
      the experts' other settings; the presets give it the experts' steps
      together.
    methods: Rows of merges, by name; all there are if none is named. Averaging
      and task arithmetic, which others are compared with, are always there.
    tangent: Whether experts are also trained, merged and scored in the tangent
      space of the base.
    test_level_weights: The level of the problems that are scored.
    validation_size: Problems of each task on which coefficients are chosen.
    test_size: Problems of each task on which the table reports.
    population: Whether models train in step (`vmap`) or in turn (`map`).
    checkpoint_steps: Steps between two checkpoints.
  """

  tasks: tuple[str, ...]
  seeds: int = 3
  seed: int = 2_000
  model: Model = Model()
  base: Training
  expert: Training
  joint_steps: int
  methods: tuple[str, ...] = ()
  tangent: bool = False
  test_level_weights: tuple[float, ...] = (0, 0, 1)
  validation_size: int = 256
  test_size: int = 512
  population: Literal['vmap', 'map'] = 'map'
  checkpoint_steps: int = 250

  def __post_init__(self):
    checks.task(self, *self.tasks)
    # Imported here, so that --help does not wait for JAX.
    from experiments.arithmerge import methods

    try:
      methods.named(self.methods)
    except KeyError as error:
      raise ValueError(f'methods: {error.args[0]}') from None
    if len(set(self.tasks)) < len(self.tasks) or len(self.tasks) < 2:
      raise ValueError(f'tasks are two or more different ones: {self.tasks}')
    checks.at_least(
      self,
      seeds=1,
      joint_steps=1,
      validation_size=1,
      test_size=1,
      checkpoint_steps=1,
    )
    checks.seed(self)
    checks.level_weights(self, 'test_level_weights')
    if self.base.batch_size % len(self.tasks):
      raise ValueError(
        f'base.batch_size {self.base.batch_size} is not a multiple of the'
        f' {len(self.tasks)} tasks that share a batch'
      )
    if self.expert.batch_size % len(self.tasks):
      raise ValueError(
        f'expert.batch_size {self.expert.batch_size} is not a multiple of the'
        f' {len(self.tasks)} tasks that share a batch of joint training'
      )

  @property
  def level(self) -> int:
    """The largest level that any problem has."""
    return max(
      len(self.base.level_weights),
      len(self.expert.level_weights),
      len(self.test_level_weights),
    )


_EIGHT = (
  'addition',
  'subtraction',
  'multiplication',
  'maximum',
  'carryless_addition',
  'sorting',
  'reversing',
  'modular_subtraction',
)

_TWENTY = (
  *_EIGHT,
  'successor',
  'minimum',
  'comparison',
  'division',
  'remainder',
  'carryless_subtraction',
  'digitwise_maximum',
  'sorting_descending',
  'rotating',
  'counting',
  'digit_sum',
  'parity',
)


def everything() -> Config:
  """`cpu` with all methods, and experts in the tangent space too."""
  return dataclasses.replace(cpu(), methods=(), tangent=True)


def cpu() -> Config:
  """Two cores, minutes: what `make demo` runs."""
  return Config(
    tasks=_EIGHT,
    methods=(
      'TIES',
      'DARE',
      'DARE-TIES',
      'Consensus',
      'TSV-M',
      'Iso-C',
      'ASWUDI',
      'TALL masks',
      'SLERP',
    ),
    base=Training(
      steps=1500,
      learning_rate=2e-3,
      warmup=100,
      level_weights=(0, 0.98, 0.02),
    ),
    expert=Training(steps=120, learning_rate=2e-4, level_weights=(0, 0, 1)),
    joint_steps=960,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned well."""
  return Config(
    tasks=('addition', 'maximum', 'copying'),
    methods=('TIES', 'DARE', 'TSV-M', 'TALL masks', 'SLERP'),
    seeds=2,
    model=Model(layers=1, heads=2, width=32),
    base=Training(
      steps=420,
      batch_size=48,
      learning_rate=5e-3,
      warmup=20,
      level_weights=(0.9, 0.1),
    ),
    expert=Training(
      steps=60, batch_size=48, learning_rate=1e-3, level_weights=(0, 1)
    ),
    joint_steps=180,
    test_level_weights=(0, 1),
    validation_size=64,
    test_size=64,
    population='vmap',
    checkpoint_steps=60,  # One compiled length for all stages.
  )


def full() -> Config:
  """An accelerator: 20 tasks, 8 seeds, a wider and deeper decoder."""
  return Config(
    tasks=_TWENTY,
    tangent=True,
    seeds=8,
    model=Model(layers=4, heads=8, width=256),
    base=Training(
      steps=6000,
      batch_size=640,
      learning_rate=1e-3,
      warmup=300,
      level_weights=(0, 0, 0.97, 0.03),
    ),
    expert=Training(
      steps=200,
      batch_size=320,
      learning_rate=1e-4,
      level_weights=(0, 0, 0, 1),
    ),
    joint_steps=4000,
    test_level_weights=(0, 0, 0, 1),
    validation_size=1024,
    test_size=4096,
    population='vmap',
    checkpoint_steps=500,
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'all': everything, 'full': full}
