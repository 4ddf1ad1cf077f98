"""One run: experts are trained in float32, merged in other formats, scored."""

from collections.abc import Callable
import functools
import os
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import layouts
from experiments.arithmerge import models as model_lib
from experiments.arithmerge import suite as suite_lib
from experiments.configs import merge_precision as configs
from experiments.merge_precision import report
from experiments.merge_precision import results as results_lib
from experiments.merge_precision import rows as rows_lib
from experiments.runtime import config as config_lib
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import tables
from experiments.runtime import workdir as workdir_lib
import merging

_YARDSTICKS = 'yardsticks'
# What a merge and its scoring cost, in problems trained on for each scored.
_SCORING_COST = 1.0

Record = dict[str, Any]


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
  suite = suite_lib.Suite(config.models)
  problems = suite.problems('test')
  rows, methods = rows_lib.named(config.rows), config.methods
  stages = [
    _YARDSTICKS,
    *(f'{row.key}, {method}' for row in rows for method in methods),
  ]
  with workdir_lib.open_workdir(directory, config) as workdir:
    models = config.models
    each = models.seeds * len(models.tasks) * models.test_size * _SCORING_COST
    costs = model_lib.costs(models) | dict.fromkeys(stages, each)
    progress = progress_lib.Progress(costs)
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    trained = model_lib.Trainer(
      models,
      suite,
      directory=workdir.path,
      metrics=metrics,
      progress=progress,
    ).run()
    scorer = _Scorer(config, suite, problems, trained)

    def scored(stage: str, score: Callable[[], Record]) -> Record:
      progress.begin(stage)
      if not metrics.records(stage):
        metrics.write(stage, 0, score())
      progress.update(1.0)
      return metrics.records(stage)[0]

    marks = scored(_YARDSTICKS, scorer.yardsticks)
    found = []
    for row in rows:
      scores: dict[str, results_lib.Scores | None] = {}
      for method in methods:
        record = scored(
          f'{row.key}, {method}', functools.partial(scorer.score, row, method)
        )
        known = 'test/exact' in record
        scores[method] = results_lib.Scores.read(record) if known else None
      found.append(results_lib.Result(row, scores))
    progress.close()
    results = results_lib.Results(
      config,
      {name: np.asarray(marks[f'test/{name}']) for name in ('base', 'experts')},
      tuple(found),
    )
    return report.write(results, directory=workdir.path, starts=workdir.starts)


class _Scorer:
  """Merges and scores the models of all seeds."""

  def __init__(
    self,
    config: configs.Config,
    suite: suite_lib.Suite,
    problems: layouts.Batch,
    trained: Any,
  ):
    self._config = config
    self._merges = {
      each.name: rows_lib.merge_of(each)
      for each in rows_lib.methods(config.methods)
    }
    self._wide: dict[tuple[str, int], Any] = {}  # Merges in float32.
    self._problems = problems
    self._accuracy = jax.jit(suite.accuracy)
    names = config.models.tasks
    self._seeds = [
      (
        jax.tree.map(lambda x, s=seed: x[s], trained['base']),
        {
          name: jax.tree.map(lambda x, s=seed, i=i: x[s, i], trained['experts'])
          for i, name in enumerate(names)
        },
      )
      for seed in range(config.models.seeds)
    ]

  def yardsticks(self) -> Record:
    """Exact answers of bases, and of experts on their own tasks."""
    bases, experts = [], []
    for base, each in self._seeds:
      bases.append(self._accuracy(base, self._problems).mean())
      own = [
        self._accuracy(expert, self._problems)[i]
        for i, expert in enumerate(each.values())
      ]
      experts.append(jnp.mean(jnp.stack(own)))
    return {
      'test/base': np.stack(bases).astype(np.float64),
      'test/experts': np.stack(experts).astype(np.float64),
    }

  def score(self, row: rows_lib.Row, method: str) -> Record:
    """Merges in one row; an empty record if it has no such arithmetic."""
    key = jax.random.fold_in(
      jax.random.key(self._config.models.seed), zlib.crc32(method.encode())
    )
    exact, error = [], []
    for seed, (base, experts) in enumerate(self._seeds):
      own = jax.random.fold_in(key, seed)
      merge = functools.partial(self._merges[method], own)
      if (method, seed) not in self._wide:
        self._wide[method, seed] = merge(base, experts)
      wide = self._wide[method, seed]
      try:
        found = wide if row.fmt is None else row.run(merge, base, experts)
      except NotImplementedError:
        if row.group != 'merge':
          raise
        return {}  # An operation such as an SVD has no roundings of its own.
      exact.append(self._accuracy(found, self._problems).mean())
      error.append(_off(base, wide, found))
    return {
      'test/exact': np.stack(exact).astype(np.float64),
      'test/error': np.stack(error).astype(np.float64),
    }


@jax.jit
def _off(base: Any, wide: Any, found: Any) -> jax.Array:
  """How far a merge is off, as a share of the change that it should make."""
  change = merging.tree.norm(merging.tree.task_vector(wide, base))
  return merging.tree.norm(merging.tree.task_vector(found, wide)) / change
