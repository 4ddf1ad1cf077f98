"""Scores every row, and remembers what it has scored.

Each record of `metrics.jsonl` in stage `scores` is one model on one split.
Records are read back when a run continues, so that nothing is scored twice and
every number is the one first measured.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import layouts
from experiments.arithmerge import methods as method_lib
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
import merging
import numerics

Experts = Mapping[str, Any]

STAGE = 'scores'
YARDSTICKS = ('base', 'experts', 'ensemble of experts', 'joint training')

# Formats in which the best merge's task vectors are stored, one scale a row.
STORAGE = {
  '8 bits': numerics.float8_e4m3fn,
  '4 bits': numerics.float4_e2m1fn,
}


@dataclasses.dataclass(frozen=True)
class Scores:
  """Accuracies of all rows.

  Attributes:
    test: By row: f64[seeds, tasks], coefficients chosen on validation.
    stored: By storage: the best method's, from task vectors in few bits.
    default: By method: the same with the default setting.
    validation_scores: By method: normalised, f64[seeds, settings].
    validation_base: The base's, f64[seeds].
    chosen: By method: the index of the chosen setting for each seed.
    cosines: f64[seeds, tasks, tasks], between task vectors.
    norms: f64[seeds, tasks], of task vectors relative to the base's.
    best: The method with the best score on validation.
  """

  test: Mapping[str, np.ndarray]
  stored: Mapping[str, np.ndarray]
  default: Mapping[str, np.ndarray]
  validation_scores: Mapping[str, np.ndarray]
  validation_base: np.ndarray
  chosen: Mapping[str, tuple[int, ...]]
  cosines: np.ndarray
  norms: np.ndarray
  best: str

  def normalized(self, accuracy: np.ndarray) -> np.ndarray:
    """Accuracy over the expert's, averaged over tasks: f64[seeds]."""
    return normalized(accuracy, self.test['experts'])


def normalized(accuracy: np.ndarray, experts: np.ndarray) -> np.ndarray:
  """Mean over tasks of accuracy divided by the single expert's.

  Args:
    accuracy: [..., tasks].
    experts: [..., tasks], the experts' accuracies on the same problems.

  Returns:
    [...]. A task that its expert cannot do at all counts for nothing.

  Examples:
    >>> normalized(np.array([[0.2, 0.9]]), np.array([[0.8, 0.9]]))
    array([0.625])
  """
  able = experts > 0
  ratio = np.where(able, accuracy / np.where(able, experts, 1.0), 0.0)
  return ratio.sum(axis=-1) / np.maximum(able.sum(axis=-1), 1)


def num_evaluations(config: configs.Config) -> int:
  """How often a model is scored on a split."""
  count = len(config.tasks)
  settings = sum(len(m.settings) for m in method_lib.METHODS)
  # Experts and base on both splits; joint training and ensemble on one.
  yardsticks = 2 * (count + 1) + 2
  merges = settings + 2 * len(method_lib.METHODS) + len(STORAGE)
  return config.seeds * (yardsticks + merges)


