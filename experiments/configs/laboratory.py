"""Any task, written in any way, learned by any decoder, side by side.

    python -m experiments.reproduce --table=laboratory --set=layout.pad=true
      --set='vary=layout.answer_order=plain|reversed'

`vary` names what differs between the rows of the table; everything else is the
same for all of them.
"""

import dataclasses
import itertools
import re
from typing import Literal
from typing import NamedTuple
from typing import Self

from arithmetic import auxiliary as auxiliary_lib
from arithmetic import layouts
from arithmetic import tokenizers
from arithmetic import transformer
from experiments.configs import checks
from experiments.runtime import config as config_lib
from experiments.runtime import errors

# What rows of one table share, as they are scored and drawn together.
_OF_THE_RUN = (
  *('vary', 'study', 'levels', 'test_size', 'grid', 'histories', 'inspect'),
  *('seeds', 'seed', 'population', 'checkpoint_steps'),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """How a model is trained: AdamW, clipped gradients, cosine decay to a tenth.

  Attributes:
    steps: Optimiser steps.
    batch_size: Problems a step.
    learning_rate: At its highest.
    warmup: Steps from zero to the highest learning rate.
    weight_decay: Of AdamW.
    examples: How many problems there are to train on, drawn once for each
      seed; new ones in every step if 0.
    level_weights: How often problems of level 1, 2, ... are drawn.
    mixed: Whether every operand draws a level of its own, so that numbers of
      different lengths meet.
    auxiliary: What some heads have to hold besides, for products: what each
      column adds up to with the carry into it.
    removal: Of a layout with work, how many characters of it are left out more,
      from the first on, after every `removal_steps`, until none is left.
    removal_steps: See there.
    removal_start: When the first are left out.
    errors: Of a layout with turns, the share of states that are shown wrong,
      and gone on from; they are not learned, but what follows them is.
  """

  steps: int = 1_000
  batch_size: int = 128
  learning_rate: float = 2e-3
  warmup: int = 50
  weight_decay: float = 0.01
  examples: int = 0
  level_weights: tuple[float, ...] = (1, 1, 1)
  mixed: bool = False
  auxiliary: auxiliary_lib.Regression = auxiliary_lib.Regression()
  removal: int = 0
  removal_steps: int = 100
  removal_start: int = 0
  errors: float = 0.0

  def __post_init__(self):
    checks.training(self)
    checks.at_least(self, weight_decay=0, examples=0, errors=0)
    checks.at_least(self, removal=0, removal_steps=1, removal_start=0)
    if self.errors >= 1:
      raise ValueError(f'errors is a share below 1, got {self.errors}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run of the laboratory.

  Attributes:
    vary: What differs between rows: axes, of which all combinations run. An
      axis lists what a setting may be, as `layout.answer_order=plain|reversed`,
      or names groups of settings, as `plain: layout.answer_order=plain | right
      to left: layout.answer_order=reversed tokenizer=right3`.
    study: The claim that the page is about, if any.
    task: Name of a task of `arithmetic.tasks`.
    layout: How problems are written.
    tokenizer: How characters become tokens: a name of `tokenizers.get`, such as
      `digits`, `right3` or `right3-left3`.
    model: The decoder.
    anchors: Whether operator and equals sign take the position before that of a
      first digit, in schemes that count digits. Position coupling has it so,
      Abacus does not.
    training: How it is trained.
    levels: The levels that are scored, each by itself.
    test_size: Problems of each level.
    grid: Digits of two operands, all combinations of which are scored besides,
      on up to 100 problems each: a heat map for each row; none if empty.
    histories: Of a layout with turns, shares of states that are wrong, besides
      none, in what a model reads before it is scored.
    inspect: Whether tokens of answers are scored at every checkpoint, and
      embeddings of digits fitted by waves.
    seeds: Independent repetitions: initial weights, and data.
    seed: What all randomness of the run begins with.
    population: Whether the seeds train in step (`vmap`) or in turn (`map`).
    checkpoint_steps: Steps between two checkpoints.
  """

  vary: tuple[str, ...] = ()
  study: Literal[
    'none',
    'cot_theory',
    'dissecting_multiplication',
    'length_generalization',
    'long_horizon',
    'multiplication_auxiliary',
    'nupa',
    'positional_description',
    'structural_recursion',
    'teaching_arithmetic',
    'tokenization',
  ] = 'none'
  task: str = 'addition'
  layout: layouts.Layout = layouts.Layout()
  tokenizer: str = 'digits'
  model: transformer.Shape = transformer.Shape(width=96)
  anchors: bool = True
  training: Training = Training()
  levels: tuple[int, ...] = (1, 2, 3, 4)
  test_size: int = 500
  grid: tuple[int, ...] = ()
  histories: tuple[float, ...] = ()
  inspect: bool = False
  seeds: int = 3
  seed: int = 0
  population: Literal['vmap', 'map'] = 'map'
  checkpoint_steps: int = 250

  def __post_init__(self):
    checks.task(self, self.task)
    checks.at_least(self, test_size=1, seeds=1, checkpoint_steps=1)
    checks.seed(self)
    try:
      tokenizers.get(self.tokenizer, '')
    except ValueError as error:
      raise ValueError(f'tokenizer: {error}') from None
    if not self.levels or min(self.levels) < 1:
      raise ValueError(f'levels are one or more, from 1: {self.levels}')
    for name in ('levels', 'grid'):
      sizes = getattr(self, name)
      if sorted(set(sizes)) != list(sizes) or min(sizes, default=1) < 1:
        raise ValueError(f'{name} rise, from 1 on: {sizes}')
    if not all(0 < share < 1 for share in self.histories):
      raise ValueError(f'histories are shares in (0, 1): {self.histories}')
    if self.training.removal and not self.layout.scratchpad:
      raise ValueError('training.removal needs a layout with a scratchpad')
    if self.training.auxiliary.weight:
      self._check_auxiliary()
    if (self.histories or self.training.errors) and not self.layout.turns:
      raise ValueError('histories with errors need a layout with turns')

  def _check_auxiliary(self):
    """A number of a column belongs to a token that is the column's digit."""
    if self.task not in ('multiplication', 'long_multiplication'):
      raise ValueError(
        'training.auxiliary is for multiplication and long_multiplication, got'
        f' {self.task}'
      )
    layout = self.layout
    if (
      (self.tokenizer, layout.answer_order) != ('digits', 'reversed')
      or layout.hints
      or layout.group
    ):
      raise ValueError(
        'training.auxiliary needs tokenizer=digits,'
        ' layout.answer_order=reversed, and neither hints nor groups'
      )

  @property
  def level(self) -> int:
    """The largest level that any problem has."""
    return max(*self.levels, *self.grid, len(self.training.level_weights))


class Variant(NamedTuple):
  """A row of the table.

  Attributes:
    labels: What it is called on each axis.
    config: Its settings, none of which vary.
  """

  labels: tuple[str, ...]
  config: Config

  @property
  def name(self) -> str:
    """What it is called."""
    return ', '.join(self.labels) or self.config.task

  @property
  def slug(self) -> str:
    """The same for a name of a file."""
    return re.sub(r'[^a-z0-9.]+', '-', self.name.lower()).strip('-.') or 'one'


class Axis(NamedTuple):
  """What may differ.

  Attributes:
    name: The setting, if it is one.
    labels: What each alternative is called.
    settings: What each sets, `path=value`.
  """

  name: str
  labels: tuple[str, ...]
  settings: tuple[tuple[str, ...], ...]

  @property
  def numbers(self) -> bool:
    """Whether all alternatives are numbers."""
    return all(re.fullmatch(r'\d+(\.\d*)?(e-?\d+)?', x) for x in self.labels)

  @classmethod
  def parse(cls, text: str) -> Self:
    """Reads an entry of `vary`.

    Raises:
      UsageError: It names no alternatives.

    Examples:
      >>> Axis.parse('layout.pad=true|false')
      Axis(name='layout.pad', labels=('true', 'false'),
        settings=(('layout.pad=true',), ('layout.pad=false',)))
      >>> Axis.parse(
      ...   'small: model.width=32 model.heads=2 | wide: model.width=64'
      ... )
      Axis(name='', labels=('small', 'wide'),
        settings=(('model.width=32', 'model.heads=2'), ('model.width=64',)))
    """
    parts = [part.strip() for part in text.split('|')]
    path, equals, first = parts[0].partition('=')
    if equals and ':' not in parts[0] and not re.search(r'\s', parts[0]):
      values = (first, *parts[1:])
      if all(values):
        settings = tuple((f'{path}={value}',) for value in values)
        return cls(path, values, settings)
    labels, groups = [], []
    for part in parts:
      label, colon, rest = part.partition(':')
      if not colon or not label.strip():
        raise errors.UsageError(
          f'vary: expected setting=value|value or name: setting=value | name:'
          f' ..., got {text!r}'
        )
      labels.append(label.strip())
      groups.append(tuple(rest.split()))
    return cls('', tuple(labels), tuple(groups))


def axes(config: Config) -> list[Axis]:
  """Returns what differs between the rows of a run."""
  return [Axis.parse(text) for text in config.vary]


def variants(config: Config) -> list[Variant]:
  """Returns the rows of a run, in the order of the axes.

  Raises:
    UsageError: An axis is wrong, or a setting that it changes.

  Examples:
    >>> variants(Config(vary=('seeds=1|2',)))
    Traceback (most recent call last):
    ...
    experiments.runtime.errors.UsageError: vary: seeds is one for all rows
    >>> rows = variants(Config(vary=('layout.pad=true|false',)))
    >>> [(row.name, row.config.layout.pad) for row in rows]
    [('true', True), ('false', False)]
  """
  plain = dataclasses.replace(config, vary=())
  rows = []
  for chosen in itertools.product(
    *(zip(axis.labels, axis.settings, strict=True) for axis in axes(config))
  ):
    settings = [each for _, group in chosen for each in group]
    for setting in settings:
      path = setting.partition('=')[0]
      if path in _OF_THE_RUN:
        raise errors.UsageError(f'vary: {path} is one for all rows')
    labels = tuple(label for label, _ in chosen)
    rows.append(Variant(labels, config_lib.overlay(plain, settings)))
  names = [row.name for row in rows]
  for name in names:
    if names.count(name) > 1:
      raise errors.UsageError(f'vary: two rows are called {name!r}')
  return rows


def cpu() -> Config:
  """Two cores, minutes: a sum written either way."""
  return Config(
    vary=('layout.answer_order=plain|reversed',),
    training=Training(examples=5_000, steps=1_000),
  )


def tiny(config: Config) -> Config:
  """The same question in seconds, of a model that learns nothing.

  Levels up to 2 are trained on.
  """
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, layers=1, heads=2, width=32),
    training=Training(steps=20, batch_size=32, level_weights=(1, 1), warmup=5),
    test_size=32,
    seeds=2,
    checkpoint_steps=10,
    population='vmap',
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  vary = ('layout.answer_order=plain|reversed', 'training.examples=100|200')
  return tiny(Config(vary=vary, levels=(1, 2, 3)))


def full() -> Config:
  """An accelerator: the same at the size of the papers."""
  return Config(
    vary=('layout.answer_order=plain|reversed',),
    model=transformer.Shape(layers=6, heads=6, width=384),
    training=Training(
      examples=10_000, steps=5_000, batch_size=1_024, learning_rate=1e-3
    ),
    test_size=10_000,
    seeds=5,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
