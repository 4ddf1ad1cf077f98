"""What a trained arithmetic transformer loses in other arithmetics.

    python -m experiments.reproduce --table=precision --preset=cpu
      --set='rows=products/*,mode/*'

A model of the laboratory is trained in float32, and scored once for each row
with its forward pass in another arithmetic. `experiments/precision/rows.py`
lists the rows.
"""

import dataclasses

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import checks
from experiments.configs import laboratory

_ADDITION = laboratory.Config(
  layout=layouts.Layout(answer_order='reversed'),
  model=transformer.Shape(layers=2, width=96),
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
    rows: Arithmetics to score it in, by name (`products/float8_e4m3fn`) or by
      pattern (`lmul/*`); all there are if none is named. That of float32, which
      the others are compared with, is always there.
  """

  model: laboratory.Config = _ADDITION
  rows: tuple[str, ...] = ()

  def __post_init__(self):
    checks.one_model(self.model)
    # Imported here, so that --help does not wait for JAX.
    from experiments.precision import rows

    rows.named(self.rows)


def cpu() -> Config:
  """Two cores, minutes: sums of three digits, three seeds, every row."""
  return Config()


def smoke() -> Config:
  """Seconds: a row of each kind, of a model that learns nothing."""
  return Config(
    model=dataclasses.replace(laboratory.tiny(_ADDITION), levels=(2,)),
    rows=(
      'all/bfloat16',
      'products/float8_e4m3fn',
      'blocks/mxfp4_e2m1',
      'lmul/attention 4',
      'mode/float8_e4m3fn stochastic',
    ),
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
    )
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