class Scorer:
  """Scores models, each once."""

  def __init__(
    self,
    config: configs.Config,
    suite: suite_lib.Suite,
    problems: Mapping[str, layouts.Batch],
    *,
    metrics: metrics_lib.JsonlWriter,
    progress: progress_lib.Progress,
  ):
    self._config = config
    self._problems = problems
    self._accuracy = jax.jit(suite.accuracy)
    self._ensemble = jax.jit(suite.ensemble_accuracy)
    self._programs: dict[str, Callable[..., Any]] = {}
    self._metrics = metrics
    self._progress = progress
    self._known = {
      name: np.asarray(accuracy)
      for record in metrics.records(STAGE)
      for name, accuracy in record.items()
      if name not in ('stage', 'step')
    }
    self._total = num_evaluations(config)
    progress.begin(STAGE, min(1.0, len(self._known) / self._total))

  def run(self, models: Mapping[str, Any]) -> Scores:
    """Scores yardsticks, then merges, then the best merge in few bits.

    Args:
      models: From `models.Trainer`.

    Returns:
      All scores.
    """
    seeds = range(self._config.seeds)
    by_seed = [_take(dict(models), s) for s in seeds]
    test: dict[str, np.ndarray] = {}

    def score(row: str, of: str, split: str) -> np.ndarray:
      return np.stack(
        [
          self._score(f'{row}/{s}', split, self._accuracy, by_seed[s][of])
          for s in seeds
        ]
      )

    test['base'] = score('base', 'base', 'test')
    test['joint training'] = score('joint training', 'joint', 'test')
    experts = {
      split: np.stack([self._experts(s, split, by_seed[s]) for s in seeds])
      for split in ('validation', 'test')
    }
    test['experts'] = experts['test']
    test['ensemble of experts'] = np.stack(
      [
        self._score(
          f'ensemble/{s}', 'test', self._ensemble, by_seed[s]['experts']
        )
        for s in seeds
      ]
    )
    validation: dict[str, np.ndarray] = {}
    default: dict[str, np.ndarray] = {}
    chosen: dict[str, tuple[int, ...]] = {}
    for method in method_lib.METHODS:
      merged = functools.partial(self._merged, method, by_seed)
      tried = np.stack(
        [
          [merged(s, setting, 'validation') for setting in method.settings]
          for s in seeds
        ]
      )
      tried_scores = normalized(tried, experts['validation'][:, None])
      picks = tuple(int(i) for i in tried_scores.argmax(axis=1))
      validation[method.name], chosen[method.name] = tried_scores, picks
      test[method.name] = np.stack(
        [merged(s, method.settings[picks[s]], 'test') for s in seeds]
      )
      default[method.name] = np.stack(
        [merged(s, method.default, 'test') for s in seeds]
      )

    best = max(
      method_lib.METHODS,
      key=lambda method: validation[method.name].max(axis=1).mean(),
    )
    stored: dict[str, np.ndarray] = {}
    for bits, fmt in STORAGE.items():
      store = jax.jit(functools.partial(_stored, fmt=fmt))
      restored = [
        {**model, 'experts': store(model['base'], model['experts'])}
        for model in by_seed
      ]
      picks = chosen[best.name]
      stored[bits] = np.stack(
        [
          self._merged(
            best, restored, s, best.settings[picks[s]], 'test', note=bits
          )
          for s in seeds
        ]
      )
    self._progress.update(1.0)
    cosines, norms = zip(
      *(_geometry(*self._mergeable(model)) for model in by_seed), strict=True
    )
    return Scores(
      test=test,
      stored=stored,
      default=default,
      validation_scores=validation,
      validation_base=normalized(
        score('base', 'base', 'validation'), experts['validation']
      ),
      chosen=chosen,
      cosines=np.stack(cosines),
      norms=np.stack(norms),
      best=best.name,
    )

  def _experts(
    self, seed: int, split: str, model: Mapping[str, Any]
  ) -> np.ndarray:
    """Each expert on its own task: f64[tasks]."""
    return np.stack(
      [
        self._score(
          f'expert {name}/{seed}',
          split,
          self._accuracy,
          _take(model['experts'], i),
        )[i]
        for i, name in enumerate(self._config.tasks)
      ]
    )

  def _mergeable(self, model: Mapping[str, Any]) -> tuple[Any, Experts]:
    """A seed's base, and its experts by the name of their task."""
    return model['base'], {
      name: _take(model['experts'], i)
      for i, name in enumerate(self._config.tasks)
    }

  def _merged(
    self,
    method: method_lib.Method,
    models: Sequence[Mapping[str, Any]],
    seed: int,
    setting: method_lib.Setting,
    split: str,
    *,
    note: str = '',
  ) -> np.ndarray:
    """Scores one merge of one seed."""

    def score(problems: Any) -> jax.Array:
      if method.name not in self._programs:
        self._programs[method.name] = _program(method)
      key = jax.random.fold_in(
        jax.random.key(self._config.seed), zlib.crc32(method.name.encode())
      )
      merged = self._programs[method.name](
        *self._mergeable(models[seed]),
        dict(setting),
        jax.random.fold_in(key, seed),
      )
      return self._accuracy(merged, problems)

    row = f'{method.name}, {note}' if note else method.name
    return self._remember(
      f'{row} {json.dumps(dict(setting))}/{seed}', split, score
    )

  def _score(
    self, name: str, split: str, accuracy: Callable[..., Any], params: Any
  ) -> np.ndarray:
    return self._remember(name, split, functools.partial(accuracy, params))

  def _remember(
    self, name: str, split: str, score: Callable[[Any], jax.Array]
  ) -> np.ndarray:
    """Runs `score` on a split's problems unless its record exists."""
    key = f'{split}/{name}'
    if key not in self._known:
      value = np.asarray(score(self._problems[split]), np.float64)
      self._metrics.write(STAGE, len(self._known), {key: value})
      self._known[key] = value
      self._progress.update(
        min(1.0, len(self._known) / self._total), name.rpartition('/')[0]
      )
    return self._known[key]


@jax.jit
def _take(tree: Any, index: int) -> Any:
  """One member of a tree whose leaves have a leading axis."""
  return jax.tree.map(lambda x: x[index], tree)


def _program(method: method_lib.Method) -> Callable[..., Any]:
  """A merge as one compiled function of models, setting and key."""

  @jax.jit
  def program(base: Any, experts: Experts, setting: Any, key: jax.Array):
    return merging.merge(method.build(key=key, **setting), base, experts)

  return program


def _stored(base: Any, experts: Any, *, fmt: numerics.Format) -> Any:
  """Experts restored from task vectors that were stored in a format.

  Args:
    base: The base.
    experts: With a leading axis of experts.
    fmt: The format of every entry; each row of a tensor has its scale.

  Returns:
    A tree like `experts`.
  """

  def restore(leaf: jax.Array, experts: jax.Array) -> jax.Array:
    def one(expert: jax.Array) -> jax.Array:
      return leaf + numerics.fake_quantize(expert - leaf, fmt, axis=-1)

    return jax.lax.map(one, experts)

  return jax.tree.map(restore, base, experts)


def _geometry(
  base: Any, experts: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines between task vectors, and their norms relative to the base's."""
  vectors = [merging.tree.task_vector(x, base) for x in experts.values()]
  cosines = [[merging.tree.cosine(a, b) for b in vectors] for a in vectors]
  norms = [merging.tree.norm(v) / merging.tree.norm(base) for v in vectors]
  return (
    np.asarray(jnp.asarray(cosines), np.float64),
    np.asarray(jnp.asarray(norms), np.float64),
  )
