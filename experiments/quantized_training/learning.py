"""How a model learns in an arithmetic, and how much it then knows."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Self

import jax
import numpy as np

from arithmetic import evaluation
from arithmetic import transformer
from experiments.laboratory import problems as problems_lib
from experiments.precision import scoring
from experiments.quantized_training import rows as rows_lib
import numerics


class Learner:
  """What a row's model computes, in training and after it.

  Attributes:
    loss: As `arithmetic.training.train` takes it.
    variables: From parameters to what the loss changes besides; None if it
      changes nothing.
  """

  def __init__(
    self, row: rows_lib.Row, problems: problems_lib.Problems, delay: int
  ):
    """Nothing is computed yet.

    Args:
      row: The arithmetic.
      problems: What is learned.
      delay: Steps before integers take the place of activations.
    """
    self._row = row
    self._problems = problems
    self.loss: Callable[..., Any] = self._emulated_loss
    self.variables: Callable[..., Any] | None = None
    if row.aware:
      self._aware = numerics.quantization_aware(problems.logits, delay=delay)
      self.loss = self._aware_loss
      self.variables = self._aware_variables
    policies = [
      each for each in (row.forward, row.backward) if each is not None
    ]
    self._draws = any(policy.draws for policy in policies)
    self._emulated = numerics.emulate(
      problems.logits, row.forward, backward=row.backward
    )

  def _emulated_loss(
    self, params: transformer.Params, lines: problems_lib.Lines
  ) -> jax.Array:
    more = {'rounding_key': lines.key} if self._draws else {}
    logits = self._emulated(params, lines.batch.tokens, **more)
    return evaluation.answer_loss(logits, lines.batch, lines.trained)

  def _aware_loss(
    self, params: transformer.Params, lines: problems_lib.Lines, ranges: Any
  ) -> tuple[jax.Array, Any]:
    logits, ranges = self._aware.apply(ranges, params, lines.batch.tokens)
    loss = evaluation.answer_loss(logits, lines.batch, lines.trained)
    return loss, ranges

  def _aware_variables(self, params: transformer.Params) -> Any:
    return self._aware.init(params, self._problems.test.tokens[0])

  def logits(self, learned: Any, tokens: jax.Array, key: jax.Array):
    """Logits in the row's arithmetic, of what `laboratory.run.train` gave."""
    if self._row.aware:
      params, ranges = learned
      return self._aware.apply(ranges, params, tokens, update=False)[0]
    more = {'rounding_key': key} if self._draws else {}
    return self._emulated(learned, tokens, **more)


class Scores(NamedTuple):
  """What is counted of one row, `f64[seeds]` each.

  Attributes:
    exact: Share of answers right as a whole, in the row's arithmetic.
    tokens: Share of right tokens of answers, given those before, likewise.
    wide: Share of answers right as a whole of the same weights in float32.
    error: The largest difference of a logit from that in float32, as a share of
      the largest magnitude.
  """

  exact: np.ndarray
  tokens: np.ndarray
  wide: np.ndarray
  error: np.ndarray

  @classmethod
  def read(cls, record: Mapping[str, Any]) -> Self:
    """Reads a line of `metrics.jsonl`."""
    return cls(*(np.asarray(record[f'test/{name}']) for name in cls._fields))


def score(
  learner: Learner,
  problems: problems_lib.Problems,
  learned: Any,
  *,
  seeds: int,
  seed: int,
) -> Scores:
  """Scores all seeds of a row, one after the other.

  Args:
    learner: The row's.
    problems: What is answered.
    learned: What was learned, with a leading axis of seeds.
    seeds: How many there are.
    seed: What stochastic rounding draws from.
  """
  batch = scoring.flattened(problems)
  root = jax.random.fold_in(jax.random.key(seed), 3)

  @jax.jit
  def one(learned, batch, key):
    params = learned[0] if learner.variables is not None else learned
    wide = problems.logits(params, batch.tokens)
    logits = learner.logits(learned, batch.tokens, key)
    exact, tokens, _, error = scoring.count(logits, wide, batch)
    return exact, tokens, scoring.count(wide, wide, batch)[0], error

  found = [
    one(jax.tree.map(lambda x, i=i: x[i], learned), batch, key)
    for i, key in enumerate(jax.random.split(root, seeds))
  ]
  return Scores(*(np.stack(each) for each in zip(*found, strict=True)))
