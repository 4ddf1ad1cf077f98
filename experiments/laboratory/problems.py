"""What one variant is trained on and scored on."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import decoding
from arithmetic import evaluation
from arithmetic import interpret
from arithmetic import layouts
from arithmetic import pieces
from arithmetic import positions
from arithmetic import tasks as task_lib
from arithmetic import tokenizers
from arithmetic import transformer
from experiments.configs import laboratory as configs
from experiments.laboratory import turns
from experiments.runtime import errors
from experiments.runtime import problems as problems_lib

Operands = tuple[task_lib.Digits, ...]

AUXILIARY = 'auxiliary'  # Its kernel, beside the decoder's parameters.

_OF_A_PAIR = 100  # Problems of a pair of lengths, at most.


class Lines(NamedTuple):
  """A batch to train on.

  Attributes:
    batch: The lines.
    operands: What they are about.
    trained: Which of them are for training, `bool[batch]`.
    key: What the model draws from.
  """

  batch: layouts.Batch
  operands: Operands
  trained: jax.Array
  key: jax.Array


class Scored(NamedTuple):
  """Problems that are scored, arguments of what scores them.

  Attributes:
    test: `[levels, test_size]`.
    counted: Which of them count, `bool[levels, test_size]`.
    grid: Pairs of lengths, and which of their problems count, `[pairs, ...]`;
      None if none are scored.
    strayed: Problems of the largest level with each share of errors, none
      first, `[histories, test_size]`; None without turns.
  """

  test: layouts.Batch
  counted: jax.Array
  grid: tuple[layouts.Batch, jax.Array] | None
  strayed: turns.Strayed | None


class Scores(NamedTuple):
  """What is counted on the problems of each level.

  Attributes:
    exact: Share of answers that are right as a whole, and the work before them
      with them, `f32[levels]`.
    tokens: Share of right tokens of answers, given those before them,
      `f32[levels]`.
    places: The same for the first, second, ... token of the final answers to
      problems of the largest level, `f32[places]`.
    grid: Share of right answers, with their work, by the lengths of two
      operands, `f32[lengths, lengths]`.
    whole: Share of problems of the largest level that are right in all turns
      up to each, `f32[turns]`; no turns where the layout has none.
    turns: Share of turns that are right, by what was said before: the truth,
      or with each share of errors, `f32[histories, turns]`.
    own: The same after what the model said itself, `f32[turns]`.
    waves: How much of the embeddings of digits is waves of the frequencies 0,
      1, 2 and 5, the median over features of R².
  """

  exact: jax.Array
  tokens: jax.Array
  places: jax.Array
  grid: jax.Array
  whole: jax.Array
  turns: jax.Array
  own: jax.Array
  waves: jax.Array


class Problems:
  """The task of a variant, as its decoder sees it.

  Attributes:
    model: The decoder's shape.
    sizes: How many problems of each level are scored: `test_size`, or as many
      as the test split has of a small one.
    scored: What is scored; the same for every seed and for every variant with
      the same task. Beyond its size a level repeats.
  """

  def __init__(self, config: configs.Config):
    """Draws what is scored.

    Raises:
      UsageError: A level has too few problems, or settings do not fit together.
    """
    self._config = config
    self._task = task_lib.get(config.task)
    try:
      self._tokenizer = tokenizers.get(
        config.tokenizer, config.layout.characters([self._task])
      )
      self._length = config.layout.length(
        self._task, config.level, self._tokenizer
      )
      self.model = self._model()
    except ValueError as error:
      raise errors.UsageError(str(error)) from error
    # Lines to train on are no longer than they have to be.
    longest = len(config.training.level_weights)
    self._trained_level = config.level if config.layout.pad else longest
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    levels = [self._held_out(level, key) for level in config.levels]
    self.sizes = tuple(len(each[0].length) for each in levels)
    test, counted = self._stacked(levels, config.test_size)
    self._longest = levels[-1]
    self.scored = Scored(test, counted, self._pairs(key), self._strayed(key))
    final = _final(jax.tree.map(lambda x: x[-1], self.test))
    self._places = int(final.sum(axis=-1).max())

  @property
  def cost(self) -> float:
    """What training takes, in some unit, for the time that is left."""
    settings, model = self._config.training, self.model
    length = self._config.layout.length(
      self._task, self._trained_level, self._tokenizer
    )
    tokens = settings.steps * settings.batch_size * length
    return float(tokens * model.layers * model.width**2)

  def examples(self, key: jax.Array) -> Operands | None:
    """Draws the problems that there are to train on; None if always new ones.

    Of `2 * examples` problems the first that are for training are kept: seven
    of eight are.
    """
    count = self._config.training.examples
    if not count:
      return None
    drawn = self._sample(key, 2 * count)
    order = jnp.argsort(~task_lib.split_of(drawn, 'train'), stable=True)[:count]
    return jax.tree.map(lambda x: x[order], drawn)

  def draw(
    self, key: jax.Array, examples: Operands | None, step: jax.Array | int = 0
  ) -> Lines:
    """Draws the batch of a step."""
    problem_key, line_key, model_key = jax.random.split(key, 3)
    count = self._config.training.batch_size
    if examples is None:
      operands = self._sample(problem_key, count)
    else:
      total = examples[0].length.shape[0]
      chosen = jax.random.randint(problem_key, (count,), 0, total)
      operands = jax.tree.map(lambda x: x[chosen], examples)
    return Lines(
      self._learned(operands, line_key, step),
      operands,
      task_lib.split_of(operands, 'train'),
      model_key,
    )

  def loss(self, params: transformer.Params, lines: Lines) -> jax.Array:
    """Cross-entropy of what follows the prompts, in nats a token.

    What heads have to hold besides is added to it, if there is something.
    """
    auxiliary = self._config.training.auxiliary
    tokens = lines.batch.tokens[:, :-1]
    if not auxiliary.weight:
      logits = transformer.apply(
        params, tokens, config=self.model, key=lines.key
      )
      return evaluation.answer_loss(logits, lines.batch, lines.trained)
    logits, features = transformer.watch(
      params, tokens, config=self.model, key=lines.key
    )
    return evaluation.answer_loss(
      logits, lines.batch, lines.trained
    ) + auxiliary.loss(
      params[AUXILIARY],
      features,
      lines.batch,
      task_lib.running_columns(lines.operands),
      lines.trained,
    )

  def with_auxiliary(self, params: transformer.Params) -> transformer.Params:
    """A decoder's parameters, with those of what its heads have to hold."""
    auxiliary = self._config.training.auxiliary
    if not auxiliary.weight:
      return params
    return params | {AUXILIARY: auxiliary.init(self.model)}

  def inspect(
    self, params: transformer.Params, scored: Scored
  ) -> dict[str, jax.Array]:
    """What a checkpoint knows.

    Args:
      params: The decoder's.
      scored: The problems, of which those of the largest level are taken.

    Returns:
      Shares of right tokens by their place in final answers, f32[places].
    """
    batch, counted = jax.tree.map(
      lambda x: x[-1], (scored.test, scored.counted)
    )
    logits = self.logits(params, batch.tokens)
    places = _by_place(logits, batch, counted)
    return {'test/places': places[: self._places]}

  def logits(self, params: transformer.Params, tokens: jax.Array) -> jax.Array:
    """Logits of what follows each token.

    Args:
      params: The decoder's.
      tokens: i32[batch, length].

    Returns:
      f32[batch, length - 1, vocabulary], for tokens 1 to length - 1.
    """
    return transformer.apply(params, tokens[:, :-1], config=self.model)

  def scores(self, params: transformer.Params, scored: Scored) -> Scores:
    """Scores a model on all levels."""

    def one_level(
      level: tuple[layouts.Batch, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
      batch, counted = level
      logits = self.logits(params, batch.tokens)
      exact = evaluation.exact_match(logits, batch)
      right = jnp.argmax(logits, axis=-1) == batch.tokens[:, 1:]
      answers = batch.answer[:, 1:] & counted[:, None]
      return (
        _share(exact, counted),
        _share(right, answers),
        _by_place(logits, batch, counted),
      )

    exact, tokens, places = jax.lax.map(
      one_level, (scored.test, scored.counted)
    )
    grid = self._grid_scores(params, scored.grid)
    whole, by_turn = self._turn_scores(params, scored)
    return Scores(
      *(exact, tokens, places[-1, : self._places], grid),
      *(whole, by_turn, jnp.zeros_like(whole), self._waves(params)),
    )

  def _waves(self, params: transformer.Params) -> jax.Array:
    if not self._config.inspect:
      return jnp.zeros(())
    digits = [self._tokenizer.vocabulary.index(x) for x in '0123456789']
    vectors = params['embedding']['embedding'][jnp.asarray(digits)]
    return jnp.median(interpret.fourier.explained(vectors))

  def _turn_scores(
    self, params: transformer.Params, scored: Scored
  ) -> tuple[jax.Array, jax.Array]:
    if scored.strayed is None:
      return jnp.zeros(0), jnp.zeros((0, 0))
    counted = scored.counted[-1, :, None]
    count = scored.strayed.wrong.shape[-1]

    def one_history(strayed: turns.Strayed) -> tuple[jax.Array, jax.Array]:
      logits = self.logits(params, strayed.batch.tokens)
      right = evaluation.right_turns(logits, strayed.batch, count)
      whole = jnp.cumsum(~right, axis=1) == 0
      return (
        _share(whole, counted, axis=0),
        _share(right, counted & ~strayed.wrong, axis=0),
      )

    whole, by_turn = jax.lax.map(one_history, scored.strayed)
    return whole[0], by_turn

  def _grid_scores(
    self,
    params: transformer.Params,
    grid: tuple[layouts.Batch, jax.Array] | None,
  ) -> jax.Array:
    count = len(self._config.grid)
    if grid is None:
      return jnp.zeros((count, count))

    def one_pair(pair: tuple[layouts.Batch, jax.Array]) -> jax.Array:
      batch, counted = pair
      right = evaluation.exact_match(self.logits(params, batch.tokens), batch)
      return _share(right, counted)

    return jax.lax.map(one_pair, grid).reshape(count, count)

  @property
  def test(self) -> layouts.Batch:
    """The problems that are scored, `[levels, test_size]`."""
    return self.scored.test

  def steps(self, written: np.ndarray) -> np.ndarray:
    """Which of the states that a model wrote follow from those before.

    Args:
      written: From `write_on`, of the largest level.

    Returns:
      Shares of the problems, f64[turns].
    """
    size = self.sizes[-1]
    right = turns.right_steps(
      self._task,
      self._config.layout,
      self._tokenizer,
      list(zip(*map(task_lib.to_strings, self._longest), strict=True)),
      written[:size],
      np.asarray(self.test.answer)[-1, :size],
    )
    return right.mean(axis=0)

  @property
  def works(self) -> bool:
    """Whether the model writes work before its answer."""
    return bool(self._config.layout.scratchpad)

  def write_on(
    self, params: transformer.Params, test: layouts.Batch
  ) -> jax.Array:
    """What a model writes behind the prompts of the test problems.

    Args:
      params: The model.
      test: The problems, `[levels, test_size]`.

    Returns:
      i32[levels, test_size, length]: the likeliest tokens, one after another,
      behind those of the prompt.
    """
    (end,) = self._tokenizer.encode(tokenizers.END)

    def one_level(batch: layouts.Batch) -> jax.Array:
      return decoding.generate(
        params,
        batch.tokens,
        jnp.argmax(batch.answer, axis=-1),
        config=self.model,
        end=end,
        given=~batch.answer if self._config.layout.turns else None,
      )

    return jax.lax.map(one_level, test)

  def right(self, written: np.ndarray) -> np.ndarray:
    """Reads what a model wrote, and compares answers, whatever the work.

    Args:
      written: From `write_on`.

    Returns:
      Share of right answers, f64[levels].
    """
    truth = np.asarray(self.test.tokens)
    begins = np.argmax(np.asarray(self.test.answer), axis=-1)
    shares = []
    for level, size in enumerate(self.sizes):
      right = [
        self._answer(written[level, i, begin:])
        == self._answer(truth[level, i, begin:])
        for i, begin in enumerate(begins[level, :size])
      ]
      shares.append(np.mean(right))
    return np.array(shares)

  def _answer(self, tokens: np.ndarray) -> str | None:
    text = self._tokenizer.decode(tokens)
    return self._config.layout.read(self._task, text)

  def line(self) -> str:
    """The first problem of the largest level, as it is written.

    Tokens of several digits are shown apart.
    """
    texts = [self._tokenizer.vocabulary[i] for i in self.test.tokens[-1, 0]]
    between = '' if max(map(len, self._tokenizer.vocabulary)) == 1 else ' '
    return between.join(texts).rstrip()

  def _sample(self, key, count):
    training = self._config.training
    return self._task.sample(
      key,
      count,
      level_weights=training.level_weights,
      independent=training.mixed,
    )

  def _removed(self, step):
    """How many characters of the work are left out in a step; None if none."""
    settings = self._config.training
    if not settings.removal:
      return None
    late = jnp.asarray(step, jnp.int32) - settings.removal_start
    times = jnp.maximum(late // settings.removal_steps + 1, 0)
    return settings.removal * times

  def _learned(self, operands, key, step):
    """Lines to train on."""
    share = self._config.training.errors
    write = functools.partial(self._write, operands, level=self._trained_level)
    if not share:
      return write(key=key, removed=self._removed(step))
    line_key, error_key = jax.random.split(key)
    return turns.learned(
      turns.stray(
        self._task,
        operands,
        share,
        lambda states: write(key=line_key, answer=states),
        key=error_key,
      )
    )

  def _strayed(self, key):
    if not self._config.layout.turns:
      return None
    operands = _filled(self._longest, self._config.test_size)
    each = [
      turns.stray(
        self._task,
        operands,
        share,
        lambda states: self._write(operands, answer=states),
        key=jax.random.fold_in(key, 0),
      )
      for share in (0.0, *self._config.histories)
    ]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *each)

  def _write(self, operands, *, level=None, **options):
    """Lines as long as those of a level, the largest by default."""
    return self._config.layout.write(
      self._task,
      operands,
      tokenizer=self._tokenizer,
      level=level or self._config.level,
      **options,
    )

  def _model(self) -> transformer.Config:
    """The decoder, which is told what its tokens are."""
    config, tokenizer = self._config, self._tokenizer
    scheme = positions.get(config.model.positions)
    scheme = dataclasses.replace(
      scheme, operand_order=config.layout.operand_order
    )
    hints = pieces.HINTS[: config.layout.hints]
    numbers = tokenizer.classes.digits > 0
    digits = [
      i
      for i, text in enumerate(tokenizer.vocabulary)
      if numbers[i] or text in set(hints)
    ]
    (equals,) = tokenizer.encode(tokenizers.EQUALS)
    marks = tokenizers.SEPARATOR + (self._task.operator or self._task.symbol)
    anchors = [
      i for i, text in enumerate(tokenizer.vocabulary) if text in set(marks)
    ]
    return config.model.reading(
      positions=scheme,
      classes=positions.Classes(
        digits=tuple(digits),
        equals=equals,
        anchors=(*anchors, equals) if config.anchors else (),
      ),
      vocabulary_size=tokenizer.vocabulary_size,
      max_length=self._length,
    )

  def _stacked(
    self, each: list[Operands], count: int
  ) -> tuple[layouts.Batch, jax.Array]:
    """Problems of several kinds, filled up to one number, and which count."""
    sizes = np.array([len(operands[0].length) for operands in each])
    last = self._removed(self._config.training.steps - 1)
    lines = [
      self._write(_filled(operands, count), removed=last) for operands in each
    ]
    counted = jnp.asarray(np.arange(count) < sizes[:, None])
    return jax.tree.map(lambda *xs: jnp.stack(xs), *lines), counted

  def _pairs(self, key):
    if not self._config.grid:
      return None
    count = min(_OF_A_PAIR, self._config.test_size)
    cells = problems_lib.held_out_grid(
      self._task,
      'test',
      count,
      self._config.grid,
      key=jax.random.fold_in(key, 0),
    )
    return self._stacked(cells, count)

  def _held_out(self, level, key):
    return problems_lib.held_out(
      self._task,
      'test',
      self._config.test_size,
      level_weights=(0,) * (level - 1) + (1,),
      key=jax.random.fold_in(key, level),
      least=1,
    )


def _filled(operands: Operands, count: int) -> Operands:
  """The same problems again and again, until there are so many."""
  return jax.tree.map(lambda x: jnp.resize(x, (count, *x.shape[1:])), operands)


def _final(batch: layouts.Batch) -> jax.Array:
  """Which tokens are the final answer, without the work before it."""
  return batch.answer if batch.scored is None else batch.scored


def _by_place(
  logits: jax.Array, batch: layouts.Batch, counted: jax.Array
) -> jax.Array:
  """How often the first, second, ... token of final answers is right."""
  final = _final(batch) & counted[:, None]
  places, _ = evaluation.accuracy_by_emission(
    logits, batch._replace(answer=final)
  )
  return places


def _share(
  which: jax.Array, of: jax.Array, axis: int | None = None
) -> jax.Array:
  """How many of some there are, 0 of none."""
  count = jnp.sum(of & which, axis=axis).astype(jnp.float32)
  total = jnp.broadcast_to(of, which.shape).sum(axis=axis)
  return count / jnp.maximum(total, 1).astype(jnp.float32)
