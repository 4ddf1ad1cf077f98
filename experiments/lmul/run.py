"""One run: every arithmetic multiplies the same numbers."""

import os

from experiments.configs import lmul as configs
from experiments.lmul import measure
from experiments.lmul import report
from experiments.lmul import results as results_lib
from experiments.runtime import config as config_lib
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib


def run(
  config: configs.Config,
  directory: str | os.PathLike[str],
) -> tables.Table:
  """Measures every row; continues what an earlier run left.

  Args:
    config: The run.
    directory: Where everything it leaves lies.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else.
  """
  config = config_lib.canonical(config)
  rows = measure.rows(config)
  with workdir_lib.open_workdir(directory, config) as workdir:
    progress = progress_lib.Progress({row.key: 1.0 for row in rows})
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    for row in rows:
      if metrics.records(row.key):
        progress.begin(row.key, 1.0)
        continue
      progress.begin(row.key)
      found = measure.measure(config, row)
      metrics.write(row.key, 0, {f'test/{k}': x for k, x in found.items()})
      progress.update(1.0)
    progress.close()
    results = results_lib.Results(
      config,
      tuple(
        results_lib.Result(
          row, measure.Errors.read(metrics.records(row.key)[0])
        )
        for row in rows
      ),
    )
    return report.write(results, directory=workdir.path, starts=workdir.starts)
