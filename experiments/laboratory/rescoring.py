"""One model of the laboratory, trained once and scored in many ways."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from arithmetic import transformer
from experiments.configs import laboratory as configs
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import run as laboratory_run
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import stages as stages_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib

_MODEL = 'model'
# What training costs, in rows that are compiled and run: compiling it takes as
# long as two, and 1500 steps of the preset `cpu` as long as 35.
_COMPILED, _ROW = 2.0, 4e9

Record = Mapping[str, Any]
# From the parameters of all seeds to what a row, by its name, has to remember.
Begin = Callable[[transformer.Params], Callable[[str], Record]]


def run(
  config: Any,
  settings: configs.Config,
  problems: problems_lib.Problems,
  rows: Sequence[str],
  directory: str | os.PathLike[str],
  *,
  begin: Begin,
  finish: Callable[[Mapping[str, Record], workdir_lib.Workdir], tables.Table],
) -> tables.Table:
  """Trains, and scores every row; continues what an earlier run left.

  Args:
    config: The run.
    settings: What of it is trained.
    problems: The task.
    rows: Names, in the order of the table.
    directory: Where everything it leaves lies.
    begin: Called if a row has no record yet.
    finish: Writes the report, of the records of all rows.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else.
  """
  with workdir_lib.open_workdir(directory, config) as workdir:
    cost = _COMPILED + problems.cost * settings.seeds / _ROW
    progress = progress_lib.Progress({_MODEL: cost, **dict.fromkeys(rows, 1.0)})
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    stages = stages_lib.Stages(
      directory=workdir.path,
      metrics=metrics,
      progress=progress,
      every=settings.checkpoint_steps,
    )
    if not all(metrics.records(row) for row in rows):
      params = laboratory_run.train(_MODEL, settings, problems, stages)
      score = begin(params)
      for row in rows:
        if metrics.records(row):
          progress.begin(row, 1.0)
          continue
        progress.begin(row)
        metrics.write(row, 0, score(row))
        progress.update(1.0)
    progress.close()
    return finish({row: metrics.records(row)[0] for row in rows}, workdir)
