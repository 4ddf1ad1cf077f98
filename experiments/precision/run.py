"""One run: a model is trained in float32, and scored in every arithmetic."""

import os

import jax

from experiments.configs import precision as configs
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import rescoring
from experiments.precision import report
from experiments.precision import results as results_lib
from experiments.precision import rows as rows_lib
from experiments.precision import scoring
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
  settings = config.model
  rows = {row.key: row for row in rows_lib.named(config.rows)}
  problems = problems_lib.Problems(settings)

  def begin(params):
    scorer = scoring.Scorer(
      problems, params, seeds=settings.seeds, seed=settings.seed
    )
    one = jax.tree.map(lambda x: x[0], params)

    def score(key):
      scores = scorer.scores(rows[key])
      energy = scoring.energy(problems, one, rows[key])
      more = {} if energy is None else {'energy': energy}
      return {f'test/{k}': x for k, x in scores._asdict().items()} | more

    return score

  def finish(records, workdir):
    results = results_lib.Results(
      config,
      sum(problems.sizes),
      problems.line(),
      tuple(
        results_lib.Result(
          row,
          scoring.Scores.read(records[key]),
          records[key].get('energy'),
        )
        for key, row in rows.items()
      ),
    )
    return report.write(results, directory=workdir.path, starts=workdir.starts)

  return rescoring.run(
    config,
    settings,
    problems,
    list(rows),
    directory,
    begin=begin,
    finish=finish,
  )
