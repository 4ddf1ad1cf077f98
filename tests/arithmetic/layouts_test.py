"""Lines written on the device equal lines written in Python."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from arithmetic import layouts
from arithmetic import tasks
from arithmetic import tokenizers
from tests.arithmetic import lines

TOKENIZER = tokenizers.DigitTokenizer(
  ''.join(task.symbol for task in tasks.ALL.values()) + '.'
)
FIXED = {
  'default': layouts.Layout(),
  'benchmark': layouts.Layout(operand_order='reversed', pad=True),
}
OTHERS = {
  **{name: x for name, x in layouts.LAYOUTS.items() if not x.scratchpad},
  'all reversed': layouts.Layout(operand_order='reversed'),
  'padded, reversed, hints': layouts.Layout(
    notation='infix', pad=True, operand_order='reversed', hints=40
  ),
  'plain hints': layouts.Layout(hints=40, answer_order='plain'),
  'groups from the left': layouts.Layout(
    group=2, group_mark='_', group_start='left'
  ),
  'groups of reversed': layouts.Layout(
    group=2, group_mark='_', operand_order='reversed', pad=True
  ),
}


@pytest.mark.parametrize(
  ('layout', 'name'),
  [
    pytest.param(
      layout, name, marks=[] if name in lines.KINDS else pytest.mark.slow
    )
    for layout in FIXED
    for name in tasks.ALL
  ],
)
def test_device_lines_are_python_lines(layout, name):
  layout = FIXED[layout]
  lines.check_lines(layout, tasks.get(name), lines.tokenizer_of(layout))


@pytest.mark.parametrize('name', tasks.ALL)
def test_lines_of_every_task_can_be_written(name):
  """Traced, which finds what is missing or does not fit, but not compiled."""
  layout, task = layouts.Layout(), tasks.get(name)
  tokenizer = lines.tokenizer_of(layout)
  write = functools.partial(layout.write, task, tokenizer=tokenizer, level=3)
  batch = jax.eval_shape(write, lines.problems(task, 40))
  longest = layout.length(task, 3)
  assert batch.tokens.shape == batch.answer.shape == (40, longest)
  for problem in zip(
    *map(tasks.to_strings, lines.problems(task, 40)), strict=True
  ):
    text = ''.join(layout.text(task, problem, level=3))
    assert len(tokenizer.encode(text)) <= longest


@pytest.mark.parametrize('name', ['signed_subtraction', 'copying'])
@pytest.mark.parametrize('layout', OTHERS)
def test_other_layouts(layout, name):
  layout = OTHERS[layout]
  lines.check_lines(layout, tasks.get(name), lines.tokenizer_of(layout))


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


@pytest.mark.parametrize(
  ('layout', 'line'),
  [
    ('plain', '128+367=495$'),
    ('delimited', '$128+367=495$'),
    ('reversed', '$128+367=594$'),
    ('padded', '128+367=0495$'),
    ('grouped', '128+367=495$'),
    ('hinted', 'a8b2c1+a7b6c3=a5b9c4$'),
  ],
)
def test_lines_of_papers(layout, line):
  layout = layouts.get(layout)
  written = layout.text(tasks.addition, ('128', '367'), level=3)
  assert ''.join(written) == line


TABLE = ('17', '22', '02', '32', '60', '21', '08', '92', '59', '43')


@pytest.mark.parametrize(
  ('name', 'settings', 'prompt', 'completion'),
  [
    ('running_sums', {}, '17,22,02,32,60,21,08,92,59,43,3=', '23,7=42,1=64$'),
    (
      'running_sums_of_pairs',
      {'answer_order': 'plain'},
      '17,22,02,32,60,21,08,92,59,43,37=',
      '24,12=48,86=15$',
    ),
    (
      'running_sums_of_pairs',
      {'operand_order': 'reversed', 'pad': True},
      '71,22,20,23,06,12,80,29,95,34,73=',
      '42,21=84,68=51$',
    ),
  ],
)
def test_operands_are_told_part_by_part(name, settings, prompt, completion):
  task, layout = tasks.get(name), layouts.Layout(turns=True, **settings)
  keys = ('371' if task.turns == 1 else '371286', '3' * task.turns)
  texts = [layout.text(task, (*TABLE, each), level=2) for each in keys]
  assert texts[0] == (task.symbol + prompt, completion)
  assert layout.read(task, completion) == task.solve((*TABLE, keys[0]))
  # Of several lengths in one batch; what is told is not of the answer.
  tokenizer = lines.tokenizer_of(layout)
  table = [tasks.from_strings([value] * 2) for value in TABLE]
  batch = layout.write(
    task, (*table, tasks.from_strings(keys)), tokenizer=tokenizer, level=2
  )
  for row, (asked, said) in enumerate(texts):
    assert tokenizer.decode(batch.tokens[row]).rstrip() == asked + said
    answer = tokenizer.decode(batch.tokens[row][np.asarray(batch.answer[row])])
    assert answer == re.sub(',[0-9]*=', '', said)
  with pytest.raises(ValueError, match='turns: addition has none'):
    layout.text(tasks.addition, ('1', '2'), level=1)
  with pytest.raises(ValueError, match='turns go without scratchpad'):
    layouts.Layout(turns=True, hints=9)


@pytest.mark.parametrize('number', ['1', '123', '1234', '9876543', '123456'])
def test_groups_are_those_of_python(number):
  layout = layouts.get('grouped')
  _, answer = layout.text(tasks.copying, (number,), level=4)
  assert answer == f'{int(number):,}$'
  reversed_ = dataclasses.replace(layout, answer_order='reversed')
  _, answer = reversed_.text(tasks.copying, (number,), level=4)
  assert answer == f'{int(number):,}'[::-1] + '$'


def test_a_minus_sign_stands_before_everything():
  task, problem = tasks.signed_subtraction, ('12', '1034')

  def answer(**settings):
    layout = layouts.Layout(notation='infix', **settings)
    return layout.text(task, problem, level=5)[1]

  assert answer(answer_order='plain') == '-1022$'
  assert answer() == '2201-$'
  assert answer(answer_order='plain', pad=True) == '-01022$'
  assert answer(answer_order='plain', group=3) == '-1,022$'
  assert answer(hints=9) == 'a2b2c0d1-$'


def test_length_is_the_longest_line():
  layout = layouts.Layout()
  assert layout.length(tasks.addition, 3) == len('+999,999=8991$')
  chunks = tokenizers.ChunkTokenizer('+', size=2)
  # In chunks: + 9 99 , 9 99 = 89 91 $
  assert layout.length(tasks.addition, 3, chunks) == 10


def _written(layout, tokenizer, **settings):
  operands = lines.problems(tasks.addition, 200, (0, 0, 1))
  batch = layout.write(
    tasks.addition, operands, tokenizer=tokenizer, level=3, **settings
  )
  problems = list(zip(*map(tasks.to_strings, operands), strict=True))
  batch = jax.tree.map(np.asarray, batch)
  return problems, [tokenizer.decode(x) for x in batch.tokens], batch


def test_hints_are_drawn_for_each_line():
  layout = layouts.Layout(notation='infix', hints=9)
  tokenizer = tokenizers.DigitTokenizer(layout.characters([tasks.addition]))
  problems, written, _ = _written(layout, tokenizer, key=jax.random.key(1))
  first = set()
  for problem, line in zip(problems, written, strict=True):
    offset = ord(line[line.index('+') - 2]) - ord('a')
    first.add(offset)
    text = layout.text(tasks.addition, problem, level=3, offset=offset)
    assert line.rstrip() == ''.join(text)
  # Nine marks, the last four of which reach from any of the first six.
  assert first == set(range(6))


def test_blanks_are_in_prompts_alone():
  layout = layouts.Layout(notation='infix', spaces=0.3)
  problems, written, batch = _written(
    layout, tokenizers.DigitTokenizer('+'), key=jax.random.key(1)
  )
  blanks = 0
  for i, (problem, line) in enumerate(zip(problems, written, strict=True)):
    prompt, answer = layout.text(tasks.addition, problem, level=3)
    assert line.replace(' ', '') == prompt + answer
    assert line.rstrip().endswith('=' + answer)
    end = line.index('=') + 1
    blanks += end - len(prompt)
    np.testing.assert_array_equal(
      np.flatnonzero(batch.answer[i]), end + np.arange(len(answer))
    )
  assert 0.27 < blanks / (200 * len('123+456=')) < 0.33
  # Without a key a line is the same every time.
  _, plain, _ = _written(layout, tokenizers.DigitTokenizer('+'))
  assert not any(' ' in line.rstrip() for line in plain)


def test_errors():
  operands = tuple(tasks.from_strings([x]) for x in ('57', '68'))
  with pytest.raises(ValueError, match='addition at level 2 needs lines of 11'):
    layouts.Layout().write(
      tasks.addition, operands, tokenizer=TOKENIZER, level=2, length=10
    )
  with pytest.raises(ValueError, match=r"lacks 'abc', .* layout\.characters"):
    layouts.Layout(hints=3).write(
      tasks.addition, operands, tokenizer=TOKENIZER, level=2
    )
  with pytest.raises(ValueError, match='3 digits need as many hints, got 2'):
    layouts.Layout(hints=2).write(
      tasks.addition,
      operands,
      tokenizer=tokenizers.DigitTokenizer('+ab'),
      level=2,
    )
  with pytest.raises(dataclasses.FrozenInstanceError):
    layouts.Layout().pad = True  # pyrefly: ignore[read-only]
  with pytest.raises(KeyError, match="did you mean 'reversed'"):
    layouts.get('reverse')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'answer_order': 'backwards'}, 'answer_order'),
    ({'notation': 'postfix'}, 'notation'),
    ({'group': 3}, 'cannot be told apart'),
    ({'group': 3, 'group_mark': '_', 'hints': 3}, 'not both'),
    ({'group': 3, 'group_mark': '7'}, "got '7'"),
    ({'hints': 103}, 'at most 102'),
    ({'spaces': 1.0}, 'spaces'),
  ],
)
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    layouts.Layout(**settings)


@pytest.mark.parametrize('pad', [False, True])
@pytest.mark.parametrize('name', tasks.ALL)
def test_a_prompt_has_one_answer_and_one_split_at_every_level(pad, name):
  task, layout = tasks.get(name), layouts.Layout(pad=pad)
  operands = lines.problems(task, 1000)
  member = np.stack([tasks.split_of(operands, s) for s in tasks.SPLITS])
  found: dict[str, tuple[str, int]] = {}
  problems = zip(*map(tasks.to_strings, operands), strict=True)
  for problem, split in zip(problems, member.argmax(axis=0), strict=True):
    prompt, answer = layout.text(task, problem, level=3)
    assert found.setdefault(prompt, (answer, split)) == (answer, split)
  assert len(found) > 100
