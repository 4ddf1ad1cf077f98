"""What narrow formats do to a merge.

    python -m experiments.reproduce --table=merge_precision --preset=cpu
      --set='rows=vectors/*'

Experts of the ArithMerge benchmark are merged with their weights, their task
vectors, the arithmetic of the merge, or its result in another format.
`experiments/merge_precision/rows.py` lists the rows.
"""

import dataclasses

from experiments.configs import arithmerge


def _models(config: arithmerge.Config, **changes) -> arithmerge.Config:
  """A run of the benchmark without the model trained on all tasks."""
  return dataclasses.replace(config, methods=(), joint_steps=1, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """One run.

  Attributes:
    models: What is trained, and what it is scored on: a run of the benchmark,
      of which methods and validation are not used.
    methods: Merges, by their names in the benchmark, with the settings that
      their authors name.
    rows: Formats, by name (`vectors/int4`) or by pattern; all there are if none
      is named. float32, which the others are compared with, is always there.
  """

  models: arithmerge.Config
  methods: tuple[str, ...] = ('task arithmetic', 'TIES', 'DARE')
  rows: tuple[str, ...] = ()

  def __post_init__(self):
    if self.models.tangent:
      raise ValueError('models: tangent is not used here; leave it alone')
    # Imported here, so that --help does not wait for JAX.
    from experiments.merge_precision import rows

    rows.named(self.rows)
    rows.methods(self.methods)


def cpu() -> Config:
  """Two cores, minutes: four tasks, three seeds, every row."""
  tasks = ('addition', 'subtraction', 'maximum', 'sorting')
  return Config(models=_models(arithmerge.cpu(), tasks=tasks))


def smoke() -> Config:
  """Seconds: a row of each kind, of models that learn nothing well."""
  return Config(
    models=_models(arithmerge.smoke()),
    methods=('task arithmetic', 'TIES'),
    rows=('*/bfloat16', 'vectors/int4'),
  )


def full() -> Config:
  """An accelerator: 20 tasks, eight seeds."""
  return Config(
    models=_models(arithmerge.full(), tangent=False),
    methods=('task arithmetic', 'TIES', 'DARE', 'DELLA', 'TSV-M', 'Iso-C'),
  )


PRESETS = {'smoke': smoke, 'cpu': cpu, 'full': full}
