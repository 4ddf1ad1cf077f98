"""What came out, and what it says."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Self

import numpy as np

from experiments.configs import merge_precision as configs
from experiments.laboratory import results as laboratory
from experiments.merge_precision import rows as rows_lib
from experiments.precision import results as precision

_POINT = 0.01


class Scores(NamedTuple):
  """Of one merge in one row.

  Attributes:
    exact: Share of exact answers, a mean over the tasks, `f64[seeds]`.
    error: How far the change of the base is off, as a share of the change in
      float32, by norm over all weights, `f64[seeds]`.
  """

  exact: np.ndarray
  error: np.ndarray

  @classmethod
  def read(cls, record: Mapping[str, Any]) -> Self:
    """Reads a line of `metrics.jsonl`."""
    return cls(*(np.asarray(record[f'test/{name}']) for name in cls._fields))


class Result(NamedTuple):
  """What came out in one row.

  Attributes:
    row: Which.
    scores: By merge; None where an operation of it has no such arithmetic.
  """

  row: rows_lib.Row
  scores: Mapping[str, Scores | None]


class Results(NamedTuple):
  """What came out in all rows.

  Attributes:
    config: The run.
    yardsticks: Exact answers of the base, and of each expert on its own task, a
      mean over the tasks, `f64[seeds]`.
    rows: In the order of the table, float32 first.
  """

  config: configs.Config
  yardsticks: Mapping[str, np.ndarray]
  rows: tuple[Result, ...]

  def named(self, key: str) -> Result | None:
    """A row; None if it did not run."""
    return next((x for x in self.rows if x.row.key == key), None)

  def lost(self, result: Result, method: str) -> np.ndarray | None:
    """Exact answers that float32 has and a row has not, `f64[seeds]`."""
    wide, narrow = self.rows[0].scores[method], result.scores[method]
    if wide is None or narrow is None:
      return None
    return wide.exact - narrow.exact


def findings(results: Results) -> list[str]:
  """Sentences computed from the numbers."""
  base, experts = (
    laboratory.percent(results.yardsticks[name]) for name in ('base', 'experts')
  )
  merges = ', '.join(
    f'{method} {laboratory.percent(scores.exact)}'
    for method, scores in results.rows[0].scores.items()
    if scores is not None
  )
  return [
    f'In float32 the merges answer {merges} of the problems exactly; the base'
    f' {base}, experts {experts} of their own.',
    *_narrowest(results),
    *_vectors(results),
    *_arithmetic(results),
    *_sensitive(results),
  ]


def _most(results: Results, result: Result) -> float:
  """The largest loss of any merge, a mean over seeds."""
  lost = (results.lost(result, method) for method in result.scores)
  return max(float(each.mean()) for each in lost if each is not None)


def _of(results: Results, group: str) -> Sequence[Result]:
  return [x for x in results.rows if x.row.group == group]


def _narrowest(results: Results) -> list[str]:
  """How few bits are enough, by what is stored in them."""
  said = []
  for group in ('models', 'vectors', 'result'):
    rows = _of(results, group)
    kept = [x for x in rows if _most(results, x) <= _POINT]
    if not rows:
      continue
    if not kept:
      said.append(
        f'With {rows_lib.GROUPS[group]} in another format, no format keeps all'
        ' merges within a point of float32.'
      )
      continue
    best = min(kept, key=lambda x: x.row.bits)
    narrower = sorted(
      {x.row.bits for x in rows if x.row.bits < best.row.bits}, reverse=True
    )
    said.append(
      f'With {rows_lib.GROUPS[group]} in another format, {best.row.name} is the'
      f' narrowest that keeps all merges within a point of float32'
      + (f'; none of {narrower[0]:g} bits or fewer does.' if narrower else '.')
    )
  return said


def _vectors(results: Results) -> list[str]:
  """Whether storing differences is better than storing models."""
  said = []
  for name in ('int8', 'int4'):
    models = results.named(f'models/{name}')
    vectors = results.named(f'vectors/{name}')
    if models is None or vectors is None:
      continue
    gains = [
      a - b
      for method in models.scores
      if (a := results.lost(models, method)) is not None
      and (b := results.lost(vectors, method)) is not None
    ]
    said.append(
      f'In {name}, task vectors instead of models keep'
      f' {precision.points(np.mean(gains, axis=0))} more, a mean over the'
      f' merges; the change of the base is off by {_off(vectors):.1f} % instead'
      f' of {_off(models):.1f} %.'
    )
  return said


def _off(result: Result) -> float:
  """How far changes are off in percent, a mean over merges and seeds."""
  known = [scores for scores in result.scores.values() if scores is not None]
  return 100 * float(np.mean([scores.error.mean() for scores in known]))


def _arithmetic(results: Results) -> list[str]:
  """What it costs to merge in narrow arithmetic, as with `dtype: bfloat16`."""
  said = []
  for result in _of(results, 'merge'):
    lost = '; '.join(
      f'{method} {precision.points(each)}, the change off by'
      f' {100 * scores.error.mean():.1f} %'
      for method, scores in result.scores.items()
      if scores is not None
      and (each := results.lost(result, method)) is not None
    )
    said.append(f'Merged in {result.row.name}, are lost: {lost}.')
  return said


def _sensitive(results: Results) -> list[str]:
  """Which merge changes most where its task vectors are rounded."""
  errors: dict[str, list[float]] = {}
  for result in _of(results, 'vectors'):
    for method, scores in result.scores.items():
      if scores is not None:
        errors.setdefault(method, []).append(float(scores.error.mean()))
  if len(errors) < 2:
    return []
  means = {method: 100 * np.mean(each) for method, each in errors.items()}
  worst = max(means, key=lambda method: means[method])
  best = min(means, key=lambda method: means[method])
  return [
    f'Over all formats of task vectors, {worst} changes most'
    f' ({means[worst]:.1f} %) and {best} least ({means[best]:.1f} %).'
  ]
