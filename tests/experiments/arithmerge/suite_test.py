"""What is trained on, what is scored, and that the two never meet."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arithmetic
from arithmetic import evaluation
from arithmetic import tasks
from experiments.arithmerge import suite as suite_lib
from experiments.configs import arithmerge as configs
from experiments.runtime import errors

CONFIG = configs.smoke()


@pytest.fixture(scope='module')
def params(suite):
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(
    lambda key: arithmetic.init(key, suite.model), jax.random.key(1)
  )
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes
  )


@pytest.fixture(scope='module')
def suite():
  return suite_lib.Suite(CONFIG)


@pytest.fixture(scope='module')
def draws(suite):
  """Mixtures for the base and for experts, each compiled once."""
  return [
    jax.jit(suite.draw_mixture(training))
    for training in (CONFIG.base, CONFIG.expert)
  ]


@pytest.fixture(scope='module')
def accuracy(suite):
  return jax.jit(suite.accuracy)


def _lines(batch):
  return {
    tuple(row)
    for row in np.asarray(batch.tokens)
    .reshape(-1, batch.tokens.shape[-1])
    .tolist()
  }


def test_scored_problems_are_never_trained_on(suite, draws):
  trained = set()
  for draw in draws:
    for step in range(40):
      batch, for_training = draw(jax.random.key(step))
      lines = np.asarray(batch.tokens)[np.asarray(for_training)]
      trained |= {tuple(line) for line in lines.tolist()}
  validation = _lines(suite.problems('validation'))
  test = _lines(suite.problems('test'))
  assert len(trained) > 1000
  # All that are scored are different.
  assert len(validation) == CONFIG.validation_size * len(CONFIG.tasks)
  assert len(test) == CONFIG.test_size * len(CONFIG.tasks)
  assert not trained & validation
  assert not trained & test
  assert not validation & test


def test_problems_that_are_not_for_training_have_no_gradient(
  suite, params, draws
):
  batch, _ = draws[1](jax.random.key(0))
  none = jnp.zeros(batch.tokens.shape[0], bool)
  gradient = jax.jit(jax.grad(suite.loss))(params, (batch, none))
  assert all(not bool(jnp.any(x)) for x in jax.tree.leaves(gradient))


def test_problems_are_at_the_level_that_is_asked_for(suite):
  problems = suite.problems('test')
  assert problems.tokens.shape[:2] == (len(CONFIG.tasks), CONFIG.test_size)
  again = suite.problems('test')
  np.testing.assert_array_equal(problems.tokens, again.tokens)


def test_a_mixture_has_the_same_share_of_every_task(draws):
  batch, _ = draws[0](jax.random.key(0))
  first = np.asarray(batch.tokens)[:, 0]
  counts = np.unique(first, return_counts=True)[1]
  share = CONFIG.base.batch_size // len(CONFIG.tasks)
  np.testing.assert_array_equal(counts, [share] * len(CONFIG.tasks))


def test_ensemble_of_one_model_twice_is_that_model(suite, params, accuracy):
  problems = suite.problems('validation')
  twice = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  np.testing.assert_array_equal(
    accuracy(params, problems),
    jax.jit(suite.ensemble_accuracy)(twice, problems),
  )


def test_accuracy_is_exact_match_task_by_task(suite, params, accuracy):
  problems = suite.problems('validation')
  found = accuracy(params, problems)
  logits = jax.jit(suite.logits)
  for i in range(len(CONFIG.tasks)):
    batch = jax.tree.map(lambda x, i=i: x[i], problems)
    right = evaluation.exact_match(logits(params, batch.tokens), batch)
    np.testing.assert_allclose(found[i], np.mean(right), atol=0.02)


@pytest.mark.parametrize(
  ('preset', 'count', 'seeds'), [('cpu', 8, 3), ('full', 20, 8)]
)
def test_presets_are_what_the_documentation_says(preset, count, seeds):
  config = configs.PRESETS[preset]()
  assert len(config.tasks) == count
  assert config.seeds >= seeds
  assert set(config.tasks) <= set(tasks.ALL)


def test_too_few_problems_are_an_error_before_training():
  config = dataclasses.replace(CONFIG, test_level_weights=(1.0,))
  with pytest.raises(errors.UsageError, match='lower test_size from 64'):
    suite_lib.Suite(config).problems('test')
