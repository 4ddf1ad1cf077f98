"""What tests of lines share: lines on the device against lines in Python."""

import functools

import jax
import numpy as np

from arithmetic import tasks
from arithmetic import tokenizers

# Tasks of every kind: numbers, strings, signs, points, lists, two numbers.
KINDS = (
  *('addition', 'signed_subtraction', 'square_root_of_decimal', 'copying'),
  *('long_division', 'sorting_numbers', 'running_sums', 'counting'),
)


def tokenizer_of(layout, make=tokenizers.DigitTokenizer, **settings):
  """A tokenizer of all characters that any task needs."""
  return make(layout.characters(tasks.ALL.values()), **settings)


@functools.cache
def _drawn(task, weights):
  operands = task.sample(jax.random.key(0), 1000, level_weights=weights)
  return jax.tree.map(np.asarray, operands)


def problems(task, rows, weights=(1, 1, 1)):
  """The first of a thousand problems: draws of one size compile once."""
  return jax.tree.map(lambda x: x[:rows], _drawn(task, weights))


def check_lines(layout, task, tokenizer, *, level=3, extra=2, rows=40):
  """Every line of a batch is the line in Python, and so are its masks."""
  operands = problems(task, rows, (1,) * level)
  length = layout.length(task, level, tokenizer) + extra
  batch = layout.write(
    task, operands, tokenizer=tokenizer, level=level, length=length
  )
  batch = jax.tree.map(np.asarray, batch)
  assert batch.tokens.shape == batch.answer.shape == (rows, length)
  written = zip(*map(tasks.to_strings, operands), strict=True)
  for i, problem in enumerate(written):
    prompt, completion = layout.text(task, problem, level=level)
    before, after = tokenizer.encode(prompt), tokenizer.encode(completion)
    whole = tokenizer.encode(prompt + completion)
    assert tokenizer.decode(whole) == prompt + completion
    assert len(whole) <= length - extra
    tokens = batch.tokens[i]
    np.testing.assert_array_equal(tokens[: len(whole)], whole)
    assert not tokens[len(whole) :].any()
    np.testing.assert_array_equal(
      np.flatnonzero(batch.answer[i]), len(before) + np.arange(len(after))
    )
    answer = layout.read(task, completion)
    assert answer == task.solve(problem)
    if batch.scored is not None:
      scored = tokenizer.decode(tokens[batch.scored[i]])
      assert layout.read(task, scored) == answer
