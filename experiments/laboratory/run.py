"""One run of the laboratory, from training to the page."""

from collections.abc import Callable
import functools
import os
from typing import Any

import jax
import numpy as np
import optax

from arithmetic import population
from arithmetic import training
from arithmetic import transformer
from experiments.configs import laboratory as configs
from experiments.laboratory import papers
from experiments.laboratory import problems as problems_lib
from experiments.laboratory import report
from experiments.laboratory import results as results_lib
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
  """Trains and scores every variant; continues what an earlier run left.

  Args:
    config: The run.
    directory: Where everything it leaves lies.

  Returns:
    The table.

  Raises:
    UsageError: If the directory holds something else, or a variant is wrong.
  """
  config = config_lib.canonical(config)
  variants = configs.variants(config)
  # Before anything is written: all that there is to be wrong with a variant.
  problems = [problems_lib.Problems(each.config) for each in variants]
  names = [f'{i + 1:02}-{each.slug}' for i, each in enumerate(variants)]
  costs = {
    name: problem.cost for name, problem in zip(names, problems, strict=True)
  }
  with workdir_lib.open_workdir(directory, config) as workdir:
    progress = progress_lib.Progress(costs)
    workdir.tell_changes(progress.message)
    metrics = metrics_lib.JsonlWriter(workdir.path / 'metrics.jsonl')
    for place, (name, variant, problem) in enumerate(
      zip(names, variants, problems, strict=True)
    ):
      if any(each['step'] == place for each in metrics.records(_SCORES)):
        progress.begin(name, 1.0)
        continue
      stages = stages_lib.Stages(
        directory=workdir.path,
        metrics=metrics,
        progress=progress,
        every=config.checkpoint_steps,
      )
      params = train(name, variant.config, problem, stages)
      scores = _score(problem, params, config.population)
      metrics.write(
        _SCORES,
        place,
        {f'test/{name}': value for name, value in scores._asdict().items()},
      )
    progress.close()
    results = results_lib.Results(
      config,
      tuple(
        results_lib.Result(
          variant,
          problem.sizes,
          problem.line(),
          **_scores_of(metrics, place),
          **losses_of(metrics, name),
          learning=_learning_of(metrics, name),
        )
        for place, (name, variant, problem) in enumerate(
          zip(names, variants, problems, strict=True)
        )
      ),
    )
    return report.write(
      results,
      papers.STUDIES[config.study],
      directory=workdir.path,
      starts=workdir.starts,
    )


def train(
  stage: str,
  config: configs.Config,
  problems: problems_lib.Problems,
  stages: stages_lib.Stages,
  *,
  loss: training.LossFn | None = None,
  variables: Callable[[transformer.Params], training.Variables] | None = None,
) -> Any:
  """Trains all seeds of a variant, or restores them.

  Seeds begin with the same numbers in every variant, so that rows are paired.

  Args:
    stage: What the stage is called.
    config: The variant.
    problems: Its task.
    stages: Where it trains, and what an earlier run left.
    loss: As in `training.train`; that of the problems by default.
    variables: From parameters to what the loss changes besides, if it does.

  Returns:
    The parameters, with a leading axis of seeds; and the variables, if any.
  """
  root = jax.random.fold_in(jax.random.key(config.seed), 1)
  keys = jax.random.split(root, config.seeds)
  settings = config.training
  optimizer = _optimizer(settings)

  @jax.jit
  def begin(params, keys):
    def one(params, key):
      more = None if variables is None else variables(params)
      return training.start(params, optimizer, jax.random.fold_in(key, 1), more)

    return jax.vmap(one)(params, keys)

  @jax.jit
  def examples(keys):
    return jax.vmap(lambda key: problems.examples(jax.random.fold_in(key, 2)))(
      keys
    )

  @functools.partial(jax.jit, static_argnums=2)
  def train(examples, state, steps):
    def one(examples, state):
      return training.train(
        state,
        steps,
        loss_fn=loss or problems.loss,
        draw=lambda key, step: problems.draw(key, examples, step),
        optimizer=optimizer,
      )

    return population.population(one, config.population)(examples, state)

  @jax.jit
  def inspect(params, scored):
    return population.population(
      lambda each: problems.inspect(each, scored), config.population
    )(params)

  return stages.run(
    stage,
    jax.vmap(problems.with_auxiliary)(_initial(keys, problems.model)),
    settings.steps,
    begin=lambda params: begin(params, keys),
    train=functools.partial(train, examples(keys)),
    shape=(config.seeds,),
    measure=functools.partial(inspect, scored=problems.scored)
    if config.inspect
    else None,
  )


def _score(
  problem: problems_lib.Problems,
  params: transformer.Params,
  how: population.How,
) -> problems_lib.Scores:
  """Scores of all seeds, with a leading axis of seeds.

  What a model writes token by token is what one pass over the true line says,
  as long as it is right; so that only models that write work, which may differ
  from the true one and still lead to the answer, have to write, and those that
  go on from what they wrote wrong.
  """

  # Problems are arguments: XLA would compute with constants while it compiles.
  @jax.jit
  def score(params, scored):
    return population.population(
      lambda each: problem.scores(each, scored), how
    )(params)

  @jax.jit
  def write(params, test):
    return population.population(
      lambda each: problem.write_on(each, test), how
    )(params)

  scores = score(params, problem.scored)
  if problem.scored.strayed is not None:
    longest = jax.tree.map(lambda x: x[-1:], problem.test)
    written = np.asarray(write(params, longest))[:, 0]
    return scores._replace(own=np.stack([problem.steps(x) for x in written]))
  if not problem.works:
    return scores
  written = write(params, problem.test)
  exact = np.stack([problem.right(each) for each in np.asarray(written)])
  return scores._replace(exact=exact)


@functools.partial(jax.jit, static_argnums=1)
def _initial(keys: jax.Array, model: transformer.Config) -> transformer.Params:
  """Where the members of a population begin, the same program for all rows."""
  return jax.vmap(
    lambda key: transformer.init(jax.random.fold_in(key, 0), model)
  )(keys)


def _optimizer(settings: configs.Training) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if settings.warmup else settings.learning_rate,
    settings.learning_rate,
    settings.warmup,
    settings.steps,
    settings.learning_rate / 10,
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, b2=0.98, weight_decay=settings.weight_decay),
  )


def _scores_of(metrics, place):
  (record,) = (x for x in metrics.records(_SCORES) if x['step'] == place)
  return {
    name: np.asarray(record[f'test/{name}'])
    for name in problems_lib.Scores._fields
  }


def losses_of(
  metrics: metrics_lib.JsonlWriter, stage: str
) -> dict[str, np.ndarray]:
  """Reads `steps`, `i64[times]`, and `losses`, `f64[seeds, times]`."""
  records = metrics.records(stage)
  return {
    'steps': np.asarray([each['step'] for each in records]),
    'losses': np.asarray([each['train/loss'] for each in records]).T,
  }


def _learning_of(
  metrics: metrics_lib.JsonlWriter, stage: str
) -> np.ndarray | None:
  """Reads shares of right tokens, `f64[seeds, times, places]`, if kept."""
  found = [record.get('test/places') for record in metrics.records(stage)]
  if None in found:
    return None
  return np.moveaxis(np.asarray(found), 0, 1)
