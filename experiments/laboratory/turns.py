"""Problems in turns, where what was said before may be wrong."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from arithmetic import evaluation
from arithmetic import layouts
from arithmetic import tasks as task_lib
from arithmetic import tokenizers

_LARGEST = 9  # Error of a state, which is one modulo 10, too.

# From the strings of answers to lines.
Write = Callable[[tuple[task_lib.Digits, ...]], layouts.Batch]


class Strayed(NamedTuple):
  """Lines some of whose states are wrong, and gone on from.

  Attributes:
    batch: The lines.
    wrong: Which states do not follow from those before, bool[batch, turns].
  """

  batch: layouts.Batch
  wrong: jax.Array


def stray(
  task: task_lib.Task,
  operands: tuple[task_lib.Digits, ...],
  share: float,
  write: Write,
  *,
  key: jax.Array,
) -> Strayed:
  """Writes problems with errors in what is said.

  A wrong state differs from the right one by 1 to 9, up or down, and later
  states go on from it. The last state of the longest problems is right.

  Args:
    task: One with turns.
    operands: Its problems.
    share: How many of the states are wrong.
    write: Writes lines with these states.
    key: Draws the errors.

  Returns:
    The lines.
  """
  count = operands[-1].values.shape[-1] // task.turns
  shape = (len(operands[-1].length), count)
  which, size, sign = jax.random.split(key, 3)
  wrong = jax.random.bernoulli(which, share, shape)
  wrong &= jnp.arange(count)[None] < count - 1
  sizes = jax.random.randint(size, shape, 1, _LARGEST + 1)
  sizes = jnp.where(jax.random.bernoulli(sign, 0.5, shape), sizes, -sizes)
  states = task_lib.straying_sums(task, operands, jnp.where(wrong, sizes, 0))
  return Strayed(write(states), wrong)


def learned(strayed: Strayed) -> layouts.Batch:
  """The same lines, where wrong states are read but not learned."""
  batch, wrong = strayed
  last = wrong.shape[1] - 1
  turn = jnp.minimum(evaluation.turn_of(batch), last)
  wrong = jnp.take_along_axis(wrong, turn, axis=1)
  return batch._replace(answer=batch.answer & ~wrong)


def right_steps(
  task: task_lib.Task,
  layout: layouts.Layout,
  tokenizer: tokenizers.DigitTokenizer,
  problems: Sequence[tuple[str, ...]],
  written: np.ndarray,
  answer: np.ndarray,
) -> np.ndarray:
  """Whether each state that a model wrote follows from the one before it.

  A state that is no number is wrong, and so is what follows it.

  Args:
    task: One with turns.
    layout: How it is written.
    tokenizer: What made tokens of it.
    problems: The written operands.
    written: What the model wrote, i32[problems, length].
    answer: Which tokens are states, bool[problems, length].

  Returns:
    bool[problems, turns].
  """
  found = []
  for problem, line, mask in zip(problems, written, answer, strict=True):
    places = np.flatnonzero(mask)
    before: str | None = '0'
    right = []
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    for turn, run in enumerate(runs):
      text = tokenizer.decode(line[run]).partition(tokenizers.END)[0]
      state = layout.read(task, text + tokenizers.END)
      due = before and task_lib.next_sum(task, problem, before, turn)
      right.append(state == due)
      before = state if state and state.isdecimal() else None
    found.append(right)
  return np.array(found)
