"""One run: a model is trained in every arithmetic, and scored."""

import os

from experiments.configs import quantized_training as configs
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import run as laboratory_run
from experiments.quantized_training import learning
from experiments.quantized_training import report
from experiments.quantized_training import results as results_lib
from experiments.quantized_training import rows as rows_lib
from experiments.runtime import config as config_lib
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import stages as stages_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib

_SCORES = 'scores'


def run(
  config: configs.Config,
  directory: str | os.PathLike[str],
) -> tables.Table:
  """Trains and scores every row; continues what an earlier run left.

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
  rows = rows_lib.named(config.rows)
  problems = problems_lib.Problems(config.model)
  with workdir_lib.open_workdir(directory, config) as workdir:
    progress = progress_lib.Progress({row.key: row.cost for row in rows})
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    stages = stages_lib.Stages(
      directory=workdir.path,
      metrics=metrics,
      progress=progress,
      every=config.model.checkpoint_steps,
    )
    for row in rows:
      if metrics.records(_name(row)):
        progress.begin(row.key, 1.0)
      else:
        scores = _learn(config, row, problems, stages)
        record = {f'test/{k}': x for k, x in scores._asdict().items()}
        metrics.write(_name(row), 0, record)
    progress.close()
    results = results_lib.Results(
      config,
      sum(problems.sizes),
      problems.line(),
      tuple(_result(row, metrics) for row in rows),
    )
    return report.write(results, directory=workdir.path, starts=workdir.starts)


def _name(row: rows_lib.Row) -> str:
  return f'{_SCORES}/{row.key}'


def _learn(
  config: configs.Config,
  row: rows_lib.Row,
  problems: problems_lib.Problems,
  stages: stages_lib.Stages,
) -> learning.Scores:
  """Trains and scores one row."""
  learner = learning.Learner(row, problems, config.delay)
  learned = laboratory_run.train(
    row.key,
    config.model,
    problems,
    stages,
    loss=learner.loss,
    variables=learner.variables,
  )
  return learning.score(
    learner,
    problems,
    learned,
    seeds=config.model.seeds,
    seed=config.model.seed,
  )


def _result(
  row: rows_lib.Row, metrics: metrics_lib.JsonlWriter
) -> results_lib.Result:
  scores = learning.Scores.read(metrics.records(_name(row))[0])
  losses = laboratory_run.losses_of(metrics, row.key)
  return results_lib.Result(row, scores, **losses)
