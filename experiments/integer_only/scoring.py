"""How many answers are right in integers, and that they are integers."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import transformer
from experiments.configs import integer_only as configs
from experiments.integer_only import arithmetics
from experiments.integer_only import calibration
from experiments.integer_only import conversion
from experiments.integer_only import forward as forward_lib
from experiments.laboratory import problems as problems_lib
from experiments.precision import scoring
from numerics import integer


class Scorer:
  """Models that were trained in float32, to be quantised and scored."""

  def __init__(
    self,
    config: configs.Config,
    problems: problems_lib.Problems,
    params: transformer.Params,
  ):
    """Runs all models in float32, and calibrates them.

    Args:
      config: The run.
      problems: What they answer.
      params: Theirs, with a leading axis of seeds.
    """
    self._config = problems.model
    self._problems = problems
    self._batch = scoring.flattened(problems)
    self._models = [
      jax.tree.map(lambda x, i=i: x[i], params)
      for i in range(config.model.seeds)
    ]
    self._float = jax.jit(problems.logits)
    self._wide = [self._float(p, self._batch.tokens) for p in self._models]
    observe = jax.jit(
      functools.partial(calibration.observe, config=problems.model)
    )
    tokens = calibration_tokens(problems, config)
    self._ranges = [observe(p, tokens)[1] for p in self._models]
    self._count = jax.jit(scoring.count)

  def record(self, key: str) -> Mapping[str, Any]:
    """What a row has to remember: its scores, and what the proof counted."""
    row = arithmetics.ROWS[key]
    logits, operations = zip(*map(self._run, self._seeds(row)), strict=True)
    counted = [
      self._count(each, wide, self._batch)
      for each, wide in zip(logits, self._wide, strict=True)
    ]
    scores = scoring.Scores(*map(np.stack, zip(*counted, strict=True)))
    record = {f'test/{name}': x for name, x in scores._asdict().items()}
    if operations[0] is not None:
      record['operations'] = operations[0]
    return record

  def _seeds(self, row: arithmetics.Row):
    return [
      (row, params, ranges)
      for params, ranges in zip(self._models, self._ranges, strict=True)
    ]

  def _run(self, each) -> tuple[jax.Array, int | None]:
    """Logits of one model in float32, and how many operations are proved."""
    row, params, ranges = each
    tokens, how = self._batch.tokens, row.arithmetic
    if how is None:
      if row.weights:
        params = conversion.round_weights(params)
      return self._float(params, tokens), None
    model, floats = conversion.convert(params, ranges, self._config, how)
    run = functools.partial(
      forward_lib.forward, config=self._config, arithmetic=how
    )
    tokens = tokens[:, :-1]
    operations = None
    if how.integer_only:
      operations = sum(integer.check_integer_only(run, model, tokens).values())
      logits = run(model, tokens)
    else:
      logits = run(model, tokens, floats)
    return logits.astype(jnp.float32) * floats.logits, operations


def calibration_tokens(
  problems: problems_lib.Problems, config: configs.Config
) -> jax.Array:
  """Lines of the training split, i32[calibration, length - 1].

  They are drawn as those that were trained on; all seeds have the same.
  """
  draw = jax.jit(lambda key: problems.draw(key, None))
  key = jax.random.fold_in(jax.random.key(config.model.seed), 4)
  found: list[np.ndarray] = []
  while sum(map(len, found)) < config.calibration:
    key, new = jax.random.split(key)
    lines = draw(new)
    found.append(np.asarray(lines.batch.tokens)[np.asarray(lines.trained)])
  return jnp.asarray(np.concatenate(found)[: config.calibration, :-1])
