"""A trained arithmetic transformer as integers only, without training again.

    python -m experiments.reproduce --table=integer_only --preset=cpu
      --set=model.task=subtraction

A model of the laboratory is trained in float32, quantised by the ranges of some
problems to train on, and scored once for each row.
`experiments/integer_only/arithmetics.py` lists the rows.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import checks
from experiments.configs import laboratory

_ADDITION = laboratory.Config(
  layout=layouts.Layout(answer_order='reversed'),
  model=transformer.Shape(layers=2, width=96, norm='layer'),
  training=laboratory.Training(steps=1_500, level_weights=(0.05, 0.15, 0.8)),
  levels=(3,),
  test_size=500,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run.

  Attributes:
    model: What is trained, and what it is scored on: a run of the laboratory
      with one row.
    calibration: Problems of the training split, by whose ranges scales are
      found.
    rows: Rows to score, by name (`integer/… exact root`); all there are if none
      is named. That of float32 is always there.
  """

  model: laboratory.Config = _ADDITION
  calibration: int = 512
  rows: tuple[str, ...] = ()

  def __post_init__(self):
    checks.at_least(self, calibration=1)
    if self.model.vary or self.model.study != 'none':
      raise ValueError('model: one is trained; leave vary and study alone')
    if self.model.layout.scratchpad:
      raise ValueError(
        'model: answers are scored in one pass, which a scratchpad is not;'
        ' leave layout.scratchpad alone'
      )
    # Imported here, so that --help does not wait for JAX.
    from experiments.integer_only import arithmetics
    from experiments.integer_only import calibration
    from experiments.runtime import config
    from experiments.runtime import errors

    try:
      calibration.check(self.model.model)
      for name in self.rows:
        config.choose('row', name, arithmetics.ROWS)
    except errors.UsageError as error:
      raise ValueError(str(error)) from None


def cpu() -> Config:
  """Two cores, minutes: sums of three digits, three seeds, every row."""
  return Config()


def smoke() -> Config:
  """Seconds: a row of each kind, of a model that learns nothing."""
  return Config(
    model=dataclasses.replace(
      laboratory.tiny(_ADDITION),
      levels=(2,),
    ),
    calibration=16,
    rows=(
      'float/weights int8',
      'functions/none',
      'functions/Shiftmax',
      'integer/as published',
      'integer/… exact root',
      'narrow/4 bits, as published',
    ),
  )


def full() -> Config:
  """An accelerator: sums of six digits, a wider model, five seeds."""
  return Config(
    model=dataclasses.replace(
      _ADDITION,
      model=transformer.Shape(layers=6, heads=6, width=384, norm='layer'),
      training=laboratory.Training(
        steps=10_000,
        batch_size=1_024,
        learning_rate=1e-3,
        warmup=100,
        level_weights=(1, 1, 1, 2, 3, 4),
      ),
      levels=(6,),
      test_size=2_000,
      seeds=5,
      population='vmap',
    ),
    calibration=2_048,
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
