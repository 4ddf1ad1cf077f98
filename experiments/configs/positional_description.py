"""Long multiplication, padded and in reverse.

    python -m experiments.reproduce --table=positional_description --preset=cpu

Shen et al., Positional Description Matters for Transformers Arithmetic, 2023,
arXiv:2311.14737.
"""

from arithmetic import layouts
from arithmetic import transformer
from experiments.configs import laboratory

Config = laboratory.Config

_WRITTEN = (
  'plain: layout.answer_order=plain | reversed: layout.answer_order=reversed |'
  ' padded: layout.answer_order=plain layout.pad=true | padded and reversed:'
  ' layout.answer_order=reversed layout.pad=true'
)


def cpu() -> Config:
  """Two cores, minutes: up to two digits times two."""
  return Config(
    study='positional_description',
    vary=(_WRITTEN,),
    task='long_multiplication',
    layout=layouts.Layout(notation='infix'),
    training=laboratory.Training(
      steps=2_000, learning_rate=1e-3, level_weights=(0.1, 0.9)
    ),
    levels=(2,),
    test_size=1_000,
  )


def smoke() -> Config:
  """Seconds: every part runs, nothing is learned."""
  return laboratory.tiny(cpu())


def full() -> Config:
  """An accelerator: the paper's size of model, up to 15 by 15 digits."""
  return Config(
    study='positional_description',
    vary=(_WRITTEN,),
    task='long_multiplication',
    layout=layouts.Layout(notation='infix'),
    model=transformer.Shape(
      layers=12, heads=12, width=768, norm='layer', dtype='bfloat16'
    ),
    training=laboratory.Training(
      steps=60_000,
      batch_size=512,
      learning_rate=1e-4,
      warmup=1_000,
      examples=300_000,
      level_weights=(1,) * 15,
    ),
    levels=(2, 4, 6, 8, 10, 12, 15),
    test_size=1_000,
    seeds=3,
    population='vmap',
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
