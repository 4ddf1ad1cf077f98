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
from experiments.arithmerge import disentanglement as disentanglement_lib
from experiments.arithmerge import method as method_lib
from experiments.arithmerge import methods as rows
from experiments.arithmerge import scores as scores_lib
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs
from experiments.runtime import metrics as metrics_lib
from experiments.runtime import progress as progress_lib
import merging
import numerics

Params = Any

STAGE = 'scores'

# Formats in which the best merge's task vectors are stored, one scale a row.
STORAGE = {
  '8 bits': numerics.float8_e4m3fn,
  '4 bits': numerics.float4_e2m1fn,
}


@dataclasses.dataclass(frozen=True)
class _Arena:
  """Experts to merge, and how what comes out is scored.

  Attributes:
    title: Heading of its rows.
    tasks: Names of the experts and of what is scored, in order.
    models: For each seed the base, and the experts by name.
    accuracy: `(base, params, split) -> f32[tasks]`.
    experts: By split, each expert on its own task: f64[seeds, tasks].
    prefix: What sets its records apart.
  """

  title: str
  tasks: tuple[str, ...]
  models: Sequence[tuple[Params, Mapping[str, Params]]]
  accuracy: Callable[[Params, Params, str], jax.Array]
  experts: Mapping[str, np.ndarray]
  prefix: str = ''


def num_evaluations(config: configs.Config) -> int:
  """How often a model is scored on a split, at most."""
  count = len(config.tasks)
  methods = rows.named(config.methods)
  merges = [_evaluations(method) for method in methods]
  if config.tangent:
    merges += [_evaluations(each) for each in methods if each.tangent]
    merges += [2 * count, len(method_lib.KINDS)]
  # Experts and base on both splits; joint training and ensemble on one.
  yardsticks = 2 * (count + 1) + 2
  return config.seeds * (yardsticks + sum(merges) + len(STORAGE))


