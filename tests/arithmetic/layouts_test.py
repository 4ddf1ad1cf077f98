"""Lines written on the device equal lines written in Python."""

import dataclasses

import jax
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import tasks
from arithmetic import tokenizers

TOKENIZER = tokenizers.DigitTokenizer(
  ''.join(task.symbol for task in tasks.ALL.values())
)
LAYOUTS = [
  layouts.Layout(operand_order=a, answer_order=b, pad=c)
  for a in ('plain', 'reversed')
  for b in ('plain', 'reversed')
  for c in (False, True)
]


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
@pytest.mark.parametrize('name', tasks.ALL)
def test_device_lines_are_python_lines(layout, name):
  task = tasks.get(name)
  operands = task.sample(jax.random.key(0), 40, level_weights=(1, 1, 1))
  width = layout.length(task, 3) + 2
  batch = layout.write(
    task, operands, tokenizer=TOKENIZER, level=3, length=width
  )
  assert batch.tokens.shape == batch.answer.shape == (40, width)
  problems = zip(*map(tasks.to_strings, operands), strict=True)
  for problem, tokens, is_answer in zip(
    problems, batch.tokens, batch.answer, strict=True
  ):
    prompt, completion = layout.text(task, problem, level=3)
    assert TOKENIZER.decode(tokens).rstrip() == prompt + completion
    answer = np.flatnonzero(is_answer)
    np.testing.assert_array_equal(
      answer, len(prompt) + np.arange(len(completion))
    )


def test_literal_lines():
  plain = layouts.Layout(answer_order='plain')
  reversed_ = layouts.Layout(operand_order='reversed')
  padded = layouts.Layout(pad=True)
  add = tasks.addition
  assert plain.text(add, ('57', '68'), level=2) == ('+57,68=', '125$')
  assert reversed_.text(add, ('57', '68'), level=2) == ('+75,86=', '521$')
  assert padded.text(add, ('57', '8'), level=3) == ('+057,008=', '5600$')
  assert padded.text(tasks.sorting, ('310',), level=2) == ('S310 =', '310$')
  sort = layouts.Layout().text(tasks.sorting, ('3102',), level=2)
  assert sort == ('S3102=', '3210$')


def test_length_is_the_longest_line():
  layout = layouts.Layout()
  assert layout.length(tasks.addition, 3) == len('+999,999=8991$')


def test_errors():
  operands = tasks.addition.sample(jax.random.key(0), 2, level_weights=(0, 1))
  with pytest.raises(ValueError, match='addition at level 2 needs lines of 11'):
    layouts.Layout().write(
      tasks.addition, operands, tokenizer=TOKENIZER, level=2, length=10
    )
  with pytest.raises(ValueError, match='answer_order'):
    layouts.Layout(answer_order='backwards')  # pyrefly: ignore[bad-argument-type]
  with pytest.raises(dataclasses.FrozenInstanceError):
    layouts.Layout().pad = True  # pyrefly: ignore[read-only]


def test_tokenizer_round_trip_and_errors():
  assert TOKENIZER.decode(TOKENIZER.encode('+12,3=51$ ')) == '+12,3=51$ '
  assert TOKENIZER.vocabulary_size == len(set(TOKENIZER.characters)) == 35
  with pytest.raises(ValueError, match="no token for 'x'"):
    TOKENIZER.encode('1x')
  with pytest.raises(ValueError, match="'='"):
    tokenizers.DigitTokenizer('+=')
  with pytest.raises(ValueError, match="'\\+'"):
    tokenizers.DigitTokenizer('++')


@pytest.mark.parametrize('pad', [False, True])
@pytest.mark.parametrize('name', tasks.ALL)
def test_a_prompt_has_one_answer_and_one_split_at_every_level(pad, name):
  task, layout = tasks.get(name), layouts.Layout(pad=pad)
  operands = task.sample(jax.random.key(0), 3000, level_weights=(1, 1, 1))
  member = np.stack([tasks.split_of(operands, s) for s in tasks.SPLITS])
  found: dict[str, tuple[str, int]] = {}
  problems = zip(*map(tasks.to_strings, operands), strict=True)
  for problem, split in zip(problems, member.argmax(axis=0), strict=True):
    prompt, answer = layout.text(task, problem, level=3)
    assert found.setdefault(prompt, (answer, split)) == (answer, split)
  assert len(found) > 100
