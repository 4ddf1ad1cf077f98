"""Training the models that are merged, stage by stage, resumably.

The seeds of a stage, and the experts of every seed, are one population: a
single program trains them all.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from arithmetic import population
from arithmetic import training
from arithmetic import transformer
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
from experiments.runtime import stages

Params = transformer.Params
STAGES = ('base', 'experts', 'joint', 'tangent')

# A step of a linearised model, in steps of the model.
_TANGENT_COST = 1.6


def costs(config: configs.Config) -> dict[str, float]:
  """The work of each stage, in lines trained on."""
  count = len(config.tasks)
  experts = (
    config.seeds * count * config.expert.steps * config.expert.batch_size
  )
  work: dict[str, float] = {
    'base': config.seeds * config.base.steps * config.base.batch_size,
    'experts': experts,
    'joint': config.seeds * config.joint_steps * config.expert.batch_size,
  }
  if config.tangent:
    work['tangent'] = _TANGENT_COST * experts
  return work


class Trainer:
  """Trains, or restores, the models of a run (see `stages.Stages`)."""

  def __init__(
    self,
    config: configs.Config,
    suite: suite_lib.Suite,
    *,
    directory: Path,
    metrics: metrics_lib.JsonlWriter,
    progress: progress_lib.Progress,
  ):
    """Nothing is read or written yet.

    Args:
      config: The run.
      suite: Its problems and its decoder.
      directory: Where `checkpoints/` and `models/` lie.
      metrics: Takes the losses.
      progress: Has the stages of `STAGES`.
    """
    self._config = config
    self._suite = suite
    self._stages = stages.Stages(
      directory=directory,
      metrics=metrics,
      progress=progress,
      every=config.checkpoint_steps,
    )

  def run(self) -> Mapping[str, Params]:
    """Goes through all stages.

    Returns:
      By stage: `base` and `joint` with a leading axis of seeds, `experts` and,
      if there are any, `tangent` with leading axes of seeds and tasks.
    """
    config, count = self._config, len(self._config.tasks)
    root = jax.random.fold_in(jax.random.key(config.seed), 1_000)
    keys = jax.random.split(root, config.seeds)
    initial = jax.jit(jax.vmap(functools.partial(_init, self._suite)))(keys)
    base = self._stage(
      'base', initial, _fold_in(keys, 1), config.base, config.base.steps
    )
    # One expert for each seed and task, seeds outermost.
    starts = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), base)
    expert_keys = jax.vmap(lambda key: jax.random.split(key, count))(
      _fold_in(keys, 2)
    ).reshape(-1)
    experts = self._stage(
      'experts', starts, expert_keys, config.expert, config.expert.steps
    )
    joint = self._stage(
      'joint', base, _fold_in(keys, 3), config.expert, config.joint_steps
    )
    trained = {'experts': experts}
    if config.tangent:
      trained['tangent'] = self._stage(
        'tangent', starts, expert_keys, config.expert, config.expert.steps
      )
    by_task = jax.tree.map(
      lambda x: x.reshape(config.seeds, count, *x.shape[1:]), trained
    )
    return {'base': base, 'joint': joint, **by_task}

  def _stage(
    self,
    stage: str,
    params: Params,
    keys: jax.Array,
    settings: configs.Training,
    steps: int,
  ) -> Params:
    """The parameters of a population at the end of its stage."""
    optimizer = _optimizer(settings, steps)
    begin = jax.vmap(lambda p, k: training.start(p, optimizer, k))
    return self._stages.run(
      stage,
      params,
      steps,
      begin=lambda params: jax.jit(begin)(params, keys),
      train=functools.partial(
        self._program(stage, settings, optimizer), params
      ),
      shape=(self._config.seeds, len(keys) // self._config.seeds),
    )

  def _program(
    self,
    stage: str,
    settings: configs.Training,
    optimizer: optax.GradientTransformation,
  ) -> Callable[..., tuple[training.State, jax.Array]]:
    """From where members begin, their states and steps to states and losses."""
    suite = self._suite
    if stage in ('experts', 'tangent'):
      draws = [suite.draw_task(task, settings) for task in suite.tasks]
    else:
      draws = [suite.draw_mixture(settings)]

    @functools.partial(jax.jit, static_argnums=2)
    def run(starts: Params, state: training.State, steps: int) -> Any:
      members = state.step.shape[0]

      def one(which: jax.Array, start: Params, state: training.State) -> Any:
        loss = suite.loss
        if stage == 'tangent':
          loss = functools.partial(suite.linear_loss, start)
        return training.train(
          state,
          steps,
          loss_fn=loss,
          draw=lambda key, _: jax.lax.switch(which, draws, key),
          optimizer=optimizer,
        )

      which = jnp.arange(members) % len(draws)
      train = population.population(one, self._config.population)
      return train(which, starts, state)

    return run


def _init(suite: suite_lib.Suite, key: jax.Array) -> Params:
  return transformer.init(jax.random.fold_in(key, 0), suite.model)


def _fold_in(keys: jax.Array, number: int) -> jax.Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _optimizer(
  settings: configs.Training, steps: int
) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if settings.warmup else settings.learning_rate,
    settings.learning_rate,
    settings.warmup,
    steps,
    settings.learning_rate / 10,
  )
  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98)
  )
