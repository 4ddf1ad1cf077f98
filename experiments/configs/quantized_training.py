"""An arithmetic transformer trained in low precision, from its first step.

    python -m experiments.reproduce --table=quantized_training --preset=cpu
      --set='rows=quartet*'

A model of the laboratory is trained once for each row, from the same weights on
the same problems, with its products in another arithmetic.
`experiments/quantized_training/rows.py` lists the rows.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import checks
from experiments.configs import laboratory

_ADDITION = laboratory.Config(
  layout=layouts.Layout(answer_order='reversed'),
  model=transformer.Shape(layers=2, width=64),
  training=laboratory.Training(
    steps=500, batch_size=64, level_weights=(0.1, 0.9)
  ),
  levels=(2,),
  test_size=500,
  checkpoint_steps=50,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run.

  Attributes:
    model: What is trained, and what it is scored on: a run of the laboratory
      with one row.
    rows: Arithmetics to train it in, by name (`quartet`) or by pattern
      (`mxfp4*`); all there are if none is named. float32, which the others are
      compared with, is always there.
    delay: Steps before the integer row quantises activations.
  """

  model: laboratory.Config = _ADDITION
  rows: tuple[str, ...] = ()
  delay: int = 50

  def __post_init__(self):
    checks.one_model(self.model)
    checks.at_least(self, delay=1)
    if self.model.model.dropout:
      raise ValueError('model: nothing is dropped here; model.model.dropout')
    # Imported here, so that --help does not wait for JAX.
    from experiments.quantized_training import rows

    chosen = rows.named(self.rows)
    if self.model.model.width % 32 and any(row.blocked for row in chosen):
      raise ValueError(
        'model: Quartet takes blocks of 32; model.model.width is'
        f' {self.model.model.width}'
      )


def cpu() -> Config:
  """Two cores, minutes: sums of two digits, three seeds, every row."""
  return Config()


def smoke() -> Config:
  """Seconds: a row of each kind, of a model that learns nothing."""
  return Config(
    model=dataclasses.replace(laboratory.tiny(_ADDITION), levels=(2,)),
    rows=('int8', 'quartet'),
    delay=5,
  )


def full() -> Config:
  """An accelerator: sums of six digits, a wider model, five seeds."""
  return Config(
    model=dataclasses.replace(
      _ADDITION,
      model=transformer.Shape(layers=6, heads=6, width=384),
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
      checkpoint_steps=250,
    ),
    delay=500,
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
