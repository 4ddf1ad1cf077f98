"""One run of the benchmark, from training to the page."""

import os

from experiments.arithmerge import models as model_lib
from experiments.arithmerge import report
from experiments.arithmerge import scoring
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs
from experiments.runtime import config as config_lib
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib

# What a merge and its scoring cost, in problems trained on for each problem
# scored: a forward pass is a third of a training step.
_SCORING_COST = 0.5


def run(
  config: configs.Config, directory: str | os.PathLike[str]
) -> tables.Table:
  """Trains, merges, scores and reports; continues what an earlier run left.

  Args:
    config: The run.
    directory: Where everything it leaves lies.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else.
  """
  config = config_lib.canonical(config)
  # Before anything is written: a setting may not leave enough problems.
  suite = suite_lib.Suite(config)
  problems = {split: suite.problems(split) for split in ('validation', 'test')}
  with workdir_lib.open_workdir(directory, config) as workdir:
    count = len(config.tasks)
    scored = scoring.num_evaluations(config) * count * config.test_size
    progress = progress_lib.Progress(
      {
        **model_lib.costs(config),
        scoring.STAGE: _SCORING_COST * scored,
      }
    )
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    models = model_lib.Trainer(
      config,
      suite,
      directory=workdir.path,
      metrics=metrics,
      progress=progress,
    ).run()
    scorer = scoring.Scorer(
      config, suite, problems, metrics=metrics, progress=progress
    )
    scores = scorer.run(models)
    progress.close()
    return report.write(
      config, scores, directory=workdir.path, starts=workdir.starts
    )
