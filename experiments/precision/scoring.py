"""How many answers are right in an arithmetic, and what it costs."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import transformer
from experiments.laboratory import problems as problems_lib
from experiments.precision import rows as rows_lib
import numerics


class Scores(NamedTuple):
  """What is counted in one arithmetic, of every seed.

  Attributes:
    exact: Share of answers that are right as a whole, `f64[seeds]`. One with a
      logit that is no number is wrong.
    tokens: Share of right tokens of answers, given those before, `f64[seeds]`.
    finite: Share of answers all of whose logits are finite, `f64[seeds]`.
    error: The largest difference of a logit of an answer from float32's, as a
      share of the largest magnitude there; infinities and NaN not counted,
      `f64[seeds]`.
  """

  exact: np.ndarray
  tokens: np.ndarray
  finite: np.ndarray
  error: np.ndarray

  @classmethod
  def read(cls, record: Mapping[str, Any]) -> Self:
    """Reads a line of `metrics.jsonl`."""
    return cls(*(np.asarray(record[f'test/{name}']) for name in cls._fields))


class Scorer:
  """Models that were trained in float32, to be scored in other arithmetics."""

  def __init__(
    self,
    problems: problems_lib.Problems,
    params: transformer.Params,
    *,
    seeds: int,
    seed: int,
  ):
    """Runs all models in float32.

    Args:
      problems: What they answer.
      params: Theirs, with a leading axis of seeds.
      seeds: How many there are.
      seed: What stochastic rounding draws from.
    """
    self._problems = problems
    self._batch = flattened(problems)
    self._models = [
      jax.tree.map(lambda x, i=i: x[i], params) for i in range(seeds)
    ]
    root = jax.random.fold_in(jax.random.key(seed), 3)
    self._keys = jax.random.split(root, seeds)
    forward = jax.jit(problems.logits)
    self._wide = [forward(p, self._batch.tokens) for p in self._models]
    self._count = jax.jit(count)

  def scores(self, row: rows_lib.Row) -> Scores:
    """Runs all models in an arithmetic, one after the other in one program."""
    forward = numerics.emulate(self._problems.logits, row.policy)
    found = []
    for params, wide, key in zip(
      self._models, self._wide, self._keys, strict=True
    ):
      more = {'rounding_key': key} if row.policy.draws else {}
      logits = forward(params, self._batch.tokens, **more)
      found.append(self._count(logits, wide, self._batch))
    return Scores(*(np.stack(each) for each in zip(*found, strict=True)))


def flattened(problems: problems_lib.Problems) -> layouts.Batch:
  """The problems of all levels, none of them twice."""
  return jax.tree.map(
    lambda x: jnp.concatenate(
      [x[level, :size] for level, size in enumerate(problems.sizes)]
    ),
    problems.test,
  )


def count(
  logits: jax.Array, wide: jax.Array, batch: layouts.Batch
) -> tuple[jax.Array, ...]:
  """The entries of `Scores`, of one model.

  Args:
    logits: f32[batch, length - 1, vocabulary], in some arithmetic.
    wide: The same in float32.
    batch: The true lines.

  Returns:
    Scalars.
  """
  answer = batch.answer[:, 1:]
  number = jnp.isfinite(logits)
  finite = jnp.all(jnp.all(number, axis=-1) | ~answer, axis=-1)
  exact = evaluation.exact_match(logits, batch) & finite
  right = jnp.argmax(logits, axis=-1) == batch.tokens[:, 1:]
  right = right & jnp.all(number, axis=-1)
  compared = answer[..., None] & number
  error = jnp.max(jnp.where(compared, jnp.abs(logits - wide), 0.0))
  largest = jnp.max(jnp.where(answer[..., None], jnp.abs(wide), 0.0))
  return (
    jnp.mean(exact.astype(jnp.float32)),
    jnp.mean(right.astype(jnp.float32), where=answer),
    jnp.mean(finite.astype(jnp.float32)),
    error / largest,
  )


def energy(
  problems: problems_lib.Problems,
  params: transformer.Params,
  row: rows_lib.Row,
) -> float | None:
  """Microjoules of the products of matrices, a problem.

  With the prices of Horowitz, which know no number of 8 bits but integers. An
  L-Mul costs as much as an addition of integers of 32 bits, which it is.

  Args:
    problems: What is answered.
    params: Of one model, or shapes of them.
    row: The arithmetic.

  Returns:
    None if a product has no price.
  """
  tokens = problems.test.tokens[0, :1]
  counted = numerics.count(problems.logits, row.policy)(params, tokens)
  prices = dict(numerics.HOROWITZ_45NM)
  adding = prices | {('multiply', 'float', 32): prices['add', 'int', 32]}
  total = 0.0
  for cost in counted.rows:
    if cost.operation.primitive == 'dot_general':
      lmul = row.with_lmul(cost.operation.scope)
      picojoules = cost.energy(adding if lmul else prices)
      if picojoules is None:
        return None
      total += picojoules
  return total / 1e6
