"""Training a population to the end of a stage, whatever interrupts it."""

from collections.abc import Callable
from collections.abc import Mapping
from pathlib import Path
import shutil
from typing import Any

import jax
import jax.numpy as jnp

from arithmetic import training
from experiments.runtime import checkpoints
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib

Params = Any

# From the states of all members and a number of steps to their states after
# them, and losses f32[members, steps].
Train = Callable[[training.State, int], tuple[training.State, jax.Array]]

# From the parameters of all members to `split/metric` and its values.
Measure = Callable[[Params], Mapping[str, Any]]


class Stages:
  """The stages of a run, each of which trains a population.

  While a stage trains, `checkpoints/STAGE` holds its latest state; once it is
  done, `models/STAGE` holds the parameters and the state is removed.
  """

  def __init__(
    self,
    *,
    directory: Path,
    metrics: metrics_lib.JsonlWriter,
    progress: progress_lib.Progress,
    every: int,
  ):
    """Nothing is read or written yet.

    Args:
      directory: Where `checkpoints/` and `models/` lie.
      metrics: Takes the losses.
      progress: Has the stages.
      every: Steps between two checkpoints.
    """
    self._directory = directory
    self._metrics = metrics
    self._progress = progress
    self._every = every

  def run(
    self,
    stage: str,
    params: Params,
    steps: int,
    *,
    begin: Callable[[Params], training.State],
    train: Train,
    shape: tuple[int, ...],
    measure: Measure | None = None,
  ) -> Params:
    """Trains a population, or restores it.

    Args:
      stage: Its name.
      params: Where the members begin, with a leading axis of members.
      steps: How many, in all.
      begin: From those to states.
      train: Takes some steps; it is called at most `every` of them at a time.
      shape: How members are listed in the metrics, their number in all.
      measure: What is recorded with every loss besides, if anything.

    Returns:
      The members' parameters at the end; with their variables, if they have
      some.
    """
    unfinished = self._directory / 'checkpoints' / stage
    finished = self._directory / 'models' / stage
    variables = jax.eval_shape(begin, params).variables
    with checkpoints.Checkpoints(finished, keep=1) as models:
      if models.latest() is None:
        with checkpoints.Checkpoints(unfinished, keep=1) as saved:
          state = begin(params)
          state = self._continue(
            stage, state, steps, train, shape, saved, measure
          )
        models.save(steps, _learned(state.params, state.variables))
      else:
        self._progress.begin(stage, 1.0)
      shutil.rmtree(unfinished, ignore_errors=True)
      return models.restore(_learned(params, variables)).tree

  def _continue(
    self,
    stage: str,
    state: training.State,
    steps: int,
    train: Train,
    shape: tuple[int, ...],
    saved: checkpoints.Checkpoints,
    measure: Measure | None,
  ) -> training.State:
    """Trains from the latest checkpoint, if there is one, to the end."""
    done = 0
    if saved.latest() is not None:
      done, state, _ = saved.restore(state)
    self._metrics.rewind(stage, done)
    self._progress.begin(stage, done / steps)
    while done < steps:
      chunk = min(self._every, steps - done)
      state, losses = train(state, chunk)
      done += chunk
      loss = jnp.mean(losses, axis=1).reshape(shape)
      found = measure(state.params) if measure else {}
      self._metrics.write(stage, done, {'train/loss': loss, **found})
      if done < steps:
        saved.save(done, state)
      self._progress.update(done / steps, f'loss {float(jnp.mean(loss)):.3f}')
    return state


def _learned(params: Params, variables: training.Variables) -> Any:
  """What is kept at the end."""
  return params if variables is None else (params, variables)
