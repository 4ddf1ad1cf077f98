"""One run: a model is trained in float32, and scored in every arithmetic."""

import os

import jax

from experiments.configs import laboratory
from experiments.configs import precision as configs
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import run as laboratory_run
from experiments.precision import report
from experiments.precision import results as results_lib
from experiments.precision import rows as rows_lib
from experiments.precision import scoring
from experiments.runtime import config as config_lib
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import stages as stages_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib

_MODEL = 'model'
# What training costs, in rows that are compiled and run: compiling it takes as
# long as two, and 1500 steps of the preset `cpu` as long as 35.
_COMPILED, _ROW = 2.0, 4e9


def run(
  config: configs.Config,
  directory: str | os.PathLike[str],
) -> tables.Table:
  """Trains, and scores every row; continues what an earlier run left.

  Args:
    config: The run.
    directory: Where everything it leaves lies.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else, or settings do not fit
      together.
  """
  config = config_lib.canonical(config)
  settings = config.model
  rows = rows_lib.named(config.rows)
  problems = problems_lib.Problems(settings)
  with workdir_lib.open_workdir(directory, config) as workdir:
    cost = _COMPILED + problems.cost * settings.seeds / _ROW
    progress = progress_lib.Progress(
      {_MODEL: cost, **{row.key: 1.0 for row in rows}}
    )
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    stages = stages_lib.Stages(
      directory=workdir.path,
      metrics=metrics,
      progress=progress,
      every=settings.checkpoint_steps,
    )
    if not all(metrics.records(row.key) for row in rows):
      _score(settings, problems, rows, stages, metrics, progress)
    progress.close()
    return report.write(
      _results(config, problems, rows, metrics),
      directory=workdir.path,
      starts=workdir.starts,
    )


def _score(
  settings: laboratory.Config,
  problems: problems_lib.Problems,
  rows: list[rows_lib.Row],
  stages: stages_lib.Stages,
  metrics: metrics_lib.JsonlWriter,
  progress: progress_lib.Progress,
) -> None:
  """Scores the rows that have no record yet."""
  params = laboratory_run.train(_MODEL, settings, problems, stages)
  scorer = scoring.Scorer(
    problems, params, seeds=settings.seeds, seed=settings.seed
  )
  one = jax.tree.map(lambda x: x[0], params)
  for row in rows:
    if metrics.records(row.key):
      progress.begin(row.key, 1.0)
      continue
    progress.begin(row.key)
    scores = scorer.scores(row)
    record = {f'test/{k}': value for k, value in scores._asdict().items()}
    energy = scoring.energy(problems, one, row)
    if energy is not None:
      record['energy'] = energy
    metrics.write(row.key, 0, record)
    progress.update(1.0)


def _results(
  config: configs.Config,
  problems: problems_lib.Problems,
  rows: list[rows_lib.Row],
  metrics: metrics_lib.JsonlWriter,
) -> results_lib.Results:
  records = {row.key: metrics.records(row.key)[0] for row in rows}
  return results_lib.Results(
    config,
    sum(problems.sizes),
    problems.line(),
    tuple(
      results_lib.Result(
        row,
        scoring.Scores.read(records[row.key]),
        records[row.key].get('energy'),
      )
      for row in rows
    ),
  )
