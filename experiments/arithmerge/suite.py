"""The problems of a run: what is drawn for training, what is scored."""

from collections.abc import Callable
from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import tasks as task_lib
from arithmetic import tokenizers
from arithmetic import transformer
from experiments.configs import arithmerge as configs
from experiments.runtime import problems as problems_lib
import merging

# Operands take the width of the largest level and are written least significant
# digit first, so that a digit of one weight always stands in one place.
LAYOUT = layouts.Layout(
  operand_order='reversed', answer_order='reversed', pad=True
)

Lines = tuple[layouts.Batch, jax.Array]


class Suite:
  """Tasks, lines and the decoder of one configuration.

  Attributes:
    tasks: The tasks, in the order of the configuration.
    model: The decoder's shape.
  """

  def __init__(self, config: configs.Config):
    self._config = config
    self.tasks = task_lib.get_all(config.tasks)
    self._tokenizer = tokenizers.DigitTokenizer(
      ''.join(task.symbol for task in self.tasks)
    )
    self._length = max(LAYOUT.length(task, config.level) for task in self.tasks)
    self.model = transformer.Config(
      vocabulary_size=self._tokenizer.vocabulary_size,
      max_length=self._length,
      layers=config.model.layers,
      heads=config.model.heads,
      width=config.model.width,
      positions=config.model.positions,
      dtype=config.model.dtype,
    )

  def logits(self, params: transformer.Params, tokens: jax.Array) -> jax.Array:
    """Logits after each token but the last: f32[batch, length - 1, tokens]."""
    return transformer.apply(params, tokens[:, :-1], config=self.model)

  def loss(self, params: transformer.Params, lines: Lines) -> jax.Array:
    """Cross-entropy of the answers of problems that are for training."""
    batch, for_training = lines
    logits = self.logits(params, batch.tokens)
    return evaluation.answer_loss(logits, batch, for_training)

  def linear_logits(
    self,
    base: transformer.Params,
    params: transformer.Params,
    tokens: jax.Array,
  ) -> jax.Array:
    """The same of the decoder that is linearised at the base."""
    return merging.tangent.linearize(self.logits, base)(params, tokens)

  def linear_loss(
    self, base: transformer.Params, params: transformer.Params, lines: Lines
  ) -> jax.Array:
    """The same for the decoder that is linearised at the base."""
    batch, for_training = lines
    logits = self.linear_logits(base, params, batch.tokens)
    return evaluation.answer_loss(logits, batch, for_training)

  def symmetries(self, params: transformer.Params) -> merging.symmetry.Spec:
    """What of the decoder can be written otherwise without changing it."""
    rotary = self.model.positions == 'rotary'
    return merging.symmetry.decoder(
      params,
      blocks=r'blocks_\d+',
      perceptron={'writers': ['up'], 'readers': ['down']},
      attention={
        'heads': self.model.heads,
        'packed': 'attention/query_key_value',
        'output': 'attention/output',
        'positions': 'rotary' if rotary else 'none',
      },
    )

  def draw_task(
    self, task: task_lib.Task, training: configs.Training
  ) -> Callable[[jax.Array], Lines]:
    """A function from a key to a batch of one task."""

    def draw(key: jax.Array) -> Lines:
      return self._lines(task, key, training.batch_size, training)

    return draw

  def draw_mixture(
    self, training: configs.Training
  ) -> Callable[[jax.Array], Lines]:
    """A function from a key to a batch with the same share of every task."""
    share = training.batch_size // len(self.tasks)

    def draw(key: jax.Array) -> Lines:
      keys = jax.random.split(key, len(self.tasks))
      parts = [
        self._lines(task, key, share, training)
        for task, key in zip(self.tasks, keys, strict=True)
      ]
      return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    return draw

  def problems(self, split: str) -> layouts.Batch:
    """The problems of a split that are scored, the same for every seed.

    Args:
      split: `validation` or `test`.

    Returns:
      A batch of shape [tasks, problems], all different; none of them is ever
      trained on.

    Raises:
      UsageError: If a task has fewer problems.
    """
    count = {
      'validation': self._config.validation_size,
      'test': self._config.test_size,
    }[split]
    key = jax.random.fold_in(
      jax.random.key(self._config.seed), task_lib.SPLITS.index(split)
    )
    return jax.tree.map(
      lambda *xs: jnp.stack(xs),
      *(
        self._write(
          task,
          problems_lib.held_out(
            task,
            split,
            count,
            level_weights=self._config.test_level_weights,
            key=jax.random.fold_in(key, i),
          ),
        )
        for i, task in enumerate(self.tasks)
      ),
    )

  def accuracy(
    self, params: transformer.Params, problems: layouts.Batch
  ) -> jax.Array:
    """The share of problems answered exactly: f32[tasks]."""
    return _exact(functools.partial(self.logits, params), problems)

  def linear_accuracy(
    self,
    base: transformer.Params,
    params: transformer.Params,
    problems: layouts.Batch,
  ) -> jax.Array:
    """The same for the decoder that is linearised at the base."""
    logits = functools.partial(self.linear_logits, base, params)
    return _exact(logits, problems)

  def ensemble_accuracy(
    self, members: transformer.Params, problems: layouts.Batch
  ) -> jax.Array:
    """The same for the mean of the members' logits.

    Args:
      members: Parameters with a leading axis of models.
      problems: From `problems`.

    Returns:
      f32[tasks].
    """

    def logits(tokens: jax.Array) -> jax.Array:
      each = jax.lax.map(lambda p: self.logits(p, tokens), members)
      return jnp.mean(each, axis=0)

    return _exact(logits, problems)

  def _lines(
    self,
    task: task_lib.Task,
    key: jax.Array,
    count: int,
    training: configs.Training,
  ) -> Lines:
    operands = task.sample(key, count, level_weights=training.level_weights)
    return self._write(task, operands), task_lib.split_of(operands, 'train')

  def _write(
    self, task: task_lib.Task, operands: Sequence[task_lib.Digits]
  ) -> layouts.Batch:
    return LAYOUT.write(
      task,
      tuple(operands),
      tokenizer=self._tokenizer,
      level=self._config.level,
      length=self._length,
    )


def _exact(
  logits: Callable[[jax.Array], jax.Array], problems: layouts.Batch
) -> jax.Array:
  """The share of problems of each task that a model answers exactly."""

  def one_task(batch: layouts.Batch) -> jax.Array:
    right = evaluation.exact_match(logits(batch.tokens), batch)
    return jnp.mean(right.astype(jnp.float32))

  return jax.lax.map(one_task, problems)