def _evaluations(method: method_lib.Method) -> int:
  asked = 8 if method.search else 0
  return asked + (len(method.settings) if len(method.settings) > 1 else 0) + 2


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
    self._suite = suite
    self._seeds = range(config.seeds)
    self._methods = rows.named(config.methods)
    self._problems = problems
    self._accuracy = jax.jit(suite.accuracy)
    self._linear_accuracy = jax.jit(suite.linear_accuracy)
    self._ensemble = jax.jit(suite.ensemble_accuracy)
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

  def run(self, models: Mapping[str, Any]) -> scores_lib.Scores:
    """Scores yardsticks, then merges, then the best merge in few bits.

    Args:
      models: From `models.Trainer`.

    Returns:
      All scores.
    """
    by_seed = [_take(dict(models), s) for s in self._seeds]
    everything = self._arena(by_seed)
    base = self._by_split(
      lambda s, split: self._remember(
        f'base/{s}', split, lambda: self._plain(None, by_seed[s]['base'], split)
      )
    )
    yardsticks = {
      'base': base['test'],
      'experts': everything.experts['test'],
      'ensemble of experts': self._by_seed(
        lambda s: self._remember(
          f'ensemble/{s}',
          'test',
          lambda: self._ensemble(by_seed[s]['experts'], self._problems['test']),
        )
      ),
      'joint training': self._by_seed(
        lambda s: self._remember(
          f'joint training/{s}',
          'test',
          lambda: self._plain(None, by_seed[s]['joint'], 'test'),
        )
      ),
    }
    arenas = dict.fromkeys(method_lib.KINDS, everything)
    arenas['pair'] = self._pair(everything)
    blocks = {
      kind: self._block(
        dataclasses.replace(arenas[kind], title=title),
        [each for each in self._methods if each.kind == kind],
      )
      for kind, title in method_lib.KINDS.items()
    }
    blocks = {kind: block for kind, block in blocks.items() if block.results}
    disentanglement: dict[str, np.ndarray] = {}
    if self._config.tangent:
      blocks['tangent'] = self._tangent(by_seed, everything)
      disentanglement = {
        kind: self._disentanglement(by_seed[0], kind)
        for kind in ('experts', 'tangent')
      }
    stored = self._stored(everything, blocks['merge'])
    self._progress.update(1.0)
    cosines, norms = zip(
      *(_geometry(*pair) for pair in everything.models), strict=True
    )
    return scores_lib.Scores(
      yardsticks=yardsticks,
      blocks=blocks,
      stored=stored,
      validation_base=scores_lib.normalized(
        base['validation'], everything.experts['validation']
      ),
      cosines=np.stack(cosines),
      norms=np.stack(norms),
      disentanglement=disentanglement,
    )

  def _by_seed(self, score: Callable[..., np.ndarray]) -> np.ndarray:
    return np.stack([score(s) for s in self._seeds])

  def _by_split(
    self, score: Callable[..., np.ndarray]
  ) -> dict[str, np.ndarray]:
    return {
      split: self._by_seed(functools.partial(score, split=split))
      for split in ('validation', 'test')
    }

  def _plain(self, base: Params, params: Params, split: str) -> jax.Array:
    del base
    return self._accuracy(params, self._problems[split])

  def _linear(self, base: Params, params: Params, split: str) -> jax.Array:
    return self._linear_accuracy(base, params, self._problems[split])

  def _arena(
    self,
    by_seed: Sequence[Mapping[str, Any]],
    stage: str = 'experts',
    title: str = '',
    prefix: str = '',
  ) -> _Arena:
    """All experts of a stage."""
    tasks = self._config.tasks
    accuracy = self._linear if stage == 'tangent' else self._plain
    models = [
      (
        model['base'],
        {name: _take(model[stage], i) for i, name in enumerate(tasks)},
      )
      for model in by_seed
    ]
    experts = self._by_split(
      lambda s, split: self._own(
        f'{prefix}expert', s, models[s], accuracy, split
      )
    )
    return _Arena(title, tasks, models, accuracy, experts, prefix)

  def _own(
    self,
    row: str,
    seed: int,
    models: tuple[Params, Mapping[str, Params]],
    accuracy: Callable[[Params, Params, str], jax.Array],
    split: str,
  ) -> np.ndarray:
    """Each task by a model of its own: f64[tasks]."""
    base, members = models
    return np.stack(
      [
        self._remember(
          f'{row} {name}/{seed}',
          split,
          functools.partial(accuracy, base, member, split),
        )[self._config.tasks.index(name)]
        for name, member in members.items()
      ]
    )

  def _pair(self, arena: _Arena) -> _Arena:
    """The first two experts, scored on their tasks."""
    tasks = self._config.tasks[:2]
    problems = {
      split: jax.tree.map(lambda x: x[:2], batch)
      for split, batch in self._problems.items()
    }

    def accuracy(base: Params, params: Params, split: str) -> jax.Array:
      del base
      return self._accuracy(params, problems[split])

    return _Arena(
      title='',
      tasks=tasks,
      models=[
        (base, dict(zip(('first', 'second'), experts.values(), strict=False)))
        for base, experts in arena.models
      ],
      accuracy=accuracy,
      experts={k: x[:, :2] for k, x in arena.experts.items()},
      prefix='pair: ',
    )

  def _tangent(
    self, by_seed: Sequence[Mapping[str, Any]], plain: _Arena
  ) -> scores_lib.Block:
    """Experts trained, merged and scored in the tangent space of the base."""
    arena = self._arena(
      by_seed,
      'tangent',
      'merges of experts trained in the tangent space',
      'tangent: ',
    )
    methods = [each for each in self._methods if each.tangent]
    block = self._block(arena, methods)
    [method] = [each for each in methods if each.recipe == 'task_arithmetic']
    post_hoc = dataclasses.replace(
      plain, accuracy=self._linear, prefix='post hoc: '
    )
    result = self._method(method, post_hoc)
    others = {
      'single experts': arena.experts['test'],
      'task arithmetic, post hoc': result.test,
    }
    return dataclasses.replace(block, others=others)

  def _disentanglement(
    self, model: Mapping[str, Any], stage: str
  ) -> np.ndarray:
    """Of the first two tasks and the first seed: f64[a, a]."""
    experts = {
      name: _take(model[stage], i)
      for i, name in enumerate(self._config.tasks[:2])
    }
    return self._remember(
      f'disentanglement of {stage}/0',
      'test',
      lambda: disentanglement_lib.measure(
        self._suite,
        model['base'],
        experts,
        self._problems['test'],
        linear=stage == 'tangent',
      ),
    )

  def _block(
    self, arena: _Arena, methods: Sequence[method_lib.Method]
  ) -> scores_lib.Block:
    return scores_lib.Block(
      arena.title,
      arena.tasks,
      arena.experts['test'],
      {method.name: self._method(method, arena) for method in methods},
    )

  def _method(
    self, method: method_lib.Method, arena: _Arena
  ) -> scores_lib.Result:
    """Searches on validation, for each seed alone, and reports on test."""
    score = functools.partial(self._setting, method, arena)
    validation = np.zeros((self._config.seeds, 0))
    default = method.default
    if method.search is not None:
      chosen = [self._searched(method, arena, s) for s in self._seeds]
    elif len(method.settings) > 1 or method.kind == 'merge':
      tried = self._by_seed(
        lambda s: np.stack(
          [score(s, each, 'validation') for each in method.settings]
        )
      )
      validation = scores_lib.normalized(
        tried, arena.experts['validation'][:, None]
      )
      chosen = [method.settings[i] for i in validation.argmax(axis=1)]
    else:
      chosen = list(method.settings) * self._config.seeds
    return scores_lib.Result(
      test=self._by_seed(lambda s: score(s, chosen[s], 'test')),
      default=None
      if default is None
      else self._by_seed(lambda s: score(s, default, 'test')),
      validation=validation,
      chosen=tuple(chosen),
    )

  def _searched(
    self, method: method_lib.Method, arena: _Arena, seed: int
  ) -> method_lib.Setting:
    """What an ask/tell search of a method finds best on validation."""
    assert method.search is not None
    base, experts = arena.models[seed]
    own = arena.experts['validation'][seed]

    def score(setting: method_lib.Setting) -> float:
      accuracy = self._setting(method, arena, seed, setting, 'validation')
      return float(scores_lib.normalized(accuracy, own))

    single = {
      name: self._remember(
        f'{arena.prefix}expert {name}/{seed}',
        'validation',
        functools.partial(arena.accuracy, base, expert, 'validation'),
      )
      for name, expert in experts.items()
    }
    search = method.search(
      {k: float(scores_lib.normalized(x, own)) for k, x in single.items()}
    )
    return search.best(merging.search.maximize(search, score))[0]

  def _setting(
    self,
    method: method_lib.Method,
    arena: _Arena,
    seed: int,
    setting: method_lib.Setting,
    split: str,
    *,
    note: str = '',
  ) -> np.ndarray:
    """Scores one setting of a method for one seed: f64[tasks]."""
    base, experts = arena.models[seed]
    row = f'{arena.prefix}{method.name}{note} {json.dumps(dict(setting))}'

    def merged() -> Any:
      key = jax.random.fold_in(
        jax.random.key(self._config.seed), zlib.crc32(method.name.encode())
      )
      values: dict[str, Any] = {k: jnp.float32(x) for k, x in setting.items()}
      if method.by_scores:
        own = arena.experts['validation'][seed]
        values['scores'] = dict(zip(experts, own.tolist(), strict=True))
      if method.kind == 'protect':
        values['spec'] = self._suite.symmetries(base)
      made = method.build(key=jax.random.fold_in(key, seed), **values)
      return method.run(made, base, experts)

    if method.kind != 'restore':
      return self._remember(
        f'{row}/{seed}', split, lambda: arena.accuracy(base, merged(), split)
      )

    def score() -> np.ndarray:
      restored = merged()
      return np.stack(
        [
          np.asarray(arena.accuracy(base, restored[name], split))[i]
          for i, name in enumerate(experts)
        ]
      )

    return self._remember(f'{row}/{seed}', split, score)

  def _stored(
    self, arena: _Arena, block: scores_lib.Block
  ) -> Mapping[str, np.ndarray]:
    """The best merge of task vectors that were stored in few bits."""
    best = next(each for each in self._methods if each.name == block.best)
    chosen = block.results[best.name].chosen
    stored: dict[str, np.ndarray] = {}
    for bits, fmt in STORAGE.items():
      restore = jax.jit(functools.partial(_in_format, fmt=fmt))
      models = [
        (base, {name: restore(base, x) for name, x in experts.items()})
        for base, experts in arena.models
      ]
      restored = dataclasses.replace(arena, models=models)

      def score(seed: int, restored: _Arena, note: str) -> np.ndarray:
        return self._setting(
          best, restored, seed, chosen[seed], 'test', note=note
        )

      stored[bits] = self._by_seed(
        functools.partial(score, restored=restored, note=f', {bits}')
      )
    return stored

  def _remember(
    self, name: str, split: str, score: Callable[[], jax.Array | np.ndarray]
  ) -> np.ndarray:
    """Runs `score` unless its record exists."""
    key = f'{split}/{name}'
    if key not in self._known:
      value = np.asarray(score(), np.float64)
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


def _in_format(base: Params, expert: Params, *, fmt: numerics.Format) -> Params:
  """An expert restored from a task vector stored in a format, a scale a row."""
  return jax.tree.map(
    lambda x, y: x + numerics.fake_quantize(y - x, fmt, axis=-1), base, expert
  )


def _geometry(
  base: Params, experts: Mapping[str, Params]
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines between task vectors, and their norms relative to the base's."""
  vectors = [merging.tree.task_vector(x, base) for x in experts.values()]
  cosines = [[merging.tree.cosine(a, b) for b in vectors] for a in vectors]
  norms = [merging.tree.norm(v) / merging.tree.norm(base) for v in vectors]
  return (
    np.asarray(jnp.asarray(cosines), np.float64),
    np.asarray(jnp.asarray(norms), np.float64),
  )
