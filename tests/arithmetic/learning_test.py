"""Training, decoding and scoring: laws that tie them together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from arithmetic import decoding
from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import population
from arithmetic import tasks
from arithmetic import tokenizers
from arithmetic import training
from arithmetic import transformer
from tests.arithmetic import lines


@pytest.fixture(scope='module', autouse=True)
def _optax_promotes():
  """optax's Adam raises a float to an integer power."""
  with jax.numpy_dtype_promotion('standard'):
    yield


TASK = tasks.maximum
TOKENIZER = tokenizers.DigitTokenizer(TASK.symbol)
LAYOUT = layouts.Layout()
LENGTH = LAYOUT.length(TASK, 2)
CONFIG = transformer.Config(
  vocabulary_size=TOKENIZER.vocabulary_size,
  max_length=LENGTH,
  layers=1,
  heads=2,
  width=16,
)
OPTIMIZER = optax.adam(5e-3)


def draw(key, step):
  del step
  operands = TASK.sample(key, 64, level_weights=(0, 1))
  return LAYOUT.write(TASK, operands, tokenizer=TOKENIZER, level=2)


def stored(key, step):
  """Some of a few stored lines: one draw, which compiles in no time."""
  del step
  place = jax.random.randint(key, (8,), 0, 40)
  return jax.tree.map(lambda x: x[place], batch_of(40))


@functools.cache
def batch_of(rows):
  """The same lines whoever asks."""
  with jax.ensure_compile_time_eval():
    operands = lines.problems(TASK, rows, (0, 1))
    batch = LAYOUT.write(TASK, operands, tokenizer=TOKENIZER, level=2)
  return jax.tree.map(jnp.asarray, batch)


@jax.jit
def logits_of(params, tokens):
  return transformer.apply(params, tokens, config=CONFIG)


def loss_fn(params, batch):
  return evaluation.answer_loss(logits_of(params, batch.tokens[:, :-1]), batch)


def bigram_loss(params, batch):
  """Of logits that depend on one token: a model that compiles in no time."""
  logits = params['table'][batch.tokens[:, :-1]] * params['scale']
  return evaluation.answer_loss(logits, batch)


TRAIN = functools.partial(training.train, optimizer=OPTIMIZER)
TRAIN_BIGRAM = functools.partial(TRAIN, loss_fn=bigram_loss, draw=stored)


def begin(seed):
  rng = np.random.default_rng(seed)
  size = TOKENIZER.vocabulary_size
  params = {
    'table': jnp.asarray(rng.normal(size=(size, size)), jnp.float32),
    'scale': jnp.float32(1),
  }
  return training.start(params, OPTIMIZER, jax.random.key(seed))


@pytest.fixture(scope='module')
def trained():
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    functools.partial(transformer.init, config=CONFIG), jax.random.key(0)
  )
  params = jax.tree.map(
    lambda x: (
      rng.normal(scale=x.shape[0] ** -0.5, size=x.shape)
      if x.ndim > 1
      else np.ones(x.shape)
    ),
    shapes,
  )
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  state = training.start(params, OPTIMIZER, jax.random.key(1))
  run = functools.partial(TRAIN, loss_fn=loss_fn, draw=draw, num_steps=250)
  return jax.jit(run)(state)


@jax.jit
def greedy(params, tokens, start):
  return decoding.greedy(functools.partial(logits_of, params), tokens, start)


def test_training_learns(trained):
  _, losses = trained
  assert float(losses[:10].mean()) > 1.5
  assert float(losses[-10:].mean()) < 0.5


def test_one_pass_scoring_equals_greedy_decoding(trained):
  params = trained[0].params
  batch = batch_of(300)
  logits = logits_of(params, batch.tokens[:, :-1])
  scored = evaluation.exact_match(logits, batch)
  written = greedy(
    params,
    jnp.where(batch.answer, 0, batch.tokens),
    jnp.argmax(batch.answer, axis=-1),
  )
  decoded = jnp.all((written == batch.tokens) | ~batch.answer, axis=-1)
  np.testing.assert_array_equal(scored, decoded)
  assert 0 < int(scored.sum()) < 300  # Both kinds of answer were compared.


def test_decoding_does_not_read_the_answer(trained):
  params = trained[0].params
  batch = batch_of(300)
  start = jnp.argmax(batch.answer, axis=-1)
  np.testing.assert_array_equal(
    greedy(params, batch.tokens, start),
    greedy(params, jnp.where(batch.answer, 3, batch.tokens), start),
  )


