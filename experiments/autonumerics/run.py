"""One run: every seed evolves programs of its own."""

import os

from experiments.autonumerics import report
from experiments.autonumerics import search
from experiments.configs import autonumerics as configs
from experiments.runtime import config as config_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib


def run(
  config: configs.Config,
  directory: str | os.PathLike[str],
) -> tables.Table:
  """Evolves every seed; continues what an earlier run left.

  Args:
    config: The run.
    directory: Where everything it leaves lies.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else.
  """
  config = config_lib.canonical(config)
  stages = [f'seed {seed}' for seed in range(config.seeds)]
  with workdir_lib.open_workdir(directory, config) as workdir:
    progress = progress_lib.Progress(dict.fromkeys(stages, 1.0))
    workdir.tell_changes(progress.message)
    found = []
    for seed, stage in enumerate(stages):
      path = workdir.path / 'programs' / f'seed{seed}.json'
      progress.begin(stage, 1.0 if path.exists() else 0.0)

      def tell(number, front):
        best = max(each.digits for each in front) if front else 0.0
        progress.update(number / config.generations, f'{best:.1f} digits')

      found.append(search.evolved(config, seed, path, tell))
    progress.close()
    return report.write(
      config, found, directory=workdir.path, starts=workdir.starts
    )
