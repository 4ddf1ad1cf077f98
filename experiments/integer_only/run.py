"""One run: a model is trained in float32, quantised, and scored."""

import os

from experiments.configs import integer_only as configs
from experiments.integer_only import arithmetics
from experiments.integer_only import report
from experiments.integer_only import results as results_lib
from experiments.integer_only import scoring
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import rescoring
from experiments.precision import scoring as scores_lib
from experiments.runtime import config as config_lib
from experiments.runtime import tables


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
  problems = problems_lib.Problems(config.model)
  keys = [
    key
    for key in arithmetics.ROWS
    if not config.rows or key in (arithmetics.BASELINE, *config.rows)
  ]

  def begin(params):
    return scoring.Scorer(config, problems, params).record

  def finish(records, workdir):
    results = results_lib.Results(
      config,
      sum(problems.sizes),
      problems.line(),
      tuple(
        results_lib.Result(
          arithmetics.ROWS[key],
          scores_lib.Scores.read(record),
          record.get('operations'),
        )
        for key, record in records.items()
      ),
    )
    return report.write(results, directory=workdir.path, starts=workdir.starts)

  return rescoring.run(
    config,
    config.model,
    problems,
    keys,
    directory,
    begin=begin,
    finish=finish,
  )