def test_interrupted_training_is_training_bit_for_bit():
  run = jax.jit(TRAIN_BIGRAM, static_argnums=1)
  first = begin(1)
  whole, losses = run(first, 6)
  half, early = run(first, 3)
  # What a checkpoint does: leave the device and come back.
  data = jax.tree.map(
    np.asarray, half._replace(key=jax.random.key_data(half.key))
  )
  back = jax.tree.map(jnp.asarray, data)
  back = back._replace(key=jax.random.wrap_key_data(back.key))
  rest, late = run(back, 3)
  jax.tree.map(np.testing.assert_array_equal, whole.params, rest.params)
  np.testing.assert_array_equal(losses, jnp.concatenate([early, late]))


@pytest.mark.parametrize('how', ['vmap', 'map'])
def test_a_population_is_its_members(how):
  run = functools.partial(TRAIN_BIGRAM, num_steps=4)
  members = [begin(seed) for seed in range(3)]
  start = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
  states, losses = jax.jit(population.population(run, how))(start)
  assert losses.shape == (3, 4)
  one = jax.jit(run)
  for i, member in enumerate(members):
    alone, loss = one(member)
    np.testing.assert_allclose(losses[i], loss, rtol=1e-4)
    jax.tree.map(
      lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=2e-3),
      states.params,
      alone.params,
    )


def test_population_refuses_other_ways():
  with pytest.raises(ValueError, match="got 'pmap'"):
    population.population(jnp.sin, 'pmap')  # pyrefly: ignore[bad-argument-type]


def _score(text, line):
  """exact_match for a model that writes `text` whatever it reads."""
  tokens = jnp.asarray([TOKENIZER.encode(line)])
  end = line.index('$')
  place = jnp.arange(len(line))
  is_answer = (place > line.index('=')) & (place <= end)
  batch = layouts.Batch(tokens, is_answer[None])
  said = jax.nn.one_hot(
    jnp.asarray([TOKENIZER.encode(text)[1:]]), TOKENIZER.vocabulary_size
  )
  return bool(evaluation.exact_match(said, batch)[0])


def test_exact_match_wants_the_end_mark_and_nothing_else():
  line = '>12,34=43$ '
  assert _score('>12,34=43$ ', line)
  assert _score('>00,00=43$9', line)  # The prompt and the rest do not count.
  assert not _score('>12,34=4399', line)
  assert not _score('>12,34=44$ ', line)


def test_answer_loss_by_hand():
  batch = layouts.Batch(
    jnp.asarray([[4, 1, 2, 0], [4, 3, 0, 0]]),
    jnp.asarray([[0, 1, 1, 0], [0, 1, 0, 0]], bool),
  )
  logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
  p = np.log(
    np.exp(np.asarray(logits, np.float64))
    / np.exp(np.asarray(logits, np.float64)).sum(-1, keepdims=True)
  )
  np.testing.assert_allclose(
    evaluation.answer_loss(logits, batch),
    -(p[0, 0, 1] + p[0, 1, 2] + p[1, 0, 3]) / 3,
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    evaluation.answer_loss(logits, batch, jnp.asarray([0.0, 1.0])),
    -p[1, 0, 3],
    rtol=1e-5,
  )
  np.testing.assert_array_equal(
    evaluation.answer_loss(logits, batch, jnp.zeros(2)), 0.0
  )


def test_turns_are_right_by_themselves():
  # Two turns of two and one tokens, then three of one; the end is the last's.
  answer = np.array([[0, 0, 1, 1, 0, 1, 1], [0, 1, 0, 1, 0, 1, 1]], bool)
  tokens = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]], np.int32)
  batch = layouts.Batch(jnp.asarray(tokens), jnp.asarray(answer))
  turn = np.asarray(evaluation.turn_of(batch))
  assert turn[0][answer[0]].tolist() == [0, 0, 1, 1]
  assert turn[1][answer[1]].tolist() == [0, 1, 2, 2]
  said = tokens.copy()
  said[0, 3] = 0  # The second token of the first turn.
  said[1, 6] = 0  # The end.
  said[:, 4] = 0  # What is told need not be known.
  logits = jax.nn.one_hot(said[:, 1:], 8)
  right = evaluation.right_turns(logits, batch, 3)
  assert right.tolist() == [[False, True, True], [True, True, False]]


def test_a_loss_may_change_variables_besides():
  """A running mean of the data, which has no gradient."""
  data = jnp.float32([3.0, 5.0, 1.0])

  def run(variables, loss_fn):
    state = training.start(
      jnp.float32(0), optax.sgd(0.5), jax.random.key(0), variables
    )
    return training.train(
      state,
      3,
      loss_fn=loss_fn,
      draw=lambda key, step: data,
      optimizer=optax.sgd(0.5),
    )

  def loss(w, x):
    return jnp.mean((w - x) ** 2)

  plain, losses = run(None, loss)
  assert plain.variables is None
  state, same = run(
    jnp.float32(8), lambda w, x, mean: (loss(w, x), (mean + x.mean()) / 2)
  )
  np.testing.assert_array_equal(same, losses)
  assert float(state.params) == float(plain.params)
  assert float(state.variables) == 3 + 5 / 8
